//! `CNI_ARGS`: what the kubelet's runtime says about the pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::names::{is_cni_name, is_dns_label, is_dns_subdomain};
use super::{CniError, names, text};

const VARIABLE: &str = "CNI_ARGS";
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";
/// The keys that are read.
const OURS: [&str; 4] = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "IP"];
/// A key of Kubernetes' runtimes that is not read.
const INFRA_CONTAINER: &str = "K8S_POD_INFRA_CONTAINER_ID";

/// `CNI_ARGS`, with the keys that concern us. An empty value counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`, a DNS-1123 label; present exactly if `pod_name` is.
    pub pod_namespace: Option<String>,
    /// `K8S_POD_NAME`, a DNS-1123 subdomain.
    pub pod_name: Option<String>,
    /// `K8S_POD_UID`; older runtimes do not send it.
    pub pod_uid: Option<String>,
    /// `IP`: the address asked for, at most one a family, as calico-ipam takes it.
    pub ip: Option<Vec<IpAddr>>,
}

impl CniArgs {
    /// Reads `K=V;K=V`. Code 4 for a malformed pair, for a value of ours that is malformed or contradicts an earlier one, and for a
    /// misspelt key of ours, unless `IgnoreUnknown=1` is among the pairs. Other keys are for other plugins.
    pub fn parse(args: &str) -> Result<CniArgs, CniError> {
        let pairs = pairs(args)?;
        if !ignores_unknown(&pairs) {
            refuse_misspelt(&pairs)?;
        }
        let name =
            |key: &str, holds: fn(&str) -> bool, right: &str| match pairs.get(key).filter(|value| !value.is_empty()) {
                Some(value) if !holds(value) => Err(refuse(key, value, "is malformed", right)),
                found => Ok(found.map(|value| (*value).to_owned())),
            };
        let args = CniArgs {
            pod_namespace: name("K8S_POD_NAMESPACE", is_dns_label, "a namespace is a DNS-1123 label")?,
            pod_name: name("K8S_POD_NAME", is_dns_subdomain, "a pod's name is a DNS-1123 subdomain")?,
            pod_uid: name("K8S_POD_UID", is_identifier, "a UID has letters, digits, - _ . only")?,
            ip: pairs.get("IP").filter(|value| !value.is_empty()).map(|value| addresses(value)).transpose()?,
        };
        match (&args.pod_namespace, &args.pod_name) {
            (Some(_), None) => Err(lonely("K8S_POD_NAMESPACE", "K8S_POD_NAME")),
            (None, Some(_)) => Err(lonely("K8S_POD_NAME", "K8S_POD_NAMESPACE")),
            _ => Ok(args),
        }
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() <= 128 && is_cni_name(text)
}

fn pairs(args: &str) -> Result<BTreeMap<&str, &str>, CniError> {
    let mut pairs = BTreeMap::new();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(CniError::variable(VARIABLE, pair, "is not key=value", "separate pairs by ;"));
        };
        if let Some(earlier) = pairs.insert(key, value).filter(|earlier| *earlier != value && OURS.contains(&key)) {
            return Err(refuse(key, value, &format!("is given twice, before as {earlier:.80?}"), "give it once"));
        }
    }
    Ok(pairs)
}

fn ignores_unknown(pairs: &BTreeMap<&str, &str>) -> bool {
    pairs.get(IGNORE_UNKNOWN).is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true"))
}

fn refuse_misspelt(pairs: &BTreeMap<&str, &str>) -> Result<(), CniError> {
    let unknown = pairs.keys().filter(|key| ![IGNORE_UNKNOWN, INFRA_CONTAINER].contains(key) && !OURS.contains(key));
    for key in unknown {
        if let Some(meant) = names::meant(key, &OURS) {
            let right = format!("did you mean {meant}? Or add IgnoreUnknown=1");
            return Err(CniError::variable(VARIABLE, key, "is not a known key", right));
        }
    }
    Ok(())
}

/// `IP`: one address, or two of different families.
fn addresses(value: &str) -> Result<Vec<IpAddr>, CniError> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for part in value.split(',').map(str::trim) {
        let ip = text::address(part).map_err(|error| refuse("IP", part, &error.wrong, &error.right))?;
        if ips.iter().any(|earlier| earlier.is_ipv4() == ip.is_ipv4()) {
            let wrong = "is a second address of its family";
            return Err(refuse("IP", part, wrong, "a pod gets one address a family"));
        }
        ips.push(ip);
    }
    Ok(ips)
}

fn refuse(key: &str, value: &str, wrong: &str, right: &str) -> CniError {
    CniError::variable(&format!("{VARIABLE} {key}"), value, wrong, right)
}

fn lonely(key: &str, other: &str) -> CniError {
    CniError::variable(VARIABLE, key, format!("comes without {other}"), "give both, or neither")
}

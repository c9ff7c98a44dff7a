//! `CNI_ARGS`: what the kubelet's runtime says about the pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::names::{is_cni_name, is_dns_label, is_dns_subdomain};
use super::{CniError, names, text};

const VARIABLE: &str = "CNI_ARGS";
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";
const KNOWN: [&str; 5] = ["K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID", "IP"];

/// `CNI_ARGS`, with the keys that concern us. An empty value counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`, a DNS-1123 label; present exactly if `pod_name` is.
    pub pod_namespace: Option<String>,
    /// `K8S_POD_NAME`, a DNS-1123 subdomain.
    pub pod_name: Option<String>,
    /// `K8S_POD_UID`; older runtimes do not send it.
    pub pod_uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`
    pub infra_container_id: Option<String>,
    /// `IP`: the address asked for, at most one a family, as calico-ipam takes it.
    pub ip: Option<Vec<IpAddr>>,
}

impl CniArgs {
    /// Reads `K=V;K=V`. Code 4 for a malformed pair or value, for a key with two different values, and for an unknown key unless
    /// `IgnoreUnknown=1` is among the pairs (any number of times).
    pub fn parse(args: &str) -> Result<CniArgs, CniError> {
        let pairs = pairs(args)?;
        if !ignore_unknown(&pairs)? {
            refuse_unknown(&pairs)?;
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
            infra_container_id: name(
                "K8S_POD_INFRA_CONTAINER_ID",
                is_identifier,
                "an id has letters, digits, - _ . only",
            )?,
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
        if let Some(earlier) = pairs.insert(key, value).filter(|earlier| *earlier != value) {
            return Err(refuse(key, value, &format!("is given twice, before as {earlier:.80?}"), "give it once"));
        }
    }
    Ok(pairs)
}

fn ignore_unknown(pairs: &BTreeMap<&str, &str>) -> Result<bool, CniError> {
    match pairs.get(IGNORE_UNKNOWN).map(|value| value.to_ascii_lowercase()).as_deref() {
        Some("1" | "true") => Ok(true),
        None | Some("0" | "false" | "") => Ok(false),
        Some(other) => Err(refuse(IGNORE_UNKNOWN, other, "is neither true nor false", "write 1, true, 0 or false")),
    }
}

fn refuse_unknown(pairs: &BTreeMap<&str, &str>) -> Result<(), CniError> {
    let known = |key: &str| key == IGNORE_UNKNOWN || KNOWN.contains(&key);
    let Some(key) = pairs.keys().find(|key| !known(key)) else { return Ok(()) };
    let right = match names::meant(key, &KNOWN) {
        Some(meant) => format!("did you mean {meant}? Or add IgnoreUnknown=1"),
        None => format!("known are {}; add IgnoreUnknown=1 to pass others", KNOWN.join(", ")),
    };
    Err(CniError::variable(VARIABLE, key, "is not a known key", right))
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

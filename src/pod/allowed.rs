//! Which fixed addresses the pods of a namespace may ask for: the Namespace's annotation `kube-ipam.allowed`, which
//! its users cannot change, and what the configuration says of namespaces without one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{ALLOWED, FixedRequest, IP};
use crate::cni::error::shown;
use crate::cni::{CniError, code, text};
use crate::range::Family;

/// `ipam.fixedAddresses`: who may ask where no annotation says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FixedAddresses {
    /// `anyNamespace`: every namespace may ask for everything.
    #[default]
    AnyNamespace,
    /// `allowedNamespaces`: none may ask for anything.
    AllowedNamespaces,
}

/// Whether a namespace with these annotations may have the addresses that one of its pods asks for: all of them, as the
/// pod may get any. Code 7 naming the first that it may not have, or what is malformed in the Namespace's annotation.
pub fn check_namespace(
    request: &FixedRequest,
    namespace: &str,
    annotations: Option<&BTreeMap<String, String>>,
    unannotated: FixedAddresses,
) -> Result<(), CniError> {
    let mut asked = Family::BOTH.iter().flat_map(|family| request.addresses(*family));
    let refuse = |ip: &IpAddr, wrong: String, right: String| {
        Err(CniError::new(code::INVALID_CONFIG, format!("annotation {IP}: {ip} {wrong}"), right))
    };
    let Some(value) = annotations.and_then(|all| all.get(ALLOWED)) else {
        return match (unannotated, asked.next()) {
            (FixedAddresses::AllowedNamespaces, Some(ip)) => {
                let wrong = format!("is not allowed in namespace {namespace}, which has no annotation {ALLOWED}");
                let right = format!(
                    "let an administrator say what its pods may have: kubectl annotate namespace {namespace} {ALLOWED}={ip}"
                );
                refuse(ip, wrong, right)
            }
            _ => Ok(()),
        };
    };
    let allowed = spans(namespace, value)?;
    match asked.find(|ip| !allowed.iter().any(|(first, last)| (first..=last).contains(ip))) {
        None => Ok(()),
        Some(ip) => {
            let wrong =
                format!("is not allowed in namespace {namespace}, whose annotation {ALLOWED} is {}", shown(value));
            refuse(
                ip,
                wrong,
                "ask for one of those, or let an administrator change the annotation of the namespace".into(),
            )
        }
    }
}

/// Addresses, ranges and CIDRs, separated by commas; nothing if the text is empty.
fn spans(namespace: &str, value: &str) -> Result<Vec<(IpAddr, IpAddr)>, CniError> {
    if value.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parse = |part: &str| {
        text::span(part).map_err(|error| {
            let name = format!("{ALLOWED} of namespace {namespace}");
            CniError::annotation(&name, value, format!("has {}, which {}", shown(part), error.wrong), error.right)
        })
    };
    value.split(',').map(str::trim).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::netconf::NetConf;

    fn request(ips: &str) -> FixedRequest {
        let ipam =
            json!({"type": "kube-ipam", "ranges": [[{"subnet": "10.244.0.0/16"}], [{"subnet": "fd00:10:244::/64"}]]});
        let conf = json!({"name": "n", "cniVersion": "0.3.1", "type": "calico", "ipam": ipam});
        let net = NetConf::parse(&conf, "kube-ipam").unwrap();
        FixedRequest::parse(&[(IP.to_owned(), ips.to_owned())].into(), &net.ipam).unwrap().unwrap()
    }

    fn checked(ips: &str, allowed: Option<&str>, unannotated: FixedAddresses) -> Result<(), String> {
        let annotations = allowed.map(|text| [(ALLOWED.to_owned(), text.to_owned())].into());
        check_namespace(&request(ips), "team-a", annotations.as_ref(), unannotated).map_err(|error| error.to_string())
    }

    #[test]
    fn without_an_annotation_the_configuration_decides() {
        assert_eq!(checked("10.244.0.216", None, FixedAddresses::AnyNamespace), Ok(()));
        let said = checked("10.244.0.216", None, FixedAddresses::AllowedNamespaces).unwrap_err();
        assert!(said.contains("kube-ipam.ip: 10.244.0.216") && said.contains("namespace team-a"), "{said}");
        assert!(said.contains("kubectl annotate namespace team-a kube-ipam.allowed=10.244.0.216"), "{said}");
    }

    #[test]
    fn every_address_asked_for_must_be_allowed_whatever_the_default_is() {
        let allowed = Some(
            "10.244.0.192/26, 10.244.9.9,fd00:10:244::/112, 10.244.7.5-10.244.7.7,fd00:10:244::2:0 - fd00:10:244::2:f",
        );
        for default in [FixedAddresses::AnyNamespace, FixedAddresses::AllowedNamespaces] {
            for ips in [
                "10.244.0.216",
                "10.244.9.9,10.244.0.200",
                "10.244.0.216,fd00:10:244::5",
                "10.244.7.5-10.244.7.7",
                "10.244.0.200-10.244.0.209,fd00:10:244::2:8/125",
            ] {
                assert_eq!(checked(ips, allowed, default), Ok(()));
            }
            for (ips, wrong) in [
                ("10.244.9.8", "10.244.9.8"),
                ("10.244.0.216,10.244.1.1", "10.244.1.1"),
                ("10.244.0.216,fd00:10:244::1:5", "fd00:10:244::1:5"),
                ("10.244.7.4", "10.244.7.4"),
                ("10.244.7.6-10.244.7.8", "10.244.7.8"),
                ("10.244.0.254-10.244.1.1", "10.244.1.0"),
                ("fd00:10:244::2:0/123", "fd00:10:244::2:10"),
            ] {
                let said = checked(ips, allowed, default).unwrap_err();
                assert!(said.contains(wrong) && said.contains("10.244.0.192/26"), "{said}");
            }
            assert!(checked("10.244.0.216", Some(" "), default).unwrap_err().contains("is not allowed"));
        }
    }

    #[test]
    fn a_malformed_annotation_of_a_namespace_allows_nothing_and_is_named() {
        for (text, wrong) in [
            ("10.244.0.0/33", "is not a CIDR"),
            ("10.244.0.1/24", "host bits"),
            ("10.244.0.216,", "is not an IP address"),
            ("10.244.0.216-10.244.0.200", "ends before it begins"),
        ] {
            let said = checked("10.244.0.216", Some(text), FixedAddresses::AnyNamespace).unwrap_err();
            assert!(said.contains("kube-ipam.allowed of namespace team-a") && said.contains(wrong), "{said}");
        }
    }
}

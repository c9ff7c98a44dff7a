//! `CNI_ARGS`: what the kubelet's runtime says about the pod.

use std::net::IpAddr;

use super::CniError;

/// `CNI_ARGS`, with the keys that concern us. An empty value counts as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`, a DNS-1123 label.
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
    pub fn parse(text: &str) -> Result<CniArgs, CniError> {
        let _ = text;
        unimplemented!()
    }
}

//! Calico's own annotations on pods and namespaces: which pools, which families.

use std::collections::BTreeMap;

use crate::cni::CniError;
use crate::netconf::PoolRef;

/// What `cni.projectcalico.org/ipv4pools`, `ipv6pools` and `ipFamilies` ask for; the pod's over the namespace's, key by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolAnnotations {
    /// `ipv4pools`; empty: not said.
    pub v4: Vec<PoolRef>,
    /// `ipv6pools`; empty: not said.
    pub v6: Vec<PoolRef>,
    /// `ipFamilies`; none: not said.
    pub families: Option<Families>,
}

/// Which families a pod wants; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// An IPv4 address
    pub v4: bool,
    /// An IPv6 address
    pub v6: bool,
}

impl PoolAnnotations {
    /// Reads the annotations of a pod and of its namespace. Code 7 for bad JSON, a pool of the wrong family, or an unknown family.
    pub fn parse(
        pod: &BTreeMap<String, String>,
        namespace: &BTreeMap<String, String>,
    ) -> Result<PoolAnnotations, CniError> {
        let _ = (pod, namespace);
        unimplemented!()
    }
}

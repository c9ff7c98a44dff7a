//! What a pod says about its addresses: annotations, and who owns it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

mod allowed;
mod fixed;
mod handover;
mod launcher;
mod owner;
mod pools;
mod uid;
mod workload;

pub use allowed::{FixedAddresses, check_namespace};
pub use fixed::FixedRequest;
pub use handover::HandoverMode;
pub use launcher::{
    Launcher, is_machine_ending, machine_by_name, machine_objects, machine_of_instance, may_be_launcher,
};
pub use owner::Owner;
pub use pools::{Families, PoolAnnotations};
pub use uid::{has_uid, is_static, uid};
pub use workload::Workload;

/// `kube-ipam.ip`: the fixed addresses a pod may have: addresses, ranges `first-last` and CIDRs, separated by commas.
pub const IP: &str = "kube-ipam.ip";
/// `kube-ipam.netmask`: the mask its fixed addresses are believed to have; checked against the subnet.
pub const NETMASK: &str = "kube-ipam.netmask";
/// `kube-ipam.gateway`: the gateway to answer with instead of the configured one.
pub const GATEWAY: &str = "kube-ipam.gateway";
/// `kube-ipam.owner`: who owns the fixed addresses, instead of the pod's controller.
pub const OWNER: &str = "kube-ipam.owner";
/// `kube-ipam.handover`: what becomes of an update of the pod's workload, instead of the configuration's `handover`.
pub const HANDOVER: &str = "kube-ipam.handover";
/// `kube-ipam.allowed`, of a Namespace: the fixed addresses that its pods may ask for.
pub const ALLOWED: &str = "kube-ipam.allowed";

/// Calico's annotation for addresses, which its main plugin passes on to calico-ipam as `IP=`.
pub const IP_ADDRS: &str = "cni.projectcalico.org/ipAddrs";
/// Calico's annotation for addresses that no IPAM plugin is asked for.
pub const IP_ADDRS_NO_IPAM: &str = "cni.projectcalico.org/ipAddrsNoIpam";
/// Multus' annotation for a network that a pod has instead of the cluster's.
pub const OTHER_NETWORK: &str = "v1.multus-cni.io/default-network";

/// Whether a pod's addresses are none of any IPAM plugin's, or of another network.
pub(crate) fn is_foreign(pod: &Pod) -> bool {
    [IP_ADDRS_NO_IPAM, OTHER_NETWORK].iter().any(|key| pod.annotations().contains_key(*key))
}

/// Whether all containers of a pod have ended for good.
pub(crate) fn has_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// The addresses that a pod has by its status, in order; `None` for one that has no address of its own, as it shares its node's.
pub(crate) fn own_addresses(pod: &Pod) -> Option<Vec<IpAddr>> {
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return None;
    }
    let status = pod.status.as_ref();
    let one = status.and_then(|s| s.pod_ip.as_deref()).into_iter();
    let several = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
    let addresses: BTreeSet<IpAddr> = one.chain(several).filter_map(|text| text.parse().ok()).collect();
    Some(addresses.into_iter().collect())
}

#[cfg(test)]
mod tests;

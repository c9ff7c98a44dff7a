//! What a pod says about its addresses: annotations, and who owns it.

mod allowed;
mod fixed;
mod handover;
mod owner;
mod pools;

pub use allowed::{FixedAddresses, check_namespace};
pub use fixed::FixedRequest;
pub use handover::HandoverMode;
pub use owner::Owner;
pub use pools::{Families, PoolAnnotations};

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

#[cfg(test)]
mod tests;

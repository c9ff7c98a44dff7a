//! The `ipam` section.

use std::path::PathBuf;
use std::time::Duration;


use super::EtcdConfig;
use crate::cni::Route;
use crate::range::{Family, RangeSet};

/// The `ipam` section of a network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// `ipam.name`, by default the network's name: the ledger's network.
    pub network: String,
    /// `ipam.etcdConfig`; none: no fixed addresses.
    pub etcd: Option<EtcdConfig>,
    /// The IPv4 subnets.
    pub v4: Option<RangeSet>,
    /// The IPv6 subnets.
    pub v6: Option<RangeSet>,
    /// `ipam.routes`, passed through to the answer.
    pub routes: Vec<Route>,
    /// `ipam.resolvConf`, the file the answer's `dns` is read from. Absolute.
    pub resolv_conf: Option<PathBuf>,
    /// `ipam.waitSeconds`: how long ADD waits for the holder of a fixed address to go, 20 s by default.
    pub wait: Duration,
    /// `ipam.ipv4_pools`: pools to take IPv4 addresses from; empty: any that Calico's rules allow.
    pub v4_pools: Vec<PoolRef>,
    /// `ipam.ipv6_pools`
    pub v6_pools: Vec<PoolRef>,
    /// Whose form of input and answer this is.
    pub dialect: Dialect,
}

/// Whose form of configuration and answer is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Ours: families and ranges follow the configured subnets, of which there is at least one.
    KubeIpam,
    /// That of `calico-ipam`: families by `assign_ipv4` and `assign_ipv6`, at least one of them; subnets are optional.
    CalicoIpam {
        /// `assign_ipv4`, by default true
        assign_v4: bool,
        /// `assign_ipv6`, by default false
        assign_v6: bool,
    },
}

pub use calico::PoolRef;

impl Ipam {
    /// The subnets of a family.
    pub fn ranges(&self, family: Family) -> Option<&RangeSet> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Whether a pod of this network gets an address of this family, unless its annotations say otherwise.
    pub fn assigns(&self, family: Family) -> bool {
        match (self.dialect, family) {
            (Dialect::KubeIpam, _) => self.ranges(family).is_some(),
            (Dialect::CalicoIpam { assign_v4, .. }, Family::V4) => assign_v4,
            (Dialect::CalicoIpam { assign_v6, .. }, Family::V6) => assign_v6,
        }
    }
}

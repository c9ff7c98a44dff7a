//! `IPPool`: the networks addresses come from, and the blocks they are divided into.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::net;
use crate::wire::Unknown;

mod choice;
mod within;

pub use choice::{PoolError, PoolRef, PoolRequest, Rejected, Unfit, eligible};

/// A network that addresses come from.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "IPPool",
    plural = "ippools",
    singular = "ippool",
    status = "IPPoolStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolSpec {
    /// The network. Pools do not overlap.
    pub cidr: IpNetwork,
    /// Prefix length of a block; absent or 0 is 26 or 122. See [`IPPoolSpec::block_size`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<i64>,
    /// Existing addresses stay, new ones are not assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Nodes that assign from it automatically, see [`crate::Selector`]; absent or empty is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// Namespaces whose pods get addresses from it automatically; absent or empty is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<String>,
    /// See [`AllowedUse`]; absent or empty is Workload and Tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_uses: Option<Vec<String>>,
    /// `Automatic`, or `Manual`: only for requests that name the pool; absent is Automatic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment_mode: Option<String>,
    /// `Never`, `Always` or `CrossSubnet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipip_mode: Option<String>,
    /// `Never`, `Always` or `CrossSubnet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vxlan_mode: Option<String>,
    /// Whether traffic that leaves the pools is translated to the node's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat_outgoing: Option<bool>,
    /// Whether the pool's routes are kept from BGP peers.
    #[serde(default, rename = "disableBGPExport", skip_serializing_if = "Option::is_none")]
    pub disable_bgp_export: Option<bool>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What Calico's pool controller found out about a pool.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
pub struct IPPoolStatus {
    /// Its findings, by type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<PoolCondition>>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// One finding.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct PoolCondition {
    /// `Allocatable` is the one that steers assignment.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The other fields of a Kubernetes condition.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What an address is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AllowedUse {
    /// A pod.
    Workload,
    /// A node's end of a tunnel.
    Tunnel,
    /// A service of type LoadBalancer.
    LoadBalancer,
}

impl Family {
    /// Both, in the order in which answers list them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Length of an address: 32 or 128 bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a network.
    pub fn of_network(network: &IpNetwork) -> Self {
        Self::of(network.ip())
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl AllowedUse {
    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::Tunnel => "Tunnel",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

impl IPPoolSpec {
    /// Prefix length of a block: 26 or 122 if the pool does not say, and never shorter than the pool's own
    /// nor longer than an address.
    pub fn block_size(&self) -> u8 {
        let width = net::width(&self.cidr);
        let default = if self.cidr.is_ipv4() { 26 } else { 122 };
        let size = match self.block_size {
            None | Some(0) => default,
            Some(size) => u8::try_from(size.clamp(0, i64::from(width))).unwrap_or(default),
        };
        size.clamp(self.cidr.prefix().min(width), width)
    }

    /// The block that holds the address, or would hold it if the address were in the pool.
    pub fn block_of(&self, address: IpAddr) -> IpNetwork {
        let size = if address.is_ipv4() { self.block_size().min(32) } else { self.block_size() };
        IpNetwork::new(address, size).map_or(IpNetwork::from(address), |block| net::masked(&block))
    }

    /// Number of blocks; saturates at `u128::MAX`.
    pub fn block_count(&self) -> u128 {
        let bits = u32::from(self.block_size().saturating_sub(self.cidr.prefix()));
        1u128.checked_shl(bits).unwrap_or(u128::MAX)
    }

    /// Every block once, in order, from index `start` (taken modulo the number of blocks) around to the one
    /// before it.
    pub fn blocks(&self, start: u128) -> impl Iterator<Item = IpNetwork> + use<> {
        let (count, size, base) = (self.block_count(), self.block_size(), self.cidr.network());
        let addresses = 1u128.checked_shl(u32::from(net::width(&self.cidr) - size)).unwrap_or(0);
        let start = start % count;
        (start..count)
            .chain(0..start)
            .filter_map(move |index| IpNetwork::new(net::above(base, index.wrapping_mul(addresses)), size).ok())
    }

    /// Where a node begins to look for a block: the same place each time, and apart from other nodes. Not
    /// the place Calico's own plugin begins at; any place will do.
    pub fn start_for(&self, host: &str) -> u128 {
        let hash = Sha256::digest(host);
        let number = hash.iter().take(16).fold(0u128, |number, byte| number << 8 | u128::from(*byte));
        number % self.block_count()
    }

    /// Whether the address is in the pool.
    pub fn contains(&self, address: IpAddr) -> bool {
        net::offset(&self.cidr, address).is_some()
    }

    /// Whether addresses of the pool may be used so.
    pub fn allows(&self, wanted: AllowedUse) -> bool {
        match self.allowed_uses.as_deref() {
            None | Some([]) => matches!(wanted, AllowedUse::Workload | AllowedUse::Tunnel),
            Some(uses) => uses.iter().any(|allowed| allowed == wanted.as_str()),
        }
    }

    /// Whether requests that do not name the pool may use it.
    pub fn is_automatic(&self) -> bool {
        self.assignment_mode.as_deref().is_none_or(|mode| mode == "Automatic")
    }
}

/// The pool that holds the address; the first, if there are several.
pub fn covering<'p>(pools: impl IntoIterator<Item = &'p IPPool>, address: IpAddr) -> Option<&'p IPPool> {
    pools.into_iter().find(|pool| pool.spec.contains(address))
}

impl JsonSchema for IPPoolSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IPPoolSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["cidr"],
            "properties": {
                "allowedUses": {"type": "array", "items": {
                    "type": "string", "enum": ["Workload", "Tunnel", "LoadBalancer"],
                }},
                "assignmentMode": {"type": "string", "enum": ["Automatic", "Manual"], "default": "Automatic"},
                "blockSize": {"type": "integer"},
                "cidr": {"type": "string", "format": "cidr"},
                "disableBGPExport": {"type": "boolean"},
                "disabled": {"type": "boolean"},
                "ipipMode": {"type": "string", "enum": ["Never", "Always", "CrossSubnet"]},
                "namespaceSelector": {"type": "string"},
                "natOutgoing": {"type": "boolean"},
                "nodeSelector": {"type": "string", "default": "all()"},
                "vxlanMode": {"type": "string", "enum": ["Never", "Always", "CrossSubnet"]},
            },
        })
    }
}

impl JsonSchema for IPPoolStatus {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IPPoolStatus".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "nullable": true,
            "properties": {
                "conditions": {"type": "array", "items": {
                    "type": "object",
                    "required": ["lastTransitionTime", "message", "reason", "status", "type"],
                    "properties": {
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "message": {"type": "string"},
                        "observedGeneration": {"type": "integer", "format": "int64"},
                        "reason": {"type": "string"},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "type": {"type": "string"},
                    },
                }},
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cidr: &str, block_size: Option<i64>) -> IPPoolSpec {
        serde_json::from_value(serde_json::json!({ "cidr": cidr, "blockSize": block_size })).unwrap()
    }

    #[test]
    fn every_block_of_a_pool_comes_once_from_any_start() {
        let pool = spec("10.244.0.0/24", None);
        let text = |start| pool.blocks(start).map(|block| block.to_string()).collect::<Vec<_>>();
        assert_eq!(text(0), ["10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26"]);
        assert_eq!(text(7), ["10.244.0.192/26", "10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26"]);
        let start = pool.start_for("n1");
        assert!(start < 4 && start == pool.start_for("n1"));
    }

    #[test]
    fn the_largest_and_the_oddest_pools_do_not_overflow() {
        let whole = spec("::/0", Some(128));
        assert_eq!(whole.block_count(), u128::MAX);
        assert_eq!(whole.blocks(u128::MAX - 1).take(3).count(), 3);
        assert_eq!(spec("::/0", Some(1)).blocks(1).map(|b| b.to_string()).collect::<Vec<_>>(), ["8000::/1", "::/1"]);
        assert_eq!(spec("0.0.0.0/0", Some(-5)).blocks(9).count(), 1);
        assert_eq!(spec("10.0.0.0/24", Some(999)).block_size(), 32);
        assert_eq!(spec("10.0.0.0/24", Some(8)).block_size(), 24);
        assert_eq!(spec("fd00::/48", Some(0)).block_size(), 122);
        assert_eq!(spec("fd00::/48", None).block_of("10.0.0.1".parse().unwrap()).to_string(), "10.0.0.1/32");
    }

    #[test]
    fn an_address_belongs_to_the_block_around_it() {
        let block = |cidr: &str, size, address: &str| spec(cidr, size).block_of(address.parse().unwrap()).to_string();
        assert_eq!(block("10.244.0.0/16", Some(26), "10.244.0.216"), "10.244.0.192/26");
        assert_eq!(block("fd00:10:244::/48", None, "fd00:10:244::1:ff"), "fd00:10:244::1:c0/122");
    }

    #[test]
    fn a_pool_that_names_no_use_is_for_pods_and_tunnels() {
        let pool = spec("10.0.0.0/24", None);
        assert!(pool.allows(AllowedUse::Workload) && pool.allows(AllowedUse::Tunnel));
        assert!(!pool.allows(AllowedUse::LoadBalancer));
    }
}

//! How an agent stands: what `/status` answers, `kube-ipam status` shows and the gauges are set by.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use calico::{Entry, IPAMBlock, IPPool, Reservations, covering};
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::Agent;
use super::trouble::Trouble;
use crate::service::How;

/// How an agent stands. Fields of other releases are skipped, or left at nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The node.
    pub node: String,
    /// The agent's release.
    pub version: String,
    /// Seconds since its start.
    pub uptime_seconds: u64,
    /// What keeps it from being ready; empty if it is.
    pub not_ready: Vec<String>,
    /// Loops that do not move; empty if it is healthy.
    pub stuck: Vec<String>,
    /// Where the metrics are served over TCP, if they are.
    pub metrics_address: Option<SocketAddr>,
    /// What is remembered of the cluster, by kind.
    pub caches: Vec<CacheStatus>,
    /// This node's blocks, by pool.
    pub pools: Vec<PoolStatus>,
    /// What is under way.
    pub queues: Queues,
    /// Addresses on record before their ADD.
    pub ahead: AheadStatus,
    /// How many ADDs were answered, by how the address was found.
    pub adds: BTreeMap<String, u64>,
    /// The collector.
    pub collector: CollectorStatus,
    /// The last calls that were refused, oldest first.
    pub last_errors: Vec<Trouble>,
    /// Resident memory in bytes.
    pub resident_bytes: usize,
}

/// What is remembered of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CacheStatus {
    /// The kind's plural.
    pub kind: String,
    /// Whether it was listed since the start.
    pub synced: bool,
    /// How many objects are remembered.
    pub objects: usize,
    /// Seconds since anything was heard of the kind; none before the first time.
    pub age_seconds: Option<f64>,
}

/// The addresses of this node's blocks in one pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolStatus {
    /// The pool; empty for blocks that lie in none.
    pub pool: String,
    /// How many blocks.
    pub blocks: usize,
    /// Addresses in use.
    pub used: usize,
    /// Addresses for anybody.
    pub free: usize,
    /// Free addresses that an IPReservation keeps.
    pub reserved: usize,
    /// Released addresses that are not given out again yet.
    pub cooling: usize,
}

/// What is under way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Queues {
    /// Calls and other work that would be finished before the agent stops.
    pub tasks: usize,
    /// DELs that were answered and whose releases are not on record yet.
    pub pending_releases: usize,
    /// Handles still to be deleted.
    pub pending_handles: usize,
    /// Events still to be sent.
    pub events: usize,
}

/// Addresses on record before their ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AheadStatus {
    /// Whether addresses are taken ahead at all.
    pub enabled: bool,
    /// Pods of this node that are kept in mind.
    pub pods: usize,
    /// Pods whose addresses are on record and whose ADD has not come.
    pub waiting: usize,
}

/// The collector.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CollectorStatus {
    /// Whether this agent takes part in the election.
    pub enabled: bool,
    /// Whether it leads.
    pub leading: bool,
    /// The node that leads, if one does and the Lease could be read.
    pub leader: Option<String>,
}

impl Agent {
    /// Everything but who leads the collectors elsewhere.
    pub(super) fn status(&self) -> Status {
        let shelves = self.shelves();
        let caches = shelves.states().into_iter().map(|state| CacheStatus {
            kind: state.kind,
            synced: state.synced,
            objects: state.objects,
            age_seconds: state.age.map(|age| age.as_secs_f64()),
        });
        let reservations = Reservations::new(&shelves.reservations.snapshot());
        Status {
            node: self.options.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            not_ready: self.not_ready(),
            stuck: self.health.stuck(),
            metrics_address: self.metrics_address,
            caches: caches.collect(),
            pools: pools(&shelves.blocks.snapshot(), &shelves.pools.snapshot(), &reservations),
            queues: Queues {
                tasks: self.tasks.len(),
                pending_releases: self.state.owed_count(),
                pending_handles: self.state.pending().len(),
                events: self.witness.events.len(),
            },
            ahead: AheadStatus {
                enabled: self.options.take_ahead,
                pods: self.ahead.len(),
                waiting: self.ahead.waiting(&self.state),
            },
            adds: How::ALL.iter().map(|how| (how.label().to_owned(), self.witness.metrics.adds(*how))).collect(),
            collector: CollectorStatus {
                enabled: self.options.collect,
                leading: self.witness.metrics.leads(),
                leader: None,
            },
            last_errors: self.witness.troubles.all(),
            resident_bytes: fs::read_to_string("/proc/self/status").map(|text| resident(&text)).unwrap_or_default(),
        }
    }
}

/// This node's blocks by the pools they lie in.
fn pools(blocks: &[IPAMBlock], pools: &[IPPool], reservations: &Reservations) -> Vec<PoolStatus> {
    let mut found: BTreeMap<String, PoolStatus> = BTreeMap::new();
    for block in blocks.iter().filter(|block| block.spec.clone().validate().is_ok()) {
        let spec = &block.spec;
        let pool = covering(pools, spec.cidr.network()).map(|pool| pool.name_any()).unwrap_or_default();
        let entry = found.entry(pool.clone()).or_insert_with(|| PoolStatus { pool, ..PoolStatus::default() });
        entry.blocks += 1;
        entry.used += spec.entries().filter(|(_, entry)| matches!(entry, Entry::Used { .. })).count();
        entry.cooling += spec.entries().filter(|(_, entry)| matches!(entry, Entry::Cooling { .. })).count();
        entry.free += spec.free(|address| !reservations.covers(address));
        entry.reserved += spec.free(|address| reservations.covers(address));
    }
    found.into_values().collect()
}

/// Resident memory by what `/proc/self/status` says, in bytes.
fn resident(text: &str) -> usize {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<usize>().ok());
    kilobytes.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use calico::{Affinity, Holder, IPAMBlockSpec};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_counted_by_pool_and_what_is_reserved_is_not_free() {
        let now = Timestamp::UNIX_EPOCH;
        let mut spec = IPAMBlockSpec::new("10.244.0.0/26".parse().unwrap(), &Affinity::host("n1"), now);
        spec.assign("10.244.0.9".parse().unwrap(), &Holder::pod("net.c", "default", "web", "n1", now), None).unwrap();
        let elsewhere = IPAMBlockSpec::new("10.9.0.0/30".parse().unwrap(), &Affinity::host("n1"), now);
        let pool = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"cidr": "10.244.0.0/16"}}));
        let reserved =
            json!({"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.244.0.9/32", "10.244.0.32/30"]}});
        let reserved = Reservations::new(&[serde_json::from_value(reserved).unwrap()]);
        let found = pools(&[spec.object(), elsewhere.object()], &[pool.unwrap()], &reserved);
        let none = PoolStatus { blocks: 1, free: 4, ..PoolStatus::default() };
        let ours = PoolStatus { pool: "p".into(), blocks: 1, used: 1, free: 59, reserved: 4, cooling: 0 };
        assert_eq!(found, [none, ours]);
    }

    #[test]
    fn resident_memory_is_read_where_the_kernel_says_it() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t   10240 kB\nVmData:\t1 kB\n"), 10 << 20);
        assert_eq!(resident("Name:\tx\n"), 0);
    }

    #[test]
    fn a_status_of_another_release_is_understood() {
        let status: Status = serde_json::from_value(json!({"node": "n1", "later": {"a": 1}})).unwrap();
        assert_eq!((status.node.as_str(), status.caches.len()), ("n1", 0));
    }
}

//! The ledgers that configurations mean, each opened once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::netconf::NetConf;
use crate::store::LazyLedger;
use crate::store::kube::KubeStore;

/// Ledgers by how they are reached and by network.
pub(super) struct Ledgers {
    /// For claims that are Kubernetes objects. What the agent has heard of the cluster is not asked: claims
    /// are always read live.
    store: KubeStore,
    open: Mutex<HashMap<String, Arc<LazyLedger>>>,
}

impl Ledgers {
    pub(super) fn new(store: KubeStore) -> Self {
        Self { store, open: Mutex::default() }
    }

    /// The ledger of a configuration.
    pub(super) fn of(&self, net: &NetConf) -> Arc<LazyLedger> {
        let key = format!("{:?} {}", net.ipam.etcd, net.ipam.network);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(key).or_insert_with(|| Arc::new(LazyLedger::of(&net.ipam, &self.store))).clone()
    }
}

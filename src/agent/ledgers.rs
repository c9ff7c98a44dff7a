//! The ledgers that configurations name, each opened once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::netconf::NetConf;
use crate::service::LazyLedger;

/// Ledgers by how they are reached and by network.
#[derive(Default)]
pub(super) struct Ledgers {
    open: Mutex<HashMap<String, Arc<LazyLedger>>>,
}

impl Ledgers {
    /// The ledger of a configuration, if it has one.
    pub(super) fn of(&self, net: &NetConf) -> Option<Arc<LazyLedger>> {
        let etcd = net.ipam.etcd.as_ref()?;
        let key = format!("{etcd:?} {}", net.ipam.network);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let ledger = open.entry(key).or_insert_with(|| Arc::new(LazyLedger::new(etcd.clone(), &net.ipam.network)));
        Some(ledger.clone())
    }
}

//! The ledger, opened by the first call that needs it: a random address never waits for etcd, nor for the
//! reading of its certificates.

use std::net::IpAddr;

use tokio::sync::OnceCell;

use crate::claim::Claim;
use crate::netconf::EtcdConfig;
use crate::store::etcd::EtcdLedger;
use crate::store::{Ledger, StoreError, Swap, Versioned};

/// A ledger in etcd that connects when it is first used.
pub struct LazyLedger {
    config: EtcdConfig,
    network: String,
    opened: OnceCell<EtcdLedger>,
}

// === impl LazyLedger ===

impl LazyLedger {
    /// A ledger for `network`; nothing is read or connected yet.
    pub fn new(config: EtcdConfig, network: &str) -> Self {
        Self { config, network: network.to_owned(), opened: OnceCell::new() }
    }

    async fn open(&self) -> Result<&EtcdLedger, StoreError> {
        self.opened.get_or_try_init(|| EtcdLedger::open(&self.config, &self.network)).await
    }
}

impl Ledger for LazyLedger {
    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        self.open().await?.read(address).await
    }

    async fn all(&self) -> Result<Vec<Versioned<Claim>>, StoreError> {
        self.open().await?.all().await
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        self.open().await?.swap(address, expected, claim).await
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        self.open().await?.changed(address, revision).await
    }
}

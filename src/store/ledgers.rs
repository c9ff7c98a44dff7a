//! The two ledgers as one type, and which of them a network's configuration means.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::cluster::ClusterId;
use super::etcd::EtcdLedger;
use super::ipclaim::IPClaimLedger;
use super::kube::KubeStore;
use super::{Ledger, Listed, StoreError, Swap, Versioned};
use crate::claim::{Claim, LedgerName};
use crate::netconf::{EtcdConfig, Ipam};

/// A ledger that can be used at once.
// One for each process or network.
#[expect(clippy::large_enum_variant)]
#[derive(Clone)]
pub enum AnyLedger {
    /// In etcd.
    Etcd(EtcdLedger),
    /// As IPClaims.
    Objects(IPClaimLedger),
}

/// The ledger that a configuration means, opened by the first call that needs it: a random address never waits
/// for etcd, nor for the reading of its certificates.
pub struct LazyLedger {
    place: Place,
    opened: OnceCell<AnyLedger>,
}

enum Place {
    Etcd(EtcdConfig, String, Arc<ClusterId>),
    Objects(IPClaimLedger),
}

// === impl AnyLedger ===

impl Ledger for AnyLedger {
    fn name(&self) -> LedgerName {
        match self {
            Self::Etcd(ledger) => ledger.name(),
            Self::Objects(ledger) => ledger.name(),
        }
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        match self {
            Self::Etcd(ledger) => ledger.read(address).await,
            Self::Objects(ledger) => ledger.read(address).await,
        }
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        match self {
            Self::Etcd(ledger) => ledger.listed().await,
            Self::Objects(ledger) => ledger.listed().await,
        }
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        match self {
            Self::Etcd(ledger) => ledger.swap(address, expected, claim).await,
            Self::Objects(ledger) => ledger.swap(address, expected, claim).await,
        }
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        match self {
            Self::Etcd(ledger) => ledger.changed(address, revision).await,
            Self::Objects(ledger) => ledger.changed(address, revision).await,
        }
    }
}

// === impl LazyLedger ===

impl LazyLedger {
    /// Where `ipam` says: in the etcd of its `etcdConfig`, else as IPClaims on the API server of `store`. Nothing
    /// is read or connected yet.
    pub fn of(ipam: &Ipam, store: &KubeStore) -> Self {
        Self::of_cluster(ipam, &Arc::new(ClusterId::new(store.clone())))
    }

    /// The same on the API server of `cluster`, whose UID is read once for all that share it.
    pub fn of_cluster(ipam: &Ipam, cluster: &Arc<ClusterId>) -> Self {
        let place = match &ipam.etcd {
            Some(etcd) => Place::Etcd(etcd.clone(), ipam.network.clone(), cluster.clone()),
            None => Place::Objects(IPClaimLedger::new(cluster.store().clone(), &ipam.network)),
        };
        Self { place, opened: OnceCell::new() }
    }

    async fn open(&self) -> Result<&AnyLedger, StoreError> {
        let open = || async {
            Ok(match &self.place {
                Place::Etcd(config, network, cluster) => {
                    AnyLedger::Etcd(EtcdLedger::open(config, network, cluster).await?)
                }
                Place::Objects(ledger) => AnyLedger::Objects(ledger.clone()),
            })
        };
        self.opened.get_or_try_init(open).await
    }
}

impl Ledger for LazyLedger {
    fn name(&self) -> LedgerName {
        match &self.place {
            Place::Etcd(config, network, _) => LedgerName::etcd(&config.prefix, network),
            Place::Objects(ledger) => ledger.name(),
        }
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        self.open().await?.read(address).await
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        self.open().await?.listed().await
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        self.open().await?.swap(address, expected, claim).await
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        self.open().await?.changed(address, revision).await
    }
}

//! Which ledger a command reads and writes: what a flag says, else what the node's list says, else what there is.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::connect::Site;
use crate::store::cluster::ClusterId;
use crate::store::etcd::EtcdLedger;
use crate::store::ipclaim::IPClaimLedger;
use crate::store::kube::KubeStore;
use crate::store::{AnyLedger, Ledger as _};

/// A kind of ledger, as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LedgerKind {
    /// In etcd, as --etcd-* or the list's etcdConfig say.
    Etcd,
    /// IPClaims, on the API server.
    Objects,
}

/// What the flags, the list and the search come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Choice {
    /// Nothing says it yet.
    #[default]
    Unsaid,
    /// A configuration that names no etcd, or IPClaims that exist: IPClaims, if the cluster serves them.
    Implied,
    /// A flag says it, or etcd is named.
    Said(LedgerKind),
    /// It was looked for, and why it was not found.
    Unknown(String),
}

/// The ledger, or why none is known: then nothing may be concluded about claims.
pub(super) type Found = Result<AnyLedger, String>;

/// The flags that name a ledger, for errors.
pub(super) const LEDGER: &str = "name its ledger: give --conflist, --etcd-url, or --ledger objects for IPClaims";

const NOT_SERVED: &str = "the API server does not know IPClaims; apply kube-ipam's yaml/ipclaims.yaml, or name etcd";
const NO_NETWORK: &str = "no network is known; give --network, or --conflist";
/// The network's name where nobody gave it another one: Calico's own.
const USUAL: &str = "k8s-pod-network";

impl Site {
    /// The ledger, if one is named or was found.
    pub(super) async fn ledger(&self, store: &KubeStore) -> Result<Found> {
        match &self.choice {
            Choice::Said(LedgerKind::Etcd) if self.network.is_none() => self.usual_in_etcd(store).await,
            Choice::Said(kind) if self.network.is_some() => self.ledger_of(*kind, store).await.map(Ok),
            Choice::Said(_) => Ok(Err(NO_NETWORK.to_owned())),
            Choice::Implied => {
                let claims = self.claims(store)?;
                Ok(match claims.is_served().await? {
                    true => Ok(AnyLedger::Objects(claims)),
                    false => Err(NOT_SERVED.to_owned()),
                })
            }
            Choice::Unsaid => Ok(Err(LEDGER.to_owned())),
            Choice::Unknown(why) => Ok(Err(why.clone())),
        }
    }

    /// An etcd without a network: the usual one, if it has claims there. That it has none tells nothing.
    async fn usual_in_etcd(&self, store: &KubeStore) -> Result<Found> {
        let site = Self { network: Some(USUAL.to_owned()), ..self.clone() };
        let ledger = site.ledger_of(LedgerKind::Etcd, store).await?;
        if ledger.all().await?.is_empty() {
            return Ok(Err(format!("{NO_NETWORK}: etcd has no claims of network {USUAL:?}")));
        }
        Ok(Ok(ledger))
    }

    /// The ledger, which has to be there.
    pub(super) async fn needed_ledger(&self, store: &KubeStore) -> Result<AnyLedger> {
        match self.ledger(store).await? {
            Ok(ledger) => Ok(ledger),
            Err(why) => bail!("where the claims are is not known: {why}"),
        }
    }

    /// The network, which has to be known.
    pub(super) fn needed_network(&self) -> Result<&str> {
        self.network.as_deref().context(NO_NETWORK)
    }

    /// The ledger of that kind.
    pub(super) async fn ledger_of(&self, kind: LedgerKind, store: &KubeStore) -> Result<AnyLedger> {
        match (kind, &self.etcd) {
            (LedgerKind::Etcd, Some(etcd)) => {
                let cluster = Arc::new(ClusterId::new(store.clone()));
                Ok(AnyLedger::Etcd(EtcdLedger::open(etcd, self.needed_network()?, &cluster).await?))
            }
            (LedgerKind::Etcd, None) => bail!("no etcd is named; give --etcd-url, or --conflist with an etcdConfig"),
            (LedgerKind::Objects, _) => {
                let claims = self.claims(store)?;
                if !claims.is_served().await? {
                    bail!(NOT_SERVED);
                }
                Ok(AnyLedger::Objects(claims))
            }
        }
    }

    fn claims(&self, store: &KubeStore) -> Result<IPClaimLedger> {
        Ok(IPClaimLedger::new(store.clone(), self.needed_network()?))
    }
}

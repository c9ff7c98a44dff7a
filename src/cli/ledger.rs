//! Which ledger a command reads and writes: what a flag says, else what the node's list says, else what there is.

use std::sync::Arc;

use anyhow::{Result, bail};
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

/// What the flags and the list come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Choice {
    /// Nothing says it: IPClaims, if there are any of the network. That there are none tells nothing, since the
    /// network's claims may be in an etcd that is not named.
    #[default]
    Unsaid,
    /// A list that names no etcd: IPClaims, if the cluster serves them.
    Implied,
    /// A flag says it, or etcd is named.
    Said(LedgerKind),
}

/// The flags that name a ledger, for errors.
pub(super) const LEDGER: &str =
    "no ledger of claims is named; give --conflist, --etcd-url, or --ledger objects for IPClaims";

const NOT_SERVED: &str = "the API server does not know IPClaims; apply kube-ipam's yaml/ipclaims.yaml, or name etcd";

impl Site {
    /// The ledger, if one is named or found.
    pub(super) async fn ledger(&self, store: &KubeStore) -> Result<Option<AnyLedger>> {
        match self.choice {
            Choice::Said(kind) => self.ledger_of(kind, store).await.map(Some),
            Choice::Implied => {
                let claims = self.claims(store);
                Ok(claims.is_served().await?.then_some(AnyLedger::Objects(claims)))
            }
            Choice::Unsaid => {
                let claims = self.claims(store);
                match claims.all().await {
                    Ok(found) if found.is_empty() => Ok(None),
                    Err(error) if error.is_no_ledger() => Ok(None),
                    // A read that fails is said by whoever reads next.
                    _ => Ok(Some(AnyLedger::Objects(claims))),
                }
            }
        }
    }

    /// The ledger, which has to be there.
    pub(super) async fn needed_ledger(&self, store: &KubeStore) -> Result<AnyLedger> {
        match self.ledger(store).await? {
            Some(ledger) => Ok(ledger),
            None if self.choice == Choice::Implied => bail!(NOT_SERVED),
            None => bail!(LEDGER),
        }
    }

    /// The ledger of that kind.
    pub(super) async fn ledger_of(&self, kind: LedgerKind, store: &KubeStore) -> Result<AnyLedger> {
        match (kind, &self.etcd) {
            (LedgerKind::Etcd, Some(etcd)) => {
                let cluster = Arc::new(ClusterId::new(store.clone()));
                Ok(AnyLedger::Etcd(EtcdLedger::open(etcd, &self.network, &cluster).await?))
            }
            (LedgerKind::Etcd, None) => bail!("no etcd is named; give --etcd-url, or --conflist with an etcdConfig"),
            (LedgerKind::Objects, _) => {
                let claims = self.claims(store);
                if !claims.is_served().await? {
                    bail!(NOT_SERVED);
                }
                Ok(AnyLedger::Objects(claims))
            }
        }
    }

    fn claims(&self, store: &KubeStore) -> IPClaimLedger {
        IPClaimLedger::new(store.clone(), &self.network)
    }
}

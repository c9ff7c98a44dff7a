//! A ledger as one cluster sees it: whether it is marked as this cluster's, and marking it.

use std::collections::BTreeSet;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Node;

use super::EtcdLedger;
use super::marker::{Marker, Seen, Whose};
use crate::claim::Claim;
use crate::pod::Owner;
use crate::store::{Failure, Objects as _, StoreError};

/// Owners looked up side by side.
const SIDE_BY_SIDE: usize = 8;

/// A ledger, and the UID of the cluster that looks at it.
pub(super) struct View<'a> {
    pub ledger: &'a EtcdLedger,
    pub cluster: &'a str,
}

/// What a ledger without a marker is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
    Delete,
}

/// What a range over a whole ledger found.
pub(super) struct Found {
    pub marker: Marker,
    /// The claims' keys.
    pub claims: Vec<KeyValue>,
}

impl View<'_> {
    /// Whether the marker names this cluster, as a transaction's condition.
    pub(super) fn is_marked(&self) -> Compare {
        Compare::value(self.ledger.marker(), CompareOp::Equal, self.cluster)
    }

    /// The marker, and what else was got with it, of a transaction that got the marker first.
    pub(super) fn after_marker(&self, answer: &TxnResponse) -> (Marker, Option<KeyValue>) {
        let gets = answer.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(read) => Some(read.kvs().first().cloned()),
            _ => None,
        });
        let mut gets = gets.fuse();
        let marker = gets.next().flatten();
        (Marker::of(marker.as_ref().map(KeyValue::value), self.cluster), gets.next().flatten())
    }

    /// Marker and claims. The keys of both are one range.
    pub(super) async fn range(&self) -> Result<Found, StoreError> {
        let (claims, marker) = (self.ledger.claims(), self.ledger.marker());
        let mut kv = self.ledger.kv();
        let call = kv.get(claims.as_str(), Some(GetOptions::new().with_range(format!("{marker}\0"))));
        let mut answer = self.ledger.credentials.bounded("range", "claims", call).await?;
        let mut pairs = answer.take_kvs();
        let value = pairs.iter().find(|pair| pair.key() == marker.as_bytes()).map(KeyValue::value);
        let marker = Marker::of(value, self.cluster);
        pairs.retain(|pair| pair.key().starts_with(claims.as_bytes()));
        Ok(Found { marker, claims: pairs })
    }

    /// What a ledger without a marker means for `purpose`: an error if its claims are another cluster's. Marks it, if
    /// it is this cluster's or will be.
    pub(super) async fn settle(&self, what: &str, purpose: Purpose) -> Result<(), StoreError> {
        let found = self.range().await?;
        match found.marker {
            Marker::Missing => {}
            Marker::Ours => return Ok(()),
            Marker::Others(cluster) => return Err(self.foreign(what, &cluster)),
        }
        let (ledger, total) = (&self.ledger.place, found.claims.len());
        match (self.whose(&found.claims).await?, purpose) {
            (Whose::Others(holder), _) => {
                let theirs = format!(
                    "another cluster's: pod {} holds one on node {} (UID {}), which this cluster does not have",
                    holder.pod,
                    holder.node,
                    holder.node_uid.as_deref().unwrap_or_default(),
                );
                Err(self.refused(what, &theirs))
            }
            (Whose::Nobodys | Whose::Unclear, Purpose::Read) => Ok(()),
            (Whose::Unclear, Purpose::Delete) => {
                let theirs = "of an unknown cluster: none is held, and no owner exists in this cluster, which takes \
                              them over with its first fixed address";
                Err(self.refused(what, theirs))
            }
            (Whose::Unclear, Purpose::Write) => {
                let cluster = self.cluster;
                tracing::warn!(
                    ledger,
                    cluster,
                    claims = total,
                    "nothing tells whose the claims in etcd are: from now on they are this cluster's"
                );
                self.mark(what).await
            }
            (Whose::Ours, Purpose::Read) => match self.mark(what).await {
                // Whoever may only read finds out anew each time.
                Err(StoreError { failure: Failure::Denied(_), .. }) => Ok(()),
                marked => marked,
            },
            (Whose::Nobodys | Whose::Ours, _) => self.mark(what).await,
        }
    }

    /// Whose the claims are, asking this cluster as little as possible.
    async fn whose(&self, claims: &[KeyValue]) -> Result<Whose, StoreError> {
        let readable = claims.iter().filter_map(|pair| serde_json::from_slice(pair.value()).ok()).collect();
        let mut seen = Seen { claims: readable, total: claims.len(), ..Seen::default() };
        if seen.holders().next().is_some() {
            let add = |nodes: &mut BTreeSet<String>, node: Node| nodes.extend(node.metadata.uid);
            seen.nodes = self.ledger.cluster.store().fold("", BTreeSet::new, add).await?;
        }
        if seen.whose() == Whose::Unclear {
            seen.owner_exists = self.has_owner(&seen.claims).await?;
        }
        Ok(seen.whose())
    }

    /// Whether one of the claims' owners exists in this cluster.
    async fn has_owner(&self, claims: &[Claim]) -> Result<bool, StoreError> {
        let owners: BTreeSet<Owner> =
            claims.iter().map(|claim| claim.owner.clone()).filter(|o| !o.is_named()).collect();
        let looks =
            stream::iter(owners).map(|owner| async move { self.ledger.cluster.store().owner_exists(&owner).await });
        let found = looks.buffer_unordered(SIDE_BY_SIDE).try_filter(|exists| std::future::ready(*exists));
        Ok(std::pin::pin!(found).try_next().await?.is_some())
    }

    /// Marks the ledger as this cluster's. Of two clusters that do so at the same time one gets it.
    async fn mark(&self, what: &str) -> Result<(), StoreError> {
        let marker = self.ledger.marker();
        let txn = Txn::new()
            .when([Compare::version(marker.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(marker.as_str(), self.cluster, None)])
            .or_else([TxnOp::get(marker.as_str(), None)]);
        let mut kv = self.ledger.kv();
        let answer = self.ledger.credentials.bounded("txn", "the marker of the claims' cluster", kv.txn(txn)).await?;
        if answer.succeeded() {
            tracing::info!(
                ledger = self.ledger.place,
                cluster = self.cluster,
                "the claims in etcd are marked as this cluster's"
            );
            return Ok(());
        }
        match self.after_marker(&answer).0 {
            Marker::Ours => Ok(()),
            Marker::Others(cluster) => Err(self.foreign(what, &cluster)),
            Marker::Missing => Err(StoreError::new("txn", what, Failure::Conflict)),
        }
    }

    pub(super) fn foreign(&self, what: &str, cluster: &str) -> StoreError {
        self.refused(what, &format!("cluster {cluster}'s"))
    }

    fn refused(&self, what: &str, theirs: &str) -> StoreError {
        let (place, cluster) = (&self.ledger.place, self.cluster);
        let why = format!(
            "the claims under {place} in etcd are {theirs}; this is cluster {cluster} (UID of its namespace kube-system), \
             which needs an etcdPrefix of its own"
        );
        StoreError::new("range", what, Failure::Foreign(why))
    }
}

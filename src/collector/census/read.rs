//! Reading all that, page by page. What cannot be read is named, and never taken for empty.

use std::collections::BTreeSet;

use calico::{BlockAffinity, IPAMBlock, IPAMHandle, IPReservation};

use super::{Affinities, Blocks, Census, Handles, Judged, Nodes, Pods};
use crate::audit::read::{look_up, machine_owner, owners};
use crate::claim::Claim;
use crate::pod::Owner;
use crate::store::{Failure, Ledger, Object, Objects, StoreError, Versioned, if_any};

/// Reads the live state, one kind after the other. Without a ledger claims are not looked at, which is no error.
/// Gives the state, or `None` if a kind without which nothing can be judged was not read; and what could not be
/// read. Claims that could not be read are in it as not looked at.
pub(in crate::collector) async fn read<O: Objects, L: Ledger>(
    objects: &O,
    ledger: Option<&L>,
) -> (Option<Census>, Vec<StoreError>) {
    let mut lists = Lists { objects, unread: Vec::new() };
    let mut census = Census {
        config: lists.noted(objects.get(None, calico::config::NAME).await),
        pools: lists.all().await,
        nodes: lists.fold(Nodes::default, Nodes::add).await,
        ..Census::default()
    };
    let mut unread = std::mem::take(&mut lists.unread);
    let complete = unread.is_empty();
    if let Some(ledger) = ledger {
        match if_any(ledger.listed().await) {
            Ok(None) => {}
            Ok(Some(listed)) => {
                (census.claims, census.unreadable) = (Some(by_address(listed.claims)), listed.unreadable);
            }
            Err(error) => unread.push(error),
        }
        unread.extend(
            census.unreadable.iter().map(|u| StoreError::new("list", &u.record, Failure::Corrupt(u.why.clone()))),
        );
        let owners = owners(objects, census.claims.iter().flatten()).await;
        (census.owners, census.given_up) = (owners.exist, owners.given_up);
        unread.extend(owners.failed);
    }
    let missing: BTreeSet<Owner> =
        census.owners.iter().filter(|(_, exists)| !**exists).map(|(o, _)| o.clone()).collect();
    // Pods before blocks: what a listed pod has was on record before its status said so.
    let sought = || Pods::new(missing.clone(), census.given_up.clone());
    let pods = lists.fold(sought, Pods::add).await;
    census.pods = pods;
    census.pods.sort();
    let judged = Judged { pods: &census.pods, nodes: &census.nodes };
    let mut blocks = lists.fold(Blocks::default, |blocks, block: IPAMBlock| blocks.add(block, &judged)).await;
    blocks.sort();
    census.blocks = blocks;
    let is_there = |(namespace, name): (&str, &str)| census.pods.get(namespace, name).is_some();
    let unused = census.blocks.all(&census.pods).filter(|used| !used.party.pod().is_some_and(is_there));
    let machines = unused.filter_map(|used| machine_owner(used.party.machine()?)).map(|owner| (owner, Vec::new()));
    let machines = look_up(objects, machines.collect()).await;
    census.owners.extend(machines.exist);
    unread.extend(machines.failed);
    let of_blocks = |handles: &mut Handles, handle: IPAMHandle| handles.add(handle, &census.blocks);
    census.handles = lists.fold(Handles::default, of_blocks).await;
    census.handles.sort();
    let to_blocks = |affinities: &mut Affinities, affinity: BlockAffinity| affinities.add(affinity, &census.blocks);
    census.affinities = lists.fold(Affinities::default, to_blocks).await;
    census.affinities.sort();
    census.reservations = lists.optional::<IPReservation>().await;
    let complete = complete && lists.unread.is_empty();
    unread.append(&mut lists.unread);
    (complete.then_some(census), unread)
}

struct Lists<'a, O> {
    objects: &'a O,
    unread: Vec<StoreError>,
}

impl<O: Objects> Lists<'_, O> {
    fn noted<T: Default>(&mut self, read: Result<T, StoreError>) -> T {
        read.unwrap_or_else(|error| {
            self.unread.push(error);
            T::default()
        })
    }

    async fn fold<K: Object, T: Default + Send>(
        &mut self,
        start: impl Fn() -> T + Send + Sync,
        add: impl Fn(&mut T, K) + Send + Sync,
    ) -> T {
        let read = self.objects.fold("", start, add).await;
        self.noted(read)
    }

    async fn all<K: Object>(&mut self) -> Vec<K> {
        self.fold(Vec::new, Vec::push).await
    }

    /// A kind that old versions of Calico do not have.
    async fn optional<K: Object>(&mut self) -> Vec<K> {
        match self.objects.list("").await {
            Err(StoreError { failure: Failure::NoKind, .. }) => Vec::new(),
            listed => self.noted(listed),
        }
    }
}

/// Claims in the order in which they are looked for.
pub(in crate::collector) fn by_address(mut claims: Vec<Versioned<Claim>>) -> Vec<Versioned<Claim>> {
    claims.sort_by_key(|claim| claim.value.address);
    claims
}

//! Reading everything that is judged. What cannot be read is named, and never taken for empty.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::StreamExt as _;
use futures::stream;

use calico::machine::machine_of_id;

use super::Snapshot;
use super::view::View;
use crate::claim::Claim;
use crate::pod::{Owner, machine_objects};
use crate::store::{Failure, Ledger, Object, Objects, StoreError, Versioned, if_any, trim};

/// How many owners are looked up side by side.
const SIDE_BY_SIDE: usize = 8;

/// What came of reading the live state.
#[derive(Debug)]
pub struct Reading {
    /// The state; `None` if a kind without which nothing can be judged was not read. Claims that could not be
    /// read are in it as not looked at.
    pub snapshot: Option<Snapshot>,
    /// What could not be read, and why.
    pub unread: Vec<StoreError>,
}

/// Reads the live state, one kind after the other; `progress` hears what comes next. Without a ledger claims
/// are not looked at, which is no error. The snapshot's `net` is left to the caller.
pub async fn read<O: Objects, L: Ledger>(objects: &O, ledger: Option<&L>, progress: &(dyn Fn(&str) + Sync)) -> Reading {
    let mut lists = Lists { objects, progress, unread: Vec::new() };
    let mut snapshot = Snapshot {
        // Pods before blocks: what a listed pod has was on record before its status said so.
        pods: lists.all("pods", trim::pod).await,
        blocks: lists.all("blocks", |_| {}).await,
        handles: lists.all("handles", |_| {}).await,
        affinities: lists.all("affinities", |_| {}).await,
        pools: lists.all("pools", |_| {}).await,
        reservations: lists.optional("reservations").await,
        nodes: lists.all("nodes", trim::node).await,
        ..Snapshot::default()
    };
    progress("configuration");
    match objects.get(None, calico::config::NAME).await {
        Ok(config) => snapshot.config = config,
        Err(error) => lists.unread.push(error),
    }
    let mut unread = lists.unread;
    let complete = unread.is_empty();
    if let Some(ledger) = ledger {
        progress("claims");
        match if_any(ledger.all().await) {
            Ok(claims) => snapshot.claims = claims,
            Err(error) => unread.push(error),
        }
        progress("owners of claims");
        let owners = owners(objects, snapshot.claims.iter().flatten()).await;
        snapshot.owners = owners.exist;
        unread.extend(owners.failed);
    }
    progress("virtual machines");
    let machines = machines(objects, &snapshot).await;
    snapshot.owners.extend(machines.exist);
    unread.extend(machines.failed);
    Reading { snapshot: complete.then_some(snapshot), unread }
}

struct Lists<'a, O> {
    objects: &'a O,
    progress: &'a (dyn Fn(&str) + Sync),
    unread: Vec<StoreError>,
}

impl<O: Objects> Lists<'_, O> {
    async fn all<K: Object>(&mut self, what: &str, keep: fn(&mut K)) -> Vec<K> {
        (self.progress)(what);
        let parts = |parts: &mut Vec<K>, mut object: K| {
            keep(&mut object);
            parts.push(object);
        };
        let listed = self.objects.fold("", Vec::new, parts).await;
        listed.unwrap_or_else(|error| {
            self.unread.push(error);
            Vec::new()
        })
    }

    /// A kind that old versions of Calico do not have.
    async fn optional<K: Object>(&mut self, what: &str) -> Vec<K> {
        (self.progress)(what);
        match self.objects.list("").await {
            Ok(listed) => listed,
            Err(StoreError { failure: Failure::NoKind, .. }) => Vec::new(),
            Err(error) => {
                self.unread.push(error);
                Vec::new()
            }
        }
    }
}

/// What owners are found to be.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// Which of them exist. One that could not be looked up is left out.
    pub exist: BTreeMap<Owner, bool>,
    /// The claimed addresses that their owners do not ask for any more.
    pub given_up: BTreeSet<IpAddr>,
    /// Why some could not be looked up.
    pub failed: Vec<StoreError>,
}

/// Looks up the owners of claims; one that is only a name has no object.
pub(crate) async fn owners<O: Objects>(objects: &O, claims: impl Iterator<Item = &Versioned<Claim>>) -> Owners {
    let mut by_owner: BTreeMap<Owner, Vec<&Claim>> = BTreeMap::new();
    for claim in claims.map(|claim| &claim.value).filter(|claim| !claim.owner.is_named()) {
        by_owner.entry(claim.owner.clone()).or_default().push(claim);
    }
    look_up(objects, by_owner).await
}

/// Whether the machines exist that have an address without a pod that is there; others are in use.
async fn machines<O: Objects>(objects: &O, snapshot: &Snapshot) -> Owners {
    let view = View::of(snapshot);
    let unused = view.used.values().filter(|used| used.pod().is_none_or(|pod| !view.pods.contains_key(&pod)));
    let owners = unused.filter_map(|used| machine_owner(used.party().machine()?)).map(|owner| (owner, Vec::new()));
    look_up(objects, owners.collect()).await
}

/// The machine of an id as an owner, where the id tells its name.
pub(crate) fn machine_owner(id: &str) -> Option<Owner> {
    let (namespace, name) = machine_of_id(id)?;
    let [machine, _] = machine_objects(namespace, name);
    Some(machine)
}

/// Whether a machine is known not to exist.
pub(crate) fn is_machine_gone(owners: &BTreeMap<Owner, bool>, namespace: &str, name: &str) -> bool {
    let [machine, _] = machine_objects(namespace, name);
    owners.get(&machine) == Some(&false)
}

/// Looks owners up, several at a time, each with the claims that it has.
pub(crate) async fn look_up<O: Objects>(objects: &O, owners: BTreeMap<Owner, Vec<&Claim>>) -> Owners {
    // Futures of a function, collected: through a closure the compiler does not see that they are Send.
    let lookups: Vec<_> = owners.into_iter().map(|(owner, claims)| look_at(objects, owner, claims)).collect();
    let mut found = Owners::default();
    let answers: Vec<_> = stream::iter(lookups).buffered(SIDE_BY_SIDE).collect().await;
    for answer in answers {
        match answer {
            Ok((owner, exists, given_up)) => {
                found.exist.insert(owner, exists);
                found.given_up.extend(given_up);
            }
            Err(error) => found.failed.push(error),
        }
    }
    found
}

async fn look_at<O: Objects>(
    objects: &O,
    owner: Owner,
    claims: Vec<&Claim>,
) -> Result<(Owner, bool, Vec<IpAddr>), StoreError> {
    let object = objects.living_owner(&owner).await?;
    let given_up = |claim: &&Claim| object.as_ref().is_some_and(|object| claim.is_given_up_by(object));
    let given_up = claims.into_iter().filter(given_up).map(|claim| claim.address).collect();
    Ok((owner, object.is_some(), given_up))
}

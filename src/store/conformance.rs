//! One suite for every implementation of a store: what the driver relies on, as functions that any test can
//! run against memory, an API server or etcd. Each returns what it found wrong.

use std::net::IpAddr;
use std::time::Duration;

use calico::{IPAMHandle, IPAMHandleSpec};
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::Map;

use super::{Failure, Ledger, Objects, StoreError, Swap};
use crate::claim::{Asker, Claim, Holder};
use crate::pod::Owner;

/// What a store did that it must not do.
#[derive(Debug, thiserror::Error)]
pub enum Breach {
    /// A call failed that must succeed.
    #[error("unexpected failure: {0}")]
    Store(#[from] StoreError),
    /// It did something else than the contract says.
    #[error("{0}")]
    Contract(String),
}

fn expect(holds: bool, what: &str) -> Result<(), Breach> {
    if holds { Ok(()) } else { Err(Breach::Contract(what.to_owned())) }
}

/// Objects: create, read, compare-and-swap, preconditions of a deletion, fields kept. `name` must be unused.
///
/// # Errors
/// The first breach of the contract.
pub async fn objects<O: Objects>(store: &O, name: &str) -> Result<(), Breach> {
    expect(store.get::<IPAMHandle>(None, name).await?.is_none(), "an object that was never created was read")?;
    let mut spec = IPAMHandleSpec::new(name);
    spec.block.insert("10.0.0.0/26".into(), i64::MAX);
    let mut fresh = spec.object();
    fresh.metadata.name = Some(name.to_owned());
    fresh.labels_mut().insert("kept".into(), "yes".into());
    let created = store.create(&fresh).await?;
    expect(created.resource_version().is_some(), "a created object has no resourceVersion")?;
    expect(created.spec.block["10.0.0.0/26"] == i64::MAX, "a 64 bit number did not survive")?;
    expect(failure(store.create(&fresh).await) == Some(Failure::Exists), "a name was given twice")?;

    let mut changed = created.clone();
    changed.spec.block.insert("10.0.0.64/26".into(), 2);
    let replaced = store.replace(&changed).await?;
    expect(replaced.resource_version() != created.resource_version(), "a write left the resourceVersion as it was")?;
    expect(failure(store.replace(&changed).await) == Some(Failure::Conflict), "an outdated write was accepted")?;
    let read = store.get::<IPAMHandle>(None, name).await?;
    expect(read.as_ref() == Some(&replaced), "a read does not show the last write")?;
    expect(read.is_some_and(|r| r.labels().contains_key("kept")), "a label was lost in a rewrite")?;
    expect(
        store.list::<IPAMHandle>("kept=yes").await?.iter().any(|h| h.name_any() == name),
        "a list by label does not show the object",
    )?;
    expect(
        !store.list::<IPAMHandle>("kept=no").await?.iter().any(|h| h.name_any() == name),
        "a list by label shows an object without the label",
    )?;

    expect(failure(store.delete(&created).await) == Some(Failure::Conflict), "an outdated deletion was accepted")?;
    let mut other = replaced.clone();
    other.metadata.uid = Some("11111111-1111-4111-8111-111111111111".into());
    expect(failure(store.delete(&other).await) == Some(Failure::Conflict), "a deletion ignored the UID")?;
    store.delete(&replaced).await?;
    expect(store.get::<IPAMHandle>(None, name).await?.is_none(), "a deleted object was read")?;
    expect(
        failure(store.replace(&replaced).await).is_some_and(|f| f == Failure::Absent || f == Failure::Conflict),
        "a write brought a deleted object back",
    )?;
    expect(failure(store.delete(&replaced).await).is_some(), "an object was deleted twice")
}

/// Racers for one object: of any number of writers with the same version exactly one wins.
///
/// # Errors
/// The first breach of the contract.
pub async fn one_writer_wins<O: Objects>(store: &O, name: &str, racers: usize) -> Result<(), Breach> {
    let mut fresh = IPAMHandleSpec::new(name).object();
    fresh.metadata.name = Some(name.to_owned());
    let created = futures::future::join_all((0..racers).map(|_| store.create(&fresh))).await;
    expect(created.iter().filter(|r| r.is_ok()).count() == 1, "not exactly one creator won")?;
    let standing = created.into_iter().find_map(Result::ok).ok_or(Breach::Contract("nobody created it".into()))?;
    let writes = (0..racers).map(|n| {
        let mut mine = standing.clone();
        mine.spec.block.insert("10.0.0.0/26".into(), n as i64 + 1);
        async move { store.replace(&mine).await }
    });
    let written = futures::future::join_all(writes).await;
    expect(written.iter().filter(|r| r.is_ok()).count() == 1, "not exactly one writer won")?;
    let last = written.into_iter().find_map(Result::ok).ok_or(Breach::Contract("nobody wrote it".into()))?;
    Ok(store.delete(&last).await?)
}

/// The ledger: create, read, compare-and-swap, deletion, list. `address` must be unclaimed.
///
/// # Errors
/// The first breach of the contract.
pub async fn ledger<L: Ledger>(ledger: &L, address: IpAddr) -> Result<(), Breach> {
    expect(ledger.read(address).await?.is_none(), "a claim that was never made was read")?;
    let claim = sample(address, "a");
    let Swap::Done(first) = ledger.swap(address, None, Some(&claim)).await? else {
        return Err(Breach::Contract("a first claim was refused".into()));
    };
    match ledger.swap(address, None, Some(&sample(address, "b"))).await? {
        Swap::Lost(Some(standing)) => {
            expect(standing.value == claim && standing.revision == first, "the loser was not told what stands")?
        }
        other => return Err(Breach::Contract(format!("an address was claimed twice: {other:?}"))),
    }
    let released = claim.released();
    let Swap::Done(second) = ledger.swap(address, Some(first), Some(&released)).await? else {
        return Err(Breach::Contract("a swap on the right revision was refused".into()));
    };
    expect(second > first, "a write did not raise the revision")?;
    expect(
        matches!(ledger.swap(address, Some(first), None).await?, Swap::Lost(Some(_))),
        "an outdated deletion was accepted",
    )?;
    expect(ledger.read(address).await?.is_some_and(|c| c.value == released), "a read does not show the last write")?;
    expect(ledger.all().await?.iter().any(|c| c.value.address == address), "the list misses a claim")?;
    expect(matches!(ledger.swap(address, Some(second), None).await?, Swap::Done(_)), "a deletion was refused")?;
    expect(ledger.read(address).await?.is_none(), "a deleted claim was read")?;
    expect(
        matches!(ledger.swap(address, Some(second), Some(&claim)).await?, Swap::Lost(None)),
        "a deleted claim was written to",
    )
}

/// Racers for one address: exactly one gets it, and whoever waits for a change hears of it.
///
/// # Errors
/// The first breach of the contract.
pub async fn one_claimant_wins<L: Ledger>(ledger: &L, address: IpAddr, racers: usize) -> Result<(), Breach> {
    let claims: Vec<Claim> = (0..racers).map(|n| sample(address, &format!("racer-{n}"))).collect();
    let outcomes = futures::future::join_all(claims.iter().map(|c| ledger.swap(address, None, Some(c)))).await;
    let mut won = Vec::new();
    for outcome in outcomes {
        if let Swap::Done(revision) = outcome? {
            won.push(revision);
        }
    }
    expect(won.len() == 1, "not exactly one claimant won")?;
    let change = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ledger.swap(address, Some(won[0]), None).await
    };
    let heard = tokio::time::timeout(Duration::from_secs(5), ledger.changed(address, won[0]));
    let (heard, change) = tokio::join!(heard, change);
    change?;
    expect(heard.is_ok(), "a change was not heard of")
}

fn failure<T>(result: Result<T, StoreError>) -> Option<Failure> {
    result.err().map(|e| e.failure)
}

/// A claim of a bare pod of that name.
pub fn sample(address: IpAddr, pod: &str) -> Claim {
    let owner = Owner {
        namespace: "default".into(),
        group: String::new(),
        version: None,
        kind: "Pod".into(),
        name: pod.into(),
        ordinal: None,
    };
    let holder = Holder {
        pod_uid: format!("uid-{pod}"),
        pod: pod.into(),
        container_id: format!("container-{pod}"),
        interface: "eth0".into(),
        node: "n1".into(),
        node_uid: None,
        since: Timestamp::UNIX_EPOCH,
        unknown: Map::new(),
    };
    Claim::new(address, &Asker { owner: &owner, holder: &holder }, Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::{MemoryLedger, MemoryObjects};

    #[tokio::test]
    async fn objects_in_memory_keep_the_contract() {
        let store = MemoryObjects::default();
        objects(&store, "net.one").await.unwrap();
        one_writer_wins(&store, "net.race", 8).await.unwrap();
    }

    #[tokio::test]
    async fn the_ledger_in_memory_keeps_the_contract() {
        let store = MemoryLedger::default();
        ledger(&store, "10.0.0.1".parse().unwrap()).await.unwrap();
        one_claimant_wins(&store, "10.0.0.2".parse().unwrap(), 8).await.unwrap();
    }
}

//! A configuration that names another ledger than the one in which the cluster's claims lie, or another network: what is
//! claimed there is not free, and nothing of it is touched.
#![allow(clippy::unwrap_used)]

mod common;

use calico::IPReservation;
use common::town::Town;
use common::{World, ip};
use kube::ResourceExt as _;
use kube_ipam::claim::{Claim, ClaimedElsewhere, LedgerName};
use kube_ipam::collector::Kind;
use kube_ipam::driver::{Error, LEDGERS_ANNOTATION};
use kube_ipam::store::memory::MemoryLedger;
use kube_ipam::store::{Ledger as _, Versioned};

const FIXED: &str = "10.244.0.216";
const OTHER: &str = "10.244.0.217";

/// From now on the configuration names another ledger, which is empty; gives the one of before.
fn switch(world: &mut World) -> MemoryLedger {
    std::mem::replace(&mut world.ledger, MemoryLedger::named(LedgerName::etcd("/kube-ipam/v1", "k8s-pod-network")))
}

/// A town in which `web` runs with [`FIXED`], `idle` owns [`OTHER`], and the ledger was switched after that.
async fn switched() -> (Town, MemoryLedger) {
    let mut town = Town::new();
    town.run(town.world.fixed("web", "web", FIXED), "n1").await;
    town.run(town.world.fixed("idle", "idle", OTHER), "n1").await;
    town.del("n1", "idle", "c-idle").await;
    town.world.remove_pod("idle");
    let before = switch(&mut town.world);
    town.restart_collector();
    (town, before)
}

fn elsewhere<T: std::fmt::Debug>(outcome: Result<T, Error>) -> ClaimedElsewhere {
    match outcome {
        Err(Error::ClaimedElsewhere(found)) => found,
        other => panic!("{other:?}"),
    }
}

async fn everything(world: &World, ledger: &MemoryLedger) -> (Vec<serde_json::Value>, Vec<Versioned<Claim>>) {
    (world.objects.dump(), ledger.all().await.unwrap())
}

fn marks(world: &World) -> Vec<String> {
    let dump = world.objects.dump();
    let reservations = dump.into_iter().filter(|object| object["kind"] == "IPReservation");
    let reservations = reservations.map(|object| serde_json::from_value::<IPReservation>(object).unwrap());
    reservations.map(|r| r.annotations().get(LEDGERS_ANNOTATION).cloned().unwrap_or_default()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_claimed_in_another_ledger_is_refused_and_nothing_is_written() {
    let (town, before) = switched().await;
    for (pod, app, address) in [("rival", "rival", FIXED), ("thief", "thief", OTHER), ("idle-2", "idle", OTHER)] {
        town.world.fixed(pod, app, address);
        let stood = everything(&town.world, &before).await;
        for attempt in 0..3 {
            let found = elsewhere(town.world.add("n2", pod, &format!("r{attempt}")).await);
            assert_eq!((found.address, &found.there), (ip(address), &before.name()));
            assert!(found.remedy().contains("kube-ipam claims move --to etcd"), "{}", found.remedy());
        }
        assert_eq!(everything(&town.world, &before).await, stood);
    }
    // The pod that has it is refused, too, and keeps what it has.
    elsewhere(town.world.add("n1", "web", "c-again").await);
    assert!(town.is_allocated(ip(FIXED)).await);
    assert_eq!(town.world.ledger.all().await.unwrap(), []);
    // Others are not concerned.
    town.world.random("any");
    town.world.add("n1", "any", "c-any").await.unwrap();
    town.world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn the_collector_leaves_alone_what_is_claimed_in_another_ledger() {
    let (mut town, before) = switched().await;
    let stood = everything(&town.world, &before).await;
    town.stays_for(3600).await;
    assert_eq!(everything(&town.world, &before).await, stood);
    assert_eq!(town.world.ledger.all().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn claims_that_were_carried_over_are_marked_and_the_address_is_its_owners() {
    let (mut town, before) = switched().await;
    for claim in before.all().await.unwrap() {
        town.world.ledger.swap(claim.value.address, None, Some(&claim.value)).await.unwrap();
    }
    town.world.fixed("idle-2", "idle", OTHER);
    town.world.add("n2", "idle-2", "c-idle-2").await.unwrap();
    town.world.fixed("rival", "rival", FIXED);
    assert!(matches!(town.world.add("n2", "rival", "c-rival").await, Err(Error::Impasse(_))));
    town.repairs(60, &[Kind::ReservationMarked]).await;
    let name = serde_json::to_string(&town.world.ledger.name()).unwrap();
    assert_eq!(marks(&town.world), [format!("{{{name}:[\"{FIXED}\",\"{OTHER}\"]}}")]);
    // On the way back it is the other's.
    let (carried, here) =
        (std::mem::replace(&mut town.world.ledger, MemoryLedger::named(before.name())), before.name());
    let found = elsewhere(town.world.add("n2", "rival", "c-rival").await);
    assert_eq!((found.there, found.here), (carried.name(), here));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_of_an_earlier_release_is_marked_once_the_ledger_has_the_claim() {
    let mut town = Town::new();
    town.run(town.world.fixed("web", "web", FIXED), "n1").await;
    let mut reservation: IPReservation = town.world.list().await.remove(0);
    reservation.annotations_mut().clear();
    town.world.objects.put(&reservation);
    town.repairs(60, &[Kind::ReservationMarked]).await;
    assert_eq!(marks(&town.world), [format!("{{\"ipclaims:in-memory\":[\"{FIXED}\"]}}")]);
    town.stays_for(600).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_person_takes_off_the_reservation_gives_the_address_to_whoever_asks() {
    let (mut town, _) = switched().await;
    let mut reservation: IPReservation = town.world.list().await.remove(0);
    reservation.annotations_mut().remove(LEDGERS_ANNOTATION);
    town.world.objects.put(&reservation);
    // The ledger is gone for good: what the blocks say is rebuilt, what nobody had is free.
    town.repairs(60, &[Kind::ClaimMended, Kind::ReservationRemoved]).await;
    town.repairs(60, &[Kind::ReservationMarked]).await;
    assert!(town.claim(FIXED).await.is_some() && town.claim(OTHER).await.is_none());
}

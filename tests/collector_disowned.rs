//! What an ADD leaves that stood still, wrote handle and block after its DEL, and died as it took that back: an entry
//! for a dead container of a pod that still waits for its address. Nobody else comes for it; the collector does, unless
//! anything speaks for the container.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use calico::IPReservation;
use common::ip;
use common::town::{Town, driver, report};
use kube_ipam::claim::Claim;
use kube_ipam::collector::Kind;
use kube_ipam::store::faulty::{Call, Fault, Faults};
use kube_ipam::store::{Ledger as _, Objects as _, Swap};
use tokio::sync::oneshot;
use tokio::time::timeout;

const ADDRESS: &str = "10.244.0.216";
/// As long as a DEL may still come, and the two rounds that see it.
const GRACE: u64 = 960;

/// The block has [`ADDRESS`] for container `c-dead` of pod `f`, and there is no claim on it.
async fn leftover() -> Town {
    let town = Town::new();
    town.world.fixed("f", "app", ADDRESS);
    town.add("n1", "f", "c-dead").await.unwrap();
    claim(&town, |_| None).await;
    let reservation: IPReservation = town.world.list().await.remove(0);
    town.world.objects.delete(&reservation).await.unwrap();
    town
}

async fn claim(town: &Town, change: impl FnOnce(Option<Claim>) -> Option<Claim>) {
    let standing = town.world.claim(ADDRESS).await;
    let revision = standing.as_ref().map(|claim| claim.revision);
    let after = change(standing.map(|claim| claim.value));
    let written = town.world.ledger.swap(ip(ADDRESS), revision, after.as_ref()).await.unwrap();
    assert!(matches!(written, Swap::Done(_)));
}

/// The claim that pod `g` of `rival` makes where nobody has the address.
async fn claim_of_rival() -> Claim {
    let elsewhere = Town::new();
    elsewhere.world.fixed("g", "rival", ADDRESS);
    elsewhere.add("n2", "g", "c-g").await.unwrap();
    elsewhere.claim(ADDRESS).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_container_left_is_freed_and_its_pod_has_the_address() {
    let mut town = leftover().await;
    let repairs = town.repairs(GRACE, &[Kind::AllocationFreed]).await;
    assert!(repairs[0].detail.contains("its claim is held by nobody, and pod default/f has no address"), "{repairs:?}");
    assert!(town.handle("k8s-pod-network.c-dead").await.is_none());
    town.assert_clean().await;
    assert_eq!(town.run(town.pod("f"), "n1").await, ip(ADDRESS));
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn the_pods_next_sandbox_need_not_wait_for_the_collector() {
    let mut town = leftover().await;
    assert_eq!(town.add("n1", "f", "c-next").await.unwrap()[0].address, ip(ADDRESS));
    assert!(town.handle("k8s-pod-network.c-dead").await.is_none());
    report(&town.world, town.pod("f"), "n1", &[ip(ADDRESS)]);
    town.assert_clean().await;
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn a_rival_that_has_the_claim_has_the_address_too() {
    let mut town = leftover().await;
    town.world.fixed("g", "rival", ADDRESS);
    let refused = town.add("n2", "g", "c-g").await.unwrap_err().to_string();
    assert!(refused.contains(ADDRESS), "{refused}");
    let rivals = claim_of_rival().await;
    claim(&town, |_| Some(rivals.released())).await;
    let repairs = town.repairs(GRACE, &[Kind::ReservationAdded, Kind::AllocationFreed]).await;
    assert!(repairs[1].detail.contains("its claim is held by nobody"), "{repairs:?}");
    assert_eq!(town.add("n2", "g", "c-g").await.unwrap()[0].address, ip(ADDRESS));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_the_address_keeps_it_though_its_claim_is_lost() {
    let mut town = leftover().await;
    report(&town.world, town.pod("f"), "n1", &[ip(ADDRESS)]);
    town.repairs(GRACE + 300, &[Kind::ClaimMended, Kind::ReservationAdded]).await;
    assert!(town.claim(ADDRESS).await.unwrap().is_held_by("c-dead", "eth0"));
    town.stays_for(GRACE + 300).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_run_on_a_node_that_does_not_report() {
    let mut town = leftover().await;
    town.world.node("n1", "Unknown");
    town.stays_for(GRACE + 300).await;
    town.world.node("n1", "True");
    town.repairs(GRACE, &[Kind::AllocationFreed]).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_carried_to_another_ledger_is_not_judged_by_this_one() {
    let mut town = leftover().await;
    let rivals = claim_of_rival().await;
    let moved = Claim { moved: Some("IPClaims".to_owned()), ..rivals.released() };
    claim(&town, |_| Some(moved)).await;
    let repairs = town.rounds_for(GRACE + 300).await;
    assert!(repairs.iter().all(|repair| repair.kind != Kind::AllocationFreed), "{repairs:?}");
    assert!(town.is_allocated(ip(ADDRESS)).await);
}

#[tokio::test(start_paused = true)]
async fn a_random_address_needs_no_claim() {
    let mut town = Town::new();
    town.world.random("r");
    town.add("n1", "r", "c-r").await.unwrap();
    town.stays_for(GRACE + 300).await;
}

/// The runtime calls ADD for that very container, which may have taken the claim before and died: it is answered, and
/// the address is its own for good, at whatever call of the round that would free it.
#[tokio::test(start_paused = true)]
async fn an_add_for_the_container_while_the_collector_repairs_is_not_undone() {
    let (first, last) = {
        let mut town = leftover().await;
        town.repairs(GRACE, &[Kind::AllocationFreed]).await;
        let calls = town.faults.calls();
        let round = |call: &Call| call.verb == "list" && call.object == "nodes";
        let write =
            calls.iter().position(|call| call.verb == "update" && call.object.starts_with("ipamblocks")).unwrap();
        (calls[..write].iter().rposition(round).unwrap(), write + 5)
    };
    assert!(last - first > 15, "from call {first} to call {last}");
    for (at, died_before) in (first..last).flat_map(|at| [(at, false), (at, true)]) {
        let mut town = leftover().await;
        let (number, world) = (AtomicUsize::new(0), town.world.clone());
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        town.on_call(move |_| {
            if number.fetch_add(1, Relaxed) != at {
                return None;
            }
            let (world, tell) = (world.clone(), tell.take()?);
            tokio::spawn(async move {
                if died_before {
                    let faults = Faults::new(|call: &Call| (call.verb == "txn").then_some(Fault::CrashAfter));
                    let (dies, net) = (world.faulty(&faults), world.net());
                    let dying = common::add(&dies, &net, "n1", "f", "c-dead");
                    timeout(Duration::from_millis(100), dying).await.unwrap_err();
                }
                let given = common::add(&driver(&world), &world.net(), "n1", "f", "c-dead").await.unwrap();
                tell.send(given[0].address).unwrap();
            });
            Some(Fault::Pause(Duration::from_secs(2)))
        });
        town.rounds_for(GRACE).await;
        town.undisturbed();
        assert_eq!(told.await.unwrap(), ip(ADDRESS), "at call {at}");
        assert!(town.claim(ADDRESS).await.unwrap().is_held_by("c-dead", "eth0"), "at call {at}");
        assert!(town.is_allocated(ip(ADDRESS)).await, "at call {at}, died before: {died_before}");
        report(&town.world, town.pod("f"), "n1", &[ip(ADDRESS)]);
        town.rounds_for(300).await;
        town.assert_clean().await;
    }
}

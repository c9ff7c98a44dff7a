//! A claim that names a container of a pod which runs with another address of its list: what the store wrote late, for
//! an ADD that was dead by then. It goes back to its owner, unless anything speaks for the container.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use calico::IPReservation;
use common::ip;
use common::town::{Town, driver, report};
use futures::FutureExt as _;
use kube::ResourceExt as _;
use kube_ipam::collector::Kind;
use kube_ipam::driver::LEDGERS_ANNOTATION;
use kube_ipam::store::{Ledger as _, Swap};

/// What pod `f` runs with.
const HAS: &str = "10.244.0.216";
/// What its list begins with, and is claimed for a container of it that is dead.
const FIRST: &str = "10.244.0.217";
const BOTH: &str = "10.244.0.217,10.244.0.216";

async fn claim_first(town: &Town, container: &str) {
    let mut claim = town.claim(HAS).await.unwrap();
    claim.address = ip(FIRST);
    claim.holder.as_mut().unwrap().container_id = container.to_owned();
    let written = town.world.ledger.swap(ip(FIRST), None, Some(&claim)).await.unwrap();
    assert!(matches!(written, Swap::Done(_)));
    let mut reservation = town.world.list::<IPReservation>().await.remove(0);
    reservation.spec.reserved_cidrs.push(format!("{FIRST}/32"));
    let ledgers = reservation.annotations_mut().get_mut(LEDGERS_ANNOTATION).unwrap();
    *ledgers = ledgers.replace(HAS, &format!("{HAS}\",\"{FIRST}"));
    town.world.objects.put(&reservation);
}

/// Pod `f` of `app` runs with [`HAS`] as container `c-f`, and [`FIRST`] is claimed for its container `c-dead`.
async fn elsewhere() -> Town {
    let town = Town::new();
    town.run(town.world.fixed("f", "app", HAS), "n1").await;
    let mut pod = town.pod("f");
    pod.metadata.annotations = Some([("kube-ipam.ip".to_owned(), BOTH.to_owned())].into());
    town.world.objects.put(&pod);
    claim_first(&town, "c-dead").await;
    town
}

#[tokio::test(start_paused = true)]
async fn a_claim_for_a_dead_container_of_a_pod_that_has_another_address_goes_back_to_its_owner() {
    let mut town = elsewhere().await;
    // An ADD may be about to have it.
    assert_eq!(town.round().await.repairs, []);
    town.world.fixed("g", "app", BOTH);
    let refused = town.add("n2", "g", "c-g").await.unwrap_err().to_string();
    assert!(refused.contains(FIRST) && refused.contains("which is running"), "{refused}");
    town.world.remove_pod("g");
    let repairs = town.repairs(120, &[Kind::HolderContested, Kind::HolderCleared]).await;
    assert!(repairs.iter().all(|repair| repair.detail.contains("running with 10.244.0.216")), "{repairs:#?}");
    assert!(town.claim(FIRST).await.unwrap().holder.is_none());
    assert!(town.claim(HAS).await.unwrap().is_held_by("c-f", "eth0"));
    town.assert_clean().await;
    let next = town.run(town.world.fixed("g", "app", BOTH), "n2").await;
    assert_eq!(next, ip(FIRST));
    town.stays_for(1200).await;
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_an_address_keeps_what_is_claimed_for_it() {
    let mut town = elsewhere().await;
    let mut pod = town.pod("f");
    pod.status = None;
    town.world.objects.put(&pod);
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_keeps_what_its_status_says_whatever_else_it_has() {
    let mut town = elsewhere().await;
    report(&town.world, town.pod("f"), "n1", &[ip(HAS), ip(FIRST)]);
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_status_says_counts_for_nothing_without_a_node_that_is_ready() {
    let mut town = elsewhere().await;
    town.world.node("n1", "Unknown");
    town.stays_for(1200).await;
    town.world.node("n1", "True");
    town.repairs(150, &[Kind::HolderContested, Kind::HolderCleared]).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_status_says_counts_for_nothing_without_a_block_that_says_the_same() {
    let mut town = elsewhere().await;
    // Its sandbox is down, and the status is of before.
    town.del("n1", "f", "c-f").await;
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_in_the_block_keeps_its_claim() {
    let mut town = Town::new();
    let pod = town.world.fixed("f", "app", FIRST);
    town.add("n1", "f", "c-up").await.unwrap();
    // Nobody has called DEL for it yet.
    let mut other = pod.clone();
    other.metadata.annotations = Some([("kube-ipam.ip".to_owned(), HAS.to_owned())].into());
    town.world.objects.put(&other);
    town.add("n1", "f", "c-f").await.unwrap();
    report(&town.world, other, "n1", &[ip(HAS)]);
    town.stays_for(1200).await;
}

/// The runtime calls ADD for that very container: it is answered, or its claim is cleared, never both.
#[tokio::test(start_paused = true)]
async fn an_add_for_the_container_at_any_call_of_the_collector_has_the_address_for_good_or_not_at_all() {
    let calls = {
        let mut town = elsewhere().await;
        town.repairs(150, &[Kind::HolderContested, Kind::HolderCleared]).await;
        town.faults.calls().len()
    };
    let (mut answered, mut refused) = (0, 0);
    for at in 0..calls {
        let mut town = elsewhere().await;
        let (number, said, world) = (AtomicUsize::new(0), Arc::<Mutex<Option<bool>>>::default(), town.world.clone());
        let outcome = said.clone();
        town.on_call(move |_| {
            if number.fetch_add(1, Relaxed) == at {
                let added = common::add(&driver(&world), &world.net(), "n1", "f", "c-dead").now_or_never();
                *said.lock().unwrap() = Some(added.unwrap().is_ok_and(|given| given[0].address == ip(FIRST)));
            }
            None
        });
        town.rounds_for(300).await;
        town.undisturbed();
        let given = outcome.lock().unwrap().unwrap();
        *if given { &mut answered } else { &mut refused } += 1;
        let claim = town.claim(FIRST).await.unwrap();
        assert_eq!(claim.is_held_by("c-dead", "eth0"), given, "at call {at}: {claim:?}");
        assert_eq!(town.is_allocated(ip(FIRST)).await, given, "at call {at}");
        if given {
            // It is the pod's sandbox by now.
            town.del("n1", "f", "c-f").await;
            report(&town.world, town.pod("f"), "n1", &[ip(FIRST)]);
        }
        town.assert_clean().await;
    }
    assert!(answered > 10 && refused > 10, "{answered} were answered, {refused} refused");
}

//! Each repair of the collector with the thing planted, and beside it what must be left alone.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use calico::{Affinity, AffinityState, BlockAffinity, Holder, IPAMBlock, IPAMBlockSpec, IPAMHandle, IPReservation};
use common::town::{Town, clock, report};
use common::{World, ip};
use futures::future::{BoxFuture, FutureExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube_ipam::collector::{Kind, Mandate, Unkept};
use kube_ipam::driver::POD_UID_KEY;
use kube_ipam::store::faulty::Fault;
use kube_ipam::store::{Failure, Ledger as _, Objects as _};
use serde_json::json;

const FIXED: &str = "10.244.0.216";

fn remove_owner(town: &Town, app: &str) {
    assert!(town.world.objects.remove::<Deployment>(Some("default"), app));
}

/// A claim on [`FIXED`] of Deployment `app` that nobody holds.
async fn unheld_claim(town: &Town) {
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.del("n1", "f", "c-f").await;
    town.world.remove_pod("f");
}

// === claims whose owner is gone ===

#[tokio::test(start_paused = true)]
async fn a_claim_whose_owner_is_gone_is_dropped_after_its_grace_with_its_reservation() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    town.stays_for(540).await;
    let repairs = town.repairs(60, &[Kind::ClaimDropped]).await;
    assert_eq!(repairs[0].object, format!("Claim/{FIXED}"));
    assert!(repairs[0].detail.contains("Deployment default/app"), "{}", repairs[0].detail);
    assert!(town.claim(FIXED).await.is_none());
    assert_eq!(town.world.reserved().await, [] as [String; 0]);
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_came_back_keeps_its_claim_and_the_grace_begins_anew() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    town.stays_for(480).await;
    town.world.fixed("g", "app", FIXED);
    town.repairs(60, &[Kind::OwnerFound]).await;
    assert_eq!(town.claim(FIXED).await.unwrap().owner_gone, None);
    town.world.remove_pod("g");
    remove_owner(&town, "app");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    town.stays_for(540).await;
}

#[tokio::test(start_paused = true)]
async fn the_grace_of_a_gone_owner_is_counted_from_what_is_recorded_whoever_leads() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    let noted = town.claim(FIXED).await.unwrap();
    // One write, however many leaders there are.
    for _ in 0..6 {
        town.restart_collector();
        town.stays_for(60).await;
        town.pass(30).await;
    }
    assert_eq!(town.claim(FIXED).await.unwrap(), noted);
    town.restart_collector();
    town.repairs(60, &[Kind::ClaimDropped]).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_the_address_ends_the_grace_of_its_claim() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    town.run(town.world.fixed("g", "app", FIXED), "n1").await;
    assert_eq!(town.claim(FIXED).await.unwrap().owner_gone, None);
    town.del("n1", "g", "c-g").await;
    town.world.remove_pod("g");
    // A node of an older release keeps the note, which it does not know.
    let noted = town.world.ledger.read(ip(FIXED)).await.unwrap().unwrap();
    let stale = kube_ipam::claim::Claim { owner_gone: Some(clock()), ..noted.value };
    town.world.ledger.swap(ip(FIXED), Some(noted.revision), Some(&stale)).await.unwrap();
    town.repairs(60, &[Kind::OwnerFound]).await;
    town.stays_for(1200).await;
}

/// Sets the pod template of Deployment `app`.
fn template_asks_for(town: &Town, addresses: &str) {
    town.world.put::<Deployment>(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"annotations": {"kube-ipam.ip": addresses}}},
        },
    }));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_its_owner_does_not_ask_for_any_more_is_dropped_after_the_same_grace() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    template_asks_for(&town, FIXED);
    town.stays_for(1200).await;
    template_asks_for(&town, "10.244.0.217");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    town.stays_for(480).await;
    // Edited back.
    template_asks_for(&town, "10.244.0.216-10.244.0.220");
    town.repairs(60, &[Kind::OwnerFound]).await;
    template_asks_for(&town, "10.244.0.217");
    town.repairs(60, &[Kind::OwnerMissed]).await;
    town.stays_for(540).await;
    let repairs = town.repairs(60, &[Kind::ClaimDropped]).await;
    let why = "belonged to Deployment default/app, which does not ask for it any more; nobody held it";
    assert_eq!(repairs[0].detail, why);
    assert!(town.claim(FIXED).await.is_none());
    assert_eq!(town.world.reserved().await, [] as [String; 0]);
    town.assert_clean().await;
}

/// An update that stands half-way, or a claim that nobody's annotation made.
#[tokio::test(start_paused = true)]
async fn a_claim_that_a_pod_asks_for_or_a_person_made_is_not_dropped_for_its_owners_template() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    template_asks_for(&town, "10.244.0.217");
    let pod = town.world.pod("waits", "app", "h1", json!({"kube-ipam.ip": FIXED}));
    town.stays_for(1200).await;
    town.world.remove_pod(&pod.metadata.name.unwrap());
    let standing = town.world.ledger.read(ip(FIXED)).await.unwrap().unwrap();
    let by_hand = kube_ipam::claim::Claim { origin: None, ..standing.value };
    town.world.ledger.swap(ip(FIXED), Some(standing.revision), Some(&by_hand)).await.unwrap();
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_an_orphaned_pod_holds_is_not_dropped() {
    let mut town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    remove_owner(&town, "app");
    town.stays_for(3600).await;
    // Between two containers nobody holds it.
    town.del("n1", "f", "c-f").await;
    town.stays_for(3600).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_an_annotation_names_is_never_taken_for_gone() {
    let mut town = Town::new();
    let pod = town.world.pod("f", "app", "h", json!({"kube-ipam.ip": FIXED, "kube-ipam.owner": "mail"}));
    town.run(pod, "n1").await;
    town.del("n1", "f", "c-f").await;
    town.world.remove_pod("f");
    town.stays_for(3600).await;
    assert!(town.claim(FIXED).await.unwrap().owner.is_named());
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_cannot_be_looked_up_is_not_taken_for_gone() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.on_call(|call| (call.object.contains("Deployment")).then(|| Fault::Fail(Failure::Unknown("HTTP 503".into()))));
    town.stays_for(3600).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_taken_again_at_the_last_moment_is_not_dropped() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.rounds_for(630).await;
    town.undisturbed();
    let world = town.world.clone();
    // The pod comes between the confirming read of the claim and the write.
    town.at("txn", &format!("claim {FIXED}"), move || {
        world.fixed("g", "app", FIXED);
        let added = common::add(&common::town::driver(&world), &world.net(), "n1", "g", "c-g").now_or_never();
        added.unwrap().unwrap();
    });
    town.rounds_for(60).await;
    // If the claim was dropped before, the pod has not come yet.
    if let Some(claim) = town.claim(FIXED).await {
        assert!(claim.is_held_by("c-g", "eth0"));
        assert_eq!(town.world.reserved().await, [format!("{FIXED}/32")]);
        town.assert_clean().await;
    }
}

// === holders ===

#[tokio::test(start_paused = true)]
async fn a_holder_whose_pod_is_gone_from_a_ready_node_is_contested_and_then_cleared() {
    let mut town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.world.remove_pod("f");
    let report = town.round().await;
    assert_eq!(report.repairs.iter().map(|r| r.kind).collect::<Vec<_>>(), [Kind::HolderContested]);
    assert!(town.claim(FIXED).await.unwrap().contested.is_some());
    assert!(town.is_allocated(ip(FIXED)).await);
    let repairs = town.repairs(90, &[Kind::HolderCleared]).await;
    let pod = repairs[0].pod.as_ref().unwrap();
    assert_eq!(
        (pod.name.as_str(), pod.uid.as_deref(), repairs[0].node.as_deref()),
        ("f", Some("uid-of-f"), Some("n1"))
    );
    assert!(town.claim(FIXED).await.unwrap().holder.is_none());
    assert!(!town.is_allocated(ip(FIXED)).await);
    assert!(town.handle("k8s-pod-network.c-f").await.is_none());
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_on_a_node_that_is_gone_is_cleared_without_a_grace_but_not_at_first_sight() {
    let mut town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.world.remove_pod("f");
    town.remove_node("n1");
    assert_eq!(town.round().await.repairs, []);
    town.pass(30).await;
    let kinds: Vec<_> = town.round().await.repairs.iter().map(|r| r.kind).collect();
    assert!(kinds.contains(&Kind::HolderCleared), "{kinds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_pod_lives_is_left_alone_whatever_its_node_does() {
    let mut town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.stays_for(1200).await;
    town.world.node("n1", "Unknown");
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn the_policy_node_fenced_waits_for_the_node_to_be_fenced() {
    let mut world = World::new();
    world.conf["ipam"]["takeover"] = json!({"proof": "nodeFenced", "graceSeconds": 1});
    let mut town = Town::with(world);
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.world.remove_pod("f");
    town.stays_for(3600).await;
    town.world.put::<Node>(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "uid-of-n1"},
        "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]},
    }));
    town.repairs(60, &[Kind::HolderCleared]).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_sandbox_of_the_holder_between_two_sightings_is_not_cleared() {
    let mut town = Town::new();
    let pod = town.world.fixed("f", "app", FIXED);
    town.run(pod.clone(), "n1").await;
    town.world.remove_pod("f");
    town.world.node("n1", "Unknown");
    town.round().await;
    town.pass(30).await;
    // The pod was never gone: the list before was of another moment.
    report(&town.world, pod, "n1", &[ip(FIXED)]);
    town.world.node("n1", "True");
    town.stays_for(600).await;
}

// === allocations ===

#[tokio::test(start_paused = true)]
async fn an_allocation_is_left_to_a_ready_node_for_its_grace_and_then_freed() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    town.world.remove_pod("r");
    town.stays_for(870).await;
    let repairs = town.repairs(60, &[Kind::AllocationFreed]).await;
    assert!(repairs[0].detail.contains(&address.to_string()) && repairs[0].detail.contains("does not exist"));
    assert_eq!(repairs[0].pod.as_ref().unwrap().name, "r");
    assert!(!town.is_allocated(address).await && town.handle("k8s-pod-network.c-r").await.is_none());
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_allocation_of_a_node_that_is_gone_is_freed_after_two_sightings_and_then_its_block() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let cidr = town.block_of(address).await.spec.cidr;
    town.world.remove_pod("r");
    town.remove_node("n1");
    assert_eq!(town.round().await.repairs, []);
    town.pass(5).await;
    assert_eq!(town.round().await.repairs, [], "too early for a second sighting");
    town.repairs(90, &[Kind::AllocationFreed, Kind::BlockReleased]).await;
    assert!(town.world.list::<IPAMBlock>().await.is_empty());
    assert!(town.affinity(&calico::affinity_name("n1", &cidr)).await.is_none());
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_there_after_all_keeps_its_grace() {
    let mut town = Town::new();
    town.run(town.world.random("r"), "n1").await;
    town.world.remove_pod("r");
    // Two lists without nodes; only the last, single read tells.
    town.list_nothing_of::<Node>();
    town.stays_for(120).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_appeared_between_two_sightings_keeps_its_address() {
    let mut town = Town::new();
    let pod = town.world.random("r");
    let address = town.run(pod.clone(), "n1").await;
    town.world.remove_pod("r");
    town.rounds_for(870).await;
    report(&town.world, pod, "n1", &[address]);
    town.stays_for(1200).await;
}

#[tokio::test(start_paused = true)]
async fn allocations_of_others_are_never_touched() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let now = clock();
    town.change_block(address, |block| {
        let mut assign = |ordinal: usize, holder: &Holder| {
            block.spec.assign(block.spec.address(ordinal), holder, None).unwrap();
        };
        assign(20, &Holder::pod("other-network.abc", "default", "nobody", "n1", now));
        assign(21, &Holder::pod("k8s-pod-network-2.abc", "default", "nobody", "n1", now));
        assign(22, &Holder::node("k8s-pod-network.tunnel", "n1", now));
        assign(23, &Holder::node("vxlan-tunnel-addr-n1", "n1", now));
        assign(24, &Holder::pod("default.nobody", "default", "nobody", "n1", now));
    })
    .await;
    for id in [
        "other-network.abc",
        "k8s-pod-network-2.abc",
        "k8s-pod-network.tunnel",
        "vxlan-tunnel-addr-n1",
        "default.nobody",
    ] {
        let mut spec = calico::IPAMHandleSpec::new(id);
        spec.increment(&town.block_of(address).await.spec.cidr, 1);
        town.world.objects.put(&spec.object());
    }
    town.stays_for(3600).await;
    town.world.remove_pod("r");
    town.remove_node("n1");
    town.repairs(120, &[Kind::AllocationFreed]).await;
    assert_eq!(town.world.allocated().await.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_addresses_of_a_handle_are_freed_together_or_not_at_all() {
    let mut world = World::new();
    world.pool("v6", json!({"cidr": "fd00:10::/112", "blockSize": 122}));
    world.conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10::/112"}]]);
    let mut town = Town::with(world);
    let pod = town.world.random("r");
    let assigned = town.add("n1", "r", "c-r").await.unwrap();
    assert_eq!(assigned.len(), 2);
    // A status with one of the two: kubelets report both at once, others may not.
    report(&town.world, pod, "n1", &[assigned[0].address]);
    town.stays_for(3600).await;
    town.world.remove_pod("r");
    let repairs = town.repairs(930, &[Kind::AllocationFreed]).await;
    assert!(assigned.iter().all(|a| repairs[0].detail.contains(&a.address.to_string())));
    assert_eq!(town.world.allocated().await, []);
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_a_live_pod_reports_is_never_freed() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    town.world.remove_pod("r");
    report(&town.world, town.world.random("other"), "n2", &[address]);
    town.stays_for(3600).await;
}

/// An address made ahead for a pod, under the pod's own handle.
async fn made_ahead(town: &Town, pod: &str, uid: &str) -> std::net::IpAddr {
    let first = town.run(town.world.random("r"), "n1").await;
    let address = town.block_of(first).await.spec.address(30);
    let mut holder = Holder::pod(format!("default.{pod}"), "default", pod, "n1", clock());
    holder.secondary.insert(POD_UID_KEY.into(), uid.into());
    town.change_block(first, |block| block.spec.assign(address, &holder, None).unwrap()).await;
    let mut spec = calico::IPAMHandleSpec::new(holder.handle);
    spec.increment(&town.block_of(first).await.spec.cidr, 1);
    town.world.objects.put(&spec.object());
    address
}

#[tokio::test(start_paused = true)]
async fn an_address_made_ahead_stays_while_its_pod_of_that_uid_exists() {
    let mut town = Town::new();
    town.world.random("ahead");
    let address = made_ahead(&town, "ahead", "uid-of-ahead").await;
    town.stays_for(3600).await;
    assert!(town.is_allocated(address).await);
}

#[tokio::test(start_paused = true)]
async fn an_address_made_ahead_for_a_pod_of_another_uid_is_freed() {
    let mut town = Town::new();
    town.world.random("ahead");
    let address = made_ahead(&town, "ahead", "uid-of-an-earlier-one").await;
    let repairs = town.repairs(930, &[Kind::AllocationFreed]).await;
    assert!(repairs[0].detail.contains("uid-of-an-earlier-one"), "{}", repairs[0].detail);
    assert!(!town.is_allocated(address).await && town.handle("default.ahead").await.is_none());
}

// === reads that fail or say nothing ===

#[tokio::test(start_paused = true)]
async fn a_round_with_a_failed_list_repairs_nothing() {
    for kind in ["pods", "ipamblocks", "ipamhandles", "blockaffinities", "ippools", "ipreservations", "nodes"] {
        let mut town = Town::new();
        town.run(town.world.random("r"), "n1").await;
        town.world.remove_pod("r");
        town.remove_node("n1");
        town.round().await;
        town.pass(30).await;
        let before = town.world.objects.dump();
        town.on_call(move |call| {
            (call.verb == "list" && call.object == kind).then(|| Fault::Fail(Failure::Unknown("HTTP 500".into())))
        });
        let unread = town.try_round().await.unwrap_err();
        assert!(unread.to_string().contains(kind), "{unread}");
        assert_eq!(town.world.objects.dump(), before);
        town.undisturbed();
        assert_eq!(town.round().await.repairs[0].kind, Kind::AllocationFreed);
    }
}

#[tokio::test(start_paused = true)]
async fn claims_that_cannot_be_read_are_not_taken_for_none() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    remove_owner(&town, "app");
    town.run(town.world.fixed("h", "held", "10.244.0.217"), "n1").await;
    town.world.remove_pod("h");
    town.on_call(|call| (call.object == "claims").then(|| Fault::Fail(Failure::Unknown("no leader".into()))));
    town.stays_for(3600).await;
    let report = town.round().await;
    assert!(report.unread.iter().any(|error| error.object == "claims"));
}

#[tokio::test(start_paused = true)]
async fn lists_that_are_suddenly_empty_remove_nothing() {
    let mut town = Town::new();
    town.run(town.world.random("r"), "n1").await;
    town.run(town.world.fixed("f", "app", FIXED), "n2").await;
    town.stays_for(60).await;
    town.list_nothing_of::<Pod>();
    town.list_nothing_of::<Node>();
    town.stays_for(3600).await;
    town.list_nothing_of::<IPAMBlock>();
    town.stays_for(3600).await;
    town.undisturbed();
    town.list_nothing_of::<IPReservation>();
    town.stays_for(3600).await;
}

// === the mandate ===

/// Leave for so many repairs.
struct For(std::sync::atomic::AtomicUsize);

impl Mandate for For {
    fn holds(&self) -> BoxFuture<'_, bool> {
        use std::sync::atomic::Ordering::SeqCst;
        let left = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        std::future::ready(left).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn no_repair_is_begun_once_the_lease_is_lost() {
    let mut town = Town::new();
    for name in ["a", "b", "c"] {
        town.run(town.world.random(name), "n1").await;
        town.world.remove_pod(name);
    }
    town.rounds_for(870).await;
    town.pass(60).await;
    let report = town.collector.round(&For(2.into())).await.unwrap();
    assert!(report.interrupted);
    assert_eq!((report.repairs.len(), town.world.allocated().await.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_begins_to_count_anew() {
    let mut town = Town::new();
    town.run(town.world.random("r"), "n1").await;
    town.world.remove_pod("r");
    town.remove_node("n1");
    town.round().await;
    town.pass(30).await;
    town.restart_collector();
    assert_eq!(town.round().await.repairs, []);
    town.pass(30).await;
    assert_eq!(town.round().await.repairs.len(), 1);
}

// === reservations ===

#[tokio::test(start_paused = true)]
async fn a_claim_that_no_reservation_lists_gets_its_entry() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    let name = town.world.list::<IPReservation>().await[0].metadata.name.clone().unwrap();
    town.world.objects.remove::<IPReservation>(None, &name);
    let repairs = town.repairs(60, &[Kind::ReservationAdded]).await;
    assert_eq!(repairs[0].object, format!("IPReservation/{name}"));
    assert_eq!(town.world.reserved().await, [format!("{FIXED}/32")]);
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_without_claim_is_taken_out_and_those_that_are_not_ours_stay() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    let mut ours = town.world.list::<IPReservation>().await.remove(0);
    let (whole, elsewhere) = ("10.244.0.208/30".to_owned(), "10.99.0.1/32".to_owned());
    ours.spec.reserved_cidrs.extend(["10.244.0.220/32".to_owned(), whole.clone(), elsewhere.clone()]);
    town.world.objects.put(&ours);
    let theirs = json!({"metadata": {"name": "somebody"}, "spec": {"reservedCIDRs": ["10.244.0.221/32"]},
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPReservation"});
    town.world.put::<IPReservation>(theirs);
    let repairs = town.repairs(60, &[Kind::ReservationRemoved]).await;
    assert!(repairs[0].detail.contains("10.244.0.220"));
    let left: BTreeSet<String> = town.world.reserved().await.into_iter().collect();
    assert_eq!(left, [format!("{FIXED}/32"), "10.244.0.221/32".into(), whole, elsewhere].into());
}

/// Nothing is concluded from a claim that is there and cannot be read.
#[tokio::test(start_paused = true)]
async fn what_a_record_that_cannot_be_read_may_claim_stays_as_it_is() {
    let mut town = Town::new();
    unheld_claim(&town).await;
    let mut ours = town.world.list::<IPReservation>().await.remove(0);
    ours.spec.reserved_cidrs.push("10.244.0.220/32".into());
    town.world.objects.put(&ours);
    town.world.ledger.spoil(ip(FIXED));
    let report = town.round().await;
    assert!(report.unread.iter().any(|error| error.to_string().contains(FIXED)), "{:?}", report.unread);
    // What has nothing to do with it goes on.
    let repairs = town.repairs(60, &[Kind::ReservationRemoved]).await;
    assert!(repairs[0].detail.contains("10.244.0.220"), "{repairs:?}");
    town.pass(600).await;
    assert_eq!(town.round().await.repairs, []);
    assert_eq!(town.world.reserved().await, [format!("{FIXED}/32")]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_whose_claim_comes_while_it_is_removed_is_there_afterwards() {
    for call in [("range", "claim 10.244.0.220"), ("get", "ipreservations"), ("update", "ipreservations")] {
        let mut town = Town::new();
        unheld_claim(&town).await;
        let mut ours = town.world.list::<IPReservation>().await.remove(0);
        ours.spec.reserved_cidrs.push("10.244.0.220/32".into());
        town.world.objects.put(&ours);
        town.round().await;
        town.pass(30).await;
        let world = town.world.clone();
        town.at(call.0, call.1, move || {
            world.fixed("g", "late", "10.244.0.220");
            common::add(&common::town::driver(&world), &world.net(), "n1", "g", "c-g").now_or_never().unwrap().unwrap();
        });
        town.round().await;
        assert!(town.world.reserved().await.contains(&"10.244.0.220/32".to_owned()), "{call:?}");
        town.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_a_block_calls_fixed_stays_and_gets_its_claim_back() {
    let mut town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    let claim = town.world.claim(FIXED).await.unwrap();
    use kube_ipam::store::Ledger as _;
    town.world.ledger.swap(ip(FIXED), Some(claim.revision), None).await.unwrap();
    town.repairs(120, &[Kind::ClaimMended]).await;
    let again = town.world.claim(FIXED).await.unwrap().value;
    assert_eq!((again.owner, again.generation), (claim.value.owner, claim.value.generation));
    town.stays_for(3600).await;
}

// === handles ===

#[tokio::test(start_paused = true)]
async fn a_handle_without_allocation_goes_unless_it_is_anothers() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let cidr = town.block_of(address).await.spec.cidr;
    for id in ["k8s-pod-network.lost", "other-network.lost", "default.lost"] {
        let mut spec = calico::IPAMHandleSpec::new(id);
        spec.increment(&cidr, 1);
        town.world.objects.put(&spec.object());
    }
    town.world.objects.put(&calico::IPAMHandleSpec::new("k8s-pod-network.empty").object());
    let mut ahead = calico::IPAMHandleSpec::new("default.ahead").object();
    ahead.metadata.annotations.get_or_insert_default().insert(POD_UID_KEY.into(), "u".into());
    town.world.objects.put(&ahead);
    town.repairs(60, &[Kind::HandleRemoved, Kind::HandleRemoved, Kind::HandleRemoved]).await;
    let mut left: Vec<_> = town.world.list::<IPAMHandle>().await.into_iter().map(|h| h.spec.handle_id).collect();
    left.sort();
    assert_eq!(left, ["default.lost", "k8s-pod-network.c-r", "other-network.lost"]);
}

#[tokio::test(start_paused = true)]
async fn a_handle_is_made_to_count_what_the_blocks_bear() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let cidr = town.block_of(address).await.spec.cidr;
    let mut handle = town.handle("k8s-pod-network.c-r").await.unwrap();
    handle.spec.increment(&cidr, 2);
    handle.spec.increment(&"10.244.9.0/26".parse().unwrap(), 1);
    town.world.objects.put(&handle);
    let repairs = town.repairs(60, &[Kind::HandleCorrected]).await;
    assert_eq!(repairs[0].pod.as_ref().unwrap().name, "r");
    assert_eq!(town.handle("k8s-pod-network.c-r").await.unwrap().spec.block, [(cidr.to_string(), 1)].into());
    town.world.objects.remove::<IPAMHandle>(None, "k8s-pod-network.c-r");
    town.repairs(60, &[Kind::HandleCorrected]).await;
    town.assert_clean().await;
}

/// Under a pod's own handle nothing else tells whose it is: without the UID, what its DEL leaves of it stays for ever.
#[tokio::test(start_paused = true)]
async fn a_handle_that_is_made_again_says_what_it_said() {
    let mut town = Town::new();
    town.world.random("ahead");
    made_ahead(&town, "ahead", "uid-of-ahead").await;
    let labels = town.handle("k8s-pod-network.c-r").await.unwrap().metadata.labels.unwrap();
    for (name, uid) in [("default.ahead", Some("uid-of-ahead")), ("k8s-pod-network.c-r", None)] {
        let before = town.handle(name).await.unwrap();
        town.world.objects.remove::<IPAMHandle>(None, name);
        town.repairs(60, &[Kind::HandleCorrected]).await;
        let after = town.handle(name).await.unwrap();
        assert_eq!((&after.spec.block, after.metadata.labels.as_ref()), (&before.spec.block, Some(&labels)));
        let said = after.metadata.annotations.unwrap_or_default();
        assert_eq!(said.get(POD_UID_KEY).map(String::as_str), uid, "{name}");
    }
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_handle_counted_up_by_an_add_under_way_is_left_alone() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let cidr = town.block_of(address).await.spec.cidr;
    // Every sighting is of another ADD's handle.
    for _ in 0..8 {
        town.world.objects.remove::<IPAMHandle>(None, "k8s-pod-network.busy");
        let mut spec = calico::IPAMHandleSpec::new("k8s-pod-network.busy");
        spec.increment(&cidr, 1);
        town.world.objects.put(&spec.object());
        town.pass(25).await;
        assert_eq!(town.round().await.repairs, []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_of_a_handle_that_stopped_half_way_is_finished_whoever_began_it() {
    let mut town = Town::new();
    let mut spec = calico::IPAMHandleSpec::new("other-network.going");
    spec.deleted = true;
    town.world.objects.put(&spec.object());
    town.repairs(60, &[Kind::HandleRemoved]).await;
    town.assert_clean().await;
}

// === affinities and blocks ===

fn plant(town: &Town, owner: &Affinity, cidr: &str, state: AffinityState) -> String {
    let affinity = BlockAffinity::pending(owner, &cidr.parse().unwrap()).with_state(state);
    town.world.objects.put(&affinity);
    affinity.metadata.name.unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_affinity_that_stays_pending_goes_with_its_node_or_after_a_grace() {
    let mut town = Town::new();
    let here = plant(&town, &Affinity::host("n1"), "10.244.1.0/26", AffinityState::Pending);
    let gone = plant(&town, &Affinity::host("n9"), "10.244.1.64/26", AffinityState::Pending);
    let unfinished = plant(&town, &Affinity::host("n8"), "10.244.1.128/26", AffinityState::Confirmed);
    town.repairs(60, &[Kind::AffinityRemoved, Kind::AffinityRemoved]).await;
    assert!(town.affinity(&gone).await.is_none() && town.affinity(&unfinished).await.is_none());
    assert!(town.affinity(&here).await.is_some());
    let repairs = town.repairs(300, &[Kind::AffinityRemoved]).await;
    assert!(repairs[0].detail.contains("stayed pending"), "{}", repairs[0].detail);
    town.assert_clean().await;
}

/// An ADD that took another node's empty block over was killed before it deleted that node's affinity.
#[tokio::test(start_paused = true)]
async fn an_affinity_on_its_way_out_whose_block_is_anothers_goes_as_soon_as_no_add_can_be_at_work_on_it() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let cidr = town.block_of(address).await.spec.cidr.to_string();
    let others = plant(&town, &Affinity::host("n2"), &cidr, AffinityState::PendingDeletion);
    let nobodys = plant(&town, &Affinity::host("n2"), "10.244.1.64/26", AffinityState::PendingDeletion);
    town.repairs(60, &[Kind::AffinityRemoved, Kind::AffinityRemoved]).await;
    assert!(town.affinity(&others).await.is_none() && town.affinity(&nobodys).await.is_none());
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_affinity_whose_block_is_anothers_goes_after_a_grace() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let cidr = town.block_of(address).await.spec.cidr.to_string();
    let others = plant(&town, &Affinity::host("n2"), &cidr, AffinityState::Confirmed);
    let unfinished = plant(&town, &Affinity::host("n2"), "10.244.1.64/26", AffinityState::Confirmed);
    town.rounds_for(240).await;
    assert!(town.affinity(&others).await.is_some(), "its node may be at work on it");
    let repairs = town.repairs(60, &[Kind::AffinityRemoved]).await;
    assert!(repairs[0].detail.contains("was confirmed, and its block belongs to host:n1"), "{}", repairs[0].detail);
    assert!(town.affinity(&others).await.is_none());
    assert!(town.affinity(&unfinished).await.is_some(), "its node completes it");
}

#[tokio::test(start_paused = true)]
async fn an_affinity_that_stays_half_done_is_confirmed_if_its_block_says_the_same() {
    for state in [AffinityState::Pending, AffinityState::PendingDeletion] {
        let mut town = Town::new();
        let address = town.run(town.world.random("r"), "n1").await;
        let name = calico::affinity_name("n1", &town.block_of(address).await.spec.cidr);
        town.world.objects.put(&town.affinity(&name).await.unwrap().with_state(state));
        town.repairs(330, &[Kind::AffinityConfirmed]).await;
        assert!(town.affinity(&name).await.unwrap().is_confirmed());
        town.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_whose_affinity_was_lost_gets_it_back_as_long_as_its_node_exists() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    let block = town.block_of(address).await;
    let name = calico::affinity_name("n1", &block.spec.cidr);
    town.world.objects.remove::<BlockAffinity>(None, &name);
    town.rounds_for(240).await;
    assert!(town.affinity(&name).await.is_none(), "its node may be at work on it");
    let repairs = town.repairs(60, &[Kind::AffinityRestored]).await;
    assert_eq!(repairs[0].node.as_deref(), Some("n1"));
    assert!(town.affinity(&name).await.unwrap().is_confirmed());
    assert_eq!(town.block_of(address).await.spec.allocations, block.spec.allocations);
    town.assert_clean().await;
    town.world.objects.remove::<BlockAffinity>(None, &name);
    town.remove_node("n1");
    town.world.remove_pod("r");
    town.repairs(120, &[Kind::AllocationFreed, Kind::BlockReleased]).await;
    assert!(town.affinity(&name).await.is_none());
    town.assert_clean().await;
}

/// As Calico before v3.31 wrote them.
#[tokio::test(start_paused = true)]
async fn an_affinity_without_labels_gets_them_so_that_its_node_finds_it() {
    let mut town = Town::new();
    let (owner, cidr) = (Affinity::host("n1"), "10.244.77.0/26".parse().unwrap());
    let whole = BlockAffinity::pending(&owner, &cidr).with_state(AffinityState::Confirmed);
    let name = calico::affinity_name("n1", &cidr);
    town.world.objects.put(&IPAMBlockSpec::new(cidr, &owner, clock()).object());
    let mut old = whole.clone();
    old.metadata.labels = Some([("example.org/mine".to_owned(), "yes".to_owned())].into());
    old.metadata.annotations =
        Some([("projectcalico.org/metadata".to_owned(), r#"{"creationTimestamp":null}"#.to_owned())].into());
    old.spec.type_ = None;
    town.world.objects.put(&old);
    let seen = async |town: &Town| {
        let selector = calico::block_affinity::label_selector(&owner);
        town.world.objects.list::<BlockAffinity>(&selector).await.unwrap().len()
    };
    assert_eq!(seen(&town).await, 0);
    let repairs = town.repairs(60, &[Kind::AffinityLabelled]).await;
    assert_eq!(repairs[0].node.as_deref(), Some("n1"));
    let labelled = town.affinity(&name).await.unwrap();
    let (labels, of_whole) = (labelled.metadata.labels.clone().unwrap(), whole.metadata.labels.unwrap());
    assert!(of_whole.iter().all(|label| labels.get_key_value(label.0) == Some(label)) && labels.len() == 4);
    let copy: serde_json::Value =
        serde_json::from_str(&labelled.metadata.annotations.unwrap()["projectcalico.org/metadata"]).unwrap();
    assert_eq!(copy, serde_json::json!({"creationTimestamp": null, "labels": of_whole}));
    assert_eq!((labelled.spec, seen(&town).await), (old.spec, 1));
    town.assert_clean().await;
    town.stays_for(600).await;
}

#[tokio::test(start_paused = true)]
async fn an_affinity_that_a_node_works_on_meanwhile_is_left_alone() {
    let mut town = Town::new();
    let name = plant(&town, &Affinity::host("n1"), "10.244.1.0/26", AffinityState::Pending);
    for _ in 0..30 {
        town.pass(30).await;
        assert_eq!(town.round().await.repairs, []);
        let touched = town.affinity(&name).await.unwrap();
        town.world.objects.put(&touched);
    }
}

#[tokio::test(start_paused = true)]
async fn virtual_affinities_and_their_blocks_are_never_touched() {
    let mut town = Town::new();
    let owner = Affinity::Virtual("load-balancer".into());
    for state in [AffinityState::Pending, AffinityState::PendingDeletion] {
        plant(&town, &owner, if state == AffinityState::Pending { "10.244.2.0/26" } else { "10.244.2.64/26" }, state);
    }
    let marked = BlockAffinity::pending(&owner, &"10.244.2.128/26".parse().unwrap()).marked_deleted();
    town.world.objects.put(&marked);
    town.world.objects.put(&IPAMBlockSpec::new("10.244.2.192/26".parse().unwrap(), &owner, clock()).object());
    town.stays_for(3600).await;
}

#[tokio::test(start_paused = true)]
async fn deletions_of_affinities_and_blocks_that_stopped_half_way_are_finished() {
    let mut town = Town::new();
    let marked = BlockAffinity::pending(&Affinity::host("n1"), &"10.244.2.0/26".parse().unwrap()).marked_deleted();
    town.world.objects.put(&marked);
    let mut block = IPAMBlockSpec::new("10.244.3.0/26".parse().unwrap(), &Affinity::host("n1"), clock());
    block.deleted = true;
    town.world.objects.put(&block.object());
    town.repairs(60, &[Kind::AffinityRemoved, Kind::BlockRemoved]).await;
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_block_is_released_only_if_its_node_is_gone_and_stays_so() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    town.del("n1", "r", "c-r").await;
    town.world.remove_pod("r");
    town.stays_for(3600).await;
    town.remove_node("n1");
    town.round().await;
    town.world.node("n1", "True");
    town.pass(30).await;
    town.stays_for(60).await;
    town.remove_node("n1");
    town.repairs(60, &[Kind::BlockReleased]).await;
    assert!(!town.world.list::<IPAMBlock>().await.iter().any(|block| block.spec.cidr.contains(address)));
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_block_in_use_outlives_its_node() {
    let mut town = Town::new();
    let first = town.run(town.world.random("r"), "n1").await;
    // Borrowed by a pod of another node.
    let address = town.block_of(first).await.spec.address(40);
    town.change_block(address, |block| {
        let holder = Holder::pod("k8s-pod-network.b", "default", "b", "n2", clock());
        block.spec.assign(address, &holder, None).unwrap();
    })
    .await;
    let mut spec = calico::IPAMHandleSpec::new("k8s-pod-network.b");
    spec.increment(&town.block_of(address).await.spec.cidr, 1);
    town.world.objects.put(&spec.object());
    report(&town.world, town.world.random("b"), "n2", &[address]);
    town.world.remove_pod("r");
    town.remove_node("n1");
    town.repairs(600, &[Kind::AllocationFreed]).await;
    assert!(town.is_allocated(address).await);
}

// === leaders that change ===

#[tokio::test(start_paused = true)]
async fn a_long_grace_does_not_begin_again_with_another_leader_who_sees_for_himself() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    town.world.remove_pod("r");
    town.stays_for(60).await;
    assert_eq!(town.collector.standing().len(), 0, "it may be gone in a moment");
    town.stays_for(540).await;
    let standing = town.collector.standing();
    assert_eq!(standing.len(), 1, "{standing:?}");
    town.stays_for(120).await;
    assert_eq!(town.collector.standing(), standing, "it is written once");
    town.restart_collector();
    town.collector.recall(standing.clone());
    town.stays_for(90).await;
    let freed = town.repairs(90, &[Kind::AllocationFreed]).await;
    assert!(freed[0].detail.contains(&address.to_string()), "{freed:?}");
    town.stays_for(0).await;
    assert!(town.collector.standing().is_empty());

    // What is over by the record still needs two looks.
    town.run(town.world.random("s"), "n1").await;
    town.world.remove_pod("s");
    town.stays_for(840).await;
    let standing = town.collector.standing();
    town.pass(3600).await;
    town.restart_collector();
    town.collector.recall(standing);
    assert_eq!(town.round().await.repairs, []);
    town.pass(30).await;
    assert_eq!(town.round().await.repairs.len(), 1);
}

// === annotations that are not kept ===

#[tokio::test(start_paused = true)]
async fn a_pod_whose_annotation_is_not_kept_is_told_once() {
    let mut town = Town::new();
    let address = town.run(town.world.random("r"), "n1").await;
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    assert_eq!(town.round().await.notices, []);
    // As a pod that calico-ipam started: it asks, and has another one.
    let put = |name: &str, host_network: bool, phase: &str| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
                "annotations": {"kube-ipam.ip": "10.244.0.230"},
            },
            "spec": {"nodeName": "n1", "hostNetwork": host_network, "containers": []},
            "status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}]},
        });
        town.world.objects.put::<Pod>(&common::object(pod));
    };
    put("r", false, "Running");
    put("node-wide", true, "Running");
    put("over", true, "Succeeded");
    let notices = town.round().await.notices;
    let told: Vec<(&str, Unkept)> = notices.iter().map(|n| (n.pod.name.as_str(), n.what)).collect();
    assert_eq!(told, [("node-wide", Unkept::HostNetwork), ("r", Unkept::OtherAddress)], "{notices:#?}");
    assert!(notices[0].text.contains("hostNetwork") && notices[0].pod.uid.as_deref() == Some("uid-of-node-wide"));
    let said = &notices[1].text;
    assert!(
        said.contains("10.244.0.230") && said.contains(&address.to_string()) && said.contains("calico-ipam"),
        "{said}"
    );
    town.pass(30).await;
    assert_eq!(town.round().await.notices, []);
    // Another leader has not told anybody.
    town.restart_collector();
    assert_eq!(town.round().await.notices.len(), 2);
}

// === ranges ===

#[tokio::test(start_paused = true)]
async fn a_range_of_which_a_tenth_is_left_is_told_every_hour() {
    let mut world = World::new();
    world.conf["ipam"]["rangeEnd"] = json!("10.244.0.19");
    let mut town = Town::with(world);
    for number in 0..8 {
        let name = format!("r{number}");
        town.run(town.world.random(&name), "n1").await;
    }
    // Reserved for a fixed address counts as well, one outside of the range does not.
    town.run(town.world.fixed("out", "out", FIXED), "n1").await;
    assert_eq!(town.round().await.filling, []);
    town.run(town.world.fixed("in", "in", "10.244.0.19"), "n1").await;
    let told = town.round().await.filling;
    assert_eq!(
        told.iter().map(|t| (t.pool.as_str(), t.usage.left())).collect::<Vec<_>>(),
        [("default-ipv4-ippool", 1)]
    );
    town.pass(1800).await;
    assert_eq!(town.round().await.filling, []);
    town.pass(1801).await;
    assert_eq!(town.round().await.filling.len(), 1);
}

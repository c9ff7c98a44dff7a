//! Addresses that an update hands over: only the successor takes what is kept for it, and its ADD waits for the old pod.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{World, ip};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube_ipam::claim::{Claim, NodeState, PodState, Successor, SuccessorEvidence, has_lapsed};
use kube_ipam::driver::Error;
use kube_ipam::store::{Ledger as _, Swap};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

const FIXED: &str = "10.244.0.216";

fn after(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

/// Keeps the address for a pod, as the elected agent does before it evicts the holder.
async fn keep_for(world: &World, pod: &str, until: Timestamp) {
    let standing = world.claim(FIXED).await.unwrap();
    let successor = Successor { pod_uid: format!("uid-of-{pod}"), pod: pod.into(), until, unknown: Map::new() };
    let claim = Claim { successor: Some(successor), ..standing.value };
    assert!(matches!(
        world.ledger.swap(ip(FIXED), Some(standing.revision), Some(&claim)).await.unwrap(),
        Swap::Done(_)
    ));
}

/// Pod `old` has the address; `new` and `again`, the old ReplicaSet's replacement, want it.
async fn update() -> World {
    let world = World::new();
    world.fixed("old", "app", FIXED);
    world.add("n1", "old", "c1").await.unwrap();
    pod(&world, "new", "h2", "n2", json!({}));
    pod(&world, "again", "h1", "n1", json!({}));
    world
}

fn pod(world: &World, name: &str, hash: &str, node: &str, more: Value) -> Pod {
    let pod = world.pod(name, "app", hash, json!({"kube-ipam.ip": FIXED, "kube-ipam.handover": "evict"}));
    let mut value = serde_json::to_value(pod).unwrap();
    value["spec"]["nodeName"] = node.into();
    value["metadata"]["resourceVersion"].take();
    for (key, more) in more.as_object().unwrap() {
        for (field, value_of) in more.as_object().unwrap() {
            value[key][field] = value_of.clone();
        }
    }
    world.put(value)
}

/// The old pod is evicted; its grace ends after so many seconds.
fn evict(world: &World, seconds: i64) {
    let pod = world.pod("old", "app", "h1", json!({"kube-ipam.ip": FIXED}));
    let mut value = serde_json::to_value(pod).unwrap();
    value["metadata"]["deletionTimestamp"] = json!(after(seconds).strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    value["status"]["phase"] = "Running".into();
    world.put::<Pod>(value);
}

async fn refused(world: &World, node: &str, pod: &str) -> String {
    match world.add(node, pod, &format!("c-{pod}")).await {
        Err(Error::Impasse(impasse)) => format!("{impasse}; {}", impasse.remedies()),
        other => panic!("{pod} got {other:?}"),
    }
}

#[tokio::test]
async fn only_the_successor_takes_an_address_that_is_kept_for_it() {
    let world = update().await;
    keep_for(&world, "new", after(300)).await;
    // The holder's own next sandbox is not held up, and changes nothing.
    world.add("n1", "old", "c1b").await.unwrap();
    world.del("n1", "old", "c1b").await.unwrap();
    world.remove_pod("old");
    let why = refused(&world, "n1", "again").await;
    assert!(why.contains("is handed over to pod new") && why.contains("Deployment default/app"), "{why}");
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
    assert_eq!(world.address("n2", "new", "c2").await, ip(FIXED));
    // Between two of the successor's sandboxes nobody else gets it either.
    world.del("n2", "new", "c2").await.unwrap();
    refused(&world, "n1", "again").await;
    assert_eq!(world.address("n2", "new", "c3").await, ip(FIXED));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_holder_that_lost_the_address_leaves_it_to_the_successor_too() {
    let world = update().await;
    keep_for(&world, "new", after(300)).await;
    world.remove_pod("old");
    world.node("n1", "False");
    pod(&world, "again", "h1", "n2", json!({}));
    refused(&world, "n2", "again").await;
    assert_eq!(world.address("n2", "new", "c2").await, ip(FIXED));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_reservation_lapses_with_its_pod_its_node_its_time_or_another_address() {
    type Change = fn(&World);
    let cases: [(&str, i64, Change); 7] = [
        ("the pod is gone", 300, |world| world.remove_pod("new")),
        ("the pod was made again", 300, |world| {
            pod(world, "new", "h2", "n2", json!({"metadata": {"uid": "another"}}));
        }),
        ("the pod is terminating", 300, |world| {
            pod(world, "new", "h2", "n2", json!({"metadata": {"deletionTimestamp": "2026-11-24T00:00:00Z"}}));
        }),
        ("the pod has failed", 300, |world| {
            pod(world, "new", "h2", "n2", json!({"status": {"phase": "Failed"}}));
        }),
        ("the pod has another address", 300, |world| {
            pod(world, "new", "h2", "n2", json!({"status": {"podIP": "10.244.0.217"}}));
        }),
        ("its node is gone", 300, |world| assert!(world.objects.remove::<Node>(None, "n2"))),
        ("its time is over", -1, |_| {}),
    ];
    for (name, until, change) in cases {
        let world = update().await;
        keep_for(&world, "new", after(until)).await;
        world.del("n1", "old", "c1").await.unwrap();
        world.remove_pod("old");
        change(&world);
        let got = world.add("n1", "again", "c-again").await;
        assert_eq!(got.unwrap_or_else(|error| panic!("{name}: {error}"))[0].address, ip(FIXED), "{name}");
        assert_eq!(world.claim(FIXED).await.unwrap().value.successor, None, "{name}");
        world.assert_sound().await;
    }
}

#[test]
fn a_successors_node_may_be_not_ready_for_a_minute() {
    let now = Timestamp::now();
    let evidence = SuccessorEvidence {
        pod: PodState::Alive,
        elsewhere: false,
        node: Some(NodeState::NotReady),
        not_ready_since: Some(now - SignedDuration::from_secs(59)),
    };
    assert!(!has_lapsed(&evidence, now));
    assert!(has_lapsed(&evidence, now + SignedDuration::from_secs(1)));
    assert!(has_lapsed(&SuccessorEvidence { not_ready_since: None, ..evidence }, now));
    for (node, lapsed) in [(Some(NodeState::Ready), false), (None, false), (Some(NodeState::OutOfService), true)] {
        assert_eq!(has_lapsed(&SuccessorEvidence { node, not_ready_since: None, ..evidence }, now), lapsed, "{node:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restored_claim_keeps_the_address_for_nobody_who_is_gone_and_displaces_nobody() {
    let world = update().await;
    keep_for(&world, "new", after(300)).await;
    let backup = world.claim(FIXED).await.unwrap().value;
    world.del("n1", "old", "c1").await.unwrap();
    world.remove_pod("old");
    assert_eq!(world.address("n2", "new", "c2").await, ip(FIXED));
    // The claim of before the update comes back, then none: the pod that has the address keeps it either way.
    for claim in [Some(&backup), None] {
        let standing = world.claim(FIXED).await.map(|standing| standing.revision);
        assert!(matches!(world.ledger.swap(ip(FIXED), standing, claim).await.unwrap(), Swap::Done(_)));
        refused(&world, "n1", "again").await;
        let claim = world.claim(FIXED).await.unwrap().value;
        assert!(claim.is_held_by("c2", "eth0"), "{claim:?}");
    }
    world.del("n2", "new", "c2").await.unwrap();
    world.remove_pod("new");
    assert_eq!(world.address("n1", "again", "c3").await, ip(FIXED));
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn the_successors_add_waits_out_the_old_pods_grace_and_another_pods_does_not() {
    // The wall clock stands still in this test: the grace is what the old pod had when it was first looked at.
    let mut world = update().await;
    world.conf["ipam"]["waitSeconds"] = json!(1);
    keep_for(&world, "new", after(1000)).await;
    evict(&world, 40);
    for (pod, node, least, most) in [("again", "n1", 0, 2), ("new", "n2", 95, 101)] {
        let begun = Instant::now();
        let why = refused(&world, node, pod).await;
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_secs(least) && waited <= Duration::from_secs(most), "{pod}: {waited:?} {why}");
        assert!(why.contains("terminating"), "{why}");
    }
    let (driver, net) = (world.driver(), world.net());
    let adding = common::add(&driver, &net, "n2", "new", "c2");
    let releasing = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        world.del("n1", "old", "c1").await.unwrap();
    };
    let (added, ()) = tokio::join!(adding, releasing);
    assert_eq!(added.unwrap()[0].address, ip(FIXED));
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn an_add_that_may_get_the_address_handed_over_waits_for_that_to_begin() {
    let world = update().await;
    let waited = |pod: &'static str| {
        let world = &world;
        async move {
            let begun = Instant::now();
            let why = refused(world, "n2", pod).await;
            (begun.elapsed(), why)
        }
    };
    let (took, why) = waited("new").await;
    assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(12), "{took:?}");
    assert!(why.contains("evicted for this one"), "{why}");
    // A pod of the holder's own template has nothing to wait for, nor has one that asks for no handover.
    pod(&world, "again", "h1", "n2", json!({}));
    let (took, why) = waited("again").await;
    assert!(took < Duration::from_secs(4) && why.contains("more replicas than addresses"), "{took:?} {why}");
    world.pod("new", "app", "h2", json!({"kube-ipam.ip": FIXED, "kube-ipam.handover": "refuse"}));
    let (took, why) = waited("new").await;
    assert!(took < Duration::from_secs(4) && why.contains("kube-ipam.handover: evict"), "{took:?} {why}");
}

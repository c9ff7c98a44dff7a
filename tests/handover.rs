//! Addresses that an update hands over: only the successor takes what is kept for it, and its ADD waits for the old pod.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{World, ip};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_ipam::claim::{Claim, NodeState, PodState, Successor, SuccessorEvidence, has_lapsed};
use kube_ipam::driver::Error;
use kube_ipam::handover::{
    Case, Decision, DeploymentConfig, Evict, Evicted, Handover, Outcome, Refusal, Rollout, Waiting,
};
use kube_ipam::pod::HandoverMode;
use kube_ipam::store::memory::{MemoryLedger, MemoryObjects};
use kube_ipam::store::{Gated, Ledger as _, Objects as _, StoreError, Swap};
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

// === who evicts ===

/// Evicts by marking the pod; or says what a test tells it to.
#[derive(Clone)]
struct Evictions {
    world: World,
    says: Arc<Mutex<Option<Evicted>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Evict for Evictions {
    async fn evict(&self, namespace: &str, name: &str, uid: &str, trial: bool) -> Result<Evicted, StoreError> {
        let kept = self.world.claim(FIXED).await.unwrap().value.successor.is_some();
        self.asked.lock().unwrap().push(format!("{namespace}/{name} {uid} trial={trial} kept={kept}"));
        if let Some(says) = self.says.lock().unwrap().clone() {
            return Ok(says);
        }
        let pod = self.world.objects.get::<Pod>(Some(namespace), name).await?;
        let Some(mut pod) = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) else {
            return Ok(Evicted::Gone);
        };
        pod.metadata.deletion_timestamp = Some(Time(after(30)));
        if !trial {
            self.world.objects.put(&pod);
        }
        Ok(Evicted::Done)
    }
}

type Executor = Handover<Gated<MemoryObjects>, Gated<MemoryLedger>, Evictions>;

fn executor(world: &World) -> (Executor, Evictions) {
    let evictions = Evictions { world: world.clone(), says: Arc::default(), asked: Arc::default() };
    (Handover::new(world.driver(), evictions.clone(), HandoverMode::Evict), evictions)
}

fn owned(api_version: &str, kind: &str, name: &str, uid: &str) -> Value {
    json!([{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true}])
}

/// A Deployment at revision 2 with the ReplicaSets of both; pod `old` of the first runs, `new` of the second waits.
async fn rolling() -> World {
    let world = World::new();
    deployment(&world, json!({}));
    for (hash, revision) in [("h1", "1"), ("h2", "2")] {
        world.put::<ReplicaSet>(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": format!("app-{hash}"), "namespace": "default", "uid": format!("rs-{hash}"),
                "annotations": {"deployment.kubernetes.io/revision": revision},
                "ownerReferences": owned("apps/v1", "Deployment", "app", "d"),
            },
            "spec": {"selector": {}},
        }));
    }
    member(&world, "old", "n1", owned("apps/v1", "ReplicaSet", "app-h1", "rs-h1"), json!({"pod-template-hash": "h1"}));
    world.add("n1", "old", "c1").await.unwrap();
    member(&world, "new", "n2", owned("apps/v1", "ReplicaSet", "app-h2", "rs-h2"), json!({"pod-template-hash": "h2"}));
    world
}

fn deployment(world: &World, more: Value) {
    let mut spec = json!({"selector": {"matchLabels": {"app": "app"}}, "template": {}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.put::<Deployment>(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "app", "namespace": "default", "uid": "d", "generation": 2,
            "annotations": {"deployment.kubernetes.io/revision": "2"},
        },
        "spec": spec, "status": {"observedGeneration": 2},
    }));
}

fn member(world: &World, name: &str, node: &str, owners: Value, labels: Value) -> Pod {
    let mut labels = labels;
    labels["app"] = "app".into();
    world.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "labels": labels,
            "annotations": {"kube-ipam.ip": FIXED}, "ownerReferences": owners,
        },
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx"}]}, "status": {"phase": "Pending"},
    }))
}

async fn examined(executor: &Executor, pod: &str) -> Case {
    executor.examine("default", pod).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_old_pod_is_evicted_and_its_address_is_the_new_ones() {
    let world = rolling().await;
    let (executor, evictions) = executor(&world);
    let case = examined(&executor, "new").await;
    assert!(matches!(case.decision, Decision::Evict { images_known: false, .. }), "{:?}", case.decision);
    assert_eq!(executor.carry_out(&case).await.unwrap(), Some(Outcome::Evicted));
    assert_eq!(
        *evictions.asked.lock().unwrap(),
        ["default/old uid-of-old trial=true kept=false", "default/old uid-of-old trial=false kept=true"]
    );
    let kept = world.claim(FIXED).await.unwrap().value.successor.unwrap();
    assert_eq!((kept.pod_uid.as_str(), kept.pod.as_str()), ("uid-of-new", "new"));
    assert!(kept.until > after(300) && kept.until < after(400), "{}", kept.until);
    // The old ReplicaSet's replacement comes at once, and asks for nothing.
    member(
        &world,
        "again",
        "n1",
        owned("apps/v1", "ReplicaSet", "app-h1", "rs-h1"),
        json!({"pod-template-hash": "h1"}),
    );
    assert_eq!(examined(&executor, "again").await.decision, Decision::Refuse(Refusal::OldRevision));
    assert_eq!(examined(&executor, "new").await.decision, Decision::Wait(Waiting::Coming));
    world.del("n1", "old", "c1").await.unwrap();
    world.remove_pod("old");
    refused(&world, "n1", "again").await;
    assert_eq!(world.address("n2", "new", "c2").await, ip(FIXED));
    world.assert_sound().await;
}

#[tokio::test]
async fn an_eviction_that_a_budget_forbids_changes_nothing_and_is_asked_for_again() {
    let world = rolling().await;
    let (executor, evictions) = executor(&world);
    let before = world.claim(FIXED).await.unwrap();
    let carried_out = || async { executor.carry_out(&examined(&executor, "new").await).await.unwrap() };
    for _ in 0..2 {
        *evictions.says.lock().unwrap() = Some(Evicted::Budget("web needs 1".into()));
        assert_eq!(carried_out().await, Some(Outcome::Blocked("web needs 1".into())));
        assert_eq!(world.claim(FIXED).await.unwrap(), before, "the holder's own next sandbox is to get it");
    }
    *evictions.says.lock().unwrap() = None;
    assert_eq!(carried_out().await, Some(Outcome::Evicted));
    assert!(world.claim(FIXED).await.unwrap().value.successor.is_some());
}

#[tokio::test]
async fn nobody_is_evicted_for_a_claim_that_changed_meanwhile_or_that_may_not_be_written() {
    let world = rolling().await;
    let (executor, evictions) = executor(&world);
    let case = examined(&executor, "new").await;
    world.add("n1", "old", "c1b").await.unwrap();
    assert_eq!(executor.carry_out(&case).await.unwrap(), Some(Outcome::Changed));
    world.put::<calico::ClusterInformation>(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
        "spec": {"datastoreReady": false},
    }));
    let locked = Handover::new(world.driver(), evictions.clone(), HandoverMode::Evict);
    let case = locked.examine("default", "new").await.unwrap().unwrap();
    assert!(locked.carry_out(&case).await.unwrap_err().is_locked());
    assert!(evictions.asked.lock().unwrap().iter().all(|asked| asked.contains("trial=true")));
}

#[tokio::test]
async fn a_paused_owner_and_one_that_was_made_again_begin_none() {
    let world = rolling().await;
    let (executor, _) = executor(&world);
    deployment(&world, json!({"paused": true}));
    let decision = examined(&executor, "new").await.decision;
    assert_eq!(decision, Decision::Refuse(Refusal::Paused("Deployment app".into())));
    deployment(&world, json!({"selector": {"matchLabels": {"app": "other"}}}));
    assert_eq!(examined(&executor, "new").await.decision, Decision::Refuse(Refusal::NotSelected));
    world.put::<Deployment>(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app", "namespace": "default", "uid": "other"},
    }));
    assert_eq!(examined(&executor, "new").await.decision, Decision::Refuse(Refusal::Bare));
}

#[tokio::test]
async fn every_kind_that_tells_its_revisions_apart_is_read() {
    type Build = fn(&World) -> [(Value, Value); 2];
    let kinds: [(&str, Build); 3] = [
        ("Rollout", |world| {
            world.put::<Rollout>(json!({
                "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
                "metadata": {
                    "name": "app", "namespace": "default", "uid": "d", "generation": 7,
                    "annotations": {"rollout.argoproj.io/revision": "2"},
                },
                "spec": {"selector": {"matchLabels": {"app": "app"}}, "strategy": {}},
                "status": {"observedGeneration": "7"},
            }));
            ["1", "2"].map(|revision| {
                world.put::<ReplicaSet>(json!({
                    "apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "metadata": {
                        "name": format!("app-h{revision}"), "namespace": "default", "uid": format!("rs-{revision}"),
                        "annotations": {"rollout.argoproj.io/revision": revision},
                        "ownerReferences": owned("argoproj.io/v1alpha1", "Rollout", "app", "d"),
                    },
                    "spec": {"selector": {}},
                }));
                let set = owned("apps/v1", "ReplicaSet", &format!("app-h{revision}"), &format!("rs-{revision}"));
                (set, json!({"rollouts-pod-template-hash": format!("h{revision}")}))
            })
        }),
        ("DeploymentConfig", |world| {
            world.put::<DeploymentConfig>(json!({
                "apiVersion": "apps.openshift.io/v1", "kind": "DeploymentConfig",
                "metadata": {"name": "app", "namespace": "default", "uid": "d", "generation": 3},
                "spec": {"selector": {"app": "app"}}, "status": {"latestVersion": 2, "observedGeneration": 3},
            }));
            ["1", "2"].map(|revision| {
                world.put::<ReplicationController>(json!({
                    "apiVersion": "v1", "kind": "ReplicationController",
                    "metadata": {
                        "name": format!("app-{revision}"), "namespace": "default", "uid": format!("rc-{revision}"),
                        "annotations": {"openshift.io/deployment-config.latest-version": revision},
                        "ownerReferences": owned("apps.openshift.io/v1", "DeploymentConfig", "app", "d"),
                    },
                }));
                let set = owned("v1", "ReplicationController", &format!("app-{revision}"), &format!("rc-{revision}"));
                (set, json!({}))
            })
        }),
        ("DaemonSet", |world| {
            world.put::<DaemonSet>(json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet",
                "metadata": {"name": "app", "namespace": "default", "uid": "d", "generation": 2},
                "spec": {"selector": {"matchLabels": {"app": "app"}}, "template": {}},
                "status": {"observedGeneration": 2, "currentNumberScheduled": 1, "desiredNumberScheduled": 1,
                    "numberMisscheduled": 0, "numberReady": 1},
            }));
            [1, 2].map(|revision| {
                let labels = json!({"app": "app", "controller-revision-hash": format!("h{revision}")});
                world.put::<ControllerRevision>(json!({
                    "apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": revision,
                    "metadata": {
                        "name": format!("app-h{revision}"), "namespace": "default", "labels": labels,
                        "ownerReferences": owned("apps/v1", "DaemonSet", "app", "d"),
                    },
                }));
                let label = json!({"controller-revision-hash": format!("h{revision}")});
                (owned("apps/v1", "DaemonSet", "app", "d"), label)
            })
        }),
    ];
    for (kind, build) in kinds {
        let world = World::new();
        let [(old, old_labels), (new, new_labels)] = build(&world);
        // A DaemonSet's pods of one node: `kube-ipam.owner` makes their claim one of the pods of both controllers.
        for (name, node, owners, labels) in [("old", "n1", &old, old_labels), ("new", "n2", &new, new_labels)] {
            let pod = member(&world, name, node, owners.clone(), labels);
            let mut value = serde_json::to_value(pod).unwrap();
            value["metadata"]["annotations"]["kube-ipam.owner"] = "app".into();
            world.put::<Pod>(value);
            if name == "old" {
                world.add("n1", "old", "c1").await.unwrap();
            }
        }
        let (executor, _) = executor(&world);
        let case = examined(&executor, "new").await;
        let evicts = matches!(&case.decision, Decision::Evict { holder, .. } if holder.name == "old");
        assert!(evicts, "{kind}: {:?}", case.decision);
        assert_eq!(case.owner.unwrap().kind, kind);
    }
}

#[tokio::test]
async fn a_pod_that_shares_nothing_but_the_name_of_its_owner_is_never_evicted() {
    let world = rolling().await;
    // Both say that one owner has the address, and are not of one workload.
    for (name, node, owners) in
        [("bare", "n1", json!([])), ("new", "n2", owned("apps/v1", "ReplicaSet", "app-h2", "rs-h2"))]
    {
        let pod = member(&world, name, node, owners, json!({"pod-template-hash": "h2"}));
        let mut value = serde_json::to_value(pod).unwrap();
        value["metadata"]["annotations"] = json!({"kube-ipam.ip": "10.244.0.217", "kube-ipam.owner": "licence"});
        world.put::<Pod>(value);
    }
    world.add("n1", "bare", "c-bare").await.unwrap();
    let (executor, _) = executor(&world);
    assert_eq!(examined(&executor, "new").await.decision, Decision::Refuse(Refusal::NobodyToEvict));
    assert_eq!(examined(&executor, "bare").await.decision, Decision::Refuse(Refusal::Bare));
}

#[test]
fn only_pods_that_wait_and_whose_update_may_evict_are_looked_at() {
    let world = World::new();
    let (by_default, evictions) = executor(&world);
    let refusing = Handover::new(world.driver(), evictions, HandoverMode::Refuse);
    let member = |annotations: Value, status: Value| {
        let mut value = serde_json::to_value(member(&world, "new", "n2", json!([]), json!({}))).unwrap();
        value["metadata"]["annotations"] = annotations;
        value["status"] = status;
        common::object::<Pod>(value)
    };
    let pending = || json!({"phase": "Pending"});
    let cases = [
        (json!({"kube-ipam.ip": FIXED}), pending(), (true, false)),
        (json!({"kube-ipam.ip": FIXED, "kube-ipam.handover": "evict"}), pending(), (true, true)),
        (json!({"kube-ipam.ip": FIXED, "kube-ipam.handover": "refuse"}), pending(), (false, false)),
        (json!({"kube-ipam.ip": FIXED, "kube-ipam.handover": "maybe"}), pending(), (false, false)),
        (json!({}), pending(), (false, false)),
        (json!({"kube-ipam.ip": FIXED}), json!({"phase": "Pending", "podIP": FIXED}), (false, false)),
        (json!({"kube-ipam.ip": FIXED}), json!({"phase": "Failed"}), (false, false)),
    ];
    for (annotations, status, expected) in cases {
        let pod = member(annotations.clone(), status.clone());
        assert_eq!((by_default.concerns(&pod), refusing.concerns(&pod)), expected, "{annotations} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_put_on_record_ahead_of_a_container_waits_for_nobody() {
    let mut world = update().await;
    world.conf["ipam"]["waitSeconds"] = json!(0);
    for begun in [false, true] {
        if begun {
            keep_for(&world, "new", after(1000)).await;
            evict(&world, 40);
        }
        let (driver, net, started) = (world.driver(), world.net(), Instant::now());
        let uid = "uid-of-new";
        let attachment = common::attachment(&net, "n2", "new", "c2");
        let pod = attachment.pod.map(|pod| kube_ipam::driver::PodRef { uid: Some(uid), ..pod });
        let refused = driver.add(&kube_ipam::driver::Attachment { pod, ..attachment }.ahead()).await;
        assert!(matches!(refused, Err(Error::Impasse(_))), "{refused:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}

//! Servers that refuse, ask for patience, or are not there (faults 8, 9, 10).

use std::time::{Duration, Instant};

use e2e::embedded::apiserver::{Fault, Gate, Match};
use futures::future::join_all;
use serde_json::json;

use super::ground::{FIXED, Ground, assert_ok, assert_refused, bare, end};

const BLOCKS: &str = "ipamblocks.crd.projectcalico.org";

fn conflict() -> Fault {
    Fault::Status { code: 409, retry_after: None }
}

#[tokio::test]
async fn a_storm_of_conflicts_passes_or_ends_bounded_and_counts_stay_exact() {
    let ground = Ground::prepare().await;
    for name in ["a", "b"] {
        ground.random(name);
    }
    let storm = ground.server().faults().on(Match::on("update", BLOCKS), conflict(), 10);
    assert_ok(&ground.add("a", "a").await);
    assert_eq!(storm.hits(), 10);
    ground.assert_sound("ten conflicts").await;
    let storm = ground.server().faults().on(Match::on("update", BLOCKS), conflict(), usize::MAX);
    assert_refused(&ground.add("b", "b").await, 11, &["ipamblocks", "changed by somebody else"]);
    assert!(storm.hits() < 100, "{} attempts", storm.hits());
    storm.stop();
    assert_eq!(ground.leftovers("b").await, [""; 0]);
    ground.assert_sound("an endless storm").await;
}

#[tokio::test]
async fn forty_calls_at_once_on_two_nodes_share_one_block_and_counts_stay_exact() {
    let mut ground = Ground::prepare().await;
    ground.conf["ipam"]["rangeStart"] = json!("10.244.0.64");
    ground.conf["ipam"]["rangeEnd"] = json!("10.244.0.127");
    let names: Vec<(String, &str)> =
        (0..40).map(|n| (format!("p-{n}"), if n % 2 == 0 { "n1" } else { "n2" })).collect();
    names.iter().for_each(|(name, node)| ground.pod(name, node, json!({})));
    let adds = names.iter().map(|(name, node)| {
        // Nodes have no state directory in common.
        let state = ground.path(&format!("state-{node}"));
        let call = ground.call("ADD", name, name).on(node).with("/ipam/stateDir", json!(state));
        async move { call.run().await }
    });
    let outcomes = join_all(adds).await;
    let mut given: Vec<String> = outcomes.iter().flat_map(bare).collect();
    outcomes.iter().for_each(assert_ok);
    for ((name, _), outcome) in names.iter().zip(&outcomes) {
        ground.runs(name, outcome);
    }
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 40);
    ground.assert_sound("forty ADDs at once").await;
}

#[tokio::test]
async fn a_pause_that_the_api_server_asks_for_is_kept() {
    let ground = Ground::prepare().await;
    for (name, wanted) in [("read", Match::on("get", "pods")), ("write", Match::on("update", BLOCKS))] {
        ground.random(name);
        let mark = ground.server().calls().mark();
        ground.server().faults().on(wanted, Fault::Status { code: 429, retry_after: Some(1) }, 1);
        assert_ok(&ground.add(name, name).await);
        let calls = ground.server().calls().after(mark);
        let refused = calls.iter().find(|c| c.status == 429).unwrap();
        let again =
            calls.iter().find(|c| c.at > refused.at && (&c.verb, &c.resource) == (&refused.verb, &refused.resource));
        assert!(again.unwrap().at - refused.at >= Duration::from_secs(1), "{name}: {calls:#?}");
    }
    // Longer than an ADD may take: an error at once, and not one request more.
    ground.random("late");
    let busy = Fault::Status { code: 429, retry_after: Some(60) };
    let planned = ground.server().faults().on(Match::on("update", BLOCKS), busy, usize::MAX);
    let mark = ground.server().calls().mark();
    assert_refused(&ground.add("late", "late").await, 11, &["asks to wait", "60s"]);
    assert_eq!(planned.hits(), 1);
    assert_eq!(ground.server().calls().after(mark).last().unwrap().status, 429);
    planned.stop();
    assert_ok(&ground.del("late", "late").await);
    assert_eq!(ground.leftovers("late").await, [""; 0]);
}

#[tokio::test]
async fn without_the_api_server_nothing_is_given_and_del_is_left_to_be_tried_again() {
    let ground = Ground::prepare().await;
    ground.random("r");
    ground.fixed("f");
    assert_ok(&ground.add("r", "r").await);
    let before = ground.state().await;
    ground.server().down();
    for (pod, container) in [("r", "again"), ("f", "f")] {
        assert_refused(&ground.add(pod, container).await, 11, &["no clear answer", "tries again"]);
    }
    assert_refused(&ground.call("STATUS", "", "").run().await, 50, &["no clear answer"]);
    assert_refused(&ground.del("r", "r").await, 11, &["no clear answer"]);
    ground.server().up().unwrap();
    assert_eq!(ground.state().await, before);
    assert_ok(&ground.del("r", "r").await);
    assert_ok(&ground.add("f", "f").await);
    assert_ok(&ground.call("STATUS", "", "").run().await);
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_given_up_after_one_round() {
    let ground = Ground::prepare().await;
    ground.fixed("f");
    let gate = Gate::new();
    let held = ground.server().faults().on(Match::any(), Fault::Hold(gate.clone()), usize::MAX);
    let before = ground.state().await;
    assert_refused(&ground.add("f", "f").await, 11, &["no answer from the API server within"]);
    // All side by side: a second round would be a second wait.
    assert!(held.hits() <= 8, "{} requests", held.hits());
    ground.server().faults().clear();
    gate.open();
    assert_eq!(ground.state().await, before);
}

#[tokio::test]
async fn without_etcd_random_addresses_are_given_and_fixed_ones_are_not() {
    let ground = Ground::prepare().await;
    for name in ["held-1", "r-1", "r-2"] {
        ground.random(name);
    }
    ground.fixed("f");
    ground.pod("held-2", "n1", json!({"kube-ipam.ip": "10.244.0.217"}));
    assert_ok(&ground.add("held-2", "held").await);
    let etcd = ground.cluster.etcd().unwrap();
    for (pod, paused) in [("r-1", true), ("r-2", false)] {
        if paused {
            etcd.pause().unwrap()
        } else {
            etcd.kill()
        }
        let before = ground.server().revision();
        assert_refused(&ground.add("f", "f").await, 11, &["claim", FIXED]);
        assert_eq!(ground.server().revision(), before, "an ADD that failed has written");
        assert_refused(&ground.call("STATUS", "", "").run().await, 50, &["claims"]);
        assert_refused(&ground.del("held-2", "held").await, 11, &["claim"]);
        assert_ok(&ground.add(pod, pod).await);
        assert_ok(&ground.del(pod, pod).await);
        if paused { etcd.resume().unwrap() } else { etcd.restart().unwrap() }
    }
    assert_ok(&ground.del("held-2", "held").await);
    assert_eq!(ground.leftovers("held").await, [""; 0]);
    assert_ok(&ground.add("f", "f").await);
    ground.assert_sound("etcd back").await;
}

#[tokio::test]
async fn a_del_that_overtakes_its_add_leaves_nothing() {
    let ground = Ground::prepare().await;
    ground.fixed("f");
    let gate = Gate::new();
    ground.server().faults().on(Match::on("update", BLOCKS), Fault::Hold(gate.clone()), 1);
    let started = Instant::now();
    let add = ground.call("ADD", "f", "f").start().await;
    gate.arrival().await;
    let del = ground.call("DEL", "f", "f").start().await;
    // Its mark is what the ADD looks for before it answers.
    while !ground.path("state/k8s-pod-network.f.deleted").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gate.open();
    assert_refused(&end(add, started).await, 11, &["deleted this container"]);
    assert_ok(&end(del, started).await);
    assert_eq!(ground.leftovers("f").await, [""; 0]);
    assert!(ground.claims().await.is_empty());
    ground.assert_sound("DEL beside ADD").await;
}

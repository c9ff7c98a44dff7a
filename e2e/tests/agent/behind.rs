//! DELs that are answered before their releases are on record.

use std::time::Duration;

use e2e::embedded::apiserver::{Fault, Gate, Match};
use serde_json::json;
use tokio::process::Command;

use super::ground::{FIXED, Ground, assert_ok, bare, end};
use super::process::{Agent, until};
use super::seen::{get, status};

const BLOCKS: &str = "ipamblocks.crd.projectcalico.org";

/// A refusal of a write, after which an attempt ends at once.
fn refusal() -> Fault {
    Fault::Status { code: 403, retry_after: None }
}

#[tokio::test]
async fn a_del_is_answered_once_it_is_noted_and_shown_until_it_is_on_record() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    ground.random("r-1");
    let given = bare(&ground.add_pod("r-1", "c").await);
    let gate = Gate::default();
    let held = ground.server().faults().on(Match::on("update", BLOCKS), Fault::Hold(gate.clone()), 1);
    assert_ok(&ground.del_pod("r-1", "c").await);
    assert_eq!((ground.recorded("r-1"), ground.owed()), (given, 1));
    let shown: serde_json::Value = serde_json::from_slice(&status(&ground, "json").await.stdout).unwrap();
    assert_eq!(shown["queues"]["pendingReleases"], 1, "{shown}");
    assert!(get(&ground, "/metrics").1.contains("kube_ipam_pending_releases 1"));
    gate.arrival().await;
    held.stop();
    gate.open();
    ground.settled().await;
    assert_eq!(ground.recorded("r-1"), [""; 0]);
    ground.assert_sound("a DEL that was answered early").await;
    drop(agent);
}

#[tokio::test]
async fn what_a_killed_agent_owes_the_next_one_pays() {
    let ground = Ground::prepare().await;
    for (take_ahead, pod) in [(false, "f-1"), (true, "f-2"), (false, "r-1"), (true, "r-2")] {
        let agent = Agent::start(&ground, take_ahead).await;
        ground.either(pod);
        assert_ok(&ground.add_pod(pod, pod).await);
        let refusing = ground.server().faults().on(Match::on("update", BLOCKS), refusal(), usize::MAX);
        assert_ok(&ground.del_pod(pod, pod).await);
        agent.kill().await;
        refusing.stop();
        assert_eq!((ground.recorded(pod).len(), ground.owed()), (1, 1), "{pod}");
        let agent = Agent::start(&ground, take_ahead).await;
        ground.settled().await;
        assert_eq!(ground.recorded(pod), [""; 0], "{pod}");
        assert!(ground.claims().await.iter().all(|claim| claim.holder.is_none()), "{pod}");
        ground.remove(pod).await;
        agent.stop().await;
    }
    ground.assert_sound("four agents killed").await;
}

#[tokio::test]
async fn a_release_that_fails_is_told_and_tried_again_until_it_is_through() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    ground.fixed("f-1");
    assert_ok(&ground.add_pod("f-1", "c").await);
    let refusing = ground.server().faults().on(Match::on("update", BLOCKS), refusal(), usize::MAX);
    assert_ok(&ground.del_pod("f-1", "c").await);
    let failed = async || (!get(&ground, "/metrics").1.contains("kube_ipam_failed_releases_total 0")).then_some(());
    until("a failure is counted", failed).await;
    let shown: serde_json::Value = serde_json::from_slice(&status(&ground, "json").await.stdout).unwrap();
    assert_eq!(shown["lastErrors"][0]["pod"], "default/f-1", "{shown}");
    // A runtime that repeats its DEL, as they do, finds it noted.
    assert_ok(&ground.del_pod("f-1", "c").await);
    refusing.stop();
    ground.settled().await;
    assert_eq!(ground.recorded("f-1"), [""; 0]);
    assert!(ground.claims().await.iter().all(|claim| claim.holder.is_none()));
    ground.assert_sound("a release in the second attempt").await;
    drop(agent);
}

#[tokio::test]
async fn an_agent_that_stops_leaves_what_it_cannot_release_to_the_plugin_or_the_next_one() {
    let ground = Ground::prepare().await;
    for container in ["c", "d"] {
        let agent = Agent::start(&ground, false).await;
        ground.random(container);
        assert_ok(&ground.add_pod(container, container).await);
        let refusing = ground.server().faults().on(Match::on("update", BLOCKS), refusal(), usize::MAX);
        assert_ok(&ground.del_pod(container, container).await);
        agent.stop().await;
        assert_eq!(ground.owed(), 1);
        refusing.stop();
    }
    assert_ok(&ground.del_pod("c", "c").await);
    assert_eq!((ground.recorded("c"), ground.owed()), (vec![], 1), "the plugin did it by itself");
    let agent = Agent::start(&ground, false).await;
    ground.settled().await;
    assert_eq!(ground.recorded("d"), [""; 0]);
    drop(agent);
}

#[tokio::test]
async fn an_add_of_a_container_whose_release_is_owed_keeps_the_address() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    for pod in ["r-1", "f-1"] {
        ground.either(pod);
        let given = bare(&ground.add_pod(pod, pod).await);
        let refusing = ground.server().faults().on(Match::on("update", BLOCKS), refusal(), usize::MAX);
        assert_ok(&ground.del_pod(pod, pod).await);
        let told = format!("\"container\":\"{pod}\"");
        let failed = |line: &str| line.contains("not on record yet") && line.contains(&told);
        until("it has failed", async || agent.log().lines().any(failed).then_some(())).await;
        refusing.stop();
        let again = ground.add_pod(pod, pod).await;
        assert_ok(&again);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((ground.recorded(pod), ground.owed()), (bare(&again), 0), "{pod}");
        if pod == "f-1" {
            assert_eq!(given, [FIXED]);
        }
        ground.runs(pod, &again);
    }
    ground.assert_sound("two containers that came back").await;
}

#[tokio::test]
async fn a_later_sandbox_takes_the_pods_address_on_while_the_earlier_ones_release_fails() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, true).await;
    for pod in ["r-1", "f-1"] {
        ground.either(pod);
        until("it is taken ahead", async || (!ground.recorded(pod).is_empty()).then_some(())).await;
        let first = ground.add_pod(pod, &format!("one-{pod}")).await;
        let refusing = ground.server().faults().on(Match::on("update", BLOCKS), refusal(), usize::MAX);
        assert_ok(&ground.del_pod(pod, &format!("one-{pod}")).await);
        let failed = |line: &str| line.contains("not on record yet") && line.contains(&format!("one-{pod}"));
        until("it has failed", async || agent.log().lines().any(failed).then_some(())).await;
        refusing.stop();
        let second = ground.add_pod(pod, &format!("two-{pod}")).await;
        assert_ok(&second);
        ground.settled().await;
        assert_eq!(ground.recorded(pod), bare(&second), "{pod}");
        assert!(pod != "f-1" || bare(&second) == bare(&first));
        ground.runs(pod, &second);
        ground.assert_sound("a release of an earlier sandbox").await;
        assert_ok(&ground.del_pod(pod, &format!("two-{pod}")).await);
        ground.settled().await;
        assert_eq!(ground.recorded(pod), [""; 0], "{pod}");
        ground.remove(pod).await;
    }
}

/// The next sandbox asks before the earlier one's release is on record, and gets an address of its own. From then on
/// what the agent remembers of the first must not be answered, not even after the mark of that release was swept.
#[tokio::test]
async fn an_address_that_is_being_released_is_not_answered_from_memory_later() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    until("it is taken ahead", async || (!ground.recorded("r-1").is_empty()).then_some(())).await;
    let first = bare(&ground.add_pod("r-1", "one").await);
    let gate = Gate::default();
    let held = ground.server().faults().on(Match::on("update", BLOCKS), Fault::Hold(gate.clone()), 1);
    assert_ok(&ground.del_pod("r-1", "one").await);
    gate.arrival().await;
    let (call, started) = (ground.of_pod("ADD", "r-1", "two"), std::time::Instant::now());
    let waiting = call.start().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    held.stop();
    gate.open();
    let second = end(waiting, started).await;
    assert_ok(&second);
    assert_ne!(bare(&second), first, "an address that was released goes to the end of the queue");
    std::fs::remove_file(ground.path(&format!("state/{}.deleted", ground.uid("r-1")))).unwrap();
    let third = bare(&ground.add_pod("r-1", "three").await);
    let recorded = ground.recorded("r-1");
    assert!(third.iter().all(|address| recorded.contains(address)), "{third:?} of {recorded:?}");
    drop(agent);
}

#[tokio::test]
async fn an_add_on_a_full_node_takes_what_is_about_to_be_free_and_no_further_block() {
    let mut ground = Ground::prepare().await;
    // One block of 64, of which 4 may be given.
    ground.conf["ipam"]["rangeEnd"] = json!("10.244.0.13");
    ground.conf["ipam"]["rangeStart"] = json!("10.244.0.10");
    let agent = Agent::start(&ground, false).await;
    for n in 0..6 {
        ground.random(&format!("p-{n}"));
    }
    for n in 0..4 {
        assert_ok(&ground.add_pod(&format!("p-{n}"), &format!("p-{n}")).await);
    }
    for (old, new) in [("p-0", "p-4"), ("p-1", "p-5")] {
        let slow = Fault::Delay(Duration::from_millis(300));
        let held = ground.server().faults().on(Match::on("update", BLOCKS), slow, 1);
        let had = ground.recorded(old);
        assert_ok(&ground.del_pod(old, old).await);
        assert_eq!(ground.recorded(old), had, "the release is slow");
        let added = ground.add_pod(new, new).await;
        assert_ok(&added);
        assert_eq!(bare(&added), had);
        held.stop();
    }
    drop(agent);
}

#[tokio::test]
async fn without_a_note_or_by_the_flag_a_del_is_answered_when_it_is_on_record() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    ground.random("r-1");
    assert_ok(&ground.add_pod("r-1", "c").await);
    // Nothing can take this name.
    std::fs::create_dir_all(ground.path("state/k8s-pod-network.c.eth0.release/full")).unwrap();
    assert_ok(&ground.del_pod("r-1", "c").await);
    assert_eq!(ground.recorded("r-1"), [""; 0]);
    std::fs::remove_dir_all(ground.path("state/k8s-pod-network.c.eth0.release")).unwrap();
    agent.stop().await;

    let at_once = |command: &mut Command| {
        command.args(["--release-behind", "false"]);
    };
    let agent = Agent::start_with(&ground, false, at_once).await;
    assert_ok(&ground.add_pod("r-1", "d").await);
    let refusing = ground.server().faults().on(Match::on("update", BLOCKS), refusal(), usize::MAX);
    assert!(!ground.del_pod("r-1", "d").await.is_ok());
    refusing.stop();
    assert_ok(&ground.del_pod("r-1", "d").await);
    assert_eq!((ground.recorded("r-1"), ground.owed()), (vec![], 0));
    drop(agent);
}

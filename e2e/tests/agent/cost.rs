//! What a call costs when the agent answers it: counted at the API server.

use futures::future::join_all;

use super::ground::{FIXED, Ground, assert_ok, bare};
use super::process::{Agent, until};

#[tokio::test]
async fn on_a_warm_node_an_add_costs_no_read_and_two_writes() {
    let ground = Ground::over_tls().await;
    ground.random("r-1");
    ground.fixed("f-1");
    let agent = Agent::start(&ground, false).await;
    for pod in ["r-1", "f-1"] {
        assert_ok(&ground.add_pod(pod, "first").await);
        ground.released(pod, "first").await;
    }
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    for pod in ["r-1", "f-1"] {
        let (outcome, made) = ground.requests(ground.add_pod(pod, &format!("c-{pod}"))).await;
        assert_ok(&outcome);
        assert_eq!(made, ["create ipamhandles", "update ipamblocks"], "{pod}");
        assert_eq!(ground.recorded(pod), bare(&outcome));
    }
    ground.assert_sound("two ADDs by the agent").await;
    for pod in ["r-1", "f-1"] {
        let container = format!("c-{pod}");
        let ((), made) = ground.requests(ground.released(pod, &container)).await;
        let writes: Vec<_> = made.iter().filter(|m| !m.starts_with("get")).collect();
        assert!(writes.contains(&&"update ipamblocks".to_owned()), "{made:?}");
        assert!(made.iter().filter(|m| m.starts_with("get")).count() <= 1, "{made:?}");
        assert!(ground.recorded(pod).is_empty());
    }
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    assert_eq!((agent.answered("ADD"), agent.answered("DEL")), (4, 4));
    assert_eq!(ground.log(), "", "the plugin itself had nothing to do");
    ground.assert_sound("four DELs").await;
}

#[tokio::test]
async fn a_hundred_adds_at_once_cost_a_hundred_handles_and_a_handful_of_block_writes() {
    let ground = Ground::over_tls().await;
    let names: Vec<String> = (0..100).map(|n| format!("p-{n}")).collect();
    names.iter().for_each(|name| ground.random(name));
    let agent = Agent::start(&ground, false).await;
    let adds = async || join_all(names.iter().map(|name| ground.add_pod(name, name))).await;
    let (outcomes, made) = ground.requests(adds()).await;
    outcomes.iter().for_each(assert_ok);
    let count = |what: &str| made.iter().filter(|m| *m == what).count();
    assert_eq!(count("create ipamhandles"), 100);
    // A block holds 64, so some found the first one full after they had queued for it.
    assert!(count("update ipamblocks") <= 40, "{} block writes", count("update ipamblocks"));
    let mut given: Vec<String> = outcomes.iter().flat_map(bare).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 100);
    for (name, outcome) in names.iter().zip(&outcomes) {
        ground.runs(name, outcome);
    }
    ground.assert_sound("a hundred ADDs").await;
    let dels = async || drop(join_all(names.iter().map(|name| ground.released(name, name))).await);
    let ((), made) = ground.requests(dels()).await;
    let updates = made.iter().filter(|m| *m == "update ipamblocks").count();
    assert!(updates <= 60, "{updates} block writes");
    assert!(ground.entries().is_empty());
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    drop(agent);
}

#[tokio::test]
async fn a_waiting_add_is_answered_when_the_old_pods_del_is_through() {
    let ground = Ground::over_tls().await;
    ground.fixed("f-1");
    let agent = Agent::start(&ground, false).await;
    assert_ok(&ground.add_pod("f-1", "old").await);
    // The next pod of the Deployment waits on another node, in direct mode.
    ground.pod("f-2", "n2", serde_json::json!({"kube-ipam.ip": FIXED}));
    let waiting =
        ground.of_pod("ADD", "f-2", "new").on("n2").with("/ipam/stateDir", serde_json::json!(ground.path("n2")));
    let started = std::time::Instant::now();
    let waiting = waiting.start().await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_ok(&ground.del_pod("f-1", "old").await);
    let outcome = super::ground::end(waiting, started).await;
    assert_ok(&outcome);
    assert_eq!(bare(&outcome), [FIXED]);
    assert_eq!(agent.answered("DEL"), 1);
}

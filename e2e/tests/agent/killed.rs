//! SIGKILL at random moments under load: for the agent, and for plugins that wait for it.

use std::time::{Duration, Instant};

use e2e::embedded::apiserver::{Fault, Gate, Match};
use futures::future::join_all;

use super::ground::{FIXED, Ground, assert_ok, bare, end};
use super::process::{Agent, until};

const ROUNDS: usize = 12;
const PODS: usize = 10;

/// A moment from 0 to `most`.
fn moment(most: Duration) -> Duration {
    most.mul_f64(rand::random::<f64>())
}

async fn killed_under_load(take_ahead: bool) {
    let ground = Ground::prepare().await;
    let mut agent = Agent::start(&ground, take_ahead).await;
    for round in 0..ROUNDS {
        let names: Vec<String> =
            (0..PODS).map(|n| if n == 0 { "f-1".to_owned() } else { format!("p{round}-{n}") }).collect();
        let containers: Vec<(&String, String)> = names.iter().map(|n| (n, format!("c-{round}-{n}"))).collect();
        let killer = async {
            tokio::time::sleep(moment(Duration::from_millis(120))).await;
            agent.kill().await;
        };
        let adding = async {
            for name in &names {
                if name == "f-1" {
                    ground.pod(name, "n1", serde_json::json!({"kube-ipam.ip": FIXED}))
                } else {
                    ground.random(name)
                }
            }
            join_all(containers.iter().map(|(name, container)| ground.add_pod(name, container))).await
        };
        let ((), outcomes) = tokio::join!(killer, adding);
        let mut given = Vec::new();
        for (name, outcome) in names.iter().zip(&outcomes) {
            assert!(outcome.is_ok(), "round {round}, {name}: {outcome:?}");
            given.extend(bare(outcome));
            for address in bare(outcome) {
                assert!(ground.recorded(name).contains(&address), "round {round}: {name} has {address}");
            }
            ground.runs(name, outcome);
        }
        given.sort();
        given.dedup();
        assert_eq!(given.len(), PODS, "round {round}");
        let second = Agent::start(&ground, take_ahead).await;
        let killer = async {
            tokio::time::sleep(moment(Duration::from_millis(80))).await;
            second.kill().await;
        };
        let deleting = join_all(containers.iter().map(|(name, container)| ground.del_pod(name, container)));
        let ((), outcomes) = tokio::join!(killer, deleting);
        outcomes.iter().for_each(assert_ok);
        agent = Agent::start(&ground, take_ahead).await;
        ground.settled().await;
        for name in &names {
            assert_eq!(ground.recorded(name), [""; 0], "round {round}: {name} keeps an address after its DEL");
            ground.remove(name).await;
        }
    }
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    assert!(ground.claims().await.iter().all(|c| c.holder.is_none()));
    until("no block is half claimed", async || ground.half_claimed().is_empty().then_some(())).await;
    ground.assert_sound("many kills").await;
    drop(agent);
}

#[tokio::test]
async fn an_agent_killed_at_random_moments_under_load_loses_nothing() {
    killed_under_load(false).await;
}

#[tokio::test]
async fn an_agent_killed_while_it_takes_addresses_ahead_loses_nothing() {
    killed_under_load(true).await;
}

#[tokio::test]
async fn a_plugin_killed_while_it_waits_for_the_agent_leaves_nothing_even_without_a_del() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    ground.fixed("f-1");
    ground.random("r-1");
    for (pod, verb, resource) in [
        ("r-1", "create", "ipamhandles.crd.projectcalico.org"),
        ("r-1", "update", "ipamblocks.crd.projectcalico.org"),
        ("f-1", "create", "ipamhandles.crd.projectcalico.org"),
        ("f-1", "update", "ipamblocks.crd.projectcalico.org"),
    ] {
        let gate = Gate::default();
        let held = ground.server().faults().on(Match::on(verb, resource), Fault::HoldAfterCommit(gate.clone()), 1);
        let mut add = ground.of_pod("ADD", pod, "killed").start().await;
        gate.arrival().await;
        add.kill().await.unwrap();
        held.stop();
        gate.open();
        until("it is given back", async || ground.handle_ids().is_empty().then_some(())).await;
        assert_eq!(ground.recorded(pod), [""; 0], "{pod}: {verb} {resource}");
        assert!(ground.claims().await.iter().all(|c| c.holder.is_none()));
        ground.assert_sound("a killed plugin").await;
    }
    drop(agent);
}

#[tokio::test]
async fn a_del_that_overtakes_its_add_at_the_agent_leaves_nothing() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    for n in 0..20 {
        let name = format!("p-{n}");
        ground.random(&name);
        let started = Instant::now();
        let add = ground.of_pod("ADD", &name, &name).start().await;
        tokio::time::sleep(moment(Duration::from_millis(15))).await;
        let del = ground.of_pod("DEL", &name, &name).start().await;
        let (added, deleted) = tokio::join!(end(add, started), end(del, started));
        assert_ok(&deleted);
        // An ADD that began after its DEL had ended is a new life of the container.
        if added.is_ok() {
            assert_ok(&ground.del_pod(&name, &name).await);
        }
        ground.settled().await;
        assert!(ground.recorded(&name).is_empty(), "{added:?}");
    }
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    ground.assert_sound("twenty overtaking DELs").await;
    drop(agent);
}

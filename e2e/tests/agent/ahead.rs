//! Addresses on record before a container asks.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use kube_ipam::claim::Claim;
use kube_ipam::protocol::{Reply, line};

use super::ground::{Ground, assert_ok, bare};
use super::process::{Agent, until};

async fn taken(ground: &Ground, pod: &str) -> Vec<String> {
    until("the address is taken ahead", async || Some(ground.recorded(pod)).filter(|r| !r.is_empty())).await
}

async fn holder(ground: &Ground) -> Option<Claim> {
    ground.claims().await.into_iter().find(|c| c.holder.is_some())
}

#[tokio::test]
async fn a_bound_pods_address_is_on_record_at_once_and_its_add_costs_no_request() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    ground.fixed("f-1");
    for pod in ["r-1", "f-1"] {
        let told = format!("\"pod\":\"{pod}\"");
        let is_told = |line: &str| line.contains("\"taken ahead\"") && line.contains(&told);
        until("both are told", async || agent.log().lines().any(is_told).then_some(())).await;
    }
    for pod in ["r-1", "f-1"] {
        let recorded = taken(&ground, pod).await;
        until("its handle is the pod's", async || {
            ground.handle_ids().contains(&format!("default.{pod}")).then_some(())
        })
        .await;
        let (outcome, made) = ground.requests(ground.add_pod(pod, &format!("c-{pod}"))).await;
        assert_ok(&outcome);
        assert_eq!(made, [""; 0], "{pod}");
        assert_eq!(bare(&outcome), recorded);
        ground.runs(pod, &outcome);
    }
    let named = async || holder(&ground).await.filter(|c| c.holder.as_ref().unwrap().container_id == "c-f-1");
    until("the claim names its container", named).await;
    ground.assert_sound("two addresses taken ahead").await;
    for pod in ["r-1", "f-1"] {
        ground.released(pod, &format!("c-{pod}")).await;
        assert!(ground.recorded(pod).is_empty());
    }
    assert!(holder(&ground).await.is_none());
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    assert_eq!(ground.log(), "", "the plugin itself had nothing to do");
}

#[tokio::test]
async fn what_is_known_at_once_is_said_in_one_piece() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    until("it is told", async || agent.log().contains("\"taken ahead\"").then_some(())).await;
    for verb in ["ADD", "DEL"] {
        let mut stream = UnixStream::connect(ground.path("state/agent.sock")).unwrap();
        stream.write_all(&line(&ground.of_pod(verb, "r-1", "c").request())).unwrap();
        let mut told = [0; 4096];
        let length = stream.read(&mut told).unwrap();
        let lines = told[..length].split_inclusive(|byte| *byte == b'\n').map(|l| serde_json::from_slice(l).unwrap());
        let replies: Vec<Reply> = lines.collect();
        assert!(matches!(replies[..], [Reply::Accepted {}, Reply::Answer(_)]), "{verb}: {replies:?}");
    }
}

#[tokio::test]
async fn a_later_sandbox_has_the_address_too_and_a_stale_del_changes_nothing() {
    let ground = Ground::over_tls().await;
    let mut agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    ground.fixed("f-1");
    for pod in ["r-1", "f-1"] {
        let recorded = taken(&ground, pod).await;
        let first = ground.add_pod(pod, &format!("one-{pod}")).await;
        assert_eq!(bare(&first), recorded);
        if pod == "f-1" {
            let named = async || holder(&ground).await.filter(|c| c.holder.as_ref().unwrap().container_id == "one-f-1");
            until("the claim names the first sandbox", named).await;
        }
        // The agent is killed and starts anew: what it must know is on tmpfs.
        agent.kill().await;
        agent = Agent::start(&ground, true).await;
        let second = ground.add_pod(pod, &format!("two-{pod}")).await;
        assert_eq!(bare(&second), recorded, "{pod}: {second:?}");
        ground.released(pod, &format!("one-{pod}")).await;
        assert_eq!(ground.recorded(pod), recorded, "{pod}: a stale DEL took the address");
        ground.runs(pod, &second);
    }
    let named = async || holder(&ground).await.filter(|c| c.holder.as_ref().unwrap().container_id == "two-f-1");
    until("the claim names the second sandbox", named).await;
    // The same in direct mode, after the agent is gone.
    agent.kill().await;
    for pod in ["r-1", "f-1"] {
        let recorded = ground.recorded(pod);
        let third = ground.add_pod(pod, &format!("three-{pod}")).await;
        assert_eq!(bare(&third), recorded, "{pod}: {third:?}");
        ground.released(pod, &format!("two-{pod}")).await;
        assert_eq!(ground.recorded(pod), recorded, "{pod}: a stale DEL took the address");
        ground.released(pod, &format!("three-{pod}")).await;
        assert!(ground.recorded(pod).is_empty());
    }
    assert!(holder(&ground).await.is_none());
}

#[tokio::test]
async fn what_no_sandbox_took_on_is_given_back() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    for pod in ["r-1", "f-1"] {
        ground.either(pod);
        taken(&ground, pod).await;
        until("it is told", async || agent.log().contains(&format!("\"pod\":\"{pod}\"")).then_some(())).await;
        ground.remove(pod).await;
        until("it is given back", async || ground.recorded(pod).is_empty().then_some(())).await;
    }
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    until("nobody holds it", async || holder(&ground).await.is_none().then_some(())).await;
    ground.assert_sound("two pods that never started").await;
}

#[tokio::test]
async fn an_agent_finds_what_an_earlier_one_took_for_a_pod_that_is_gone_since() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    ground.random("r-2");
    taken(&ground, "r-1").await;
    let kept = taken(&ground, "r-2").await;
    agent.kill().await;
    ground.remove("r-1").await;
    let agent = Agent::start(&ground, true).await;
    until("it is given back", async || ground.recorded("r-1").is_empty().then_some(())).await;
    assert_eq!(bare(&ground.add_pod("r-2", "c").await), kept);
    assert_eq!(agent.answered("ADD"), 1);
    ground.assert_sound("an agent that was killed").await;
}

#[tokio::test]
async fn pods_of_the_host_and_of_other_networks_get_nothing_ahead() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    let host = serde_json::json!({
        "metadata": {"name": "host-1"}, "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"name": "main", "image": "none"}]},
    });
    ground.server().create(super::ground::PODS, &host).unwrap();
    ground.pod("other-1", "n1", serde_json::json!({"v1.multus-cni.io/default-network": "default/macvlan"}));
    ground.pod("static-1", "n1", serde_json::json!({"kubernetes.io/config.mirror": "0123"}));
    ground.pod("elsewhere-1", "n2", serde_json::json!({}));
    ground.random("last-1");
    taken(&ground, "last-1").await;
    for pod in ["host-1", "other-1", "static-1", "elsewhere-1"] {
        assert_eq!(ground.recorded(pod), [""; 0], "{pod}");
    }
    drop(agent);
}

#[tokio::test]
async fn a_pod_of_the_same_name_gets_an_address_of_its_own_while_the_old_one_lets_go() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("web-0");
    let first = taken(&ground, "web-0").await;
    assert_eq!(bare(&ground.add_pod("web-0", "old").await), first);
    let old_del = ground.of_pod("DEL", "web-0", "old");
    ground.remove("web-0").await;
    ground.random("web-0");
    let second = ground.add_pod("web-0", "new").await;
    assert_ok(&second);
    assert_ne!(bare(&second), first);
    // The old pod's DEL comes late; it names the old pod's UID.
    assert_ok(&old_del.run().await);
    ground.settled().await;
    assert_eq!(ground.recorded("web-0"), bare(&second));
    ground.runs("web-0", &second);
    ground.released("web-0", "new").await;
    assert!(ground.recorded("web-0").is_empty());
    drop(agent);
}

#[tokio::test]
async fn an_address_taken_ahead_for_a_pod_that_got_another_is_given_back() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    let ahead = taken(&ground, "r-1").await;
    // Killed before the ADD: direct mode does not know of it.
    agent.kill().await;
    let outcome = ground.add_pod("r-1", "c").await;
    assert_ok(&outcome);
    assert_ne!(bare(&outcome), ahead);
    ground.runs("r-1", &outcome);
    let agent = Agent::start(&ground, true).await;
    until("only the one it has is left", async || (ground.recorded("r-1") == bare(&outcome)).then_some(())).await;
    ground.assert_sound("an address too many").await;
    ground.released("r-1", "c").await;
    assert!(ground.recorded("r-1").is_empty());
    drop(agent);
}

#[tokio::test]
async fn a_pod_keeps_the_address_it_says_it_has_even_if_the_notes_are_lost() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    let ahead = taken(&ground, "r-1").await;
    let outcome = ground.add_pod("r-1", "c").await;
    assert_eq!(bare(&outcome), ahead);
    ground.runs("r-1", &outcome);
    agent.kill().await;
    std::fs::remove_dir_all(ground.path("state")).unwrap();
    std::fs::create_dir(ground.path("state")).unwrap();
    // Another pod's leftover shows that the new agent has looked.
    let agent = Agent::start(&ground, true).await;
    ground.random("r-2");
    taken(&ground, "r-2").await;
    assert_eq!(ground.recorded("r-1"), ahead);
    ground.released("r-1", "c").await;
    assert!(ground.recorded("r-1").is_empty());
    drop(agent);
}

#[tokio::test]
async fn the_next_write_names_the_container_so_that_a_stale_del_is_known_without_the_notes() {
    let ground = Ground::over_tls().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    let ahead = taken(&ground, "r-1").await;
    assert_eq!(bare(&ground.add_pod("r-1", "first").await), ahead);
    let outcome = ground.add_pod("r-1", "second").await;
    assert_eq!(bare(&outcome), ahead);
    ground.runs("r-1", &outcome);
    let named =
        || ground.entries().into_iter().filter_map(|(_, a)| a.secondary("kube-ipam.container").map(str::to_owned));
    assert_eq!(named().count(), 0, "an answer out of memory writes nothing");
    ground.random("r-2");
    taken(&ground, "r-2").await;
    assert_eq!(named().collect::<Vec<_>>(), ["second"]);
    agent.kill().await;
    std::fs::remove_dir_all(ground.path("state")).unwrap();
    std::fs::create_dir(ground.path("state")).unwrap();
    let agent = Agent::start(&ground, true).await;
    ground.released("r-1", "first").await;
    assert_eq!(ground.recorded("r-1"), ahead);
    ground.assert_sound("a stale DEL").await;
    ground.released("r-1", "second").await;
    assert!(ground.recorded("r-1").is_empty());
    drop(agent);
}

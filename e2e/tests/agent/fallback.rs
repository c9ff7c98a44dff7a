//! Without an agent, with a dead or hung one, or with one of another version, the plugin goes on by itself.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use super::ground::{Ground, assert_ok, assert_refused, bare, end};
use super::process::{Agent, until};

/// Somebody who answers every request with these lines, and then hangs up.
fn impostor(socket: &Path, replies: &'static [&'static str]) -> tokio::task::JoinHandle<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(socket.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (read, mut write) = stream.into_split();
            let mut request = Vec::new();
            BufReader::new(read).read_until(b'\n', &mut request).await.unwrap();
            for reply in replies {
                write.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    })
}

#[tokio::test]
async fn replies_that_cannot_be_understood_send_the_plugin_into_direct_mode() {
    let ground = Ground::prepare().await;
    let cases: [(&str, &[&str]); 7] = [
        ("declined", &["{\"declined\":{\"reason\":\"protocol 1 is not spoken here any more\"}}\n"]),
        ("garbage", &["HTTP/1.1 400 Bad Request\r\n\r\n"]),
        ("later", &["{\"accepted\":{}}\n", "{\"answerV2\":{\"ips\":[]}}\n"]),
        ("cut-off", &["{\"accepted\":{}}\n", "{\"answer\":{\"ips\""]),
        ("silent", &[]),
        ("accepted-only", &["{\"accepted\":{}}\n"]),
        ("twice", &["{\"accepted\":{}}\n", "{\"accepted\":{}}\n"]),
    ];
    for (name, replies) in cases {
        ground.random(name);
        let task = impostor(&ground.path("state/agent.sock"), replies);
        let outcome = ground.add_pod(name, name).await;
        assert_ok(&outcome);
        assert_eq!(ground.recorded(name), bare(&outcome), "{name}");
        ground.runs(name, &outcome);
        task.abort();
    }
    assert!(ground.log().contains("going on in direct mode"));
    ground.assert_sound("seven agents that are none").await;
}

#[tokio::test]
async fn an_answer_with_fields_of_a_later_release_is_understood() {
    let ground = Ground::prepare().await;
    ground.random("a");
    let reply =
        "{\"answer\":{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.244.0.77/16\"}]},\"cost\":{\"reads\":0}}\n";
    let task =
        impostor(&ground.path("state/agent.sock"), Box::leak(Box::new(["{\"accepted\":{\"queue\":3}}\n", reply])));
    let outcome = ground.add_pod("a", "a").await;
    // An enum of replies takes one; what cannot be read as one is not guessed at.
    assert_ok(&outcome);
    assert_eq!(ground.recorded("a").is_empty(), bare(&outcome) == ["10.244.0.77"]);
    task.abort();
}

#[tokio::test]
async fn a_dead_agents_socket_and_a_stopped_agent_cost_a_fallback_and_nothing_else() {
    let ground = Ground::prepare().await;
    for pod in ["a", "b", "c"] {
        ground.random(pod);
    }
    let agent = Agent::start(&ground, false).await;
    agent.kill().await;
    assert!(ground.path("state/agent.sock").exists(), "nobody removed it");
    let outcome = ground.add_pod("a", "a").await;
    assert_ok(&outcome);
    ground.runs("a", &outcome);
    // The next agent takes the place of the dead one's socket.
    let agent = Agent::start(&ground, false).await;
    agent.signal("STOP");
    let outcome = ground.add_pod("b", "b").await;
    agent.signal("CONT");
    assert_ok(&outcome);
    assert_eq!(ground.recorded("b"), bare(&outcome));
    ground.runs("b", &outcome);
    let outcome = ground.add_pod("c", "c").await;
    assert_ok(&outcome);
    ground.runs("c", &outcome);
    until("it answers again", async || (agent.answered("ADD") >= 1).then_some(())).await;
    ground.assert_sound("an agent that slept").await;
}

#[tokio::test]
async fn a_socket_that_others_could_have_made_is_not_trusted() {
    let ground = Ground::prepare().await;
    ground.random("a");
    let task = impostor(&ground.path("state/agent.sock"), &["{\"accepted\":{}}\n", "{\"answer\":null}\n"]);
    std::fs::set_permissions(ground.path("state"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let outcome = ground.add_pod("a", "a").await;
    assert_ok(&outcome);
    assert_eq!(ground.recorded("a"), bare(&outcome));
    task.abort();
}

#[tokio::test]
async fn a_second_agent_and_a_directory_that_is_not_private_are_refused() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    assert!(Agent::refused(&ground, &ground.path("state")).await.contains("another agent serves"));
    let open = ground.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Agent::refused(&ground, &open).await.contains("mode 0700"));
    std::os::unix::fs::symlink(ground.path("state"), ground.path("link")).unwrap();
    assert!(Agent::refused(&ground, &ground.path("link")).await.contains("mode 0700"));
    assert!(ground.path("state/agent.sock").exists());
    drop(agent);
}

#[tokio::test]
async fn the_agent_refuses_what_direct_mode_refuses_in_the_same_words() {
    let ground = Ground::prepare().await;
    ground.pod("bad-1", "n1", serde_json::json!({"kube-ipam.ip": "10.244.0.300"}));
    let refused = async || ground.add_pod("bad-1", "c").await;
    let direct = refused().await;
    let agent = Agent::start(&ground, true).await;
    let by_agent = refused().await;
    assert_refused(&by_agent, 7, &["kube-ipam.ip", "10.244.0.300"]);
    assert_eq!(by_agent.stdout, direct.stdout);
    let broken = ground.of_pod("ADD", "bad-1", "c").with("/ipam/rangeEnd", serde_json::json!("10.244.0.1"));
    assert_refused(&broken.run().await, 7, &["rangeEnd"]);
    assert!(ground.recorded("bad-1").is_empty());
    drop(agent);
}

#[tokio::test]
async fn an_agent_that_is_told_to_stop_finishes_what_it_has_begun() {
    let ground = Ground::prepare().await;
    let names: Vec<String> = (0..30).map(|n| format!("p-{n}")).collect();
    names.iter().for_each(|name| ground.random(name));
    let agent = Agent::start(&ground, false).await;
    let started = std::time::Instant::now();
    let mut adds = Vec::new();
    for name in &names {
        adds.push(ground.of_pod("ADD", name, name).start().await);
    }
    agent.stop().await;
    assert!(!ground.path("state/agent.sock").exists());
    for (name, add) in names.iter().zip(adds) {
        let outcome = end(add, started).await;
        assert_ok(&outcome);
        assert_eq!(ground.recorded(name), bare(&outcome));
        ground.runs(name, &outcome);
    }
    ground.assert_sound("an agent that stopped").await;
}

/// The agent stands still, the plugin gives the pod's address back without it, and the pod's next sandbox asks the agent.
#[tokio::test]
async fn an_address_that_the_plugin_gave_back_by_itself_is_not_answered_from_memory() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, true).await;
    ground.random("r-0");
    until("it is taken ahead", async || (!ground.recorded("r-0").is_empty()).then_some(())).await;
    assert_ok(&ground.add_pod("r-0", "c1").await);
    agent.signal("STOP");
    assert_ok(&ground.del_pod("r-0", "c1").await);
    assert_eq!(ground.recorded("r-0"), [""; 0]);
    agent.signal("CONT");
    let again = ground.add_pod("r-0", "c2").await;
    assert_ok(&again);
    assert_eq!(ground.recorded("r-0"), bare(&again));
    ground.released("r-0", "c2").await;
    assert_eq!(ground.recorded("r-0"), [""; 0]);
    ground.assert_sound("an agent that stood still").await;
}

#[tokio::test]
async fn a_plugin_that_goes_on_without_its_agent_knows_from_it_which_cluster_it_is() {
    let ground = Ground::prepare().await;
    let looks = || {
        let calls = ground.server().calls().after(0);
        calls.iter().filter(|call| call.resource == "namespaces" && call.name == "kube-system").count()
    };
    let agent = Agent::start(&ground, false).await;
    let note = ground.path("state/cluster.json");
    until("the agent has noted its cluster", async || note.exists().then_some(())).await;
    assert_eq!(looks(), 1);
    agent.kill().await;
    ground.fixed("f-1");
    assert_ok(&ground.add_pod("f-1", "first").await);
    assert!(ground.log().contains("\"answered\""), "the plugin itself did it: {}", ground.log());
    assert_eq!(looks(), 1);
}

/// A configuration of another node's, or a pod that was bound to another node: by the agent and without it.
#[tokio::test]
async fn a_pod_of_another_node_is_refused_whoever_is_asked() {
    let ground = Ground::prepare().await;
    ground.random("here");
    ground.pod("there", "n2", serde_json::json!({}));
    let refused = async |pod: &str, node: &str, bound: &str| {
        let outcome = ground.of_pod("ADD", pod, pod).on(node).run().await;
        assert_refused(&outcome, 7, &[&format!("pod default/{pod} is bound to node {bound}"), node, "nodename"]);
    };
    refused("here", "n2", "n1").await;
    refused("there", "n1", "n2").await;
    let agent = Agent::start(&ground, true).await;
    refused("here", "n2", "n1").await;
    refused("there", "n1", "n2").await;
    assert!(ground.recorded("there").is_empty(), "nothing was written for it");
    assert_ok(&ground.add_pod("here", "here").await);
    agent.stop().await;
}

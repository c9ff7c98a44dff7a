//! The agent's socket under those who say nothing, half of something, or far too much: it goes on answering, in bounds.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::embedded::apiserver::{Fault, Gate, Match};
use kube_ipam::protocol::{Reply, line};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::ground::{Ground, assert_ok, bare};
use super::process::{Agent, until};
use super::usage::{Usage, agent, many_files};

/// Connections that may be without a request, and calls that may be under way.
const SILENT: usize = 128;
const CALLS: usize = 512;
/// A plugin's ADD through an agent on a machine that is busy with all this.
const IN_TIME: Duration = Duration::from_secs(5);

/// Connects where the queue may be full for a moment.
async fn connect(socket: &Path) -> UnixStream {
    until("the socket takes a connection", async || UnixStream::connect(socket).await.ok()).await
}

/// An ADD by the plugin, which the agent answers in time.
async fn served(ground: &Ground, agent: &Agent, pod: &str) {
    ground.random(pod);
    let before = agent.answered("ADD");
    let outcome = ground.add_pod(pod, pod).await;
    assert_ok(&outcome);
    assert!(outcome.took < IN_TIME, "{pod}: {:?}", outcome.took);
    assert_eq!(agent.answered("ADD"), before + 1, "{pod}: the agent did not answer");
    assert_eq!(ground.recorded(pod), bare(&outcome));
    ground.runs(pod, &outcome);
}

/// An agent that has answered once, and what it takes then.
async fn at_work() -> (Ground, Agent, Usage) {
    many_files();
    let ground = Ground::prepare().await;
    let agent = agent(&ground).await;
    served(&ground, &agent, "before").await;
    let before = Usage::of(&agent);
    (ground, agent, before)
}

fn bounded(before: Usage, after: Usage, mebibytes: u64, files: usize) {
    assert!(after.peak < before.peak + (mebibytes << 10), "memory: {before:?} {after:?}");
    assert!(after.files < before.files + files, "files: {before:?} {after:?}");
}

#[tokio::test]
async fn two_thousand_that_say_nothing_or_half_a_line_keep_nobody_from_being_served() {
    let (ground, agent, before) = at_work().await;
    let socket = ground.path("state/agent.sock");
    let half = format!("{{\"protocol\":1,\"calledAs\":\"{}", "x".repeat(20 << 10));
    let mut held = Vec::new();
    for n in 0..2_000 {
        let mut stream = connect(&socket).await;
        if n % 2 == 0 {
            // The agent may have hung up on it already.
            let _ = stream.write_all(half.as_bytes()).await;
        }
        held.push(stream);
        if n % 500 == 499 {
            served(&ground, &agent, &format!("during-{n}")).await;
        }
    }
    let during = Usage::of(&agent);
    // As many as may be inside may be on their way out.
    bounded(before, during, 64, 2 * SILENT + 32);
    assert!(during.files > before.files + SILENT / 2, "nothing was held: {before:?} {during:?}");
    // Who had to make room was told, in words that send a plugin into direct mode.
    let mut told = String::new();
    held[1].read_to_string(&mut told).await.unwrap();
    let Reply::Declined { reason } = serde_json::from_str(&told).unwrap() else { panic!("{told}") };
    assert!(reason.contains("busy"), "{reason}");
    // And nobody stays for longer than five seconds.
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = held.last_mut().unwrap().read_to_end(&mut rest).await;
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());
    until("all are gone", async || (Usage::of(&agent).files < before.files + 32).then_some(())).await;
    served(&ground, &agent, "after").await;
    ground.assert_sound("two thousand connections").await;
}

#[tokio::test]
async fn a_byte_now_and_then_ends_after_five_seconds() {
    let ground = Ground::prepare().await;
    let agent = agent(&ground).await;
    let mut stream = connect(&ground.path("state/agent.sock")).await;
    let started = Instant::now();
    while stream.write_all(b" ").await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(8), "it is still read");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(started.elapsed() > Duration::from_secs(4), "{:?}", started.elapsed());
    served(&ground, &agent, "after").await;
}

/// A line that ends, whose values take a hundred times its length once they are read.
fn costly() -> Vec<u8> {
    let many = ",{\"\":0}".repeat(500_000);
    format!("{{\"protocol\":1,\"calledAs\":\"x\",\"environment\":{{}},\"config\":{{\"a\":[0{many}]}}}}\n").into_bytes()
}

#[tokio::test]
async fn requests_that_are_far_too_large_cost_bounded_memory() {
    let (ground, agent, before) = at_work().await;
    let socket = ground.path("state/agent.sock");
    let (endless, costly) = (vec![b'x'; 3 << 20], costly());
    let mut writers = Vec::new();
    for n in 0..200 {
        let mut stream = connect(&socket).await;
        let text = if n % 2 == 0 { endless.clone() } else { costly.clone() };
        writers.push(tokio::spawn(async move {
            let _ = stream.write_all(&text).await;
            let mut told = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut told)).await;
            String::from_utf8(told).unwrap()
        }));
    }
    served(&ground, &agent, "during").await;
    let mut declined = 0;
    for writer in writers {
        let told = writer.await.unwrap();
        assert!(!told.contains("accepted"), "{told}");
        declined += usize::from(told.contains("declined"));
    }
    assert!(declined >= 50, "{declined} were told");
    bounded(before, Usage::of(&agent), 128, 64);
    served(&ground, &agent, "after").await;
}

#[tokio::test]
async fn calls_beyond_the_bound_are_declined_and_the_others_answered() {
    many_files();
    let ground = Ground::prepare().await;
    let agent = agent(&ground).await;
    let gate = Gate::new();
    // A pod that no watch has told of is asked for, and the answer does not come.
    let fault = ground.server().faults().on(Match::on("get", "pods"), Fault::Hold(gate.clone()), usize::MAX);
    let mut held = Vec::new();
    let mut accepted = 0;
    for n in 0..CALLS + 40 {
        let request = ground.call("ADD", &format!("none-{n}"), &format!("c{n}")).request();
        let mut stream = BufReader::new(connect(&ground.path("state/agent.sock")).await);
        stream.get_mut().write_all(&line(&request)).await.unwrap();
        let mut told = String::new();
        stream.read_line(&mut told).await.unwrap();
        match serde_json::from_str(&told).unwrap() {
            Reply::Accepted {} => accepted += 1,
            Reply::Declined { reason } => assert!(reason.contains("too many calls"), "{reason}"),
            other => panic!("{other:?}"),
        }
        held.push(stream);
    }
    assert_eq!(accepted, CALLS);
    fault.stop();
    gate.open();
    for stream in held.iter_mut().take(CALLS) {
        let mut told = String::new();
        tokio::time::timeout(Duration::from_secs(60), stream.read_line(&mut told)).await.unwrap().unwrap();
        assert!(told.contains("error"), "there is no such pod: {told}");
    }
    drop(held);
    served(&ground, &agent, "after").await;
    assert!(ground.allocated().len() == 1, "{:?}", ground.allocated());
}

#[tokio::test]
async fn a_hung_agent_whose_queue_is_full_costs_a_fallback() {
    many_files();
    let ground = Ground::prepare().await;
    ground.random("a");
    let agent = agent(&ground).await;
    agent.signal("STOP");
    let mut waiting = Vec::new();
    let full = loop {
        match UnixStream::connect(ground.path("state/agent.sock")).await {
            Ok(stream) if waiting.len() < 7_000 => waiting.push(stream),
            Ok(_) => break false,
            Err(_) => break true,
        }
    };
    let outcome = ground.add_pod("a", "a").await;
    agent.signal("CONT");
    assert!(full, "{} connections wait, and the queue is not full", waiting.len());
    assert_ok(&outcome);
    assert!(outcome.took < IN_TIME, "{:?}", outcome.took);
    assert_eq!(ground.recorded("a"), bare(&outcome));
    assert!(ground.log().contains("going on in direct mode"), "{}", ground.log());
}

#[tokio::test]
async fn stdin_of_too_many_values_is_refused_within_bounded_memory() {
    let ground = Ground::prepare().await;
    ground.random("r");
    let limited = "ulimit -d 98304 && exec \"$0\"";
    let many = ",{\"\":0}".repeat(140_000);
    let call = ground.call("ADD", "r", "r").under(&["sh", "-c", limited]).stdin(format!("{{\"a\":[0{many}]}}"));
    super::ground::assert_refused(&call.run().await, 5, &["more than 32768 JSON values"]);
    let attachments: Vec<_> = (0..5_000).map(|n| json!({"containerID": format!("c{n}"), "ifname": "eth0"})).collect();
    let gc = ground.call("GC", "", "").with("/cni.dev~1valid-attachments", json!(attachments));
    assert_ok(&gc.run().await);
}

//! A node on which one way is called, as a container runtime would call it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::agent::Agent;
use super::ground::Ground;
use super::way::Way;
use crate::standin::{self, Attachment, CniOutcome};

/// Calls at the same time while a node is filled.
const FILLING: usize = 8;
/// Longest wait for what an agent does after its answers.
const WORK_TIME: Duration = Duration::from_secs(60);

/// A node of one way. It is warm: a block is there, and so are claim and reservation of the fixed pod.
pub(super) struct Seat<'a> {
    pub way: &'a Way,
    path: [PathBuf; 1],
    stdin: Value,
    pods: Vec<Pod>,
    fixed: Option<Pod>,
    pub node: String,
    pub agent: Option<Agent>,
}

impl<'a> Seat<'a> {
    /// Makes the node and its pods, and gives addresses to `resident` of them.
    pub(super) async fn prepare(
        ground: &Ground,
        way: &'a Way,
        section: usize,
        resident: usize,
        at_once: usize,
    ) -> Result<Seat<'a>> {
        let mut seat = Seat::bare(ground, way, &format!("bench-{section}-{}", way.name)).await?;
        let node = seat.node.clone();
        let first = ground.create_pod(&node, format!("{node}-first"), json!({})).await?;
        let address = seat.called("ADD", &attachment(&first)).await?;
        if way.fixed {
            let fixed = last_of_block(&address)?;
            // One owner for all pods that come to have it.
            let annotations = json!({"kube-ipam.ip": fixed.to_string(), "kube-ipam.owner": "bench"});
            let pod = ground.create_pod(&node, format!("{node}-fixed"), annotations).await?;
            let warming = attachment(&pod);
            seat.called("ADD", &warming).await?;
            seat.called("DEL", &warming).await?;
            seat.fixed = Some(pod);
        }
        // After the fixed one: an agent may give these addresses before anybody asks.
        let mut pods = ground.create_pods(&node, resident + at_once.max(1) - 1).await?.into_iter();
        let residents: Vec<Attachment> = pods.by_ref().take(resident - 1).map(|pod| attachment(&pod)).collect();
        let filled = stream::iter(&residents).map(|new| seat.called("ADD", new)).buffer_unordered(FILLING);
        filled.try_collect::<Vec<_>>().await?;
        seat.pods = pods.collect();
        Ok(seat)
    }

    /// A node with nothing on it but the way's agent, if it has one.
    pub(super) async fn bare(ground: &Ground, way: &'a Way, node: &str) -> Result<Seat<'a>> {
        ground.create_node(node).await?;
        let agent = ground.start_agent(way, node, false).await?;
        let directory = way.binary.parent().context("a binary lies in a directory")?;
        Ok(Seat {
            way,
            path: [directory.to_path_buf()],
            stdin: ground.stdin(way, node)?,
            pods: Vec::new(),
            fixed: None,
            node: node.to_owned(),
            agent,
        })
    }

    /// The node's name.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// A pod that was bound a moment ago, with its address on record already.
    pub(super) async fn bound(&self, ground: &Ground, turn: usize, annotations: Value) -> Result<Pod> {
        let kind = if annotations.as_object().is_some_and(|a| a.is_empty()) { "random" } else { "fixed" };
        let pod = ground.create_pod(&self.node, format!("{}-{kind}-{turn}", self.node), annotations).await?;
        ground.taken_ahead(&pod).await?;
        // Its writer has told the agent's memory by now, too.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(pod)
    }

    /// The annotations of the pod with the fixed address.
    pub(super) fn fixed_annotations(&self) -> Option<Value> {
        self.fixed.as_ref().map(|pod| json!(pod.annotations()))
    }

    /// A new sandbox of a pod that has no address yet.
    pub(super) fn sandbox(&self) -> Result<Attachment> {
        self.pods.first().map(attachment).context("a pod without an address")
    }

    /// A new sandbox of the pod with the fixed address, for a way that gives them.
    pub(super) fn fixed_sandbox(&self) -> Option<Attachment> {
        self.fixed.as_ref().map(attachment)
    }

    /// One call; how long it took, from before the process was started until it had ended.
    pub(super) async fn call(&self, verb: &str, attachment: &Attachment) -> Result<Duration> {
        Ok(self.called(verb, attachment).await?.took)
    }

    /// After DELs that began at `started`: how long until an agent had put on record what it had answered, nothing if
    /// there is none. Returns when the agent has nothing left to do for them, so that no other way's calls meet its work.
    pub(super) async fn on_record(&self, started: Instant) -> Result<Option<Duration>> {
        let directory = self.stdin.pointer("/ipam/stateDir").and_then(Value::as_str);
        let Some(directory) = directory.filter(|_| self.agent.is_some()) else { return Ok(None) };
        self.without("release", directory).await?;
        let took = started.elapsed();
        self.without("handle", directory).await?;
        Ok(Some(took))
    }

    /// Waits until the state directory has no file that ends like this.
    async fn without(&self, ending: &str, directory: &str) -> Result<()> {
        let started = Instant::now();
        while std::fs::read_dir(directory)?.flatten().any(|entry| entry.path().extension() == Some(ending.as_ref())) {
            ensure!(started.elapsed() < WORK_TIME, "{}: files .{ending} stay in {directory}", self.node);
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        Ok(())
    }

    /// ADD and DEL for `count` pods at once; each verb's times, and how long it took until the last had ended. Then how
    /// long until an agent had put the DELs on record.
    pub(super) async fn all_at_once(&self, count: usize) -> Result<([(Vec<Duration>, Duration); 2], Option<Duration>)> {
        let sandboxes: Vec<Attachment> = self.pods.iter().take(count).map(attachment).collect();
        ensure!(sandboxes.len() == count, "{} pods are there for {count} calls at once", sandboxes.len());
        let run = async |verb: &'static str| {
            let started = Instant::now();
            let times = try_join_all(sandboxes.iter().map(|sandbox| self.call(verb, sandbox))).await?;
            anyhow::Ok((times, started.elapsed()))
        };
        let added = run("ADD").await?;
        let started = Instant::now();
        let deleted = run("DEL").await?;
        Ok(([added, deleted], self.on_record(started).await?))
    }

    async fn called(&self, verb: &str, attachment: &Attachment) -> Result<CniOutcome> {
        let outcome = standin::call(&self.way.binary, verb, &self.path, &[], attachment, &self.stdin).await?;
        ensure!(outcome.is_ok(), "{verb} by {}: {}", self.way.name, outcome.error_text());
        Ok(outcome)
    }
}

pub(super) fn attachment(pod: &Pod) -> Attachment {
    Attachment::of_pod(&pod.namespace().unwrap_or_default(), &pod.name_any(), &pod.uid().unwrap_or_default())
}

/// The last address of the block that an answer's address lies in: the node's own block, so that a fixed address
/// does not bring it a second one.
fn last_of_block(answer: &CniOutcome) -> Result<IpAddr> {
    let addresses = answer.addresses();
    let address: IpNetwork = addresses.first().context("an answer holds an address")?.parse()?;
    Ok(IpNetwork::new(address.ip(), 26)?.broadcast())
}

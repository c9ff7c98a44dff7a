//! A container runtime's part: calls of the plugin that are killed now and then, an ADD that is tried again in another
//! sandbox, and a DEL that is repeated until it succeeds.

use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ipnetwork::IpNetwork;
use kube_ipam::cni::code;
use rand::RngExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::ground::{Ground, NAMESPACE};
use super::node::Node;
use super::observer::Observer;
use super::segment::Container;
use super::tally::{Line, Tally};
use crate::standin::{Attachment, CniOutcome};

/// Pause before a failed call is repeated, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1500));
/// No DEL may fail for longer, however much is harmed.
const DEL_LIMIT: Duration = Duration::from_secs(240);
/// One failed ADD in so many is cleaned up later, while the pod has its next sandbox already.
const LATE_DEL: u32 = 4;
/// What etcd says, itself or through the API server, when it has more than its quota allows.
pub(super) const NO_ROOM: &str = "database space exceeded";
/// After one DEL in so many another comes, when nothing is there any more.
const REPEATED_DEL: u32 = 5;

/// What all nodes' runtimes share.
pub(super) struct Runtime {
    pub ground: Arc<Ground>,
    pub observer: Observer,
    pub tally: Tally,
    /// After how long the next calls are killed.
    doomed: Mutex<Vec<Duration>>,
    /// DELs that nobody waits for.
    strays: Mutex<JoinSet<Result<()>>>,
    stopping: AtomicBool,
    /// Every call and every harm, a line each.
    journal: Mutex<File>,
}

/// A pod, as the runtime is told of it.
#[derive(Debug, Clone)]
pub(super) struct PodName {
    pub name: String,
    pub uid: String,
}

/// A container that runs.
pub(super) struct Running {
    pub address: IpAddr,
    attachment: Attachment,
    container: Container,
}

// === impl Runtime ===

impl Runtime {
    pub(super) fn new(ground: Arc<Ground>) -> Result<Self> {
        let journal = Mutex::new(File::create(ground.site.log("journal"))?);
        Ok(Self {
            ground,
            observer: Observer::new(),
            tally: Tally::default(),
            doomed: Mutex::default(),
            strays: Mutex::default(),
            stopping: AtomicBool::new(false),
            journal,
        })
    }

    /// A line in the journal.
    pub(super) fn note(&self, what: &str) {
        let now = self.observer.now().as_secs_f64();
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be written down does not change what is found.
        let _ = writeln!(journal, "{now:9.3} {what}");
    }

    /// No new pods from now on.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// One of the next calls is killed when it has run for so long.
    pub(super) fn doom(&self, after: Duration) {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).push(after);
    }

    /// Calls that are to be killed and were not yet.
    pub(super) fn doomed(&self) -> usize {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Nobody is killed any more.
    pub(super) fn spare(&self) {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs a pod's next sandbox, which gets an address, however many it takes; `None` if the run ends before. `fixed` is
    /// the one address it may get.
    pub(super) async fn run(
        self: &Arc<Self>,
        node: &Arc<Node>,
        pod: &PodName,
        fixed: Option<IpAddr>,
    ) -> Result<Option<Running>> {
        let mut pause = BACKOFF.0;
        while !self.is_stopping() {
            let mut attachment = Attachment::of_pod(NAMESPACE, &pod.name, &pod.uid);
            let container = self.ground.segment.container(&attachment.container).await?;
            attachment.netns = container.path();
            let outcome = self.call(node, "ADD", &attachment).await?;
            if outcome.is_ok() {
                let address = address(&outcome)?;
                self.observer.told(address, &attachment.container, &pod.name, &node.name);
                if fixed.is_some_and(|fixed| fixed != address) {
                    self.observer
                        .wrong(Some(address), format!("{} asked for {fixed:?} and was told {address}", pod.name));
                }
                let mut running = Running { address, attachment, container };
                running.container.has(address).await?;
                return Ok(Some(running));
            }
            container.end().await?;
            if rand::rng().random_ratio(1, LATE_DEL) {
                self.delete_later(node, attachment);
            } else {
                self.delete(node, &attachment).await?;
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
        Ok(None)
    }

    /// Ends a container: its namespace first, then DEL until it succeeds.
    pub(super) async fn end(self: &Arc<Self>, node: &Arc<Node>, running: Running) -> Result<()> {
        let Running { address, attachment, container } = running;
        self.observer.lets_go(address, &attachment.container);
        container.end().await?;
        self.delete(node, &attachment).await?;
        self.observer.remark(address, format!("DEL of container {} succeeded", &attachment.container[..12]));
        if rand::rng().random_ratio(1, REPEATED_DEL) {
            self.delete_later(node, attachment);
        }
        Ok(())
    }

    /// Waits for all DELs that were left for later.
    pub(super) async fn settle(&self) -> Result<()> {
        loop {
            let mut strays = std::mem::take(&mut *self.strays.lock().unwrap_or_else(PoisonError::into_inner));
            if strays.is_empty() {
                return Ok(());
            }
            while let Some(done) = strays.join_next().await {
                done??;
            }
        }
    }

    fn delete_later(self: &Arc<Self>, node: &Arc<Node>, attachment: Attachment) {
        let (runtime, node) = (self.clone(), node.clone());
        let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are done are let go of.
        while let Some(Ok(Ok(()))) = strays.try_join_next() {}
        let later = Duration::from_millis(rand::rng().random_range(0..4000));
        strays.spawn(async move {
            sleep(later).await;
            runtime.delete(&node, &attachment).await
        });
    }

    async fn delete(&self, node: &Node, attachment: &Attachment) -> Result<()> {
        let until = Instant::now() + DEL_LIMIT;
        let mut pause = BACKOFF.0;
        loop {
            let outcome = self.call(node, "DEL", attachment).await?;
            if outcome.is_ok() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("a DEL on {} fails for {DEL_LIMIT:?}: {}", node.name, outcome.error_text());
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn call(&self, node: &Node, verb: &'static str, attachment: &Attachment) -> Result<CniOutcome> {
        let mut attachment = attachment.clone();
        let doom = self.doomed.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(after) = doom {
            attachment.kill_after = after;
        }
        let outcome = node.call(verb, &attachment).await?;
        let what = if outcome.is_ok() { outcome.addresses().join(",") } else { outcome.error_text() };
        let (took, container) = (outcome.took.as_millis(), &attachment.container[..12]);
        self.note(&format!("{verb} {} {container} after {took} ms: {:?} {what}", node.name, outcome.exit));
        match (outcome.exit, doom) {
            (Some(0), _) => self.tally.count(Line::Done(verb)),
            (Some(_), _) => self.failed(node, verb, &outcome),
            (None, Some(_)) => self.tally.failed(verb, "killed".into(), ""),
            (None, None) => self.tally.failed(verb, "no answer".into(), &outcome.error_text()),
        }
        match doom {
            Some(_) if outcome.exit.is_none() => self.tally.count(Line::Kill("plugin")),
            // It was too quick.
            Some(after) => self.doom(after / 2),
            None => {}
        }
        Ok(outcome)
    }

    /// A call said that it failed. It must say so in CNI's words, and that a full etcd is a reason to try again.
    fn failed(&self, node: &Node, verb: &'static str, outcome: &CniOutcome) {
        let text = outcome.error_text();
        let Some(error) = outcome.error() else {
            self.observer.wrong(None, format!("{verb} on {} failed without an error of CNI: {text}", node.name));
            return;
        };
        let full = text.contains(NO_ROOM);
        if full && error.code != code::TRY_AGAIN {
            self.observer.wrong(None, format!("{verb} on {} took a full etcd for an end: {text}", node.name));
        }
        let why = format!("code {}{}", error.code, if full { ", etcd has no room" } else { "" });
        self.tally.failed(verb, why, &text);
    }
}

// === impl Running ===

impl Running {
    /// Whether an echo request from this container is answered.
    pub(super) async fn reaches(&self, to: IpAddr) -> bool {
        self.container.reaches(to).await
    }
}

fn address(outcome: &CniOutcome) -> Result<IpAddr> {
    let addresses = outcome.addresses();
    let [address] = addresses.as_slice() else { bail!("an ADD was answered with {addresses:?}") };
    Ok(address.parse::<IpNetwork>().with_context(|| address.clone())?.ip())
}

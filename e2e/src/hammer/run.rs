//! The pods' lives: each is made, gets its address, gives it back and goes, as the kubelet and its runtime would have
//! it. A call that is refused is followed by a DEL and, for an ADD, by a new sandbox.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use kube_ipam::cni::Verb;

use super::Options;
use super::books::Books;
use super::ground::{self, Ground, NAMESPACE};
use super::meter::Meter;
use super::node::{By, Sandbox};
use super::plan::Piece;

/// Pauses after a refused call: the kubelet's are longer, and then nothing would be hammered.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a call is tried.
const ATTEMPTS: u32 = 20;
/// Of two lives that overlap, the earlier ends at most so long after the later began.
const OVERLAP: Duration = Duration::from_millis(200);

/// The run: everything that the pieces of a round share.
pub(super) struct Run {
    pub ground: Ground,
    pub books: Mutex<Books>,
    pub meter: Arc<Meter>,
    fixed: Vec<Option<Ipv4Addr>>,
    living: Vec<Mutex<Option<Life>>>,
    pods: Api<Pod>,
    /// Share of calls without an agent, in percent.
    direct: u32,
    at_once: usize,
    named: AtomicU64,
}

/// A pod that has its address.
#[derive(Debug, Clone)]
struct Life {
    node: usize,
    sandbox: Sandbox,
}

/// What an operation is called in the report.
fn operation(verb: Verb, by: By, fixed: bool, waits: bool) -> &'static str {
    match (verb, by, fixed, waits) {
        (Verb::Add, By::Plugin, _, false) => "ADD direct",
        (Verb::Add, _, true, true) => "ADD waiting",
        (Verb::Add, By::Agent, true, false) => "ADD fixed",
        (Verb::Add, _, _, _) => "ADD random",
        (_, By::Plugin, _, _) => "DEL direct",
        (_, By::Agent, true, _) => "DEL fixed",
        (_, By::Agent, false, _) => "DEL random",
    }
}

impl Run {
    pub(super) fn new(
        ground: Ground,
        books: Books,
        meter: Arc<Meter>,
        fixed: Vec<Option<Ipv4Addr>>,
        options: &Options,
    ) -> Run {
        let pods = Api::namespaced(ground.admin.clone(), NAMESPACE);
        let living = fixed.iter().map(|_| Mutex::default()).collect();
        let (direct, at_once) = (options.direct, options.at_once);
        Run { ground, books: Mutex::new(books), meter, fixed, living, pods, direct, at_once, named: AtomicU64::new(0) }
    }

    /// Works all pieces off, some at a time. `last`: no pod comes after the one that goes.
    pub(super) async fn round(self: &Arc<Self>, pieces: Vec<Piece>, last: bool) -> Result<()> {
        let work = stream::iter(pieces).map(|piece| {
            let run = self.clone();
            async move { tokio::spawn(async move { run.piece(piece, last).await }).await? }
        });
        work.buffer_unordered(self.at_once).try_collect().await
    }

    async fn piece(&self, piece: Piece, last: bool) -> Result<()> {
        match piece {
            Piece::Node(workloads) => {
                let lives = workloads.into_iter().map(|workload| async move {
                    let node = self.next_node(workload);
                    let before = self.living(workload).take();
                    self.leave(workload, before).await?;
                    if !last {
                        self.come(workload, node, false).await?;
                    }
                    Ok(())
                });
                try_join_all(lives).await.map(drop)
            }
            Piece::Move(workload, node) => {
                let before = self.living(workload).take();
                match before {
                    // The next pod is there before the earlier one has gone, and waits for its address.
                    Some(before) if !last && rand::random_bool(0.5) => {
                        // As whoever deletes a pod leaves it: the kubelet lets go of it, and then the object goes.
                        self.pods.delete(&before.sandbox.pod, &DeleteParams::default().grace_period(30)).await?;
                        let later = OVERLAP.mul_f64(rand::random::<f64>());
                        let leave = async {
                            tokio::time::sleep(later).await;
                            self.leave(workload, Some(before)).await
                        };
                        tokio::try_join!(self.come(workload, node, true), leave).map(drop)
                    }
                    before => {
                        self.leave(workload, before).await?;
                        if last { Ok(()) } else { self.come(workload, node, false).await }
                    }
                }
            }
        }
    }

    /// The node of a random workload, which never changes.
    fn next_node(&self, workload: usize) -> usize {
        workload / (self.fixed.len() / self.ground.nodes.len())
    }

    /// A pod comes: it is made, and its sandbox gets an address.
    async fn come(&self, workload: usize, node: usize, waits: bool) -> Result<()> {
        let fixed = self.fixed[workload];
        let name = format!("p{workload}-{}", self.number());
        let pod: Pod = serde_json::from_value(ground::pod(&name, &self.ground.nodes[node].name, workload, fixed))?;
        let pod =
            self.pods.create(&PostParams::default(), &pod).await.with_context(|| format!("creating pod {name}"))?;
        let uid = pod.uid().context("a pod has a UID")?;
        let mut pause = FIRST_PAUSE;
        for _ in 0..ATTEMPTS {
            let container = format!("c{:012}", self.number());
            let sandbox = Sandbox { container, namespace: NAMESPACE, pod: name.clone(), uid: uid.clone() };
            if self.add(node, &sandbox, fixed, waits).await? {
                *self.living(workload) = Some(Life { node, sandbox });
                return Ok(());
            }
            self.del(node, &sandbox, fixed.is_some()).await?;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        bail!("pod {name} got no address in {ATTEMPTS} attempts")
    }

    /// A pod goes: its sandbox gives the address back, and the object is deleted.
    async fn leave(&self, workload: usize, life: Option<Life>) -> Result<()> {
        let Some(Life { node, sandbox }) = life else { return Ok(()) };
        self.del(node, &sandbox, self.fixed[workload].is_some()).await?;
        let now = DeleteParams::default().grace_period(0);
        self.pods.delete(&sandbox.pod, &now).await.with_context(|| format!("deleting pod {}", sandbox.pod))?;
        Ok(())
    }

    /// One ADD; whether it was answered with an address.
    async fn add(&self, node: usize, sandbox: &Sandbox, fixed: Option<Ipv4Addr>, waits: bool) -> Result<bool> {
        let (node, by) = (&self.ground.nodes[node], self.by());
        self.books().asks(&sandbox.container, &node.name, fixed.map(Into::into));
        let started = Instant::now();
        match node.call(Verb::Add, sandbox, by).await {
            Ok(served) => {
                let given = served.given.context("an ADD answers with addresses")?;
                let address = given.addresses.first().context("an ADD answers with an address")?.address;
                self.books().told(&sandbox.container, address);
                self.meter.answered(operation(Verb::Add, by, fixed.is_some(), waits), started.elapsed());
                Ok(true)
            }
            Err(error) => {
                self.meter.refused("ADD", &error);
                Ok(false)
            }
        }
    }

    /// DEL until it is answered.
    async fn del(&self, node: usize, sandbox: &Sandbox, fixed: bool) -> Result<()> {
        let node = &self.ground.nodes[node];
        self.books().leaves(&sandbox.container);
        let mut pause = FIRST_PAUSE;
        for _ in 0..ATTEMPTS {
            let (by, started) = (self.by(), Instant::now());
            match node.call(Verb::Del, sandbox, by).await {
                Ok(_) => {
                    self.meter.answered(operation(Verb::Del, by, fixed, false), started.elapsed());
                    self.books().gone(&sandbox.container);
                    return Ok(());
                }
                Err(error) => self.meter.refused("DEL", &error),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        bail!("container {} was not let go in {ATTEMPTS} attempts", sandbox.container)
    }

    fn by(&self) -> By {
        if rand::random_range(0..100) < self.direct { By::Plugin } else { By::Agent }
    }

    fn number(&self) -> u64 {
        self.named.fetch_add(1, Ordering::Relaxed)
    }

    fn living(&self, workload: usize) -> MutexGuard<'_, Option<Life>> {
        self.living[workload].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

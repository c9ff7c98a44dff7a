//! The hammer: many nodes, whose pods all come and go at once, on a real API server and a real etcd; and books of every
//! answer, against which every answer and all records are held.
//!
//! Layout: [`Options`] say how large, `plan` what runs where, `ground` the cluster, `heard` what its nodes hear of it,
//! `node` how a node answers, `run` the pods' lives; [`books`], [`records`] and [`verdict`] are the accounts, [`meter`],
//! `servers` and [`Report`] the figures, [`picture`] their plot.
//!
//! Keeps: the program's own service and driver answer every call, over its own stores. What differs from a cluster is
//! said in docs/performance.md: all nodes are in this process, and share connections and watches.

pub mod books;
mod collector;
mod ground;
mod heard;
pub mod meter;
mod node;
pub mod picture;
mod plan;
pub mod records;
mod report;
mod run;
mod servers;
mod shown;
pub mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use kube_ipam::audit;
use serde::Serialize;

pub use report::{Account, Operation, Report, Round};

use self::books::Books;
use self::collector::Collecting;
use self::ground::Ground;
use self::meter::Meter;
use self::plan::Plan;
use self::records::Records;
use self::run::Run;
use self::servers::Servers;
use crate::tools::Tools;

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(10);
/// In bytes: in a build without optimization a call within a call needs more than the two megabytes of a usual thread.
const STACK: usize = 16 << 20;

/// How large.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Options {
    /// Nodes.
    pub nodes: usize,
    /// Pods on each of them.
    pub pods: usize,
    /// How often every pod is replaced.
    pub rounds: usize,
    /// Share of pods with fixed addresses, in percent.
    pub fixed: usize,
    /// Share of calls without an agent, in percent.
    pub direct: u32,
    /// Nodes, or pods that move, at the same time.
    pub at_once: usize,
    /// For the order of things.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 1500, pods: 10, rounds: 10, fixed: 10, direct: 5, at_once: 16, seed: 1 }
    }
}

/// What [`run`] is to run in.
///
/// # Errors
/// A thread cannot be started.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_stack_size(STACK).enable_all().build()
}

/// Fills the cluster, replaces every pod in every round, empties it, and gives account after each. Progress goes to
/// stderr.
///
/// # Errors
/// Something that is not judged here does not work: a server does not start, a pod cannot be made, or gets no address
/// however often it is tried. What is judged is in the report.
pub async fn run(tools: Tools, options: &Options) -> Result<Report> {
    let mut plan = Plan::new(options)?;
    let meter = Arc::new(Meter::default());
    eprintln!("starting etcd, the API server and {} nodes in {} ...", options.nodes, plan.subnet);
    let ground = Ground::start(tools, &plan, options.nodes, meter.clone()).await?;
    let before = Servers::look(&ground).await?;
    let collecting = Collecting::start(&ground);
    let range = (plan.range.0.into(), plan.range.1.into());
    let run = Arc::new(Run::new(ground, Books::new(plan.owners(), range), meter, plan.fixed.clone(), options));
    let mut rounds = Vec::new();
    for number in 0..options.rounds + 2 {
        let last = number == options.rounds + 1;
        let (name, pieces) = match number {
            0 => ("fill".to_owned(), plan.stay()),
            _ if last => ("empty".to_owned(), plan.stay()),
            _ => (number.to_string(), plan.churn()),
        };
        let started = Instant::now();
        let progress = tokio::spawn(tell(run.clone(), name.clone()));
        let worked = run.round(pieces, last).await;
        progress.abort();
        worked?;
        let seconds = started.elapsed().as_secs_f64();
        let round = Round::of(name, seconds, run.meter.take(), account(&run).await?);
        eprintln!("{round}");
        rounds.push(round);
    }
    let collector = collecting.stop().await?;
    let after = Servers::look(&run.ground).await?;
    Ok(Report::of(options, rounds, before, after, collector))
}

/// Says every few seconds how far it is.
async fn tell(run: Arc<Run>, name: String) {
    let (started, mut before) = (Instant::now(), (0, 0));
    loop {
        tokio::time::sleep(PROGRESS).await;
        let (adds, dels, conflicts) = run.meter.look();
        let rate = |now: usize, then: usize| (now - then) as f64 / PROGRESS.as_secs_f64();
        let (adding, deleting) = (rate(adds, before.0), rate(dels, before.1));
        before = (adds, dels);
        let wrong = run.books().breaches().len();
        let seconds = started.elapsed().as_secs();
        eprintln!(
            "  {name}, {seconds:>4} s: {adds} ADDs ({adding:.0}/s), {dels} DELs ({deleting:.0}/s), {conflicts} conflicts, \
             {wrong} wrong answers"
        );
    }
}

/// Compares all records with the books, and asks the program's own audit.
async fn account(run: &Run) -> Result<Account> {
    let ground = &run.ground;
    ground.later.idle().await?;
    let mut etcd = etcd_client::Client::connect([ground.control_plane.site().etcd_url()], None).await?;
    let records = Records::read(&ground.admin, &mut etcd, &ground.claims_prefix()?).await?;
    let reading = audit::read(&ground.line.store, Some(&ground.line.ledger), &|_| {}).await;
    let unread: Vec<String> = reading.unread.iter().map(ToString::to_string).collect();
    let violations = match reading.snapshot {
        Some(snapshot) if unread.is_empty() => {
            let snapshot = audit::Snapshot { net: Some(ground.net.clone()), ..snapshot };
            audit::audit(&snapshot).iter().map(ToString::to_string).collect()
        }
        _ => anyhow::bail!("the audit could not read: {}", unread.join("; ")),
    };
    let books = run.books();
    let found = verdict::compare(&records, &books, ground::NETWORK);
    let breaches = books.breaches().iter().partition::<Vec<_>, _>(|breach| breach.is_duplicate());
    Ok(Account::of(breaches, found, violations, records.blocks.len()))
}

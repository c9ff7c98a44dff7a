//! The real parts, harmed: plugins, agents, an API server and three etcd members killed under load, replies lost after
//! their writes took effect, partitions, full disks, an etcd over its quota, clocks set back; and judges that know nothing of kube-ipam's records.
//!
//! Layout: `ground` is what is harmed (`members` with `quota`, `node`, `disk` of both, `proxy` with `losses`, `segment`), `lives` the load over
//! `runtime`, `harms` the plan and `harmer` its execution, `observer` and `patrol` judge while pods live, `verdict` when
//! they are gone, `plant` puts in what the judges must find, `tally` counts.
//!
//! The nodes are a runtime's part only: real plugin processes in real network namespaces, a real agent on three of four,
//! but no kubelet, whose restarts would take longer than everything else together. The seed gives the sequence of harms;
//! which call meets which harm is the machine's.

mod disk;
mod ground;
mod harmer;
mod harms;
mod lives;
mod losses;
mod members;
mod node;
mod observer;
mod patrol;
mod plant;
mod proxy;
mod quota;
mod runtime;
mod segment;
mod tally;
mod verdict;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::ground::Ground;
use self::harmer::{DIED_OF_A_FULL_DISK, Harmer, OVER_QUOTA};
use self::harms::Plan;
use self::runtime::Runtime;
use self::tally::Line;
use crate::real::Crds;
use crate::tools::Tools;

pub use self::plant::Plant;

/// How a run goes.
#[derive(Debug)]
pub struct Options {
    /// Gives the sequence of harms.
    pub seed: u64,
    /// How many kills there are.
    pub kills: u64,
    /// Calico's definitions instead of ours.
    pub crds: Option<PathBuf>,
    /// A directory with calicoctl, which then judges, too.
    pub calico_bin: Option<PathBuf>,
    /// How long after the last DEL something may be left over.
    pub clean_within: Duration,
    /// Logs are kept even if all is well.
    pub keep_logs: bool,
    /// What is put in, for the judges to find.
    pub plant: Option<Plant>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// What was counted.
    pub table: String,
    /// How often an address was had by two.
    pub duplicates: usize,
    /// Allocations and handles that were left over.
    pub left: Vec<String>,
    /// Replies that were lost after their write took effect: of the API server, of etcd.
    pub lost: [u64; 2],
    /// How many kills there were.
    pub kills: u64,
    /// How often etcd had no room: members that died of a full disk, quotas that were exceeded.
    pub starved: [u64; 2],
    /// Everything that must not be; none if all is well.
    pub wrongs: Vec<String>,
    /// Where logs are, if all is not well.
    pub logs: PathBuf,
}

/// Pods that run at the same time with any address.
const RANDOM_SEATS: usize = 12;
/// Owners of a fixed address: one in the middle of each node's likely block.
const FIXED: [u8; 4] = [40, 100, 160, 220];
/// Time between two lines that say how far it is.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long pods live undisturbed before the first harm.
const QUIET: Duration = Duration::from_secs(3);

/// Runs it all. Progress goes to stderr.
pub async fn run(tools: Tools, options: &Options) -> Result<Report> {
    let mut said = std::io::stderr();
    writeln!(said, "seed {}: starting three etcd members, an API server, four nodes ...", options.seed)?;
    let crds = options.crds.clone().map_or_else(|| Crds::Definitions(crate::crds()), Crds::File);
    let ground = Arc::new(Ground::start(tools, crds, options.crds.is_some(), options.seed).await?);
    let runtime = Arc::new(Runtime::new(ground.clone())?);
    let ended = judge(&runtime, options).await;
    let report = match ended {
        Ok(report) => report,
        Err(error) => {
            ground.site.keep_logs();
            return Err(error.context(format!("seed {}; logs: {}", options.seed, ground.site.logs().display())));
        }
    };
    if options.keep_logs {
        ground.site.keep_logs();
    }
    if !report.wrongs.is_empty() {
        ground.site.keep_logs();
        plant::dump(&ground).await?;
    }
    Ok(report)
}

async fn judge(runtime: &Arc<Runtime>, options: &Options) -> Result<Report> {
    let ground = &runtime.ground;
    if !ground.nodes.iter().all(|node| node.has_clock()) {
        eprintln!("no clock is set back: that needs libfaketime (Debian package libfaketime)");
    }
    for last in FIXED {
        ground.create_owner(&format!("fixed{last}")).await?;
    }
    let mut lives = lives(runtime, options.seed);
    let mut harmer = Harmer::new(runtime.clone());
    {
        let harming = harm(runtime, &mut harmer, options);
        tokio::select! {
            harmed = harming => harmed?,
            ended = lives.join_next() => {
                return Err(ended.context("there are pods")??.err().unwrap_or_else(|| anyhow!("a pod's life ended early")));
            }
            patrol = patrol::patrol(runtime) => patrol?,
            () = progress(runtime) => {}
        }
    }
    eprintln!("no more harm: the last pods go ...");
    let finish = async {
        while let Some(life) = lives.join_next().await {
            life??;
        }
        runtime.settle().await
    };
    tokio::select! {
        finished = finish => finished?,
        patrol = patrol::patrol(runtime) => patrol?,
        () = progress(runtime) => {}
    }
    if options.plant == Some(Plant::Leak) {
        plant::leak(ground).await?;
    }
    let verdict = verdict::verdict(runtime, options.clean_within, options.calico_bin.as_deref()).await?;
    let [api, etcd, silent] = ground.losses.counts();
    runtime.tally.add(Line::Lost("replies of the API server"), api);
    runtime.tally.add(Line::Lost("replies of etcd"), etcd);
    runtime.tally.add(Line::Lost("of both, in silence"), silent);
    let mut wrongs = runtime.observer.wrongs();
    wrongs.extend(verdict.wrongs());
    let judges = match &verdict.calicoctl {
        Some(_) => "kube-ipam check and calicoctl ipam check",
        None => "kube-ipam check",
    };
    let duplicates = runtime.observer.duplicates();
    let closing = format!(
        "duplicates: {duplicates}\nleft over: {}\nclean {:.1} s after the last DEL, by {judges}: {}",
        verdict.left.len(),
        verdict.after.as_secs_f64(),
        if verdict.wrongs().is_empty() { "yes" } else { "no" },
    );
    let examples: String =
        runtime.tally.examples().iter().map(|(what, said)| format!("  {what}, such as: {said}\n")).collect();
    runtime.note(&format!("examples of failures:\n{examples}"));
    Ok(Report {
        table: format!("{}\n{closing}", runtime.tally),
        duplicates,
        left: verdict.left,
        lost: [api, etcd],
        kills: runtime.tally.kills(),
        starved: [DIED_OF_A_FULL_DISK, OVER_QUOTA].map(|line| runtime.tally.of(&line)),
        wrongs,
        logs: ground.site.logs().to_owned(),
    })
}

/// The pods of all seats.
fn lives(runtime: &Arc<Runtime>, seed: u64) -> JoinSet<Result<()>> {
    let mut lives = JoinSet::new();
    let random = |seat: usize| StdRng::seed_from_u64(seed.wrapping_add(1 + seat as u64));
    for seat in 0..RANDOM_SEATS {
        lives.spawn(lives::random(runtime.clone(), seat, random(seat)));
    }
    for (seat, last) in (RANDOM_SEATS..).zip(FIXED) {
        let address = IpAddr::V4(Ipv4Addr::new(10, 244, 0, last));
        lives.spawn(lives::fixed(runtime.clone(), address, random(seat)));
    }
    lives
}

/// From the first harm until everything is well again, and no pod is to come any more.
async fn harm(runtime: &Arc<Runtime>, harmer: &mut Harmer, options: &Options) -> Result<()> {
    let nodes = &runtime.ground.nodes;
    let agents = nodes.iter().filter(|node| node.has_agent()).count();
    let clocks = nodes.iter().all(|node| node.has_clock());
    sleep(QUIET).await;
    if options.plant == Some(Plant::Duplicate) {
        plant::duplicate(runtime).await?;
    }
    runtime.ground.losses.switch(options.kills > 0);
    harmer.follow(Plan::of(options.seed, agents, nodes.len(), clocks), options.kills).await?;
    runtime.ground.losses.switch(false);
    harmer.heal().await?;
    runtime.stop();
    Ok(())
}

async fn progress(runtime: &Runtime) {
    loop {
        sleep(PROGRESS).await;
        let [api, etcd, _] = runtime.ground.losses.counts();
        let now = runtime.observer.now().as_secs();
        eprintln!(
            "{now:5} s  {}; {} replies lost; {} wrong",
            runtime.tally.progress(),
            api + etcd,
            runtime.observer.wrongs().len()
        );
    }
}

//! Runs the scenarios of a tier as tests of cargo's: same arguments, same closing line.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::runtime::Runtime;

use crate::lab::Lab;
use crate::scenarios;

/// How a tier's lab comes into being; `None` if it cannot here.
type Start = Box<dyn Fn() -> BoxFuture<'static, Result<Option<Lab>>> + Send>;

/// What is done with a lab after the scenarios.
#[derive(Clone, Copy)]
pub struct Errand {
    /// A sentence.
    pub name: &'static str,
    /// Does it.
    pub run: for<'a> fn(&'a Lab) -> BoxFuture<'a, Result<()>>,
}

/// A lab and what is run on it.
pub struct Tier {
    name: &'static str,
    start: Start,
    scenarios: bool,
    errands: Vec<Errand>,
}

/// The labs, one at a time: each is made by the first that needs it, and gone before the next one is made.
struct Shared {
    runtime: Runtime,
    starts: Mutex<Vec<Start>>,
    lab: Mutex<(usize, Made)>,
}

/// A lab, or why there is none.
type Made = Option<Result<Option<Lab>, String>>;

/// Runs every scenario on one lab, one after the other. A tier that cannot run here counts its scenarios as ignored.
pub fn scenarios<F>(tier: &'static str, start: impl Fn() -> F + Send + 'static) -> ExitCode
where
    F: Future<Output = Result<Option<Lab>>> + Send + 'static,
{
    tiers(vec![Tier::new(tier, start)])
}

/// The same for several tiers, with errands after the scenarios. Where the first cannot run, no other can.
pub fn tiers(tiers: Vec<Tier>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    kube_ipam::store::choose_tls();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let first = match (tiers.first(), arguments.list) {
        (Some(tier), false) => Some(runtime.block_on((tier.start)()).map_err(|e| format!("{e:#}"))),
        _ => None,
    };
    let skipped = matches!(first, Some(Ok(None)));
    let (mut starts, mut work) = (Vec::new(), Vec::new());
    for (index, tier) in tiers.into_iter().enumerate() {
        let scenarios = if tier.scenarios { scenarios::all() } else { Vec::new() };
        let scenarios = scenarios.into_iter().map(Work::Scenario);
        let all = scenarios.chain(tier.errands.into_iter().map(Work::Errand));
        work.extend(all.map(|work| (index, tier.name, work)));
        starts.push(tier.start);
    }
    let shared = Arc::new(Shared { runtime, starts: Mutex::new(starts), lab: Mutex::new((0, first)) });
    let trials = work.into_iter().map(|(index, tier, work)| {
        let shared = shared.clone();
        Trial::test(format!("{tier}::{}", work.name()), move || shared.run(index, &work)).with_ignored_flag(skipped)
    });
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Ends servers and namespaces, before the process does.
    let _inside = shared.runtime.enter();
    drop(shared.lab().1.take());
    conclusion.exit_code()
}

/// One test.
enum Work {
    Scenario(scenarios::Scenario),
    Errand(Errand),
}

// === impl Tier ===

impl Tier {
    /// The scenarios on a lab that `start` makes.
    pub fn new<F>(name: &'static str, start: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Option<Lab>>> + Send + 'static,
    {
        Self { name, start: Box::new(move || Box::pin(start())), scenarios: true, errands: Vec::new() }
    }

    /// Without the scenarios: only what is done after them.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { scenarios: false, ..self }
    }

    /// What is done after them.
    #[must_use]
    pub fn then(mut self, errands: &[Errand]) -> Self {
        self.errands.extend_from_slice(errands);
        self
    }
}

// === impl Work ===

impl Work {
    fn name(&self) -> &'static str {
        match self {
            Work::Scenario(scenario) => scenario.name,
            Work::Errand(errand) => errand.name,
        }
    }

    async fn run(&self, lab: &Lab) -> Result<()> {
        match self {
            Work::Scenario(scenario) => scenario.run(lab).await,
            Work::Errand(errand) => (errand.run)(lab).await,
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lab(&self) -> MutexGuard<'_, (usize, Made)> {
        self.lab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, tier: usize, work: &Work) -> Result<(), Failed> {
        let mut lab = self.lab();
        if lab.0 != tier {
            let _inside = self.runtime.enter();
            *lab = (tier, None);
            let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
            lab.1 = starts.get(tier).map(|start| self.runtime.block_on(start()).map_err(|e| format!("{e:#}")));
        }
        let started = std::time::Instant::now();
        let outcome = match &lab.1 {
            Some(Ok(Some(lab))) => self.runtime.block_on(work.run(lab)).map_err(|e| format!("{e:#}")),
            Some(Err(error)) => Err(format!("the cluster did not start: {error}")),
            _ => Err("there is no cluster".to_owned()),
        };
        eprintln!("{}: {:.1} s", work.name(), started.elapsed().as_secs_f32());
        outcome.map_err(Failed::from)
    }
}

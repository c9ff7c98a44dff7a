//! Runs the scenarios of a tier as tests of cargo's: same arguments, same closing line.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::runtime::Runtime;

use crate::lab::Lab;
use crate::scenarios;

/// The lab, made by the first scenario that runs and shared by all.
struct Shared {
    runtime: Runtime,
    lab: Mutex<Option<Result<Option<Lab>, String>>>,
}

/// Runs every scenario on one lab, one after the other. A tier that cannot run here counts its scenarios as ignored.
pub fn scenarios<F>(tier: &str, start: impl Fn() -> F) -> ExitCode
where
    F: Future<Output = Result<Option<Lab>>>,
{
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{tier}: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = !arguments.list;
    let lab = wanted.then(|| runtime.block_on(start()).map_err(|e| format!("{e:#}")));
    let skipped = matches!(lab, Some(Ok(None)));
    let shared = Arc::new(Shared { runtime, lab: Mutex::new(lab) });
    let trials = scenarios::all().into_iter().map(|scenario| {
        let shared = shared.clone();
        let name = format!("{tier}::{}", scenario.name);
        Trial::test(name, move || shared.run(&scenario)).with_ignored_flag(skipped)
    });
    let conclusion: Conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Ends servers and namespaces, before the process does.
    let _inside = shared.runtime.enter();
    drop(shared.lab.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

impl Shared {
    fn run(&self, scenario: &scenarios::Scenario) -> Result<(), Failed> {
        let lab = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        let started = std::time::Instant::now();
        let outcome = match lab.as_ref() {
            Some(Ok(Some(lab))) => self.runtime.block_on(scenario.run(lab)).map_err(|e| format!("{e:#}")),
            Some(Err(error)) => Err(format!("the cluster did not start: {error}")),
            _ => Err("there is no cluster".to_owned()),
        };
        eprintln!("{}: {:.1} s", scenario.name, started.elapsed().as_secs_f32());
        outcome.map_err(Failed::from)
    }
}

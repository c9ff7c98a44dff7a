//! A simulated cluster: nodes, kubelets, controllers, calico-ipam and two collectors over both stores, with
//! everything going wrong that a seed says.
//!
//! Everything runs on one thread with a paused clock, so a seed is one run, always the same. The code under test
//! is the driver with its gate, and the collector; in three of eight seeds also `service::Call` over a state directory,
//! `store::cached` fed by simulated watches, addresses taken ahead and releases behind answers, as nodes have it by
//! default. The agent's own code around these is tied to a socket and a client, and is told once more in `agent`.
//!
//! | module | what it owns |
//! |---|---|
//! | `plan` | from a seed to everything that will be tried |
//! | `truth`, `oracle` | what is stored, and the judgement of every write and answer |
//! | `wire`, `linear` | the way to the stores with its faults; the history of the ledger |
//! | `agent`, `watch` | nodes as they are by default: agents, their memory, what they do before and behind answers |
//! | `node`, `kubelet`, `pods`, `controllers`, `events` | the cluster |
//! | `calico_ipam`, `kube_controllers` | Calico's own writers |
//! | `run`, `shrink` | a run, and the least of it that still fails |
//!
//! Each in an eighth of the seeds, claims are lost, claims are restored from an older backup, a pod passes to another
//! controller, Calico's datastore is locked and unlocked, and the definitions of an older release drop fields.
//!
//! `SEED=<n>` runs one seed and prints its story, `SEEDS=<n>` that many; `FIRST=<n>` begins at another than 0.
//! Failures that were found are kept in `seeds.txt`.
//!
//! This is built twice: as the test `sim` of kube-ipam, for debugging, with few seeds; and as the package `simulation`,
//! optimized, with many.

#![allow(clippy::unwrap_used)]

mod agent;
mod calico_ipam;
mod controllers;
mod events;
mod kube_controllers;
mod kubelet;
mod linear;
mod node;
mod oracle;
mod plan;
mod pods;
mod rng;
mod run;
mod shrink;
mod signal;
mod sim;
mod time;
mod truth;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kube_ipam::store::conformance;

use oracle::{Oracle, Violation};
use plan::{Definitions, Plan, Skip};
use run::{Outcome, run};
use sim::Sim;
use truth::Truth;
use wire::{Caller, Wire};

/// Most of a run is objects made and dropped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Every so many seeds a line is printed.
const PROGRESS: u64 = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How much of something is tried: what takes some seconds, or some minutes where this is built to be fast.
fn at_most(quick: u64, many: u64) -> u64 {
    if env!("CARGO_PKG_NAME") == "simulation" { many } else { quick }
}

/// The failure of a seed, cut down to what it needs, and told.
fn report(seed: u64, failed: &Outcome) -> String {
    let (skip, runs) = shrink::shrink(seed, failed);
    let told = run(seed, skip.clone(), true);
    let plan = Plan::of(seed);
    let actions = plan.actions.iter().enumerate().filter(|(index, _)| !skip.actions.contains(index));
    let actions: Vec<String> =
        actions.map(|(_, action)| format!("{:.1} s {:?}", action.at as f64 / 1000.0, action.what)).collect();
    let first = failed.violation.as_ref().map(line).unwrap_or_default();
    let now = told.violation.as_ref().map(line).unwrap_or_default();
    format!(
        "seed {seed}: {first}\nafter {runs} runs this is left of it: {now}\nactions: {}\nfaults: {}\n{}\n",
        actions.join(", "),
        told.struck.len(),
        told.story.join("\n"),
    )
}

fn line(violation: &Violation) -> String {
    format!("{} at {:.3} s: {}", violation.invariant, violation.at as f64 / 1000.0, violation.detail)
}

/// Seeds that failed, in order, with what was broken.
fn search(first: u64, count: u64) -> Vec<(u64, Violation)> {
    let (next, answers, takeovers, events) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failures = Mutex::new(Vec::new());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || failures.lock().unwrap().len() >= 20 {
                        break;
                    }
                    let outcome = run(first + index, Skip::default(), false);
                    answers.fetch_add(outcome.answers, Ordering::Relaxed);
                    takeovers.fetch_add(outcome.takeovers, Ordering::Relaxed);
                    events.fetch_add(outcome.trace.1, Ordering::Relaxed);
                    if let Some(violation) = outcome.violation {
                        println!("seed {} failed: {}", first + index, line(&violation));
                        failures.lock().unwrap().push((first + index, violation));
                    }
                    if (index + 1) % PROGRESS == 0 {
                        let rate = (index + 1) as f64 / started.elapsed().as_secs_f64();
                        println!("{} of {count} seeds, {rate:.0} a second", index + 1);
                    }
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    // After twenty failures the rest is left.
    let count = next.into_inner().min(count);
    println!(
        "{count} seeds in {seconds:.1} s ({:.0} a second): {} ADDs answered, {} takeovers, {} events",
        count as f64 / seconds,
        answers.into_inner(),
        takeovers.into_inner(),
        events.into_inner(),
    );
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|(seed, _)| *seed);
    failures
}

#[test]
fn no_seed_breaks_an_invariant() {
    if let Some(seed) = number("SEED") {
        let outcome = run(seed, Skip::default(), true);
        println!("{:#?}\n{}", Plan::of(seed), outcome.story.join("\n"));
        assert!(outcome.violation.is_none(), "{}", report(seed, &outcome));
        return;
    }
    let failures = search(number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(at_most(300, 50_000)));
    if let Some((seed, _)) = failures.first() {
        panic!(
            "{} seeds failed, the first of them:\n{}",
            failures.len(),
            report(*seed, &run(*seed, Skip::default(), false))
        );
    }
}

#[test]
fn seeds_that_failed_once_do_not_fail_again() {
    for text in include_str!("seeds.txt").lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let seed = text.split_whitespace().next().unwrap().parse().unwrap();
        let outcome = run(seed, Skip::default(), false);
        assert!(outcome.violation.is_none(), "{}", report(seed, &outcome));
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..at_most(40, 500) {
        let once = run(seed, Skip::default(), seed % 2 == 0);
        let twice = run(seed, Skip::default(), false);
        assert_eq!(once.trace, twice.trace, "seed {seed}");
        let elsewhere = std::thread::spawn(move || run(seed, Skip::default(), false).trace).join().unwrap();
        assert_eq!(once.trace, elsewhere, "seed {seed} on another thread");
    }
    let traces: std::collections::BTreeSet<_> = (0..40).map(|seed| run(seed, Skip::default(), false).trace).collect();
    assert_eq!(traces.len(), 40, "different seeds are different runs");
}

#[test]
fn leaving_everything_out_leaves_a_quiet_run() {
    let plan = Plan::of(3);
    let skip = Skip { actions: (0..plan.actions.len()).collect(), all_faults: true, slowness: true, ..Skip::default() };
    let outcome = run(3, skip, false);
    assert!(outcome.violation.is_none() && outcome.struck.is_empty());
    assert!(outcome.answers >= 1 && outcome.ledger_calls > 0);
}

#[test]
fn nodes_are_as_they_are_by_default_in_some_runs() {
    let mut seen = BTreeMap::<&str, u64>::new();
    for seed in (0..128).filter(|seed| Plan::of(*seed).whole) {
        let outcome = run(seed, Skip::default(), false);
        outcome.seen.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
    }
    // The ways by which an ADD is answered, and what only a node like that has.
    for (what, least) in [
        ("ahead", 20),
        ("records", 1),
        ("decision", 100),
        ("taken ahead", 50),
        ("watches that broke", 50),
        ("deletions that only a list told of", 5),
        ("claims that were lost", 5),
        ("claims that were restored", 5),
        ("claims that followed their pods", 3),
    ] {
        assert!(seen.get(what).is_some_and(|times| *times >= least), "{what}: {seen:?}");
    }
    let dual = (0..128).filter(|seed| Plan::of(*seed).dual).count();
    assert!((5..64).contains(&dual), "{dual}");
}

/// What is seen in those seeds below 512 whose plans are like that; none of them breaks an invariant.
fn seen_in(which: impl Fn(&Plan) -> bool) -> BTreeMap<&'static str, u64> {
    let mut seen = BTreeMap::new();
    for seed in (0..512).filter(|seed| which(&Plan::of(*seed))) {
        let outcome = run(seed, Skip::default(), false);
        assert!(outcome.violation.is_none(), "{}", report(seed, &outcome));
        *seen.entry("seeds").or_default() += 1;
        outcome.seen.into_iter().for_each(|(what, times)| *seen.entry(what).or_default() += times);
    }
    seen
}

#[test]
fn nothing_is_written_while_the_datastore_is_locked() {
    let seen = seen_in(|plan| plan.locks);
    for (what, least) in [("seeds", 50), ("locks", 50), ("ADDs refused under the lock", 20)] {
        assert!(seen.get(what).is_some_and(|times| *times >= least), "{what}: {seen:?}");
    }
}

#[test]
fn old_definitions_drop_fields_in_some_runs() {
    for definitions in [Definitions::V3_24, Definitions::V3_30, Definitions::V3_32] {
        let seen = seen_in(|plan| plan.definitions == definitions);
        assert!(seen.get("seeds").is_some_and(|seeds| *seeds >= 10), "{definitions:?}: {seen:?}");
    }
}

#[test]
fn released_addresses_cool_in_some_runs() {
    let seeds = (0..64).partition::<Vec<u64>, _>(|seed| Plan::of(*seed).cooldown > 0);
    let cooled = |seeds: &[u64]| -> Vec<u64> {
        seeds.iter().map(|seed| run(*seed, Skip::default(), false).cooled).filter(|cooled| *cooled > 0).collect()
    };
    let some = cooled(&seeds.0);
    assert!(some.len() > 4 && some.iter().sum::<u64>() > 20, "{some:?}");
    assert_eq!(cooled(&seeds.1[..12]), [0; 0]);
}

#[test]
fn the_simulated_stores_keep_the_contract() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut plan = Plan::of(1);
        (plan.faults, plan.slow, plan.lag) = (0, 300, 0);
        time::begin(plan.drift);
        let address = std::net::IpAddr::from([10, 244, 0, 9]);
        let truth = Truth::new(Oracle::new("net", Vec::new(), vec![(address, address)], 0));
        let sim: Arc<Sim> = Sim::new(plan, Skip::default(), run::net(false), truth, false);
        let caller = Caller::immortal("conformance".to_owned(), None);
        let wire = Wire::new(&sim, &caller);
        conformance::objects(&wire, "net.one").await.unwrap();
        conformance::one_writer_wins(&wire, "net.race", 8).await.unwrap();
        conformance::ledger(&wire, "10.0.0.1".parse().unwrap()).await.unwrap();
        conformance::one_claimant_wins(&wire, "10.0.0.2".parse().unwrap(), 8).await.unwrap();
        let broken = sim.history().fault();
        assert_eq!(broken, None);
        assert!(sim.history().len() > 10);
    });
}

//! Every fault at every call: whatever goes wrong, the next calls of the runtime bring everything in order.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::town::{Town, clock};
use common::{World, ip};
use futures::FutureExt as _;
use kube_ipam::collector::Always;
use kube_ipam::driver::{Driver, Error, GatedDriver};
use kube_ipam::store::faulty::{Call, Fault, Faults, Faulty};
use kube_ipam::store::memory::{MemoryLedger, MemoryObjects};
use kube_ipam::store::{Failure, StoreError};

use steps::{FIXED, Outcome, SCENARIOS, Scenario, Step};

/// Longer than every lease, grace and deadline.
const STANDSTILL: Duration = Duration::from_secs(1000);

/// What may go wrong with a call. A connection that is cut in the answer of a write is a reply that was lost.
fn faults_for(call: &Call) -> Vec<Fault> {
    let unknown = || Failure::Unknown("HTTP 500".into());
    let mut faults = vec![
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::Fail(unknown()),
        Fault::Fail(Failure::Busy(Duration::from_millis(1))),
        Fault::Pause(STANDSTILL),
    ];
    if call.is_write() {
        faults.push(Fault::LoseReply);
        if call.verb != "create" && call.verb != "txn" {
            faults.push(Fault::Fail(Failure::Conflict));
        }
        faults.push(Fault::Fail(Failure::Denied("no".into())));
    }
    faults
}

fn is_standstill(faults: &[(usize, Fault)]) -> bool {
    faults.iter().any(|(_, fault)| matches!(fault, Fault::Pause(_)))
}

fn disturbed(world: &World, faults: &Faults) -> GatedDriver<Faulty<MemoryObjects>, Faulty<MemoryLedger>> {
    Driver::new(faults.wrap(world.objects.clone()), Some(faults.wrap(world.ledger.clone())), clock)
}

/// A step with faults at calls of these numbers: what came of it (`None` if a fault killed it), the calls that it
/// made, and how many faults struck.
async fn strike(town: &mut Town, step: Step, planned: &[(usize, Fault)]) -> (Option<Outcome>, Vec<Call>, usize) {
    let (struck, plan) = (Arc::new(AtomicUsize::new(0)), planned.to_vec());
    let counter = struck.clone();
    let faults = Faults::new(move |call| {
        let (_, fault) = plan.iter().find(|(number, _)| *number == call.number)?;
        counter.fetch_add(1, Ordering::Relaxed);
        Some(fault.clone())
    });
    let world = town.world.clone();
    let by = disturbed(&world, &faults);
    let work = async {
        tokio::select! {
            outcome = step.run(&world, &by) => Some(outcome),
            () = faults.crashed() => None,
        }
    };
    // Whoever stands still for so long, meanwhile the collector comes round.
    let rounds = async {
        for _ in 0..if is_standstill(planned) { 10 } else { 0 } {
            tokio::time::sleep(STANDSTILL / 10).await;
            town.collector.round(&Always).await.unwrap();
        }
    };
    let (outcome, (), ()) = tokio::join!(work, step.meanwhile(&world), rounds);
    (outcome, faults.calls(), struck.load(Ordering::Relaxed))
}

/// The whole story: the step with its faults, what the runtime does next, and everybody's end. Gives the calls of
/// the step and how many faults struck.
async fn story(scenario: Scenario, planned: &[(usize, Fault)]) -> (Vec<Call>, usize) {
    // Boxed, as these futures do not fit on a test's stack side by side.
    let (mut town, step) = Box::pin(scenario.prepare()).await;
    let (outcome, calls, struck) = Box::pin(strike(&mut town, step, planned)).await;
    let told = format!("{scenario:?} with {planned:?} in {calls:#?} gave {outcome:?}");
    let checked = async {
        Box::pin(step.recover(&town, outcome.as_ref())).await;
        Box::pin(step.leave(&town)).await;
        town.world.assert_sound().await;
        // What no call comes back for is the collector's.
        for _ in 0..3 {
            town.round().await;
            town.pass(STANDSTILL.as_secs()).await;
        }
        town.assert_clean().await;
    };
    if std::panic::AssertUnwindSafe(checked).catch_unwind().await.is_err() {
        panic!("{told}");
    }
    (calls, struck)
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_call_is_recovered_from() {
    let (mut tried, mut points) = (0, BTreeMap::<String, usize>::new());
    for scenario in SCENARIOS {
        let (calls, _) = story(scenario, &[]).await;
        for call in calls {
            let kind = call.object.split(' ').next().unwrap_or_default();
            *points.entry(format!("{} {kind}", call.verb)).or_default() += 1;
            for fault in faults_for(&call) {
                let (_, struck) = story(scenario, &[(call.number, fault.clone())]).await;
                assert_eq!(struck, 1, "{fault:?} did not strike {call:?} of {scenario:?}");
                tried += 1;
            }
        }
    }
    println!("{tried} combinations of scenario, call and fault, at {points:#?}");
    assert!(tried > 1000, "only {tried} combinations");
}

#[tokio::test(start_paused = true)]
#[ignore = "tens of thousands of stories: make deep"]
async fn two_faults_at_any_two_calls_are_recovered_from() {
    let mut tried = 0;
    for scenario in SCENARIOS {
        let (calls, _) = story(scenario, &[]).await;
        for first in calls {
            for fault in faults_for(&first).into_iter().filter(is_survived) {
                let planned = (first.number, fault);
                // Another fault may lead to calls that no run without it makes.
                let (calls, _) = story(scenario, std::slice::from_ref(&planned)).await;
                for second in calls.iter().filter(|call| call.number > first.number) {
                    for fault in faults_for(second).into_iter().filter(|fault| !matches!(fault, Fault::Pause(_))) {
                        let (_, struck) = story(scenario, &[planned.clone(), (second.number, fault)]).await;
                        tried += usize::from(struck == 2);
                    }
                }
            }
        }
    }
    println!("{tried} combinations of scenario and two faults at two calls");
    assert!(tried > 5_000, "only {tried} combinations");
}

/// Whether a caller goes on after a fault, at once.
fn is_survived(fault: &Fault) -> bool {
    matches!(fault, Fault::LoseReply | Fault::Fail(Failure::Unknown(_) | Failure::Conflict))
}

#[tokio::test(start_paused = true)]
async fn an_add_that_fails_for_good_leaves_everything_as_it_was() {
    for scenario in [Scenario::AddFixedNew, Scenario::AddRandomWarm, Scenario::AddDualStack] {
        let (town, step) = scenario.prepare().await;
        let world = &town.world;
        let before = (world.allocated().await, world.reserved().await, world.claim(FIXED).await);
        // The block can never be written.
        let faults = Faults::new(|call| {
            (call.verb == "update" && call.object.starts_with("ipamblocks"))
                .then(|| Fault::Fail(Failure::Refused("no".into())))
        });
        let error = step.run(world, &disturbed(world, &faults)).await.unwrap_err();
        assert!(error.contains("Refused(\"no\")"), "{error}");
        assert_eq!((world.allocated().await, world.reserved().await, world.claim(FIXED).await), before);
        assert!(!world.list::<calico::IPAMHandle>().await.iter().any(|h| h.spec.handle_id.ends_with(".c")));
        world.assert_sound().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_conflicts_ends_in_an_answer_or_a_bounded_failure_with_exact_counts() {
    let (town, step) = Scenario::AddRandomWarm.prepare().await;
    let world = &town.world;
    let storm = |most: usize| {
        let seen = AtomicUsize::new(0);
        Faults::new(move |call| {
            let block = call.verb == "update" && call.object.starts_with("ipamblocks");
            (block && seen.fetch_add(1, Ordering::Relaxed) < most).then_some(Fault::Fail(Failure::Conflict))
        })
    };
    step.run(world, &disturbed(world, &storm(10))).await.unwrap();
    world.assert_sound().await;
    world.random("late");
    let endless = storm(usize::MAX);
    let error = common::add(&world.faulty(&endless), &world.net(), "n1", "late", "late").await.unwrap_err();
    assert!(matches!(error, Error::Store(StoreError { failure: Failure::Conflict, .. })), "{error:?}");
    assert!(endless.calls().len() < 200, "{} calls", endless.calls().len());
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn an_etcd_outage_stops_fixed_addresses_only() {
    let world = World::new();
    world.random("r");
    world.fixed("f", "app", FIXED);
    let down =
        Faults::new(|call| call.object.starts_with("claim").then(|| Fault::Fail(Failure::Unknown("down".into()))));
    let (driver, net) = (world.faulty(&down), world.net());
    let before = world.objects.dump();
    assert!(common::add(&driver, &net, "n1", "f", "f").await.is_err());
    assert_eq!(world.objects.dump(), before);
    common::add(&driver, &net, "n1", "r", "r").await.unwrap();
    common::del(&driver, &net, "n1", "r", "r").await.unwrap();
    world.add("n1", "f", "f").await.unwrap();
    assert!(common::del(&driver, &net, "n1", "f", "f").await.is_err(), "the runtime must try again");
    world.del("n1", "f", "f").await.unwrap();
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_taken_over_while_an_add_was_paused_is_not_answered() {
    let world = World::new();
    world.fixed("f-1", "app", FIXED);
    world.fixed("f-2", "app", FIXED);
    // Between the claim and the block of f-1's ADD, f-1 is deleted by force, its node dies, and f-2 takes over.
    let paused = world.clone();
    let faults = Faults::new(move |call| {
        if call.verb == "create" && call.object.starts_with("ipamhandles") {
            let world = paused.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    world.remove_pod("f-1");
                    world.node("n1", "Unknown");
                    world.add("n2", "f-2", "c2").await.unwrap();
                });
            })
            .join()
            .unwrap();
        }
        None
    });
    let outcome = common::add(&world.faulty(&faults), &world.net(), "n1", "f-1", "c1").await;
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(world.claim(FIXED).await.unwrap().value.is_held_by("c2", "eth0"));
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c2".to_owned())]);
    world.assert_sound().await;
}

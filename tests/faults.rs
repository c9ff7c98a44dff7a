//! Every fault at every call: whatever goes wrong, the next calls of the runtime bring everything in order.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{World, ip};
use kube_ipam::driver::Error;
use kube_ipam::store::faulty::{Call, Fault, Faults};
use kube_ipam::store::{Failure, StoreError};
use serde_json::json;

/// What a runtime does in a scenario; the faults strike in the last step.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    AddRandomFirst,
    AddRandomWarm,
    AddFixedNew,
    AddFixedAgain,
    AddDualStack,
    SandboxRetry,
    TakeOver,
    Borrow,
    DelRandom,
    DelFixed,
}

const SCENARIOS: [Scenario; 10] = [
    Scenario::AddRandomFirst,
    Scenario::AddRandomWarm,
    Scenario::AddFixedNew,
    Scenario::AddFixedAgain,
    Scenario::AddDualStack,
    Scenario::SandboxRetry,
    Scenario::TakeOver,
    Scenario::Borrow,
    Scenario::DelRandom,
    Scenario::DelFixed,
];

const FIXED: &str = "10.244.0.216";

impl Scenario {
    fn is_del(self) -> bool {
        matches!(self, Self::DelRandom | Self::DelFixed)
    }

    /// The world before the step under test, and that step's node, pod and container.
    async fn prepare(self) -> (World, &'static str, &'static str, &'static str) {
        let mut world = World::new();
        world.random("r");
        world.random("other");
        world.fixed("f", "app", FIXED);
        match self {
            Self::AddRandomFirst => return (world, "n1", "r", "c"),
            Self::AddRandomWarm => {
                world.add("n1", "other", "o").await.unwrap();
                return (world, "n1", "r", "c");
            }
            Self::AddFixedNew => return (world, "n1", "f", "c"),
            Self::AddFixedAgain => {
                world.add("n2", "f", "before").await.unwrap();
                world.del("n2", "f", "before").await.unwrap();
            }
            Self::AddDualStack => {
                world.pool("v6", json!({"cidr": "fd00:10::/112", "blockSize": 122}));
                world.conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10::/112"}]]);
            }
            Self::SandboxRetry => {
                world.add("n1", "f", "before").await.unwrap();
            }
            Self::TakeOver => {
                world.fixed("gone", "app", FIXED);
                world.add("n2", "gone", "before").await.unwrap();
                world.remove_pod("gone");
                world.node("n2", "Unknown");
            }
            Self::Borrow => {
                world.conf["ipam"]["rangeStart"] = json!("10.244.0.64");
                world.conf["ipam"]["rangeEnd"] = json!("10.244.0.127");
                world.add("n2", "other", "o").await.unwrap();
                return (world, "n1", "r", "c");
            }
            Self::DelRandom => {
                world.add("n1", "r", "c").await.unwrap();
                return (world, "n1", "r", "c");
            }
            Self::DelFixed => {
                world.add("n1", "f", "c").await.unwrap();
            }
        }
        (world, "n1", "f", "c")
    }
}

fn faults_for(call: &Call) -> Vec<Fault> {
    let unknown = || Failure::Unknown("HTTP 500".into());
    let mut faults = vec![
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::Fail(unknown()),
        Fault::Fail(Failure::Busy(Duration::from_millis(1))),
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

/// Runs a scenario's step with `fault` at call number `at`; `None` if the fault killed it.
async fn strike(
    scenario: Scenario,
    world: &World,
    step: (&str, &str, &str),
    at: usize,
    fault: Fault,
) -> Option<Result<(), Error>> {
    let struck = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = struck.clone();
    let faults = Faults::new(move |call| {
        (call.number == at).then(|| {
            counter.fetch_add(1, Ordering::Relaxed);
            fault.clone()
        })
    });
    let (node, pod, container) = step;
    let (driver, net) = (world.faulty(&faults), world.net());
    let work = async {
        if scenario.is_del() {
            common::del(&driver, &net, node, pod, container).await.map(drop)
        } else {
            common::add(&driver, &net, node, pod, container).await.map(drop)
        }
    };
    let outcome = tokio::select! {
        outcome = work => Some(outcome),
        () = faults.crashed() => None,
    };
    assert_eq!(struck.load(Ordering::Relaxed), 1, "the fault did not strike");
    outcome
}

/// What a runtime does next: after a failed or killed ADD it calls DEL and tries again with a new sandbox;
/// a failed DEL it repeats.
async fn recover(scenario: Scenario, world: &World, step: (&str, &str, &str), outcome: Option<Result<(), Error>>) {
    let (node, pod, container) = step;
    let given = matches!(outcome, Some(Ok(())));
    if scenario.is_del() {
        if !given {
            world.del(node, pod, container).await.unwrap();
        }
        assert!(!world.allocated().await.iter().any(|(_, h)| h.ends_with(&format!(".{container}"))));
        if pod == "f" {
            assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
        }
        return;
    }
    if given {
        let again = world.add(node, pod, container).await.unwrap();
        assert!(!again.is_empty());
    } else {
        world.del(node, pod, container).await.unwrap();
        assert!(!world.allocated().await.iter().any(|(_, h)| h.ends_with(&format!(".{container}"))));
        world.add(node, pod, "retry").await.unwrap();
    }
    if pod == "f" {
        let holder = world.claim(FIXED).await.unwrap().value.holder.unwrap();
        let (_, handle) = world.allocated().await.into_iter().find(|(a, _)| *a == ip(FIXED)).unwrap();
        assert_eq!(format!("k8s-pod-network.{}", holder.container_id), handle);
        assert_eq!(world.reserved().await, [format!("{FIXED}/32")]);
    }
    // The pod goes, and its last container with it.
    for last in [container, "retry", "before"] {
        world.del(node, pod, last).await.unwrap();
    }
    assert!(!world.allocated().await.iter().any(|(_, h)| h.contains("retry") || h.ends_with(".c")));
}

#[tokio::test(start_paused = true)]
async fn every_fault_at_every_call_is_recovered_from() {
    let mut tried = 0;
    for scenario in SCENARIOS {
        let (world, node, pod, container) = scenario.prepare().await;
        let dry = Faults::none();
        let (driver, net) = (world.faulty(&dry), world.net());
        if scenario.is_del() {
            common::del(&driver, &net, node, pod, container).await.unwrap();
        } else {
            common::add(&driver, &net, node, pod, container).await.unwrap();
        }
        for call in dry.calls() {
            for fault in faults_for(&call) {
                let (world, node, pod, container) = scenario.prepare().await;
                let step = (node, pod, container);
                let outcome = strike(scenario, &world, step, call.number, fault.clone()).await;
                let told = format!("{scenario:?} with {fault:?} at {call:?} gave {outcome:?}");
                let checked = async {
                    recover(scenario, &world, step, outcome).await;
                    world.assert_sound().await;
                };
                let ended = std::panic::AssertUnwindSafe(checked);
                if futures::FutureExt::catch_unwind(ended).await.is_err() {
                    panic!("{told}");
                }
                tried += 1;
            }
        }
    }
    println!("{tried} combinations of scenario, call and fault");
    assert!(tried > 500, "only {tried} combinations");
}

#[tokio::test(start_paused = true)]
async fn an_add_that_fails_for_good_leaves_everything_as_it_was() {
    for scenario in [Scenario::AddFixedNew, Scenario::AddRandomWarm, Scenario::AddDualStack] {
        let (world, node, pod, container) = scenario.prepare().await;
        let before = (world.allocated().await, world.reserved().await, world.claim(FIXED).await);
        // The block can never be written.
        let faults = Faults::new(|call| {
            (call.verb == "update" && call.object.starts_with("ipamblocks"))
                .then(|| Fault::Fail(Failure::Refused("no".into())))
        });
        let error = common::add(&world.faulty(&faults), &world.net(), node, pod, container).await.unwrap_err();
        assert!(matches!(error, Error::Store(StoreError { failure: Failure::Refused(_), .. })), "{error:?}");
        assert_eq!((world.allocated().await, world.reserved().await, world.claim(FIXED).await), before);
        assert!(!world.list::<calico::IPAMHandle>().await.iter().any(|h| h.spec.handle_id.ends_with(container)));
        world.assert_sound().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_conflicts_ends_in_an_answer_or_a_bounded_failure_with_exact_counts() {
    let (world, node, pod, container) = Scenario::AddRandomWarm.prepare().await;
    let storm = |most: usize| {
        let seen = AtomicUsize::new(0);
        Faults::new(move |call| {
            let block = call.verb == "update" && call.object.starts_with("ipamblocks");
            (block && seen.fetch_add(1, Ordering::Relaxed) < most).then_some(Fault::Fail(Failure::Conflict))
        })
    };
    common::add(&world.faulty(&storm(10)), &world.net(), node, pod, container).await.unwrap();
    world.assert_sound().await;
    world.random("late");
    let endless = storm(usize::MAX);
    let error = common::add(&world.faulty(&endless), &world.net(), node, "late", "late").await.unwrap_err();
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

//! Nodes at work while the collector is: whatever happens between any two of its calls, what a live pod holds
//! is never freed, and in the end everything is in order.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use common::World;
use common::town::{Town, clock, driver, report};
use futures::future::FutureExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube_ipam::audit::Class;
use kube_ipam::collector::Always;
use kube_ipam::driver::{Driver, GatedDriver};
use kube_ipam::store::faulty::{Call, Fault, Faults, Faulty};
use kube_ipam::store::memory::{MemoryLedger, MemoryObjects};
use kube_ipam::store::{Failure, Object, Objects as _};
use proptest::prelude::*;

const FIXED: &str = "10.244.0.216";

/// One of everything that a collector has to do: a leak of a node that is gone, one of a Ready node, a holder
/// that lost its address, an orphaned claim, a miscounted handle, an entry too many.
async fn disorder() -> Town {
    let town = Town::new();
    let lost = town.run(town.world.random("lost"), "n1").await;
    town.run(town.world.random("leak"), "n2").await;
    town.run(town.world.fixed("held", "app", FIXED), "n1").await;
    town.run(town.world.fixed("orphan", "nobody", "10.244.0.217"), "n2").await;
    town.del("n2", "orphan", "c-orphan").await;
    for pod in ["lost", "leak", "held", "orphan"] {
        town.world.remove_pod(pod);
    }
    town.world.objects.remove::<Deployment>(Some("default"), "nobody");
    let mut reservation = town.world.list::<calico::IPReservation>().await.remove(0);
    reservation.spec.reserved_cidrs.push("10.244.0.218/32".into());
    town.world.objects.put(&reservation);
    let mut handle = calico::IPAMHandleSpec::new("k8s-pod-network.nothing");
    handle.increment(&town.block_of(lost).await.spec.cidr, 1);
    town.world.objects.put(&handle.object());
    town.run(town.world.random("alive"), "n2").await;
    town.remove_node("n1");
    town
}

/// The calls of the rounds that bring a disorder in order.
async fn calls() -> Vec<Call> {
    let mut town = disorder().await;
    survive(&mut town, 1320).await;
    town.assert_clean().await;
    let calls = town.faults.calls();
    // A round that has nothing to do only lists, and the lists of one round are like those of another.
    let last = calls.iter().rposition(|call| call.is_write()).unwrap();
    calls.into_iter().take(last + 1).filter(|call| call.verb != "list" || call.number < 10).collect()
}

fn faults_for(call: &Call) -> Vec<Fault> {
    let mut faults = vec![Fault::CrashBefore, Fault::CrashAfter, Fault::Fail(Failure::Unknown("HTTP 500".into()))];
    if call.is_write() {
        faults.push(Fault::LoseReply);
    }
    faults
}

/// Rounds every minute for `seconds`, whatever becomes of them; a collector that dies is followed by another.
async fn survive(town: &mut Town, seconds: u64) {
    for _ in 0..seconds / 60 {
        let crashed = town.faults.clone();
        let died = tokio::select! {
            biased;
            _ = town.collector.round(&Always) => false,
            () = crashed.crashed() => true,
        };
        if died {
            town.restart_collector();
        }
        town.pass(60).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_at_any_call_of_the_collector_is_made_good_by_later_rounds() {
    let calls = calls().await;
    assert!(calls.iter().filter(|call| call.is_write()).count() >= 12, "{calls:#?}");
    for call in &calls {
        for fault in faults_for(call) {
            let mut town = disorder().await;
            let (number, mut strike) = (call.number, Some(fault.clone()));
            town.on_call(move |now| if now.number == number { strike.take() } else { None });
            survive(&mut town, 1320).await;
            town.undisturbed();
            survive(&mut town, 1320).await;
            let found = town.violations().await;
            assert!(found.is_empty(), "{fault:?} at {call:?}: {found:#?}");
            assert_eq!(town.world.allocated().await.len(), 1, "{fault:?} at {call:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_the_address_at_any_call_of_the_collector_keeps_it() {
    for call in calls().await {
        let mut town = disorder().await;
        let outcome: Arc<Mutex<Option<bool>>> = Arc::default();
        let (world, said, number) = (town.world.clone(), outcome.clone(), call.number);
        town.on_call(move |now| {
            if now.number == number {
                let pod = world.fixed("next", "app", FIXED);
                let added = common::add(&driver(&world), &world.net(), "n2", "next", "c-next").now_or_never();
                let given = matches!(added, Some(Ok(_)));
                if given {
                    report(&world, pod, "n2", &[FIXED.parse().unwrap()]);
                }
                *said.lock().unwrap() = Some(given);
            }
            None
        });
        survive(&mut town, 1320).await;
        let given = outcome.lock().unwrap().unwrap();
        // Only a holder that stands in the way by the rules keeps it from being given at once.
        if given {
            assert!(town.is_allocated(FIXED.parse().unwrap()).await, "{call:?}");
            assert!(town.claim(FIXED).await.unwrap().is_held_by("c-next", "eth0"), "{call:?}");
        } else {
            town.world.remove_pod("next");
        }
        survive(&mut town, 1320).await;
        let found = town.violations().await;
        assert!(found.is_empty(), "a pod at {call:?}, given {given}: {found:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_add_that_lands_after_pods_were_listed_is_protected() {
    let mut town = Town::new();
    town.world.random("first");
    town.run(town.world.random("first"), "n1").await;
    // In every round a pod is created after the pods were listed, and its ADD lands before the blocks are.
    let (world, mut serial) = (town.world.clone(), 0);
    town.on_call(move |call| {
        if call.verb == "list" && call.object == "ipamblocks" {
            serial += 1;
            let name = format!("late-{serial}");
            world.random(&name);
            common::add(&driver(&world), &world.net(), "n1", &name, &format!("c-{name}"))
                .now_or_never()
                .unwrap()
                .unwrap();
        }
        None
    });
    for round in 1..=40 {
        assert_eq!(town.round().await.repairs, []);
        assert_eq!(town.world.allocated().await.len(), round + 1);
        town.pass(30).await;
    }
}

// === random operations ===

#[derive(Debug, Clone)]
enum Operation {
    /// A pod is created, and its ADD runs to its end, or dies at this call.
    Start {
        fixed: Option<u8>,
        node: u8,
        dies_at: Option<u8>,
    },
    /// DEL, and the pod object goes.
    Stop(u8),
    /// The pod object goes and DEL never comes.
    Vanish(u8),
    /// A DEL that dies at this call, while the pod object goes.
    HalfStop(u8, u8),
    /// A new sandbox of the same pod; the old one's DEL comes if told so.
    Sandbox(u8, bool),
    /// The node is not Ready any more, and its pods are deleted by force.
    Unready(u8),
    /// The Node is deleted, and its pods.
    RemoveNode(u8),
    /// A Deployment is deleted.
    RemoveOwner(u8),
    Pass(u16),
    /// The collector begins anew.
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    let fixed = prop::option::of(0..4u8);
    prop_oneof![
        6 => (fixed, 0..3u8, prop::option::weighted(0.3, 0..16u8))
            .prop_map(|(fixed, node, dies_at)| Operation::Start { fixed, node, dies_at }),
        2 => any::<u8>().prop_map(Operation::Stop),
        3 => any::<u8>().prop_map(Operation::Vanish),
        2 => (any::<u8>(), 0..8u8).prop_map(|(pod, call)| Operation::HalfStop(pod, call)),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(pod, del)| Operation::Sandbox(pod, del)),
        1 => (0..3u8).prop_map(Operation::Unready),
        1 => (0..3u8).prop_map(Operation::RemoveNode),
        1 => (0..4u8).prop_map(Operation::RemoveOwner),
        4 => (1..900u16).prop_map(Operation::Pass),
        1 => Just(Operation::Restart),
    ]
}

/// What the nodes know of their pods.
#[derive(Clone)]
struct Nodes {
    world: World,
    running: Arc<Mutex<Vec<Running>>>,
    serial: Arc<Mutex<usize>>,
}

/// A pod that has its addresses and exists.
#[derive(Clone, Debug)]
struct Running {
    name: String,
    node: String,
    container: String,
    addresses: BTreeSet<IpAddr>,
}

impl Nodes {
    fn serial(&self) -> usize {
        let mut serial = self.serial.lock().unwrap();
        *serial += 1;
        *serial
    }

    fn pick(&self, index: u8) -> Option<Running> {
        let running = self.running.lock().unwrap();
        running.get(usize::from(index).checked_rem(running.len())?).cloned()
    }

    fn forget(&self, name: &str) {
        self.running.lock().unwrap().retain(|running| running.name != name);
    }

    /// Everything that an operation does, without waiting: an ADD that would have to wait dies there.
    fn act(&self, operation: &Operation) {
        let world = &self.world;
        match operation {
            Operation::Start { fixed, node, dies_at } => {
                let (serial, node) = (self.serial(), format!("n{node}"));
                if now::<Node>(world, None, &node).is_none() {
                    world.node(&node, "True");
                }
                let name = format!("p-{serial}");
                let pod = match fixed {
                    Some(app) => world.fixed(&name, &format!("app-{app}"), &format!("10.244.0.{}", 210 + app / 2)),
                    None => world.random(&name),
                };
                self.sandbox(pod, &node, &format!("c-{serial}"), *dies_at);
            }
            Operation::Stop(index) | Operation::HalfStop(index, _) | Operation::Vanish(index) => {
                let Some(pod) = self.pick(*index) else { return };
                self.forget(&pod.name);
                let dies_at = match operation {
                    Operation::Stop(_) => None,
                    Operation::HalfStop(_, call) => Some(*call),
                    _ => Some(0),
                };
                let faults = dying(dies_at);
                common::del(&clocked(world, &faults), &world.net(), &pod.node, &pod.name, &pod.container)
                    .now_or_never();
                world.remove_pod(&pod.name);
            }
            Operation::Sandbox(index, del) => {
                let Some(pod) = self.pick(*index) else { return };
                let container = format!("c-{}", self.serial());
                let object = now::<Pod>(world, Some("default"), &pod.name).unwrap();
                self.forget(&pod.name);
                self.sandbox(object, &pod.node, &container, None);
                if *del {
                    common::del(&driver(world), &world.net(), &pod.node, &pod.name, &pod.container).now_or_never();
                }
            }
            Operation::Unready(node) | Operation::RemoveNode(node) => {
                let node = format!("n{node}");
                if let Operation::Unready(_) = operation {
                    world.node(&node, "Unknown");
                } else {
                    world.objects.remove::<Node>(None, &node);
                }
                let gone: Vec<Running> =
                    self.running.lock().unwrap().iter().filter(|pod| pod.node == node).cloned().collect();
                for pod in gone {
                    self.forget(&pod.name);
                    world.remove_pod(&pod.name);
                }
            }
            Operation::RemoveOwner(app) => {
                world.objects.remove::<Deployment>(Some("default"), &format!("app-{app}"));
            }
            Operation::Pass(_) | Operation::Restart => {}
        }
    }

    /// An ADD. The pod of one that dies or is refused goes, and nobody calls DEL.
    fn sandbox(&self, pod: Pod, node: &str, container: &str, dies_at: Option<u8>) {
        let (world, name) = (&self.world, pod.name_any());
        let faults = dying(dies_at);
        match common::add(&clocked(world, &faults), &world.net(), node, &name, container).now_or_never() {
            Some(Ok(assigned)) => {
                let addresses: Vec<IpAddr> = assigned.iter().map(|a| a.address).collect();
                report(world, pod, node, &addresses);
                self.running.lock().unwrap().push(Running {
                    name,
                    node: node.to_owned(),
                    container: container.to_owned(),
                    addresses: addresses.into_iter().collect(),
                });
            }
            _ => {
                world.remove_pod(&name);
            }
        }
    }

    /// What a live pod holds is on record for its container, and its claim with it.
    async fn assert_kept(&self, town: &Town, after: &str) {
        let allocated = town.world.allocated().await;
        for pod in self.running.lock().unwrap().iter() {
            for address in &pod.addresses {
                let handle = format!("k8s-pod-network.{}", pod.container);
                assert!(allocated.contains(&(*address, handle)), "{pod:?} lost {address} after {after}: {allocated:?}");
            }
        }
        let serious = [Class::SharedAddress, Class::OthersAddress, Class::Unrecorded, Class::BlocksOverlap];
        let found = town.violations().await;
        let found: Vec<_> = found.iter().filter(|violation| serious.contains(&violation.class)).collect();
        assert!(found.is_empty(), "after {after}: {found:#?}");
    }
}

/// A node's driver that these faults strike.
fn clocked(world: &World, faults: &Faults) -> GatedDriver<Faulty<MemoryObjects>, Faulty<MemoryLedger>> {
    Driver::new(faults.wrap(world.objects.clone()), Some(faults.wrap(world.ledger.clone())), clock)
}

/// A read of memory, which never waits.
fn now<K: Object>(world: &World, namespace: Option<&str>, name: &str) -> Option<K> {
    world.objects.get(namespace, name).now_or_never().unwrap().unwrap()
}

/// The caller dies at call number `at`.
fn dying(at: Option<u8>) -> Faults {
    Faults::new(move |call| (at.map(usize::from) == Some(call.number)).then_some(Fault::CrashBefore))
}

async fn scenario(operations: Vec<(Operation, Option<u16>)>) {
    let mut town = Town::new();
    let nodes = Nodes { world: town.world.clone(), running: Arc::default(), serial: Arc::default() };
    for (operation, within_round) in operations {
        match (&operation, within_round) {
            (Operation::Pass(seconds), _) => town.pass((*seconds).into()).await,
            (Operation::Restart, _) => town.restart_collector(),
            (_, None) => nodes.act(&operation),
            (_, Some(call)) => {
                // In the middle of the next round.
                let (nodes, operation, mut left) = (nodes.clone(), operation.clone(), Some(call));
                town.on_call(move |_| {
                    match left {
                        Some(0) => {
                            left = None;
                            nodes.act(&operation);
                        }
                        Some(n) => left = Some(n - 1),
                        None => {}
                    }
                    None
                });
            }
        }
        let _ = town.try_round().await.unwrap();
        town.undisturbed();
        nodes.assert_kept(&town, &format!("{operation:?} at {within_round:?}")).await;
    }
    let mut repairs = Vec::new();
    for _ in 0..160 {
        town.pass(30).await;
        repairs = town.round().await.repairs;
        nodes.assert_kept(&town, "the last operation").await;
    }
    assert_eq!(repairs, [], "the collector does not come to rest");
    town.assert_clean().await;
    let held = |address: &IpAddr| nodes.running.lock().unwrap().iter().any(|pod| pod.addresses.contains(address));
    for (address, owner) in town.owners().await {
        let exists = town.world.objects.owner_exists(&owner).await.unwrap();
        assert!(exists || held(&address), "the claim of {owner} on {address} outlives it");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nodes_and_collector_together_keep_what_live_pods_hold_and_end_clean(
        operations in prop::collection::vec((operation(), prop::option::weighted(0.4, 0..40u16)), 1..24)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(scenario(operations));
    }
}

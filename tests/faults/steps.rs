//! What is done while faults strike, and what must be so afterwards.

use std::net::IpAddr;
use std::time::Duration;

use calico::{Entry, Expect, IPPool, cidr_name};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube_ipam::claim::{Claim, Holder};
use kube_ipam::driver::{BY_HAND, ClaimFate, Driver, Shown, Wanted};
use kube_ipam::pod::Owner;
use kube_ipam::store::{Ledger, Objects};
use serde_json::{Map, json};
use tokio::time::{Instant, sleep};

use crate::common::town::{Town, driver};
use crate::common::{World, add, attachment, del, ip};

pub const FIXED: &str = "10.244.0.216";

/// What a runtime or a person does; the faults strike in the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    AddRandomFirst,
    AddRandomWarm,
    AddFixedNew,
    AddFixedAgain,
    AddDualStack,
    /// While it waits, the pod that has the address goes.
    AddWaiting,
    SandboxRetry,
    TakeOver,
    /// The only block of the range is another node's, and in use.
    Borrow,
    /// The only block of the range is another node's, and has been empty for a while.
    Reclaim,
    DelRandom,
    DelFixed,
    /// Containers that the runtime does not know any more.
    Gc,
    /// A claim is made of the random address that a pod has.
    Adopt,
    /// A claim is taken back whose pod is gone, with the allocation.
    Withdraw,
}

pub const SCENARIOS: [Scenario; 15] = [
    Scenario::AddRandomFirst,
    Scenario::AddRandomWarm,
    Scenario::AddFixedNew,
    Scenario::AddFixedAgain,
    Scenario::AddDualStack,
    Scenario::AddWaiting,
    Scenario::SandboxRetry,
    Scenario::TakeOver,
    Scenario::Borrow,
    Scenario::Reclaim,
    Scenario::DelRandom,
    Scenario::DelFixed,
    Scenario::Gc,
    Scenario::Adopt,
    Scenario::Withdraw,
];

/// The pod and the container that the last step is about.
#[derive(Clone, Copy)]
pub struct Step {
    pub scenario: Scenario,
    node: &'static str,
    pod: &'static str,
    container: &'static str,
}

/// What came of a step: not every failure tells anything about what was written.
pub type Outcome = Result<(), String>;

impl Scenario {
    /// The cluster before the last step.
    pub async fn prepare(self) -> (Town, Step) {
        let mut world = World::new();
        match self {
            Self::AddDualStack => {
                world.pool("v6", json!({"cidr": "fd00:10::/112", "blockSize": 122}));
                world.conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10::/112"}]]);
            }
            Self::Borrow | Self::Reclaim => {
                world.conf["ipam"]["rangeStart"] = json!("10.244.0.64");
                world.conf["ipam"]["rangeEnd"] = json!("10.244.0.127");
            }
            Self::AddWaiting => world.conf["ipam"]["waitSeconds"] = json!(5),
            _ => {}
        }
        let town = Town::with(world);
        let step = self.furnish(&town).await;
        (town, step)
    }

    async fn furnish(self, town: &Town) -> Step {
        let world = &town.world;
        for pod in ["r", "other"] {
            world.random(pod);
        }
        world.fixed("f", "app", FIXED);
        match self {
            Self::AddRandomWarm => drop(town.add("n1", "other", "o").await.unwrap()),
            Self::AddRandomFirst | Self::AddFixedNew | Self::AddDualStack => {}
            Self::AddFixedAgain => {
                town.add("n2", "f", "before").await.unwrap();
                town.del("n2", "f", "before").await;
            }
            Self::AddWaiting => {
                world.fixed("going", "app", FIXED);
                town.add("n2", "going", "before").await.unwrap();
            }
            Self::SandboxRetry => drop(town.add("n1", "f", "before").await.unwrap()),
            Self::TakeOver => {
                world.fixed("gone", "app", FIXED);
                town.add("n2", "gone", "before").await.unwrap();
                world.remove_pod("gone");
                world.node("n2", "Unknown");
            }
            Self::Borrow => drop(town.add("n2", "other", "o").await.unwrap()),
            Self::Reclaim => {
                town.add("n2", "other", "o").await.unwrap();
                town.del("n2", "other", "o").await;
                town.pass(120).await;
            }
            Self::DelRandom | Self::Adopt => drop(town.add("n1", "r", "c").await.unwrap()),
            Self::DelFixed => drop(town.add("n1", "f", "c").await.unwrap()),
            Self::Gc | Self::Withdraw => {
                town.add("n1", "r", "lost").await.unwrap();
                town.add("n1", "f", "c").await.unwrap();
                world.remove_pod("f");
            }
        }
        let pod = match self {
            Self::AddRandomFirst | Self::AddRandomWarm | Self::Borrow | Self::Reclaim => "r",
            Self::DelRandom | Self::Adopt => "r",
            _ => "f",
        };
        Step { scenario: self, node: "n1", pod, container: "c" }
    }

    fn is_add(self) -> bool {
        !matches!(self, Self::DelRandom | Self::DelFixed | Self::Gc | Self::Adopt | Self::Withdraw)
    }
}

fn told<T>(outcome: Result<T, impl std::fmt::Debug>) -> Outcome {
    outcome.map(drop).map_err(|error| format!("{error:?}"))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(9)
}

impl Step {
    /// The step itself, by whoever's stores.
    pub async fn run<O: Objects, L: Ledger>(self, world: &World, by: &Driver<O, L>) -> Outcome {
        let Self { scenario, node, pod, container } = self;
        let net = world.net();
        match scenario {
            Scenario::DelRandom | Scenario::DelFixed => told(del(by, &net, node, pod, container).await),
            Scenario::Gc => told(by.gc(&attachment(&net, node, "", ""), &[]).await),
            Scenario::Adopt => told(by.claim_by_hand(&wanted(world).await, soon()).await),
            Scenario::Withdraw => told(by.withdraw(&shown(world).await, ClaimFate::Drop, soon()).await),
            _ => told(add(by, &net, node, pod, container).await),
        }
    }

    /// What others do meanwhile, whatever becomes of the step.
    pub async fn meanwhile(self, world: &World) {
        if self.scenario == Scenario::AddWaiting {
            sleep(Duration::from_secs(1)).await;
            del(&driver(world), &world.net(), "n2", "going", "before").await.unwrap();
            world.remove_pod("going");
        }
    }

    /// What a runtime or a person does next: after a failed or killed ADD comes DEL, and another ADD with a new
    /// sandbox; everything else is repeated.
    pub async fn recover(self, town: &Town, outcome: Option<&Outcome>) {
        let Self { scenario, node, pod, container } = self;
        let world = &town.world;
        let given = matches!(outcome, Some(Ok(())));
        if scenario.is_add() {
            if given {
                assert!(!town.add(node, pod, container).await.unwrap().is_empty());
            } else {
                town.del(node, pod, container).await;
                assert!(!bears(world, &[container]).await, "a DEL left something");
                town.add(node, pod, "retry").await.unwrap();
            }
        } else if !given {
            self.run(world, &town.driver()).await.unwrap();
        }
        match scenario {
            Scenario::Gc => assert!(!bears(world, &[container, "lost"]).await),
            Scenario::Withdraw => {
                assert!(!bears(world, &[container]).await && bears(world, &["lost"]).await);
                assert!(world.claim(FIXED).await.is_none() && world.reserved().await.is_empty());
            }
            Scenario::Adopt => {
                let wanted = wanted(world).await;
                assert_eq!(wanted.standing.map(|standing| standing.value), Some(wanted.claim));
                assert_eq!(world.reserved().await.len(), 1);
            }
            Scenario::DelRandom | Scenario::DelFixed => assert!(!bears(world, &[container]).await),
            _ if pod == "f" => self.holds(world).await,
            _ => {}
        }
        if matches!(scenario, Scenario::Gc | Scenario::DelFixed) {
            assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
        }
    }

    /// Claim, block and reservation agree on who has the fixed address.
    async fn holds(self, world: &World) {
        let holder = world.claim(FIXED).await.unwrap().value.holder.unwrap();
        let (_, handle) = world.allocated().await.into_iter().find(|(a, _)| *a == ip(FIXED)).unwrap();
        assert_eq!(format!("k8s-pod-network.{}", holder.container_id), handle);
        assert_eq!(world.reserved().await, [format!("{FIXED}/32")]);
    }

    /// The pods go, and their containers with them; then nothing of them is left.
    pub async fn leave(self, town: &Town) {
        let containers = [self.container, "retry", "before", "lost"];
        for container in containers {
            town.del(self.node, self.pod, container).await;
        }
        assert!(!bears(&town.world, &containers).await);
    }
}

/// Whether any of these containers has an address on record.
async fn bears(world: &World, containers: &[&str]) -> bool {
    let allocated = world.allocated().await;
    allocated.iter().any(|(_, handle)| containers.iter().any(|c| handle.ends_with(&format!(".{c}"))))
}

async fn block_of(world: &World, address: IpAddr) -> IpNetwork {
    calico::covering(&world.list::<IPPool>().await, address).unwrap().spec.block_of(address)
}

/// The entry of an address: its block, and whose it is.
async fn entry(world: &World, cidr: IpNetwork, address: IpAddr) -> Option<(IpNetwork, Expect)> {
    let block = world.objects.get::<calico::IPAMBlock>(None, &cidr_name(&cidr)).await.unwrap()?;
    match block.spec.entry(address) {
        Entry::Used { attribute, sequence } => {
            Some((cidr, Expect { handle: attribute.handle().map(str::to_owned), sequence }))
        }
        _ => None,
    }
}

/// A claim on the address that pod r has, as the records stand.
async fn wanted(world: &World) -> Wanted {
    let allocated = world.allocated().await;
    let (address, _) = allocated.iter().find(|(_, handle)| handle.ends_with(".c")).unwrap().clone();
    let cidr = block_of(world, address).await;
    let pod = world.random("r");
    let created = Timestamp::from_second(1_800_000_000).unwrap();
    let holder = Holder {
        pod_uid: "uid-of-r".into(),
        pod: "r".into(),
        container_id: "c".into(),
        interface: "eth0".into(),
        node: "n1".into(),
        node_uid: None,
        since: created,
        unknown: Map::new(),
    };
    let claim = Claim {
        address,
        owner: Owner::of(&pod).unwrap(),
        holder: Some(holder),
        created,
        generation: BY_HAND,
        contested: None,
        owner_gone: None,
        moved: None,
        origin: None,
        successor: None,
        unknown: Map::new(),
    };
    let standing = world.ledger.read(address).await.unwrap();
    Wanted { claim, standing, cidr, entry: entry(world, cidr, address).await }
}

/// What is on record of the fixed address.
async fn shown(world: &World) -> Shown {
    let cidr = block_of(world, ip(FIXED)).await;
    let claim = world.claim(FIXED).await;
    Shown { address: ip(FIXED), entry: entry(world, cidr, ip(FIXED)).await, claim, cidr: Some(cidr) }
}

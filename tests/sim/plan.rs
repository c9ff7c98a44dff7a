//! From a seed to everything that will be tried: how the cluster is made, what happens to it, how unkind the
//! network is. What may be left out again, to find out what a failure needs, is in [`Skip`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::rng::{Rng, mix};
use super::time::{Drift, NODES};

/// Milliseconds in which things happen; afterwards the cluster is left alone.
pub const EVENTFUL: u64 = 40_000;

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub block_size: u8,
    pub strict_affinity: bool,
    /// Seconds for which a released address is given to nobody but its owner; mostly 0.
    pub cooldown: i64,
    /// Whether an agent serves each node; else each call is a process of its own.
    pub agents: bool,
    /// Whether nodes are as they are by default: calls by `service::Call`, agents with caches that watches fill, direct
    /// mode where there is no agent.
    pub whole: bool,
    /// Whether agents take addresses ahead.
    pub ahead: bool,
    /// Times in a thousand that a watch breaks off instead of bringing an event.
    pub breaks: u64,
    /// Whether pods get an address of both families.
    pub dual: bool,
    /// Whether agents answer DELs before these are on record.
    pub behind: bool,
    /// Whether every workload is deleted in the end.
    pub teardown: bool,
    pub drift: [Drift; NODES + 1],
    /// Faults in a thousand calls.
    pub faults: u64,
    /// Slow messages in a thousand.
    pub slow: u64,
    /// Milliseconds by which cached lists lag at most.
    pub lag: u64,
    pub workloads: Vec<Workload>,
    pub actions: Vec<Action>,
    /// Whether claims are restored or lost, so that earlier ones have to be kept.
    pub harms_claims: bool,
    /// Whether Calico's datastore is locked at times. Then no caller waits for longer than a real one does.
    pub locks: bool,
    /// Which release of Calico the definitions are of.
    pub definitions: Definitions,
}

/// Releases of Calico by their definitions: the API server drops what these do not know with every write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Definitions {
    /// v3.24 to v3.29: no `BlockAffinity.spec.type`.
    V3_24,
    /// v3.30 and v3.31: no `IPAMBlock.spec.affinityClaimTime` and no `alternateOwnerAttrs`.
    V3_30,
    /// v3.32: no `releasedAt`, and no `IPAMConfig.spec.ipCooldownSeconds`.
    V3_32,
    /// Nothing that we write is dropped.
    Newest,
}

/// A controller with the pods that it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: String,
    pub kind: Kind,
    /// What its pods ask for.
    pub addresses: Vec<IpAddr>,
    pub replicas: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Deployment,
    /// Its pods' names come back.
    StatefulSet,
    /// A Deployment whose pods are served by calico-ipam.
    Calico,
}

#[derive(Clone, Copy, Debug)]
pub struct Action {
    /// Milliseconds since the beginning.
    pub at: u64,
    pub what: What,
}

/// What happens; numbers choose among the pods or nodes that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    DeletePod(u64),
    DeletePodByForce(u64),
    /// The sandbox dies, and the pod gets another.
    NewSandbox(u64),
    /// The runtime calls DEL again for a sandbox that it has done with.
    DelAgain(u64),
    /// The runtime calls ADD again for a sandbox that runs.
    AddAgain(u64),
    RestartKubelet(u64),
    KillAgent(u64),
    /// The machine stops, and comes back after so many milliseconds.
    StopNode(u64, u64),
    /// Its connections are cut for so many milliseconds.
    CutNode(u64, u64),
    /// Node and machine go, and come back under the same name.
    RemoveNode(u64, u64),
    RemoveWorkload(u64),
    /// A second pod is made before the first is gone.
    Surge(u64),
    KillCollector,
    /// Somebody restores a claim from a backup: it is what it was at some earlier write.
    RestoreClaim(u64),
    /// Somebody loses a claim.
    LoseClaim(u64),
    /// A pod is orphaned and adopted by another controller, and gets a new sandbox.
    ChangeController(u64),
    /// Somebody locks Calico's datastore for so many milliseconds.
    Lock(u64),
}

/// What is left out of a plan.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Skip {
    pub actions: BTreeSet<usize>,
    pub workloads: BTreeSet<usize>,
    /// By caller and number of its call.
    pub faults: BTreeSet<(u64, u64)>,
    pub all_faults: bool,
    pub slowness: bool,
}

fn fixed(last: u8) -> IpAddr {
    IpAddr::from([10, 244, 0, last])
}

/// The IPv6 address that goes with an IPv4 address where pods have both.
pub fn twin(address: IpAddr) -> IpAddr {
    let IpAddr::V4(v4) = address else { return address };
    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(v4.octets()[3])])
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let workloads = workloads(&mut rng);
        let drift = std::array::from_fn(|_| Drift {
            offset: i64::try_from(rng.below(5000)).unwrap_or_default() - 2500,
            per_thousand: i64::try_from(rng.below(7)).unwrap_or_default() - 3,
        });
        let number = rng.between(4, 12);
        let mut actions: Vec<Action> = (0..number).map(|_| action(&mut rng)).collect();
        actions.sort_by_key(|action| action.at);
        let mut plan = Self {
            seed,
            nodes: rng.index(3) + 2,
            block_size: if rng.chance(700) { 29 } else { 30 },
            strict_affinity: rng.chance(150),
            // Not drawn: the seeds that are kept are of before, and stand for runs without it.
            cooldown: match seed % 8 {
                4 => 12,
                5 => 30,
                _ => 0,
            },
            agents: rng.chance(500),
            whole: false,
            ahead: false,
            breaks: 0,
            dual: false,
            behind: false,
            teardown: rng.chance(400),
            drift,
            faults: *rng.pick(&[0, 5, 20, 20, 60, 150]).unwrap_or(&20),
            slow: *rng.pick(&[20, 100, 300]).unwrap_or(&100),
            lag: *rng.pick(&[0, 200, 3000]).unwrap_or(&0),
            workloads,
            actions,
            harms_claims: false,
            locks: false,
            definitions: Definitions::Newest,
        };
        // Not drawn, for the same reason.
        plan.behind = plan.agents && matches!(seed % 8, 2 | 4..);
        if matches!(seed % 16, 4..=7 | 10 | 13) {
            plan.make_whole(&mut Rng::new(mix(&[seed, 1])));
        }
        plan.add_harms();
        plan
    }

    /// Each harm in an eighth of the seeds, which have runs like any others until it happens. Not drawn either.
    fn add_harms(&mut self) {
        type Make = fn(u64) -> What;
        let all: [([u64; 4], u64, Make); 4] = [
            ([4, 8, 12, 26], 3, What::RestoreClaim),
            ([6, 11, 13, 17], 3, What::LoseClaim),
            ([10, 14, 22, 25], 3, What::ChangeController),
            ([3, 18, 20, 22], 4, |which| What::Lock(2_000 + which % 28_000)),
        ];
        for (seeds, salt, what) in all {
            if !seeds.contains(&(self.seed % 32)) {
                continue;
            }
            let mut rng = Rng::new(mix(&[self.seed, salt]));
            let harm = |_| Action { at: rng.between(4_000, EVENTFUL), what: what(rng.next()) };
            self.actions.extend((0..1 + self.seed % 3).map(harm));
            self.harms_claims |= matches!(what(0), What::RestoreClaim(_) | What::LoseClaim(_));
            self.locks |= matches!(what(0), What::Lock(_));
        }
        self.actions.sort_by_key(|action| action.at);
        if [0, 5, 23, 31].contains(&(self.seed % 32)) {
            self.definitions = match self.seed / 32 % 3 {
                0 => Definitions::V3_24,
                1 => Definitions::V3_30,
                _ => Definitions::V3_32,
            };
            self.cooldown = 0;
        }
    }

    /// Nodes as they are by default.
    fn make_whole(&mut self, rng: &mut Rng) {
        (self.whole, self.agents) = (true, false);
        (self.ahead, self.behind) = (rng.chance(850), rng.chance(850));
        self.breaks = *rng.pick(&[0, 20, 100, 300]).unwrap_or(&20);
        self.dual = rng.chance(350);
    }

    /// Whether an agent is to serve a node: most have one where any has.
    pub fn has_agent(&self, node: usize) -> bool {
        self.whole && Rng::new(mix(&[self.seed, 2, node as u64])).chance(800)
    }
}

fn workloads(rng: &mut Rng) -> Vec<Workload> {
    let new =
        |name: &str, kind, addresses: Vec<IpAddr>, replicas| Workload { name: name.into(), kind, addresses, replicas };
    let mut all = vec![new("pinned", Kind::Deployment, vec![fixed(12)], 1)];
    if rng.chance(400) {
        all.push(new("rival", Kind::Deployment, vec![fixed(12)], 1));
    }
    if rng.chance(400) {
        all.push(new("either", Kind::Deployment, vec![fixed(20), fixed(21)], 2));
    }
    if rng.chance(400) {
        all.push(new("set", Kind::StatefulSet, vec![fixed(13), fixed(30)], 2));
    } else if rng.chance(500) {
        all.push(new("plain-set", Kind::StatefulSet, Vec::new(), 1));
    }
    if rng.chance(700) {
        let replicas = rng.index(3) + 1;
        all.push(new("random", Kind::Deployment, Vec::new(), replicas));
    }
    if rng.chance(500) {
        let replicas = rng.index(2) + 1;
        all.push(new("foreign", Kind::Calico, Vec::new(), replicas));
    }
    all
}

fn action(rng: &mut Rng) -> Action {
    let (at, which) = (rng.below(EVENTFUL), rng.next());
    let what = match rng.below(100) {
        0..=21 => What::DeletePod(which),
        22..=39 => What::DeletePodByForce(which),
        40..=49 => What::NewSandbox(which),
        50..=55 => What::DelAgain(which),
        56..=60 => What::AddAgain(which),
        61..=66 => What::RestartKubelet(which),
        67..=73 => What::KillAgent(which),
        74..=79 => What::StopNode(which, rng.between(500, 20_000)),
        80..=85 => What::CutNode(which, rng.between(500, 20_000)),
        86..=88 => What::RemoveNode(which, rng.between(5_000, 20_000)),
        89..=91 => What::RemoveWorkload(which),
        92..=95 => What::Surge(which),
        _ => What::KillCollector,
    };
    Action { at, what }
}

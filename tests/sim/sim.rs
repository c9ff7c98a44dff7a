//! What all parts of a run share: the stores, the network between, the nodes, the pods, and the story.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube_ipam::netconf::NetConf;
use tokio::sync::Notify;

use super::linear::History;
use super::node::Host;
use super::plan::{Plan, Skip};
use super::pods::PodCell;
use super::rng::Rng;
use super::time;
use super::truth::Truth;
use super::wire::Fault;

pub struct Sim {
    pub plan: Plan,
    pub skip: Skip,
    pub net: NetConf,
    /// The same for who takes an address ahead, and waits for nobody.
    pub impatient: NetConf,
    truth: Mutex<Truth>,
    history: Mutex<History>,
    tale: Mutex<Tale>,
    pub hosts: Vec<Host>,
    /// Pods by UID.
    pods: Mutex<BTreeMap<String, Arc<PodCell>>>,
    /// Whether nothing goes wrong any more.
    calm: AtomicBool,
    counts: Mutex<BTreeMap<String, u64>>,
    /// How often something happened that is to happen in some runs.
    seen: Mutex<BTreeMap<&'static str, u64>>,
    /// Rounds of the collector in a row that found nothing to do.
    idle_rounds: AtomicU64,
    /// Woken when the collector is to die.
    pub collector_dies: Notify,
}

/// What happened.
struct Tale {
    hash: DefaultHasher,
    events: u64,
    lines: Option<Vec<String>>,
    struck: Vec<(u64, u64)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sim {
    pub fn new(plan: Plan, skip: Skip, net: NetConf, truth: Truth, tell: bool) -> Arc<Self> {
        let hosts = (0..plan.nodes).map(Host::new).collect();
        let lines = tell.then(Vec::new);
        let mut impatient = net.clone();
        impatient.ipam.wait = Duration::ZERO;
        Arc::new(Self {
            plan,
            skip,
            net,
            impatient,
            truth: Mutex::new(truth),
            history: Mutex::default(),
            tale: Mutex::new(Tale { hash: DefaultHasher::new(), events: 0, lines, struck: Vec::new() }),
            hosts,
            pods: Mutex::default(),
            calm: AtomicBool::new(false),
            counts: Mutex::default(),
            seen: Mutex::default(),
            idle_rounds: AtomicU64::new(0),
            collector_dies: Notify::new(),
        })
    }

    pub fn truth(&self) -> MutexGuard<'_, Truth> {
        lock(&self.truth)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    pub fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Arc<PodCell>>> {
        lock(&self.pods)
    }

    /// How often this name was asked for: what is left out of a run does not rename the rest.
    pub fn nth(&self, name: &str) -> u64 {
        let mut counts = lock(&self.counts);
        let count = counts.entry(name.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Something happened that is to happen in some runs.
    pub fn seen(&self, what: &'static str) {
        *lock(&self.seen).entry(what).or_default() += 1;
    }

    /// How often such things have happened.
    pub fn all_seen(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.seen).clone()
    }

    pub fn failed(&self) -> bool {
        self.truth().oracle.violation.is_some()
    }

    /// A round of the collector found so many things, due or not.
    pub fn collector_found(&self, things: usize) {
        if things == 0 {
            self.idle_rounds.fetch_add(1, Ordering::Relaxed);
        } else {
            self.idle_rounds.store(0, Ordering::Relaxed);
        }
    }

    pub fn collector_is_idle(&self) -> bool {
        self.idle_rounds.load(Ordering::Relaxed) >= 2
    }

    // === network ===

    pub fn be_calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.idle_rounds.store(0, Ordering::Relaxed);
        self.hosts.iter().for_each(|host| host.cut.store(false, Ordering::Relaxed));
    }

    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn is_cut(&self, node: usize) -> bool {
        self.hosts[node].cut.load(Ordering::Relaxed)
    }

    /// How long a message takes, in milliseconds.
    pub fn latency(&self, chance: &mut Rng) -> u64 {
        let (class, long) = (chance.below(1000), chance.next());
        if self.is_calm() || self.skip.slowness || class >= self.plan.slow * 2 {
            return 0;
        }
        if class * 20 < self.plan.slow { long % 1500 } else { long % 40 + 1 }
    }

    pub fn lag(&self) -> u64 {
        if self.is_calm() { 0 } else { self.plan.lag }
    }

    /// What goes wrong with a call.
    pub fn fault(&self, chance: &mut Rng, call: (u64, u64), writes: bool, verb: &str) -> Option<Fault> {
        let (class, kind, long) = (chance.below(1000), chance.below(100), chance.next());
        let spared = self.skip.all_faults || self.skip.faults.contains(&call);
        if self.is_calm() || class >= self.plan.faults || spared {
            return None;
        }
        lock(&self.tale).struck.push(call);
        // A real call gives up by then, and so does the server.
        let longest = if self.plan.locks { 3_000 } else { 20_000 };
        Some(match kind {
            0..=11 => Fault::Fail,
            12..=19 => Fault::Busy(long % 2000 + 1),
            20..=25 => Fault::Pause(long % longest),
            26..=37 => Fault::DieBefore,
            38..=52 => Fault::DieAfter,
            53..=62 if matches!(verb, "update" | "delete") => Fault::Conflict,
            63..=79 if writes => Fault::LoseReply,
            80..=91 if writes => Fault::Repeat,
            92..=99 if writes => Fault::Late(long % longest.min(12_000)),
            _ => Fault::Fail,
        })
    }

    // === story ===

    pub fn tell(&self, who: &str, what: &str, about: &str, result: impl FnOnce() -> String) {
        let (now, mut tale, result) = (time::now(), lock(&self.tale), result());
        tale.events += 1;
        (now, who, what, about, &result).hash(&mut tale.hash);
        if let Some(lines) = &mut tale.lines {
            lines.push(format!("{:>8.3} s  {who:<22} {what:<8} {about:<40} {result}", now as f64 / 1000.0));
        }
    }

    /// Hash of everything that was told, and how much it was.
    pub fn trace(&self) -> (u64, u64) {
        let tale = lock(&self.tale);
        (tale.hash.finish(), tale.events)
    }

    pub fn story(&self) -> Vec<String> {
        lock(&self.tale).lines.clone().unwrap_or_default()
    }

    pub fn struck(&self) -> Vec<(u64, u64)> {
        lock(&self.tale).struck.clone()
    }
}

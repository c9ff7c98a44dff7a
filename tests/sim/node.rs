//! A node: its machine, its tmpfs, and the calls of its runtime, which an agent serves or each a process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calico::IPAMHandle;
use futures::future::{BoxFuture, FutureExt as _};
use kube_ipam::driver::{Attachment, Driver, Error, Gate, GatedDriver, Pass, PodRef, Trace};
use kube_ipam::netconf::Attachment as Valid;
use tokio::sync::OwnedMutexGuard;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::pods::PodCell;
use super::rng::hash;
use super::sim::Sim;
use super::time;
use super::wire::{Caller, Wire};

pub type NodeDriver = GatedDriver<Wire, Wire>;

pub struct Host {
    pub index: usize,
    pub name: String,
    /// Whether the machine runs.
    pub up: AtomicBool,
    pub cut: AtomicBool,
    /// Raised whenever the machine stops, is cut or comes back: what was planned for before is void.
    pub epoch: AtomicU64,
    pub tmpfs: Mutex<Arc<Tmpfs>>,
    agent: Mutex<Option<NodeDriver>>,
    /// Pods that the kubelet looks after by now.
    pub workers: Mutex<BTreeSet<String>>,
    /// Whether GC runs, beside which the runtime makes no other call.
    pub collecting: AtomicBool,
    /// The kubelet's tasks.
    pub tasks: Mutex<Vec<AbortHandle>>,
    /// CNI calls under way, and an agent's work beside them.
    calls: Mutex<Vec<AbortHandle>>,
}

/// What calls of a node tell each other: `service::state` in memory.
#[derive(Default)]
pub struct Tmpfs {
    files: Mutex<Files>,
    turnstile: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Files {
    notes: BTreeSet<(String, &'static str)>,
    deleted: BTreeSet<String>,
    locks: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
    pending: BTreeMap<String, IPAMHandle>,
    /// DELs that were answered and are not on record: the pod, by container.
    owed: BTreeMap<String, Arc<PodCell>>,
}

/// What a runtime hears of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Given(Vec<IpAddr>),
    Refused(String),
    /// The process died, or the agent did.
    Nothing,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Tmpfs ===

fn file(trace: Trace) -> &'static str {
    match trace {
        Trace::Claims => "claims",
        Trace::Block => "block",
    }
}

impl Gate for Tmpfs {
    fn pass(&self) -> BoxFuture<'_, Pass> {
        async move {
            let waited = self.turnstile.try_lock().is_err();
            let turn = timeout(Duration::from_secs(3), self.turnstile.clone().lock_owned()).await.ok();
            Pass::new(waited, turn.map(|turn| Box::new(turn) as Box<dyn Send>))
        }
        .boxed()
    }

    fn note(&self, handle: &str, trace: Trace) {
        lock(&self.files).notes.insert((handle.to_owned(), file(trace)));
    }

    fn noted(&self, handle: &str, trace: Trace) -> bool {
        lock(&self.files).notes.contains(&(handle.to_owned(), file(trace)))
    }

    fn forget(&self, handle: &str) {
        lock(&self.files).notes.retain(|(of, _)| of != handle);
    }

    fn is_busy(&self, handle: &str) -> bool {
        lock(&self.files).locks.get(handle).is_some_and(|turn| turn.try_lock().is_err())
    }
}

impl Tmpfs {
    async fn turn(&self, handle: &str, wait: u64) -> Option<OwnedMutexGuard<()>> {
        let turn = async {
            loop {
                let lock_file = lock(&self.files).locks.entry(handle.to_owned()).or_default().clone();
                let turn = lock_file.clone().lock_owned().await;
                if lock(&self.files).locks.get(handle).is_some_and(|now| Arc::ptr_eq(now, &lock_file)) {
                    return turn;
                }
            }
        };
        timeout(Duration::from_secs(wait), turn).await.ok()
    }

    /// A DEL's turn, with which the lock file goes.
    async fn last_turn(self: &Arc<Self>, handle: &str) -> Option<LastTurn> {
        let turn = self.turn(handle, 5).await?;
        Some(LastTurn { state: self.clone(), handle: handle.to_owned(), _turn: turn })
    }

    fn is_owed(&self, container: &str) -> bool {
        lock(&self.files).owed.contains_key(container)
    }

    fn is_deleted(&self, handle: &str) -> bool {
        lock(&self.files).deleted.contains(handle)
    }
}

/// A turn after which there is no lock file.
struct LastTurn {
    state: Arc<Tmpfs>,
    handle: String,
    _turn: OwnedMutexGuard<()>,
}

impl Drop for LastTurn {
    fn drop(&mut self) {
        lock(&self.state.files).locks.remove(&self.handle);
    }
}

// === impl Host ===

impl Host {
    pub fn new(index: usize) -> Self {
        Self {
            index,
            name: format!("n{}", index + 1),
            up: AtomicBool::new(true),
            cut: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            tmpfs: Mutex::default(),
            agent: Mutex::default(),
            workers: Mutex::default(),
            collecting: AtomicBool::new(false),
            tasks: Mutex::default(),
            calls: Mutex::default(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether nothing has happened to the machine or its connections since.
    pub fn is_epoch(&self, epoch: u64) -> bool {
        self.epoch.load(Ordering::Relaxed) == epoch
    }

    fn state(&self) -> Arc<Tmpfs> {
        lock(&self.tmpfs).clone()
    }

    pub fn keep(&self, task: AbortHandle) {
        lock(&self.tasks).push(task);
    }

    /// Every call under way ends without an answer; the agent's next life begins.
    pub fn kill_agent(&self, sim: &Arc<Sim>) {
        lock(&self.calls).drain(..).for_each(|call| call.abort());
        *lock(&self.agent) = None;
        if sim.plan.agents {
            self.start_agent(sim);
        }
    }

    /// Kubelet and runtime stop.
    pub fn kill_kubelet(&self) {
        lock(&self.workers).clear();
        self.collecting.store(false, Ordering::Relaxed);
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
    }

    /// Everything stops, and what was on tmpfs is gone.
    pub fn stop(&self) {
        self.kill_kubelet();
        lock(&self.calls).drain(..).for_each(|call| call.abort());
        (*lock(&self.agent), *lock(&self.tmpfs)) = (None, Arc::default());
    }

    fn start_agent(&self, sim: &Arc<Sim>) {
        let state = self.state();
        let life = sim.nth(&self.name);
        let caller = Caller::immortal(format!("agent {} #{life}", self.name), Some(self.index));
        let wire = Wire::new(sim, &caller);
        let (later, mut handles) = tokio::sync::mpsc::unbounded_channel::<IPAMHandle>();
        let noted = state.clone();
        let driver = Driver::new(wire.clone(), Some(wire), time::clock(self.index)).gated(state.clone());
        let finishing = driver.clone();
        let driver = driver.dropping_later(Arc::new(move |handle: &IPAMHandle| {
            lock(&noted.files).pending.insert(handle.spec.handle_id.clone(), handle.clone());
            later.send(handle.clone()).is_ok()
        }));
        let name = self.name.clone();
        let beside = tokio::spawn(async move {
            // What an earlier agent left.
            let left: Vec<IPAMHandle> = lock(&state.files).pending.values().cloned().collect();
            let deadline = Instant::now() + Duration::from_secs(30);
            drop(finishing.settle_affinities(&name, deadline).await);
            for handle in left {
                finish(&finishing, &state, handle).await;
            }
            while let Some(handle) = handles.recv().await {
                finish(&finishing, &state, handle).await;
            }
        });
        lock(&self.calls).push(beside.abort_handle());
        let owed: Vec<_> = lock(&self.state().files).owed.clone().into_iter().collect();
        owed.into_iter().for_each(|release| self.pay(sim, &self.state(), &driver, release, None));
        *lock(&self.agent) = Some(driver);
    }

    /// A driver for one call, and who makes it.
    fn driver(&self, sim: &Arc<Sim>, call: &str) -> (NodeDriver, Arc<Caller>) {
        let name = format!("{call} #{}", sim.nth(call));
        if sim.plan.agents {
            if lock(&self.agent).is_none() {
                self.start_agent(sim);
            }
            if let Some(driver) = lock(&self.agent).clone() {
                return (driver, Caller::immortal(name, Some(self.index)));
            }
        }
        let caller = Caller::mortal(name, Some(self.index));
        let wire = Wire::new(sim, &caller);
        (Driver::new(wire.clone(), Some(wire), time::clock(self.index)).gated(self.state()), caller)
    }

    /// Runs a call to its end, its own death, or its agent's.
    async fn call<T: Send + 'static>(
        &self,
        sim: &Sim,
        caller: Arc<Caller>,
        kill_with_caller: bool,
        work: BoxFuture<'static, T>,
    ) -> Option<T> {
        let task = tokio::spawn(async move { caller.run(work).await });
        {
            let mut calls = lock(&self.calls);
            calls.retain(|call| !call.is_finished());
            calls.push(task.abort_handle());
        }
        let _killed = (!sim.plan.agents && kill_with_caller).then(|| Killed(task.abort_handle()));
        task.await.ok().flatten()
    }

    pub async fn add(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, container: &str) -> Answer {
        let (driver, caller) = self.driver(sim, &format!("ADD {container}"));
        let (of, kill) = (sim, hash(container).is_multiple_of(2));
        let hung_up = Arc::new(AtomicBool::new(false));
        let _plugin = Plugin(hung_up.clone());
        let (state, sim, pod, id, node) =
            (self.state(), sim.clone(), pod.clone(), container.to_owned(), self.name.clone());
        let work = async move {
            let handle = format!("{}.{id}", sim.net.network);
            let _turn = state.turn(&handle, 30).await;
            let anew = lock(&state.files).deleted.remove(&handle);
            lock(&state.files).owed.remove(&id);
            // An agent hears that the plugin has hung up.
            let cancelled = || state.is_deleted(&handle) || (sim.plan.agents && hung_up.load(Ordering::Relaxed));
            driver.add(&Attachment { anew, ..attachment(&sim, &pod, &id, &node, &cancelled) }).await
        }
        .boxed();
        let answer = self.call(of, caller, kill, work).await;
        match answer {
            Some(Ok(assigned)) => Answer::Given(assigned.iter().map(|a| a.address).collect()),
            Some(Err(error)) => Answer::Refused(error.to_string()),
            None => Answer::Nothing,
        }
    }

    /// Whether the runtime may forget the container.
    pub async fn del(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, container: &str) -> Answer {
        let (driver, caller) = self.driver(sim, &format!("DEL {container}"));
        let (of, index) = (sim, self.index);
        let (state, sim, pod, id, node) =
            (self.state(), sim.clone(), pod.clone(), container.to_owned(), self.name.clone());
        let work = async move {
            let handle = format!("{}.{id}", sim.net.network);
            lock(&state.files).deleted.insert(handle.clone());
            let turn = state.last_turn(&handle).await;
            if sim.plan.behind {
                lock(&state.files).owed.insert(id.clone(), pod.clone());
                sim.hosts[index].pay(&sim, &state, &driver, (id, pod), Some(turn));
                return Ok(Vec::new());
            }
            let freed = driver.del(&attachment(&sim, &pod, &id, &node, &|| false)).await;
            if freed.is_ok() {
                lock(&state.files).owed.remove(&id);
            }
            freed
        }
        .boxed();
        let answer = self.call(of, caller, false, work).await;
        match answer {
            Some(Ok(freed)) => Answer::Given(freed.into_iter().map(|f| f.address).collect()),
            Some(Err(error)) => Answer::Refused(error.to_string()),
            None => Answer::Nothing,
        }
    }

    /// Carries out a DEL that was answered, until it is through or its agent dies. `first` is the turn of an attempt that
    /// has one.
    fn pay(
        &self,
        sim: &Arc<Sim>,
        state: &Arc<Tmpfs>,
        driver: &NodeDriver,
        (id, pod): (String, Arc<PodCell>),
        mut first: Option<Option<LastTurn>>,
    ) {
        let (sim, state, driver, node) = (sim.clone(), state.clone(), driver.clone(), self.name.clone());
        let paying = tokio::spawn(async move {
            let handle = format!("{}.{id}", sim.net.network);
            let mut pause = Duration::from_millis(500);
            loop {
                let turn = match first.take() {
                    Some(turn) => Some(turn),
                    None => state.last_turn(&handle).await.filter(|_| state.is_owed(&id)).map(Some),
                };
                if let Some(_turn) = turn
                    && driver.del(&attachment(&sim, &pod, &id, &node, &|| false)).await.is_ok()
                {
                    lock(&state.files).owed.remove(&id);
                    return;
                }
                if !state.is_owed(&id) {
                    return;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
            }
        });
        lock(&self.calls).push(paying.abort_handle());
    }

    /// What CHECK finds missing; `None` if it did not get that far.
    pub async fn check(
        &self,
        sim: &Arc<Sim>,
        pod: &Arc<PodCell>,
        container: &str,
        has: &[IpAddr],
    ) -> Option<Vec<String>> {
        let (driver, caller) = self.driver(sim, &format!("CHECK {container}"));
        let of = sim;
        let (sim, pod, id, node, has) =
            (sim.clone(), pod.clone(), container.to_owned(), self.name.clone(), has.to_vec());
        let work = async move { driver.check(&attachment(&sim, &pod, &id, &node, &|| false), &has).await }.boxed();
        let found = self.call(of, caller, false, work);
        Some(found.await?.ok()?.iter().map(ToString::to_string).collect())
    }

    /// GC with the containers that the runtime knows, while no other call is under way.
    pub async fn gc(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, known: &[String]) {
        let (driver, caller) = self.driver(sim, &format!("GC {}", self.name));
        let valid: Vec<Valid> =
            known.iter().map(|id| Valid { container_id: id.clone(), ifname: "eth0".into() }).collect();
        let of = sim;
        let (sim, pod, node) = (sim.clone(), pod.clone(), self.name.clone());
        let work = async move { driver.gc(&attachment(&sim, &pod, "gc", &node, &|| false), &valid).await }.boxed();
        let outcome: Option<Result<_, Error>> = self.call(of, caller, false, work).await;
        drop(outcome);
    }
}

/// The plugin's end of its connection to the agent.
struct Plugin(Arc<AtomicBool>);

impl Drop for Plugin {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A plugin whose runtime gives up may be killed, or go on unheard.
struct Killed(AbortHandle);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn finish(driver: &NodeDriver, state: &Tmpfs, handle: IPAMHandle) {
    let id = handle.spec.handle_id.clone();
    if driver.finish_handle(handle).await.is_ok() {
        lock(&state.files).pending.remove(&id);
    }
}

fn attachment<'a>(
    sim: &'a Sim,
    pod: &'a PodCell,
    container: &'a str,
    node: &'a str,
    cancelled: &'a (dyn Fn() -> bool + Sync),
) -> Attachment<'a> {
    Attachment {
        net: &sim.net,
        container_id: container,
        interface: "eth0",
        pod: Some(PodRef { namespace: "default", name: &pod.name, uid: Some(&pod.uid) }),
        node,
        explicit: &[],
        cancelled,
        last_sandbox: true,
        anew: false,
        deadline: Instant::now() + Duration::from_secs(9),
        policy: sim.net.ipam.takeover,
    }
}

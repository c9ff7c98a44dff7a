//! A node: its machine, its tmpfs, and the calls of its runtime, which an agent serves or each a process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calico::IPAMHandle;
use futures::future::{BoxFuture, FutureExt as _};
use kube_ipam::cni::{CniError, Verb};
use kube_ipam::driver::{Attachment, Driver, Error, Gate, GatedDriver, Pass, PodRef, Trace};
use kube_ipam::netconf::Attachment as Valid;
use kube_ipam::service::{Call, Served};
use kube_ipam::store::{Ledger, Objects};
use tokio::sync::OwnedMutexGuard;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::agent::{Agent, Ground, invocation};
use super::pods::PodCell;
use super::rng::{Rng, hash, mix};
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
    /// The machine's tmpfs and its agent, where runs have the whole of it.
    ground: Mutex<Option<Arc<Ground>>>,
    whole: Mutex<Option<Arc<Agent>>>,
    /// Raised whenever an agent goes: what was to start one by then is void.
    agents: AtomicU64,
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
            ground: Mutex::default(),
            whole: Mutex::default(),
            agents: AtomicU64::new(0),
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
    pub fn kill_agent(&self, sim: &Arc<Sim>, gently: bool) {
        if sim.plan.whole {
            return self.replace_agent(sim, gently);
        }
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
        self.agents.fetch_add(1, Ordering::Relaxed);
        lock(&self.whole).take().iter().for_each(|agent| agent.kill());
        *lock(&self.ground) = None;
    }

    fn ground(&self) -> Arc<Ground> {
        lock(&self.ground).get_or_insert_with(Ground::new).clone()
    }

    /// The node's agent comes up after so many milliseconds, unless something happens to the machine meanwhile.
    pub fn start_whole(&self, sim: &Arc<Sim>, after: u64) {
        if !sim.plan.has_agent(self.index) {
            return;
        }
        let (sim, node, life) = (sim.clone(), self.index, self.agents.load(Ordering::Relaxed));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            let host = &sim.hosts[node];
            if host.is_up() && host.agents.load(Ordering::Relaxed) == life && lock(&host.whole).is_none() {
                let agent = Agent::start(&sim, node, &host.ground());
                *lock(&host.whole) = Some(agent);
            }
        });
    }

    /// The agent is killed with every call under way, or told to stop, which it does within a few seconds. Another one
    /// follows; until then the plugin does its calls by itself.
    fn replace_agent(&self, sim: &Arc<Sim>, gently: bool) {
        let life = self.agents.fetch_add(1, Ordering::Relaxed);
        let agent = lock(&self.whole).take();
        if gently {
            if let Some(agent) = agent {
                agent.stop();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    agent.kill();
                });
            }
        } else {
            lock(&self.calls).drain(..).for_each(|call| call.abort());
            agent.iter().for_each(|agent| agent.kill());
        }
        let mut rng = Rng::new(mix(&[sim.plan.seed, hash(&self.name), life]));
        self.start_whole(sim, rng.below(6000));
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

    /// A call of the plugin where runs have the whole of a node: by the agent if there is one, or in the plugin's process.
    async fn whole_call<T: Send + 'static>(
        &self,
        sim: &Arc<Sim>,
        name: &str,
        kill_with_caller: bool,
        by_agent: impl FnOnce(Arc<Agent>) -> BoxFuture<'static, T>,
        alone: impl FnOnce(Arc<Ground>, NodeDriver) -> BoxFuture<'static, T>,
    ) -> Option<T> {
        let name = format!("{name} #{}", sim.nth(name));
        let agent = lock(&self.whole).clone();
        if let Some(agent) = agent {
            let caller = Caller::immortal(name, Some(self.index));
            return self.call(sim, caller, false, by_agent(agent)).await;
        }
        let caller = Caller::mortal(name, Some(self.index));
        let (wire, ground) = (Wire::new(sim, &caller), self.ground());
        let driver = Driver::new(wire.clone(), Some(wire), time::clock(self.index)).gated(ground.clone());
        self.call(sim, caller, kill_with_caller, alone(ground, driver)).await
    }

    async fn whole_add(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, container: &str) -> Answer {
        let hung_up = Arc::new(AtomicBool::new(false));
        let _plugin = Plugin(hung_up.clone());
        let (pods, ids) = ((pod.clone(), pod.clone()), (container.to_owned(), container.to_owned()));
        let (of, node) = (sim.clone(), self.name.clone());
        let name = format!("ADD {container}");
        let answer = self.whole_call(
            sim,
            &name,
            hash(container).is_multiple_of(2),
            |agent| async move { agent.add(&pods.0, &ids.0, hung_up).await }.boxed(),
            |ground, driver| {
                async move { run_alone(&of, &node, &ground, &driver, Verb::Add, &pods.1, &ids.1).await }.boxed()
            },
        );
        match answer.await {
            Some(Ok(served)) => {
                if let Some(given) = &served.given {
                    sim.seen(given.how.label());
                }
                let given = served.given.map(|given| given.addresses).unwrap_or_default();
                Answer::Given(given.iter().map(|a| a.address).collect())
            }
            Some(Err(error)) => Answer::Refused(error.msg),
            None => Answer::Nothing,
        }
    }

    async fn whole_del(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, container: &str) -> Answer {
        let (pods, ids) = ((pod.clone(), pod.clone()), (container.to_owned(), container.to_owned()));
        let (of, node) = (sim.clone(), self.name.clone());
        let name = format!("DEL {container}");
        let answer = self.whole_call(
            sim,
            &name,
            false,
            |agent| async move { agent.del(&pods.0, &ids.0).await }.boxed(),
            |ground, driver| {
                async move { run_alone(&of, &node, &ground, &driver, Verb::Del, &pods.1, &ids.1).await.map(drop) }
                    .boxed()
            },
        );
        match answer.await {
            Some(Ok(())) => Answer::Given(Vec::new()),
            Some(Err(error)) => Answer::Refused(error.msg),
            None => Answer::Nothing,
        }
    }

    pub async fn add(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, container: &str) -> Answer {
        if sim.plan.whole {
            return self.whole_add(sim, pod, container).await;
        }
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
        if sim.plan.whole {
            return self.whole_del(sim, pod, container).await;
        }
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
        let name = format!("CHECK {container}");
        let of = sim;
        let (sim, pod, id, node, has) =
            (sim.clone(), pod.clone(), container.to_owned(), self.name.clone(), has.to_vec());
        let found = if sim.plan.whole {
            let again = (sim.clone(), pod.clone(), id.clone(), node.clone(), has.clone());
            let by_agent =
                |agent: Arc<Agent>| async move { check(agent.driver(), &sim, &pod, &id, &node, &has).await }.boxed();
            let alone = |_, driver: NodeDriver| {
                let (sim, pod, id, node, has) = again;
                async move { check(&driver, &sim, &pod, &id, &node, &has).await }.boxed()
            };
            self.whole_call(of, &name, false, by_agent, alone).await
        } else {
            let (driver, caller) = self.driver(&sim, &name);
            let work = async move { check(&driver, &sim, &pod, &id, &node, &has).await }.boxed();
            self.call(of, caller, false, work).await
        };
        found?.ok()
    }

    /// GC with the containers that the runtime knows, while no other call is under way.
    pub async fn gc(&self, sim: &Arc<Sim>, pod: &Arc<PodCell>, known: &[String]) {
        let name = format!("GC {}", self.name);
        let valid: Vec<Valid> =
            known.iter().map(|id| Valid { container_id: id.clone(), ifname: "eth0".into() }).collect();
        let of = sim;
        let (sim, pod, node) = (sim.clone(), pod.clone(), self.name.clone());
        if sim.plan.whole {
            let again = (sim.clone(), pod.clone(), node.clone(), valid.clone());
            let by_agent = |agent: Arc<Agent>| {
                async move { drop(agent.driver().gc(&attachment(&sim, &pod, "gc", &node, &|| false), &valid).await) }
                    .boxed()
            };
            let alone = |_, driver: NodeDriver| {
                let (sim, pod, node, valid) = again;
                async move { drop(driver.gc(&attachment(&sim, &pod, "gc", &node, &|| false), &valid).await) }.boxed()
            };
            self.whole_call(of, &name, false, by_agent, alone).await;
            return;
        }
        let (driver, caller) = self.driver(&sim, &name);
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

/// A call in the plugin's own process.
async fn run_alone(
    sim: &Sim,
    node: &str,
    ground: &Ground,
    driver: &NodeDriver,
    verb: Verb,
    pod: &PodCell,
    container: &str,
) -> Result<Served, CniError> {
    let invocation = invocation(verb, pod, container);
    let call =
        Call { invocation: &invocation, net: &sim.net, node, state: &ground.state, gone: &|| false, taken: None };
    call.run(driver).await
}

async fn check<O: Objects, L: Ledger>(
    driver: &Driver<O, L>,
    sim: &Sim,
    pod: &PodCell,
    container: &str,
    node: &str,
    has: &[IpAddr],
) -> Result<Vec<String>, Error> {
    let missing = driver.check(&attachment(sim, pod, container, node, &|| false), has).await?;
    Ok(missing.iter().map(ToString::to_string).collect())
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

//! A node as it is by default: an agent whose driver reads from memory, takes addresses ahead and releases behind the
//! answer, beside calls that the plugin does by itself while there is no agent.
//!
//! Calls run by `service::Call` over a state directory on a real file system, and read `store::cached`, which [`watch`]
//! feeds. What the agent does around them is tied to its socket and to the client of a real API server; here it is told
//! once more, step by step as in `src/agent/ahead.rs`, `behind.rs` and `mod.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use calico::{Entry, IPAMBlock, IPAMHandle, cidr_name};
use futures::future::{BoxFuture, FutureExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube_ipam::cni::{CniArgs, CniError, Invocation, Verb};
use kube_ipam::driver::{Assigned, Attachment, Driver, Gate, GatedDriver, POD_UID_KEY, Pass, PodRef, Trace};
use kube_ipam::netconf::NetConf;
use kube_ipam::service::state::State;
use kube_ipam::service::{Call, Held, Served};
use kube_ipam::store::Objects as _;
use kube_ipam::store::cached::{Cached, Shelves};
use tempfile::TempDir;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::pods::PodCell;
use super::signal::Signal;
use super::sim::Sim;
use super::time;
use super::watch::{self, Heard};
use super::wire::{Caller, Wire};

/// Time for putting an address on record, or for taking it off again.
const WORK_TIME: Duration = Duration::from_secs(9);
/// Longest wait of an ADD for addresses that are about to be free.
const RELEASES_WAIT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

type AgentDriver = GatedDriver<Cached<Wire>, Wire>;

/// A machine's tmpfs, from one boot to the next.
pub struct Ground {
    _directory: TempDir,
    pub state: State,
    releases: Releases,
}

/// Releases under way: as `service::owed::Releases`, but who waits is woken in an order that is not drawn by lot.
#[derive(Default)]
struct Releases {
    numbers: Mutex<(u64, BTreeSet<u64>)>,
    over: Arc<Signal<u64>>,
}

/// One of them, until it is dropped.
struct UnderWay(Arc<Ground>, u64);

/// How far a pod is.
#[derive(Default)]
enum Stage {
    #[default]
    New,
    Taken(Vec<Assigned>),
    Over,
}

/// One life of an agent.
pub struct Agent {
    sim: Arc<Sim>,
    node: usize,
    name: String,
    ground: Arc<Ground>,
    driver: AgentDriver,
    stages: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Stage>>>>,
    /// Whether it was told to stop.
    stopping: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call as the runtime makes it.
pub fn invocation(verb: Verb, pod: &PodCell, container: &str) -> Invocation {
    let args = CniArgs {
        pod_namespace: Some("default".into()),
        pod_name: Some(pod.name.clone()),
        pod_uid: Some(pod.uid.clone()),
        ..CniArgs::default()
    };
    Invocation { verb, container_id: container.into(), ifname: "eth0".into(), args }
}

// === impl Ground ===

impl Ground {
    pub fn new() -> Arc<Self> {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let state = State::open(directory.path());
        Arc::new(Self { _directory: directory, state, releases: Releases::default() })
    }

    fn begin_release(self: &Arc<Self>) -> UnderWay {
        let mut numbers = lock(&self.releases.numbers);
        let number = numbers.0;
        numbers.0 += 1;
        numbers.1.insert(number);
        UnderWay(self.clone(), number)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.0.releases.numbers).1.remove(&self.1);
        let over = &self.0.releases.over;
        over.set(over.value() + 1);
    }
}

impl Gate for Ground {
    fn pass(&self) -> BoxFuture<'_, Pass> {
        self.state.pass()
    }

    fn search(&self) -> BoxFuture<'_, Pass> {
        self.state.search()
    }

    fn releases(&self) -> BoxFuture<'_, bool> {
        async {
            let (last, any) = {
                let numbers = lock(&self.releases.numbers);
                (numbers.0, !numbers.1.is_empty())
            };
            let settled = |_| lock(&self.releases.numbers).1.first().is_none_or(|first| *first >= last);
            timeout(RELEASES_WAIT, self.releases.over.until(settled)).await.is_err() || any
        }
        .boxed()
    }

    fn note(&self, handle: &str, trace: Trace) {
        Gate::note(&self.state, handle, trace);
    }

    fn noted(&self, handle: &str, trace: Trace) -> bool {
        self.state.noted(handle, trace)
    }

    fn forget(&self, handle: &str) {
        self.state.forget(handle);
    }

    fn container_of(&self, pod_uid: &str) -> Option<String> {
        self.state.container_of(pod_uid)
    }

    fn is_busy(&self, handle: &str) -> bool {
        self.state.is_busy(handle)
    }
}

// === impl Agent ===

impl Agent {
    /// An agent comes up on a node, after whatever was there before.
    pub fn start(sim: &Arc<Sim>, node: usize, ground: &Arc<Ground>) -> Arc<Self> {
        let host = &sim.hosts[node].name;
        let name = format!("{host} #{}", sim.nth(&format!("agent {host}")));
        let caller = Caller::immortal(format!("agent {name}"), Some(node));
        let wire = Wire::new(sim, &caller);
        let shelves = Arc::new(Shelves::new(host));
        let (later, handles) = tokio::sync::mpsc::unbounded_channel::<IPAMHandle>();
        let noted = ground.clone();
        let driver = Driver::new(Cached::new(wire.clone(), shelves.clone()), Some(wire), time::clock(node))
            .gated(ground.clone())
            .dropping_later(Arc::new(move |handle: &IPAMHandle| {
                noted.state.put_pending(handle) && later.send(handle.clone()).is_ok()
            }));
        let agent = Arc::new(Self {
            sim: sim.clone(),
            node,
            name,
            ground: ground.clone(),
            driver,
            stages: Mutex::default(),
            stopping: AtomicBool::new(false),
            tasks: Mutex::default(),
        });
        sim.tell(&format!("agent {}", agent.name), "start", host, String::new);
        agent.watch(&shelves);
        agent.clone().spawn(agent.clone().drop_handles(handles));
        agent.resume_releases();
        agent
    }

    fn watch(self: &Arc<Self>, shelves: &Arc<Shelves>) {
        let (follower, sweeper) = (self.clone(), self.clone());
        let pods = move |heard: Heard<'_, Pod>| follower.follow_pod(heard);
        let swept = AtomicBool::new(false);
        let listed = move || {
            if !swept.swap(true, Ordering::Relaxed) {
                sweeper.spawn(sweeper.clone().clean_up());
            }
        };
        let watches = watch::start(&self.sim, &self.name, self.node, shelves, pods, listed);
        lock(&self.tasks).extend(watches.iter().map(tokio::task::JoinHandle::abort_handle));
    }

    /// No new call comes; what was begun may end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn kill(&self) {
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(work).abort_handle());
    }

    fn call<'a>(&'a self, invocation: &'a Invocation, gone: &'a (dyn Fn() -> bool + Sync)) -> Call<'a> {
        let (net, node) = (&self.sim.net, &self.sim.hosts[self.node].name);
        Call { invocation, net, node, state: &self.ground.state, gone, taken: None }
    }

    fn stage(&self, uid: &str) -> Arc<tokio::sync::Mutex<Stage>> {
        lock(&self.stages).entry(uid.to_owned()).or_default().clone()
    }

    fn known(&self, uid: &str) -> Option<Arc<tokio::sync::Mutex<Stage>>> {
        lock(&self.stages).get(uid).cloned()
    }

    /// The driver.
    pub fn driver(&self) -> &AgentDriver {
        &self.driver
    }

    // === calls ===

    /// An ADD: from memory, if the pod's address is on record. What nobody hears any more is taken back.
    pub async fn add(
        self: &Arc<Self>,
        pod: &Arc<PodCell>,
        container: &str,
        gone: Arc<AtomicBool>,
    ) -> Result<Served, CniError> {
        let (invocation, heard) = (invocation(Verb::Add, pod, container), gone.clone());
        let gone = move || gone.load(Ordering::Relaxed);
        let answer = self.answer_add(self.call(&invocation, &gone), &pod.uid).await;
        if heard.load(Ordering::Relaxed) {
            self.tell("back", container, || "the plugin is gone".to_owned());
            let del = Invocation { verb: Verb::Del, ..invocation };
            let call = self.call(&del, &|| false);
            let held = call.hold().await;
            drop(self.carry_out(&del, &held).await);
        }
        answer
    }

    async fn answer_add(&self, call: Call<'_>, uid: &str) -> Result<Served, CniError> {
        let stage = self.stage(uid);
        let mut stage = stage.lock().await;
        let Stage::Taken(taken) = &*stage else {
            *stage = Stage::Over;
            drop(stage);
            return call.run(&self.driver).boxed().await;
        };
        let container = call.invocation.container_id.clone();
        self.sim.seen("asked for what is ahead");
        let call = Call { taken: Some(taken), ..call };
        let answer = call.run(&self.driver).boxed().await;
        if answer.is_ok() {
            let fixed: Vec<IpAddr> = taken.iter().filter(|a| a.fixed).map(|a| a.address).collect();
            let (driver, uid) = (self.driver.clone(), uid.to_owned());
            self.spawn(async move {
                for address in fixed {
                    drop(driver.name_container(address, &uid, &container, "eth0").boxed().await);
                }
            });
        }
        if self.ground.state.is_given_back(uid) {
            *stage = Stage::Over;
        }
        answer
    }

    /// A DEL: answered once it is noted, if releases are behind answers here.
    pub async fn del(self: &Arc<Self>, pod: &Arc<PodCell>, container: &str) -> Result<(), CniError> {
        let invocation = invocation(Verb::Del, pod, container);
        let call = self.call(&invocation, &|| false);
        let held = call.hold().await;
        let puts_off = self.sim.plan.behind && held.is_held() && !self.is_stopping();
        if puts_off && call.container().owe(format!("{container} {}", pod.uid).as_bytes()) {
            let under_way = self.ground.begin_release();
            self.spawn(self.clone().pay(invocation.clone(), Some((held, under_way))));
            return Ok(());
        }
        self.carry_out(&invocation, &held).await
    }

    async fn carry_out(&self, invocation: &Invocation, held: &Held) -> Result<(), CniError> {
        self.call(invocation, &|| false).release(&self.driver, held).boxed().await?;
        let uid = invocation.args.pod_uid.as_deref().unwrap_or_default();
        let stage = self.known(uid);
        if self.ground.state.note(uid).is_none()
            && let Some(Ok(mut stage)) = stage.as_ref().map(|stage| stage.try_lock())
        {
            *stage = Stage::Over;
        }
        Ok(())
    }

    /// Goes on with what earlier agents have answered.
    fn resume_releases(self: &Arc<Self>) {
        let mut owed = self.ground.state.owed();
        // A directory's own order may be any.
        owed.sort();
        for (_, request) in owed {
            let request = String::from_utf8(request).unwrap_or_default();
            let Some((container, uid)) = request.split_once(' ') else { continue };
            let Some(pod) = self.sim.pods().get(uid).cloned() else { continue };
            self.spawn(self.clone().pay(invocation(Verb::Del, &pod, container), None));
        }
    }

    async fn pay(self: Arc<Self>, invocation: Invocation, mut first: Option<(Held, UnderWay)>) {
        let call = self.call(&invocation, &|| false);
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = match first.take() {
                Some((held, under_way)) => Some((held, Some(under_way))),
                None => call.hold_owed().await.map(|held| (held, None)),
            };
            match attempt {
                Some((held, _under_way)) if self.carry_out(&invocation, &held).await.is_ok() => return,
                None if !call.container().is_owed() => return,
                _ => {}
            }
            sleep(pause).await;
            if self.is_stopping() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn drop_handles(self: Arc<Self>, mut handles: tokio::sync::mpsc::UnboundedReceiver<IPAMHandle>) {
        let mut left = self.ground.state.pending();
        left.sort_by(|a, b| a.spec.handle_id.cmp(&b.spec.handle_id));
        left.into_iter().for_each(|handle| self.spawn(self.clone().finish(handle)));
        while let Some(handle) = handles.recv().await {
            self.spawn(self.clone().finish(handle));
        }
    }

    async fn finish(self: Arc<Self>, handle: IPAMHandle) {
        let id = handle.spec.handle_id.clone();
        if self.driver.finish_handle(handle).boxed().await.is_ok() {
            self.ground.state.drop_pending(&id);
        }
    }

    // === ahead ===

    fn follow_pod(self: &Arc<Self>, heard: Heard<'_, Pod>) {
        if !self.sim.plan.ahead || self.is_stopping() {
            return;
        }
        let agent = self.clone();
        match heard {
            Heard::Seen(pod) if is_ending(pod) => self.spawn(agent.give_back(pod.clone(), false)),
            Heard::Seen(pod) if is_waiting(pod) => self.spawn(agent.take(pod.clone())),
            Heard::Seen(pod) if !addresses(pod).is_empty() => self.spawn(agent.give_back_if_other(pod.clone())),
            Heard::Gone(pod) => self.spawn(agent.give_back(pod.clone(), true)),
            Heard::Seen(_) | Heard::Listed => {}
        }
    }

    async fn take(self: Arc<Self>, pod: Pod) {
        let (uid, name) = uid_and_name(&pod);
        let stage = self.stage(&uid);
        let mut stage = stage.lock().await;
        let state = &self.ground.state;
        if !matches!(*stage, Stage::New) || state.note(&uid).is_some() || state.is_given_back(&uid) {
            return;
        }
        *stage = Stage::Over;
        let gone = || self.is_stopping();
        match self.driver.add(&self.attachment(&self.sim.impatient, &name, &uid, &gone)).boxed().await {
            Ok(taken) => {
                self.tell("ahead", &uid, || format!("{:?}", taken.iter().map(|a| a.address).collect::<Vec<_>>()));
                self.sim.seen("taken ahead");
                *stage = Stage::Taken(taken);
            }
            Err(error) => self.tell("ahead", &uid, || format!("not: {error}")),
        }
    }

    async fn give_back(self: Arc<Self>, pod: Pod, gone: bool) {
        let (uid, name) = uid_and_name(&pod);
        let stage = self.stage(&uid);
        let mut stage = stage.lock().await;
        if let Stage::Taken(taken) = std::mem::replace(&mut *stage, Stage::Over) {
            if self.ground.state.note(&uid).is_some() {
                *stage = Stage::Taken(taken);
            } else {
                self.release(&name, &uid).await;
            }
        }
        if gone {
            lock(&self.stages).remove(&uid);
        }
    }

    async fn give_back_if_other(self: Arc<Self>, pod: Pod) {
        let Some(stage) = self.known(&uid_and_name(&pod).0) else { return };
        let has = addresses(&pod);
        let unused = match &*stage.lock().await {
            Stage::Taken(taken) => !taken.iter().any(|a| has.contains(&a.address)),
            Stage::New | Stage::Over => false,
        };
        if unused {
            self.give_back(pod, false).await;
        }
    }

    async fn release(&self, name: &str, uid: &str) {
        let freed = self.driver.del(&self.attachment(&self.sim.net, name, uid, &|| false)).boxed().await;
        self.tell("unused", uid, || format!("{:?}", freed.map(|freed| freed.len()).map_err(|e| e.to_string())));
    }

    /// What an earlier agent had begun or taken, once the node's blocks are known.
    async fn clean_up(self: Arc<Self>) {
        let (host, deadline) = (&self.sim.hosts[self.node].name, Instant::now() + Duration::from_secs(30));
        drop(self.driver.settle_affinities(host, deadline).boxed().await);
        if !self.sim.plan.ahead {
            return;
        }
        for affinity in self.driver.objects().inner().shelves().affinities.snapshot() {
            let Ok(Some(block)) = self.driver.objects().get::<IPAMBlock>(None, &cidr_name(&affinity.spec.cidr)).await
            else {
                continue;
            };
            for (address, entry) in block.spec.entries() {
                let Entry::Used { attribute, .. } = entry else { continue };
                let (Some(uid), Some(name)) = (attribute.secondary(POD_UID_KEY), attribute.secondary("pod")) else {
                    continue;
                };
                if attribute.secondary("node") != Some(host) || self.ground.state.note(uid).is_some() {
                    continue;
                }
                let live = self.driver.objects().inner().get::<Pod>(Some("default"), name).await;
                let Ok(pod) = live else { continue };
                let same = pod.as_ref().filter(|pod| pod.metadata.uid.as_deref() == Some(uid));
                if !same.is_some_and(|pod| is_waiting(pod) || addresses(pod).contains(&address)) {
                    self.release(name, uid).await;
                }
            }
        }
    }

    fn attachment<'a>(
        &'a self,
        net: &'a NetConf,
        name: &'a str,
        uid: &'a str,
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Attachment<'a> {
        Attachment {
            net,
            container_id: "",
            interface: "",
            pod: Some(PodRef { namespace: "default", name, uid: Some(uid) }),
            node: &self.sim.hosts[self.node].name,
            explicit: &[],
            last_sandbox: true,
            anew: false,
            cancelled,
            deadline: Instant::now() + WORK_TIME,
            policy: net.ipam.takeover,
        }
    }

    fn tell(&self, what: &str, about: &str, result: impl FnOnce() -> String) {
        self.sim.tell(&format!("agent {}", self.name), what, about, result);
    }
}

fn uid_and_name(pod: &Pod) -> (String, String) {
    (pod.metadata.uid.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

/// What a pod says it has.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let several = pod.status.as_ref().and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
    several.filter_map(|ip| ip.ip.parse().ok()).collect()
}

/// Whether a pod has no sandbox yet, and will get one.
fn is_waiting(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) && addresses(pod).is_empty() && !is_ending(pod)
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

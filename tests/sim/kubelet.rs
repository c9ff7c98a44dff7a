//! A kubelet with its runtime: sandboxes are made until one stands, torn down when their pod goes, and DEL is
//! called until it succeeds, at times once more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::calico_ipam;
use super::node::Answer;
use super::oracle::Life;
use super::pods::{self, PodCell, Stage};
use super::rng::{Rng, hash, mix};
use super::sim::Sim;

/// Longest time in milliseconds from a pod's deletion to the end of its containers, on a node that is not cut off.
const REACTION: u64 = 2000;
/// How long a runtime waits for an ADD, in milliseconds.
const PATIENCE: (u64, u64) = (3000, 25_000);
/// How long it waits for GC, which goes on unheard. A kubelet must not be kept from stopping its pods for longer than a
/// Ready node has to release what was deleted by force.
const GC_PATIENCE: Duration = Duration::from_secs(8);

struct Worker {
    sim: Arc<Sim>,
    node: usize,
    pod: Arc<PodCell>,
    rng: Rng,
    /// Sandboxes that DEL has not been answered for.
    garbage: Vec<String>,
    /// Longest pause before the next attempt, in milliseconds; doubled after each failure.
    backoff: u64,
}

/// The kubelet comes up: what the runtime still has is found again.
pub fn start(sim: &Arc<Sim>, node: usize) {
    let of = sim.clone();
    let task = tokio::spawn(async move {
        let sim = of;
        let host = &sim.hosts[node];
        let life = sim.nth(&format!("kubelet {}", host.name));
        let mut rng = Rng::new(mix(&[sim.plan.seed, hash(&host.name), life]));
        let known =
            || -> Vec<Arc<PodCell>> { sim.pods().values().filter(|pod| is_known(&sim, pod, node)).cloned().collect() };
        if let Some(any) = known().first().filter(|pod| !pod.foreign && life > 1 && rng.chance(500)) {
            let alive = sim.truth().oracle.alive_on(node);
            sim.tell(&format!("kubelet {}", host.name), "gc", &host.name, || format!("{alive:?}"));
            host.collecting.store(true, Ordering::Relaxed);
            drop(timeout(GC_PATIENCE, host.gc(&sim, any, &alive)).await);
            host.collecting.store(false, Ordering::Relaxed);
        }
        known().iter().for_each(|pod| take_up(&sim, node, pod));
    });
    sim.hosts[node].keep(task.abort_handle());
}

/// Whether the node has to do with a pod: it is bound to it, or has sandboxes of it.
fn is_known(sim: &Sim, pod: &PodCell, node: usize) -> bool {
    if pod.node() != Some(node) {
        return false;
    }
    pod.stage() != Stage::Gone || sim.truth().oracle.containers.values().any(|c| c.pod_uid == pod.uid && !c.released)
}

/// A pod was bound to the node, or is found there.
pub fn take_up(sim: &Arc<Sim>, node: usize, pod: &Arc<PodCell>) {
    let host = &sim.hosts[node];
    let known = host.workers.lock().unwrap_or_else(PoisonError::into_inner).contains(&pod.uid);
    if !host.is_up() || known || host.collecting.load(Ordering::Relaxed) {
        return;
    }
    host.workers.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.uid.clone());
    let life = sim.nth(&format!("worker {}", pod.uid));
    let rng = Rng::new(mix(&[sim.plan.seed, hash(&pod.uid), life]));
    let worker = Worker { sim: sim.clone(), node, pod: pod.clone(), rng, garbage: Vec::new(), backoff: 800 };
    let task = tokio::spawn(worker.run());
    sim.hosts[node].keep(task.abort_handle());
}

// === impl Worker ===

impl Worker {
    async fn run(mut self) {
        let mut current = self.find_sandboxes();
        if current.is_some() {
            self.report();
        }
        // What does not run any more is torn down before anything new is made. What runs is stopped in its time.
        let pod = self.pod.clone();
        tokio::select! {
            biased;
            () = self.clean_up_once() => {}
            () = pod.reaches(Stage::Terminating), if current.is_some() => {}
        }
        while self.pod.stage() == Stage::Alive {
            if current.is_none() {
                current = self.make_sandbox().await;
            }
            let Some(id) = current.clone() else { continue };
            let pod = self.pod.clone();
            tokio::select! {
                biased;
                () = pod.reaches(Stage::Terminating) => break,
                () = pod.new_sandbox.notified() => {
                    current = None;
                    self.stop(&id);
                    self.clean_up_once().await;
                }
            }
        }
        // The kubelet hears of it.
        self.pause(REACTION).await;
        if let Some(id) = current {
            self.stop(&id);
        }
        let object_first = self.rng.chance(300);
        if object_first {
            pods::remove(&self.sim, &self.pod, &self.name());
        }
        while !self.garbage.is_empty() {
            self.clean_up_once().await;
            if !self.garbage.is_empty() {
                sleep(Duration::from_millis(700)).await;
            }
        }
        pods::remove(&self.sim, &self.pod, &self.name());
    }

    fn name(&self) -> String {
        format!("kubelet {}", self.sim.hosts[self.node].name)
    }

    async fn pause(&mut self, at_most: u64) {
        let pause = self.rng.below(at_most);
        sleep(Duration::from_millis(pause)).await;
    }

    /// What an earlier life of the kubelet left: the sandbox that runs, and those that do not.
    fn find_sandboxes(&mut self) -> Option<String> {
        let mut truth = self.sim.truth();
        let mut current = None;
        for id in truth.oracle.of_pod(&self.pod.uid) {
            let Some(container) = truth.oracle.containers.get(&id) else { continue };
            if container.released {
                continue;
            }
            if matches!(container.life, Life::Running | Life::GivenUp)
                && current.is_none()
                && !container.addresses.is_empty()
            {
                current = Some(id);
            } else {
                truth.oracle.stopped(&id);
                self.garbage.push(id);
            }
        }
        current
    }

    /// A sandbox with an address; `None` after a failure and a pause, or when the pod goes.
    async fn make_sandbox(&mut self) -> Option<String> {
        let id = self.pod.sandbox(&self.sim, self.node);
        let who = self.name();
        self.sim.tell(&who, "add", &id, || format!("pod {}", self.pod.name));
        let patience = Duration::from_millis(self.rng.between(PATIENCE.0, PATIENCE.1));
        let deadline = timeout(patience, add(&self.sim, self.node, &self.pod, &id));
        let leaves = async {
            self.pod.reaches(Stage::Terminating).await;
            sleep(Duration::from_millis(self.rng.below(REACTION))).await;
        };
        let answer = tokio::select! {
            biased;
            answer = deadline => answer.unwrap_or(Answer::Nothing),
            () = leaves => Answer::Nothing,
        };
        self.sim.tell(&who, "answer", &id, || format!("{answer:?}"));
        if matches!(answer, Answer::Refused(_)) && self.sim.truth().is_locked() {
            self.sim.seen("ADDs refused under the lock");
        }
        if let Answer::Given(addresses) = answer {
            self.backoff = 800;
            self.sim.truth().oracle.answered(&id, &addresses);
            self.report();
            if self.rng.chance(100) {
                self.check(&id);
            }
            return Some(id);
        }
        self.stop(&id);
        // A runtime tears down what failed before it tries again, though it does not insist.
        self.clean_up_once().await;
        let backoff = self.backoff;
        self.backoff = (backoff * 2).min(20_000);
        self.pause(backoff).await;
        None
    }

    /// The pod's status follows after a while, with what the pod has then.
    fn report(&mut self) {
        let (sim, pod, pause) = (self.sim.clone(), self.pod.clone(), self.rng.below(1500));
        let reporting = tokio::spawn(async move {
            sleep(Duration::from_millis(pause)).await;
            let has = sim.truth().oracle.running().find(|c| c.pod_uid == pod.uid).map(|c| c.addresses.clone());
            if let Some(addresses) = has {
                pods::report(&sim, &pod, &addresses);
            }
        });
        self.sim.hosts[self.node].keep(reporting.abort_handle());
    }

    /// CHECK of a container that runs finds nothing missing. However long it takes, the kubelet does not wait for it.
    fn check(&self, id: &str) {
        if self.pod.foreign {
            return;
        }
        let (sim, node, pod, id) = (self.sim.clone(), self.node, self.pod.clone(), id.to_owned());
        let task = tokio::spawn(async move {
            let has = sim.truth().oracle.containers.get(&id).map(|c| c.addresses.clone()).unwrap_or_default();
            let missing = sim.hosts[node].check(&sim, &pod, &id, &has).await.unwrap_or_default();
            let mut truth = sim.truth();
            // CHECK says so of a claim that somebody has just written by hand.
            if missing.iter().any(|line| line.starts_with("the claim")) && truth.oracle.is_harmed(&has) {
                return;
            }
            if !missing.is_empty() && truth.oracle.containers.get(&id).is_some_and(|c| c.life == Life::Running) {
                truth.oracle.fail("CHECK", format!("{id} runs, and CHECK says: {}", missing.join("; ")));
            }
        });
        self.sim.hosts[self.node].keep(task.abort_handle());
    }

    fn stop(&mut self, id: &str) {
        self.sim.truth().oracle.stopped(id);
        self.sim.tell(&self.name(), "stop", id, String::new);
        self.garbage.push(id.to_owned());
    }

    /// One DEL for everything that is left; what fails stays, and what nobody waited for.
    async fn clean_up_once(&mut self) {
        for id in self.garbage.clone() {
            let answer = del(&self.sim, self.node, &self.pod, &id).await;
            self.sim.tell(&self.name(), "del", &id, || format!("{answer:?}"));
            if !matches!(answer, Answer::Given(_)) {
                continue;
            }
            self.garbage.retain(|left| *left != id);
            if let Some(container) = self.sim.truth().oracle.containers.get_mut(&id) {
                container.released = true;
            }
            if self.rng.chance(100) {
                let again = del(&self.sim, self.node, &self.pod, &id).await;
                self.sim.tell(&self.name(), "del", &id, || format!("again: {again:?}"));
            }
        }
    }
}

async fn add(sim: &Arc<Sim>, node: usize, pod: &Arc<PodCell>, id: &str) -> Answer {
    if pod.foreign { calico_ipam::add(sim, node, pod, id).await } else { sim.hosts[node].add(sim, pod, id).await }
}

/// DEL, by whichever plugin is the pod's.
pub async fn del(sim: &Arc<Sim>, node: usize, pod: &Arc<PodCell>, id: &str) -> Answer {
    if pod.foreign { calico_ipam::del(sim, node, id).await } else { sim.hosts[node].del(sim, pod, id).await }
}

/// ADD once more for a container that runs: it must get what it has.
pub async fn add_again(sim: &Arc<Sim>, node: usize, pod: &Arc<PodCell>, id: &str) {
    let answer = sim.hosts[node].add(sim, pod, id).await;
    sim.tell("runtime", "add", id, || format!("again: {answer:?}"));
    let Answer::Given(addresses) = answer else { return };
    let mut truth = sim.truth();
    let Some(container) = truth.oracle.containers.get(id).filter(|c| c.life == Life::Running) else { return };
    if container.addresses != addresses {
        let detail = format!("{id} runs with {:?}, and a second ADD was answered {addresses:?}", container.addresses);
        truth.oracle.fail("I3", detail);
    }
}

/// The machine comes up again. Its sandboxes are known, and dead.
pub fn boot(sim: &Arc<Sim>, node: usize) {
    let host = &sim.hosts[node];
    host.up.store(true, Ordering::Relaxed);
    pods::set_ready(sim, node, true);
    start(sim, node);
    host.start_whole(sim, 700);
}

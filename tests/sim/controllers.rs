//! Controllers that keep their pods, a scheduler, and whoever looks after Nodes.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube_ipam::claim::Claim;
use tokio::time::sleep;

use super::kubelet;
use super::plan::Kind;
use super::pods::{self, PodCell, Stage};
use super::rng::{Rng, hash, mix};
use super::sim::Sim;

/// Milliseconds without a sign of life after which a Node is not Ready.
pub const UNREADY_AFTER: u64 = 3000;
/// How long the pods of a Node that was deleted stay.
const POD_GC: Duration = Duration::from_secs(4);

/// Kind and name of a workload's owner.
pub fn owner(sim: &Sim, workload: usize) -> (String, String) {
    let of = &sim.plan.workloads[workload];
    let kind = if of.kind == Kind::StatefulSet { "StatefulSet" } else { "Deployment" };
    (kind.to_owned(), of.name.clone())
}

pub fn exists(sim: &Sim, workload: usize) -> bool {
    let owner = owner(sim, workload);
    sim.truth().owners.contains(&owner)
}

/// Every workload with its pods.
pub fn start(sim: &Arc<Sim>) {
    for (index, workload) in sim.plan.workloads.iter().enumerate() {
        if sim.skip.workloads.contains(&index) {
            continue;
        }
        let owner = owner(sim, index);
        sim.truth().owners.insert(owner);
        for replica in 0..workload.replicas {
            tokio::spawn(keep(sim.clone(), index, format!("{}-{replica}", workload.name)));
        }
    }
}

/// One pod after the other, as long as the workload exists.
async fn keep(sim: Arc<Sim>, workload: usize, slot: String) {
    let mut rng = Rng::new(mix(&[sim.plan.seed, hash(&slot)]));
    while exists(&sim, workload) {
        sleep(Duration::from_millis(rng.below(600))).await;
        let pod = pods::create(&sim, workload, &slot);
        schedule(&sim, &pod, &mut rng).await;
        pod.reaches(Stage::Gone).await;
    }
}

/// A pod beside those that the workload keeps; it goes after a while.
pub async fn surge(sim: Arc<Sim>, workload: usize) {
    let slot = format!("{}-surge", sim.plan.workloads[workload].name);
    let mut rng = Rng::new(mix(&[sim.plan.seed, hash(&slot)]));
    let pod = pods::create(&sim, workload, &slot);
    schedule(&sim, &pod, &mut rng).await;
    sleep(Duration::from_secs(6)).await;
    pods::delete(&sim, &pod);
}

/// Binds a pod to some node that is Ready.
async fn schedule(sim: &Arc<Sim>, pod: &Arc<PodCell>, rng: &mut Rng) {
    loop {
        sleep(Duration::from_millis(rng.between(10, 300))).await;
        if pod.stage() == Stage::Gone {
            return;
        }
        let ready: Vec<usize> = {
            let truth = sim.truth();
            let is_ready = |node: &usize| pods::is_ready(truth.get::<Node>(None, &sim.hosts[*node].name).as_ref());
            // One plugin for each node: calico-ipam has the last one, if its pods are there at all.
            let last = sim.hosts.len() - 1;
            let mixed = sim.plan.workloads.iter().any(|w| w.kind == Kind::Calico);
            let suits = |node: &usize| !mixed || (*node == last) == pod.foreign;
            (0..sim.hosts.len()).filter(is_ready).filter(suits).collect()
        };
        if let Some(node) = rng.pick(&ready).copied() {
            pods::bind(sim, pod, node);
            sleep(Duration::from_millis(rng.below(100))).await;
            // A kubelet that is cut off hears of it when it is back.
            if !sim.is_cut(node) {
                kubelet::take_up(sim, node, pod);
            }
            return;
        }
        sleep(Duration::from_millis(900)).await;
    }
}

/// The owner's object goes, then its pods.
pub fn remove_workload(sim: &Sim, workload: usize) {
    let owner = owner(sim, workload);
    if sim.truth().owners.remove(&owner) {
        sim.tell("controller", "remove", &owner.1, || format!("{} is deleted", owner.0));
        let of: Vec<Arc<PodCell>> = sim.pods().values().filter(|pod| pod.workload == workload).cloned().collect();
        of.iter().for_each(|pod| pods::delete(sim, pod));
    }
}

/// A pod passes to another controller, which goes when the pod is gone, and gets a new sandbox: at once, or when its claims
/// have followed it.
pub async fn change_controller(sim: Arc<Sim>, pod: Arc<PodCell>, at_once: bool) {
    let by = format!("adopter-{}", pod.uid);
    let owner = ("Deployment".to_owned(), by.clone());
    sim.truth().owners.insert(owner.clone());
    pods::adopt(&sim, &pod, &by);
    pod.adopted.store(true, Ordering::Relaxed);
    let follows = |address: &IpAddr| {
        let claim = sim.truth().claim(*address).map(|claim| claim.value);
        let holds = |claim: &Claim| claim.holder.as_ref().is_some_and(|holder| holder.pod_uid == pod.uid);
        claim.is_some_and(|claim| holds(&claim) && claim.owner.name == by)
    };
    while !at_once && pod.stage() == Stage::Alive && !pod.wanted.iter().any(follows) {
        sleep(Duration::from_millis(500)).await;
    }
    if pod.wanted.iter().any(follows) {
        sim.seen("claims that followed their pods");
    }
    pod.new_sandbox.notify_one();
    pod.reaches(Stage::Gone).await;
    sim.truth().owners.remove(&owner);
}

/// Somebody locks Calico's datastore for a while, as for a migration.
pub async fn lock(sim: Arc<Sim>, long: u64) {
    if sim.truth().lock(true) {
        sim.seen("locks");
        sim.tell("somebody", "lock", "", String::new);
        sleep(Duration::from_millis(long)).await;
        unlock(&sim);
    }
}

pub fn unlock(sim: &Sim) {
    if sim.truth().lock(false) {
        sim.tell("somebody", "unlock", "", String::new);
    }
}

// === nodes ===

/// The machine stops, and comes back.
pub async fn stop_node(sim: Arc<Sim>, node: usize, down: u64) {
    let host = &sim.hosts[node];
    if !host.is_up() || sim.is_cut(node) {
        return;
    }
    let epoch = stop_machine(&sim, node, false);
    sleep(Duration::from_millis(down.min(UNREADY_AFTER))).await;
    if down > UNREADY_AFTER && host.is_epoch(epoch) {
        pods::set_ready(&sim, node, false);
        sleep(Duration::from_millis(down - UNREADY_AFTER)).await;
    }
    if host.is_epoch(epoch) {
        kubelet::boot(&sim, node);
    }
}

fn stop_machine(sim: &Arc<Sim>, node: usize, for_good: bool) -> u64 {
    let host = &sim.hosts[node];
    host.up.store(false, Ordering::Relaxed);
    host.stop();
    let mut truth = sim.truth();
    for id in truth.oracle.on_node(node) {
        truth.oracle.stopped(&id);
        if let Some(container) = truth.oracle.containers.get_mut(&id).filter(|_| for_good) {
            container.released = true;
        }
    }
    drop(truth);
    sim.tell("nodes", "stop", &host.name, || "the machine stops".to_owned());
    host.next_epoch()
}

/// The node is cut off from both stores for a while. Its kubelet goes on as it was.
pub async fn cut_node(sim: Arc<Sim>, node: usize, long: u64) {
    let host = &sim.hosts[node];
    if !host.is_up() || sim.is_cut(node) {
        return;
    }
    let epoch = host.next_epoch();
    host.cut.store(true, Ordering::Relaxed);
    // What happens to its pods from here on it hears when it is back.
    host.kill_kubelet();
    sim.tell("nodes", "cut", &host.name, || "no connection".to_owned());
    sleep(Duration::from_millis(long.min(UNREADY_AFTER))).await;
    if long > UNREADY_AFTER && host.is_epoch(epoch) {
        pods::set_ready(&sim, node, false);
        sleep(Duration::from_millis(long - UNREADY_AFTER)).await;
    }
    if host.is_epoch(epoch) {
        host.cut.store(false, Ordering::Relaxed);
        pods::set_ready(&sim, node, true);
        kubelet::start(&sim, node);
    }
}

/// The Node is deleted and its machine with it; another one comes under the same name.
pub async fn remove_node(sim: Arc<Sim>, node: usize, long: u64) {
    let host = &sim.hosts[node];
    if !host.is_up() {
        return;
    }
    let epoch = stop_machine(&sim, node, true);
    host.cut.store(false, Ordering::Relaxed);
    pods::remove_node(&sim, node);
    sleep(POD_GC).await;
    let bound: Vec<Arc<PodCell>> = sim.pods().values().filter(|pod| pod.node() == Some(node)).cloned().collect();
    bound.iter().for_each(|pod| pods::remove(&sim, pod, "pod gc"));
    sleep(Duration::from_millis(long).saturating_sub(POD_GC)).await;
    if host.is_epoch(epoch) {
        kubelet::boot(&sim, node);
    }
}

//! One run: a seed's plan from the empty cluster to the quiet one, and what was wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use calico::{Family, IPAMBlock};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube_ipam::audit::{self, Violation as Finding, audit};
use kube_ipam::claim::Claim;
use kube_ipam::netconf::NetConf;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::controllers;
use super::events;
use super::kube_controllers;
use super::kubelet;
use super::oracle::{self, Container, Life, Oracle, Violation};
use super::plan::{self, Definitions, EVENTFUL, Plan, Skip};
use super::pods::{self, PodCell};
use super::rng::mix;
use super::sim::Sim;
use super::time;
use super::truth::Truth;
use super::wire::{Caller, Wire};

/// What came of a run.
pub struct Outcome {
    pub violation: Option<Violation>,
    pub trace: (u64, u64),
    pub story: Vec<String>,
    /// The faults that struck: caller and number of its call.
    pub struck: Vec<(u64, u64)>,
    pub answers: u64,
    pub takeovers: u64,
    pub cooled: u64,
    pub ledger_calls: usize,
    pub seen: BTreeMap<&'static str, u64>,
}

/// The configuration of a network, of one family or both.
fn conf(dual: bool) -> NetConf {
    let v4 = json!({
        "subnet": "10.244.0.0/26", "rangeStart": "10.244.0.2", "rangeEnd": "10.244.0.47", "gateway": "10.244.0.1",
    });
    let v6 = json!({
        "subnet": "fd00::/122", "rangeStart": "fd00::2", "rangeEnd": "fd00::2f", "gateway": "fd00::1",
    });
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico",
        "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
        "ipam": {
            "type": "kube-ipam", "name": "kube-subnet", "etcdConfig": {"etcdURL": "http://127.0.0.1:2379"},
            "waitSeconds": 4, "takeover": {"graceSeconds": 14},
        }
    });
    conf["ipam"]["ranges"] = if dual { json!([[v4], [v6]]) } else { json!([[v4]]) };
    NetConf::parse(&conf, "kube-ipam").unwrap()
}

static NET: LazyLock<NetConf> = LazyLock::new(|| conf(false));
static DUAL: LazyLock<NetConf> = LazyLock::new(|| conf(true));

/// The network's configuration.
pub fn net(dual: bool) -> NetConf {
    if dual { DUAL.clone() } else { NET.clone() }
}

fn ranges() -> Vec<(IpAddr, IpAddr)> {
    let v4 = (IpAddr::from([10, 244, 0, 2]), IpAddr::from([10, 244, 0, 47]));
    vec![v4, (plan::twin(v4.0), plan::twin(v4.1))]
}

/// Runs `seed` without what `skip` leaves out; `tell` keeps the story.
pub fn run(seed: u64, skip: Skip, tell: bool) -> Outcome {
    let plan = Plan::of(seed);
    // The pauses between a driver's attempts.
    fastrand::seed(mix(&[seed]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        time::begin(plan.drift);
        let nodes = (0..plan.nodes).map(|index| format!("n{}", index + 1)).collect();
        let mut truth = Truth::new(Oracle::new(&NET.network, nodes, ranges(), plan.cooldown));
        truth.definitions = plan.definitions;
        truth.backups = plan.harms_claims.then(BTreeMap::new);
        let net = net(plan.dual);
        let sim = Sim::new(plan, skip, net, truth, tell);
        live(&sim).await;
        let outcome = outcome(&sim);
        // A node's agent knows the run that knows the node.
        sim.hosts.iter().for_each(|host| host.stop());
        outcome
    })
}

fn outcome(sim: &Sim) -> Outcome {
    let truth = sim.truth();
    Outcome {
        violation: truth.oracle.violation.clone(),
        trace: sim.trace(),
        story: sim.story(),
        struck: sim.struck(),
        answers: truth.oracle.answers,
        takeovers: truth.oracle.takeovers,
        cooled: truth.oracle.cooled,
        ledger_calls: sim.history().len(),
        seen: sim.all_seen(),
    }
}

fn furnish(sim: &Sim) {
    let mut truth = sim.truth();
    let mut put = |value: Value| truth.put(serde_json::from_value::<calico::IPPool>(value).unwrap());
    put(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "default-ipv4-ippool"},
        "spec": {"cidr": "10.244.0.0/26", "blockSize": sim.plan.block_size},
    }));
    if sim.plan.dual {
        put(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "default-ipv6-ippool"},
            "spec": {"cidr": "fd00::/122", "blockSize": sim.plan.block_size + 96},
        }));
    }
    let config = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMConfig", "metadata": {"name": "default"},
        "spec": {
            "strictAffinity": sim.plan.strict_affinity, "autoAllocateBlocks": true, "ipCooldownSeconds": if sim.plan.definitions < Definitions::Newest { 30 } else { sim.plan.cooldown },
        },
    });
    truth.put(serde_json::from_value::<calico::IPAMConfig>(config).unwrap());
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some("default".into());
    truth.put(namespace);
    drop(truth);
    (0..sim.hosts.len()).for_each(|node| pods::set_ready(sim, node, true));
}

async fn live(sim: &Arc<Sim>) {
    furnish(sim);
    sim.hosts.iter().for_each(|host| host.start_whole(sim, 0));
    (0..sim.hosts.len()).for_each(|node| kubelet::start(sim, node));
    controllers::start(sim);
    tokio::spawn(kube_controllers::run(sim.clone()));
    tokio::spawn(events::collect(sim.clone()));
    tokio::spawn(events::play(sim.clone()));
    if !passes(sim, EVENTFUL + 10_000).await {
        return;
    }
    sim.be_calm();
    controllers::unlock(sim);
    sim.tell("run", "calm", "", || "nothing goes wrong any more".to_owned());
    // Whatever is still down comes back.
    if !passes(sim, 30_000).await {
        return;
    }
    if sim.plan.teardown {
        (0..sim.plan.workloads.len()).for_each(|workload| controllers::remove_workload(sim, workload));
    }
    sim.collector_found(1);
    for _ in 0..12 {
        if !passes(sim, 15_000).await {
            return;
        }
        // A kubelet that has failed to make a sandbox may be in a long pause.
        if sim.collector_is_idle() && sim.pods().values().all(|pod| pod.stage() != pods::Stage::Terminating) {
            break;
        }
    }
    judge(sim).await;
}

/// Lets time pass; false as soon as something was violated.
async fn passes(sim: &Sim, milliseconds: u64) -> bool {
    let until = time::now() + milliseconds;
    while time::now() < until {
        if sim.failed() {
            return false;
        }
        sleep(Duration::from_millis(1000.min(until - time::now()))).await;
    }
    !sim.failed()
}

/// What must be true of a cluster that was left alone.
async fn judge(sim: &Arc<Sim>) {
    // Twice: what is only in one of them was a step of a pod that tries again and again.
    let earlier = findings(sim).await;
    sleep(Duration::from_millis(3100)).await;
    let found = audit::persisting(&earlier, &findings(sim).await);
    if let Some(first) = found.first() {
        let name = invariant(&first.invariant.to_string());
        let all: Vec<String> = found.iter().map(ToString::to_string).collect();
        return sim.truth().oracle.fail(name, format!("in the end: {}", all.join(" | ")));
    }
    every_pod_runs(sim);
    nothing_is_left(sim);
    let broken = sim.history().fault();
    if let Some((address, why)) = broken {
        sim.truth().oracle.fail("linearizable", format!("{address}: {why}"));
    }
}

async fn findings(sim: &Arc<Sim>) -> Vec<Finding> {
    let caller = Caller::immortal("judge".to_owned(), None);
    let wire = Wire::new(sim, &caller);
    let reading = audit::read(&wire, Some(&wire), &|_| {}).await;
    let Some(mut snapshot) = reading.snapshot else {
        sim.truth().oracle.fail("audit", format!("{:?}", reading.unread));
        return Vec::new();
    };
    snapshot.net = Some(sim.net.clone());
    // A pod whose sandbox died has no address until it has another, whatever it reported before.
    let running: BTreeSet<String> = sim.truth().oracle.running().map(|container| container.pod_uid.clone()).collect();
    let idle = |pod: &&mut Pod| pod.metadata.uid.as_ref().is_some_and(|uid| !running.contains(uid));
    for pod in snapshot.pods.iter_mut().filter(idle) {
        pod.status.iter_mut().for_each(|status| (status.pod_ip, status.pod_ips) = (None, None));
    }
    audit(&snapshot).into_iter().filter(|found| !is_lawful(sim, found)).collect()
}

/// What is as it must be: our range is no concern of calico-ipam's, and an address that was given at random before
/// its reservation was there is not taken from its pod, though another owner has claimed it since.
fn is_lawful(sim: &Sim, found: &Finding) -> bool {
    match found.class {
        audit::Class::OutsideRange => found.detail.contains("default/foreign-"),
        audit::Class::ClaimDisagrees => {
            let address = found.object.strip_prefix("Claim/").and_then(|text| text.parse::<IpAddr>().ok());
            let at_random = |c: &Container| c.wanted.is_empty() && address.is_some_and(|a| c.addresses.contains(&a));
            found.detail.starts_with("names no holder") && sim.truth().oracle.running().any(at_random)
        }
        _ => false,
    }
}

fn invariant(name: &str) -> &'static str {
    ["I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9"].into_iter().find(|known| *known == name).unwrap_or("audit")
}

/// Every pod that a workload keeps has come up, unless another has its address by right.
fn every_pod_runs(sim: &Sim) {
    let mut truth = sim.truth();
    let running: BTreeSet<String> = truth.oracle.running().map(|c| c.pod_uid.clone()).collect();
    let taken: BTreeSet<IpAddr> = truth.oracle.running().flat_map(|c| c.addresses.clone()).collect();
    let present: Vec<Arc<PodCell>> =
        sim.pods().values().filter(|pod| pod.stage() != pods::Stage::Gone).cloned().collect();
    for pod in &present {
        // The first address that nobody has claimed is tried and no other, even if a random pod has it.
        let others =
            pod.wanted.iter().any(|address| taken.contains(address) || stayed_behind(&truth, &present, *address));
        let others = others || sim.plan.strict_affinity;
        let kept_out = !pod.wanted.is_empty() && (others || torn(&truth, &pod.wanted));
        if !running.contains(&pod.uid) && !kept_out {
            let what = format!("pod {} ({:?}) does not run in the end", pod.uid, pod.stage());
            truth.oracle.fail("liveness", what);
        }
    }
}

/// Whether the addresses of a pod's two families belong to two controllers since somebody wrote a claim by hand: both
/// exist, so neither gets what is the other's.
fn torn(truth: &Truth, wanted: &[IpAddr]) -> bool {
    let standing = wanted.iter().filter_map(|address| truth.claim(*address).map(|claim| claim.value));
    let idle: Vec<Claim> = standing.filter(|claim| is_idle(truth, claim)).collect();
    let apart =
        |one: &Claim, other: &Claim| one.owner != other.owner && Family::of(one.address) != Family::of(other.address);
    truth.oracle.is_harmed(wanted) && idle.iter().any(|one| idle.iter().any(|other| apart(one, other)))
}

/// Whether nobody holds a claim, and its owner exists.
fn is_idle(truth: &Truth, claim: &Claim) -> bool {
    claim.holder.is_none() && truth.owners.contains(&(claim.owner.kind.clone(), claim.owner.name.clone()))
}

/// Whether a claim stayed with the controller that a pod had before. It is idle until that has a pod again, which here it
/// has only when the one that it lost is gone.
fn stayed_behind(truth: &Truth, pods: &[Arc<PodCell>], address: IpAddr) -> bool {
    let lost = |pod: &Arc<PodCell>| pod.adopted.load(Ordering::Relaxed) && pod.wanted.contains(&address);
    pods.iter().any(lost) && truth.claim(address).is_some_and(|claim| is_idle(truth, &claim.value))
}

/// What is allocated is what runs.
fn nothing_is_left(sim: &Sim) {
    let mut truth = sim.truth();
    let network = truth.oracle.network.clone();
    let alive: Vec<&Container> =
        truth.oracle.containers.values().filter(|c| matches!(c.life, Life::Running | Life::GivenUp)).collect();
    let mut left = None;
    for block in truth.each::<IPAMBlock>() {
        for (address, entry) in block.spec.entries() {
            let calico::Entry::Used { attribute, .. } = entry else { continue };
            let uses = |c: &&Container| c.addresses.contains(&address) && oracle::is_for(attribute, c, &network);
            if !alive.iter().any(uses) {
                left = Some((address, attribute.handle().unwrap_or_default().to_owned()));
            }
        }
    }
    if let Some(left) = left {
        let detail = format!("{left:?} is allocated in the end, and no container runs with it");
        truth.oracle.fail("I8", detail);
    }
    let ready = truth.each::<Node>().filter(|node| pods::is_ready(Some(*node))).count();
    if ready != sim.hosts.len() {
        truth.oracle.fail("liveness", format!("only {ready} nodes are Ready in the end"));
    }
}

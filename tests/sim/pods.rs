//! Pods and Nodes as the API server has them, and what their deletion says about containers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use tokio::sync::Notify;

use super::oracle::{Container, Life};
use super::plan::{Kind, Workload, twin};
use super::signal::Signal;
use super::sim::Sim;

/// How far a pod's object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub enum Stage {
    Alive,
    Terminating,
    Gone,
}

/// A pod, also after its object is gone.
pub struct PodCell {
    pub uid: String,
    pub name: String,
    pub workload: usize,
    pub wanted: Vec<IpAddr>,
    pub foreign: bool,
    node: Mutex<Option<usize>>,
    stage: Signal<Stage>,
    /// Its sandbox is to die.
    pub new_sandbox: Notify,
    /// Whether its controller has changed. If it had no sandbox from then until the collector's next round, nothing says
    /// any more that the address was this pod's, and its earlier controller has it.
    pub adopted: AtomicBool,
}

const TEMPLATE: &str = "h1";

impl PodCell {
    pub fn node(&self) -> Option<usize> {
        *self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stage(&self) -> Stage {
        self.stage.value()
    }

    /// Returns when the pod is at `stage` or further.
    pub async fn reaches(&self, stage: Stage) {
        self.stage.until(|now| now >= stage).await;
    }

    /// Takes down a new sandbox of the pod.
    pub fn sandbox(&self, sim: &Sim, node: usize) -> String {
        let id = format!("{}.{}", self.uid, sim.nth(&self.uid));
        sim.truth().oracle.asks(Container {
            id: id.clone(),
            pod_uid: self.uid.clone(),
            pod: self.name.clone(),
            node,
            wanted: self.wanted.clone(),
            foreign: self.foreign,
            addresses: Vec::new(),
            life: Life::Asking,
            released: false,
        });
        id
    }
}

fn metadata(cell: &PodCell, workload: &Workload, dual: bool) -> ObjectMeta {
    let (kind, owner) = match workload.kind {
        Kind::StatefulSet => ("StatefulSet", workload.name.clone()),
        _ => ("ReplicaSet", format!("{}-{TEMPLATE}", workload.name)),
    };
    let twins = workload.addresses.iter().filter(|_| dual).map(|address| twin(*address));
    let all: Vec<IpAddr> = workload.addresses.iter().copied().chain(twins).collect();
    let asked = all.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let annotations: BTreeMap<String, String> =
        if asked.is_empty() { BTreeMap::new() } else { [("kube-ipam.ip".to_owned(), asked)].into() };
    ObjectMeta {
        name: Some(cell.name.clone()),
        namespace: Some("default".into()),
        uid: Some(cell.uid.clone()),
        annotations: Some(annotations),
        labels: Some([("pod-template-hash".to_owned(), TEMPLATE.to_owned())].into()),
        owner_references: Some(vec![OwnerReference {
            api_version: "apps/v1".into(),
            kind: kind.into(),
            name: owner,
            uid: "owner".into(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

/// A controller makes a pod.
pub fn create(sim: &Sim, workload: usize, slot: &str) -> Arc<PodCell> {
    let of = &sim.plan.workloads[workload];
    let uid = format!("{slot}-{}", sim.nth(slot));
    // A StatefulSet's pod takes the address of its ordinal.
    let ordinal: Option<usize> = slot.rsplit_once('-').and_then(|(_, index)| index.parse().ok());
    let wanted = match (of.kind, ordinal.and_then(|index| of.addresses.get(index))) {
        (Kind::StatefulSet, Some(address)) => vec![*address],
        _ => of.addresses.clone(),
    };
    let twins: Vec<IpAddr> = wanted.iter().filter(|_| sim.plan.dual).map(|address| twin(*address)).collect();
    let wanted = [wanted, twins].concat();
    let cell = Arc::new(PodCell {
        name: if of.kind == Kind::StatefulSet { slot.to_owned() } else { uid.clone() },
        uid: uid.clone(),
        workload,
        wanted,
        foreign: of.kind == Kind::Calico,
        node: Mutex::new(None),
        stage: Signal::new(Stage::Alive),
        new_sandbox: Notify::new(),
        adopted: AtomicBool::new(false),
    });
    let (spec, status) =
        (Some(PodSpec::default()), Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() }));
    sim.truth().put(Pod { metadata: metadata(&cell, of, sim.plan.dual), spec, status });
    sim.pods().insert(uid, cell.clone());
    sim.tell("controller", "create", &cell.uid, || format!("pod {}", cell.name));
    cell
}

/// Changes the object, if it still is this pod's.
fn amend(sim: &Sim, cell: &PodCell, change: impl FnOnce(&mut Pod)) {
    let mut truth = sim.truth();
    let found = truth.get::<Pod>(Some("default"), &cell.name);
    if let Some(mut pod) = found.filter(|pod| pod.metadata.uid.as_ref() == Some(&cell.uid)) {
        change(&mut pod);
        truth.put(pod);
    }
}

/// Another controller of that name adopts the pod.
pub fn adopt(sim: &Sim, cell: &PodCell, by: &str) {
    amend(sim, cell, |pod| {
        for owner in pod.metadata.owner_references.iter_mut().flatten() {
            (owner.kind, owner.name, owner.uid) = ("ReplicaSet".into(), format!("{by}-{TEMPLATE}"), by.to_owned());
        }
    });
    sim.tell("controller", "adopt", &cell.uid, || by.to_owned());
}

pub fn bind(sim: &Sim, cell: &PodCell, node: usize) {
    *cell.node.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
    let name = sim.hosts[node].name.clone();
    amend(sim, cell, |pod| pod.spec.get_or_insert_default().node_name = Some(name));
    sim.tell("scheduler", "bind", &cell.uid, || sim.hosts[node].name.clone());
}

/// The kubelet reports what a pod has.
pub fn report(sim: &Sim, cell: &PodCell, addresses: &[IpAddr]) {
    let ips = addresses.iter().map(|a| PodIP { ip: a.to_string() }).collect();
    let first = addresses.first().map(IpAddr::to_string);
    amend(sim, cell, |pod| {
        let status = pod.status.get_or_insert_default();
        (status.phase, status.pod_ip, status.pod_ips) = (Some("Running".into()), first, Some(ips));
    });
}

/// A deletion that waits for the kubelet; of a pod that no kubelet knows, one that does not.
pub fn delete(sim: &Sim, cell: &PodCell) {
    if cell.stage() != Stage::Alive {
        return;
    }
    if cell.node().is_none() {
        return remove(sim, cell, "controller");
    }
    sim.tell("controller", "delete", &cell.uid, String::new);
    amend(sim, cell, |pod| pod.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)));
    cell.stage.set(Stage::Terminating);
}

/// The object goes. Where its node is not Ready this says that its containers are dead.
pub fn remove(sim: &Sim, cell: &PodCell, who: &str) {
    if cell.stage() == Stage::Gone {
        return;
    }
    {
        let mut truth = sim.truth();
        let found = truth.get::<Pod>(Some("default"), &cell.name);
        if found.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&cell.uid)) {
            truth.remove::<Pod>(Some("default"), &cell.name);
        }
        if cell.node().is_some_and(|node| !is_ready(truth.get::<Node>(None, &sim.hosts[node].name).as_ref())) {
            truth.oracle.of_pod(&cell.uid).iter().for_each(|id| truth.oracle.give_up(id));
        }
    }
    cell.stage.set(Stage::Gone);
    sim.tell(who, "remove", &cell.uid, || "the pod's object is gone".to_owned());
}

// === nodes ===

pub fn is_ready(node: Option<&Node>) -> bool {
    let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The Node object, made if need be. Once it is not Ready, containers whose pods are gone count as dead.
pub fn set_ready(sim: &Sim, node: usize, ready: bool) {
    let host = &sim.hosts[node];
    let mut truth = sim.truth();
    let mut object = truth.get::<Node>(None, &host.name).unwrap_or_else(|| Node {
        metadata: ObjectMeta {
            name: Some(host.name.clone()),
            uid: Some(format!("{}-{}", host.name, sim.nth("node"))),
            ..ObjectMeta::default()
        },
        ..Node::default()
    });
    let status = if ready { "True" } else { "Unknown" };
    let condition = NodeCondition { type_: "Ready".into(), status: status.into(), ..NodeCondition::default() };
    object.status = Some(NodeStatus { conditions: Some(vec![condition]), ..NodeStatus::default() });
    truth.put(object);
    if !ready {
        let pods = sim.pods();
        for id in truth.oracle.on_node(node) {
            let uid = truth.oracle.containers.get(&id).map(|c| c.pod_uid.clone()).unwrap_or_default();
            if pods.get(&uid).is_none_or(|pod| pod.stage() == Stage::Gone) {
                truth.oracle.give_up(&id);
            }
        }
    }
    drop(truth);
    sim.tell("nodes", "ready", &host.name, || status.to_owned());
}

/// The Node object is deleted: whatever ran there is declared dead.
pub fn remove_node(sim: &Sim, node: usize) {
    let host = &sim.hosts[node];
    host.up.store(false, Ordering::Relaxed);
    let mut truth = sim.truth();
    truth.remove::<Node>(None, &host.name);
    truth.oracle.on_node(node).iter().for_each(|id| truth.oracle.give_up(id));
    drop(truth);
    sim.tell("nodes", "remove", &host.name, || "the Node is deleted".to_owned());
}

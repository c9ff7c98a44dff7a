//! The scheduler: round robin over the nodes that fit a pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::{AGAIN, Failure, Outcome, drive, pods};

struct Scheduler {
    client: Client,
    turn: AtomicUsize,
}

/// Binds every pod that has no node.
pub(super) async fn run(client: Client) {
    let unbound = watcher::Config::default().fields("spec.nodeName=");
    let pods = Controller::new(Api::<Pod>::all(client.clone()), unbound);
    let waiting = pods.store();
    let pods = pods.watches(Api::<Node>::all(client.clone()), watcher::Config::default(), move |_| {
        waiting.state().iter().map(|pod| ObjectRef::from_obj(pod.as_ref())).collect::<Vec<_>>()
    });
    let scheduler = Arc::new(Scheduler { client, turn: AtomicUsize::new(0) });
    drive(pods.run(schedule, |_, _: &Failure, _| Action::requeue(AGAIN), scheduler)).await;
}

async fn schedule(pod: Arc<Pod>, scheduler: Arc<Scheduler>) -> Outcome {
    let pods: Api<Pod> = Api::namespaced(scheduler.client.clone(), &pod.namespace().unwrap_or_default());
    let Some(pod) = pods.get_opt(&pod.name_any()).await?.filter(|p| pods::node(p).is_none() && pods::is_active(p))
    else {
        return Ok(Action::await_change());
    };
    let nodes: Api<Node> = Api::all(scheduler.client.clone());
    let all = nodes.list(&ListParams::default()).await?.items;
    let mut fitting = all.iter().filter(|node| fits(&pod, node)).map(ResourceExt::name_any).collect::<Vec<_>>();
    fitting.sort();
    if fitting.is_empty() {
        let message = format!("0/{} nodes are available", all.len());
        let status = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}});
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
        return Ok(Action::await_change());
    }
    let node = &fitting[scheduler.turn.fetch_add(1, Ordering::Relaxed) % fitting.len()];
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod.name_any(), "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    pods.create_subresource::<Value, Value>("binding", &pod.name_any(), &PostParams::default(), &binding).await?;
    Ok(Action::await_change())
}

/// True if a node has all the labels asked for.
pub(super) fn selects(selector: &BTreeMap<String, String>, node: &Node) -> bool {
    selector.iter().all(|(key, value)| node.labels().get(key) == Some(value))
}

/// True if the Ready condition says so.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn fits(pod: &Pod, node: &Node) -> bool {
    let Some(pod) = &pod.spec else { return false };
    let tolerations = pod.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let repelled = taints.iter().any(|taint| taint.effect != "PreferNoSchedule" && !tolerates(tolerations, taint));
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let selected = pod.node_selector.as_ref().is_none_or(|selector| selects(selector, node));
    is_ready(node) && !cordoned && !repelled && selected
}

/// True if some toleration covers the taint.
pub(super) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let any_value = toleration.operator.as_deref() == Some("Exists");
        toleration.effect.as_deref().is_none_or(|e| e.is_empty() || e == taint.effect)
            && toleration.key.as_deref().map_or(any_value, |key| key == taint.key)
            && (any_value
                || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
    })
}

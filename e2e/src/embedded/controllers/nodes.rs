//! What becomes of pods when their node fails or is taken away.
//!
//! Pods of a node that is not Ready are marked not ready; pods of a node that is deleted, or tainted out of service while it is
//! not Ready, are removed. The real controllers wait 40 s and more before each; here it happens at once.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::{Failure, Outcome, again, drive, pods, scheduler};

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Follows nodes and the pods bound to them. A pod is the unit of work: its node may not exist any more.
pub(super) async fn run(client: Client) {
    let bound = watcher::Config::default().fields("spec.nodeName!=");
    let pods = Controller::new(Api::<Pod>::all(client.clone()), bound);
    let known = pods.store();
    let pods = pods.watches(Api::<Node>::all(client.clone()), watcher::Config::default(), move |node: Node| {
        let name = node.name_any();
        let mine = known.state().into_iter().filter(move |pod| pods::node(pod) == Some(name.as_str()));
        mine.map(|pod| ObjectRef::from_obj(pod.as_ref())).collect::<Vec<_>>()
    });
    drive(pods.run(reconcile, again, Arc::new(client))).await;
}

async fn reconcile(pod: Arc<Pod>, client: Arc<Client>) -> Outcome {
    let Some(name) = pods::node(&pod) else {
        return Ok(Action::await_change());
    };
    let nodes: Api<Node> = Api::all(client.as_ref().clone());
    match nodes.get_opt(name).await? {
        // A pod may be bound to a node before the node registers; only a cluster that has nodes can have lost one.
        None if nodes.list(&ListParams::default()).await?.items.is_empty() => {}
        None => remove(&client, &pod).await?,
        Some(node) if scheduler::is_ready(&node) => {}
        Some(node) if is_out_of_service(&pod, &node) => remove(&client, &pod).await?,
        Some(_) if pods::is_ready(&pod) => mark_unready(&client, &pod).await?,
        Some(_) => {}
    }
    Ok(Action::await_change())
}

fn is_out_of_service(pod: &Pod, node: &Node) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == OUT_OF_SERVICE && !scheduler::tolerates(tolerations, taint))
}

async fn remove(client: &Client, pod: &Pod) -> Result<(), Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    match pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn mark_unready(client: &Client, pod: &Pod) -> Result<(), Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]}});
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}

//! What a kubelet tells the API server of its node and its pods.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now(), "lastHeartbeatTime": now()})
}

/// Registers a node as Ready, or says that it is Ready again.
pub(crate) async fn register(client: &Client, name: &str, address: IpAddr, labels: &[(String, String)]) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut all = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
    for (key, value) in labels {
        all[key] = value.as_str().into();
    }
    let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": all}}))?;
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let patch = Patch::Merge(json!({"metadata": {"labels": all}}));
            nodes.patch(name, &PatchParams::default(), &patch).await?;
        }
        Err(error) => return Err(error.into()),
    }
    let room = json!({"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let status = json!({"status": {
        "capacity": room, "allocatable": room,
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", ""),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", ""),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", ""),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}

/// What the node controller writes once a kubelet has gone silent.
pub(super) async fn mark_silent(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let silent = condition("Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.");
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(json!({"status": {"conditions": [silent]}})))
        .await?;
    Ok(())
}

/// Renews the node's lease until dropped: by it the real node controller knows that a kubelet lives.
pub(super) async fn heartbeat(client: Client, name: String, every: Duration) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        let renewed = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed},
        });
        if let Err(error) = leases.patch(&name, &PatchParams::apply("standin").force(), &Patch::Apply(lease)).await {
            tracing::debug!(%error, "lease");
        }
        tokio::time::sleep(every).await;
    }
}

/// How far a pod has come.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stage {
    /// With these addresses, without prefix lengths.
    Running(Vec<String>),
    /// Its containers have ended, well or not.
    Ended { well: bool },
}

/// Writes a pod's status.
pub(super) async fn tell(client: &Client, pod: &Pod, node_address: IpAddr, stage: &Stage) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let container = |state: Value, ready: bool| {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        containers
            .map(|c| json!({"name": c.name, "image": c.image.as_deref().unwrap_or_default(), "imageID": "", "restartCount": 0, "ready": ready, "started": ready, "state": state}))
            .collect::<Vec<_>>()
    };
    let ready = matches!(stage, Stage::Running(_));
    let text = if ready { "True" } else { "False" };
    let reason = if ready { "" } else { "PodCompleted" };
    let mut status = json!({
        "conditions": [
            condition("PodReadyToStartContainers", text, "", ""), condition("Initialized", "True", "", ""),
            condition("ContainersReady", text, reason, ""), condition("Ready", text, reason, ""),
        ],
        "hostIP": node_address, "hostIPs": [{"ip": node_address}],
    });
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition.as_object_mut().map(|c| c.remove("lastHeartbeatTime"));
    }
    match stage {
        Stage::Running(addresses) => {
            status["phase"] = "Running".into();
            status["startTime"] = now().into();
            status["podIP"] = addresses.first().map(String::as_str).into();
            status["podIPs"] = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            status["containerStatuses"] = container(json!({"running": {"startedAt": now()}}), true).into();
        }
        Stage::Ended { well } => {
            let ended = json!({"terminated": {"exitCode": i32::from(!well), "reason": if *well { "Completed" } else { "Error" }, "finishedAt": now()}});
            status["phase"] = if *well { "Succeeded" } else { "Failed" }.into();
            status["containerStatuses"] = container(ended, false).into();
        }
    }
    // A merge replaces lists, so that a pod's second sandbox does not keep the first one's addresses. What the scheduler said stays.
    if let Some(conditions) = status["conditions"].as_array_mut() {
        let known = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions
            .extend(known.iter().filter(|c| c.type_ == "PodScheduled").filter_map(|c| serde_json::to_value(c).ok()));
    }
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Records a warning about a pod.
pub(super) async fn warn(client: &Client, node: &str, pod: &Pod, reason: &str, message: &str) {
    let namespace = pod.namespace().unwrap_or_default();
    let event = json!({
        "metadata": {"generateName": format!("{}.", pod.name_any())},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod.name_any(), "uid": pod.uid(),
            "resourceVersion": pod.resource_version(),
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1, "firstTimestamp": now(), "lastTimestamp": now(),
        "source": {"component": "kubelet", "host": node}, "reportingComponent": "kubelet", "reportingInstance": node,
    });
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let created = match serde_json::from_value(event) {
        Ok(event) => events.create(&PostParams::default(), &event).await.map_err(anyhow::Error::from),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = created {
        tracing::debug!(%error, "event");
    }
}

/// Removes this very pod from the API, as a kubelet does once nothing of it is left.
pub(super) async fn forget(client: &Client, pod: &Pod) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
    match pods.delete(&pod.name_any(), &DeleteParams { preconditions, ..DeleteParams::default() }.grace_period(0)).await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

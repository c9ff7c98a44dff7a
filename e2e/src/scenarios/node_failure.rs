//! A node loses its power: its fixed address waits for proof, moves once, and the node comes back clean.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{assert_has, deployment, fixed, only};
use crate::lab::{Lab, address, node_of};

pub(super) async fn killed_and_back(lab: &Lab, namespace: &str) -> Result<()> {
    let expected = "10.244.0.235".parse()?;
    lab.create(deployment(namespace, "survivor", 1, fixed("10.244.0.235"))).await?;
    let first = only(lab.running(namespace, "survivor", 1).await?)?;
    assert_has(lab, &first, expected).await?;
    let node = node_of(&first)?;
    lab.kill_node(&node).await?;
    lab.cordon(&node, true).await?;
    let out = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"},
    ]}});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
    lab.merge(&object, out).await?;
    let pods: Api<Pod> = Api::namespaced(lab.client(), namespace);
    // With the taint the pod collector may have been faster.
    match pods.delete(&first.name_any(), &DeleteParams::default().grace_period(0)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        outcome => drop(outcome?),
    }
    let second = lab.until("the pod runs on the other node", || async {
        let pods = lab.pods(namespace, "survivor").await?;
        Ok(pods.into_iter().find(|p| p.uid() != first.uid() && address(p).is_ok()))
    });
    let second = second.await?;
    ensure!(node_of(&second)? == lab.other_node(&node), "the pod did not move");
    assert_has(lab, &second, expected).await?;

    lab.start_node(&node).await?;
    lab.merge(&object, json!({"spec": {"taints": null}})).await?;
    lab.cordon(&node, false).await?;
    // The node's runtime cleans up the sandbox it had; that must not touch the address where it is now.
    lab.create(deployment(namespace, "fresh", 2, json!({}))).await?;
    lab.running(namespace, "fresh", 2).await?;
    assert_has(lab, &second, expected).await
}

//! The guide's story on the embedded cluster, in one screen.

use anyhow::{Context as _, Result};
use e2e::lab::{Lab, address, node_of};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

const FIXED: &str = "10.244.0.216";

#[tokio::main]
async fn main() -> Result<()> {
    kube_ipam::store::choose_tls();
    let lab = Lab::embedded(false).await?;
    println!(
        "A cluster of two nodes, {}. Now a Deployment annotated kube-ipam.ip: \"{FIXED}\", and one without.\n",
        lab.nodes().join(" and ")
    );
    lab.create(deployment("fixed-ip-test", 1, json!({"kube-ipam.ip": FIXED}))).await?;
    lab.create(deployment("random-ip-test", 2, json!({}))).await?;
    let first = lab.running("default", "fixed-ip-test", 1).await?.pop().context("a pod")?;
    let mut pods = lab.running("default", "random-ip-test", 2).await?;
    pods.push(first.clone());
    table(&pods)?;
    lab.assert_recorded(FIXED.parse()?, &first).await?;
    println!("\nCalico's IPAMBlock records {FIXED} for this pod on {}.", node_of(&first)?);

    let node = node_of(&first)?;
    lab.cordon(&node, true).await?;
    lab.delete_pod(&first).await?;
    println!("\nThe pod is deleted, and {node} takes no new ones:\n");
    let second = lab.running("default", "fixed-ip-test", 1).await?.pop().context("a pod")?;
    table(std::slice::from_ref(&second))?;
    lab.assert_recorded(FIXED.parse()?, &second).await?;
    lab.cordon(&node, false).await?;

    println!("\nAnother Deployment wants the same address; its pod's Event says:\n");
    lab.create(deployment("intruder", 1, json!({"kube-ipam.ip": FIXED}))).await?;
    lab.event("default", "intruder", &[FIXED, "Deployment default/fixed-ip-test"]).await?;
    let intruder = lab.pods("default", "intruder").await?.pop().context("a pod")?;
    println!("  {}", lab.events(&intruder).await?.into_iter().find(|m| m.contains(FIXED)).unwrap_or_default());

    let (sound, text) = lab.kube_ipam(&["check"])?;
    println!("\nkube-ipam check: {}", text.trim());
    anyhow::ensure!(sound, "the records are not sound");
    Ok(())
}

fn table(pods: &[Pod]) -> Result<()> {
    println!("{:<34} {:<14} NODE", "POD", "IP");
    for pod in pods {
        println!("{:<34} {:<14} {}", pod.name_any(), address(pod)?, node_of(pod)?);
    }
    Ok(())
}

fn deployment(name: &str, replicas: usize, annotations: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{"name": "nginx", "image": "nginx:latest"}]},
            },
        },
    })
}

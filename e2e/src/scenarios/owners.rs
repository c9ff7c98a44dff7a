//! Who owns a fixed address, beside Deployments and StatefulSets: DaemonSets, Jobs, and whoever is named.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{assert_has, deployment, fixed, only, workload};
use crate::lab::{Lab, address};

/// The claim on an address as `kube-ipam claims` tells it.
fn claim(lab: &Lab, address: &str) -> Result<Value> {
    let (_, text) = lab.kube_ipam(&["claims", "-o", "json"])?;
    let claims: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
    claims.into_iter().find(|c| c["address"] == address).with_context(|| format!("no claim on {address}: {text}"))
}

pub(super) async fn daemon_set(lab: &Lab, namespace: &str) -> Result<()> {
    let list = ["10.244.0.236", "10.244.0.237"];
    let wanted: BTreeSet<IpAddr> = list.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
    let mut agent = workload("DaemonSet", namespace, "agent", 0, fixed(&list.join(", ")), json!({}));
    agent["spec"].as_object_mut().map(|spec| spec.remove("replicas"));
    lab.create(agent).await?;
    let pods = lab.running(namespace, "agent", 2).await?;
    let has = |pods: &[Pod]| pods.iter().map(address).collect::<Result<BTreeSet<_>>>();
    ensure!(has(&pods)? == wanted, "{:?}", has(&pods)?);
    for ip in list {
        let claim = claim(lab, ip)?;
        ensure!(claim["owner"]["kind"] == "DaemonSet" && claim["owner"]["name"] == "agent", "{claim}");
    }
    // The one that is free is the one for the pod that comes after.
    lab.delete_pod(&pods[0]).await?;
    let pods = lab.running(namespace, "agent", 2).await?;
    ensure!(has(&pods)? == wanted, "{:?}", has(&pods)?);
    for pod in &pods {
        assert_has(lab, pod, address(pod)?).await?;
    }
    Ok(())
}

fn job(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {
            "metadata": {"labels": {"app": name}, "annotations": fixed("10.244.0.238")},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 2,
                "containers": [{
                    "name": "main", "image": "nginx:latest", "imagePullPolicy": "IfNotPresent", "args": ["sleep", "1"],
                }],
            },
        }},
    })
}

pub(super) async fn jobs(lab: &Lab, namespace: &str) -> Result<()> {
    for name in ["first", "second"] {
        let job = job(namespace, name);
        lab.create(job.clone()).await?;
        lab.until(&format!("the pod of job {name} has succeeded"), || async {
            let pods = lab.pods(namespace, name).await?;
            let done = |p: &&Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded");
            Ok(pods.iter().find(done).map(drop))
        })
        .await?;
        // A finished pod stays, its address does not stay with it.
        let claim = lab
            .until("the address of a finished pod is released", || async {
                let claim = claim(lab, "10.244.0.238")?;
                Ok(claim["holder"].is_null().then_some(claim))
            })
            .await?;
        ensure!(claim["owner"]["kind"] == "Job" && claim["owner"]["name"] == name, "{claim}");
        lab.delete(&job).await?;
    }
    Ok(())
}

pub(super) async fn named(lab: &Lab, namespace: &str) -> Result<()> {
    let expected = "10.244.0.239".parse()?;
    let mut wish = fixed("10.244.0.239");
    wish["kube-ipam.owner"] = json!("blue-green");
    lab.create(deployment(namespace, "blue", 1, wish.clone())).await?;
    assert_has(lab, &only(lab.running(namespace, "blue", 1).await?)?, expected).await?;
    let claim = claim(lab, "10.244.0.239")?;
    ensure!(claim["owner"]["kind"] == "Owner" && claim["owner"]["name"] == "blue-green", "{claim}");
    // Without the annotation the second Deployment would be refused as long as the first exists.
    lab.scale("Deployment", namespace, "blue", 0).await?;
    lab.none_left(namespace, "blue").await?;
    lab.create(deployment(namespace, "green", 1, wish)).await?;
    assert_has(lab, &only(lab.running(namespace, "green", 1).await?)?, expected).await
}

pub(super) async fn forced(lab: &Lab, namespace: &str) -> Result<()> {
    let expected = "10.244.0.240".parse()?;
    lab.create(deployment(namespace, "forced", 1, fixed("10.244.0.240"))).await?;
    let first = only(lab.running(namespace, "forced", 1).await?)?;
    let pods: Api<Pod> = Api::namespaced(lab.client(), namespace);
    pods.delete(&first.name_any(), &DeleteParams::default().grace_period(0)).await?;
    // Its object is gone at once, its sandbox is not: the next pod has the address after the node's DEL.
    let second = lab.until("the next pod runs", || async {
        let pods = lab.pods(namespace, "forced").await?;
        Ok(pods.into_iter().find(|p| p.uid() != first.uid() && address(p).is_ok()))
    });
    let second = second.await?;
    assert_has(lab, &second, expected).await?;
    let claim = claim(lab, "10.244.0.240")?;
    ensure!(claim["holder"]["podUid"] == json!(second.uid()) && claim["generation"] == 2, "{claim}");
    Ok(())
}

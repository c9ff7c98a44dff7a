//! Claims beyond what pods ask for: without etcd, without the kind, carried from one ledger to the other, made
//! for running pods and by a list. Each on an embedded cluster of its own, by the binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod absent;
mod adopt;
mod found;
mod import;
mod moving;

use std::collections::BTreeMap;

use e2e::lab::Lab;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// What a run of the command line came to, that must have ended so.
fn run(lab: &Lab, well: bool, arguments: &[&str]) -> String {
    let (ended_well, text) = lab.kube_ipam(arguments).unwrap();
    assert_eq!(ended_well, well, "kube-ipam {arguments:?}: {text}");
    text
}

/// The claims of one of the ledgers, by address.
fn claims(lab: &Lab, ledger: &str) -> Vec<Value> {
    let listed = lab.kube_ipam_json(&["claims", "--ledger", ledger]).unwrap();
    listed.as_array().unwrap().clone()
}

/// Everything that kube-ipam writes, as it stands.
fn records(lab: &Lab) -> BTreeMap<String, Value> {
    let mut all = lab.embedded_server().unwrap().snapshot();
    let ours = ["ipclaims", "ipamblocks", "ipamhandles", "ipreservations", "blockaffinities"];
    all.retain(|key, _| ours.iter().any(|kind| key.contains(kind)));
    assert!(!all.is_empty());
    all
}

fn workload(kind: &str, name: &str, replicas: usize, annotations: Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "serviceName": name,
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "main", "image": "nginx:latest", "resources": {}}],
                },
            },
        },
    })
}

fn deployment(name: &str, annotations: Value) -> Value {
    let mut object = workload("Deployment", name, 1, annotations);
    object["spec"].as_object_mut().unwrap().remove("serviceName");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    object
}

fn fixed(address: &str) -> Value {
    json!({"kube-ipam.ip": address})
}

async fn only(lab: &Lab, app: &str) -> Pod {
    lab.running("default", app, 1).await.unwrap().remove(0)
}

/// The pod that comes after `pod`, which is deleted.
async fn next(lab: &Lab, app: &str, pod: &Pod) -> Pod {
    lab.delete_pod(pod).await.unwrap();
    only(lab, app).await
}

fn address(pod: &Pod) -> String {
    e2e::lab::address(pod).unwrap().to_string()
}

//! The load: pods that come, run, lose their sandbox, move and go, as kubelets and controllers would have it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::ground::NAMESPACE;
use super::node::Node;
use super::runtime::{PodName, Running, Runtime};
use super::tally::Line;

/// Longest outage of the API server.
const API_LIMIT: Duration = Duration::from_secs(180);
const PINGS: usize = 3;

/// Random pods, one after the other, on any node.
pub(super) async fn random(runtime: Arc<Runtime>, seat: usize, mut random: StdRng) -> Result<()> {
    for turn in 0.. {
        if runtime.is_stopping() {
            break;
        }
        let node = choose(&runtime, &mut random)?;
        let pod = create(&runtime, &format!("random{seat}-{turn}"), &node, None).await?;
        // From the pod's binding until its node's kubelet comes to it.
        millis(&mut random, 300).await;
        // A new sandbox for the same pod now and then.
        let sandboxes = if random.random_ratio(1, 5) { 2 } else { 1 };
        let mut removed = false;
        for sandbox in 1..=sandboxes {
            let Some(running) = runtime.run(&node, &pod, None).await? else { break };
            has_begun(&runtime, &pod, &running).await?;
            millis(&mut random, 4000).await;
            // By force: the object is gone before its node hears of it.
            if sandbox == sandboxes && random.random_ratio(1, 6) {
                remove(&runtime, &pod).await?;
                removed = true;
            }
            runtime.end(&node, running).await?;
        }
        if !removed {
            remove(&runtime, &pod).await?;
        }
        runtime.tally.count(Line::Pods("with any address"));
    }
    Ok(())
}

/// Pods of one owner, which has one fixed address: each takes over from the last, on another node.
pub(super) async fn fixed(runtime: Arc<Runtime>, address: IpAddr, mut random: StdRng) -> Result<()> {
    let owner = format!("fixed{}", address.to_string().rsplit('.').next().unwrap_or_default());
    let mut last: Option<(Arc<Node>, PodName, Running)> = None;
    for turn in 0.. {
        if runtime.is_stopping() {
            break;
        }
        let before = last.as_ref().map(|(node, ..)| node.name.clone());
        let node = loop {
            let node = choose(&runtime, &mut random)?;
            if before.as_ref() != Some(&node.name) {
                break node;
            }
        };
        let pod = create(&runtime, &format!("{owner}-{turn}"), &node, Some((&owner, address))).await?;
        // The new pod asks while the old one has the address, or just when it goes.
        let going = random.random_range(0..2500);
        let end = async {
            sleep(Duration::from_millis(going)).await;
            finish(&runtime, last.take()).await
        };
        let (started, ended) = tokio::join!(runtime.run(&node, &pod, Some(address)), end);
        ended?;
        let Some(mut running) = started? else {
            remove(&runtime, &pod).await?;
            break;
        };
        has_begun(&runtime, &pod, &running).await?;
        runtime.tally.count(Line::Pods("with a fixed address"));
        millis(&mut random, 2500).await;
        if random.random_ratio(1, 5) {
            runtime.end(&node, running).await?;
            match runtime.run(&node, &pod, Some(address)).await? {
                Some(again) => running = again,
                None => {
                    remove(&runtime, &pod).await?;
                    break;
                }
            }
        }
        last = Some((node, pod, running));
    }
    finish(&runtime, last).await
}

/// A pod that was made, and whose node's runtime has not come to it yet.
pub(super) type Made = (Arc<Node>, PodName);

/// Pods that are there before something happens that lets nobody make one: one on each node.
pub(super) async fn make(runtime: &Runtime) -> Result<Vec<Made>> {
    let mut pods = Vec::new();
    for node in &runtime.ground.nodes {
        let name = format!("early-{:08x}", rand::random::<u32>());
        pods.push((node.clone(), create(runtime, &name, node, None).await?));
    }
    Ok(pods)
}

/// The life of such a pod from then on.
pub(super) async fn live(runtime: &Arc<Runtime>, (node, pod): Made) -> Result<()> {
    if let Some(running) = runtime.run(&node, &pod, None).await? {
        has_begun(runtime, &pod, &running).await?;
        runtime.end(&node, running).await?;
        runtime.tally.count(Line::Pods("that met an etcd over its quota"));
    }
    remove(runtime, &pod).await
}

async fn finish(runtime: &Arc<Runtime>, last: Option<(Arc<Node>, PodName, Running)>) -> Result<()> {
    let Some((node, pod, running)) = last else { return Ok(()) };
    runtime.end(&node, running).await?;
    remove(runtime, &pod).await
}

fn choose(runtime: &Runtime, random: &mut StdRng) -> Result<Arc<Node>> {
    runtime.ground.nodes.choose(random).cloned().context("there are nodes")
}

async fn millis(random: &mut StdRng, most: u64) {
    sleep(Duration::from_millis(random.random_range(0..most))).await;
}

/// What its kubelet reports; and its first echo requests, to another pod.
async fn has_begun(runtime: &Runtime, pod: &PodName, running: &Running) -> Result<()> {
    let address = running.address.to_string();
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
    let pods = pods(runtime);
    let patched = insist("a pod's status", || async {
        match pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(&status)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            patched => patched.map(drop),
        }
    });
    let (patched, ()) = tokio::join!(patched, ping(runtime, running));
    patched
}

async fn ping(runtime: &Runtime, running: &Running) {
    let held = runtime.observer.held();
    let others: Vec<_> = held.into_iter().filter(|(address, _)| *address != running.address).collect();
    let Some((to, tenure)) = others.choose(&mut rand::rng()) else { return };
    for _ in 0..PINGS {
        if running.reaches(*to).await {
            runtime.tally.count(Line::Looked("echo requests answered"));
            return;
        }
        if !runtime.observer.goes_on(*to, tenure) {
            return;
        }
    }
    let wrong = format!("{} has {to}, and does not answer {}", tenure.pod, running.address);
    runtime.observer.wrong(Some(*to), wrong);
}

fn pods(runtime: &Runtime) -> Api<Pod> {
    Api::namespaced(runtime.ground.client.clone(), NAMESPACE)
}

/// A pod that is bound to a node; with an owner and its address, one of its Deployment.
async fn create(runtime: &Runtime, name: &str, node: &Node, fixed: Option<(&str, IpAddr)>) -> Result<PodName> {
    let mut metadata = json!({"name": name});
    if let Some((owner, address)) = fixed {
        metadata["annotations"] = json!({"kube-ipam.ip": address});
        metadata["labels"] = json!({"app": owner, "pod-template-hash": "h1"});
        metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{owner}-h1"), "uid": "rs", "controller": true,
        }]);
    }
    let pod: Value = json!({
        "metadata": metadata,
        "spec": {
            "nodeName": node.name, "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "none"}],
        },
    });
    let pod: Pod = serde_json::from_value(pod)?;
    let pods = pods(runtime);
    let created = insist("creating a pod", || async {
        match pods.create(&PostParams::default(), &pod).await {
            // The reply to an earlier attempt did not reach us.
            Err(kube::Error::Api(status)) if status.is_already_exists() => pods.get(name).await,
            created => created,
        }
    });
    let created = created.await?;
    Ok(PodName { name: name.to_owned(), uid: created.uid().context("a pod has a UID")? })
}

async fn remove(runtime: &Runtime, pod: &PodName) -> Result<()> {
    let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
    let pods = pods(runtime);
    insist("deleting a pod", || async {
        match pods.delete(&pod.name, &parameters).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop),
        }
    })
    .await
}

/// Until the API server has done it.
async fn insist<T, F: Future<Output = kube::Result<T>>>(what: &str, operation: impl Fn() -> F) -> Result<T> {
    let until = Instant::now() + API_LIMIT;
    loop {
        let error = match tokio::time::timeout(Duration::from_secs(10), operation()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() > until {
            bail!("{what} fails for {API_LIMIT:?}: {error}");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

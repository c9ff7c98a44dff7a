//! Calico's datastore is locked, as a migration does it, while pods come and go: from ten seconds later on nobody
//! writes a record, and once it is unlocked everything that was owed is done. Takes a while, so it is run by targets of
//! its own.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{audit, deployment, fixed};
use crate::lab::{Lab, address};

/// How long a migration waits until what had begun is over.
const DRAINED: Duration = Duration::from_secs(10);
/// Pause between two pods that are deleted.
const PAUSE: Duration = Duration::from_millis(1500);
const HELD: &str = "10.244.0.231";
const UNHELD: &str = "10.244.0.232";
const CHURNED: usize = 4;

/// Nobody writes while pods come and go for so long, and everything is well afterwards.
///
/// # Errors
/// What was written, or not done afterwards.
pub async fn nobody_writes(lab: &Lab, churn: Duration) -> Result<()> {
    let namespace = &lab.namespace("lock").await?;
    lab.create(deployment(namespace, "steady", 1, json!({}))).await?;
    lab.create(deployment(namespace, "held", 1, fixed(HELD))).await?;
    lab.create(deployment(namespace, "unheld", 1, fixed(UNHELD))).await?;
    lab.create(deployment(namespace, "churned", CHURNED, json!({}))).await?;
    lab.running(namespace, "unheld", 1).await?;
    lab.scale("Deployment", namespace, "unheld", 0).await?;
    lab.none_left(namespace, "unheld").await?;
    lab.running(namespace, "churned", CHURNED).await?;
    let before =
        [lab.running(namespace, "steady", 1).await?.remove(0), lab.running(namespace, "held", 1).await?.remove(0)];

    set_ready(lab, false).await?;
    let drained = Instant::now() + DRAINED;
    come_and_go(lab, namespace, drained).await?;
    let (mark, claims) = (lab.mark()?, claims(lab)?);
    come_and_go(lab, namespace, Instant::now() + churn).await?;
    lab.event(namespace, "churned", &["ClusterInformation default", "datastoreReady false"]).await?;
    let (well, text) = lab.kube_ipam(&["release", UNHELD, "--claim", "--yes"])?;
    ensure!(!well && text.contains("Calico's datastore is locked"), "kube-ipam release: {text}");
    let written = lab.record_writes(mark)?;
    ensure!(written.is_empty(), "{} writes under the lock: {written:#?}", written.len());
    ensure!(self::claims(lab)? == claims, "claims were changed under the lock");
    for pod in &before {
        let now = lab.running(namespace, &pod.labels()["app"], 1).await?.remove(0);
        ensure!(now.uid() == pod.uid() && address(&now)? == address(pod)?, "{} was touched", pod.name_any());
    }

    let mark = lab.mark()?;
    set_ready(lab, true).await?;
    lab.running(namespace, "churned", CHURNED).await?;
    ensure!(!lab.record_writes(mark)?.is_empty(), "the log does not show who writes");
    lab.scale("Deployment", namespace, "unheld", 1).await?;
    ensure!(
        address(&lab.running(namespace, "unheld", 1).await?[0])? == UNHELD.parse::<std::net::IpAddr>()?,
        "another address"
    );
    lab.drop_namespace(namespace).await?;
    // The last releases behind their answers wait for two seconds at most.
    lab.until("everything that was owed is done", || async { Ok(audit(lab).is_ok().then_some(())) }).await?;
    audit(lab)
}

async fn set_ready(lab: &Lab, ready: bool) -> Result<()> {
    let object = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
    });
    lab.merge(&object, json!({"spec": {"datastoreReady": ready}})).await
}

/// Deletes one pod after the other, whose Deployment makes others.
async fn come_and_go(lab: &Lab, namespace: &str, until: Instant) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(lab.client(), namespace);
    let mut count = 0;
    while Instant::now() < until {
        let living = lab.pods(namespace, "churned").await?.into_iter();
        let mut living: Vec<Pod> = living.filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        // The oldest are those that have an address.
        living.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        if let Some(pod) = living.get(count % 2) {
            match pods.delete(&pod.name_any(), &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted?),
            }
        }
        count += 1;
        sleep(PAUSE).await;
    }
    Ok(())
}

fn claims(lab: &Lab) -> Result<Value> {
    lab.kube_ipam_json(&["claims"])
}

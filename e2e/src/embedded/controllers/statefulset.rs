//! StatefulSets: numbered pods, made in order and taken away in reverse order.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::{Failure, Outcome, again, drive, pods};

const REVISION: &str = "controller-revision-hash";

/// Keeps every StatefulSet's pods.
pub(super) async fn run(client: Client) {
    let sets = Controller::new(Api::<StatefulSet>::all(client.clone()), watcher::Config::default())
        .owns(Api::<Pod>::all(client.clone()), watcher::Config::default());
    drive(sets.run(reconcile, again, Arc::new(client))).await;
}

async fn reconcile(set: Arc<StatefulSet>, client: Arc<Client>) -> Outcome {
    let namespace = set.namespace().unwrap_or_default();
    let sets: Api<StatefulSet> = Api::namespaced(client.as_ref().clone(), &namespace);
    let Some(set) = sets.get_opt(&set.name_any()).await?.filter(|s| !pods::is_deleting(s)) else {
        return Ok(Action::await_change());
    };
    let Some(spec) = &set.spec else {
        return Ok(Action::await_change());
    };
    let mut mine = pods::controlled(&client, &namespace, &spec.selector, &set.uid().unwrap_or_default()).await?;
    mine.sort_by_key(|pod| ordinal(&set, pod));
    let revision = format!("{}-{}", set.name_any(), pods::template_hash(&spec.template));
    step(&client, &set, spec, &mine, &revision).await?;
    let ready = mine.iter().filter(|pod| pods::is_ready(pod)).count();
    let updated = mine.iter().filter(|pod| pod.labels().get(REVISION) == Some(&revision)).count();
    let status = json!({"status": {
        "observedGeneration": set.metadata.generation, "replicas": mine.len(), "readyReplicas": ready, "availableReplicas": ready,
        "currentReplicas": updated, "updatedReplicas": updated, "updateRevision": revision,
    }});
    sets.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::await_change())
}

fn ordinal(set: &StatefulSet, pod: &Pod) -> usize {
    let name = pod.name_any();
    name.strip_prefix(&format!("{}-", set.name_any())).and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
}

/// Does what may be done now: at most one thing if the pods are to come and go in order.
async fn step(
    client: &Client,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    mine: &[Pod],
    revision: &str,
) -> Result<(), Failure> {
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let in_order = spec.pod_management_policy.as_deref() != Some("Parallel");
    for number in 0..wanted {
        match mine.iter().find(|pod| ordinal(set, pod) == number) {
            None => create(client, set, spec, number, revision).await?,
            Some(pod) if pods::is_finished(pod) && !pods::is_deleting(pod) => pods::delete(client, pod).await?,
            Some(pod) if pods::is_ready(pod) => continue,
            Some(_) => {}
        }
        if in_order {
            return Ok(());
        }
    }
    for pod in mine.iter().rev().filter(|pod| ordinal(set, pod) >= wanted) {
        if !pods::is_deleting(pod) {
            pods::delete(client, pod).await?;
        }
        if in_order {
            return Ok(());
        }
    }
    let rolls = spec.update_strategy.as_ref().is_none_or(|s| s.type_.as_deref() != Some("OnDelete"));
    if !rolls || !mine.iter().all(pods::is_ready) {
        return Ok(());
    }
    match mine.iter().rev().find(|pod| pod.labels().get(REVISION).is_none_or(|r| r != revision)) {
        Some(outdated) => pods::delete(client, outdated).await,
        None => Ok(()),
    }
}

async fn create(
    client: &Client,
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    number: usize,
    revision: &str,
) -> Result<(), Failure> {
    let name = format!("{}-{number}", set.name_any());
    let index = number.to_string();
    let labels =
        [(REVISION, revision), ("statefulset.kubernetes.io/pod-name", &name), ("apps.kubernetes.io/pod-index", &index)];
    let mut pod = pods::from_template(set, &spec.template, &labels);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(name);
        pod_spec.subdomain.clone_from(&spec.service_name);
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &set.namespace().unwrap_or_default());
    api.create(&PostParams::default(), &pod).await?;
    Ok(())
}

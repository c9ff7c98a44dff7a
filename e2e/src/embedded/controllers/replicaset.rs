//! ReplicaSets: as many pods as asked for.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::{Outcome, again, drive, pods};

/// Keeps every ReplicaSet's pods.
pub(super) async fn run(client: Client) {
    let sets = Controller::new(Api::<ReplicaSet>::all(client.clone()), watcher::Config::default())
        .owns(Api::<Pod>::all(client.clone()), watcher::Config::default());
    drive(sets.run(reconcile, again, Arc::new(client))).await;
}

async fn reconcile(set: Arc<ReplicaSet>, client: Arc<Client>) -> Outcome {
    let namespace = set.namespace().unwrap_or_default();
    let sets: Api<ReplicaSet> = Api::namespaced(client.as_ref().clone(), &namespace);
    let Some(set) = sets.get_opt(&set.name_any()).await?.filter(|s| !pods::is_deleting(s)) else {
        return Ok(Action::await_change());
    };
    let Some(spec) = &set.spec else {
        return Ok(Action::await_change());
    };
    let all = pods::controlled(&client, &namespace, &spec.selector, &set.uid().unwrap_or_default()).await?;
    let mut active = all.into_iter().filter(pods::is_active).collect::<Vec<_>>();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let api: Api<Pod> = Api::namespaced(client.as_ref().clone(), &namespace);
    let template = spec.template.clone().unwrap_or_default();
    for _ in active.len()..wanted {
        active.push(api.create(&PostParams::default(), &pods::from_template(&set, &template, &[])).await?);
    }
    // The first to go: without a node, then not ready, then the youngest.
    active.sort_by_key(|pod| {
        (pods::node(pod).is_some(), pods::is_ready(pod), Reverse(pod.creation_timestamp().map(|t| t.0)))
    });
    while active.len() > wanted {
        pods::delete(&client, &active.remove(0)).await?;
    }
    let ready = active.iter().filter(|pod| pods::is_ready(pod)).count();
    let status = json!({"status": {
        "replicas": active.len(), "fullyLabeledReplicas": active.len(), "readyReplicas": ready, "availableReplicas": ready,
        "observedGeneration": set.metadata.generation,
    }});
    sets.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::await_change())
}

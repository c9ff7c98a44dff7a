//! DaemonSets: one pod on every node that fits.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::scheduler::selects;
use super::{Outcome, again, drive, pods};

const REVISION: &str = "controller-revision-hash";

/// Keeps every DaemonSet's pods.
pub(super) async fn run(client: Client) {
    let sets = Controller::new(Api::<DaemonSet>::all(client.clone()), watcher::Config::default());
    let known = sets.store();
    let sets = sets.owns(Api::<Pod>::all(client.clone()), watcher::Config::default()).watches(
        Api::<Node>::all(client.clone()),
        watcher::Config::default(),
        move |_| known.state().iter().map(|set| ObjectRef::from_obj(set.as_ref())).collect::<Vec<_>>(),
    );
    drive(sets.run(reconcile, again, Arc::new(client))).await;
}

async fn reconcile(set: Arc<DaemonSet>, client: Arc<Client>) -> Outcome {
    let namespace = set.namespace().unwrap_or_default();
    let sets: Api<DaemonSet> = Api::namespaced(client.as_ref().clone(), &namespace);
    let Some(set) = sets.get_opt(&set.name_any()).await?.filter(|s| !pods::is_deleting(s)) else {
        return Ok(Action::await_change());
    };
    let Some(spec) = &set.spec else {
        return Ok(Action::await_change());
    };
    let selector = spec.template.spec.as_ref().and_then(|s| s.node_selector.clone()).unwrap_or_default();
    let nodes: Api<Node> = Api::all(client.as_ref().clone());
    let fitting = nodes
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter(|node| selects(&selector, node))
        .map(|n| n.name_any());
    let fitting = fitting.collect::<BTreeSet<_>>();
    let mine = pods::controlled(&client, &namespace, &spec.selector, &set.uid().unwrap_or_default()).await?;
    let hash = pods::template_hash(&spec.template);
    let api: Api<Pod> = Api::namespaced(client.as_ref().clone(), &namespace);
    for node in &fitting {
        // A pod that leaves still holds its node: two of one set never run there together.
        if mine.iter().any(|pod| pods::node(pod) == Some(node) && !pods::is_finished(pod)) {
            continue;
        }
        let mut pod = pods::from_template(&set, &spec.template, &[(REVISION, &hash)]);
        pod.spec.get_or_insert_default().node_name = Some(node.clone());
        api.create(&PostParams::default(), &pod).await?;
    }
    let misplaced = |pod: &&Pod| pods::is_finished(pod) || pods::node(pod).is_none_or(|node| !fitting.contains(node));
    for pod in mine.iter().filter(misplaced).filter(|pod| !pods::is_deleting(*pod)) {
        pods::delete(&client, pod).await?;
    }
    let ready = mine.iter().filter(|pod| pods::is_ready(pod)).count();
    let current = |pod: &Pod| pod.labels().get(REVISION) == Some(&hash);
    if ready == fitting.len()
        && let Some(outdated) = mine.iter().find(|pod| !current(pod) && pods::is_active(pod))
    {
        pods::delete(&client, outdated).await?;
    }
    let status = json!({"status": {
        "observedGeneration": set.metadata.generation, "desiredNumberScheduled": fitting.len(), "currentNumberScheduled": mine.len(),
        "numberMisscheduled": 0, "numberReady": ready, "numberAvailable": ready, "updatedNumberScheduled": mine.iter().filter(|p| current(p)).count(),
    }});
    sets.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::await_change())
}

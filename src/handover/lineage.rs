//! Reading what a pod is a pod of: the controller at the top, its revision, whether it is paused, live.

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::core::{ObjectMeta, Selector, SelectorExt as _};
use kube::{CustomResource, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::decide::Lineage;
use crate::store::{Object, Objects, StoreError};

/// Annotation by which the Deployment controller numbers its revisions, on the Deployment and its ReplicaSets.
const DEPLOYMENT_REVISION: &str = "deployment.kubernetes.io/revision";
/// The same of an Argo Rollout.
const ROLLOUT_REVISION: &str = "rollout.argoproj.io/revision";
/// The same of OpenShift's DeploymentConfigs, on their ReplicationControllers.
const CONFIG_REVISION: &str = "openshift.io/deployment-config.latest-version";
/// Label of a DaemonSet's pods and of its ControllerRevisions.
const REVISION_HASH: &str = "controller-revision-hash";

/// The part of an Argo Rollout that matters here.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone)]
#[kube(group = "argoproj.io", version = "v1alpha1", kind = "Rollout", namespaced, status = "ObservedStatus")]
#[kube(schema = "disabled")]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    selector: LabelSelector,
    #[serde(default)]
    min_ready_seconds: i64,
}

/// The part of OpenShift's DeploymentConfig that matters here.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone)]
#[kube(group = "apps.openshift.io", version = "v1", kind = "DeploymentConfig", namespaced, status = "ObservedStatus")]
#[kube(schema = "disabled")]
#[serde(rename_all = "camelCase")]
pub struct DeploymentConfigSpec {
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    selector: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    min_ready_seconds: i64,
}

/// What both say of themselves.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
#[serde(rename_all = "camelCase")]
pub struct ObservedStatus {
    /// A number, or a number in a string.
    #[serde(default)]
    observed_generation: Value,
    #[serde(default)]
    latest_version: Option<i64>,
}

/// What an owner of any kind tells.
struct Top {
    uid: Option<String>,
    revision: Option<String>,
    current: Option<String>,
    paused: bool,
    observed: bool,
    selector: Option<LabelSelector>,
    min_ready: i64,
}

/// What the pod is a pod of; `None` for a bare pod, and where a controller that it names does not exist any more.
pub(super) async fn of<O: Objects>(objects: &O, pod: &Pod) -> Result<Option<Lineage>, StoreError> {
    let namespace = pod.metadata.namespace.as_deref();
    let Some(direct) = controller(&pod.metadata) else { return Ok(None) };
    let (set, ready) = match kind_of(direct) {
        ("apps", "ReplicaSet") => match living::<ReplicaSet, _>(objects, namespace, direct).await? {
            Some(set) => (set.metadata, set.status.and_then(|status| status.ready_replicas)),
            None => return Ok(None),
        },
        ("", "ReplicationController") => match living::<ReplicationController, _>(objects, namespace, direct).await? {
            Some(set) => (set.metadata, set.status.and_then(|status| status.ready_replicas)),
            None => return Ok(None),
        },
        ("apps", "DaemonSet") => return of_daemon_set(objects, pod, direct).await,
        _ => return Ok(Some(untold(direct))),
    };
    let Some(above) = controller(&set) else { return Ok(Some(untold(direct))) };
    let top = match kind_of(above) {
        ("apps", "Deployment") => living(objects, namespace, above).await?.map(|owner| of_deployment(owner, &set)),
        ("argoproj.io", "Rollout") => living(objects, namespace, above).await?.map(|owner| of_rollout(owner, &set)),
        ("apps.openshift.io", "DeploymentConfig") => {
            living(objects, namespace, above).await?.map(|owner| of_config(owner, &set))
        }
        _ => return Ok(Some(untold(above))),
    };
    Ok(top.map(|top| lineage(pod, direct, above, ready > Some(0), top)))
}

/// The object that a reference means; none if there is none of that name, or another one.
async fn living<K: Object, O: Objects>(
    objects: &O,
    namespace: Option<&str>,
    reference: &OwnerReference,
) -> Result<Option<K>, StoreError> {
    let found = objects.fresh::<K>(namespace, &reference.name).await?;
    Ok(found.filter(|object| object.meta().uid.as_deref() == Some(&reference.uid)))
}

fn of_deployment(owner: Deployment, set: &ObjectMeta) -> Top {
    let spec = owner.spec.unwrap_or_default();
    Top {
        revision: annotation(set, DEPLOYMENT_REVISION),
        current: annotation(&owner.metadata, DEPLOYMENT_REVISION),
        paused: spec.paused == Some(true),
        observed: owner.status.and_then(|status| status.observed_generation) >= owner.metadata.generation,
        selector: Some(spec.selector),
        min_ready: spec.min_ready_seconds.unwrap_or_default().into(),
        uid: owner.metadata.uid,
    }
}

fn of_rollout(owner: Rollout, set: &ObjectMeta) -> Top {
    Top {
        revision: annotation(set, ROLLOUT_REVISION),
        current: annotation(&owner.metadata, ROLLOUT_REVISION),
        paused: owner.spec.paused,
        observed: owner.status.is_none_or(|status| status.has_seen(&owner.metadata)),
        selector: Some(owner.spec.selector),
        min_ready: owner.spec.min_ready_seconds,
        uid: owner.metadata.uid,
    }
}

fn of_config(owner: DeploymentConfig, set: &ObjectMeta) -> Top {
    let current = owner.status.as_ref().and_then(|status| status.latest_version);
    Top {
        revision: annotation(set, CONFIG_REVISION),
        current: current.map(|number| number.to_string()),
        paused: owner.spec.paused,
        observed: owner.status.is_none_or(|status| status.has_seen(&owner.metadata)),
        selector: Some(LabelSelector { match_labels: Some(owner.spec.selector), match_expressions: None }),
        min_ready: owner.spec.min_ready_seconds,
        uid: owner.metadata.uid,
    }
}

/// A DaemonSet's revisions are ControllerRevisions, of which the one with the highest number is the current one.
async fn of_daemon_set<O: Objects>(
    objects: &O,
    pod: &Pod,
    direct: &OwnerReference,
) -> Result<Option<Lineage>, StoreError> {
    let namespace = pod.metadata.namespace.as_deref();
    let Some(owner) = living::<DaemonSet, _>(objects, namespace, direct).await? else { return Ok(None) };
    let spec = owner.spec.unwrap_or_default();
    let labels = Selector::try_from(spec.selector.clone()).unwrap_or_default();
    let revisions = objects.list::<ControllerRevision>(&labels.to_string()).await?;
    let own =
        revisions.into_iter().filter(|revision| controller(&revision.metadata).is_some_and(|of| of.uid == direct.uid));
    let current = own.max_by_key(|revision| revision.revision);
    let top = Top {
        revision: pod.labels().get(REVISION_HASH).cloned(),
        current: current.and_then(|revision| revision.labels().get(REVISION_HASH).cloned()),
        paused: false,
        observed: owner.status.and_then(|status| status.observed_generation) >= owner.metadata.generation,
        selector: Some(spec.selector),
        min_ready: spec.min_ready_seconds.unwrap_or_default().into(),
        uid: owner.metadata.uid,
    };
    Ok(Some(lineage(pod, direct, direct, false, top)))
}

fn lineage(pod: &Pod, direct: &OwnerReference, top: &OwnerReference, ready: bool, of: Top) -> Lineage {
    let selector = of.selector.and_then(|selector| Selector::try_from(selector).ok());
    Lineage {
        uid: of.uid.unwrap_or_default(),
        api_version: top.api_version.clone(),
        kind: top.kind.clone(),
        name: top.name.clone(),
        set: direct.uid.clone(),
        set_was_ready: ready,
        revision: of.revision,
        current: of.current,
        paused: of.paused,
        observed: of.observed,
        selects: selector.is_some_and(|selector| !selector.selects_all() && selector.matches(pod.labels())),
        min_ready: SignedDuration::from_secs(of.min_ready),
    }
}

/// A pod of a controller that does not tell revisions apart.
fn untold(top: &OwnerReference) -> Lineage {
    Lineage {
        uid: top.uid.clone(),
        api_version: top.api_version.clone(),
        kind: top.kind.clone(),
        name: top.name.clone(),
        set: top.uid.clone(),
        set_was_ready: false,
        revision: None,
        current: None,
        paused: false,
        observed: true,
        selects: false,
        min_ready: SignedDuration::ZERO,
    }
}

fn annotation(meta: &ObjectMeta, key: &str) -> Option<String> {
    meta.annotations.as_ref()?.get(key).cloned()
}

/// API group and kind.
fn kind_of(reference: &OwnerReference) -> (&str, &str) {
    (reference.api_version.split_once('/').map_or("", |(group, _)| group), &reference.kind)
}

fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

impl ObservedStatus {
    fn has_seen(&self, meta: &ObjectMeta) -> bool {
        let number = match &self.observed_generation {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number.is_none_or(|observed| Some(observed) >= meta.generation)
    }
}

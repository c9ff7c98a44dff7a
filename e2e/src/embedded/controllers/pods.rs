//! What controllers share: whose a pod is, how it fares, and how one is made from a template.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Preconditions};
use kube::core::Selector;
use kube::{Client, Resource, ResourceExt};

use super::Failure;

/// True if `uid` is the controller of the object.
pub(super) fn is_controlled_by(object: &impl ResourceExt, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// The pods in a namespace that match a selector and are controlled by `uid`, read live.
pub(super) async fn controlled(
    client: &Client,
    namespace: &str,
    selector: &LabelSelector,
    uid: &str,
) -> Result<Vec<Pod>, Failure> {
    let selector: Selector = selector.clone().try_into().map_err(anyhow::Error::from)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = pods.list(&ListParams::default().labels_from(&selector)).await?;
    Ok(found.items.into_iter().filter(|pod| is_controlled_by(pod, uid)).collect())
}

pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub(super) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(super) fn is_deleting(object: &impl ResourceExt) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// Counts for its controller: neither finished nor leaving.
pub(super) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

pub(super) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty())
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    is_active(pod) && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A short hash of a template: pods made from different templates bear different ones.
pub(super) fn template_hash(template: &PodTemplateSpec) -> String {
    const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(template).unwrap_or_default().hash(&mut hasher);
    let mut rest = hasher.finish();
    let mut text = String::new();
    for _ in 0..10 {
        let at = usize::try_from(rest % SAFE.len() as u64).unwrap_or(0);
        text.push(char::from(SAFE[at]));
        rest /= SAFE.len() as u64;
    }
    text
}

/// A pod of an owner, from its template.
pub(super) fn from_template<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    labels: &[(&str, &str)],
) -> Pod {
    let own = template.metadata.clone().unwrap_or_default();
    let mut all: BTreeMap<_, _> = own.labels.unwrap_or_default();
    all.extend(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Pod {
        metadata: ObjectMeta {
            namespace: owner.meta().namespace.clone(),
            generate_name: owner.meta().name.as_ref().map(|name| format!("{name}-")),
            labels: Some(all),
            annotations: own.annotations,
            finalizers: own.finalizers,
            owner_references: reference(owner).map(|r| vec![r]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The reference by which an object is controlled by `owner`.
pub(super) fn reference<O: Resource<DynamicType = ()>>(owner: &O) -> Option<OwnerReference> {
    owner.controller_owner_ref(&()).map(|reference| OwnerReference { block_owner_deletion: Some(true), ..reference })
}

/// Deletes this very pod; that it is gone already is no error.
pub(super) async fn delete(client: &Client, pod: &Pod) -> Result<(), Failure> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let this = DeleteParams {
        preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match pods.delete(&pod.name_any(), &this).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

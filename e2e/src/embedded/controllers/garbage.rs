//! The garbage collector: what is owned goes with its owner.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::stream::{SelectAll, StreamExt as _};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::metadata::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde_json::json;

const FOREGROUND: &str = "foregroundDeletion";

/// An object that owns or is owned.
struct Member {
    kind: ApiResource,
    meta: PartialObjectMeta<DynamicObject>,
}

/// Deletes dependents of owners that are gone or are being deleted in the foreground.
pub(super) async fn run(client: Client) {
    let kinds = [
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<ReplicaSet>(&()),
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<DaemonSet>(&()),
        ApiResource::erase::<Job>(&()),
        ApiResource::erase::<Pod>(&()),
    ];
    let mut events = SelectAll::new();
    for kind in kinds {
        let all: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &kind);
        events.push(watcher(all, watcher::Config::default()).map(move |event| (kind.clone(), event)).boxed());
    }
    let mut collector = Collector { client, known: Vec::new(), doomed: BTreeSet::new() };
    while let Some((kind, event)) = events.next().await {
        match event {
            Ok(Event::Apply(meta) | Event::InitApply(meta)) => collector.seen(Member { kind, meta }).await,
            Ok(Event::Delete(meta)) => collector.gone(&meta.uid().unwrap_or_default()).await,
            Ok(Event::Init | Event::InitDone) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

struct Collector {
    client: Client,
    known: Vec<Member>,
    /// Owners whose dependents must go. An owner's UID never comes back, so nothing is taken out.
    doomed: BTreeSet<String>,
}

impl Collector {
    async fn seen(&mut self, member: Member) {
        let uid = member.meta.uid().unwrap_or_default();
        self.known.retain(|m| m.meta.uid().as_deref() != Some(&uid));
        let waits =
            member.meta.meta().deletion_timestamp.is_some() && member.meta.finalizers().iter().any(|f| f == FOREGROUND);
        self.known.push(member);
        if waits {
            self.doomed.insert(uid);
        }
        self.collect().await;
    }

    async fn gone(&mut self, uid: &str) {
        self.known.retain(|m| m.meta.uid().as_deref() != Some(uid));
        self.doomed.insert(uid.to_owned());
        self.collect().await;
    }

    fn is_doomed(&self, member: &Member) -> bool {
        let owners = member.meta.owner_references();
        !owners.is_empty() && owners.iter().all(|owner| self.doomed.contains(&owner.uid))
    }

    fn has_dependents(&self, uid: &str) -> bool {
        self.known.iter().any(|m| m.meta.owner_references().iter().any(|owner| owner.uid == uid))
    }

    async fn collect(&self) {
        for member in &self.known {
            if self.is_doomed(member) && member.meta.meta().deletion_timestamp.is_none() {
                self.delete(member).await;
            }
            let uid = member.meta.uid().unwrap_or_default();
            if member.meta.finalizers().iter().any(|f| f == FOREGROUND) && !self.has_dependents(&uid) {
                self.release(member).await;
            }
        }
    }

    fn api(&self, member: &Member) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &member.meta.namespace().unwrap_or_default(), &member.kind)
    }

    async fn delete(&self, member: &Member) {
        let preconditions = Some(Preconditions { uid: member.meta.uid(), resource_version: None });
        let this = DeleteParams {
            preconditions,
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        if let Err(error) = self.api(member).delete(&member.meta.name_any(), &this).await {
            tracing::debug!(%error, "garbage");
        }
    }

    /// Lets an owner go whose dependents are gone.
    async fn release(&self, member: &Member) {
        let rest = member.meta.finalizers().iter().filter(|f| *f != FOREGROUND).collect::<Vec<_>>();
        let patch = Patch::Merge(json!({"metadata": {"finalizers": rest, "uid": member.meta.uid()}}));
        if let Err(error) = self.api(member).patch(&member.meta.name_any(), &PatchParams::default(), &patch).await {
            tracing::debug!(%error, "garbage");
        }
    }
}

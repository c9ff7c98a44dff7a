//! Namespaces that are deleted take their objects with them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};

use super::{AGAIN, Outcome, again, drive, pods};

/// Empties and finalizes namespaces that are being deleted.
pub(super) async fn run(client: Client) {
    let namespaces = Controller::new(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    drive(namespaces.run(reconcile, again, Arc::new(client))).await;
}

async fn reconcile(namespace: Arc<Namespace>, client: Arc<Client>) -> Outcome {
    let namespaces: Api<Namespace> = Api::all(client.as_ref().clone());
    let name = namespace.name_any();
    let Some(mut namespace) = namespaces.get_opt(&name).await?.filter(pods::is_deleting) else {
        return Ok(Action::await_change());
    };
    let discovery = Discovery::new(client.as_ref().clone()).run().await?;
    let mut left = 0;
    for group in discovery.groups() {
        for (kind, capabilities) in group.recommended_resources() {
            if capabilities.scope != Scope::Namespaced || !capabilities.supports_operation(verbs::DELETE_COLLECTION) {
                continue;
            }
            let objects: Api<DynamicObject> = Api::namespaced_with(client.as_ref().clone(), &name, &kind);
            objects.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
            left += objects.list(&ListParams::default()).await?.items.len();
        }
    }
    if left > 0 {
        // Pods leave in their own time, and no watch on namespaces tells.
        return Ok(Action::requeue(AGAIN));
    }
    if let Some(spec) = &mut namespace.spec {
        spec.finalizers = None;
    }
    namespaces.replace_subresource("finalize", &name, &PostParams::default(), &namespace).await?;
    Ok(Action::await_change())
}

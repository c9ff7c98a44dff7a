//! Objects and waits: what scenarios do to the API server and wait for there. Waits watch, and end with what
//! was seen last.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Lab;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until a pod runs, or an Event is there.
    pub ready: Duration,
    /// Until pods of a namespace are gone.
    pub gone: Duration,
}

impl Limits {
    pub(super) const QUICK: Self = Self { ready: Duration::from_secs(40), gone: Duration::from_secs(40) };
    pub(super) const REAL: Self = Self { ready: Duration::from_secs(120), gone: Duration::from_secs(120) };
}

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(100);

impl Lab {
    /// Creates an object of any kind, in `default` if it is namespaced and says nothing else.
    pub async fn create(&self, object: Value) -> Result<DynamicObject> {
        let described = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let api = self.api(&object)?;
        let object: DynamicObject = serde_json::from_value(object)?;
        api.create(&PostParams::default(), &object).await.with_context(|| described)
    }

    /// Merges `patch` into an object.
    pub async fn merge(&self, object: &Value, patch: Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        self.api(object)?.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)?;
        Ok(())
    }

    /// Deletes an object, if it is there.
    pub async fn delete(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        match self.api(object)?.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn api(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let (version, kind) =
            (object["apiVersion"].as_str().context("apiVersion")?, object["kind"].as_str().context("kind")?);
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let of_all = ["crd.projectcalico.org", "kube-ipam.io"].contains(&group);
        let cluster_wide = of_all || matches!(kind, "Namespace" | "Node");
        Ok(if cluster_wide {
            Api::all_with(self.client(), &resource)
        } else {
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
            Api::namespaced_with(self.client(), namespace, &resource)
        })
    }

    /// A namespace of its own for a scenario.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        self.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?;
        // Pods need it; a real controller manager makes it.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(self.client(), name);
        if self.machine.is_real() {
            self.until("the default service account", || async { Ok(accounts.get_opt("default").await?.map(drop)) })
                .await?;
        }
        Ok(name.to_owned())
    }

    /// Deletes the namespace and waits until its pods are gone.
    pub async fn drop_namespace(&self, name: &str) -> Result<()> {
        Api::<Namespace>::all(self.client()).delete(name, &DeleteParams::default()).await?;
        let pods: Api<Pod> = Api::namespaced(self.client(), name);
        // Kubernetes' controller begins after five seconds; by now no pod can be made in their place.
        pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        self.until("no pods left in the namespace", || async {
            Ok(pods.list(&ListParams::default()).await?.items.is_empty().then_some(()))
        })
        .await
    }

    /// Pods of an app that run with an address, once there are exactly `count` and no others.
    pub async fn running(&self, namespace: &str, app: &str, count: usize) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        let params = ListParams::default().labels(&format!("app={app}"));
        let wanted = format!("{count} running pods of {app}");
        let found = self.until(&wanted, || async {
            let items = pods.list(&params).await?.items;
            let all_run = items.len() == count && items.iter().all(is_running);
            Ok(all_run.then_some(items))
        });
        match found.await {
            Ok(pods) => Ok(pods),
            Err(error) => {
                let items = pods.list(&params).await?.items;
                let mut seen = String::new();
                for pod in &items {
                    let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
                    let events = self.events(pod).await?.join(" | ");
                    seen += &format!("\n  {} {phase} {:?} {events}", pod.name_any(), address(pod).ok());
                }
                Err(error.context(format!("seen last:{seen}")))
            }
        }
    }

    /// Any pods of an app.
    pub async fn pods(&self, namespace: &str, app: &str) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client(), namespace);
        Ok(pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items)
    }

    /// Waits until the app has no pods.
    pub async fn none_left(&self, namespace: &str, app: &str) -> Result<()> {
        self.until(&format!("no pod of {app}"), || async {
            Ok(self.pods(namespace, app).await?.is_empty().then_some(()))
        })
        .await
    }

    /// The messages of a pod's Events about its sandbox.
    pub async fn events(&self, pod: &Pod) -> Result<Vec<String>> {
        let events: Api<Event> = Api::namespaced(self.client(), &pod.namespace().unwrap_or_default());
        let all = events.list(&ListParams::default()).await?.items;
        let of_pod = all.into_iter().filter(|e| e.involved_object.name.as_deref() == Some(pod.name_any().as_str()));
        Ok(of_pod.filter_map(|e| e.message).collect())
    }

    /// Waits for an Event of some pod of the app that says all of `parts`.
    pub async fn event(&self, namespace: &str, app: &str, parts: &[&str]) -> Result<()> {
        let mut seen = Vec::new();
        let deadline = Instant::now() + self.limits.ready;
        while Instant::now() < deadline {
            seen.clear();
            for pod in self.pods(namespace, app).await? {
                seen.extend(self.events(&pod).await?);
            }
            if seen.iter().any(|message| parts.iter().all(|part| message.contains(part))) {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        bail!("no Event of {app} says {parts:?}; there are:\n{}", seen.join("\n"))
    }

    /// Deletes a pod and waits until this very pod is gone.
    pub async fn delete_pod(&self, pod: &Pod) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client(), &pod.namespace().unwrap_or_default());
        pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
        self.until(&format!("the end of {}", pod.name_any()), || async {
            Ok(pods.get_opt(&pod.name_any()).await?.is_none_or(|p| p.uid() != pod.uid()).then_some(()))
        })
        .await
    }

    /// Keeps new pods off a node, or lets them on again.
    pub async fn cordon(&self, node: &str, off: bool) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        self.merge(&object, json!({"spec": {"unschedulable": off}})).await
    }

    /// Scales a Deployment or StatefulSet.
    pub async fn scale(&self, kind: &str, namespace: &str, name: &str, replicas: usize) -> Result<()> {
        let object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}});
        self.merge(&object, json!({"spec": {"replicas": replicas}})).await
    }

    /// Looks until `look` finds something.
    pub async fn until<T, F>(&self, what: &str, mut look: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let limit = self.limits.ready.max(self.limits.gone);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                bail!("after {limit:?} there is still not: {what}");
            }
            sleep(LOOK).await;
        }
    }
}

fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none() && status.is_some_and(|s| s.pod_ip.is_some())
}

/// A pod's first address.
pub fn address(pod: &Pod) -> Result<std::net::IpAddr> {
    let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref());
    Ok(ip.with_context(|| format!("pod {} has no address", pod.name_any()))?.parse()?)
}

/// The node a pod is bound to.
pub fn node_of(pod: &Pod) -> Result<String> {
    pod.spec.as_ref().and_then(|s| s.node_name.clone()).with_context(|| format!("pod {} has no node", pod.name_any()))
}

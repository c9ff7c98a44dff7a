//! Updates whose new pod needs the address that the old one keeps. An agent evicts that; where there is none, a person
//! does, by `kube-ipam handover`.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{assert_has, deployment, fixed, only, workload};
use crate::lab::{Lab, MainPlugin, Network, address};

/// The guide's Deployment, word for word but for the address and its name.
fn of_the_guide(namespace: &str, address: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"labels": {"app": "fixed-ip-test"}, "name": "fixed-ip-test", "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "fixed-ip-test"}},
            "strategy": {},
            "template": {
                "metadata": {"labels": {"app": "fixed-ip-test"}, "annotations": fixed(address)},
                "spec": {
                    "containers": [
                        {"image": "nginx:latest", "imagePullPolicy": "IfNotPresent", "name": "nginx", "resources": {}},
                    ],
                },
            },
        },
    })
}

pub(super) async fn guide(lab: &Lab, namespace: &str) -> Result<()> {
    let before = begin(lab).await?;
    let (name, text) = ("fixed-ip-test", "10.244.0.206");
    let object = of_the_guide(namespace, text);
    lab.create(object.clone()).await?;
    let mut pod = only(lab.running(namespace, name, 1).await?)?;
    assert_has(lab, &pod, text.parse()?).await?;
    // Three updates, and back to the first template, which is a revision of its own.
    for revision in ["2", "3", "4", "1"] {
        let value = if revision == "1" { Value::Null } else { json!(revision) };
        lab.merge(&object, json!({"spec": {"template": {"metadata": {"annotations": {"revision": value}}}}})).await?;
        finished(lab, namespace, name).await.with_context(|| format!("update to {revision}"))?;
        let next = only(lab.running(namespace, name, 1).await?)?;
        ensure!(next.uid() != pod.uid(), "the pod is the one of before the update");
        assert_has(lab, &next, text.parse()?).await?;
        if lab.has_agents() {
            said(lab, namespace, "HandoverBegun", &[&pod.name_any(), &next.name_any(), text]).await?;
        }
        pod = next;
    }
    lab.configure(&before).await
}

pub(super) async fn stopped(lab: &Lab, namespace: &str) -> Result<()> {
    let before = begin(lab).await?;
    // A stand-in for a kubelet has every image, and no stand-in keeps disruption budgets. Events are the agents'.
    if lab.main_plugin() == MainPlugin::StandIn || !lab.has_agents() {
        return lab.configure(&before).await;
    }
    let (name, text) = ("web", "10.244.0.207");
    let mut object = deployment(namespace, name, 1, fixed(text));
    object["spec"]["strategy"] = json!({});
    lab.create(object.clone()).await?;
    let first = only(lab.running(namespace, name, 1).await?)?;
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "never-less", "namespace": namespace},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": name}}},
    });
    lab.create(budget.clone()).await?;
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> = Api::namespaced(lab.client(), namespace);
    lab.until("the budget to be observed", || async {
        let observed = budgets.get("never-less").await?.status.is_some_and(|status| status.expected_pods == 1);
        Ok(observed.then_some(()))
    })
    .await?;
    let image = |image: &str| {
        let container = json!({"name": "nginx", "image": image, "imagePullPolicy": "IfNotPresent"});
        json!({"spec": {"template": {"spec": {"containers": [container]}}}})
    };
    lab.merge(&object, image("nowhere.invalid/nginx:2")).await?;
    said(lab, namespace, "HandoverBlocked", &["never-less", &first.name_any(), text]).await?;
    ensure!(first.uid() == only(with_address(lab, namespace, name).await?)?.uid(), "the budget was not kept");
    lab.delete(&budget).await?;
    said(lab, namespace, "HandoverImageUnknown", &["before"]).await?;
    lab.until("the pod with the wrong image has the address", || async {
        let pods = with_address(lab, namespace, name).await?;
        Ok(pods.iter().any(|pod| pod.uid() != first.uid()).then_some(()))
    })
    .await?;
    // Corrected, the update goes on.
    lab.merge(&object, image("nginx:latest")).await?;
    finished(lab, namespace, name).await?;
    assert_has(lab, &only(lab.running(namespace, name, 1).await?)?, text.parse()?).await?;
    lab.configure(&before).await
}

pub(super) async fn several(lab: &Lab, namespace: &str) -> Result<()> {
    let before = begin(lab).await?;
    let (name, list) = ("team", "10.244.0.201-10.244.0.203");
    let mut object = deployment(namespace, name, 3, fixed(list));
    object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 0}});
    lab.create(object.clone()).await?;
    lab.running(namespace, name, 3).await?;
    lab.merge(&object, json!({"spec": {"template": {"metadata": {"annotations": {"revision": "2"}}}}})).await?;
    finished(lab, namespace, name).await?;
    let pods = lab.running(namespace, name, 3).await?;
    let mut has = pods.iter().map(address).collect::<Result<Vec<_>>>()?;
    has.sort_unstable();
    let expected = ["10.244.0.201", "10.244.0.202", "10.244.0.203"];
    ensure!(has.iter().map(ToString::to_string).eq(expected), "the pods have {has:?}");
    lab.configure(&before).await
}

pub(super) async fn daemon_set(lab: &Lab, namespace: &str) -> Result<()> {
    let before = begin(lab).await?;
    let (name, list) = ("probe", "10.244.0.204,10.244.0.205");
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    let mut object = workload("DaemonSet", namespace, name, 0, fixed(list), json!({"updateStrategy": strategy}));
    object["spec"].as_object_mut().context("a spec")?.remove("replicas");
    lab.create(object.clone()).await?;
    lab.running(namespace, name, 2).await?;
    lab.merge(&object, json!({"spec": {"template": {"metadata": {"annotations": {"revision": "2"}}}}})).await?;
    lab.until("both nodes have the second revision", || async {
        by_hand(lab, namespace, name).await?;
        let pods = lab.pods(namespace, name).await?;
        let is_new = |pod: &Pod| pod.annotations().contains_key("revision") && address(pod).is_ok();
        Ok((pods.len() == 2 && pods.iter().all(is_new)).then_some(()))
    })
    .await?;
    lab.configure(&before).await
}

/// Lets updates hand addresses over; gives the configuration of before.
async fn begin(lab: &Lab) -> Result<Network> {
    let before = lab.network();
    if lab.has_agents() {
        lab.configure(&Network { hands_over: true, ..before.clone() }).await?;
    }
    Ok(before)
}

/// What a person does where no agent does it: for each pod that waits.
async fn by_hand(lab: &Lab, namespace: &str, name: &str) -> Result<()> {
    if lab.has_agents() {
        return Ok(());
    }
    for pod in lab.pods(namespace, name).await? {
        if address(&pod).is_err() {
            // Not for a pod of the old revision, nor before the one before it is available: then it is refused.
            lab.kube_ipam(&["handover", &pod.name_any(), "--namespace", namespace, "--yes"])?;
        }
    }
    Ok(())
}

/// Waits until the Deployment's controller says that its latest template is rolled out, as `kubectl rollout status`.
async fn finished(lab: &Lab, namespace: &str, name: &str) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(lab.client(), namespace);
    lab.until(&format!("the roll-out of {name}"), || async {
        by_hand(lab, namespace, name).await?;
        let found = api.get(name).await?;
        let (wanted, status) = (found.spec.and_then(|spec| spec.replicas), found.status.unwrap_or_default());
        let done = status.observed_generation >= found.metadata.generation
            && status.updated_replicas == wanted
            && status.replicas == wanted
            && status.available_replicas == wanted;
        Ok(done.then_some(()))
    })
    .await
}

async fn with_address(lab: &Lab, namespace: &str, name: &str) -> Result<Vec<Pod>> {
    Ok(lab.pods(namespace, name).await?.into_iter().filter(|pod| address(pod).is_ok()).collect())
}

/// Waits for an Event of that reason on the owner that says all of `parts`.
async fn said(lab: &Lab, namespace: &str, reason: &str, parts: &[&str]) -> Result<()> {
    let events: Api<Event> = Api::namespaced(lab.client(), namespace);
    lab.until(&format!("an Event {reason} on the Deployment that says {parts:?}"), || async {
        let all = events.list(&ListParams::default()).await?.items;
        let found = all.iter().any(|event| {
            let about = event.regarding.as_ref().and_then(|about| about.kind.as_deref());
            let note = event.note.as_deref().unwrap_or_default();
            about == Some("Deployment")
                && event.reason.as_deref() == Some(reason)
                && parts.iter().all(|p| note.contains(p))
        });
        Ok(found.then_some(()))
    })
    .await
}

//! Deployments: a ReplicaSet per template, and the way from one to the next.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{Failure, Outcome, again, drive, pods};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Keeps every Deployment's ReplicaSets.
pub(super) async fn run(client: Client) {
    let deployments = Controller::new(Api::<Deployment>::all(client.clone()), watcher::Config::default())
        .owns(Api::<ReplicaSet>::all(client.clone()), watcher::Config::default())
        // Strategy Recreate waits for old pods to be gone, which no ReplicaSet tells.
        .watches(Api::<Pod>::all(client.clone()), watcher::Config::default(), deployment_of);
    drive(deployments.run(reconcile, again, Arc::new(client))).await;
}

/// The Deployment of a pod: its ReplicaSet's name without the hash.
fn deployment_of(pod: Pod) -> Option<ObjectRef<Deployment>> {
    let hash = pod.labels().get(HASH)?;
    let owner = pod.owner_references().iter().find(|owner| owner.kind == "ReplicaSet")?;
    let name = owner.name.strip_suffix(&format!("-{hash}"))?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

/// The ReplicaSets of a Deployment.
struct Rollout {
    new: ReplicaSet,
    old: Vec<ReplicaSet>,
}

fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn present(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

async fn reconcile(deployment: Arc<Deployment>, client: Arc<Client>) -> Outcome {
    let namespace = deployment.namespace().unwrap_or_default();
    let deployments: Api<Deployment> = Api::namespaced(client.as_ref().clone(), &namespace);
    let Some(deployment) = deployments.get_opt(&deployment.name_any()).await?.filter(|d| !pods::is_deleting(d)) else {
        return Ok(Action::await_change());
    };
    let Some(spec) = &deployment.spec else {
        return Ok(Action::await_change());
    };
    let sets: Api<ReplicaSet> = Api::namespaced(client.as_ref().clone(), &namespace);
    let uid = deployment.uid().unwrap_or_default();
    let owned = sets.list(&ListParams::default()).await?.items.into_iter().filter(|s| pods::is_controlled_by(s, &uid));
    let name = format!("{}-{}", deployment.name_any(), pods::template_hash(&spec.template));
    let (mut new, old): (Vec<_>, Vec<_>) = owned.partition(|set| set.name_any() == name);
    let recreates = spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("Recreate");
    if recreates && !old_is_gone(&client, &namespace, spec, &sets, &old).await? {
        return report(&deployments, &deployment, &new, &old).await;
    }
    if new.is_empty() {
        let replicas = if recreates { spec.replicas.unwrap_or(1) } else { 0 };
        new.push(sets.create(&PostParams::default(), &replica_set(&deployment, spec, &name, replicas)).await?);
    }
    number(&deployments, &deployment, &sets, &mut new[0], &old).await?;
    let mut rollout = Rollout { new: new.remove(0), old };
    if recreates {
        let all = spec.replicas.unwrap_or(1);
        scale(&sets, &mut rollout.new, all).await?;
    } else {
        rollout.roll(&sets, spec).await?;
    }
    report(&deployments, &deployment, &[rollout.new], &rollout.old).await
}

fn replica_set(deployment: &Deployment, spec: &DeploymentSpec, name: &str, replicas: i32) -> ReplicaSet {
    let hash = pods::template_hash(&spec.template);
    let mut template = spec.template.clone();
    let mut selector = spec.selector.clone();
    template.metadata.get_or_insert_default().labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash);
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
            owner_references: pods::reference(deployment).map(|r| vec![r]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector,
            template: Some(template),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

/// Gives the new set the highest number of all, also where its template comes back, and the Deployment the same.
async fn number(
    deployments: &Api<Deployment>,
    deployment: &Deployment,
    sets: &Api<ReplicaSet>,
    new: &mut ReplicaSet,
    old: &[ReplicaSet],
) -> Result<(), Failure> {
    let of = |set: &ReplicaSet| set.annotations().get(REVISION).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let highest = old.iter().map(of).max().unwrap_or(0);
    if of(new) <= highest {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {REVISION: (highest + 1).to_string()}}}));
        *new = sets.patch(&new.name_any(), &PatchParams::default(), &patch).await?;
    }
    let number = of(new).to_string();
    if deployment.annotations().get(REVISION) != Some(&number) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {REVISION: number}}}));
        deployments.patch(&deployment.name_any(), &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// Scales the old sets to nothing; true once none of their pods is left.
async fn old_is_gone(
    client: &Client,
    namespace: &str,
    spec: &DeploymentSpec,
    sets: &Api<ReplicaSet>,
    old: &[ReplicaSet],
) -> Result<bool, Failure> {
    for set in old {
        scale(sets, &mut set.clone(), 0).await?;
    }
    for set in old {
        let left = pods::controlled(client, namespace, &spec.selector, &set.uid().unwrap_or_default()).await?;
        if left.iter().any(|pod| !pods::is_finished(pod)) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn scale(sets: &Api<ReplicaSet>, set: &mut ReplicaSet, replicas: i32) -> Result<(), Failure> {
    if wanted(set) != replicas {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        *set = sets.patch(&set.name_any(), &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

/// A number or a percentage of `whole`.
fn resolve(value: Option<&IntOrString>, whole: i32, rounds_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent = text.trim_end_matches('%').parse().unwrap_or(25);
            let hundredths = whole * percent;
            if rounds_up { (hundredths + 99) / 100 } else { hundredths / 100 }
        }
        None => resolve(Some(&IntOrString::String("25%".to_owned())), whole, rounds_up),
    }
}

impl Rollout {
    fn total(&self) -> i32 {
        wanted(&self.new) + self.old.iter().map(wanted).sum::<i32>()
    }

    /// One step of a rolling update: first up to the surge, then down to what must stay available.
    async fn roll(&mut self, sets: &Api<ReplicaSet>, spec: &DeploymentSpec) -> Result<(), Failure> {
        let all = spec.replicas.unwrap_or(1);
        let limits = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let surge = resolve(limits.and_then(|l| l.max_surge.as_ref()), all, true);
        let mut unavailable = resolve(limits.and_then(|l| l.max_unavailable.as_ref()), all, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        let room = (all + surge - self.total()).max(0);
        let target = (wanted(&self.new) + room).min(all);
        scale(sets, &mut self.new, target).await?;
        self.shrink_old(sets, all - unavailable).await
    }

    /// Takes pods from the old sets, those that are not available first.
    async fn shrink_old(&mut self, sets: &Api<ReplicaSet>, must_stay: i32) -> Result<(), Failure> {
        let total = self.total();
        let new_unavailable = wanted(&self.new) - available(&self.new);
        let mut may_go = total - must_stay - new_unavailable;
        for set in &mut self.old {
            let broken = (wanted(set) - available(set)).clamp(0, may_go.max(0));
            let target = wanted(set) - broken;
            scale(sets, set, target).await?;
            may_go -= broken;
        }
        let serving = available(&self.new) + self.old.iter().map(|s| available(s).min(wanted(s))).sum::<i32>();
        let mut may_go = serving - must_stay;
        for set in &mut self.old {
            let leaving = wanted(set).clamp(0, may_go.max(0));
            let target = wanted(set) - leaving;
            scale(sets, set, target).await?;
            may_go -= leaving;
        }
        Ok(())
    }
}

async fn report(
    deployments: &Api<Deployment>,
    deployment: &Deployment,
    new: &[ReplicaSet],
    old: &[ReplicaSet],
) -> Outcome {
    let all = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let sum = |count: fn(&ReplicaSet) -> i32| new.iter().chain(old).map(count).sum::<i32>();
    let ready = sum(available);
    let updated = new.iter().map(present).sum::<i32>();
    let is_available = if ready >= all { "True" } else { "False" };
    let status: Value = json!({"status": {
        "observedGeneration": deployment.metadata.generation, "replicas": sum(present), "updatedReplicas": updated,
        "readyReplicas": ready, "availableReplicas": ready, "unavailableReplicas": (all - ready).max(0),
        "conditions": [{"type": "Available", "status": is_available, "reason": "MinimumReplicas"}, {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated"}],
    }});
    deployments.patch_status(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(Action::await_change())
}

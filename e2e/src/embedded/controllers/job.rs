//! Jobs: pods until enough of them have succeeded, or too many have failed.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::{Outcome, again, drive, pods};

/// Keeps every Job's pods.
pub(super) async fn run(client: Client) {
    let jobs = Controller::new(Api::<Job>::all(client.clone()), watcher::Config::default())
        .owns(Api::<Pod>::all(client.clone()), watcher::Config::default());
    drive(jobs.run(reconcile, again, Arc::new(client))).await;
}

async fn reconcile(job: Arc<Job>, client: Arc<Client>) -> Outcome {
    let namespace = job.namespace().unwrap_or_default();
    let jobs: Api<Job> = Api::namespaced(client.as_ref().clone(), &namespace);
    let Some(job) = jobs.get_opt(&job.name_any()).await?.filter(|j| !pods::is_deleting(j)) else {
        return Ok(Action::await_change());
    };
    let Some(spec) = &job.spec else {
        return Ok(Action::await_change());
    };
    let ended = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if ended.iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True") {
        return Ok(Action::await_change());
    }
    let selector = spec.selector.clone().unwrap_or_default();
    let mine = pods::controlled(&client, &namespace, &selector, &job.uid().unwrap_or_default()).await?;
    let count = |wanted: &str| mine.iter().filter(|pod| pods::phase(pod) == wanted).count();
    let (succeeded, failed) = (count("Succeeded"), count("Failed"));
    let number = |value: Option<i32>, preset: usize| value.and_then(|n| usize::try_from(n).ok()).unwrap_or(preset);
    let completions = number(spec.completions, 1);
    let condition = if succeeded >= completions {
        Some("Complete")
    } else if failed > number(spec.backoff_limit, 6) {
        Some("Failed")
    } else {
        None
    };
    let mut active = mine.iter().filter(|pod| pods::is_active(pod)).count();
    if condition.is_none() {
        let api: Api<Pod> = Api::namespaced(client.as_ref().clone(), &namespace);
        let wanted = number(spec.parallelism, 1).min(completions - succeeded);
        for _ in 0..wanted.saturating_sub(active) {
            api.create(&PostParams::default(), &pods::from_template(&job, &spec.template, &[])).await?;
            active += 1;
        }
    }
    let mut status = json!({"active": active, "succeeded": succeeded, "failed": failed});
    if let Some(kind) = condition {
        status["conditions"] = json!([{"type": kind, "status": "True"}]);
        status["active"] = 0.into();
    }
    jobs.patch_status(&job.name_any(), &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await?;
    Ok(Action::await_change())
}

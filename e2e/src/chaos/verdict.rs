//! What is left when all pods are gone, by three judges: the records themselves, `kube-ipam check`, and `calicoctl`.
//!
//! Allocations have a minute to go. A half-done affinity, and a handle that no allocation bears, hold no address: what was
//! killed while it took an empty block over leaves the one, a write that took effect after its DEL the other, and the
//! collector removes them. That needs a leader, whose Lease may have to run out, and two sightings.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use calico::{IPAMBlock, IPAMHandle};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::ground::Ground;
use super::patrol::recorded;
use super::runtime::Runtime;

/// What was found at the end.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Allocations and handles that nobody uses.
    pub left: Vec<String>,
    /// How long it took until nothing was left.
    pub after: Duration,
    /// What `kube-ipam check` found.
    pub check: Found,
    /// What `calicoctl ipam check` found, if it was asked; empty if nothing.
    pub calicoctl: Option<String>,
}

/// What a judge found; empty if nothing.
#[derive(Debug, Default)]
pub(super) struct Found {
    text: String,
    /// Whether all of it is of the classes that the collector may take its time for.
    is_patient: bool,
}

/// How much longer than an allocation something may stay that holds no address.
const COLLECTOR: Duration = Duration::from_secs(120);
/// Classes of violations that hold no address, if there is no allocation.
const WITHOUT_ADDRESS: [&str; 2] = ["half-done-affinity", "handle-count"];

/// Gives the cluster so much time until nothing is left, and looks.
pub(super) async fn verdict(runtime: &Runtime, limit: Duration, calico_bin: Option<&Path>) -> Result<Verdict> {
    let (started, ground) = (Instant::now(), &runtime.ground);
    let mut verdict = Verdict::default();
    let mut said = String::new();
    loop {
        let (allocations, handles) =
            left(ground).await.unwrap_or_else(|error| (vec![format!("could not be read: {error:#}")], Vec::new()));
        let holds_address = !allocations.is_empty();
        verdict.left = [allocations, handles].concat();
        verdict.check = check(ground).await?;
        verdict.after = started.elapsed();
        let patience = if !holds_address && verdict.check.is_patient { COLLECTOR } else { Duration::ZERO };
        if verdict.wrongs().is_empty() || verdict.after > limit + patience {
            break;
        }
        let still = format!("{}\n{}", verdict.left.join(", "), verdict.check.text);
        if still != said {
            runtime.note(&format!("not clean yet: {still}"));
            said = still;
        }
        sleep(Duration::from_millis(500)).await;
    }
    if let Some(directory) = calico_bin {
        verdict.calicoctl = Some(calicoctl(ground, directory).await?);
    }
    Ok(verdict)
}

/// Allocations, and handles.
async fn left(ground: &Ground) -> Result<(Vec<String>, Vec<String>)> {
    let blocks = Api::<IPAMBlock>::all(ground.client.clone()).list(&ListParams::default()).await?.items;
    let handles = Api::<IPAMHandle>::all(ground.client.clone()).list(&ListParams::default()).await?.items;
    let allocations = recorded(&blocks).into_iter().map(|(address, pod)| format!("{address} of pod {pod}"));
    let handles = handles.iter().map(|handle| format!("handle {}", handle.name_any()));
    Ok((allocations.collect(), handles.collect()))
}

/// Every record against the invariants, claims and ranges included.
async fn check(ground: &Ground) -> Result<Found> {
    let conflist = ground.nodes.first().context("there are nodes")?.conflist();
    let mut command = tokio::process::Command::new(crate::tools::kube_ipam()?);
    command.args(["check", "-o", "json", "--settle", "1", "--conflist"]).arg(conflist).env_remove("CNI_COMMAND");
    let output = command.arg("--kubeconfig").arg(ground.control_plane.kubeconfig()).output().await?;
    if output.status.success() {
        return Ok(Found::default());
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ok(Found { is_patient: is_without_address(&report), text })
}

fn is_without_address(report: &Value) -> bool {
    let violations = report["violations"].as_array().filter(|violations| !violations.is_empty());
    let read = report["unread"].as_array().is_some_and(Vec::is_empty);
    let patient = |violation: &Value| WITHOUT_ADDRESS.iter().any(|class| violation["class"] == *class);
    read && violations.is_some_and(|violations| violations.iter().all(patient))
}

async fn calicoctl(ground: &Ground, directory: &Path) -> Result<String> {
    let mut command = tokio::process::Command::new(directory.join("calicoctl"));
    command.args(["ipam", "check", "--allow-version-mismatch"]).env("DATASTORE_TYPE", "kubernetes");
    let output = command.env("KUBECONFIG", ground.control_plane.kubeconfig()).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() && (text.contains("found 0 problems") || text.contains("Check complete; found 0")) {
        return Ok(String::new());
    }
    Ok(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

// === impl Verdict ===

impl Verdict {
    /// Everything that must not be.
    pub(super) fn wrongs(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        if !self.left.is_empty() {
            wrongs.push(format!("left over after {:.0} s: {}", self.after.as_secs_f64(), self.left.join(", ")));
        }
        if !self.check.text.is_empty() {
            wrongs.push(format!("kube-ipam check: {}", self.check.text));
        }
        wrongs.extend(
            self.calicoctl.iter().filter(|text| !text.is_empty()).map(|t| format!("calicoctl ipam check: {t}")),
        );
        wrongs
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_holds_no_address_may_take_longer() {
        let report = |classes: &[&str], unread: &[&str]| {
            let violations: Vec<Value> = classes.iter().map(|class| json!({"class": class})).collect();
            json!({"violations": violations, "unread": unread})
        };
        assert!(is_without_address(&report(&["half-done-affinity", "handle-count"], &[])));
        for other in
            [report(&[], &[]), report(&["half-done-affinity", "leak"], &[]), report(&["half-done-affinity"], &["pods"])]
        {
            assert!(!is_without_address(&other), "{other}");
        }
        assert!(!is_without_address(&Value::Null));
    }
}

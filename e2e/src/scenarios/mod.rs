//! The scenarios: what users do, and what must then be true. Each takes a lab of any tier and a namespace of
//! its own, uses addresses of its own, and leaves the cluster as it found it.

mod conflict;
mod cost;
mod crowd;
mod dual_stack;
mod exhaustion;
mod guide;
mod handover;
mod ledger;
pub mod lock;
pub mod migration;
mod node_failure;
mod owners;
mod stateful;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::lab::{Lab, Row, address, node_of, pool_rows};

/// A scenario and its name.
pub struct Scenario {
    /// A sentence.
    pub name: &'static str,
    run: for<'a> fn(&'a Lab, &'a str) -> BoxFuture<'a, Result<()>>,
}

macro_rules! scenarios {
    ($($name:literal => $run:path),* $(,)?) => {
        /// All of them, in the order in which they run.
        pub fn all() -> Vec<Scenario> {
            vec![$(Scenario { name: $name, run: |lab, namespace| Box::pin($run(lab, namespace)) }),*]
        }
    };
}

scenarios! {
    "the_guide_works_as_written_and_a_fixed_address_moves_with_its_pod" => guide::walk_through,
    "scaled_to_zero_and_back_a_deployment_has_its_address_again" => guide::to_zero_and_back,
    "bad_annotations_are_refused_in_the_pods_events_and_give_no_address" => guide::bad_annotations,
    "each_pod_of_a_statefulset_has_the_nth_address_of_the_list" => stateful::three_with_a_list,
    "a_second_owner_is_refused_and_told_who_has_the_address" => conflict::two_owners,
    "a_rolling_update_that_waits_for_itself_is_told_the_remedy" => conflict::surge,
    "the_guides_deployment_is_updated_several_times_and_rolled_back" => handover::guide,
    "a_wrong_image_and_a_budget_stop_an_update_and_say_so" => handover::stopped,
    "the_pods_of_an_update_are_handed_over_one_at_a_time" => handover::several,
    "the_surge_of_a_daemonset_has_the_address_of_its_node_handed_over" => handover::daemon_set,
    "an_exhausted_range_says_so_and_recovers" => exhaustion::range,
    "under_strict_affinity_a_foreign_block_is_named" => exhaustion::strict_affinity,
    "a_call_on_a_warm_node_costs_at_most_nine_reads_and_two_writes" => cost::of_a_warm_node,
    "in_dual_stack_a_pod_has_both_addresses_or_none" => dual_stack::both_families,
    "the_pods_of_a_daemonset_share_its_list" => owners::daemon_set,
    "a_job_has_its_address_until_its_pod_has_finished" => owners::jobs,
    "two_deployments_that_name_one_owner_pass_its_address_on" => owners::named,
    "after_a_forced_deletion_on_a_living_node_the_address_moves_once" => owners::forced,
    "claims_as_kubernetes_objects_keep_the_contract" => ledger::of_objects,
    "without_etcd_a_fixed_address_is_kept_by_a_kubernetes_object" => ledger::without_etcd,
    "claims_restored_from_an_older_backup_or_lost_give_no_address_away" => ledger::restored,
    "two_hundred_pods_at_once_on_twenty_nodes_share_no_address_and_give_all_back" => crowd::at_once,
    "the_address_of_a_killed_node_moves_once_and_the_node_comes_back_clean" => node_failure::killed_and_back,
}

impl Scenario {
    /// Runs it in a fresh namespace, which is removed afterwards, and looks whether the records are sound.
    ///
    /// # Errors
    /// What was not as it must be.
    pub async fn run(&self, lab: &Lab) -> Result<()> {
        let words: Vec<&str> = self.name.split('_').collect();
        let namespace = lab.namespace(&words[..words.len().min(6)].join("-")).await?;
        (self.run)(lab, &namespace).await?;
        lab.drop_namespace(&namespace).await?;
        audit(lab)
    }
}

/// `kube-ipam check` finds nothing, and with CALICO_BIN neither does `calicoctl ipam check`.
fn audit(lab: &Lab) -> Result<()> {
    let (sound, text) = lab.kube_ipam(&["check"])?;
    ensure!(sound, "kube-ipam check: {text}");
    if let Some(text) = lab.calicoctl(&["ipam", "check"])? {
        ensure!(
            text.contains("found 0 problems") || text.contains("Check complete; found 0"),
            "calicoctl ipam check: {text}"
        );
    }
    agrees_with_calicoctl(lab)
}

/// `kube-ipam show` and, with CALICO_BIN, `calicoctl ipam show` count the same.
fn agrees_with_calicoctl(lab: &Lab) -> Result<()> {
    let Some(text) = lab.calicoctl(&["ipam", "show"])? else { return Ok(()) };
    let theirs = pool_rows(&text)?;
    let shown = lab.kube_ipam_json(&["show"])?;
    let row = |pool: &Value| ["total", "inUse", "reserved", "free"].map(|key| pool[key].as_u64().unwrap_or_default());
    let ours: BTreeMap<String, Row> = shown
        .as_array()
        .context("show prints a list")?
        .iter()
        .map(|pool| (pool["cidr"].as_str().unwrap_or_default().to_owned(), row(pool)))
        .collect();
    ensure!(ours == theirs, "kube-ipam show says {ours:?}, calicoctl ipam show {theirs:?}");
    Ok(())
}

/// `kube-ipam show --ip` names the pod and its node.
fn assert_shown(lab: &Lab, pod: &Pod, address: IpAddr) -> Result<()> {
    let shown = lab.kube_ipam_json(&["show", "--ip", &address.to_string()])?;
    let expected = json!({"namespace": pod.namespace(), "name": pod.name_any()});
    let named = shown[0]["pod"] == expected && shown[0]["node"] == json!(node_of(pod)?);
    ensure!(named, "kube-ipam show --ip {address} does not name {expected} on {}: {shown}", node_of(pod)?);
    Ok(())
}

/// A Deployment of the guide's form.
fn deployment(namespace: &str, name: &str, replicas: usize, annotations: Value) -> Value {
    workload("Deployment", namespace, name, replicas, annotations, json!({"strategy": {"type": "Recreate"}}))
}

fn workload(kind: &str, namespace: &str, name: &str, replicas: usize, annotations: Value, more: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {
                    "terminationGracePeriodSeconds": 2,
                    "containers": [{"name": "nginx", "image": "nginx:latest", "imagePullPolicy": "IfNotPresent", "resources": {}}],
                },
            },
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

/// The annotations of the guide for one or more addresses.
fn fixed(addresses: &str) -> Value {
    json!({"kube-ipam.ip": addresses, "kube-ipam.netmask": "255.255.0.0", "kube-ipam.gateway": "10.244.0.1"})
}

/// A pod's address is on record for it, and on its own interface.
async fn assert_has(lab: &Lab, pod: &Pod, expected: IpAddr) -> Result<()> {
    let shown = address(pod)?;
    ensure!(shown == expected, "pod {} has {shown}, expected {expected}", pod.name_any());
    lab.assert_recorded(expected, pod).await?;
    assert_shown(lab, pod, expected)?;
    if let Some(addresses) = lab.interface(pod)? {
        ensure!(addresses.contains(&expected), "the interface of {} has {addresses:?}", pod.name_any());
    }
    if let Some(text) = lab.calicoctl(&["ipam", "show", "--ip", &expected.to_string()])? {
        ensure!(text.contains("is in use") && text.contains(&pod.name_any()), "calicoctl ipam show --ip: {text}");
    }
    Ok(())
}

/// A pod without wishes has an address of the range.
fn assert_random(pod: &Pod) -> Result<IpAddr> {
    let found = address(pod)?;
    let (low, high): (IpAddr, IpAddr) = ("10.244.0.10".parse()?, "10.244.0.200".parse()?);
    ensure!((low..=high).contains(&found), "{found} is not in the range {low} to {high}");
    Ok(found)
}

fn only<T>(mut items: Vec<T>) -> Result<T> {
    ensure!(items.len() == 1, "{} instead of one", items.len());
    items.pop().context("one")
}

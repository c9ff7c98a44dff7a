//! Claims as Kubernetes objects, on whatever API server the lab has, beside whatever ledger its nodes use.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube_ipam::store::ipclaim::IPClaimLedger;
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Ledger as _, Swap, conformance};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{assert_has, deployment, fixed, only};
use crate::lab::{Lab, Ledger, MainPlugin, Network, address};

const FIXED: &str = "10.244.0.242";

/// The suite that every ledger passes, in a network of its own.
pub(super) async fn of_objects(lab: &Lab, _namespace: &str) -> Result<()> {
    let directory = TempDir::with_prefix("ledger-")?;
    let kubeconfig = directory.path().join("kubeconfig");
    lab.write_counted_kubeconfig(&kubeconfig)?;
    for network in ["conformance", "Not_a.label"] {
        let ledger = IPClaimLedger::new(KubeStore::from_kubeconfig(&kubeconfig, None).await?, network);
        conformance::ledger(&ledger, "10.0.0.1".parse()?).await?;
        conformance::ledger(&ledger, "fd00::1".parse()?).await?;
        conformance::one_claimant_wins(&ledger, "10.0.0.2".parse()?, 8).await?;
    }
    Ok(())
}

/// Nodes whose configuration names no etcd keep a fixed address in an IPClaim, which kubectl shows.
pub(super) async fn without_etcd(lab: &Lab, namespace: &str) -> Result<()> {
    lab.configure(&Network { ledger: Ledger::Objects, ..lab.network() }).await?;
    let outcome = kept(lab, namespace).await;
    lab.configure(&lab.network()).await?;
    outcome
}

async fn kept(lab: &Lab, namespace: &str) -> Result<()> {
    let expected: IpAddr = FIXED.parse()?;
    lab.create(deployment(namespace, "objects", 1, fixed(FIXED))).await?;
    let first = only(lab.running(namespace, "objects", 1).await?)?;
    assert_has(lab, &first, expected).await?;
    if lab.main_plugin() != MainPlugin::StandIn {
        let columns = columns(lab).await?;
        ensure!(columns == ["Name", "Address", "Owner", "Holder", "Node", "Age"], "kubectl shows {columns:?}");
    }
    // The next pod has to wait for this one's end, and hears of it by a watch.
    lab.delete_pod(&first).await?;
    assert_has(lab, &only(lab.running(namespace, "objects", 1).await?)?, expected).await?;
    let (_, text) = lab.kube_ipam(&["claims", "-o", "json", "--ledger", "objects"])?;
    let claims: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
    let claim = claims.iter().find(|claim| claim["address"] == FIXED).context("no claim on it")?;
    ensure!(claim["owner"]["name"] == "objects" && claim["generation"] == 2, "{claim}");
    lab.scale("Deployment", namespace, "objects", 0).await?;
    lab.none_left(namespace, "objects").await?;
    // The lab's own ledger may be another one, in which nothing accounts for the reservation.
    let (well, text) = lab.kube_ipam(&["release", "--claim", FIXED, "--yes", "--ledger", "objects"])?;
    ensure!(well, "{text}");
    Ok(())
}

const RESTORED: &str = "10.244.0.243";
/// How long a claim's holder is looked at after it was rewritten: several attempts of the pod that is refused.
const WATCHED: Duration = Duration::from_secs(6);

/// Claims that were restored from an older backup, and claims that were lost, give the address of a pod that runs to
/// nobody, and are rewritten from Calico's block; the update that then asks for it finishes by its usual remedy.
pub(super) async fn restored(lab: &Lab, namespace: &str) -> Result<()> {
    let expected: IpAddr = RESTORED.parse()?;
    let ledger = lab.claims().await?;
    let mut database = deployment(namespace, "restored", 1, fixed(RESTORED));
    database["spec"]["strategy"] = json!({"type": "RollingUpdate"});
    lab.create(database.clone()).await?;
    let first = only(lab.running(namespace, "restored", 1).await?)?;
    let backup = ledger.read(expected).await?.context("no claim")?.value;
    lab.delete_pod(&first).await?;
    let second = only(lab.running(namespace, "restored", 1).await?)?;
    assert_has(lab, &second, expected).await?;

    let older = ledger.read(expected).await?.context("no claim")?;
    ensure!(older.value.generation > backup.generation, "the address has not passed on: {older:?}");
    let written = ledger.swap(expected, Some(older.revision), Some(&backup)).await?;
    ensure!(matches!(written, Swap::Done(_)), "somebody wrote the claim of a pod that runs");
    lab.merge(&database, json!({"spec": {"template": {"metadata": {"annotations": {"revision": "2"}}}}})).await?;
    let holds = || async {
        let holder = ledger.read(expected).await?.and_then(|claim| claim.value.holder);
        Ok(holder.is_some_and(|holder| Some(holder.pod_uid) == second.uid()).then_some(()))
    };
    lab.until("the restored claim names the pod that runs", holds).await?;
    keeps(lab, namespace, &second, expected).await?;

    let lost = ledger.read(expected).await?.context("no claim")?;
    let written = ledger.swap(expected, Some(lost.revision), None).await?;
    ensure!(matches!(written, Swap::Done(_)), "somebody wrote the claim of a pod that runs");
    lab.until("the lost claim names the pod that runs", holds).await?;
    keeps(lab, namespace, &second, expected).await?;

    lab.merge(&database, json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}}))
        .await?;
    let revised = lab.until("the second revision runs", || async {
        let pods = lab.pods(namespace, "restored").await?;
        let new = pods.iter().find(|pod| pod.uid() != second.uid() && address(pod).is_ok());
        Ok(new.filter(|_| pods.len() == 1).cloned())
    });
    assert_has(lab, &revised.await?, expected).await
}

/// The pod is the only one with the address, by the block and by all that pods say, all the time.
async fn keeps(lab: &Lab, namespace: &str, pod: &Pod, expected: IpAddr) -> Result<()> {
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        lab.assert_recorded(expected, pod).await?;
        for other in lab.pods(namespace, "restored").await? {
            ensure!(other.uid() == pod.uid() || address(&other).is_err(), "{} has an address, too", other.name_any());
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// The columns of the table that an API server makes for kubectl.
async fn columns(lab: &Lab) -> Result<Vec<String>> {
    let request = http::Request::get("/apis/kube-ipam.io/v1alpha1/ipclaims")
        .header(http::header::ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())?;
    let table: Value = lab.client().request(request).await?;
    let rows = table["rows"].as_array().context("a table has rows")?;
    let cells = rows.iter().find(|row| row["cells"][1] == FIXED).context("no row for the address")?;
    ensure!(cells["cells"][2].as_str().is_some_and(|owner| owner.starts_with("Deployment ")), "{cells}");
    let columns = table["columnDefinitions"].as_array().context("a table has columns")?;
    Ok(columns.iter().filter_map(|column| Some(column["name"].as_str()?.to_owned())).collect())
}

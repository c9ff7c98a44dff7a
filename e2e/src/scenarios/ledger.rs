//! Claims as Kubernetes objects, on whatever API server the lab has, beside whatever ledger its nodes use.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use kube_ipam::store::conformance;
use kube_ipam::store::ipclaim::IPClaimLedger;
use kube_ipam::store::kube::KubeStore;
use serde_json::Value;
use tempfile::TempDir;

use super::{assert_has, deployment, fixed, only};
use crate::lab::{Lab, Ledger, MainPlugin, Network};

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

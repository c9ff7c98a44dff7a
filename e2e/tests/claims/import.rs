//! `import`: a list of wanted addresses, all of it or nothing.

use std::process::Command;

use e2e::embedded::apiserver::{Fault, Match};
use e2e::lab::{Lab, Ledger};
use serde_json::{Value, json};

use super::{address, claims, deployment, fixed, only, records, run};

struct List(tempfile::TempDir);

impl List {
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

#[tokio::test]
async fn a_list_is_claimed_reserved_and_had_by_the_pods_that_ask() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    let list = List(tempfile::tempdir().unwrap());
    lab.create(deployment("web", json!({}))).await.unwrap();
    only(&lab, "web").await;
    let csv = "address,namespace,kind,name,ordinal\n10.244.0.216,default,Deployment,web,\n\
               10.244.0.20,default,Owner,licence,\nfd00:10:244::30,default,StatefulSet,db,0\n";
    let file = list.write("list.csv", csv);
    let before = records(&lab);
    let said = run(&lab, true, &["import", &file, "--dry-run"]);
    assert!(said.contains("10.244.0.216") && said.contains("the owner does not exist yet"), "{said}");
    let said = run(&lab, false, &["import", &file]);
    assert!(said.contains("stdin is no terminal"), "{said}");
    assert_eq!(records(&lab), before, "nothing was written");
    let report = lab.kube_ipam_json(&["import", &file, "--yes"]).unwrap();
    assert_eq!((&report["done"], report["addresses"].as_array().unwrap().len()), (&json!(true), 3));
    let found = claims(&lab, "objects");
    assert_eq!(found.len(), 3);
    assert!(found.iter().all(|claim| claim.get("holder").is_none()), "{found:?}");
    // What is claimed without a pod is lawful: one note for the owner that does not exist yet.
    let ran = lab.kube_ipam_json(&["check"]).unwrap();
    assert_eq!((ran["violations"].as_array().unwrap().len(), ran["notes"].as_array().unwrap().len()), (0, 1));
    let shown = lab.kube_ipam_json(&["show", "--ip", "10.244.0.20"]).unwrap();
    assert_eq!(shown[0]["reservedBy"], json!(["kube-ipam-10-244-0-0-26"]));

    // Again, and by YAML: nothing to do.
    let yaml = "- {address: 10.244.0.216, namespace: default, kind: Deployment, name: web}\n";
    let revision = records(&lab);
    for file in [&file, &list.write("list.yaml", yaml)] {
        assert!(run(&lab, true, &["import", file, "--yes"]).contains("is claimed already"));
    }
    assert_eq!(records(&lab), revision);

    let asks = json!({"spec": {"template": {"metadata": {"annotations": fixed("10.244.0.216")}}}});
    lab.merge(&deployment("web", json!({})), asks).await.unwrap();
    lab.until("the pod has the address of the list", || async {
        let pods = lab.running("default", "web", 1).await?;
        Ok((address(&pods[0]) == "10.244.0.216").then_some(()))
    })
    .await
    .unwrap();
    // Another workload is told whose it is.
    lab.create(deployment("shop", fixed("10.244.0.20"))).await.unwrap();
    lab.event("default", "shop", &["10.244.0.20", "Owner default/licence"]).await.unwrap();
}

#[tokio::test]
async fn every_conflict_of_a_list_is_named_and_nothing_is_claimed() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    let list = List(tempfile::tempdir().unwrap());
    lab.create(deployment("web", json!({}))).await.unwrap();
    lab.create(deployment("wish", fixed("10.244.0.217"))).await.unwrap();
    let (web, _) = (only(&lab, "web").await, only(&lab, "wish").await);
    let csv = format!(
        "address,namespace,kind,name,ordinal\n10.244.0.216,default,Deployment,web,\n\
         10.244.0.217,default,Deployment,web,\n{},default,Deployment,shop,\n10.99.0.1,default,Deployment,web,\n\
         10.244.0.1,default,Deployment,web,\n10.244.0.216,default,Deployment,shop,\n10.244.0.218,default,Deploy,web,\n\
         10.244.1.20,default,Deployment,web,\n",
        address(&web)
    );
    let file = list.write("list.csv", &csv);
    let before = records(&lab);
    let allowed = json!({"metadata": {"annotations": {"kube-ipam.allowed": "10.244.0.0/24"}}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
    lab.merge(&namespace, allowed).await.unwrap();
    // The gateway can only be known by the network's configuration.
    let conflist = list.write("10-calico.conflist", &conflist().to_string());
    let (well, text) = lab.kube_ipam(&["import", &file, "--yes", "-o", "json", "--conflist", &conflist]).unwrap();
    assert!(!well, "{text}");
    let report: Value = serde_json::from_str(text.split("kube-ipam: nothing").next().unwrap()).unwrap();
    let problems = report["problems"].as_array().unwrap();
    let said: Vec<(u64, &str)> =
        problems.iter().map(|p| (p["place"].as_u64().unwrap(), p["why"].as_str().unwrap())).collect();
    let expected = [
        (3, "is claimed by Deployment default/wish"),
        (4, "is used by pod default/web-"),
        (5, "10.99.0.1 is outside of 10.244.0.0/16"),
        (5, "10.99.0.1 is not allowed in namespace default"),
        (6, "10.244.0.1 is the gateway of 10.244.0.0/16"),
        (7, "is asked for already, at 2"),
        (8, "kind \"Deploy\" is not known"),
        (9, "10.244.1.20 is not allowed in namespace default"),
    ];
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for ((place, why), (line, part)) in said.iter().zip(expected) {
        assert!(*place == line && why.contains(part), "{place}: {why}");
    }
    assert_eq!(records(&lab), before);
}

#[tokio::test]
async fn an_import_that_breaks_off_is_completed() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    let list = List(tempfile::tempdir().unwrap());
    lab.create(deployment("web", json!({}))).await.unwrap();
    only(&lab, "web").await;
    let lines: String = (20..24).map(|last| format!("10.244.1.{last},default,Deployment,web\n")).collect();
    let file = list.write("list.csv", &format!("address,namespace,kind,name\n{lines}"));
    let faults = lab.embedded_server().unwrap().faults();
    faults.on(
        Match::on("update", "ipreservations.crd.projectcalico.org"),
        Fault::Status { code: 403, retry_after: None },
        1,
    );
    let said = run(&lab, false, &["import", &file, "--yes"]);
    assert!(said.contains("10.244.1.21: repeat it to complete it"), "{said}");
    assert_eq!(claims(&lab, "objects").len(), 2);
    let said = run(&lab, true, &["import", &file, "--yes"]);
    assert_eq!(said.matches("is claimed already").count(), 1, "{said}");
    assert_eq!(claims(&lab, "objects").len(), 4);
    run(&lab, true, &["check"]);
}

fn conflist() -> Value {
    json!({"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [{
        "type": "calico", "datastore_type": "kubernetes", "kubernetes": {"kubeconfig": "/none"},
        "ipam": {"type": "kube-ipam", "name": "kube-subnet", "subnet": "10.244.0.0/16", "gateway": "10.244.0.1"},
    }]})
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = Command::new(e2e::tools::kube_ipam().unwrap())
        .args(["import", "/no/such.csv", "--yes"])
        .env_remove("CNI_COMMAND")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("/no/such.csv"), "{said}");
}

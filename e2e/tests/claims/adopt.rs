//! `adopt`: a random address becomes a fixed one while its pod runs, and is the next pod's.

use std::sync::Arc;

use e2e::embedded::apiserver::{Fault, Gate, Match};
use e2e::lab::{Lab, Ledger};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::{address, claims, deployment, fixed, next, only, records, run, workload};

const RESERVATIONS: &str = "ipreservations.crd.projectcalico.org";
const BLOCKS: &str = "ipamblocks.crd.projectcalico.org";

/// Runs the printed command's patch.
async fn apply(lab: &Lab, template: &Value) {
    let words: Vec<&str> = template["kubectl"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    let patch: Value = serde_json::from_str(words.last().unwrap()).unwrap();
    let (resource, name) = (words[1], words[2]);
    let kind = if resource.starts_with("deployment") { "Deployment" } else { "StatefulSet" };
    let object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "default"}});
    lab.merge(&object, patch).await.unwrap();
}

#[tokio::test]
async fn an_adopted_address_is_the_next_pods_with_an_agent_and_without() {
    for (agents, ledger) in [(false, Ledger::Objects), (true, Ledger::Objects), (false, Ledger::Etcd)] {
        let lab = Lab::embedded_on(agents, ledger).await.unwrap();
        lab.create(deployment("web", json!({}))).await.unwrap();
        let pod = only(&lab, "web").await;
        let (had, name) = (address(&pod), pod.name_any());
        let before = records(&lab);
        let said = run(&lab, true, &["adopt", &name, "--dry-run"]);
        assert!(said.contains(&had) && said.contains("becomes fixed") && said.contains("maxSurge"), "{said}");
        let said = run(&lab, false, &["adopt", &name]);
        assert!(said.contains("stdin is no terminal"), "{said}");
        assert_eq!(records(&lab), before, "nothing was written");

        let report = lab.kube_ipam_json(&["adopt", &name, "--yes"]).unwrap();
        assert_eq!(report["done"], true);
        run(&lab, true, &["check"]);
        let kind = if ledger == Ledger::Etcd { "etcd" } else { "objects" };
        let claim = claims(&lab, kind).remove(0);
        assert_eq!(claim["owner"]["kind"], "Deployment");
        assert_eq!(claim["holder"]["podUid"], json!(pod.uid()));
        let shown = lab.kube_ipam_json(&["show", "--ip", &had]).unwrap();
        assert_eq!(shown[0]["pod"]["name"], json!(name));
        // Asked again there is nothing to do.
        let revision = records(&lab);
        assert!(run(&lab, true, &["adopt", &name, "--yes"]).contains("is claimed already"));
        assert_eq!(records(&lab), revision);

        // Without the annotation the next pod has another address, and this one is kept from everybody.
        lab.scale("Deployment", "default", "web", 0).await.unwrap();
        lab.none_left("default", "web").await.unwrap();
        run(&lab, true, &["check"]);
        assert_eq!(claims(&lab, kind)[0].get("holder"), None, "its DEL gave it back to its owner");
        lab.scale("Deployment", "default", "web", 1).await.unwrap();
        let pod = only(&lab, "web").await;
        assert_ne!(address(&pod), had);

        apply(&lab, &report["templates"][0]).await;
        let renewed = lab.until("the pod has the adopted address", || async {
            let pods = lab.running("default", "web", 1).await?;
            Ok((address(&pods[0]) == had).then(|| pods[0].clone()))
        });
        let pod = renewed.await.unwrap();
        run(&lab, true, &["check"]);
        assert_eq!(address(&next(&lab, "web", &pod).await), had);
        run(&lab, true, &["check"]);
    }
}

#[tokio::test]
async fn the_pods_of_a_statefulset_keep_their_addresses_in_order() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    lab.create(workload("StatefulSet", "db", 2, json!({}))).await.unwrap();
    lab.running("default", "db", 2).await.unwrap();
    // One of them alone cannot be listed.
    let report = lab.kube_ipam_json(&["adopt", "db-1", "--dry-run"]).unwrap();
    assert_eq!(report["templates"][0]["annotation"], Value::Null);
    let report = lab.kube_ipam_json(&["adopt", "-l", "app=db", "--yes"]).unwrap();
    let mut pods = lab.running("default", "db", 2).await.unwrap();
    pods.sort_by_key(|pod: &Pod| pod.name_any());
    let had: Vec<String> = pods.iter().map(address).collect();
    assert_eq!(report["templates"][0]["annotation"], json!(had.join(",")));
    apply(&lab, &report["templates"][0]).await;
    for pod in &pods {
        // The embedded controller does not roll a set by itself.
        let current: Option<Pod> = Api::namespaced(lab.client(), "default").get_opt(&pod.name_any()).await.unwrap();
        if let Some(same) = current.filter(|current| current.uid() == pod.uid()) {
            lab.delete_pod(&same).await.unwrap();
        }
        lab.running("default", "db", 2).await.unwrap();
    }
    let renewed = lab.until("both have their addresses", || async {
        let mut pods = lab.running("default", "db", 2).await?;
        pods.sort_by_key(|pod: &Pod| pod.name_any());
        let asks = pods.iter().all(|pod| pod.annotations().contains_key("kube-ipam.ip"));
        Ok((asks && pods.iter().map(address).collect::<Vec<_>>() == had).then_some(()))
    });
    renewed.await.unwrap();
    run(&lab, true, &["check"]);
}

#[tokio::test]
async fn with_one_problem_nothing_is_adopted() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    lab.create(deployment("web", json!({}))).await.unwrap();
    lab.create(deployment("shop", json!({}))).await.unwrap();
    let (web, shop) = (only(&lab, "web").await, only(&lab, "shop").await);
    let list =
        lab_file("foreign.csv", &format!("address,namespace,kind,name\n{},other,Deployment,x\n", address(&shop)));
    // The address is in use, so a list cannot have it.
    let said = run(&lab, false, &["import", &list, "--yes"]);
    assert!(said.contains(&format!("kube-ipam adopt -n default {}", shop.name_any())), "{said}");
    // Somebody else's claim.
    lab.create(claim(&address(&shop), "x")).await.unwrap();
    let before = records(&lab);
    let said = run(&lab, false, &["adopt", &web.name_any(), &shop.name_any(), "--yes"]);
    assert!(said.contains("which Deployment default/x has claimed") && said.contains("nothing was adopted"), "{said}");
    assert_eq!(records(&lab), before);
    let said = run(&lab, false, &["adopt", "nobody", "--yes"]);
    assert!(said.contains("pod default/nobody does not exist"), "{said}");
    let said = run(&lab, false, &["adopt", "-l", "app=none", "--yes"]);
    assert!(said.contains("no pod of namespace default"), "{said}");
    // One that has a fixed address already is no problem, and nothing is done for it.
    lab.create(deployment("wish", fixed("10.244.0.217"))).await.unwrap();
    let wish = only(&lab, "wish").await;
    assert!(run(&lab, true, &["adopt", &wish.name_any(), "--yes"]).contains("is claimed already"));
}

fn claim(address: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "kube-ipam.io/v1alpha1", "kind": "IPClaim", "metadata": {
            "name": format!("kube-subnet.{}", address.replace('.', "-")), "labels": {"kube-ipam.io/network": "kube-subnet"},
        },
        "spec": {
            "network": "kube-subnet", "address": address, "generation": 2, "created": "2026-01-01T00:00:00Z",
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": owner},
        },
    })
}

fn lab_file(name: &str, text: &str) -> String {
    let path = std::env::temp_dir().join(format!("kube-ipam-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn an_adoption_that_breaks_off_is_completed() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    lab.create(deployment("web", json!({}))).await.unwrap();
    let pod = only(&lab, "web").await;
    let refusal = Fault::Status { code: 403, retry_after: None };
    let faults = lab.embedded_server().unwrap().faults();
    for (verb, kind) in [("create", "ipclaims.kube-ipam.io"), ("create", RESERVATIONS), ("update", BLOCKS)] {
        faults.on(Match::on(verb, kind), refusal.clone(), 1);
        let said = run(&lab, false, &["adopt", &pod.name_any(), "--yes"]);
        assert!(said.contains("repeat it to complete it") && said.contains("forbidden"), "{kind}: {said}");
    }
    run(&lab, false, &["check", "--settle", "0"]);
    run(&lab, true, &["adopt", &pod.name_any(), "--yes"]);
    run(&lab, true, &["check"]);
    assert_eq!(claims(&lab, "objects")[0]["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_goes_while_its_address_is_adopted_leaves_it_to_its_owner() {
    let lab = Arc::new(Lab::embedded_on(false, Ledger::Objects).await.unwrap());
    lab.create(deployment("web", json!({}))).await.unwrap();
    let pod = only(&lab, "web").await;
    let (name, had, gate) = (pod.name_any(), address(&pod), Gate::new());
    let faults = lab.embedded_server().unwrap().faults();
    faults.on(Match::on("create", RESERVATIONS), Fault::Hold(gate.clone()), 1);
    let adopting = tokio::task::spawn_blocking({
        let lab = lab.clone();
        move || lab.kube_ipam(&["adopt", &name, "--yes"]).unwrap()
    });
    gate.arrival().await;
    lab.scale("Deployment", "default", "web", 0).await.unwrap();
    lab.none_left("default", "web").await.unwrap();
    gate.open();
    let (well, said) = adopting.await.unwrap();
    assert!(!well && said.contains("has given") && said.contains("held by nobody"), "{said}");
    let claim = claims(&lab, "objects").remove(0);
    assert_eq!((&claim["address"], claim.get("holder")), (&json!(had), None));
    run(&lab, true, &["check"]);
}

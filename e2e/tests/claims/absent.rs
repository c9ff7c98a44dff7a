//! A cluster without the kind IPClaim and without etcd: random addresses are given, fixed ones refused.

use e2e::lab::{Lab, Ledger};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

use super::{address, claims, deployment, fixed, next, only, run};

#[tokio::test]
async fn without_the_kind_only_fixed_addresses_are_refused_and_with_it_they_are_had() {
    let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(lab.client());
    let name = "ipclaims.kube-ipam.io";
    crds.delete(name, &DeleteParams::default()).await.unwrap();
    lab.create(deployment("random", json!({}))).await.unwrap();
    let pod = only(&lab, "random").await;
    // Its DEL does without claims.
    next(&lab, "random", &pod).await;
    lab.create(deployment("wish", fixed("10.244.0.216"))).await.unwrap();
    let parts = ["the API server does not know the kind IPClaim", "yaml/ipclaims.yaml", "etcdConfig"];
    lab.event("default", "wish", &parts).await.unwrap();
    assert!(address_of_wish(&lab).await.is_none());
    let said = run(&lab, false, &["claims"]);
    assert!(said.contains("the API server does not know IPClaims") && said.contains("yaml/ipclaims.yaml"), "{said}");

    crds.create(&PostParams::default(), &kube_ipam::store::ipclaim::crd()).await.unwrap();
    assert_eq!(address(&only(&lab, "wish").await), "10.244.0.216");
    let all = claims(&lab, "objects");
    assert_eq!((all.len(), &all[0]["owner"]["name"]), (1, &json!("wish")));
    run(&lab, true, &["check"]);
}

async fn address_of_wish(lab: &Lab) -> Option<String> {
    let pods = lab.pods("default", "wish").await.unwrap();
    pods.iter().find_map(|pod| e2e::lab::address(pod).ok()).map(|address| address.to_string())
}

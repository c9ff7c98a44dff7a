//! Addresses that running pods have and no block records, and static pods whose mirror was made again.

#![allow(clippy::unwrap_used)]

mod common;

use calico::{IPAMBlock, IPAMHandle};
use common::town::{Town, report};
use common::{World, ip};
use k8s_openapi::api::core::v1::Pod;
use kube_ipam::collector::Kind;
use kube_ipam::store::Ledger as _;
use serde_json::json;

const FIXED: &str = "10.244.0.216";

/// As `kubectl delete ipamblock` does it.
async fn delete_block_of(town: &Town, address: &str) {
    let block = town.block_of(ip(address)).await;
    assert!(town.world.objects.remove::<IPAMBlock>(None, block.metadata.name.as_ref().unwrap()));
}

/// As `calicoctl ipam release --ip=<address>` does it, without a cooldown.
async fn release(town: &Town, address: &str) {
    let handle = town.world.allocated().await.into_iter().find(|(a, _)| *a == ip(address)).unwrap().1;
    town.change_block(ip(address), |block| assert!(block.spec.vacate(ip(address)))).await;
    assert!(town.world.objects.remove::<IPAMHandle>(None, &calico::handle_name(&handle)));
}

/// The pod of a Deployment is named `f`, and one without an annotation `r`.
async fn running() -> (Town, String) {
    let town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    let automatic = town.run(town.world.random("r"), "n1").await;
    (town, automatic.to_string())
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_released_under_its_pod_is_recorded_again() {
    let (mut town, automatic) = running().await;
    release(&town, FIXED).await;
    release(&town, &automatic).await;
    town.stays_for(90).await;
    let repairs = town.repairs(60, &[Kind::AllocationRestored, Kind::AllocationRestored]).await;
    assert!(repairs.iter().all(|repair| repair.detail.contains("no block recorded")), "{repairs:#?}");
    assert!(town.is_allocated(ip(FIXED)).await && town.is_allocated(ip(&automatic)).await);
    town.assert_clean().await;
    // The sandboxes' own DELs release them.
    town.del("n1", "f", "c-f").await;
    town.del("n1", "r", "c-r").await;
    assert_eq!(town.world.allocated().await, []);
    assert!(town.claim(FIXED).await.unwrap().holder.is_none());
    town.world.remove_pod("f");
    town.world.remove_pod("r");
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_was_deleted_is_made_again_with_what_its_pods_have() {
    let (mut town, automatic) = running().await;
    delete_block_of(&town, FIXED).await;
    if town.world.list::<IPAMBlock>().await.iter().any(|block| block.spec.cidr.contains(ip(&automatic))) {
        delete_block_of(&town, &automatic).await;
    }
    town.rounds_for(600).await;
    assert!(town.is_allocated(ip(FIXED)).await && town.is_allocated(ip(&automatic)).await);
    let next = town.run(town.world.random("next"), "n1").await;
    assert!(![FIXED, &automatic].contains(&next.to_string().as_str()));
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_between_two_sandboxes_stays_free() {
    let (mut town, automatic) = running().await;
    town.del("n1", "r", "c-r").await;
    town.stays_for(90).await;
    let next = town.add("n1", "r", "c-r-2").await.unwrap()[0].address;
    assert_ne!(next.to_string(), automatic);
    report(&town.world, town.pod("r"), "n1", &[next]);
    town.stays_for(900).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_surely_the_pods_is_not_recorded_for_it() {
    let (mut town, automatic) = running().await;
    release(&town, &automatic).await;
    // Not without the word of the node, nor of an address that no IPAM plugin gave.
    town.world.node("n1", "Unknown");
    town.stays_for(600).await;
    town.world.node("n1", "True");
    let mut pod = town.pod("r");
    pod.metadata.annotations.get_or_insert_default().insert("cni.projectcalico.org/ipAddrsNoIpam".into(), "[]".into());
    town.world.objects.put(&pod);
    town.stays_for(600).await;
    pod.metadata.annotations.as_mut().unwrap().clear();
    // Nor of one that two pods have.
    report(&town.world, pod, "n1", &[ip(&automatic)]);
    report(&town.world, town.world.random("s"), "n1", &[ip(&automatic)]);
    town.stays_for(600).await;
    town.world.remove_pod("s");
    town.repairs(600, &[Kind::AllocationRestored]).await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_another_workload_claims_is_not_recorded_for_a_pod() {
    let mut town = Town::new();
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.del("n1", "f", "c-f").await;
    town.world.remove_pod("f");
    report(&town.world, town.world.random("r"), "n1", &[ip(FIXED)]);
    town.stays_for(600).await;
}

// === static pods ===

const MANIFEST: &str = "05fa875cfaaaabf7b0560c0f62296d07";

/// The mirror of a static pod.
fn mirror(town: &Town, uid: &str) -> Pod {
    town.world.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "static-n1", "namespace": "default", "uid": uid,
            "annotations": {"kube-ipam.ip": FIXED, "kubernetes.io/config.mirror": MANIFEST},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-of-n1", "controller": true}],
        },
        "spec": {"nodeName": "n1"},
    }))
}

async fn add_static(town: &Town, container: &str) -> std::net::IpAddr {
    let (driver, net) = (town.driver(), town.world.net());
    let mut attachment = common::attachment(&net, "n1", "static-n1", container);
    attachment.pod.as_mut().unwrap().uid = Some(MANIFEST);
    driver.add(&attachment).await.unwrap()[0].address
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_keeps_its_address_when_its_mirror_is_made_again() {
    let mut town = Town::with(World::new());
    let pod = mirror(&town, "uid-1");
    let address = add_static(&town, "c").await;
    report(&town.world, pod, "n1", &[address]);
    assert_eq!(town.claim(FIXED).await.unwrap().holder.unwrap().pod_uid, MANIFEST);
    town.world.remove_pod("static-n1");
    report(&town.world, mirror(&town, "uid-2"), "n1", &[address]);
    town.stays_for(1200).await;
    town.assert_clean().await;
    // Its next sandbox, whose DEL never came, is the same pod's.
    assert_eq!(add_static(&town, "c-2").await, address);
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_names_a_static_pods_mirror_is_the_pods() {
    let mut town = Town::new();
    let pod = mirror(&town, "uid-1");
    let address = add_static(&town, "c").await;
    report(&town.world, pod, "n1", &[address]);
    // As releases up to 0.3 wrote it.
    let mut claim = town.world.claim(FIXED).await.unwrap();
    claim.value.holder.as_mut().unwrap().pod_uid = "uid-1".into();
    town.world.ledger.swap(ip(FIXED), Some(claim.revision), Some(&claim.value)).await.unwrap();
    town.stays_for(1200).await;
    town.assert_clean().await;
}

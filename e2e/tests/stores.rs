//! The stores' conformance suite against an API server and a real etcd.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::IpAddr;
use std::time::Duration;

use e2e::embedded::apiserver::{Fault, Match};
use e2e::embedded::{Cluster, Options};
use etcd_client::Permission;
use kube::api::{Api, Patch, PatchParams};
use kube_ipam::netconf::EtcdConfig;
use kube_ipam::store::etcd::EtcdLedger;
use kube_ipam::store::ipclaim::{IPClaim, IPClaimLedger, object_name};
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Failure, Ledger, Objects as _, Swap, conformance};
use serde_json::json;

async fn cluster(etcd: bool) -> Cluster {
    let options = Options { crds: e2e::crds(), etcd, without_controllers: true, ..Default::default() };
    Cluster::start(options).await.unwrap()
}

fn config(cluster: &Cluster) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![cluster.etcd().unwrap().url()],
        cert_file: None,
        key_file: None,
        ca_file: None,
        prefix: "/kube-ipam/v1".into(),
        username: None,
        password_file: None,
    }
}

#[tokio::test]
async fn objects_on_an_api_server_keep_the_contract() {
    let cluster = cluster(false).await;
    let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap();
    conformance::objects(&store, "net.one").await.unwrap();
    conformance::one_writer_wins(&store, "net.race", 8).await.unwrap();
}

#[tokio::test]
async fn a_long_list_is_read_in_pages_of_one_moment() {
    let cluster = cluster(false).await;
    let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap();
    for number in 0..1203 {
        let handle = calico::IPAMHandleSpec::new(format!("net.{number:04}")).object();
        store.create(&handle).await.unwrap();
    }
    let calls = cluster.server().calls();
    let mark = calls.mark();
    let listed: Vec<calico::IPAMHandle> = store.list("").await.unwrap();
    assert_eq!(calls.after(mark).len(), 3);
    let mut names: Vec<String> = listed.iter().map(|handle| handle.spec.handle_id.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!((listed.len(), names.len()), (1203, 1203));
    assert!(listed.iter().all(|handle| handle.metadata.managed_fields.is_none()));

    // The moment is forgotten before the second page: then the list is read as a whole.
    let resource = "ipamhandles.crd.projectcalico.org";
    cluster.server().faults().on(Match::on("list", resource), Fault::Delay(Duration::ZERO), 1);
    let expired = Fault::Status { code: 410, retry_after: None };
    let struck = cluster.server().faults().on(Match::on("list", resource), expired.clone(), 1);
    let mark = calls.mark();
    assert_eq!(store.list::<calico::IPAMHandle>("").await.unwrap().len(), 1203);
    assert_eq!((calls.after(mark).len(), struck.hits()), (3, 1));
    // A first page that is refused is no empty list.
    cluster.server().faults().on(Match::on("list", resource), expired, 1);
    assert!(store.list::<calico::IPAMHandle>("").await.is_err());
}

#[tokio::test]
async fn the_ledger_in_etcd_keeps_the_contract() {
    let cluster = cluster(true).await;
    let config = config(&cluster);
    let ledger = EtcdLedger::open(&config, "conformance").await.unwrap();
    conformance::ledger(&ledger, "10.0.0.1".parse().unwrap()).await.unwrap();
    conformance::one_claimant_wins(&ledger, "10.0.0.2".parse().unwrap(), 8).await.unwrap();
}

async fn ledger_of_objects(cluster: &Cluster, network: &str) -> IPClaimLedger {
    IPClaimLedger::new(KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap(), network)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn the_ledger_of_kubernetes_objects_keeps_the_contract() {
    let cluster = cluster(false).await;
    for network in ["conformance", "Not_a.label"] {
        let ledger = ledger_of_objects(&cluster, network).await;
        conformance::ledger(&ledger, ip("10.0.0.1")).await.unwrap();
        conformance::ledger(&ledger, ip("fd00::1")).await.unwrap();
        conformance::one_claimant_wins(&ledger, ip("10.0.0.2"), 8).await.unwrap();
    }
}

#[tokio::test]
async fn two_networks_do_not_see_each_others_claims() {
    let cluster = cluster(false).await;
    let (one, two) = (ledger_of_objects(&cluster, "one").await, ledger_of_objects(&cluster, "two").await);
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    for ledger in [&one, &two] {
        assert!(matches!(ledger.swap(claim.address, None, Some(&claim)).await.unwrap(), Swap::Done(_)));
    }
    let standing = one.read(claim.address).await.unwrap().unwrap();
    assert!(matches!(one.swap(claim.address, Some(standing.revision), None).await.unwrap(), Swap::Done(0)));
    assert_eq!((one.all().await.unwrap().len(), two.all().await.unwrap().len()), (0, 1));
}

#[tokio::test]
async fn what_others_put_on_an_ipclaim_outlives_our_writes() {
    let cluster = cluster(false).await;
    let ledger = ledger_of_objects(&cluster, "net").await;
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    ledger.swap(claim.address, None, Some(&claim)).await.unwrap();
    let api: Api<IPClaim> = Api::all(cluster.client("test").unwrap());
    let name = object_name("net", claim.address);
    let more = json!({"metadata": {"labels": {"team": "db"}}, "spec": {"later": 1, "holder": {"mood": "fine"}}});
    let stored = api.patch(&name, &PatchParams::default(), &Patch::Merge(more)).await.unwrap();
    // Seen by another process than the one that writes next, and so not known to it.
    let standing = ledger_of_objects(&cluster, "net").await.read(claim.address).await.unwrap().unwrap();
    assert_eq!(stored.metadata.resource_version, Some(standing.revision.to_string()));
    let renewed = ledger.swap(claim.address, Some(standing.revision), Some(&standing.value)).await.unwrap();
    assert!(matches!(renewed, Swap::Done(_)));
    let stored = api.get(&name).await.unwrap();
    assert_eq!(stored.metadata.labels.unwrap()["team"], "db");
    assert_eq!(stored.spec.claim.unknown["later"], 1);
    assert_eq!(stored.spec.claim.holder.unwrap().unknown["mood"], "fine");
}

#[tokio::test]
async fn an_ipclaim_that_says_another_address_than_its_name_is_named_and_not_believed() {
    let cluster = cluster(false).await;
    let ledger = ledger_of_objects(&cluster, "net").await;
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    ledger.swap(claim.address, None, Some(&claim)).await.unwrap();
    let api: Api<IPClaim> = Api::all(cluster.client("test").unwrap());
    let name = object_name("net", claim.address);
    let other = json!({"spec": {"address": "10.0.0.9"}});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(other)).await.unwrap();
    for error in [ledger.read(claim.address).await.unwrap_err(), ledger.all().await.unwrap_err()] {
        let said = error.to_string();
        assert!(said.contains(&name) && said.contains("the claim on 10.0.0.9 in network \"net\""), "{said}");
    }
}

#[tokio::test]
async fn a_cluster_without_the_kind_is_said_to_have_no_ledger() {
    let options = Options { crds: calico::crds(), without_controllers: true, ..Default::default() };
    let cluster = Cluster::start(options).await.unwrap();
    let ledger = ledger_of_objects(&cluster, "net").await;
    assert!(!ledger.is_served().await.unwrap());
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    let errors = [
        ledger.read(claim.address).await.unwrap_err(),
        ledger.all().await.unwrap_err(),
        ledger.swap(claim.address, None, Some(&claim)).await.unwrap_err(),
        ledger.swap(claim.address, Some(7), None).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.failure, Failure::NoLedger, "{error}");
    }
}

#[tokio::test]
async fn a_reply_that_is_lost_leaves_the_outcome_unknown_and_the_write_done() {
    let cluster = cluster(false).await;
    let ledger = ledger_of_objects(&cluster, "net").await;
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    let faults = cluster.server().faults();
    faults.on(Match::on("create", "ipclaims.kube-ipam.io"), Fault::LoseReplyAfterCommit, 1);
    let error = ledger.swap(claim.address, None, Some(&claim)).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unknown(_)), "{error}");
    let standing = ledger.read(claim.address).await.unwrap().unwrap();
    assert_eq!(standing.value, claim);
    faults.on(Match::on("delete", "ipclaims.kube-ipam.io"), Fault::LoseReplyAfterCommit, 1);
    let error = ledger.swap(claim.address, Some(standing.revision), None).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Unknown(_)), "{error}");
    assert_eq!(ledger.read(claim.address).await.unwrap(), None);
}

#[tokio::test]
async fn whoever_waits_for_a_change_neither_misses_it_nor_asks_without_pause_when_the_server_has_forgotten_much() {
    let cluster = cluster(false).await;
    let ledger = ledger_of_objects(&cluster, "net").await;
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    let Swap::Done(revision) = ledger.swap(claim.address, None, Some(&claim)).await.unwrap() else { panic!("lost") };
    let other = conformance::sample(ip("10.0.0.2"), "b");
    ledger.swap(other.address, None, Some(&other)).await.unwrap();
    cluster.server().compact();
    let waiting = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.changed(claim.address, revision).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "nothing has changed");
    ledger.swap(claim.address, Some(revision), None).await.unwrap();
    tokio::time::timeout(Duration::from_secs(3), waiting).await.unwrap().unwrap().unwrap();
    // What has changed before somebody begins to wait is heard of at once.
    cluster.server().compact();
    tokio::time::timeout(Duration::from_secs(3), ledger.changed(claim.address, revision)).await.unwrap().unwrap();
}

/// From here on nobody gets in without a password; `ipam` may do what it likes under our prefix only.
async fn ask_for_passwords(cluster: &Cluster) {
    let mut etcd = cluster.etcd().unwrap().client().await.unwrap();
    etcd.user_add("root", "r00t", None).await.unwrap();
    etcd.user_grant_role("root", "root").await.unwrap();
    etcd.role_add("claims").await.unwrap();
    etcd.role_grant_permission("claims", Permission::read_write("/kube-ipam/v1/").with_prefix()).await.unwrap();
    etcd.user_add("ipam", "s3 cret", None).await.unwrap();
    etcd.user_grant_role("ipam", "claims").await.unwrap();
    etcd.auth_enable().await.unwrap();
}

#[tokio::test]
async fn an_etcd_with_passwords_lets_in_whom_the_configuration_names() {
    let cluster = cluster(true).await;
    ask_for_passwords(&cluster).await;
    let address = "10.0.0.1".parse().unwrap();

    let nobody = EtcdLedger::open(&config(&cluster), "net").await.unwrap();
    let error = nobody.read(address).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Refused(_) | Failure::Denied(_)), "{error}");

    let file = cluster.directory().join("password");
    let named = EtcdConfig { username: Some("ipam".into()), password_file: Some(file.clone()), ..config(&cluster) };
    std::fs::write(&file, "wrong\n").unwrap();
    let error = EtcdLedger::open(&named, "net").await.err().unwrap();
    assert!(matches!(&error.failure, Failure::Denied(why) if why.contains("etcdUsername ipam")), "{error}");

    std::fs::write(&file, "s3 cret\n").unwrap();
    let ledger = EtcdLedger::open(&named, "net").await.unwrap();
    conformance::ledger(&ledger, address).await.unwrap();
}

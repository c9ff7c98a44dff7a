//! The stores' conformance suite against an API server and a real etcd.
#![allow(clippy::unwrap_used, missing_docs)]

use e2e::embedded::{Cluster, Options};
use etcd_client::Permission;
use kube_ipam::netconf::EtcdConfig;
use kube_ipam::store::etcd::EtcdLedger;
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Failure, Ledger as _, conformance};

async fn cluster(etcd: bool) -> Cluster {
    let options = Options { crds: calico::crds(), etcd, without_controllers: true, ..Default::default() };
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
async fn the_ledger_in_etcd_keeps_the_contract() {
    let cluster = cluster(true).await;
    let config = config(&cluster);
    let ledger = EtcdLedger::open(&config, "conformance").await.unwrap();
    conformance::ledger(&ledger, "10.0.0.1".parse().unwrap()).await.unwrap();
    conformance::one_claimant_wins(&ledger, "10.0.0.2".parse().unwrap(), 8).await.unwrap();
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

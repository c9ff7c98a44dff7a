//! The stores' conformance suite against an API server and a real etcd.
#![allow(clippy::unwrap_used)]

use e2e::embedded::{Cluster, Options};
use kube_ipam::netconf::EtcdConfig;
use kube_ipam::store::conformance;
use kube_ipam::store::etcd::EtcdLedger;
use kube_ipam::store::kube::KubeStore;

async fn cluster(etcd: bool) -> Cluster {
    let options = Options { crds: calico::crds(), etcd, without_controllers: true, ..Default::default() };
    Cluster::start(options).await.unwrap()
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
    let config = EtcdConfig {
        endpoints: vec![cluster.etcd().unwrap().url()],
        cert_file: None,
        key_file: None,
        ca_file: None,
        prefix: "/kube-ipam/v1".into(),
        username: None,
        password_file: None,
    };
    let ledger = EtcdLedger::open(&config, "conformance").await.unwrap();
    conformance::ledger(&ledger, "10.0.0.1".parse().unwrap()).await.unwrap();
    conformance::one_claimant_wins(&ledger, "10.0.0.2".parse().unwrap(), 8).await.unwrap();
}

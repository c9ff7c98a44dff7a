//! The stores' conformance suite against an API server and a real etcd.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calico::{
    Affinity, ApiGroup, BlockAffinity, ClusterInformation, ClusterInformationSpec, IPAMConfig, IPAMConfigSpec, IPPool,
};
use e2e::embedded::apiserver::{Fault, Match};
use e2e::embedded::{Cluster, Options};
use etcd_client::Permission;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_ipam::claim::Claim;
use kube_ipam::netconf::EtcdConfig;
use kube_ipam::store::cluster::ClusterId;
use kube_ipam::store::etcd::EtcdLedger;
use kube_ipam::store::group::of_cluster;
use kube_ipam::store::ipclaim::{IPClaim, IPClaimLedger, object_name};
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Failure, Group, Ledger, Objects as _, Swap, conformance};
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

/// Which cluster it is, as a process of it finds out.
async fn id(cluster: &Cluster) -> Arc<ClusterId> {
    Arc::new(ClusterId::new(KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap()))
}

#[tokio::test]
async fn objects_on_an_api_server_keep_the_contract() {
    let cluster = cluster(false).await;
    let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap();
    conformance::objects(&store, "net.one").await.unwrap();
    conformance::one_writer_wins(&store, "net.race", 8).await.unwrap();
}

/// A cluster with Calico's objects in these groups.
async fn cluster_of(groups: &[ApiGroup]) -> Cluster {
    let crds = groups.iter().flat_map(|group| group.crds()).collect();
    Cluster::start(Options { crds, without_controllers: true, ..Default::default() }).await.unwrap()
}

/// What was asked since, as `verb resource`.
fn asked(cluster: &Cluster, mark: usize) -> Vec<String> {
    let calls = cluster.server().calls().after(mark).into_iter();
    calls.map(|call| format!("{} {}", call.verb, call.resource)).collect()
}

#[tokio::test]
async fn objects_in_the_newer_group_keep_the_contract_and_have_its_shape() {
    let cluster = cluster_of(&[ApiGroup::V3]).await;
    let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap().in_group(Group::default());
    conformance::objects(&store, "net.one").await.unwrap();
    conformance::one_writer_wins(&store, "net.race", 8).await.unwrap();
    assert_eq!(store.group().known(), Some(ApiGroup::V3));

    let affinity = BlockAffinity::pending(&Affinity::host("n1"), &"10.244.0.0/26".parse().unwrap());
    let stored = store.create(&affinity).await.unwrap();
    assert!(store.replace(&stored.marked_deleted()).await.unwrap().is_deleted());
    let config = IPAMConfigSpec { strict_affinity: true, ..Default::default() };
    store.create(&IPAMConfig::new("default", config)).await.unwrap();
    assert!(store.get::<IPAMConfig>(None, "default").await.unwrap().unwrap().spec.strict_affinity);
    assert_eq!(store.list::<IPAMConfig>("").await.unwrap().len(), 1);
    let objects = cluster.server().snapshot();
    let affinity = &objects["blockaffinities.projectcalico.org/n1-10-244-0-0-26"];
    assert_eq!(
        (&affinity["apiVersion"], &affinity["spec"]["deleted"], &affinity["metadata"]["annotations"]),
        (&json!("projectcalico.org/v3"), &json!(true), &json!(null))
    );
    let config = &objects["ipamconfigurations.projectcalico.org/default"];
    assert_eq!((&config["kind"], &config["spec"]["strictAffinity"]), (&json!("IPAMConfiguration"), &json!(true)));
    let error = store.create(&IPAMConfig::new("default", Default::default())).await.unwrap_err();
    assert_eq!((error.object.as_str(), &error.failure), ("ipamconfigurations default", &Failure::Exists));
}

#[tokio::test]
async fn the_group_is_found_by_the_definitions_and_where_v1_is_served_no_request_is_made_for_it() {
    use ApiGroup::{Crd, V3};
    for (groups, found) in [(&[Crd][..], Crd), (&[Crd, V3], Crd), (&[V3], V3)] {
        let cluster = cluster_of(groups).await;
        let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap().in_group(Group::default());
        let mark = cluster.server().calls().mark();
        // Reads at once, as an ADD makes them: something that is not there, a list, something that is not Calico's.
        let (config, pools, node) = tokio::join!(
            store.get::<IPAMConfig>(None, "default"),
            store.list::<IPPool>(""),
            store.get::<Node>(None, "n1")
        );
        assert!(config.unwrap().is_none() && pools.unwrap().is_empty() && node.unwrap().is_none());
        assert_eq!(store.group().known(), Some(found), "{groups:?}");
        let definitions = |calls: &[String]| calls.iter().filter(|call| call.contains("customresource")).count();
        let calls = asked(&cluster, mark);
        assert_eq!((definitions(&calls), calls.len()), if found == Crd { (0, 3) } else { (1, 6) }, "{calls:?}");
        let mark = cluster.server().calls().mark();
        store.list::<IPPool>("").await.unwrap();
        assert_eq!(asked(&cluster, mark), [format!("list ippools.{}", found.group())]);
    }
}

#[tokio::test]
async fn without_either_group_the_kind_is_missing_and_nothing_is_decided() {
    let cluster = cluster_of(&[]).await;
    let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap().in_group(Group::default());
    for _ in 0..2 {
        let error = store.list::<IPPool>("").await.unwrap_err();
        assert_eq!((error.failure, store.group().known()), (Failure::NoKind, None));
    }
    // Calico comes later.
    let crds = Api::<CustomResourceDefinition>::all(cluster.client("test").unwrap());
    for crd in ApiGroup::V3.crds() {
        crds.create(&Default::default(), &crd).await.unwrap();
    }
    assert!(store.list::<IPPool>("").await.unwrap().is_empty());
    assert_eq!(store.group().known(), Some(ApiGroup::V3));
}

#[tokio::test]
async fn what_keeps_the_definitions_from_being_asked_for_is_told() {
    let cluster = cluster_of(&[ApiGroup::V3]).await;
    let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap().in_group(Group::default());
    let asks = Match::on("get", "customresourcedefinitions.apiextensions.k8s.io");
    cluster.server().faults().on(asks, Fault::Status { code: 403, retry_after: None }, 1);
    let error = store.list::<IPPool>("").await.unwrap_err();
    assert!(matches!(error.failure, Failure::Denied(_)), "{error}");
    assert!(store.list::<IPPool>("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_cluster_has_moved_once_the_older_group_is_locked_and_the_newer_one_is_not() {
    use ApiGroup::{Crd, V3};
    let ready = |ready| ClusterInformationSpec { datastore_ready: ready, ..Default::default() };
    // What ClusterInformation says in the older and in the newer group; none: there is no such object.
    for (groups, older, newer, found) in [
        (&[Crd][..], None, None, Some(Crd)),
        (&[V3], None, None, Some(V3)),
        (&[Crd, V3], Some(true), None, Some(Crd)),
        (&[Crd, V3], Some(true), Some(false), Some(Crd)),
        (&[Crd, V3], Some(false), None, None),
        (&[Crd, V3], Some(false), Some(false), None),
        (&[Crd, V3], Some(false), Some(true), Some(V3)),
        (&[Crd, V3], Some(true), Some(true), None),
        (&[Crd, V3], None, None, None),
        (&[Crd, V3], None, Some(false), None),
        (&[Crd, V3], None, Some(true), Some(V3)),
    ] {
        let cluster = cluster_of(groups).await;
        let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap();
        for (group, ready_there) in [(Crd, older), (V3, newer)] {
            if ready_there.is_some() {
                let information = ClusterInformation::new("default", ready(ready_there));
                store.in_group(group.into()).create(&information).await.unwrap();
            }
        }
        assert_eq!(of_cluster(&store).await.unwrap(), found, "{groups:?} {older:?} {newer:?}");
    }
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
    let ledger = EtcdLedger::open(&config, "conformance", &id(&cluster).await).await.unwrap();
    conformance::ledger(&ledger, "10.0.0.1".parse().unwrap()).await.unwrap();
    conformance::one_claimant_wins(&ledger, "10.0.0.2".parse().unwrap(), 8).await.unwrap();
}

/// Two clusters that keep their claims in the etcd of the first, both under the default prefix.
struct Shared {
    one: Cluster,
    two: Cluster,
}

impl Shared {
    async fn start() -> Self {
        let start = |etcd| async move {
            let (crds, nodes) = (e2e::crds(), vec!["n1".to_owned()]);
            Cluster::start(Options { crds, nodes, etcd, without_controllers: true, ..Default::default() })
                .await
                .unwrap()
        };
        let (one, two) = tokio::join!(start(true), start(false));
        Self { one, two }
    }

    async fn ledger(&self, cluster: &Cluster) -> EtcdLedger {
        EtcdLedger::open(&config(&self.one), "net", &id(cluster).await).await.unwrap()
    }

    async fn ledgers(&self) -> (EtcdLedger, EtcdLedger) {
        (self.ledger(&self.one).await, self.ledger(&self.two).await)
    }

    /// What etcd has under a key, and the revision of its last write of anything.
    async fn stored(&self, key: &str) -> (Option<String>, i64) {
        let mut etcd = self.one.etcd().unwrap().client().await.unwrap();
        let answer = etcd.get(key, None).await.unwrap();
        let value = answer.kvs().first().map(|pair| pair.value_str().unwrap().to_owned());
        (value, answer.header().unwrap().revision())
    }

    async fn marker(&self) -> Option<String> {
        self.stored(MARKER).await.0
    }

    /// Writes a claim as a version did that knew no marker.
    async fn put_old(&self, claim: &Claim) {
        let mut etcd = self.one.etcd().unwrap().client().await.unwrap();
        let key = format!("/kube-ipam/v1/net/claims/{}", claim.address);
        etcd.put(key, serde_json::to_vec(claim).unwrap(), None).await.unwrap();
    }

    /// A claim whose holder is on node n1 of `cluster`.
    async fn held_in(&self, cluster: &Cluster, address: &str) -> Claim {
        let node: Node = Api::all(cluster.client("test").unwrap()).get("n1").await.unwrap();
        let mut claim = conformance::sample(ip(address), "a");
        claim.holder.as_mut().unwrap().node_uid = node.metadata.uid;
        claim
    }

    /// Every call on a ledger is refused alike, and writes nothing.
    async fn assert_refused(&self, ledger: &EtcdLedger, address: &str, words: &[&str]) {
        let (address, before) = (ip(address), self.stored(MARKER).await);
        let claim = conformance::sample(address, "intruder");
        let standing = self.revision(address).await;
        for error in [
            ledger.read(address).await.unwrap_err(),
            ledger.all().await.unwrap_err(),
            ledger.swap(address, None, Some(&claim)).await.unwrap_err(),
            ledger.swap(address, standing, Some(&claim)).await.unwrap_err(),
            ledger.swap(address, standing, None).await.unwrap_err(),
        ] {
            let said = error.to_string();
            assert!(matches!(error.failure, Failure::Foreign(_)) && !error.is_transient(), "{said}");
            assert!(words.iter().all(|word| said.contains(word)) && said.contains("etcdPrefix"), "{said}");
        }
        assert_eq!(self.stored(MARKER).await, before);
    }

    async fn revision(&self, address: IpAddr) -> Option<i64> {
        let mut etcd = self.one.etcd().unwrap().client().await.unwrap();
        let answer = etcd.get(format!("/kube-ipam/v1/net/claims/{address}"), None).await.unwrap();
        answer.kvs().first().map(|pair| pair.mod_revision())
    }
}

const MARKER: &str = "/kube-ipam/v1/net/cluster";

#[tokio::test]
async fn a_ledger_in_etcd_is_of_the_cluster_that_first_writes_to_it() {
    let shared = Shared::start().await;
    let (one, two) = shared.ledgers().await;
    let (one_id, two_id) = (id(&shared.one).await, id(&shared.two).await);
    let uids = [one_id.uid().await.unwrap(), two_id.uid().await.unwrap()];
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    // Nobody has to write in order to read.
    for ledger in [&one, &two] {
        assert_eq!((ledger.read(claim.address).await.unwrap(), ledger.all().await.unwrap()), (None, Vec::new()));
    }
    assert_eq!(shared.marker().await, None);
    let Swap::Done(revision) = one.swap(claim.address, None, Some(&claim)).await.unwrap() else { panic!("lost") };
    assert_eq!(shared.marker().await.as_deref(), Some(uids[0]));
    shared.assert_refused(&two, "10.0.0.1", &uids).await;
    shared.assert_refused(&two, "10.0.0.2", &uids).await;
    assert!(matches!(one.swap(claim.address, Some(revision), None).await.unwrap(), Swap::Done(0)));
    // An empty ledger is still somebody's.
    shared.assert_refused(&two, "10.0.0.1", &uids).await;

    let elsewhere = EtcdConfig { prefix: "/kube-ipam/two".into(), ..config(&shared.one) };
    let elsewhere = EtcdLedger::open(&elsewhere, "net", &two_id).await.unwrap();
    conformance::ledger(&elsewhere, claim.address).await.unwrap();
    conformance::ledger(&one, claim.address).await.unwrap();
}

#[tokio::test]
async fn a_marker_costs_no_request_once_it_is_there() {
    let shared = Shared::start().await;
    let ledger = shared.ledger(&shared.one).await;
    let etcd = shared.one.etcd().unwrap();
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    ledger.swap(claim.address, None, Some(&claim)).await.unwrap();
    let (calls, before) = (shared.one.server().calls().mark(), etcd.requests().unwrap());
    let standing = ledger.read(claim.address).await.unwrap().unwrap();
    assert_eq!(ledger.all().await.unwrap(), std::slice::from_ref(&standing));
    ledger.swap(claim.address, Some(standing.revision), Some(&claim.released())).await.unwrap();
    ledger.swap(claim.address, Some(standing.revision), None).await.unwrap();
    assert_eq!(etcd.requests().unwrap() - before, 4);
    assert_eq!(shared.one.server().calls().after(calls).len(), 0);
}

#[tokio::test]
async fn claims_of_before_there_were_markers_are_of_the_cluster_whose_nodes_they_name() {
    let shared = Shared::start().await;
    let (one, two) = shared.ledgers().await;
    let one_id = id(&shared.one).await;
    let held = shared.held_in(&shared.one, "10.0.0.1").await;
    let idle = conformance::sample(ip("10.0.0.2"), "b").released();
    shared.put_old(&held).await;
    shared.put_old(&idle).await;
    // Even if both clusters have a workload of the owner's name.
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "main", "image": "none"}]}});
    shared.two.server().create("/api/v1/namespaces/default/pods", &pod).unwrap();
    let node_uid = held.holder.as_ref().unwrap().node_uid.clone().unwrap();
    shared.assert_refused(&two, "10.0.0.1", &["pod a", "node n1", &node_uid]).await;
    assert_eq!(shared.marker().await, None);

    assert_eq!(one.read(held.address).await.unwrap().unwrap().value, held);
    assert_eq!(shared.marker().await.as_deref(), Some(one_id.uid().await.unwrap()));
    assert_eq!(one.all().await.unwrap().len(), 2);
    shared.assert_refused(&two, "10.0.0.1", &[one_id.uid().await.unwrap()]).await;
}

#[tokio::test]
async fn claims_that_nobody_holds_are_of_the_cluster_that_has_an_owner_or_takes_the_first_of_them() {
    let shared = Shared::start().await;
    let (one, two) = shared.ledgers().await;
    let (one_id, two_id) = (id(&shared.one).await, id(&shared.two).await);
    let idle = conformance::sample(ip("10.0.0.1"), "a").released();
    shared.put_old(&idle).await;
    // Nothing tells. They can be read, but not removed, as the collector of either cluster would.
    let standing = two.read(idle.address).await.unwrap().unwrap();
    assert_eq!(two.all().await.unwrap(), std::slice::from_ref(&standing));
    let error = two.swap(idle.address, Some(standing.revision), None).await.unwrap_err();
    assert!(matches!(&error.failure, Failure::Foreign(why) if why.contains("unknown cluster")), "{error}");
    assert_eq!((shared.marker().await, two.all().await.unwrap().len()), (None, 1));

    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "main", "image": "none"}]}});
    shared.one.server().create("/api/v1/namespaces/default/pods", &pod).unwrap();
    assert_eq!(one.all().await.unwrap().len(), 1);
    assert_eq!(shared.marker().await.as_deref(), Some(one_id.uid().await.unwrap()));

    let mut etcd = shared.one.etcd().unwrap().client().await.unwrap();
    etcd.delete(MARKER, None).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(shared.one.client("test").unwrap(), "default");
    pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(matches!(two.swap(ip("10.0.0.2"), None, Some(&idle)).await.unwrap(), Swap::Done(_)));
    assert_eq!(shared.marker().await.as_deref(), Some(two_id.uid().await.unwrap()));
    assert!(one.all().await.is_err());
}

#[tokio::test]
async fn of_clusters_that_mark_a_ledger_at_the_same_time_exactly_one_gets_it() {
    let shared = Shared::start().await;
    let mut etcd = shared.one.etcd().unwrap().client().await.unwrap();
    let mut winners = [0, 0];
    for round in 0..20 {
        let (one, two) = shared.ledgers().await;
        let claims = [format!("10.0.{round}.1"), format!("10.0.{round}.2")].map(|a| conformance::sample(ip(&a), "a"));
        let (first, second) = tokio::join!(
            one.swap(claims[0].address, None, Some(&claims[0])),
            two.swap(claims[1].address, None, Some(&claims[1])),
        );
        let outcomes = [first, second];
        let won: Vec<usize> = (0..2).filter(|n| matches!(outcomes[*n], Ok(Swap::Done(_)))).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        let loser = outcomes[1 - won[0]].as_ref().unwrap_err();
        assert!(matches!(loser.failure, Failure::Foreign(_)), "{loser}");
        let ledger = [&one, &two][won[0]];
        assert_eq!(ledger.all().await.unwrap().len(), 1);
        winners[won[0]] += 1;
        etcd.delete("/kube-ipam/v1/net/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    }
    assert_eq!(winners.iter().sum::<usize>(), 20);
}

#[tokio::test]
async fn a_cluster_whose_kube_system_cannot_be_read_is_told_so() {
    let shared = Shared::start().await;
    let faults = shared.one.server().faults();
    let forbidden = Fault::Status { code: 403, retry_after: None };
    let struck = faults.on(Match::on("get", "namespaces"), forbidden, 1);
    let ledger = shared.ledger(&shared.one).await;
    let error = ledger.all().await.unwrap_err();
    assert_eq!(struck.hits(), 1);
    let said = error.to_string();
    assert!(matches!(error.failure, Failure::Unidentified(_)) && !error.is_transient(), "{said}");
    assert!(said.contains("namespaces kube-system") && said.contains("not allowed"), "{said}");
    // What passes by itself is tried again.
    let ledger = shared.ledger(&shared.one).await;
    faults.on(Match::on("get", "namespaces"), Fault::Status { code: 503, retry_after: None }, 1);
    let error = ledger.read(ip("10.0.0.1")).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(ledger.read(ip("10.0.0.1")).await.unwrap(), None);
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

/// A ledger of IPClaims with one claim, and that claim as an object, by its name.
async fn stored_claim(cluster: &Cluster) -> (IPClaimLedger, Claim, Api<IPClaim>, String) {
    let ledger = ledger_of_objects(cluster, "net").await;
    let claim = conformance::sample(ip("10.0.0.1"), "a");
    ledger.swap(claim.address, None, Some(&claim)).await.unwrap();
    let name = object_name("net", claim.address);
    (ledger, claim, Api::all(cluster.client("test").unwrap()), name)
}

#[tokio::test]
async fn what_others_put_on_an_ipclaim_outlives_our_writes() {
    let cluster = cluster(false).await;
    let (ledger, claim, api, name) = stored_claim(&cluster).await;
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
    let (ledger, claim, api, name) = stored_claim(&cluster).await;
    let other = json!({"spec": {"address": "10.0.0.9"}});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(other)).await.unwrap();
    // It costs itself alone, and what it might be the claim on is known.
    let sound = conformance::sample(ip("fd00::2"), "b");
    ledger.swap(sound.address, None, Some(&sound)).await.unwrap();
    let listed = ledger.listed().await.unwrap();
    assert_eq!((listed.claims[0].value.address, listed.unreadable[0].address), (sound.address, Some(claim.address)));
    assert_eq!((listed.claims.len(), listed.unreadable.len()), (1, 1));
    assert_eq!(ledger.all().await.unwrap(), listed.claims);
    for said in [ledger.read(claim.address).await.unwrap_err().to_string(), listed.unreadable[0].to_string()] {
        assert!(said.contains(&name) && said.contains("the claim on 10.0.0.9 in network \"net\""), "{said}");
    }
    assert!(listed.unreadable[0].remedy.contains(&format!("kubectl edit ipclaim {name}")), "{:?}", listed.unreadable);
}

#[tokio::test]
async fn an_ipclaim_whose_address_is_none_is_refused_by_the_definition() {
    let cluster = cluster(false).await;
    let (_, _, api, name) = stored_claim(&cluster).await;
    for none in ["10.244.0.999", "", "10.0.0", "cafe", "10.0.0.1/32", "fd00::x"] {
        let other = Patch::Merge(json!({"spec": {"address": none}}));
        let refused = api.patch(&name, &PatchParams::default(), &other).await.unwrap_err().to_string();
        assert!(refused.contains("spec.address"), "{none}: {refused}");
    }
    for good in ["10.0.0.9", "fd00::9"] {
        api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"address": good}}))).await.unwrap();
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

    let nobody = EtcdLedger::open(&config(&cluster), "net", &id(&cluster).await).await.unwrap();
    let error = nobody.read(address).await.unwrap_err();
    assert!(matches!(error.failure, Failure::Refused(_) | Failure::Denied(_)), "{error}");

    let file = cluster.directory().join("password");
    let named = EtcdConfig { username: Some("ipam".into()), password_file: Some(file.clone()), ..config(&cluster) };
    std::fs::write(&file, "wrong\n").unwrap();
    let error = EtcdLedger::open(&named, "net", &id(&cluster).await).await.err().unwrap();
    assert!(matches!(&error.failure, Failure::Denied(why) if why.contains("etcdUsername ipam")), "{error}");

    std::fs::write(&file, "s3 cret\n").unwrap();
    let ledger = EtcdLedger::open(&named, "net", &id(&cluster).await).await.unwrap();
    conformance::ledger(&ledger, address).await.unwrap();
}

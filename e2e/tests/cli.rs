//! The command line by its binary, with nothing but a node's conflist to go by: every class of violation is
//! found where it was planted, alone, and is gone after the repair; a release does what it shows.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use calico::{
    Affinity, AffinityState, ApiGroup, BlockAffinity, Holder, IPAMBlock, IPAMBlockSpec, IPAMHandle, IPAMHandleSpec,
    IPPool, IPReservation, IPReservationSpec,
};
use e2e::embedded::{Cluster, Options};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use kube_ipam::audit::Class;
use kube_ipam::claim::Claim;
use kube_ipam::conflist::plugin_conf;
use kube_ipam::driver::{Attachment, Driver, GatedDriver, PodRef};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::cluster::ClusterId;
use kube_ipam::store::etcd::EtcdLedger;
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Ledger as _, Object, Objects as _, Swap, Versioned};
use serde_json::{Value, json};
use tokio::time::Instant;

const FIXED: &str = "10.244.0.216";
/// Claimed, and held by nobody.
const UNHELD: &str = "10.244.0.217";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Every class that makes `check` fail.
const CLASSES: [Class; 20] = [
    Class::BlocksOverlap,
    Class::SharedAddress,
    Class::OthersAddress,
    Class::ClaimDisagrees,
    Class::ForeignHolder,
    Class::HolderGone,
    Class::FixedWithoutClaim,
    Class::ClaimNotReserved,
    Class::Unrecorded,
    Class::HandleCount,
    Class::BlockShape,
    Class::AffinityMismatch,
    Class::HalfDoneAffinity,
    Class::OutsidePools,
    Class::SubnetWithoutPool,
    Class::OutsideRange,
    Class::Leak,
    Class::DeletedLeftover,
    Class::ReservationWithoutClaim,
    Class::WrongFixed,
];

/// A cluster: a fixed pod and a random one on n1, a random one on n2, a fixed address that nobody holds.
struct Ground {
    cluster: Cluster,
    client: Client,
    store: KubeStore,
    ledger: EtcdLedger,
    net: NetConf,
    conflist: PathBuf,
}

/// What a run of the binary came to.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name_of(class: Class) -> String {
    serde_json::to_value(class).unwrap().as_str().unwrap().to_owned()
}

impl Ground {
    async fn prepare() -> Self {
        let options = Options {
            nodes: vec!["n1".into(), "n2".into()],
            crds: e2e::crds(),
            etcd: true,
            without_controllers: true,
            ..Options::default()
        };
        let cluster = Cluster::start(options).await.unwrap();
        let list = json!({"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [{
            "type": "calico", "datastore_type": "kubernetes", "kubernetes": {"kubeconfig": cluster.kubeconfig()},
            "ipam": {
                "type": "kube-ipam", "name": "kube-subnet", "etcdConfig": {"etcdURL": cluster.etcd().unwrap().url()},
                "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200",
                "gateway": "10.244.0.1", "waitSeconds": 1,
            },
        }]});
        let conflist = cluster.directory().join("10-calico.conflist");
        std::fs::write(&conflist, list.to_string()).unwrap();
        let net = NetConf::parse(&plugin_conf(&list, "kube-ipam").unwrap(), "kube-ipam").unwrap();
        let store = KubeStore::from_kubeconfig(cluster.kubeconfig(), None).await.unwrap();
        let cluster_id = Arc::new(ClusterId::new(store.clone()));
        let etcd = net.ipam.etcd.as_ref().unwrap();
        let ledger = EtcdLedger::open(etcd, &net.ipam.network, &cluster_id).await.unwrap();
        let ground = Self { client: cluster.client("test").unwrap(), cluster, store, ledger, net, conflist };
        ground.fill().await;
        ground
    }

    async fn fill(&self) {
        let pool = json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "default-ipv4-ippool"},
            "spec": {"cidr": "10.244.0.0/16", "blockSize": 26},
        });
        self.cluster.server().create("/apis/crd.projectcalico.org/v1/ippools", &pool).unwrap();
        for app in ["web", "db"] {
            let template = json!({
                "metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "main", "image": "none"}]},
            });
            let deployment = json!({
                "metadata": {"name": app, "namespace": "default"},
                "spec": {"selector": {"matchLabels": {"app": app}}, "template": template},
            });
            self.cluster.server().create("/apis/apps/v1/namespaces/default/deployments", &deployment).unwrap();
        }
        self.run("web-1", "web", "n1", json!({"kube-ipam.ip": FIXED})).await;
        self.run("r-1", "random", "n1", json!({})).await;
        self.run("r-2", "random", "n2", json!({})).await;
        self.run("db-1", "db", "n2", json!({"kube-ipam.ip": UNHELD})).await;
        self.driver().del(&self.attachment("n2", "db-1", "c-db-1")).await.unwrap();
        self.remove_pod("db-1").await;
    }

    fn driver(&self) -> GatedDriver<KubeStore, EtcdLedger> {
        Driver::new(self.store.clone(), Some(self.ledger.clone()), Timestamp::now)
    }

    fn attachment<'a>(&'a self, node: &'a str, pod: &'a str, container: &'a str) -> Attachment<'a> {
        Attachment {
            net: &self.net,
            container_id: container,
            interface: "eth0",
            pod: Some(PodRef { namespace: "default", name: pod, uid: None }),
            node,
            explicit: &[],
            cancelled: &|| false,
            last_sandbox: true,
            anew: false,
            deadline: Instant::now() + Duration::from_secs(9),
            policy: self.net.ipam.takeover,
        }
    }

    /// What scheduler, runtime and kubelet do for a pod of a Deployment.
    async fn run(&self, name: &str, app: &str, node: &str, annotations: Value) -> IpAddr {
        self.create_pod(name, app, node, annotations);
        let container = format!("c-{name}");
        let assigned = self.driver().add(&self.attachment(node, name, &container)).await.unwrap();
        self.report(name, assigned[0].address);
        assigned[0].address
    }

    fn create_pod(&self, name: &str, app: &str, node: &str, annotations: Value) {
        let replica_set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-h1"), "uid": "rs", "controller": true,
        });
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "default", "annotations": annotations,
                "labels": {"pod-template-hash": "h1"}, "ownerReferences": [replica_set],
            },
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        });
        self.cluster.server().create(PODS, &pod).unwrap();
    }

    fn report(&self, pod: &str, address: IpAddr) {
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.cluster.server().set_status(PODS, pod, &status).unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn remove_pod(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }

    async fn address_of(&self, pod: &str) -> IpAddr {
        let pod = self.pods().get(pod).await.unwrap();
        pod.status.unwrap().pod_ip.unwrap().parse().unwrap()
    }

    async fn edit<K: Object>(&self, name: &str, change: impl FnOnce(&mut K)) {
        let mut object: K = self.store.get(None, name).await.unwrap().unwrap();
        change(&mut object);
        self.store.replace(&object).await.unwrap();
    }

    async fn edit_block(&self, address: IpAddr, change: impl FnOnce(&mut IPAMBlockSpec)) {
        let blocks: Vec<IPAMBlock> = self.store.list("").await.unwrap();
        let block = blocks.iter().find(|b| b.spec.cidr.contains(address)).unwrap();
        self.edit::<IPAMBlock>(&block.name_any(), |block| change(&mut block.spec)).await;
    }

    async fn edit_reservation(&self, change: impl FnOnce(&mut Vec<String>)) {
        self.edit::<IPReservation>("kube-ipam-10-244-0-192-26", |r| change(&mut r.spec.reserved_cidrs)).await;
    }

    async fn set_pool(&self, cidr: &str) {
        self.edit::<IPPool>("default-ipv4-ippool", |pool| pool.spec.cidr = cidr.parse().unwrap()).await;
    }

    async fn claim(&self, address: &str) -> Option<Versioned<Claim>> {
        self.ledger.read(ip(address)).await.unwrap()
    }

    async fn put_claim(&self, address: IpAddr, claim: Option<&Claim>) {
        let standing = self.ledger.read(address).await.unwrap().map(|claim| claim.revision);
        assert!(matches!(self.ledger.swap(address, standing, claim).await.unwrap(), Swap::Done(_)));
    }

    async fn edit_claim(&self, change: impl FnOnce(&mut Claim)) {
        let mut claim = self.claim(FIXED).await.unwrap().value;
        change(&mut claim);
        self.put_claim(ip(FIXED), Some(&claim)).await;
    }

    /// Records an address by hand, handle included.
    async fn allocate(&self, address: &str, holder: &Holder) {
        self.edit_block(ip(address), |block| {
            block.assign(ip(address), holder, None).unwrap();
            block.advance();
        })
        .await;
        let mut handle = IPAMHandleSpec::new(&holder.handle);
        handle.increment(&"10.244.0.192/26".parse().unwrap(), 1);
        self.store.create(&handle.object()).await.unwrap();
    }

    /// Breaks what the class is about, and nothing else.
    async fn plant(&self, class: Class) {
        let free: ipnetwork::IpNetwork = "10.244.7.0/26".parse().unwrap();
        let affinity = BlockAffinity::pending(&Affinity::host("n1"), &free);
        let stranger = Holder::pod("k8s-pod-network.c-x", "default", "x", "n1", Timestamp::now());
        match class {
            Class::BlocksOverlap => {
                let now = Timestamp::UNIX_EPOCH;
                let mut second = IPAMBlockSpec::new("10.244.0.192/27".parse().unwrap(), &Affinity::host("n1"), now);
                second.disown();
                self.store.create(&second.object()).await.unwrap();
            }
            Class::SharedAddress => {
                self.create_pod("x", "random", "n2", json!({}));
                self.report("x", self.address_of("r-1").await);
            }
            Class::OthersAddress => {
                let address = self.address_of("r-1").await;
                self.edit_block(address, |block| {
                    let index = block.allocations[block.ordinal(address).unwrap()].unwrap();
                    let secondary = block.attributes[index].secondary.as_mut().unwrap();
                    secondary.insert("pod".into(), "somebody".into());
                })
                .await;
            }
            Class::ClaimDisagrees => self.edit_claim(|claim| claim.generation = 7).await,
            Class::ForeignHolder => self.edit_claim(|claim| claim.owner.name = "shop".into()).await,
            Class::HolderGone => {
                self.edit_claim(|claim| claim.holder.as_mut().unwrap().pod_uid = "another".into()).await;
            }
            Class::FixedWithoutClaim => {
                self.put_claim(ip(FIXED), None).await;
                self.edit_reservation(|entries| entries.retain(|entry| !entry.starts_with(FIXED))).await;
            }
            Class::ClaimNotReserved => {
                self.edit_reservation(|entries| entries.retain(|entry| !entry.starts_with(UNHELD))).await;
            }
            Class::Unrecorded => {
                self.create_pod("x", "random", "n1", json!({}));
                self.report("x", ip("10.244.0.99"));
            }
            Class::HandleCount => {
                self.edit::<IPAMHandle>("k8s-pod-network.c-r-1", |handle| {
                    *handle.spec.block.values_mut().next().unwrap() += 1;
                })
                .await;
            }
            Class::BlockShape => {
                self.edit_block(ip(FIXED), |block| block.unallocated.truncate(block.unallocated.len() - 1)).await
            }
            Class::AffinityMismatch => {
                drop(self.store.create(&affinity.with_state(AffinityState::Confirmed)).await.unwrap());
            }
            Class::HalfDoneAffinity => drop(self.store.create(&affinity).await.unwrap()),
            Class::OutsidePools => {
                let mut stray = self.claim(UNHELD).await.unwrap().value;
                stray.address = ip("10.99.0.1");
                self.put_claim(stray.address, Some(&stray)).await;
                self.edit_reservation(|entries| entries.push("10.99.0.1/32".into())).await;
            }
            // All that is in use lies in the half that is left.
            Class::SubnetWithoutPool => self.set_pool("10.244.0.0/17").await,
            Class::OutsideRange => {
                self.create_pod("x", "random", "n1", json!({}));
                self.allocate("10.244.0.250", &stranger).await;
                self.report("x", ip("10.244.0.250"));
            }
            Class::Leak => {
                // In the range, so that there is nothing else to say of it.
                self.allocate("10.244.0.199", &stranger).await;
            }
            Class::DeletedLeftover => {
                let mut handle = IPAMHandleSpec::new("k8s-pod-network.gone").object();
                handle.spec.deleted = true;
                self.store.create(&handle).await.unwrap();
            }
            Class::ReservationWithoutClaim => {
                self.edit_reservation(|entries| entries.push("10.244.0.240/32".into())).await;
            }
            Class::WrongFixed => {
                self.run("x", "random", "n1", json!({})).await;
                let wish = json!({"metadata": {"annotations": {"kube-ipam.ip": "10.244.0.230"}}});
                self.pods().patch("x", &PatchParams::default(), &Patch::Merge(wish)).await.unwrap();
            }
            Class::RangeNearlyFull => {
                let all = (10..=200).map(|last| format!("10.244.0.{last}/32")).collect();
                let spec = IPReservationSpec { reserved_cidrs: all, ..Default::default() };
                self.store.create(&IPReservation::new("kept", spec)).await.unwrap();
            }
            // They take definitions, or another network.
            Class::Early | Class::HandleCase => panic!("{class:?} is planted where it is tested"),
            Class::OwnerGone => {
                let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), "default");
                deployments.delete("db", &DeleteParams::default()).await.unwrap();
            }
        }
    }

    async fn save(&self) -> Saved {
        Saved {
            blocks: self.store.list("").await.unwrap(),
            handles: self.store.list("").await.unwrap(),
            affinities: self.store.list("").await.unwrap(),
            reservations: self.store.list("").await.unwrap(),
            claims: self.ledger.all().await.unwrap(),
        }
    }

    /// Puts everything back as it was saved; the pod `x` goes.
    async fn repair(&self, saved: &Saved) {
        if self.pods().get_opt("x").await.unwrap().is_some() {
            self.remove_pod("x").await;
        }
        self.set_pool("10.244.0.0/16").await;
        self.put_back(&saved.blocks).await;
        self.put_back(&saved.handles).await;
        self.put_back(&saved.affinities).await;
        self.put_back(&saved.reservations).await;
        for claim in self.ledger.all().await.unwrap() {
            if !saved.claims.iter().any(|kept| kept.value.address == claim.value.address) {
                self.put_claim(claim.value.address, None).await;
            }
        }
        for claim in &saved.claims {
            self.put_claim(claim.value.address, Some(&claim.value)).await;
        }
    }

    async fn put_back<K: Object>(&self, saved: &[K]) {
        let mut present: BTreeMap<String, K> =
            self.store.list::<K>("").await.unwrap().into_iter().map(|k| (k.meta().name.clone().unwrap(), k)).collect();
        for object in saved {
            let mut object = object.clone();
            match present.remove(object.meta().name.as_ref().unwrap()) {
                Some(now) => {
                    object.meta_mut().resource_version = now.meta().resource_version.clone();
                    self.store.replace(&object).await.unwrap();
                }
                None => {
                    object.meta_mut().resource_version = None;
                    object.meta_mut().uid = None;
                    self.store.create(&object).await.unwrap();
                }
            }
        }
        for stray in present.values() {
            self.store.delete(stray).await.unwrap();
        }
    }

    // === the binary ===

    fn kube_ipam(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(e2e::tools::kube_ipam().unwrap())
            .args(arguments)
            .arg("--conflist")
            .arg(&self.conflist)
            .env_remove("CNI_COMMAND")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Exit code and classes of what `check` found.
    fn check(&self) -> (i32, BTreeSet<String>) {
        let ran = self.kube_ipam(&["check", "-o", "json", "--settle", "0"]);
        let report = ran.json();
        assert_eq!(report["judged"], json!({"claims": true, "ranges": true}));
        (ran.code, classes(&report["violations"]))
    }

    fn assert_clean(&self) {
        assert_eq!(self.check(), (0, BTreeSet::new()));
    }

    fn show(&self, arguments: &[&str]) -> Value {
        let ran = self.kube_ipam(&[&["show", "-o", "json"], arguments].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.json()
    }
}

struct Saved {
    blocks: Vec<IPAMBlock>,
    handles: Vec<IPAMHandle>,
    affinities: Vec<BlockAffinity>,
    reservations: Vec<IPReservation>,
    claims: Vec<Versioned<Claim>>,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr))
    }
}

fn classes(violations: &Value) -> BTreeSet<String> {
    violations.as_array().unwrap().iter().map(|v| v["class"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_class_is_found_alone_where_it_was_planted_and_gone_after_the_repair() {
    let ground = Ground::prepare().await;
    ground.assert_clean();
    for class in CLASSES {
        let saved = ground.save().await;
        ground.plant(class).await;
        assert_eq!(ground.check(), (1, [name_of(class)].into()), "{class:?} was planted");
        ground.repair(&saved).await;
        assert_eq!(ground.check(), (0, BTreeSet::new()), "{class:?} was repaired");
    }
}

#[tokio::test]
async fn a_range_that_is_nearly_full_is_a_note_and_no_failure() {
    let ground = Ground::prepare().await;
    ground.plant(Class::RangeNearlyFull).await;
    let ran = ground.kube_ipam(&["check", "-o", "json"]);
    assert_eq!((ran.code, classes(&ran.json()["notes"])), (0, [name_of(Class::RangeNearlyFull)].into()));
}

#[tokio::test]
async fn a_claim_whose_owner_is_gone_is_a_note_and_no_failure() {
    let ground = Ground::prepare().await;
    ground.plant(Class::OwnerGone).await;
    let ran = ground.kube_ipam(&["check", "-o", "json"]);
    assert_eq!((ran.code, classes(&ran.json()["notes"])), (0, [name_of(Class::OwnerGone)].into()));
    let ran = ground.kube_ipam(&["check"]);
    assert!(ran.stdout.starts_with("note Claim/10.244.0.217: belongs to Deployment default/db"), "{}", ran.stdout);
    assert!(ran.stdout.trim_end().ends_with("0 violations, 1 note"), "{}", ran.stdout);
}

/// Before a migration to Calico's newer API group, and no longer once it has begun to copy.
#[tokio::test]
async fn what_would_hold_a_migration_up_is_a_note_and_no_failure() {
    let ground = Ground::prepare().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(ground.client.clone());
    let noted = || {
        let ran = ground.kube_ipam(&["check", "-o", "json", "--settle", "0"]);
        (ran.code, classes(&ran.json()["notes"]))
    };
    for definition in ApiGroup::V3.crds() {
        definitions.create(&Default::default(), &definition).await.unwrap();
    }
    assert_eq!(noted(), (0, BTreeSet::new()));
    let newer = ground.store.in_group(ApiGroup::V3.into());
    let pool: IPPool = ground.store.get(None, "default-ipv4-ippool").await.unwrap().unwrap();
    let mut early = IPPool::new("default-ipv4-ippool", pool.spec);
    let created = newer.create(&early).await.unwrap();
    let holder = Holder::pod("K8s-Pod-Network.c-x", "default", "x", "n1", Timestamp::now());
    ground.create_pod("x", "random", "n1", json!({}));
    ground.allocate("10.244.0.199", &holder).await;
    ground.report("x", ip("10.244.0.199"));
    assert_eq!(noted(), (0, [name_of(Class::Early), name_of(Class::HandleCase)].into()));
    let text = ground.kube_ipam(&["check", "--settle", "0"]).stdout;
    for part in
        ["IPPool/default-ipv4-ippool: is in projectcalico.org/v3", "\"K8s-Pod-Network.c-x\"", "0 violations, 2 notes"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What a migration has copied is in its place.
    newer.delete(&created).await.unwrap();
    early.metadata.labels = Some([("migration.projectcalico.org/migrated-by".to_owned(), "uid".to_owned())].into());
    newer.create(&early).await.unwrap();
    assert_eq!(noted(), (0, [name_of(Class::HandleCase)].into()));
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_never_taken_for_well() {
    let ground = Ground::prepare().await;
    ground.plant(Class::Leak).await;
    ground.cluster.etcd().unwrap().kill();
    let ran = ground.kube_ipam(&["check", "--settle", "0"]);
    assert_eq!(ran.code, 2, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("10.244.0.199") && ran.stdout.contains("in what could be read"), "{}", ran.stdout);
    assert!(ran.stderr.contains("could not be read: range claims"), "{}", ran.stderr);
    ground.cluster.server().down();
    let ran = ground.kube_ipam(&["check", "--settle", "0"]);
    assert_eq!(ran.code, 2, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("could not be read: list pods"), "{}", ran.stderr);
}

#[tokio::test]
async fn show_agrees_with_the_records() {
    let ground = Ground::prepare().await;
    let pools = ground.show(&[]);
    let expected = json!([{
        "name": "default-ipv4-ippool", "cidr": "10.244.0.0/16", "blockSize": 26, "blocks": pools[0]["blocks"],
        "total": 65536, "inUse": 3, "reserved": 2, "free": 65536 - 4,
        "disabled": false, "assignmentMode": "Automatic",
    }]);
    assert_eq!(pools, expected);
    let blocks = ground.show(&["--blocks"]);
    assert_eq!(json!(blocks.as_array().unwrap().len()), pools[0]["blocks"]);
    let sum: u64 = blocks.as_array().unwrap().iter().map(|block| block["inUse"].as_u64().unwrap()).sum();
    assert_eq!(sum, 3);

    let shown = ground.show(&["--ip", "10.244.0.216,10.244.0.217", "--ip", "10.99.0.1"]);
    assert_eq!(shown[0]["pod"], json!({"namespace": "default", "name": "web-1"}));
    assert_eq!((&shown[0]["node"], &shown[0]["handle"]), (&json!("n1"), &json!("k8s-pod-network.c-web-1")));
    assert_eq!(shown[0]["claim"]["holder"]["pod"], "web-1");
    assert_eq!(shown[0]["reservedBy"], json!(["kube-ipam-10-244-0-192-26"]));
    assert_eq!((&shown[1]["state"], shown[1]["claim"].get("holder")), (&json!("free"), None));
    assert_eq!((&shown[2]["state"], &shown[2]["claim"]), (&json!("outsidePools"), &Value::Null));

    let claims = ground.show(&["--claims"]);
    assert_eq!(claims, ground.kube_ipam(&["claims", "-o", "json"]).json());
    assert_eq!(claims.as_array().unwrap().len(), 2);
    assert_eq!(ground.show(&["--claims", "-n", "elsewhere"]), json!([]));
    let ran = ground.kube_ipam(&["show", "-o", "yaml"]);
    assert!(ran.stdout.starts_with("- name: default-ipv4-ippool\n"), "{}", ran.stdout);
    let ran = ground.kube_ipam(&["show"]);
    assert!(ran.stdout.starts_with("POOL ") && !ran.stdout.contains(['|', '\x1b']), "{}", ran.stdout);
}

#[tokio::test]
async fn a_borrowed_address_is_shown_with_both_nodes() {
    let ground = Ground::prepare().await;
    let address = ground.run("x", "web2", "n2", json!({"kube-ipam.ip": "10.244.0.230"})).await;
    assert_eq!(address, ip("10.244.0.230"));
    let expected = json!([{
        "address": "10.244.0.230", "node": "n2", "block": "10.244.0.192/26", "blockNode": "n1", "pod": "default/x",
    }]);
    assert_eq!(ground.show(&["--borrowed"]), expected);
    let text = ground.kube_ipam(&["show", "--ip", "10.244.0.230"]).stdout;
    assert!(text.contains("10.244.0.192/26 of node n1, borrowed"), "{text}");
}

#[tokio::test]
async fn a_leaked_fixed_address_is_released_and_stays_its_owners() {
    let ground = Ground::prepare().await;
    ground.remove_pod("web-1").await;
    assert_eq!(ground.check(), (1, [name_of(Class::Leak)].into()));

    let before = (ground.cluster.server().revision(), ground.claim(FIXED).await);
    let ran = ground.kube_ipam(&["release", FIXED]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("stdin is no terminal") && ran.stderr.contains("--yes"), "{}", ran.stderr);
    let ran = ground.kube_ipam(&["release", FIXED, "--dry-run"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.stdout.contains("IPAMBlock/10-244-0-192-26") && ran.stdout.contains("held by nobody"),
        "{}",
        ran.stdout
    );
    assert_eq!((ground.cluster.server().revision(), ground.claim(FIXED).await), before, "nothing was written");

    let ran = ground.kube_ipam(&["release", FIXED, "--yes", "-o", "json"]);
    assert_eq!((ran.code, &ran.json()["done"]), (0, &json!(true)), "{}", ran.stderr);
    ground.assert_clean();
    let claim = ground.claim(FIXED).await.unwrap().value;
    assert_eq!((claim.owner.name.as_str(), claim.holder), ("web", None));
    let ran = ground.kube_ipam(&["release", FIXED, "--yes"]);
    assert!(ran.code == 0 && ran.stdout.contains("nothing to release"), "{}", ran.stdout);
}

#[tokio::test]
async fn a_dropped_claim_takes_its_reservation_along() {
    let ground = Ground::prepare().await;
    let ran = ground.kube_ipam(&["release", "--claim", UNHELD, "--yes"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("not Deployment default/db's any more"), "{}", ran.stdout);
    assert_eq!(ground.claim(UNHELD).await, None);
    ground.assert_clean();
    assert_eq!(ground.show(&["--ip", UNHELD])[0]["reservedBy"], json!([]));

    ground.plant(Class::ReservationWithoutClaim).await;
    assert_eq!(ground.kube_ipam(&["release", "--claim", "10.244.0.240", "--yes"]).code, 0);
    ground.assert_clean();
}

#[tokio::test]
async fn while_a_live_pod_has_the_address_nothing_is_released() {
    let ground = Ground::prepare().await;
    let before = (ground.cluster.server().revision(), ground.claim(FIXED).await);
    for arguments in [&["release", FIXED, "--yes"][..], &["release", "--claim", FIXED, "--yes"]] {
        let ran = ground.kube_ipam(arguments);
        assert_eq!(ran.code, 1, "{}", ran.stdout);
        assert!(ran.stderr.contains("pod default/web-1 on node n1, which is alive"), "{}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    assert_eq!((ground.cluster.server().revision(), ground.claim(FIXED).await), before, "nothing was written");
}

#[tokio::test]
async fn a_tunnel_address_is_released_only_when_its_node_is_gone() {
    let ground = Ground::prepare().await;
    let mut tunnel = Holder::node("vxlan-tunnel-addr-n2", "n2", Timestamp::now());
    tunnel.secondary.insert("type".into(), "vxlanTunnelAddress".into());
    ground.allocate("10.244.0.199", &tunnel).await;
    ground.assert_clean();
    let ran = ground.kube_ipam(&["release", "10.244.0.199", "--yes"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("vxlanTunnelAddress of node n2, which exists"), "{}", ran.stderr);
    Api::<Node>::all(ground.client.clone()).delete("n2", &DeleteParams::default()).await.unwrap();
    assert_eq!(ground.check().0, 1);
    assert_eq!(ground.kube_ipam(&["release", "10.244.0.199", "--yes"]).code, 0);
    ground.assert_clean();
}

#[test]
fn completion_scripts_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(e2e::tools::kube_ipam().unwrap())
            .args(["completion", shell])
            .env_remove("CNI_COMMAND")
            .output()
            .unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains("conflist") && script.contains("kube-ipam"), "{shell}");
    }
}

#[tokio::test]
async fn no_command_writes_while_calicos_datastore_is_locked() {
    let ground = Ground::prepare().await;
    let list = ground.cluster.directory().join("list.csv");
    std::fs::write(&list, "address,namespace,kind,name,ordinal\n10.244.0.240,default,Deployment,web,\n").unwrap();
    let locked = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
        "spec": {"datastoreReady": false},
    });
    ground.cluster.server().create("/apis/crd.projectcalico.org/v1/clusterinformations", &locked).unwrap();
    let revision = ground.cluster.server().revision();
    let claims = ground.ledger.all().await.unwrap();
    let file = list.display().to_string();
    let writers: [&[&str]; 4] = [
        &["release", UNHELD, "--claim", "--yes"],
        &["import", &file, "--yes"],
        &["adopt", "-n", "default", "r-1", "--yes"],
        &["claims", "move", "--to", "objects", "--yes"],
    ];
    for writer in writers {
        let ran = ground.kube_ipam(writer);
        let said = format!("{writer:?}: {}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code, 2, "{said}");
        assert!(said.contains("nothing was written") && said.contains("datastoreReady is false"), "{said}");
        assert_eq!(ground.cluster.server().revision(), revision, "{said}");
        assert_eq!(ground.ledger.all().await.unwrap(), claims, "{said}");
    }
    ground.edit::<calico::ClusterInformation>("default", |it| it.spec.datastore_ready = Some(true)).await;
    for writer in writers {
        let ran = ground.kube_ipam(writer);
        assert_eq!(ran.code, 0, "{writer:?}: {}{}", ran.stdout, ran.stderr);
    }
}

//! Two clusters that keep their claims in one etcd under the default prefix: the second has nothing of the first's, and
//! is told so.

use std::time::Duration;

use e2e::embedded::Options;
use e2e::embedded::apiserver::{Fault, Match};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, Patch};
use kube::{Api, ResourceExt as _};
use kube_ipam::cni::code;
use kube_ipam::collector::{self, Always, Collector};
use kube_ipam::driver::{Driver, LEDGERS_ANNOTATION};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Failure, LazyLedger};
use serde_json::json;
use tokio::process::Command;

use super::ground::{FIXED, Ground, assert_ok, assert_refused, bare};

const OTHER: &str = "10.244.0.217";
const MARKER: &str = "/kube-ipam/v1/kube-subnet/cluster";

/// A cluster, and another one that is configured with its etcd.
async fn two_clusters() -> (Ground, Ground) {
    let (one, mut two) = (Ground::prepare().await, Ground::with(Options::default()).await);
    two.conf["ipam"]["etcdConfig"]["etcdURL"] = one.cluster.etcd().unwrap().url().into();
    for crd in e2e::crds().iter().filter(|crd| crd.spec.names.plural == "ipclaims") {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        two.server().create(path, &serde_json::to_value(crd).unwrap()).unwrap();
    }
    (one, two)
}

async fn uid(ground: &Ground) -> String {
    let namespaces: Api<Namespace> = Api::all(ground.cluster.client("test").unwrap());
    namespaces.get("kube-system").await.unwrap().metadata.uid.unwrap()
}

/// Reads of the namespace that tells which cluster it is, so far.
fn looks(ground: &Ground) -> usize {
    let calls = ground.server().calls().after(0);
    calls.iter().filter(|call| call.resource == "namespaces" && call.name == "kube-system").count()
}

/// The command line in the second cluster, which knows etcd from the nodes' list.
async fn command(ground: &Ground, arguments: &[&str]) -> (bool, String) {
    let list = json!({"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [ground.conf]});
    let file = ground.path("10-calico.conflist");
    std::fs::write(&file, list.to_string()).unwrap();
    let mut command = Command::new(e2e::tools::kube_ipam().unwrap());
    command.args(arguments).arg("--conflist").arg(&file).env_remove("CNI_COMMAND").stdin(std::process::Stdio::null());
    let output = command.output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[tokio::test]
async fn another_clusters_claims_are_neither_given_nor_released_nor_collected() {
    let (one, two) = two_clusters().await;
    let uids = [uid(&one).await, uid(&two).await];
    let words = [uids[0].as_str(), uids[1].as_str(), "etcdPrefix"];
    one.fixed("web-1");
    assert_ok(&one.add("web-1", "c1").await);
    let (claims, before) = (one.claims().await, one.state().await);
    assert_eq!(claims.len(), 1);

    for (name, address) in [("web-1", FIXED), ("db-1", OTHER)] {
        two.pod(name, "n1", json!({"kube-ipam.ip": address}));
        assert_refused(&two.add(name, name).await, code::NO_LEDGER, &words);
        assert_ok(&two.del(name, name).await);
        assert_eq!(two.leftovers(name).await, [""; 0]);
    }
    // Whatever has a random address goes on, and so does the node.
    two.random("r-1");
    let given = two.add("r-1", "r1").await;
    assert_ok(&given);
    two.runs("r-1", &given);
    assert_ok(&two.call("STATUS", "", "").run().await);
    assert_ok(&two.gc(&["r1"]).await);
    assert_ok(&two.del("r-1", "r1").await);

    // All graces are over at once for this collector, and no Node of the first cluster exists for it.
    let net = NetConf::parse(&two.conf, "kube-ipam").unwrap();
    let store = KubeStore::from_kubeconfig(two.cluster.kubeconfig(), None).await.unwrap();
    let driver = Driver::new(store.clone(), Some(LazyLedger::of(&net.ipam, &store)), Timestamp::now);
    let none = Duration::ZERO;
    let options = collector::Options { owner_grace: none, allocation_grace: none, half_done_grace: none, settle: none };
    let mut collector = Collector::new(driver, &net, options);
    for _ in 0..3 {
        let report = collector.round(&Always).await.unwrap();
        assert!((report.claims, report.repairs.len(), report.failed.len()) == (None, 0, 0), "{report:?}");
        let [unread] = &report.unread[..] else { panic!("{report:?}") };
        assert!(matches!(&unread.failure, Failure::Foreign(why) if words.iter().all(|w| why.contains(w))), "{unread}");
    }
    assert_eq!((one.claims().await, one.state().await), (claims, before));
}

#[tokio::test]
async fn the_command_line_names_both_clusters_and_changes_nothing() {
    let (one, two) = two_clusters().await;
    let uids = [uid(&one).await, uid(&two).await];
    one.fixed("web-1");
    assert_ok(&one.add("web-1", "c1").await);
    two.random("r-1");
    let given = two.add("r-1", "r1").await;
    two.runs("r-1", &given);
    let list = two.path("list.csv");
    std::fs::write(&list, format!("address,namespace,kind,name,ordinal\n{OTHER},default,Deployment,web,\n")).unwrap();
    let (claims, before) = (one.claims().await, (one.state().await, two.server().revision()));
    for arguments in [
        &["claims"][..],
        &["show", "--ip", FIXED],
        &["check", "--settle", "0"],
        &["release", FIXED, "--claim", "--yes"],
        &["import", &list.display().to_string(), "--yes"],
        &["adopt", "r-1", "--yes"],
        &["claims", "move", "--to", "objects", "--yes"],
        &["claims", "move", "--to", "etcd", "--yes"],
    ] {
        let (well, text) = command(&two, arguments).await;
        let named = uids.iter().all(|uid| text.contains(uid)) && text.contains("etcdPrefix");
        assert!(!well && named, "kube-ipam {arguments:?}: {text}");
    }
    assert_eq!((one.claims().await, (one.state().await, two.server().revision())), (claims, before));
}

#[tokio::test]
async fn a_pod_whose_claim_lies_in_another_clusters_ledger_by_now_is_released_all_the_same() {
    let (one, two) = two_clusters().await;
    two.fixed("web-1");
    let given = two.add("web-1", "c1").await;
    assert_ok(&given);
    assert_eq!(bare(&given), [FIXED]);
    let mut etcd = one.cluster.etcd().unwrap().client().await.unwrap();
    etcd.put(MARKER, uid(&one).await, None).await.unwrap();
    let claims = one.claims().await;
    assert_ok(&two.del("web-1", "c1").await);
    assert_eq!((two.leftovers("c1").await, one.claims().await), (Vec::new(), claims));
    assert_refused(&two.add("web-1", "c2").await, code::NO_LEDGER, &["etcdPrefix"]);
    // With a prefix of its own all is well, once nothing says any more that the claim is in the other one.
    let add = |container: &str| {
        two.call("ADD", "web-1", container).with("/ipam/etcdConfig/etcdPrefix", json!("/kube-ipam/two"))
    };
    assert_refused(&add("c3").run().await, code::NO_LEDGER, &["claims move", LEDGERS_ANNOTATION]);
    let reservations: Api<calico::IPReservation> = Api::all(two.cluster.client("test").unwrap());
    for reservation in reservations.list(&Default::default()).await.unwrap() {
        let patch = json!({"metadata": {"annotations": {LEDGERS_ANNOTATION: null}}});
        reservations.patch(&reservation.name_any(), &Default::default(), &Patch::Merge(patch)).await.unwrap();
    }
    assert_ok(&add("c4").run().await);
}

#[tokio::test]
async fn the_plugin_asks_which_cluster_it_is_once_a_boot_and_for_fixed_addresses_alone() {
    let ground = Ground::prepare().await;
    ground.random("r-1");
    assert_ok(&ground.add("r-1", "r1").await);
    assert_ok(&ground.del("r-1", "r1").await);
    assert_eq!(looks(&ground), 0);
    let pods: Api<Pod> = Api::namespaced(ground.cluster.client("test").unwrap(), "default");
    for pod in ["web-1", "web-2"] {
        ground.fixed(pod);
        assert_ok(&ground.add(pod, pod).await);
        assert_ok(&ground.del(pod, pod).await);
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
        assert_eq!(looks(&ground), 1, "{pod}");
    }
    // As after a boot, and as on a node that has joined this cluster from another.
    let note = ground.path("state/cluster.json");
    std::fs::remove_file(&note).unwrap();
    ground.fixed("web-3");
    assert_ok(&ground.add("web-3", "c3").await);
    assert_eq!(looks(&ground), 2);
    std::fs::write(&note, r#"{"origin":"another","uid":"another"}"#).unwrap();
    assert_ok(&ground.del("web-3", "c3").await);
    assert_eq!(looks(&ground), 3);
    assert!(std::fs::read_to_string(&note).unwrap().contains(&uid(&ground).await));
    // Nobody may read it: fixed addresses are refused with the reason, and nothing else is.
    std::fs::remove_file(&note).unwrap();
    let forbidden = Fault::Status { code: 403, retry_after: None };
    ground.server().faults().on(Match::on("get", "namespaces").name("kube-system"), forbidden, usize::MAX);
    assert_refused(&ground.add("web-3", "c4").await, code::NO_LEDGER, &["kube-system", "not allowed"]);
    assert_ok(&ground.del("web-3", "c4").await);
    ground.random("r-2");
    assert_ok(&ground.add("r-2", "r2").await);
    assert_ok(&ground.call("STATUS", "", "").run().await);
}

//! The command line with nothing but a kubeconfig: network, ledger and ranges are found in the cluster or on the node,
//! and what is not found is neither good nor a reason to destroy anything.

use std::path::Path;
use std::process::Command;

use e2e::lab::{Lab, Ledger};
use e2e::manifests::apply;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::{deployment, fixed, only};

const FIXED: &str = "10.244.0.216";

/// What a run came to: exit code, stdout, stderr.
type Ran = (i32, String, String);

/// A running pod with a fixed address; the kubeconfig of its cluster, and a directory without lists.
struct Ground {
    lab: Lab,
    directory: tempfile::TempDir,
}

impl Ground {
    async fn prepare() -> Self {
        let lab = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
        lab.create(deployment("web", fixed(FIXED))).await.unwrap();
        only(&lab, "web").await;
        let directory = tempfile::tempdir().unwrap();
        lab.embedded_server().unwrap().write_kubeconfig(&directory.path().join("kubeconfig"), None).unwrap();
        std::fs::create_dir(directory.path().join("net.d")).unwrap();
        Self { lab, directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(e2e::tools::kube_ipam().unwrap())
            .args(arguments)
            .args(["--kubeconfig", &self.path("kubeconfig"), "--conflists", &self.path("net.d")])
            .env_remove("CNI_COMMAND")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// As the add-on has it.
    async fn add_on(&self, section: &Value) {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-ipam", "namespace": "kube-system"},
            "data": {"ipam.json": section.to_string()},
        });
        apply(&self.lab.client(), &map).await.unwrap();
    }

    async fn pod_says(&self, patch: Value) {
        let pods: Api<Pod> = Api::namespaced(self.lab.client(), "default");
        let pod = only(&self.lab, "web").await;
        pods.patch(pod.metadata.name.as_deref().unwrap(), &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
}

fn section() -> Value {
    json!({
        "type": "kube-ipam", "name": "kube-subnet", "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10",
        "rangeEnd": "10.244.0.200", "gateway": "10.244.0.1",
    })
}

/// What no command may say that does not know whose claims it looks at.
fn assert_destroys_nothing(said: &str) {
    for word in ["elete the pod", "release --claim", "delete that pod", "0 violations"] {
        assert!(!said.contains(word), "{word:?} in: {said}");
    }
}

#[tokio::test]
async fn claims_that_exist_say_their_network_and_ranges_that_nothing_says_do_not_count_as_good() {
    let ground = Ground::prepare().await;
    let (code, out, err) = ground.run(&["claims"]);
    assert!(code == 0 && out.contains(FIXED), "{out}{err}");
    assert!(err.contains("going by the IPClaims that exist: network \"kube-subnet\", claims in IPClaims"), "{err}");
    for arguments in [&["check", "--settle", "0"][..], &["check", "--settle", "0", "--ledger", "objects"]] {
        let (code, out, err) = ground.run(arguments);
        assert_eq!(code, 2, "{out}{err}");
        assert!(out.starts_with("nothing is wrong in what could be read\nnot looked at: ranges: "), "{out}{err}");
    }
    let (code, out, _) = ground.run(&["check", "--settle", "0", "--skip", "ranges"]);
    assert_eq!((code, out.trim_end()), (0, "0 violations; ranges were skipped"));
    let (_, out, _) = ground.run(&["check", "--settle", "0", "-o", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["judged"], json!({"claims": true, "ranges": false}), "{report}");
    assert_eq!((&report["missing"][0]["part"], &report["used"]["network"]), (&json!("ranges"), &json!("kube-subnet")));

    // Another network has claims too: then nobody can tell which one is meant.
    let mut stray = section();
    stray["name"] = "other".into();
    let (_, listed, _) = ground.run(&["claims", "-o", "json"]);
    let claim = &serde_json::from_str::<Value>(&listed).unwrap()[0];
    let claim: kube_ipam::claim::Claim = serde_json::from_value(claim.clone()).unwrap();
    let object = kube_ipam::store::ipclaim::IPClaimSpec::new("other", &claim).object(Default::default());
    apply(&ground.lab.client(), &serde_json::to_value(object).unwrap()).await.unwrap();
    let (code, out, err) = ground.run(&["claims"]);
    assert!(code == 2 && err.contains("kube-subnet, other") | err.contains("other, kube-subnet"), "{out}{err}");
    assert!(err.contains("--network"), "{err}");
    let (code, out, err) = ground.run(&["check", "--settle", "0"]);
    assert!(code == 2 && out.contains("not looked at: claims: there are IPClaims of networks"), "{out}{err}");
    let (code, out, err) = ground.run(&["claims", "--network", "kube-subnet"]);
    assert!(code == 0 && out.contains(FIXED), "{out}{err}");
}

#[tokio::test]
async fn a_network_that_is_not_known_is_never_guessed() {
    let ground = Ground::prepare().await;
    // Wrong in any network: the pod asks for what it does not have.
    ground.pod_says(json!({"metadata": {"annotations": {"kube-ipam.ip": "10.244.0.230"}}})).await;
    let (_, out, err) = ground.run(&["check", "--settle", "0"]);
    assert!(out.contains("asks for 10.244.0.230") && out.contains("delete the pod"), "claims are known: {out}{err}");
    let claims: Api<kube_ipam::store::ipclaim::IPClaim> = Api::all(ground.lab.client());
    claims.delete_collection(&DeleteParams::default(), &Default::default()).await.unwrap();
    for arguments in [&["check", "--settle", "0"][..], &["check", "--settle", "0", "--ledger", "objects"]] {
        let (code, out, err) = ground.run(arguments);
        assert_eq!(code, 2, "{out}{err}");
        assert!(out.contains("asks for 10.244.0.230") && out.contains("not looked at: claims: "), "{out}{err}");
        assert_destroys_nothing(&out);
    }
    for arguments in [&["claims"][..], &["release", FIXED, "--claim", "--yes"], &["adopt", "x", "--yes"]] {
        let (code, out, err) = ground.run(arguments);
        assert!(code == 2 && err.contains("where the claims are is not known"), "{arguments:?}: {out}{err}");
    }
    // With the network named, that there is no claim is known.
    let (code, out, err) = ground.run(&["check", "--settle", "0", "--ledger", "objects", "--network", "kube-subnet"]);
    assert!(code == 2 && out.contains("there is no claim on it") && !out.contains("claims:"), "{out}{err}");
}

#[tokio::test]
async fn the_add_ons_configmap_says_everything_and_an_etcd_that_is_elsewhere_is_no_ipclaim() {
    let ground = Ground::prepare().await;
    ground.add_on(&section()).await;
    let (code, out, err) = ground.run(&["check", "--settle", "0"]);
    assert_eq!((code, out.trim_end()), (0, "0 violations"), "{err}");
    let by = "going by ConfigMap kube-system/kube-ipam: network \"kube-subnet\", claims in IPClaims";
    assert!(err.contains(by), "{err}");
    let mut etcd = section();
    etcd["etcdConfig"] = json!({"etcdURL": "https://127.0.0.1:1", "etcdTrustedCAFile": "/no/such/ca.pem"});
    ground.add_on(&etcd).await;
    let (code, out, err) = ground.run(&["check", "--settle", "0"]);
    assert!(code == 2 && out.contains("not looked at: claims: by ConfigMap"), "{out}{err}");
    assert_destroys_nothing(&out);
    let (code, out, err) = ground.run(&["claims"]);
    assert!(code == 2 && err.contains("/no/such/ca.pem") && err.contains("on a node"), "{out}{err}");
}

#[tokio::test]
async fn on_a_node_its_own_list_counts_if_it_is_of_the_same_cluster() {
    let ground = Ground::prepare().await;
    let list = |kubeconfig: &str| {
        let mut section = section();
        section["kubeConfig"] = kubeconfig.into();
        json!({"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [{"type": "calico", "ipam": section}]})
    };
    let file = Path::new(&ground.path("net.d")).join("10-calico.conflist");
    std::fs::write(&file, list(&ground.path("kubeconfig")).to_string()).unwrap();
    let (code, out, err) = ground.run(&["check", "--settle", "0"]);
    assert_eq!((code, out.trim_end()), (0, "0 violations"), "{err}");
    assert!(err.contains(&format!("going by {}: network", file.display())), "{err}");
    // Before the ConfigMap, which may be another one by now.
    ground.add_on(&json!({"type": "kube-ipam", "name": "later", "subnet": "10.244.0.0/16"})).await;
    assert_eq!(ground.run(&["check", "--settle", "0"]).0, 0);
    // Somebody asks for another cluster than this node's.
    let other = Lab::embedded_on(false, Ledger::Objects).await.unwrap();
    let kubeconfig = ground.path("other");
    other.embedded_server().unwrap().write_kubeconfig(Path::new(&kubeconfig), None).unwrap();
    std::fs::write(&file, list(&kubeconfig).to_string()).unwrap();
    let (_, _, err) = ground.run(&["check", "--settle", "0"]);
    assert!(err.contains("going by ConfigMap kube-system/kube-ipam: network \"later\""), "{err}");
    let maps: Api<ConfigMap> = Api::namespaced(ground.lab.client(), "kube-system");
    maps.delete("kube-ipam", &DeleteParams::default()).await.unwrap();
    let (_, _, err) = ground.run(&["claims"]);
    assert!(err.contains("going by the IPClaims that exist"), "{err}");
}

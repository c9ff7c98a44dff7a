//! `kubectl apply -k yaml/` on two real nodes whose conflist says `calico-ipam`: the DaemonSet does the rest, a
//! conflist that is written anew is edited again, and `uninstall.yaml` gives the nodes back.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use e2e::real::node::paths;
use e2e::real::{Cluster, Crds, succeed};
use e2e::site;
use e2e::tools::Tools;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);
const ACCOUNT: &str = "system:serviceaccount:kube-system:kube-ipam";
const FIXED: &str = "10.244.0.216";

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = cluster.kubectl();
    match succeed(command.current_dir(e2e::manifests::directory()).args(arguments)) {
        Ok(said) => said,
        Err(error) => {
            let mut seen = String::new();
            for more in [
                &["get", "pods", "-A", "-o", "wide"][..],
                &["get", "events", "-A"],
                &["-n", "kube-system", "logs", "daemonset/kube-ipam", "--all-containers", "--tail=30"],
            ] {
                seen += &succeed(cluster.kubectl().args(more)).unwrap_or_else(|error| error.to_string());
            }
            panic!("{error}\n{seen}")
        }
    }
}

/// Waits until all nodes run what was applied last.
fn rolled_out(cluster: &Cluster) {
    kubectl(cluster, &["-n", "kube-system", "rollout", "status", "daemonset/kube-ipam", "--timeout=120s"]);
}

/// The `ipam` section of a node's list.
fn section(cluster: &Cluster, node: &str) -> Value {
    let file = cluster.node(node).unwrap().file(paths::CONFLIST);
    let list: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    list["plugins"][0]["ipam"].clone()
}

/// Pods of an app that run, once there are so many.
async fn running(cluster: &Cluster, app: &str, count: usize) -> Vec<Pod> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let params = ListParams::default().labels(&format!("app={app}"));
    let started = Instant::now();
    loop {
        let items = pods.list(&params).await.unwrap().items;
        let address = |pod: &Pod| pod.status.as_ref().and_then(|s| s.pod_ip.clone());
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone());
        let run = |pod: &Pod| {
            phase(pod).as_deref() == Some("Running")
                && address(pod).is_some()
                && pod.metadata.deletion_timestamp.is_none()
        };
        if items.len() == count && items.iter().all(run) {
            return items;
        }
        if started.elapsed() > LIMIT {
            panic!("{count} pods of {app} do not run:\n{}", kubectl(cluster, &["get", "pods,events", "-A"]));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn address(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap()
}

fn node(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_add_on_takes_real_nodes_over_serves_the_guides_pods_and_gives_the_nodes_back() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(tools) = Tools::or_skip().unwrap() else { return };
    let cluster = site::start(tools, None, Crds::Definitions(calico::crds())).await.unwrap();
    let _routes = cluster.keep_routes();

    kubectl(&cluster, &["apply", "-k", "."]);
    rolled_out(&cluster);
    let config = e2e::manifests::documents("kube-ipam.yaml").unwrap();
    let config = e2e::manifests::only(&config, "ConfigMap", "kube-ipam").unwrap();
    let ours: Value = serde_json::from_str(config["data"]["ipam.json"].as_str().unwrap()).unwrap();
    for name in ["node1", "node2"] {
        assert_eq!(section(&cluster, name), ours, "{name}");
    }
    guides_pods(&cluster).await;
    written_anew(&cluster, &ours).await;
    with_etcd(&cluster, ours).await;

    kubectl(&cluster, &["apply", "-f", "uninstall.yaml"]);
    rolled_out(&cluster);
    for name in ["node1", "node2"] {
        assert_eq!(section(&cluster, name), json!({"type": "calico-ipam"}), "{name}");
    }
    kubectl(&cluster, &["delete", "--wait=true", "--timeout=90s", "-f", "kube-ipam.yaml"]);
    let calls = cluster.audit().unwrap().all().unwrap();
    let ours: Vec<_> = calls.iter().filter(|call| call.user == ACCOUNT).collect();
    assert!(ours.iter().any(|call| call.verb == "update" && call.resource == "ipamblocks"), "no call of ours was seen");
    let forbidden: Vec<_> = ours.iter().filter(|call| call.forbidden).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
}

/// The guide's walk-through with its own files.
async fn guides_pods(cluster: &Cluster) {
    kubectl(cluster, &["apply", "-f", "fixed-ip-test.yaml", "-f", "random-ip-test.yaml"]);
    let random = running(cluster, "random-ip-test", 2).await;
    let first = running(cluster, "fixed-ip-test", 1).await.remove(0);
    assert_eq!(address(&first), FIXED);
    assert_ne!(address(&random[0]), address(&random[1]));
    for pod in &random {
        let last: u8 = address(pod).strip_prefix("10.244.0.").unwrap().parse().unwrap();
        assert!((10..=200).contains(&last), "{} is outside of the range", address(pod));
        cluster.sandbox(pod).unwrap().reaches(FIXED.parse().unwrap(), LIMIT).await.unwrap();
    }
    let claims: Api<DynamicObject> = Api::all_with(
        cluster.client(),
        &kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk("kube-ipam.io", "v1alpha1", "IPClaim")),
    );
    let claim = claims.get("kube-subnet.10-244-0-216").await.unwrap();
    assert_eq!(claim.data["spec"]["holder"]["pod"], first.name_any());

    // It was the agents that gave them.
    let given: u64 = ["node1", "node2"].iter().map(|name| adds(cluster, name)).sum();
    assert!(given >= 3, "the agents have answered {given} ADDs");

    kubectl(cluster, &["cordon", &node(&first)]);
    kubectl(cluster, &["delete", "pod", &first.name_any()]);
    let second = running(cluster, "fixed-ip-test", 1).await.remove(0);
    kubectl(cluster, &["uncordon", &node(&first)]);
    assert_eq!(address(&second), FIXED);
    assert_ne!(node(&second), node(&first));
    for pod in &random {
        cluster.sandbox(pod).unwrap().reaches(FIXED.parse().unwrap(), LIMIT).await.unwrap();
    }
}

/// Other claims: in etcd, by the certificates that lie on the nodes.
async fn with_etcd(cluster: &Cluster, mut ipam: Value) {
    kubectl(cluster, &["delete", "--timeout=90s", "-f", "fixed-ip-test.yaml", "-f", "random-ip-test.yaml"]);
    running(cluster, "fixed-ip-test", 0).await;
    ipam["etcdConfig"] = json!({
        "etcdURL": cluster.node("node1").unwrap().facts().etcd_tls_url, "etcdCertFile": paths::ETCD_CERTIFICATE,
        "etcdKeyFile": paths::ETCD_KEY, "etcdTrustedCAFileFile": paths::ETCD_AUTHORITY,
    });
    let patch = json!({"data": {"ipam.json": ipam.to_string()}}).to_string();
    kubectl(cluster, &["-n", "kube-system", "patch", "configmap", "kube-ipam", "--type=merge", "-p", &patch]);
    kubectl(cluster, &["-n", "kube-system", "rollout", "restart", "daemonset/kube-ipam"]);
    rolled_out(cluster);
    assert_eq!(section(cluster, "node1"), ipam);
    kubectl(cluster, &["apply", "-f", "fixed-ip-test.yaml"]);
    let pod = running(cluster, "fixed-ip-test", 1).await.remove(0);
    assert_eq!(address(&pod), FIXED);
    let mut command = cluster.node(&node(&pod)).unwrap().command(&format!("{}/kube-ipam", paths::CNI_BIN)).unwrap();
    let said = succeed(command.args(["claims", "-o", "json", "--conflist", paths::CONFLIST])).unwrap();
    let claims: Value = serde_json::from_str(&said).unwrap();
    let claim = claims.as_array().unwrap().iter().find(|claim| claim["address"] == FIXED).unwrap();
    assert_eq!(claim["holder"]["pod"], pod.name_any());
}

/// How many ADDs the agent of a node has answered, asked as a person there would.
fn adds(cluster: &Cluster, node: &str) -> u64 {
    let mut command = cluster.node(node).unwrap().command(&format!("{}/kube-ipam", paths::CNI_BIN)).unwrap();
    let status: Value = serde_json::from_str(&succeed(command.args(["status", "-o", "json"])).unwrap()).unwrap();
    status["adds"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

/// As when calico-node starts anew on the node.
async fn written_anew(cluster: &Cluster, ours: &Value) {
    cluster.node("node1").unwrap().write_conflist(&site::conflist("ptp", "node1").to_string()).unwrap();
    let started = Instant::now();
    while section(cluster, "node1") != *ours {
        assert!(started.elapsed() < LIMIT, "the list of node1 stays as it was written: {}", section(cluster, "node1"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

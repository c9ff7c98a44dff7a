//! Two real nodes, and what is done to them and asked of them.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::real::audit::Call;
use e2e::real::node::paths;
use e2e::real::{Cluster, succeed};
use e2e::tools::Tools;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::Value;

/// The nodes' names.
pub const NODES: [&str; 2] = ["node1", "node2"];
/// The guide's fixed address.
pub const FIXED: &str = "10.244.0.216";
/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The programs of a real cluster. `None` if it cannot run here, which has been said.
pub fn tools() -> Option<Tools> {
    kube_ipam::store::choose_tls();
    Tools::or_skip().unwrap()
}

/// `kubectl` in `yaml/`; if it fails, what there is.
pub fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = cluster.kubectl();
    match succeed(command.current_dir(e2e::manifests::directory()).args(arguments)) {
        Ok(said) => said,
        Err(error) => panic!("{error}\n{}", seen(cluster)),
    }
}

/// What there is: pods, Events, and what the add-on's containers have said.
pub fn seen(cluster: &Cluster) -> String {
    let mut seen = String::new();
    for more in [&["get", "pods", "-A", "-o", "wide"][..], &["get", "events", "-A"]] {
        seen += &succeed(cluster.kubectl().args(more)).unwrap_or_else(|error| error.to_string());
    }
    for name in NODES {
        let logs = cluster.node(name).unwrap().file("/var/log/pods");
        for_each_log(&logs, &mut |path, text| {
            if path.to_string_lossy().contains("kube-system") {
                seen += &format!("{}:\n{text}\n", path.display());
            }
        });
    }
    seen
}

fn for_each_log(directory: &Path, tell: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => for_each_log(&path, tell),
            path => tell(&path, &std::fs::read_to_string(&path).unwrap_or_default()),
        }
    }
}

/// Waits until all nodes run what was applied last.
pub fn rolled_out(cluster: &Cluster, set: &str) {
    kubectl(cluster, &["-n", "kube-system", "rollout", "status", &format!("daemonset/{set}"), "--timeout=120s"]);
}

/// The `ipam` section of a node's list.
pub fn section(cluster: &Cluster, node: &str) -> Value {
    let file = cluster.node(node).unwrap().file(paths::CONFLIST);
    let list: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    list["plugins"][0]["ipam"].clone()
}

/// What the node's own kube-ipam says, read.
pub fn on_node(cluster: &Cluster, node: &str, arguments: &[&str]) -> Value {
    let mut command = cluster.node(node).unwrap().command(&format!("{}/kube-ipam", paths::CNI_BIN)).unwrap();
    let said = succeed(command.args(arguments).args(["-o", "json"])).unwrap();
    serde_json::from_str(&said).unwrap()
}

/// How many ADDs the agent of a node has answered.
pub fn adds(cluster: &Cluster, node: &str) -> u64 {
    let status = on_node(cluster, node, &["status"]);
    status["adds"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

/// Pods of an app that run, once there are so many.
pub async fn running(cluster: &Cluster, app: &str, count: usize) -> Vec<Pod> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let params = ListParams::default().labels(&format!("app={app}"));
    let started = Instant::now();
    loop {
        let items = pods.list(&params).await.unwrap().items;
        let run = |pod: &Pod| {
            let status = pod.status.as_ref();
            status.and_then(|s| s.phase.as_deref()) == Some("Running")
                && status.is_some_and(|s| s.pod_ip.is_some())
                && pod.metadata.deletion_timestamp.is_none()
        };
        if items.len() == count && items.iter().all(run) {
            return items;
        }
        assert!(started.elapsed() < LIMIT, "{count} pods of {app} do not run:\n{}", seen(cluster));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A pod's address.
pub fn address(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap()
}

/// A pod's node.
pub fn node(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap()
}

/// The guide's walk-through with its own files; gives the pod that has the fixed address at the end. Pods without
/// annotations have addresses of `range`, first and last.
pub async fn guides_pods(cluster: &Cluster, range: [&str; 2]) -> Pod {
    kubectl(cluster, &["apply", "-f", "fixed-ip-test.yaml", "-f", "random-ip-test.yaml"]);
    let random = running(cluster, "random-ip-test", 2).await;
    let first = running(cluster, "fixed-ip-test", 1).await.remove(0);
    assert_eq!(address(&first), FIXED);
    assert_ne!(address(&random[0]), address(&random[1]));
    for pod in &random {
        let [first, last, has] = [range[0], range[1], &address(pod)].map(|text| text.parse::<IpAddr>().unwrap());
        assert!((first..=last).contains(&has), "{has} is outside of the range");
        cluster.sandbox(pod).unwrap().reaches(FIXED.parse().unwrap(), LIMIT).await.unwrap();
    }
    // It was the agents that gave them.
    let given: u64 = NODES.iter().map(|name| adds(cluster, name)).sum();
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
    second
}

/// These accounts have worked, and were never forbidden anything.
pub fn assert_allowed(cluster: &Cluster, accounts: &[&str]) {
    let calls = cluster.audit().unwrap().all().unwrap();
    for account in accounts {
        let user = format!("system:serviceaccount:kube-system:{account}");
        let theirs: Vec<&Call> = calls.iter().filter(|call| call.user == user).collect();
        assert!(!theirs.is_empty(), "{user} has asked for nothing");
        let forbidden: Vec<_> = theirs.iter().filter(|call| call.forbidden).collect();
        assert!(forbidden.is_empty(), "{forbidden:?}");
    }
}

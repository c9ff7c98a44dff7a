//! The add-on is taken off two real nodes by each way that people find, while pods come and go: both are calico-ipam's
//! within a minute, and kube-ipam's again when it is applied again. What only looks like it leaves them alone.
//!
//! For calico-ipam, which is not here, stands a script that runs this program with Calico's credentials.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use e2e::real::node::paths;
use e2e::real::{Cluster, Crds, succeed};
use e2e::site;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::ground::{FIXED, LIMIT, NODES, address, kubectl, rolled_out, running, section, seen, tools};

/// The nodes must be given back in this time.
const MINUTE: Duration = Duration::from_secs(60);
const LABEL: &str = "app.kubernetes.io/name=kube-ipam";
const RANDOM: &str = "random-ip-test";

/// The reference plugin cannot do with what calico-ipam answers.
const CALICO_IPAM: &str = r#"#!/bin/sh
sed 's|"ipam":{"type":"calico-ipam"}|"ipam":{"type":"kube-ipam","subnet":"10.244.0.0/16","stateDir":"/run/calico-ipam"}|' | /opt/cni/bin/kube-ipam
"#;

/// By which words it is taken off.
const WAYS: [(&str, &[&str]); 4] = [
    ("the DaemonSet", &["delete", "daemonset", "kube-ipam"]),
    ("the manifest", &["delete", "-f", "kube-ipam.yaml"]),
    (
        "everything with the label",
        &[
            "delete",
            "pods,configmaps,serviceaccounts,clusterrolebindings,rolebindings,clusterroles,roles,daemonsets",
            "-l",
            LABEL,
        ],
    ),
    ("the account", &["delete", "serviceaccount", "kube-ipam"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_way_the_add_on_is_taken_off_its_nodes_are_given_back() {
    let Some(tools) = tools() else { return };
    let cluster = site::start(tools, None, Crds::Definitions(calico::crds())).await.unwrap();
    for name in NODES {
        let plugin = format!("{}/calico-ipam", paths::CNI_BIN);
        let node = cluster.node(name).unwrap();
        node.write(&plugin, CALICO_IPAM).unwrap();
        set_permissions(node.file(&plugin), Permissions::from_mode(0o755)).unwrap();
    }
    let ours = applied(&cluster).await;
    kubectl(&cluster, &["apply", "-f", "fixed-ip-test.yaml", "-f", "random-ip-test.yaml"]);
    let fixed = running(&cluster, "fixed-ip-test", 1).await.remove(0);
    running(&cluster, RANDOM, 2).await;
    replaced(&cluster, &ours).await;
    forbidden(&cluster, &ours).await;
    for (way, words) in WAYS {
        let began = Instant::now();
        kubectl(&cluster, &[&["-n", "kube-system"], words, &["--wait=false"]].concat());
        given_back(&cluster, way, began).await;
        running(&cluster, RANDOM, 2).await;
        let after = running(&cluster, "fixed-ip-test", 1).await.remove(0);
        assert_eq!((after.uid(), address(&after).as_str()), (fixed.uid(), FIXED), "{way}");
        let claim = ["get", "ipclaim", "kube-subnet.10-244-0-216", "-o=jsonpath={.spec.holder.pod}"];
        assert_eq!(kubectl(&cluster, &claim), fixed.name_any(), "{way}: the claims stay");
        if way == "the account" {
            // Its pods go on with tokens of the account that is gone.
            kubectl(&cluster, &["apply", "-f", "kube-ipam.yaml"]);
            kubectl(&cluster, &["-n", "kube-system", "rollout", "restart", "daemonset/kube-ipam"]);
        } else {
            kubectl(&cluster, &["-n", "kube-system", "wait", "--for=delete", "pod", "-l", LABEL, "--timeout=60s"]);
        }
        assert_eq!(applied(&cluster).await, ours);
    }
    kubectl(&cluster, &["delete", "pod", "-l", "app=random-ip-test"]);
    running(&cluster, RANDOM, 2).await;
}

/// Applies the add-on and waits for both nodes; gives the section that they have.
async fn applied(cluster: &Cluster) -> Value {
    kubectl(cluster, &["apply", "-f", "kube-ipam.yaml"]);
    rolled_out(cluster, "kube-ipam");
    agents_serve(cluster).await;
    let sections = NODES.map(|name| section(cluster, name));
    assert!(sections.iter().all(|found| found["type"] == "kube-ipam"), "{sections:?}");
    sections[0].clone()
}

/// What the DaemonSet's status says may be older than its pods.
async fn agents_serve(cluster: &Cluster) {
    let began = Instant::now();
    while !NODES.iter().all(|name| serves(cluster, name)) {
        assert!(began.elapsed() < LIMIT, "the agents do not serve:\n{}", seen(cluster));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn serves(cluster: &Cluster, node: &str) -> bool {
    let mut command = cluster.node(node).unwrap().command(&format!("{}/kube-ipam", paths::CNI_BIN)).unwrap();
    let said = succeed(command.args(["status", "-o", "json"])).unwrap_or_default();
    serde_json::from_str::<Value>(&said).is_ok_and(|status| status["notReady"] == json!([]))
}

/// Pods come and go until both nodes name calico-ipam.
async fn given_back(cluster: &Cluster, way: &str, began: Instant) {
    while NODES.iter().any(|name| section(cluster, name) != json!({"type": "calico-ipam"})) {
        let sections = NODES.map(|name| section(cluster, name)["type"].clone());
        assert!(
            began.elapsed() < MINUTE,
            "{way} is gone, and after a minute the nodes have {sections:?}:\n{}",
            seen(cluster)
        );
        kubectl(cluster, &["delete", "pod", "-l", "app=random-ip-test", "--wait=false"]);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Agents that are replaced by a rolling update or by hand leave the node as it is.
async fn replaced(cluster: &Cluster, ours: &Value) {
    for words in [&["rollout", "restart", "daemonset/kube-ipam"][..], &["delete", "pod", "--wait=false", "-l", LABEL]] {
        kubectl(cluster, &[&["-n", "kube-system"], words].concat());
        for _ in 0..20 {
            assert_eq!(NODES.map(|name| section(cluster, name)), [ours.clone(), ours.clone()], "{words:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        rolled_out(cluster, "kube-ipam");
        agents_serve(cluster).await;
    }
}

/// So do those that may ask for nothing any more, or whose API server is away.
async fn forbidden(cluster: &Cluster, ours: &Value) {
    kubectl(cluster, &["delete", "clusterrolebinding", "kube-ipam"]);
    kubectl(cluster, &["-n", "kube-system", "delete", "pod", "--wait=false", "-l", LABEL]);
    let control_plane = cluster.control_plane();
    for second in 0..22 {
        assert_eq!(NODES.map(|name| section(cluster, name)), [ours.clone(), ours.clone()]);
        match second {
            5 => control_plane.kill_api_server(),
            10 => control_plane.start_api_server().await.unwrap(),
            _ => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(applied(cluster).await, *ours);
}

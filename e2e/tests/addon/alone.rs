//! `kubectl apply -k yaml/` on nodes whose conflist says `calico-ipam`: the DaemonSet does the rest, a conflist that is
//! written anew is edited again, claims may be in etcd, and `uninstall.yaml` gives the nodes back.

use std::time::{Duration, Instant};

use e2e::real::node::paths;
use e2e::real::{Cluster, Crds};
use e2e::site;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::ground::{
    FIXED, LIMIT, NODES, address, assert_allowed, guides_pods, kubectl, node, on_node, rolled_out, running, section,
    tools,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_add_on_takes_real_nodes_over_serves_the_guides_pods_and_gives_the_nodes_back() {
    let Some(tools) = tools() else { return };
    let cluster = site::start(tools, None, Crds::Definitions(calico::crds())).await.unwrap();
    let _routes = cluster.keep_routes();

    kubectl(&cluster, &["apply", "-k", "."]);
    rolled_out(&cluster, "kube-ipam");
    let config = e2e::manifests::documents("kube-ipam.yaml").unwrap();
    let config = e2e::manifests::only(&config, "ConfigMap", "kube-ipam").unwrap();
    let ours: Value = serde_json::from_str(config["data"]["ipam.json"].as_str().unwrap()).unwrap();
    for name in NODES {
        assert_eq!(section(&cluster, name), ours, "{name}");
    }
    let pod = guides_pods(&cluster, ["10.244.0.2", "10.244.255.254"]).await;
    let claim = kubectl(&cluster, &["get", "ipclaim", "kube-subnet.10-244-0-216", "-o=jsonpath={.spec.holder.pod}"]);
    assert_eq!(claim, pod.name_any());
    written_anew(&cluster, &ours).await;
    upgraded_under_churn(&cluster).await;
    with_etcd(&cluster, ours).await;

    kubectl(&cluster, &["apply", "-f", "uninstall.yaml"]);
    rolled_out(&cluster, "kube-ipam");
    for name in NODES {
        assert_eq!(section(&cluster, name), json!({"type": "calico-ipam"}), "{name}");
    }
    kubectl(&cluster, &["delete", "--wait=true", "--timeout=90s", "-f", "kube-ipam.yaml"]);
    assert_allowed(&cluster, &["kube-ipam"]);
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

/// All agents are replaced while pods come and go: each of these has its address at the first attempt.
async fn upgraded_under_churn(cluster: &Cluster) {
    kubectl(cluster, &["scale", "deployment/random-ip-test", "--replicas=6"]);
    let before = running(cluster, "random-ip-test", 6).await;
    kubectl(cluster, &["-n", "kube-system", "rollout", "restart", "daemonset/kube-ipam"]);
    let mut rounds = 0;
    loop {
        kubectl(cluster, &["delete", "pod", "-l", "app=random-ip-test", "--wait=false"]);
        rounds += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status =
            kubectl(cluster, &["-n", "kube-system", "rollout", "status", "daemonset/kube-ipam", "--watch=false"]);
        if status.contains("successfully rolled out") && rounds > 2 {
            break;
        }
        assert!(rounds < 60, "{status}");
    }
    let after = running(cluster, "random-ip-test", 6).await;
    assert!(after.iter().all(|pod| before.iter().all(|old| old.name_any() != pod.name_any())));
    let failed = kubectl(
        cluster,
        &[
            "get",
            "events",
            "--field-selector",
            "reason=FailedCreatePodSandBox",
            "-o=jsonpath={range .items[*]}{.involvedObject.name}: {.message}{\"\\n\"}{end}",
        ],
    );
    assert_eq!(failed, "", "no ADD failed in {rounds} rounds");
    kubectl(cluster, &["scale", "deployment/random-ip-test", "--replicas=2"]);
    running(cluster, "random-ip-test", 2).await;
    let checked = on_node(cluster, "node1", &["check", "--conflist", paths::CONFLIST]);
    assert_eq!(checked["violations"], json!([]), "{checked}");
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
    // Until the claims are carried over, the agents are not ready.
    let started = Instant::now();
    let first = loop {
        match NODES.into_iter().find(|name| section(cluster, name) == ipam) {
            Some(first) => break first,
            None => assert!(started.elapsed() < LIMIT, "{}", section(cluster, "node1")),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let carry = ["claims", "move", "--to", "etcd", "--close", "--yes", "--conflist", paths::CONFLIST];
    assert_eq!(on_node(cluster, first, &carry)["done"], true);
    rolled_out(cluster, "kube-ipam");
    for name in NODES {
        assert_eq!(section(cluster, name), ipam, "{name}");
    }
    kubectl(cluster, &["apply", "-f", "fixed-ip-test.yaml"]);
    let pod = running(cluster, "fixed-ip-test", 1).await.remove(0);
    assert_eq!(address(&pod), FIXED);
    let claims = on_node(cluster, &node(&pod), &["claims", "--conflist", paths::CONFLIST]);
    let claim = claims.as_array().unwrap().iter().find(|claim| claim["address"] == FIXED).unwrap();
    assert_eq!(claim["holder"]["pod"], pod.name_any());
}

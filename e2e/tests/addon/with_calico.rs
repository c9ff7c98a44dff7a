//! `yaml/calico.yaml` on real nodes, without Calico's own containers, which are not here: kinds, rights and accounts as
//! they are written, the conflist of its ConfigMap as `install-cni` would write it, and our two containers in
//! calico-node's pod. The plugin `calico` is the reference one under that name.

use e2e::real::node::paths;
use e2e::real::{Cluster, Crds, NodeFacts};
use e2e::site;
use e2e::tools::cni_plugins;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::ground::{FIXED, NODES, assert_allowed, guides_pods, kubectl, node, on_node, rolled_out, running, section};

const FILE: &str = "calico.yaml";

/// The ConfigMap's list on a node whose etcd is the cluster's.
fn conflist(facts: &NodeFacts) -> Value {
    let documents = e2e::manifests::documents(FILE).unwrap();
    let config = e2e::manifests::only(&documents, "ConfigMap", "calico-config").unwrap();
    let text = config["data"]["cni_network_config"].as_str().unwrap();
    let text = text.replace("__KUBERNETES_NODE_NAME__", &facts.name).replace("__CNI_MTU__", "0");
    let text = text.replace("__KUBECONFIG_FILEPATH__", paths::CALICO_KUBECONFIG);
    let mut list: Value = serde_json::from_str(&text).unwrap();
    list["plugins"][0]["ipam"]["etcdConfig"]["etcdURL"] = json!(facts.etcd_tls_url);
    list
}

/// The file's objects, with none of the containers that are Calico's.
fn without_calicos_containers() -> Vec<Value> {
    let mut documents = e2e::manifests::documents(FILE).unwrap();
    documents.retain(|document| document["kind"] != "Deployment");
    for document in &mut documents {
        if document["kind"] == "DaemonSet" {
            let pod = &mut document["spec"]["template"]["spec"];
            for key in ["initContainers", "containers"] {
                let all = pod[key].as_array_mut().unwrap();
                all.retain(|container| container["image"].as_str().unwrap().starts_with("kube-ipam:"));
                assert_eq!(all.len(), 1, "{key}");
            }
        }
    }
    documents
}

/// What whoever installs this puts on the nodes: the kubeconfig of the account that the file makes for it.
async fn write_kubeconfig(cluster: &Cluster) {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), "kube-system");
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
    let answer = accounts.create_token_request("kube-ipam", &PostParams::default(), &request).await.unwrap();
    let token = answer.status.unwrap().token;
    for name in NODES {
        let file = cluster.node(name).unwrap().file(paths::KUBE_IPAM_KUBECONFIG);
        cluster.control_plane().write_token_kubeconfig(&file, &token).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_in_calico_nodes_pod_serves_the_guides_pods_by_the_guides_files() {
    let Some(tools) = crate::ground::tools() else { return };
    let list = Box::new(|facts: &NodeFacts| conflist(facts).to_string());
    let cluster = site::start_with(tools, None, Crds::Definitions(calico::crds()), list).await.unwrap();
    let _routes = cluster.keep_routes();
    for name in NODES {
        let plugins = cluster.node(name).unwrap().file(paths::CNI_BIN);
        std::os::unix::fs::symlink(cni_plugins().join("ptp"), plugins.join("calico")).unwrap();
    }
    let documents = without_calicos_containers();
    for document in &documents {
        e2e::manifests::apply(&cluster.client(), document).await.unwrap();
    }
    write_kubeconfig(&cluster).await;
    rolled_out(&cluster, "calico-node");
    let before = NODES.map(|name| section(&cluster, name));

    let pod = guides_pods(&cluster, ["10.244.0.10", "10.244.0.200"]).await;
    let claims = on_node(&cluster, &node(&pod), &["claims", "--conflist", paths::CONFLIST]);
    let claim = claims.as_array().unwrap().iter().find(|claim| claim["address"] == FIXED).unwrap();
    assert_eq!(claim["holder"]["pod"], pod.name_any());
    // Nobody but Calico's installer writes this list.
    assert_eq!(NODES.map(|name| section(&cluster, name)), before);
    // Without agents the plugin works alone, by kubeConfig.
    kubectl(&cluster, &["-n", "kube-system", "delete", "daemonset", "calico-node", "--timeout=60s"]);
    kubectl(&cluster, &["scale", "deployment", "random-ip-test", "--replicas=4"]);
    running(&cluster, "random-ip-test", 4).await;
    let violations = on_node(&cluster, &node(&pod), &["check", "--conflist", paths::CONFLIST]);
    assert_eq!(violations["violations"], json!([]), "{violations}");
    // The agents were calico-node; plugin and command line are kube-ipam.
    assert_allowed(&cluster, &["calico-node", "kube-ipam"]);
}

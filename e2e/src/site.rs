//! A real cluster as an administrator finds it before kube-ipam comes: Calico's objects and `calico-ipam` in the
//! nodes' conflist, and nobody who gives addresses yet.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::{Value, json};

use crate::manifests;
use crate::real::image::Image;
use crate::real::node::paths;
use crate::real::{Cluster, Crds, Options};
use crate::tools::{self, Tools};

/// The image that the manifests name.
const IMAGE: &str = concat!("kube-ipam:", env!("CARGO_PKG_VERSION"));

/// A list as calico-node's installer writes it; `main` is the main plugin, of which only the reference one may be here.
pub fn conflist(main: &str, node: &str) -> Value {
    json!({"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
        {
            "type": main, "nodename": node, "datastore_type": "kubernetes", "ipam": {"type": "calico-ipam"},
            "policy": {"type": "k8s"}, "kubernetes": {"kubeconfig": paths::CALICO_KUBECONFIG},
        },
        {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    ]})
}

/// Starts it with the nodes node1 and node2. With a directory of Calico's binaries, these are the main plugin and
/// the IPAM plugin that the list names.
pub async fn start(tools: Tools, calico_bin: Option<PathBuf>, crds: Crds) -> Result<Cluster> {
    let image = Image { tags: vec![IMAGE.into()], binary: tools::kube_ipam()?, arguments: Vec::new() };
    let main = if calico_bin.is_some() { "calico" } else { "ptp" };
    let options = Options {
        nodes: vec!["node1".into(), "node2".into()],
        crds,
        conflist: Some(Box::new(move |facts| conflist(main, &facts.name).to_string())),
        images: vec![image],
        calico_bin,
        audit: true,
        ..Options::default()
    };
    let cluster = Cluster::start(tools, options).await?;
    for object in [
        json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "default-ipv4-ippool"},
            "spec": {
                "cidr": "10.244.0.0/16", "blockSize": 26, "nodeSelector": "all()", "ipipMode": "Never",
                "vxlanMode": "Never", "allowedUses": ["Workload", "Tunnel"],
            },
        }),
        json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
            "spec": {"datastoreReady": true},
        }),
    ] {
        manifests::apply(&cluster.client(), &object).await?;
    }
    Ok(cluster)
}

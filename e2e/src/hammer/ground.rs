//! What is hammered on: a real API server with a real etcd, which holds the claims too, and the nodes before it.
//!
//! Keeps: the nodes and the collector log in as the add-on's service account, with its rights and under the API
//! server's own limits. Only what a cluster's other parts would do, pods and their owners, is done with every right.

use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::PostParams;
use kube::{Api, Client};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::LazyLedger;
use kube_ipam::store::cached::Shelves;
use kube_ipam::store::kube::KubeStore;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::heard::{self, Town};
use super::meter::Meter;
use super::node::{Later, Line, Node};
use super::plan::{Plan, owner};
use crate::bench::ground::furnish;
use crate::lab::restricted;
use crate::manifests::{self, NODE_ACCOUNT};
use crate::memory;
use crate::real::{ControlPlane, ControlPlaneOptions, Crds};
use crate::tools::Tools;

/// Where the pods are.
pub(super) const NAMESPACE: &str = "hammer";
/// Of the pod network, and the first part of every handle's id.
pub(super) const NETWORK: &str = "k8s-pod-network";
/// Of the claims' keys in etcd.
const CLAIMS: &str = "kube-subnet";
/// Connections to the API server, and to etcd, that the nodes share.
const LINES: usize = 8;
/// Objects created at the same time.
const SIDE_BY_SIDE: usize = 16;

/// A cluster to hammer on. Dropping it removes every trace.
pub(super) struct Ground {
    // First, so that they end before the API server does.
    _watches: JoinSet<()>,
    pub nodes: Arc<Vec<Node>>,
    pub later: Later,
    /// With every right.
    pub admin: Client,
    /// For the collector.
    pub line: Line,
    pub net: NetConf,
    pub control_plane: ControlPlane,
    _directory: TempDir,
}

/// What every node's configuration names.
struct Site {
    directory: PathBuf,
    etcd: String,
    subnet: String,
    range: (Ipv4Addr, Ipv4Addr),
    gateway: Ipv4Addr,
}

// === impl Ground ===

impl Ground {
    pub(super) async fn start(tools: Tools, plan: &Plan, nodes: usize, meter: Arc<Meter>) -> Result<Ground> {
        let directory = memory::directory("kube-ipam-hammer-")?;
        let crds = Crds::Definitions(crate::crds());
        let control_plane = ControlPlane::start(tools, ControlPlaneOptions { crds, ..Default::default() }).await?;
        let site = Site::of(&control_plane, &directory, plan);
        control_plane.write_etcd_client(directory.path())?;
        let admin = KubeStore::from_kubeconfig(&control_plane.kubeconfig(), None).await?;
        furnish(&admin, control_plane.client(), &site.subnet, NAMESPACE).await?;
        grant(&control_plane, &site).await?;
        let admin = admin.client().clone();
        people(&admin, nodes, plan).await?;

        let net = site.net("node-0")?;
        let mut lines = Vec::new();
        for _ in 0..LINES {
            let store = KubeStore::from_kubeconfig(&site.kubeconfig(), None).await?;
            let ledger = Arc::new(LazyLedger::of(&net.ipam, &store));
            lines.push(Line { store, ledger });
        }
        let mut town = Town::new();
        let mut all = Vec::new();
        let (later, handles) = Later::new();
        for index in 0..nodes {
            let name = format!("node-{index}");
            let shelves = Arc::new(Shelves::new(&name));
            town.insert(name.clone(), shelves.clone());
            site.make_state(&name)?;
            let line = lines[index % LINES].clone();
            all.push(Node::new(index, &site.conf(&name), shelves, line, &later, meter.clone())?);
        }
        let nodes = Arc::new(all);
        later.work(nodes.clone(), handles);
        let watching = Client::try_from(KubeStore::config(&site.kubeconfig(), None).await?)?;
        let watches = heard::listen(&watching, Arc::new(town)).await?;
        let line = lines.swap_remove(0);
        Ok(Ground { _watches: watches, nodes, later, admin, line, net, control_plane, _directory: directory })
    }

    /// What the claims' keys begin with.
    pub(super) fn claims_prefix(&self) -> Result<String> {
        let etcd = self.net.ipam.etcd.as_ref().context("claims are in etcd")?;
        Ok(format!("{}/{}/claims/", etcd.prefix, self.net.ipam.network))
    }
}

/// The add-on's kinds, account and rights, and the account's kubeconfig.
async fn grant(control_plane: &ControlPlane, site: &Site) -> Result<()> {
    let client = control_plane.client();
    for document in manifests::rights()? {
        manifests::apply(&client, &document).await?;
    }
    let token = restricted::token(&client, NODE_ACCOUNT).await?;
    control_plane.write_token_kubeconfig(&site.kubeconfig(), &token)
}

/// The Node objects, and the Deployments of the fixed pods. Nobody acts on either: there are no controllers.
async fn people(client: &Client, nodes: usize, plan: &Plan) -> Result<()> {
    let machines = (0..nodes).map(|index| json!({"metadata": {"name": format!("node-{index}")}}));
    create::<NodeObject>(&Api::all(client.clone()), machines).await?;
    let fixed = plan.fixed.iter().enumerate().filter(|(_, address)| address.is_some());
    let deployments = fixed.map(|(workload, _)| {
        let labels = json!({"app": owner(workload)});
        json!({
            "metadata": {"name": owner(workload)},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "c"}]}},
            },
        })
    });
    create::<Deployment>(&Api::namespaced(client.clone(), NAMESPACE), deployments).await
}

async fn create<K>(api: &Api<K>, objects: impl Iterator<Item = Value>) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + DeserializeOwned,
{
    let parameters = PostParams::default();
    let created = stream::iter(objects).map(|object| {
        let parameters = &parameters;
        async move {
            api.create(parameters, &serde_json::from_value(object)?).await?;
            Ok::<(), anyhow::Error>(())
        }
    });
    created.buffer_unordered(SIDE_BY_SIDE).try_collect().await
}

/// A pod, bound to its node.
pub(super) fn pod(name: &str, node: &str, workload: usize, fixed: Option<Ipv4Addr>) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(address) = fixed {
        let deployment = owner(workload);
        metadata["annotations"] = json!({"kube-ipam.ip": address.to_string()});
        metadata["labels"] = json!({"app": deployment, "pod-template-hash": "5c9f"});
        metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{deployment}-5c9f"),
            "uid": format!("00000000-0000-4000-8000-{workload:012}"), "controller": true,
        }]);
    }
    json!({
        "metadata": metadata,
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false, "enableServiceLinks": false,
            "containers": [{"name": "c", "image": "c"}],
        },
    })
}

// === impl Site ===

impl Site {
    fn of(control_plane: &ControlPlane, directory: &TempDir, plan: &Plan) -> Site {
        Site {
            directory: directory.path().to_owned(),
            etcd: control_plane.site().etcd_tls_url(),
            subnet: plan.subnet.to_string(),
            range: plan.range,
            gateway: Ipv4Addr::from(u32::from(plan.subnet.network()) + 1),
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.join("node.kubeconfig")
    }

    fn state(&self, node: &str) -> PathBuf {
        self.directory.join("state").join(node)
    }

    fn make_state(&self, node: &str) -> Result<()> {
        Ok(std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.state(node))?)
    }

    /// The guide's configuration.
    fn conf(&self, node: &str) -> Value {
        let file = |name: &str| self.directory.join(name);
        json!({
            "name": NETWORK, "cniVersion": "0.3.1", "type": "calico", "nodename": node,
            "datastore_type": "kubernetes", "kubernetes": {"kubeconfig": self.kubeconfig()},
            "ipam": {
                "name": CLAIMS, "type": "kube-ipam", "kubeConfig": self.kubeconfig(), "etcdConfig": {
                    "etcdURL": self.etcd, "etcdCertFile": file("client.crt"), "etcdKeyFile": file("client.key"),
                    "etcdTrustedCAFileFile": file("ca.crt"),
                },
                "subnet": self.subnet, "rangeStart": self.range.0, "rangeEnd": self.range.1,
                "gateway": self.gateway, "routes": [{"dst": "0.0.0.0/0"}], "stateDir": self.state(node),
            },
        })
    }

    fn net(&self, node: &str) -> Result<NetConf> {
        NetConf::parse(&self.conf(node), "kube-ipam").map_err(|error| anyhow::anyhow!("{error}"))
    }
}

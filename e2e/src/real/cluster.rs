//! A whole cluster: one control plane and its nodes.
//! Keeps: nodes end before the control plane, and both before the site they share.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};

use super::audit::AuditLog;
use super::control_plane::{ControlPlane, ControlPlaneOptions};
use super::crds::Crds;
use super::image::Image;
use super::node::{Node, NodeFacts, PAUSE_IMAGE};
use super::routes::{self, NodeAddresses};
use super::sandbox::Sandbox;
use super::site::Site;
use crate::tools::Tools;

/// Makes a node's network configuration from its name and addresses.
pub type Conflist = Box<dyn Fn(&NodeFacts) -> String + Send + Sync>;

/// What a cluster is made of.
#[derive(Default)]
pub struct Options {
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// Applied before the nodes start.
    pub crds: Crds,
    /// Installed on every node as `kube-ipam`.
    pub kube_ipam_bin: Option<PathBuf>,
    /// A directory with Calico's plugins, installed among every node's CNI plugins (`calico`, `calico-ipam`).
    pub calico_bin: Option<PathBuf>,
    /// The network configuration of each node. Without it no node becomes ready before [`Node::write_conflist`].
    pub conflist: Option<Conflist>,
    /// Images besides `nginx:latest`.
    pub images: Vec<Image>,
    /// Write an audit log.
    pub audit: bool,
    /// Give user `kube-ipam` no rights but what RBAC objects grant it. Else it may do everything.
    pub restricted: bool,
}

/// A running cluster. Dropping it removes every trace.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    control_plane: ControlPlane,
}

impl Cluster {
    /// Starts control plane and nodes side by side. Returns when pods can be created, and run if there is a `conflist`.
    pub async fn start(tools: Tools, mut options: Options) -> Result<Cluster> {
        let site = Arc::new(Site::prepare(tools)?);
        write_images(&site, &options.images)?;
        let (audit, restricted, crds) = (options.audit, options.restricted, std::mem::take(&mut options.crds));
        let parts = ControlPlaneOptions { audit, controllers: true, restricted, crds };
        let control_plane = ControlPlane::prepare(site.clone(), &parts).await?;
        let mut nodes = Vec::new();
        for (index, name) in (0..).zip(&options.nodes) {
            let node = Node::prepare(site.clone(), &control_plane.netns(), name, index)?;
            furnish(&node, &options)?;
            // Its container runtime gets ready while the API server does.
            node.start()?;
            nodes.push(node);
        }
        control_plane.run(parts).await?;
        let cluster = Cluster { nodes, control_plane };
        let accounts: Api<ServiceAccount> = Api::default_namespaced(cluster.client());
        let has_account = await_condition(accounts, "default", |account: Option<&ServiceAccount>| account.is_some());
        tokio::time::timeout(Duration::from_secs(60), has_account).await.context("no default service account")??;
        if options.conflist.is_some() {
            cluster.ready().await?;
        }
        Ok(cluster)
    }

    /// A client with every right.
    pub fn client(&self) -> kube::Client {
        self.control_plane.client()
    }

    /// The path of a kubeconfig with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.kubeconfig()
    }

    /// etcd without TLS, reachable from here and from every node.
    pub fn etcd_url(&self) -> String {
        self.control_plane.site().etcd_url()
    }

    /// etcd, the API server and the controllers.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The audit log, if asked for at the start.
    pub fn audit(&self) -> Option<&AuditLog> {
        self.control_plane.audit()
    }

    /// The nodes in the order of [`Options::nodes`].
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node is called {name}"))
    }

    /// Waits until every node is ready.
    pub async fn ready(&self) -> Result<()> {
        let client = self.client();
        try_join_all(self.nodes.iter().map(|node| node.ready(&client))).await.map(drop)
    }

    /// `kubectl` with this cluster's kubeconfig. See [`super::succeed`] to run it.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.control_plane.site().tools.path("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).env_remove("HTTPS_PROXY").env_remove("https_proxy");
        command
    }

    /// The network of a running pod on one of the real nodes.
    pub fn sandbox(&self, pod: &Pod) -> Result<Sandbox> {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).context("the pod has no node yet")?;
        self.node(node)?.sandbox(pod)
    }

    /// Waits until a pod of the default namespace is ready, and returns it.
    pub async fn running(&self, name: &str, limit: Duration) -> Result<Pod> {
        let pods: Api<Pod> = Api::default_namespaced(self.client());
        let running = await_condition(pods, name, conditions::is_pod_running());
        let pod = tokio::time::timeout(limit, running).await.with_context(|| format!("pod {name} does not run"))??;
        pod.with_context(|| format!("pod {name} is gone"))
    }

    /// Sets the routes of every node, and of the control plane, once from the blocks as they are now.
    pub async fn sync_routes(&self) -> Result<()> {
        let api: Api<DynamicObject> = Api::all_with(self.client(), &routes::ipam_blocks());
        let blocks = api.list(&ListParams::default()).await?.items;
        self.machines().sync(&blocks)
    }

    /// Sets the routes now and whenever a block changes, until the result is dropped.
    pub fn keep_routes(&self) -> RouteKeeper {
        let resource = routes::ipam_blocks();
        let api: Api<DynamicObject> = Api::all_with(self.client(), &resource);
        let machines = self.machines();
        let task = tokio::spawn(async move {
            let writer = reflector::store::Writer::new(resource);
            let store = writer.as_reader();
            let mut events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer).boxed();
            while let Some(event) = events.next().await {
                let settled = matches!(&event, Ok(watcher::Event::InitApply(_) | watcher::Event::Init));
                if settled {
                    continue;
                }
                let blocks: Vec<_> = store.state().iter().map(|block| block.as_ref().clone()).collect();
                if let Err(error) = event.map_err(anyhow::Error::from).and_then(|_| machines.sync(&blocks)) {
                    tracing::warn!("routes: {error:#}");
                }
            }
        });
        RouteKeeper { task }
    }

    fn machines(&self) -> Machines {
        let addresses = |node: &Node| vec![IpAddr::V4(node.facts().ipv4), IpAddr::V6(node.facts().ipv6)];
        Machines {
            addresses: self.nodes.iter().map(|node| (node.name().to_owned(), addresses(node))).collect(),
            namespaces: self
                .nodes
                .iter()
                .map(|node| (node.netns().to_owned(), Some(node.name().to_owned())))
                .chain([(self.control_plane.netns(), None)])
                .collect(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter().for_each(Node::let_go);
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Options").field("nodes", &self.nodes).field("crds", &self.crds).finish_non_exhaustive()
    }
}

/// Keeps the routes as the blocks say, until it is dropped.
#[derive(Debug)]
pub struct RouteKeeper {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for RouteKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The machines that have routes: network namespaces, with the node's name where pods run.
struct Machines {
    addresses: NodeAddresses,
    namespaces: BTreeMap<String, Option<String>>,
}

impl Machines {
    fn sync(&self, blocks: &[DynamicObject]) -> Result<()> {
        for (netns, node) in &self.namespaces {
            routes::sync(netns, &routes::wanted(blocks, &self.addresses, node.as_deref())?)?;
        }
        Ok(())
    }
}

/// Every node imports all files of this directory when it starts for the first time.
fn write_images(site: &Site, others: &[Image]) -> Result<()> {
    let directory = site.slot.directory().join("images");
    std::fs::create_dir_all(&directory)?;
    let binary = site.tools.hold()?;
    let image = |tag: &str, arguments: &[&str]| Image {
        tags: vec![tag.into()],
        binary: binary.clone(),
        arguments: arguments.iter().map(|argument| argument.to_string()).collect(),
    };
    let own = [image("nginx:latest", &[]), image(PAUSE_IMAGE, &["pause"])];
    for (number, image) in own.iter().chain(others).enumerate() {
        image.write(&directory.join(format!("{number}.tar")))?;
    }
    Ok(())
}

fn furnish(node: &Node, options: &Options) -> Result<()> {
    if let Some(binary) = &options.kube_ipam_bin {
        node.install_plugin(binary)?;
    }
    if let Some(directory) = &options.calico_bin {
        let files = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
        for name in files.collect::<Result<Vec<_>, _>>()? {
            if ["calico", "calico-ipam"].iter().any(|plugin| name.file_name() == *plugin) {
                node.install_plugin(&name.path())?;
            }
        }
    }
    if let Some(conflist) = &options.conflist {
        node.write_conflist(&conflist(node.facts()))?;
    }
    Ok(())
}

//! The tiers behind a lab: what runs the control plane and the nodes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use kube::Client;
use serde_json::json;
use tempfile::TempDir;

use super::MainPlugin;
use super::conflist::{Network, Site};
use crate::calls::Counts;
use crate::embedded;
use crate::real::node::paths;
use crate::real::{self, Crds, NodeFacts, RouteKeeper};
use crate::standin;
use crate::tools::{self, Tools};

/// The names of the nodes, on every tier.
pub(super) const NODES: [&str; 2] = ["node1", "node2"];

/// A cluster of one of the tiers.
pub enum Machine {
    /// Stand-in nodes on the embedded control plane.
    Embedded(Box<Embedded>),
    /// Real nodes on the real control plane.
    Real(Box<Real>),
}

/// The embedded tier.
pub struct Embedded {
    nodes: Mutex<Vec<std::sync::Arc<standin::Node>>>,
    /// The control plane.
    pub cluster: embedded::Cluster,
    bin: TempDir,
}

/// The real tier.
pub struct Real {
    _routes: RouteKeeper,
    /// Nodes and control plane.
    pub cluster: real::Cluster,
}

impl Machine {
    pub(super) async fn embedded() -> Result<(Self, Client)> {
        let options = embedded::Options { crds: calico::crds(), etcd: true, ..Default::default() };
        let cluster = embedded::Cluster::start(options).await?;
        let client = cluster.client("lab")?;
        let bin = TempDir::with_prefix("kube-ipam-bin-")?;
        std::os::unix::fs::symlink(tools::kube_ipam()?, bin.path().join("kube-ipam"))?;
        let embedded = Embedded { nodes: Mutex::default(), cluster, bin };
        for name in NODES {
            embedded.start_node(name, &Network::default()).await?;
        }
        Ok((Self::Embedded(Box::new(embedded)), client))
    }

    pub(super) async fn real(
        calico_bin: Option<PathBuf>,
        crds: Option<PathBuf>,
        main: MainPlugin,
    ) -> Result<Option<(Self, Client)>> {
        let Some(tools) = Tools::or_skip()? else { return Ok(None) };
        let network = Network::default();
        let options = real::Options {
            nodes: NODES.map(str::to_owned).to_vec(),
            crds: crds.map_or_else(|| Crds::Definitions(calico::crds()), Crds::File),
            kube_ipam_bin: Some(tools::kube_ipam()?),
            calico_bin,
            conflist: Some(Box::new(move |facts| network.conflist(main, &facts.name, &real_site(facts)).to_string())),
            audit: true,
            ..Default::default()
        };
        let cluster = real::Cluster::start(tools, options).await?;
        let client = cluster.client();
        let routes = cluster.keep_routes();
        Ok(Some((Self::Real(Box::new(Real { _routes: routes, cluster })), client)))
    }

    pub(super) async fn configure(&self, network: &Network, main: MainPlugin) -> Result<()> {
        match self {
            Self::Embedded(embedded) => embedded
                .nodes
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .iter()
                .try_for_each(|node| node.set_conflist(&network.conflist(main, node.name(), &embedded.site()?))),
            Self::Real(real) => real.cluster.nodes().iter().try_for_each(|node| {
                let facts = node.facts();
                node.write_conflist(&network.conflist(main, &facts.name, &real_site(facts)).to_string())
            }),
        }
    }

    pub(super) async fn kill_node(&self, name: &str) -> Result<()> {
        match self {
            Self::Embedded(embedded) => embedded.node(name)?.kill().await,
            Self::Real(real) => {
                real.cluster.node(name)?.kill();
                Ok(())
            }
        }
    }

    pub(super) async fn start_node(&self, name: &str, client: &Client) -> Result<()> {
        match self {
            Self::Embedded(embedded) => embedded.node(name)?.start_again().await,
            Self::Real(real) => {
                let node = real.cluster.node(name)?;
                node.start()?;
                node.ready(client).await
            }
        }
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Embedded(embedded) => embedded.cluster.kubeconfig().to_path_buf(),
            Self::Real(real) => real.cluster.kubeconfig(),
        }
    }

    pub(super) fn write_kubeconfig(&self, path: &Path, user: &str) -> Result<()> {
        match self {
            Self::Embedded(embedded) => embedded.cluster.server().write_kubeconfig(path, Some(user)),
            Self::Real(real) => real.cluster.control_plane().write_kubeconfig(path, user),
        }
    }

    pub(super) async fn counted<T>(&self, user: &str, work: impl Future<Output = Result<T>>) -> Result<(T, Counts)> {
        match self {
            Self::Embedded(embedded) => {
                let calls = embedded.cluster.server().calls();
                let mark = calls.mark();
                let done = work.await?;
                let new = calls.after(mark).into_iter().filter(|call| call.user == user);
                Ok((done, new.map(|call| (call.verb, call.resource)).collect()))
            }
            Self::Real(real) => {
                let audit = real.cluster.audit().context("the cluster was started without an audit log")?;
                audit.counted(user, work).await
            }
        }
    }

    pub(super) fn etcd_url(&self) -> Result<String> {
        Ok(match self {
            Self::Embedded(embedded) => embedded.cluster.etcd()?.url(),
            Self::Real(real) => real.cluster.etcd_url(),
        })
    }
}

impl Embedded {
    fn node(&self, name: &str) -> Result<std::sync::Arc<standin::Node>> {
        let nodes = self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        nodes.iter().find(|n| n.name() == name).cloned().with_context(|| format!("no node is called {name}"))
    }

    async fn start_node(&self, name: &str, network: &Network) -> Result<()> {
        let conflist = network.conflist(MainPlugin::StandIn, name, &self.site()?);
        let client = self.cluster.client(name)?;
        let options = standin::Options::new(client, name, conflist, vec![self.bin.path().to_path_buf()]);
        let node = standin::Node::start(options).await?;
        self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(std::sync::Arc::new(node));
        Ok(())
    }

    fn site(&self) -> Result<Site> {
        Ok(Site {
            kubeconfig: self.cluster.kubeconfig().display().to_string(),
            etcd: json!({"etcdURL": self.cluster.etcd()?.url()}),
            log_file: None,
            state_dir: Some(self.bin.path().join("state").display().to_string()),
        })
    }
}

/// The guide's files are where the guide says.
fn real_site(facts: &NodeFacts) -> Site {
    Site {
        kubeconfig: paths::KUBE_IPAM_KUBECONFIG.into(),
        etcd: json!({
            "etcdURL": facts.etcd_tls_url,
            "etcdCertFile": paths::ETCD_CERTIFICATE,
            "etcdKeyFile": paths::ETCD_KEY,
            "etcdTrustedCAFileFile": paths::ETCD_AUTHORITY,
        }),
        log_file: Some("/var/log/calico/cni/cni.log".into()),
        state_dir: None,
    }
}

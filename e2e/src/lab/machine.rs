//! The tiers behind a lab: what runs the control plane and the nodes.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result};
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::MainPlugin;
use super::agents::Agents;
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
    /// Before the nodes, so that it is there until they are gone.
    agents: Option<Agents>,
    nodes: Mutex<Vec<std::sync::Arc<standin::Node>>>,
    /// The control plane.
    pub cluster: embedded::Cluster,
    bin: TempDir,
}

/// The real tier.
pub struct Real {
    agents: Option<Agents>,
    _routes: RouteKeeper,
    /// Nodes and control plane.
    pub cluster: real::Cluster,
}

impl Machine {
    pub(super) async fn embedded(with_agents: bool, network: &Network) -> Result<(Self, Client)> {
        let options = embedded::Options { crds: crate::crds(), etcd: true, ..Default::default() };
        let cluster = embedded::Cluster::start(options).await?;
        let client = cluster.client("lab")?;
        let bin = TempDir::with_prefix("kube-ipam-bin-")?;
        std::os::unix::fs::symlink(tools::kube_ipam()?, bin.path().join("kube-ipam"))?;
        let agents = with_agents.then(Agents::default);
        let embedded = Embedded { agents, nodes: Mutex::default(), cluster, bin };
        for name in NODES {
            embedded.start_node(name, network).await?;
        }
        Ok((Self::Embedded(Box::new(embedded)), client))
    }

    pub(super) async fn real(
        calico_bin: Option<PathBuf>,
        crds: Option<PathBuf>,
        main: MainPlugin,
        with_agents: bool,
    ) -> Result<Option<(Self, Client)>> {
        let Some(tools) = Tools::or_skip()? else { return Ok(None) };
        let network = Network::default();
        let options = real::Options {
            nodes: NODES.map(str::to_owned).to_vec(),
            crds: crds.map_or_else(|| Crds::Definitions(crate::crds()), Crds::File),
            kube_ipam_bin: Some(tools::kube_ipam()?),
            calico_bin,
            conflist: Some(Box::new(move |facts| network.conflist(main, &facts.name, &real_site(facts)).to_string())),
            audit: true,
            ..Default::default()
        };
        let cluster = real::Cluster::start(tools, options).await?;
        let client = cluster.client();
        let routes = cluster.keep_routes();
        let real = Real { agents: with_agents.then(Agents::default), _routes: routes, cluster };
        for name in NODES {
            real.start_agent(name).await?;
        }
        Ok(Some((Self::Real(Box::new(real)), client)))
    }

    pub(super) async fn configure(&self, network: &Network, main: MainPlugin) -> Result<()> {
        match self {
            Self::Embedded(embedded) => embedded
                .nodes
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .iter()
                .try_for_each(|node| embedded.configure(node, network, main)),
            Self::Real(real) => real.cluster.nodes().iter().try_for_each(|node| {
                let facts = node.facts();
                node.write_conflist(&network.conflist(main, &facts.name, &real_site(facts)).to_string())
            }),
        }
    }

    pub(super) async fn kill_node(&self, name: &str) -> Result<()> {
        match self {
            Self::Embedded(embedded) => {
                embedded.agents.iter().for_each(|agents| agents.kill(name));
                embedded.node(name)?.kill().await
            }
            Self::Real(real) => {
                real.agents.iter().for_each(|agents| agents.kill(name));
                real.cluster.node(name)?.kill();
                Ok(())
            }
        }
    }

    pub(super) async fn start_node(&self, name: &str, client: &Client) -> Result<()> {
        match self {
            Self::Embedded(embedded) => {
                embedded.start_agent(name, true).await?;
                embedded.node(name)?.start_again().await
            }
            Self::Real(real) => {
                let node = real.cluster.node(name)?;
                node.start()?;
                node.ready(client).await?;
                real.start_agent(name).await
            }
        }
    }

    /// SIGKILL for a node's agent, which then starts anew; nothing where there are none.
    pub(super) async fn restart_agent(&self, name: &str) -> Result<()> {
        self.kill_agent(name)?;
        match self {
            Self::Embedded(embedded) => embedded.start_agent(name, false).await,
            Self::Real(real) => real.start_agent(name).await,
        }
    }

    /// SIGKILL for a node's agent.
    pub(super) fn kill_agent(&self, name: &str) -> Result<()> {
        match self {
            Self::Embedded(embedded) => {
                embedded.agents.iter().for_each(|agents| agents.kill(name));
                Ok(())
            }
            Self::Real(real) => real.kill_agent(name),
        }
    }

    /// The agents, if there are any.
    pub(super) fn agents(&self) -> Result<&Agents> {
        let agents = match self {
            Self::Embedded(embedded) => &embedded.agents,
            Self::Real(real) => &real.agents,
        };
        agents.as_ref().context("this lab has no agents")
    }

    /// The state directory of a node as seen from here.
    pub(super) fn state_dir(&self, name: &str) -> Result<PathBuf> {
        match self {
            Self::Embedded(embedded) => Ok(embedded.state_dir(name)),
            Self::Real(real) => Ok(real.cluster.node(name)?.file("/run/kube-ipam")),
        }
    }

    /// Where a stand-in node finds things, whatever the tier.
    pub(super) fn host_site(&self, state_dir: String) -> Result<Site> {
        Ok(Site {
            kubeconfig: self.kubeconfig().display().to_string(),
            etcd: json!({"etcdURL": self.etcd_url()?}),
            log_file: None,
            state_dir: Some(state_dir),
        })
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
        let conflist = self.write_conflist(name, network, MainPlugin::StandIn)?;
        self.start_agent(name, true).await?;
        let client = self.cluster.client(name)?;
        let options = standin::Options::new(client, name, conflist, vec![self.bin.path().to_path_buf()]);
        let node = standin::Node::start(options).await?;
        self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(std::sync::Arc::new(node));
        Ok(())
    }

    /// A node's own directory: what is left in it is lost with its power.
    fn state_dir(&self, name: &str) -> PathBuf {
        self.bin.path().join(format!("{name}-state"))
    }

    fn configure(&self, node: &standin::Node, network: &Network, main: MainPlugin) -> Result<()> {
        node.set_conflist(&self.write_conflist(node.name(), network, main)?)
    }

    /// The configuration, also as a file where an agent looks for it.
    fn write_conflist(&self, name: &str, network: &Network, main: MainPlugin) -> Result<Value> {
        let conflist = network.conflist(main, name, &self.site(name)?);
        let directory = self.bin.path().join(format!("{name}-net.d"));
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("10-calico.conflist"), conflist.to_string())?;
        Ok(conflist)
    }

    /// Starts the node's agent, if agents are wanted; `afresh` as after a power cut.
    async fn start_agent(&self, name: &str, afresh: bool) -> Result<()> {
        let Some(agents) = &self.agents else { return Ok(()) };
        let state = self.state_dir(name);
        if afresh {
            let _ = std::fs::remove_dir_all(&state);
        }
        let mut command = std::process::Command::new(tools::kube_ipam()?);
        command.arg("agent").arg("--cni-conf-dir").arg(self.bin.path().join(format!("{name}-net.d")));
        command.arg("--kubeconfig").arg(self.cluster.kubeconfig()).arg("--state-dir").arg(&state);
        // Any port: every agent of this machine has its own, and its status tells which.
        command.args(["--metrics-address", "127.0.0.1:0"]);
        agents.start(name, command, &state, &self.bin.path().join(format!("{name}-agent.log"))).await
    }

    fn site(&self, name: &str) -> Result<Site> {
        Ok(Site {
            kubeconfig: self.cluster.kubeconfig().display().to_string(),
            etcd: json!({"etcdURL": self.cluster.etcd()?.url()}),
            log_file: None,
            state_dir: Some(self.state_dir(name).display().to_string()),
        })
    }
}

impl Real {
    fn kill_agent(&self, name: &str) -> Result<()> {
        let Some(agents) = &self.agents else { return Ok(()) };
        // What runs here is only the way into the node.
        real::succeed(self.cluster.node(name)?.command("pkill")?.args(["-KILL", "-f", "kube-ipam agent"]))?;
        agents.kill(name);
        Ok(())
    }

    async fn start_agent(&self, name: &str) -> Result<()> {
        let Some(agents) = &self.agents else { return Ok(()) };
        let node = self.cluster.node(name)?;
        let mut command = node.command(&format!("{}/kube-ipam", paths::CNI_BIN))?;
        command.args(["agent", "--kubeconfig", paths::KUBE_IPAM_KUBECONFIG]);
        agents.start(name, command, &node.file("/run/kube-ipam"), &node.file("/var/log/kube-ipam-agent.log")).await
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

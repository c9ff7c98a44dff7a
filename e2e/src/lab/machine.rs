//! The tiers behind a lab: what runs the control plane and the nodes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use serde_json::json;

use super::MainPlugin;
use super::agents::Agents;
use super::conflist::{Network, Site};
use super::ground::{COUNTED, Ground};
use super::restricted::Restricted;
use super::standins::StandIns;
use crate::calls::Counts;
use crate::embedded;
use crate::real::node::paths;
use crate::real::{self, Crds, NodeFacts, RouteKeeper};
use crate::tools::{self, Tools};

/// The names of the nodes, on every tier.
pub(super) const NODES: [&str; 2] = ["node1", "node2"];

/// A cluster of one of the tiers.
pub enum Machine {
    /// Stand-in nodes on the embedded control plane, or on the real one.
    StandIns(Box<StandIns>),
    /// Real nodes on the real control plane.
    Real(Box<Real>),
}

/// The real tier.
pub struct Real {
    agents: Option<Agents>,
    _routes: RouteKeeper,
    /// Nodes and control plane.
    pub cluster: real::Cluster,
}

impl Machine {
    pub(super) async fn embedded(
        with_agents: bool,
        network: &Network,
        crds: Vec<CustomResourceDefinition>,
    ) -> Result<(Self, Client)> {
        let options = embedded::Options { crds, etcd: true, ..Default::default() };
        Self::stand_ins(Ground::Embedded(embedded::Cluster::start(options).await?), with_agents, network).await
    }

    /// The real control plane with stand-in nodes, where everybody has the rights that `yaml/kube-ipam.yaml` gives.
    pub(super) async fn restricted(with_agents: bool, network: &Network) -> Result<Option<(Self, Client)>> {
        let Some(tools) = Tools::or_skip()? else { return Ok(None) };
        let ground = Ground::Restricted(Restricted::start(tools, network.group.unwrap_or_default()).await?);
        Self::stand_ins(ground, with_agents, network).await.map(Some)
    }

    async fn stand_ins(ground: Ground, with_agents: bool, network: &Network) -> Result<(Self, Client)> {
        let client = ground.client("lab")?;
        let nodes = StandIns::start(ground, with_agents, NODES, network).await?;
        Ok((Self::StandIns(Box::new(nodes)), client))
    }

    pub(super) async fn real(
        calico_bin: Option<PathBuf>,
        crds: Option<PathBuf>,
        main: MainPlugin,
        with_agents: bool,
        network: Network,
    ) -> Result<Option<(Self, Client)>> {
        let Some(tools) = Tools::or_skip()? else { return Ok(None) };
        let definitions = crate::crds_in(network.group.unwrap_or_default());
        let options = real::Options {
            nodes: NODES.map(str::to_owned).to_vec(),
            crds: crds.map_or_else(|| Crds::Definitions(definitions), Crds::File),
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
            Self::StandIns(nodes) => nodes.configure(network, main),
            Self::Real(real) => real.cluster.nodes().iter().try_for_each(|node| {
                let facts = node.facts();
                node.write_conflist(&network.conflist(main, &facts.name, &real_site(facts)).to_string())
            }),
        }
    }

    pub(super) async fn kill_node(&self, name: &str) -> Result<()> {
        match self {
            Self::StandIns(nodes) => {
                nodes.kill_agent(name);
                nodes.node(name)?.kill().await
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
            Self::StandIns(nodes) => {
                nodes.start_agent(name, true).await?;
                nodes.node(name)?.start_again().await
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
            Self::StandIns(nodes) => nodes.start_agent(name, false).await,
            Self::Real(real) => real.start_agent(name).await,
        }
    }

    /// SIGKILL for a node's agent.
    pub(super) fn kill_agent(&self, name: &str) -> Result<()> {
        match self {
            Self::StandIns(nodes) => {
                nodes.kill_agent(name);
                Ok(())
            }
            Self::Real(real) => real.kill_agent(name),
        }
    }

    /// The agents, if there are any.
    pub(super) fn agents(&self) -> Result<&Agents> {
        let agents = match self {
            Self::StandIns(nodes) => nodes.agents(),
            Self::Real(real) => &real.agents,
        };
        agents.as_ref().context("this lab has no agents")
    }

    /// The state directory of a node as seen from here.
    pub(super) fn state_dir(&self, name: &str) -> Result<PathBuf> {
        match self {
            Self::StandIns(nodes) => Ok(nodes.state_dir(name)),
            Self::Real(real) => Ok(real.cluster.node(name)?.file("/run/kube-ipam")),
        }
    }

    /// Where a stand-in node finds things, whatever the tier.
    pub(super) fn host_site(&self, state_dir: String) -> Result<Site> {
        Ok(Site {
            kubeconfig: self.node_kubeconfig().display().to_string(),
            etcd: json!({"etcdURL": self.etcd_url()?}),
            log_file: None,
            state_dir: Some(state_dir),
        })
    }

    /// A kubeconfig with every right.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::StandIns(nodes) => nodes.ground.kubeconfig(),
            Self::Real(real) => real.cluster.kubeconfig(),
        }
    }

    /// The kubeconfig of nodes that this machine runs.
    pub(super) fn node_kubeconfig(&self) -> PathBuf {
        match self {
            Self::StandIns(nodes) => nodes.ground.node_kubeconfig(),
            Self::Real(_) => self.kubeconfig(),
        }
    }

    /// The kubeconfig of whoever uses the command line.
    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        match self {
            Self::StandIns(nodes) => nodes.ground.admin_kubeconfig(),
            Self::Real(_) => self.kubeconfig(),
        }
    }

    /// Writes a kubeconfig with a node's rights, for the user whom `counted` counts.
    pub(super) fn write_counted_kubeconfig(&self, path: &Path) -> Result<()> {
        match self {
            Self::StandIns(nodes) => nodes.ground.write_counted_kubeconfig(path),
            Self::Real(real) => real.cluster.control_plane().write_kubeconfig(path, COUNTED),
        }
    }

    pub(super) async fn counted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Counts)> {
        match self {
            Self::StandIns(nodes) => nodes.ground.counted(work).await,
            Self::Real(real) => {
                let audit = real.cluster.audit().context("the cluster was started without an audit log")?;
                audit.counted(COUNTED, work).await
            }
        }
    }

    /// Whether Kubernetes' own controllers run here.
    pub(super) fn is_real(&self) -> bool {
        match self {
            Self::StandIns(nodes) => nodes.ground.is_real(),
            Self::Real(_) => true,
        }
    }

    pub(super) fn etcd_url(&self) -> Result<String> {
        match self {
            Self::StandIns(nodes) => nodes.ground.etcd_url(),
            Self::Real(real) => Ok(real.cluster.etcd_url()),
        }
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

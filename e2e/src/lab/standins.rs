//! Stand-in nodes with kube-ipam, with or without an agent beside each.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::MainPlugin;
use super::agents::Agents;
use super::conflist::{Network, Site};
use super::ground::Ground;
use crate::real::succeed;
use crate::{standin, tools};

/// Often enough for the real node controller.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// Nodes that only run the plugin, and what they stand on.
pub struct StandIns {
    /// Before the nodes, so that it is there until they are gone.
    agents: Option<Agents>,
    nodes: Mutex<Vec<Arc<standin::Node>>>,
    /// Control plane and etcd.
    pub(super) ground: Ground,
    bin: TempDir,
    /// Whether the agents keep the lists as the add-on's do.
    keeps_lists: bool,
}

impl StandIns {
    pub(super) async fn start<const N: usize>(
        ground: Ground,
        with_agents: bool,
        names: [&str; N],
        network: &Network,
    ) -> Result<Self> {
        let bin = TempDir::with_prefix("kube-ipam-bin-")?;
        std::os::unix::fs::symlink(tools::kube_ipam()?, bin.path().join("kube-ipam"))?;
        let nodes = Self {
            agents: with_agents.then(Agents::default),
            nodes: Mutex::default(),
            ground,
            bin,
            keeps_lists: network.keeps_lists,
        };
        for name in names {
            nodes.start_node(name, network).await?;
        }
        Ok(nodes)
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Arc<standin::Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn agents(&self) -> &Option<Agents> {
        &self.agents
    }

    pub(super) fn kill_agent(&self, name: &str) {
        self.agents.iter().for_each(|agents| agents.kill(name));
    }

    pub(super) fn node(&self, name: &str) -> Result<Arc<standin::Node>> {
        self.nodes().iter().find(|n| n.name() == name).cloned().with_context(|| format!("no node is called {name}"))
    }

    async fn start_node(&self, name: &str, network: &Network) -> Result<()> {
        let conflist = self.write_conflist(name, network, MainPlugin::StandIn)?;
        self.start_agent(name, true).await?;
        let client = self.ground.client(name)?;
        let mut options = standin::Options::new(client, name, conflist, vec![self.bin.path().to_path_buf()]);
        options.conflist_file = Some(self.list_file(name));
        options.heartbeat = self.ground.is_real().then_some(HEARTBEAT);
        let node = standin::Node::start(options).await?;
        self.nodes().push(Arc::new(node));
        Ok(())
    }

    /// A node's own directory: what is left in it is lost with its power.
    pub(super) fn state_dir(&self, name: &str) -> PathBuf {
        self.bin.path().join(format!("{name}-state"))
    }

    pub(super) fn configure(&self, network: &Network, main: MainPlugin) -> Result<()> {
        self.nodes().iter().try_for_each(|node| node.set_conflist(&self.write_conflist(node.name(), network, main)?))
    }

    /// The configuration, also as a file where an agent looks for it.
    fn write_conflist(&self, name: &str, network: &Network, main: MainPlugin) -> Result<Value> {
        let conflist = network.conflist(main, name, &self.site(name)?);
        let file = self.list_file(name);
        file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(self.section_file(name), conflist["plugins"][0]["ipam"].to_string())?;
        // In one step: a plugin may be called meanwhile.
        let new = file.with_extension("new");
        std::fs::write(&new, conflist.to_string())?;
        std::fs::rename(new, file)?;
        Ok(conflist)
    }

    /// A node's list.
    pub(super) fn list_file(&self, name: &str) -> PathBuf {
        self.bin.path().join(format!("{name}-net.d/10-calico.conflist"))
    }

    /// The section that is to be in it.
    fn section_file(&self, name: &str) -> PathBuf {
        self.bin.path().join(format!("{name}-ipam.json"))
    }

    /// `kube-ipam install` on a node.
    pub(super) fn install(&self, name: &str) -> Result<String> {
        let mut command = std::process::Command::new(tools::kube_ipam()?);
        let plugins = self.bin.path().join(format!("{name}-bin"));
        std::fs::create_dir_all(&plugins)?;
        command.arg("install").arg("--cni-bin-dir").arg(plugins);
        command.arg("--cni-conf-dir").args(self.list_file(name).parent()).arg("--ipam").arg(self.section_file(name));
        succeed(command.env_remove("CNI_COMMAND"))
    }

    /// Starts the node's agent, if agents are wanted; `afresh` as after a power cut.
    pub(super) async fn start_agent(&self, name: &str, afresh: bool) -> Result<()> {
        let Some(agents) = &self.agents else { return Ok(()) };
        let state = self.state_dir(name);
        if afresh {
            let _ = std::fs::remove_dir_all(&state);
        }
        let mut command = std::process::Command::new(tools::kube_ipam()?);
        command.arg("agent").arg("--cni-conf-dir").arg(self.bin.path().join(format!("{name}-net.d")));
        command.arg("--kubeconfig").arg(self.ground.node_kubeconfig()).arg("--state-dir").arg(&state);
        // Any port: every agent of this machine has its own, and its status tells which.
        command.args(["--metrics-address", "127.0.0.1:0"]);
        if self.keeps_lists {
            command.arg("--ipam").arg(self.section_file(name));
        }
        agents.start(name, command, &state, &self.bin.path().join(format!("{name}-agent.log"))).await
    }

    fn site(&self, name: &str) -> Result<Site> {
        Ok(Site {
            kubeconfig: self.ground.node_kubeconfig().display().to_string(),
            etcd: json!({"etcdURL": self.ground.etcd_url()?}),
            log_file: None,
            state_dir: Some(self.state_dir(name).display().to_string()),
        })
    }
}

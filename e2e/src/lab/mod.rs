//! A lab: one cluster of any tier with kube-ipam on its nodes, and what the scenarios ask of it.
//! Scenarios know this type only, so that every tier runs the same ones.

pub(crate) mod agents;
mod calicoctl;
mod conflist;
mod crowd;
mod ground;
mod machine;
mod records;
pub(crate) mod restricted;
mod standins;
mod world;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use calico::{ApiGroup, IPAMBlock, IPPool};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::AnyLedger;
use kube_ipam::store::cluster::ClusterId;
use kube_ipam::store::etcd::EtcdLedger;
use kube_ipam::store::ipclaim::IPClaimLedger;
use kube_ipam::store::kube::KubeStore;
use serde_json::json;

use crate::calls::Counts;
use crate::releases::Release;

pub use calicoctl::{Row, pool_rows};
pub use conflist::{LEDGER, Ledger, Network, Site};
pub use crowd::{CROWD, Crowd};
pub use machine::Machine;
pub use records::Mark;
pub use restricted::{Restricted, User};
pub use world::{Limits, address, node_of};

/// A cluster with kube-ipam.
pub struct Lab {
    pub(crate) machine: Machine,
    client: Client,
    main: MainPlugin,
    limits: Limits,
    ledger: Ledger,
    group: Option<ApiGroup>,
    agents: bool,
}

/// The group in which the real tiers have Calico's objects, if one is asked for.
fn asked_group() -> Option<ApiGroup> {
    std::env::var("E2E_API_GROUP").ok().map(|text| ApiGroup::named(&text))
}

/// The plugin that runs kube-ipam on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MainPlugin {
    /// A stand-in that only runs the IPAM plugin.
    StandIn,
    /// The reference plugin `ptp`.
    Ptp,
    /// Calico's own.
    Calico,
}

impl Lab {
    /// The embedded tier: two stand-in nodes, with or without an agent on each.
    pub async fn embedded(agents: bool) -> Result<Self> {
        Self::embedded_on(agents, Ledger::default()).await
    }

    /// The same with the claims in a ledger of choice.
    pub async fn embedded_on(agents: bool, ledger: Ledger) -> Result<Self> {
        Self::embedded_as(agents, Network { ledger, ..Network::default() }).await
    }

    /// The same with Calico's objects in the newer group.
    pub async fn embedded_in_v3(agents: bool, ledger: Ledger) -> Result<Self> {
        Self::embedded_as(agents, Network { ledger, group: Some(ApiGroup::V3), ..Network::default() }).await
    }

    /// The same where Calico's definitions are those of a release.
    pub async fn embedded_of(release: Release, agents: bool) -> Result<Self> {
        let network = Network { ledger: Ledger::Objects, group: Some(release.group), ..Network::default() };
        let (machine, client) = Machine::embedded(agents, &network, release.crds()?).await?;
        Self::prepare(machine, client, MainPlugin::StandIn, &network, agents).await
    }

    async fn embedded_as(agents: bool, network: Network) -> Result<Self> {
        let crds = crate::crds_in(network.group.unwrap_or_default());
        let (machine, client) = Machine::embedded(agents, &network, crds).await?;
        Self::prepare(machine, client, MainPlugin::StandIn, &network, agents).await
    }

    /// The real tier, with two real nodes, with or without an agent on each; `None` if it cannot run here, which has been said on stderr.
    /// `CALICO_BIN` makes Calico's main plugin run the pods, `CALICO_CRDS` its own definitions serve the objects, and
    /// `E2E_API_GROUP` says in which group they are.
    pub async fn real(agents: bool) -> Result<Option<Self>> {
        let calico_bin = std::env::var_os("CALICO_BIN").map(PathBuf::from);
        let main = if calico_bin.is_some() { MainPlugin::Calico } else { MainPlugin::Ptp };
        let crds = std::env::var_os("CALICO_CRDS").map(PathBuf::from);
        let network = Network { group: asked_group(), ..Network::default() };
        let made = Machine::real(calico_bin, crds, main, agents, network.clone()).await?;
        let Some((machine, client)) = made else { return Ok(None) };
        Self::prepare(machine, client, main, &network, agents).await.map(Some)
    }

    /// Stand-in nodes on the real control plane, where nodes and command line have the rights of
    /// `yaml/kube-ipam.yaml` and no others; `None` if it cannot run here, which has been said on stderr. `E2E_API_GROUP` as
    /// for [`Lab::real`].
    pub async fn restricted(agents: bool, ledger: Ledger) -> Result<Option<Self>> {
        let network = Network { ledger, group: asked_group(), ..Network::default() };
        let Some((machine, client)) = Machine::restricted(agents, &network).await? else { return Ok(None) };
        Self::prepare(machine, client, MainPlugin::StandIn, &network, agents).await.map(Some)
    }

    /// The same with agents that keep the lists, which name no group. `None` as for [`Lab::real`].
    pub async fn that_moves() -> Result<Option<Self>> {
        let network = Network { ledger: Ledger::Objects, keeps_lists: true, ..Network::default() };
        let Some((machine, client)) = Machine::restricted(true, &network).await? else { return Ok(None) };
        Self::prepare(machine, client, MainPlugin::StandIn, &network, true).await.map(Some)
    }

    async fn prepare(
        machine: Machine,
        client: Client,
        main: MainPlugin,
        network: &Network,
        agents: bool,
    ) -> Result<Self> {
        let limits = if machine.is_real() { Limits::REAL } else { Limits::QUICK };
        let lab = Self { machine, client, main, limits, ledger: network.ledger, group: network.group, agents };
        for (name, cidr, block_size) in
            [("default-ipv4-ippool", "10.244.0.0/16", 26), ("default-ipv6-ippool", "fd00:10:244::/112", 122)]
        {
            lab.create(json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": name},
                "spec": {
                    "cidr": cidr, "blockSize": block_size, "ipipMode": "Never", "vxlanMode": "Never",
                    "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"],
                },
            }))
            .await?;
        }
        lab.create(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
            "spec": {"datastoreReady": true, "clusterGUID": "0123456789abcdef", "calicoVersion": "v3.32.1"},
        }))
        .await?;
        if std::env::var_os("CALICO_BIN").is_some() {
            // calicoctl ipam check reads it.
            lab.create(json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "KubeControllersConfiguration",
                "metadata": {"name": "default"}, "spec": {"controllers": {}},
            }))
            .await?;
        }
        Ok(lab)
    }

    /// A client with every right.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The names of the two nodes.
    pub fn nodes(&self) -> [String; 2] {
        machine::NODES.map(str::to_owned)
    }

    /// The name of the node that is not `node`.
    pub fn other_node(&self, node: &str) -> String {
        self.nodes().into_iter().find(|n| n != node).unwrap_or_default()
    }

    /// What runs kube-ipam on the nodes.
    pub fn main_plugin(&self) -> MainPlugin {
        self.main
    }

    /// Whether each node has an agent; then one of them looks after the whole cluster.
    pub fn has_agents(&self) -> bool {
        self.agents
    }

    /// Where the claims are.
    pub fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// The configuration that the nodes start with.
    pub fn network(&self) -> Network {
        Network { ledger: self.ledger, group: self.group, ..Network::default() }
    }

    /// How long things may take here.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Gives every node another network configuration; new pods follow it.
    pub async fn configure(&self, network: &Network) -> Result<()> {
        self.machine.configure(network, self.main).await
    }

    /// What the pod's own interface says, where it has one.
    pub fn interface(&self, pod: &Pod) -> Result<Option<Vec<IpAddr>>> {
        match &self.machine {
            Machine::StandIns(_) => Ok(None),
            Machine::Real(real) => {
                Ok(Some(real.cluster.sandbox(pod)?.addresses()?.into_iter().map(|a| a.ip()).collect()))
            }
        }
    }

    /// Pings `to` from inside `pod`, where pods have interfaces. Routes come from the IPAM blocks alone.
    pub async fn ping(&self, pod: &Pod, to: IpAddr) -> Result<()> {
        if let Machine::Real(real) = &self.machine {
            real.cluster.sandbox(pod)?.reaches(to, self.limits.ready).await.with_context(|| format!("ping to {to}"))?;
        }
        Ok(())
    }

    /// The node stops as if its power were cut.
    pub async fn kill_node(&self, name: &str) -> Result<()> {
        self.machine.kill_node(name).await
    }

    /// SIGKILL for a node's agent, which then starts anew; nothing where there are no agents.
    pub async fn restart_agent(&self, name: &str) -> Result<()> {
        self.machine.restart_agent(name).await
    }

    /// SIGKILL for a node's agent.
    pub fn kill_agent(&self, name: &str) -> Result<()> {
        self.machine.kill_agent(name)
    }

    /// SIGTERM for a node's agent, which goes on until it has finished what it began.
    pub fn terminate_agent(&self, name: &str) -> Result<()> {
        self.machine.agents()?.terminate(name)
    }

    /// Whether a node's agent has ended.
    pub fn agent_has_ended(&self, name: &str) -> Result<bool> {
        self.machine.agents()?.has_ended(name)
    }

    /// Where a node's agent and its plugins meet, as seen from here.
    pub fn state_dir(&self, name: &str) -> Result<PathBuf> {
        self.machine.state_dir(name)
    }

    /// The group that a stand-in node's list names, if it names one.
    pub fn named_group(&self, name: &str) -> Result<Option<String>> {
        let text = std::fs::read_to_string(self.stand_ins()?.list_file(name))?;
        let list: serde_json::Value = serde_json::from_str(&text)?;
        Ok(list["plugins"][0]["calico_api_group"].as_str().map(str::to_owned))
    }

    /// Runs `kube-ipam install` on a stand-in node.
    pub fn install(&self, name: &str) -> Result<String> {
        self.stand_ins()?.install(name)
    }

    fn stand_ins(&self) -> Result<&standins::StandIns> {
        match &self.machine {
            Machine::StandIns(nodes) => Ok(nodes),
            Machine::Real(_) => bail!("the nodes of this lab are real ones"),
        }
    }

    /// The API server of the embedded tier.
    pub fn embedded_server(&self) -> Option<&crate::embedded::apiserver::Server> {
        match &self.machine {
            Machine::StandIns(nodes) => nodes.ground.embedded_server(),
            Machine::Real(_) => None,
        }
    }

    /// The control plane of [`Lab::restricted`].
    pub fn rights(&self) -> Result<&Restricted> {
        match &self.machine {
            Machine::StandIns(nodes) => nodes.ground.restricted(),
            Machine::Real(_) => None,
        }
        .context("everybody has every right here")
    }

    /// A killed node comes back.
    pub async fn start_node(&self, name: &str) -> Result<()> {
        self.machine.start_node(name, &self.client).await
    }

    /// The ledger of the configuration that the nodes start with.
    pub async fn claims(&self) -> Result<AnyLedger> {
        let store = KubeStore::from_kubeconfig(&self.machine.admin_kubeconfig(), None).await?;
        Ok(match self.ledger {
            Ledger::Etcd => {
                let etcd = json!({"etcdURL": self.machine.etcd_url()?});
                let ipam = json!({"type": "kube-ipam", "subnet": "10.244.0.0/16", "etcdConfig": etcd});
                let list = json!({"cniVersion": "1.0.0", "name": conflist::LEDGER, "type": "ptp", "ipam": ipam});
                let net = NetConf::parse(&list, "kube-ipam")?;
                let etcd = net.ipam.etcd.context("etcdConfig was parsed")?;
                AnyLedger::Etcd(EtcdLedger::open(&etcd, conflist::LEDGER, &Arc::new(ClusterId::new(store))).await?)
            }
            Ledger::Objects => AnyLedger::Objects(IPClaimLedger::new(store, conflist::LEDGER)),
        })
    }

    /// Runs the kube-ipam command line on this cluster; what it printed, and whether it ended well.
    pub fn kube_ipam(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let ledger = match self.ledger {
            Ledger::Etcd => vec!["--etcd-url".to_owned(), self.machine.etcd_url()?],
            Ledger::Objects if arguments.contains(&"--ledger") => Vec::new(),
            Ledger::Objects => vec!["--ledger".to_owned(), "objects".to_owned()],
        };
        let output = std::process::Command::new(crate::tools::kube_ipam()?)
            .args(arguments)
            .env_remove("CNI_COMMAND")
            .arg("--kubeconfig")
            .arg(self.machine.admin_kubeconfig())
            .args(ledger)
            .args(if arguments.contains(&"--network") { &[][..] } else { &["--network", conflist::LEDGER] })
            // The nodes' lists are not this machine's.
            .args(if arguments.first() == Some(&"check") { &["--skip", "ranges"][..] } else { &[] })
            .output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }

    /// The same with `-o json`, read.
    pub fn kube_ipam_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let (well, text) = self.kube_ipam(&[arguments, &["-o", "json"]].concat())?;
        ensure!(well, "kube-ipam {arguments:?}: {text}");
        serde_json::from_str(&text).with_context(|| format!("kube-ipam {arguments:?}: {text}"))
    }

    /// Writes a kubeconfig with at least a node's rights for the user whom [`Lab::counted`] counts.
    pub fn write_counted_kubeconfig(&self, path: &Path) -> Result<()> {
        self.machine.write_counted_kubeconfig(path)
    }

    /// Runs `work`, and counts what the user of [`Lab::write_counted_kubeconfig`] asked of the API server meanwhile.
    pub async fn counted<T>(&self, work: impl Future<Output = Result<T>>) -> Result<(T, Counts)> {
        self.machine.counted(work).await
    }

    /// `calicoctl` on this cluster, with CALICO_BIN; `None` without.
    pub fn calicoctl(&self, arguments: &[&str]) -> Result<Option<String>> {
        let Some(directory) = std::env::var_os("CALICO_BIN") else { return Ok(None) };
        let output = std::process::Command::new(Path::new(&directory).join("calicoctl"))
            .args(arguments)
            .arg("--allow-version-mismatch")
            .env("DATASTORE_TYPE", "kubernetes")
            .env("KUBECONFIG", self.machine.kubeconfig())
            .env("CALICO_API_GROUP", self.group.unwrap_or_default().api_version())
            .output()?;
        ensure!(output.status.success(), "calicoctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// The block entry of an address must be this pod's, on its node.
    pub async fn assert_recorded(&self, address: IpAddr, pod: &Pod) -> Result<()> {
        let pools: Vec<IPPool> = Api::<IPPool>::all(self.client()).list(&Default::default()).await?.items;
        let pool = calico::covering(&pools, address).with_context(|| format!("no pool covers {address}"))?;
        let name = calico::cidr_name(&pool.spec.block_of(address));
        let block: IPAMBlock = Api::all(self.client()).get(&name).await?;
        let calico::Entry::Used { attribute, .. } = block.spec.entry(address) else {
            bail!("block {name} does not record {address}");
        };
        let found = ["namespace", "pod", "node"].map(|k| attribute.secondary(k).unwrap_or_default().to_owned());
        let meta = &pod.metadata;
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        let wanted = [meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default(), node];
        ensure!(found == wanted, "block {name} says {address} is of {found:?}, and it is {wanted:?}'s");
        Ok(())
    }
}

//! The nodes' network configuration: the guide's, with what a scenario changes.

use calico::ApiGroup;
use serde_json::{Value, json};

use super::MainPlugin;

/// `ipam.name` of every configuration here: the ledger's network.
pub const LEDGER: &str = "kube-subnet";

/// Where the claims are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ledger {
    /// In etcd, by `etcdConfig`.
    #[default]
    Etcd,
    /// IPClaims: no `etcdConfig`.
    Objects,
}

/// What scenarios vary in the configuration.
#[derive(Debug, Clone)]
pub struct Network {
    /// `ipam.name`
    pub name: String,
    /// Where the claims are.
    pub ledger: Ledger,
    /// `calico_api_group`
    pub group: Option<ApiGroup>,
    /// First and last address for random pods.
    pub range: (String, String),
    /// Whether pods get an IPv6 address too.
    pub dual_stack: bool,
    /// `waitSeconds`
    pub wait: u64,
    /// Whether an update's new pod has the old one evicted: `handover`.
    pub hands_over: bool,
    /// Whether agents keep the configuration on their nodes, as the add-on's do.
    pub keeps_lists: bool,
}

/// Where a node finds what the configuration names.
#[derive(Debug, Clone)]
pub struct Site {
    /// `kubeConfig`, and the main plugin's kubeconfig.
    pub kubeconfig: String,
    /// `etcdConfig`
    pub etcd: Value,
    /// `log_file_path` of the main plugin.
    pub log_file: Option<String>,
    /// `stateDir`
    pub state_dir: Option<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            name: LEDGER.into(),
            ledger: Ledger::Etcd,
            group: None,
            range: ("10.244.0.10".into(), "10.244.0.200".into()),
            dual_stack: false,
            wait: 20,
            hands_over: false,
            keeps_lists: false,
        }
    }
}

impl Network {
    /// The configuration list of a node.
    pub fn conflist(&self, main: MainPlugin, node: &str, site: &Site) -> Value {
        let mut ipam = json!({
            "name": self.name,
            "type": "kube-ipam",
            "kubeConfig": site.kubeconfig,
            "gateway": "10.244.0.1",
            "routes": [{"dst": "0.0.0.0/0"}],
            "resolvConf": "/etc/resolv.conf",
            "waitSeconds": self.wait,
            "takeover": {"graceSeconds": 15},
        });
        if self.ledger == Ledger::Etcd {
            ipam["etcdConfig"] = site.etcd.clone();
        }
        ipam["subnet"] = json!("10.244.0.0/16");
        ipam["rangeStart"] = json!(self.range.0);
        ipam["rangeEnd"] = json!(self.range.1);
        if self.hands_over {
            ipam["handover"] = json!("evict");
        }
        if self.dual_stack {
            ipam["ranges"] = json!([[{"subnet": "fd00:10:244::/112", "rangeStart": "fd00:10:244::100", "gateway": "fd00:10:244::1"}]]);
            ipam["routes"] = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
        }
        if let Some(directory) = &site.state_dir {
            ipam["stateDir"] = json!(directory);
        }
        let mut first = json!({
            "type": match main { MainPlugin::Ptp => "ptp", _ => "calico" },
            "log_level": "info",
            "datastore_type": "kubernetes",
            "nodename": node,
            "mtu": 0,
            "ipam": ipam,
            "policy": {"type": "k8s"},
            "kubernetes": {"kubeconfig": site.kubeconfig},
        });
        if let Some(group) = self.group {
            first["calico_api_group"] = json!(group.api_version());
        }
        if let Some(file) = &site.log_file {
            first["log_file_path"] = json!(file);
        }
        let mut plugins = vec![first];
        if main != MainPlugin::StandIn {
            plugins.push(json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}));
            plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
        }
        json!({"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": plugins})
    }
}

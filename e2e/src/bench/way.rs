//! A way of giving a pod its address: a plugin's binary, and the configuration it gets on stdin.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::ground::SUBNET;
use crate::standin::Network;

/// A plugin that is measured.
#[derive(Debug, Clone)]
pub struct Way {
    /// Its column in the table.
    pub name: &'static str,
    /// Whose requests are its own in the API server's log: one of [`crate::real::TOKEN_USERS`].
    pub user: &'static str,
    /// The plugin.
    pub binary: PathBuf,
    /// Whether it gives fixed addresses.
    pub fixed: bool,
    /// Whether an agent answers it, and when the agent puts addresses on record.
    pub agent: Option<When>,
    ipam: fn(&Surroundings<'_>) -> Value,
}

/// When a node's agent puts an address on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as the pod is bound to the node.
    Ahead,
    /// When ADD asks for it.
    Asked,
}

/// What a configuration depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub node: &'a str,
    pub kubeconfig: &'a Path,
    /// `etcdConfig`
    pub etcd: &'a Value,
    /// For logs, locks and state, in memory.
    pub directory: &'a Path,
}

impl Way {
    /// kube-ipam as the guide configures it: it talks to the API server and etcd itself.
    pub fn direct(binary: PathBuf) -> Way {
        Way { name: "direct", user: "kube-ipam", binary, fixed: true, agent: None, ipam: guide }
    }

    /// kube-ipam with an agent on the node.
    pub fn agent(binary: PathBuf, when: When) -> Way {
        let name = match when {
            When::Ahead => "ahead",
            When::Asked => "agent",
        };
        Way { name, user: "kube-ipam", binary, fixed: true, agent: Some(when), ipam: guide }
    }

    /// Calico's own plugin, from a directory of Calico's binaries.
    ///
    /// # Errors
    /// There is no `calico-ipam` in it.
    pub fn calico(directory: &Path) -> Result<Way> {
        let binary = directory.join("calico-ipam");
        ensure!(binary.is_file(), "CALICO_BIN {} has no calico-ipam", directory.display());
        Ok(Way { name: "calico-ipam", user: "calico", binary, fixed: false, agent: None, ipam: calicos })
    }

    /// What the plugin reads on stdin: the configuration of the main plugin `calico` with this IPAM plugin in it.
    pub(super) fn stdin(&self, around: &Surroundings<'_>) -> Result<Value> {
        Ok(Network::of(&self.conflist(around), around.node)?.stdin(&Value::Null))
    }

    /// The list that the runtime would read.
    pub(super) fn conflist(&self, around: &Surroundings<'_>) -> Value {
        json!({
            "name": "k8s-pod-network", "cniVersion": "0.3.1",
            "plugins": [{
                "type": "calico", "log_level": "info",
                "log_file_path": around.directory.join("cni.log"),
                "datastore_type": "kubernetes", "nodename": around.node, "nodename_file_optional": true, "mtu": 0,
                "ipam": (self.ipam)(around), "policy": {"type": "k8s"},
                "kubernetes": {"kubeconfig": around.kubeconfig},
            }],
        })
    }
}

fn guide(around: &Surroundings<'_>) -> Value {
    json!({
        "name": "kube-subnet", "type": "kube-ipam",
        "kubeConfig": around.kubeconfig, "etcdConfig": around.etcd,
        "subnet": SUBNET, "gateway": "10.240.0.1", "routes": [{"dst": "0.0.0.0/0"}],
        "resolvConf": "/etc/resolv.conf", "stateDir": around.directory.join("state"),
    })
}

fn calicos(around: &Surroundings<'_>) -> Value {
    json!({"type": "calico-ipam", "ipam_lock_file": around.directory.join("ipam.lock")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_gets_its_own_ipam_under_the_same_main_plugin() {
        let etcd = json!({"etcdURL": "https://127.0.0.1:2379"});
        let around = Surroundings { node: "n1", kubeconfig: Path::new("/k"), etcd: &etcd, directory: Path::new("/d") };
        let stdin = Way::direct("/bin/kube-ipam".into()).stdin(&around).unwrap();
        assert_eq!(
            (&stdin["type"], &stdin["nodename"], &stdin["ipam"]["type"]),
            (&json!("calico"), &json!("n1"), &json!("kube-ipam"))
        );
        assert_eq!(stdin["ipam"]["etcdConfig"], etcd);
        let directory = tempfile::tempdir().unwrap();
        assert!(Way::calico(directory.path()).is_err());
        std::fs::write(directory.path().join("calico-ipam"), "").unwrap();
        let stdin = Way::calico(directory.path()).unwrap().stdin(&around).unwrap();
        assert_eq!((&stdin["name"], &stdin["ipam"]["type"]), (&json!("k8s-pod-network"), &json!("calico-ipam")));
    }
}

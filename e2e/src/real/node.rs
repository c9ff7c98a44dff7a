//! A real node: kubelet and containerd in namespaces of their own, joined to the control plane's bridge.
//! Keeps: what a disk would keep over a power cut survives `kill`, and nothing else does.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use kube::runtime::wait::await_condition;
use serde_json::json;

use super::control_plane::TOKEN_USERS;
use super::network::{CONTROL_PLANE_HOST, ip, join_node};
use super::pki::Identity;
use super::process::Process;
use super::sandbox::Sandbox;
use super::site::Site;
use crate::tools::cni_plugins;

/// The sandbox image every pod is built on.
pub(super) const PAUSE_IMAGE: &str = "registry.k8s.io/pause:3.10";
const READY_LIMIT: Duration = Duration::from_secs(60);
const FIRST_HOST: u8 = 10;

/// Files that every node has, by their paths on the node. They are the ones the guide's configuration names.
pub mod paths {
    /// Kubeconfig of user `kube-ipam`.
    pub const KUBE_IPAM_KUBECONFIG: &str = "/etc/kubernetes/ssl/kube.kubeconfig";
    /// Kubeconfig of user `calico`, for the main plugin.
    pub const CALICO_KUBECONFIG: &str = "/etc/cni/net.d/calico-kubeconfig";
    /// Client certificate for etcd.
    pub const ETCD_CERTIFICATE: &str = "/etc/kubernetes/ssl/kubernetes.pem";
    /// Key of the client certificate for etcd.
    pub const ETCD_KEY: &str = "/etc/kubernetes/ssl/kubernetes-key.pem";
    /// The authority that signed etcd's certificate.
    pub const ETCD_AUTHORITY: &str = "/etc/kubernetes/ssl/k8s-root-ca.pem";
    /// The network configuration.
    pub const CONFLIST: &str = "/etc/cni/net.d/10-calico.conflist";
    /// Where containerd looks for CNI plugins.
    pub const CNI_BIN: &str = "/opt/cni/bin";
    /// The node's name, for Calico's plugins.
    pub const NODENAME: &str = "/var/lib/calico/nodename";
}

/// A node, running or not. Dropping it ends it.
pub struct Node {
    facts: NodeFacts,
    netns: String,
    control_plane_netns: String,
    process: Mutex<Option<Process>>,
    started: Mutex<Option<Timestamp>>,
    site: Arc<Site>,
}

/// What a network configuration may depend on.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// The name of the Node object.
    pub name: String,
    /// The node's position in the cluster, from 0.
    pub index: u8,
    /// The node's address (InternalIP).
    pub ipv4: Ipv4Addr,
    /// The node's second address.
    pub ipv6: Ipv6Addr,
    /// The API server's URL.
    pub api_server: String,
    /// etcd without TLS.
    pub etcd_url: String,
    /// etcd with client certificates.
    pub etcd_tls_url: String,
}

impl Node {
    /// Joins a new node to the network and writes its files. It does not run yet.
    pub(super) fn prepare(site: Arc<Site>, control_plane_netns: &str, name: &str, index: u8) -> Result<Node> {
        let host = CONTROL_PLANE_HOST + FIRST_HOST + index;
        let facts = NodeFacts {
            name: name.into(),
            index,
            ipv4: site.slot.ipv4(host),
            ipv6: site.slot.ipv6(host),
            api_server: site.api_server(),
            etcd_url: site.etcd_url(),
            etcd_tls_url: site.etcd_tls_url(),
        };
        let node = Node {
            facts,
            netns: site.netns(name),
            control_plane_netns: control_plane_netns.into(),
            process: Mutex::default(),
            started: Mutex::default(),
            site,
        };
        node.write_credentials()?;
        node.write_runtime_config()?;
        node.write(paths::NODENAME, name)?;
        for plugin in fs::read_dir(cni_plugins())? {
            let plugin = plugin?;
            symlink(plugin.path(), node.file(paths::CNI_BIN).join(plugin.file_name()))?;
        }
        Ok(node)
    }

    /// Name and addresses.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The name of the Node object.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Where a file of the node lies on the host: its kept directories are all below one directory.
    pub fn file(&self, path_on_node: &str) -> PathBuf {
        self.directory().join(path_on_node.trim_start_matches('/'))
    }

    /// Writes a file below one of the kept directories (`/etc/cni`, `/etc/kubernetes`, `/opt/cni`, `/var/lib/calico`, ...).
    pub fn write(&self, path_on_node: &str, content: &str) -> Result<()> {
        let path = self.file(path_on_node);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(&path, content).with_context(|| path.display().to_string())
    }

    /// Writes the network configuration, whole at once. containerd takes it up by itself.
    pub fn write_conflist(&self, content: &str) -> Result<()> {
        let unfinished = format!("{}.new", paths::CONFLIST);
        self.write(&unfinished, content)?;
        Ok(fs::rename(self.file(&unfinished), self.file(paths::CONFLIST))?)
    }

    /// Copies a binary among the node's CNI plugins, under its own name. Replaces what was there, running or not.
    pub fn install_plugin(&self, binary: &Path) -> Result<()> {
        let name = binary.file_name().context("a plugin has a name")?;
        let (target, unfinished) = (self.file(paths::CNI_BIN).join(name), self.file(paths::CNI_BIN).join(".new"));
        fs::copy(binary, &unfinished).with_context(|| binary.display().to_string())?;
        Ok(fs::rename(unfinished, target)?)
    }

    /// Switches the node on, with what it had on its disk. See [`Node::ready`].
    pub fn start(&self) -> Result<()> {
        if !Path::new("/run/netns").join(&self.netns).exists() {
            let host = CONTROL_PLANE_HOST + FIRST_HOST + self.facts.index;
            join_node(&self.site.slot, &self.control_plane_netns, &self.netns, host)?;
        }
        if self.started().is_some() {
            wait_for_a_new_second();
        }
        let script = self.directory().join("node.sh");
        fs::write(&script, include_str!("node.sh"))?;
        let own = [
            script.display().to_string(),
            self.directory().display().to_string(),
            self.name().into(),
            self.cgroup(),
            self.site.tools.path("kubelet").display().to_string(),
            self.site.logs().display().to_string(),
            self.site.api_ready_file().display().to_string(),
        ];
        let arguments: Vec<String> = own.into_iter().chain(self.kubelet_flags()).collect();
        let process =
            Process::start(self.name(), &self.netns, &self.site.log(self.name()), Path::new("/bin/sh"), &arguments)?;
        *self.started() = Some(Timestamp::now());
        *self.process() = Some(process);
        Ok(())
    }

    /// Cuts the node's power: every process on it gets SIGKILL at once. The network sees a dead machine.
    pub fn kill(&self) {
        let killed = self.process().take();
        killed.into_iter().for_each(Process::kill);
        self.site.slot.remove_cgroups(self.name());
    }

    /// Waits until the node has said since its last start that it is ready, which needs a network configuration.
    pub async fn ready(&self, client: &kube::Client) -> Result<()> {
        let since = self.started().with_context(|| format!("{} was never started", self.name()))?.as_second();
        let reported = |node: Option<&NodeObject>| {
            let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|condition| {
                let heartbeat = condition.last_heartbeat_time.as_ref().map_or(0, |time| time.0.as_second());
                condition.type_ == "Ready" && condition.status == "True" && heartbeat >= since
            })
        };
        let wait = await_condition(Api::<NodeObject>::all(client.clone()), self.name(), reported);
        let waited = tokio::time::timeout(READY_LIMIT, wait).await;
        if let Some(process) = self.process().as_mut() {
            process.still_runs()?;
        }
        waited.with_context(|| format!("{} is not ready after {READY_LIMIT:?}", self.name()))??;
        Ok(())
    }

    /// A command that will run on the node: in its namespaces for processes, mounts, network and host name.
    pub fn command(&self, program: &str) -> Result<Command> {
        let leader = self.process().as_ref().with_context(|| format!("{} is off", self.name()))?.leader()?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &leader.to_string(), "--mount", "--uts", "--net", "--pid", program]);
        Ok(command)
    }

    /// SIGKILL for the kubelet, which comes back by itself. Pods go on.
    pub fn restart_kubelet(&self) -> Result<()> {
        super::process::succeed(self.command("pkill")?.args(["-KILL", "-x", "kubelet"])).map(drop)
    }

    /// SIGKILL for containerd, which comes back by itself. Pods go on.
    pub fn restart_containerd(&self) -> Result<()> {
        super::process::succeed(self.command("pkill")?.args(["-KILL", "-x", "containerd"])).map(drop)
    }

    /// Cuts the node off the network, or joins it again. It goes on running.
    pub fn connect(&self, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        let host = CONTROL_PLANE_HOST + FIRST_HOST + self.facts.index;
        ip(Some(&self.control_plane_netns), &format!("link set veth{host} {state}")).map(drop)
    }

    /// The network of a pod that runs on this node.
    pub fn sandbox(&self, pod: &Pod) -> Result<Sandbox> {
        Sandbox::find(&self.cgroup(), pod)
    }

    /// The name of the node's network namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Tells the node to end without waiting for it, so that several can end at the same time.
    pub(super) fn let_go(&self) {
        self.process().iter_mut().for_each(Process::let_go);
    }

    fn write_credentials(&self) -> Result<()> {
        let (pki, server) = (&self.site.pki, self.site.api_server());
        let identity = Identity::new(&format!("system:node:{}", self.name()), "system:nodes");
        pki.write_kubeconfig(&self.directory().join("kubelet.kubeconfig"), &server, &identity)?;
        for (user, path) in TOKEN_USERS.iter().zip([paths::KUBE_IPAM_KUBECONFIG, paths::CALICO_KUBECONFIG]) {
            pki.write_token_kubeconfig(&self.file(path), &server, user)?;
        }
        let etcd = pki.client(&Identity::new("kube-ipam", "kube-ipam"))?;
        self.write(paths::ETCD_CERTIFICATE, &etcd.certificate)?;
        self.write(paths::ETCD_KEY, &etcd.key)?;
        fs::copy(pki.path("ca.crt"), self.file(paths::ETCD_AUTHORITY))?;
        Ok(fs::create_dir_all(self.file(paths::CNI_BIN))?)
    }

    fn write_runtime_config(&self) -> Result<()> {
        let directory = self.directory();
        let root = directory.join("containerd");
        fs::write(
            directory.join("containerd.toml"),
            format!(
                r#"version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_bin}"
conf_dir = "/etc/cni/net.d"
"#,
                root = root.display(),
                cni_bin = paths::CNI_BIN,
            ),
        )?;
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup()),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "podLogsDir": "/var/log/pods",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
            },
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "maxPods": 250,
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 16,
        });
        Ok(fs::write(directory.join("kubelet.json"), serde_json::to_vec_pretty(&kubelet)?)?)
    }

    fn kubelet_flags(&self) -> [String; 6] {
        let directory = self.directory();
        [
            format!("--config={}", directory.join("kubelet.json").display()),
            format!("--kubeconfig={}", directory.join("kubelet.kubeconfig").display()),
            format!("--cert-dir={}", directory.join("kubelet-pki").display()),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={}", self.facts.ipv4),
            "--v=2".into(),
        ]
    }

    fn directory(&self) -> PathBuf {
        self.site.slot.directory().join(self.name())
    }

    fn cgroup(&self) -> String {
        self.site.slot.name(self.name())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self) -> MutexGuard<'_, Option<Timestamp>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Heartbeats are told in whole seconds: without this, one from before the start could pass for one after it.
fn wait_for_a_new_second() {
    let passed = Timestamp::now().subsec_nanosecond();
    std::thread::sleep(Duration::from_nanos(1_000_000_000 - passed.unsigned_abs() as u64));
}

impl std::fmt::Debug for Node {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Node").field("facts", &self.facts).finish_non_exhaustive()
    }
}

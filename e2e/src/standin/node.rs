//! The handle of a stand-in node.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use kube::Client;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::kubelet::Kubelet;
use super::network::Network;
use super::plugin::{Attachment, CniOutcome};
use super::runtime::{MainPlugin, Runtime, Sandbox};
use super::status;

/// Pauses between attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// Each pause is so many times the one before.
    pub factor: u32,
    /// No pause is longer.
    pub most: Duration,
}

impl Default for Backoff {
    /// Like kubelet's: a pod whose sandbox failed is looked at again after ten seconds.
    fn default() -> Self {
        Self { first: Duration::from_secs(10), factor: 1, most: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// For tests: 50 ms, doubled up to a second.
    pub fn quick() -> Self {
        Self { first: Duration::from_millis(50), factor: 2, most: Duration::from_secs(1) }
    }

    pub(super) fn start(self) -> Pauses {
        Pauses { backoff: self, next: self.first }
    }
}

/// The pauses of one series of attempts.
pub(super) struct Pauses {
    backoff: Backoff,
    next: Duration,
}

impl Pauses {
    pub fn next(&mut self) -> Duration {
        let now = self.next.min(self.backoff.most);
        self.next = now.saturating_mul(self.backoff.factor);
        now
    }
}

/// What a node starts with.
#[derive(Clone)]
pub struct Options {
    /// The client of its kubelet; give it an agent of its own to tell its calls apart.
    pub client: Client,
    /// Name of the Node object, registered or taken over at the start.
    pub name: String,
    /// Its InternalIP, and the address of pods with `hostNetwork`.
    pub address: IpAddr,
    /// Labels of the Node object, beside the usual ones.
    pub labels: Vec<(String, String)>,
    /// The network configuration list; `__KUBERNETES_NODE_NAME__` in it becomes the node's name.
    pub conflist: Value,
    /// The file that has this list, which is then read for each call, as a runtime follows what is written there.
    pub conflist_file: Option<PathBuf>,
    /// The directories of `CNI_PATH`, where `ipam.type` is looked for.
    pub cni_path: Vec<PathBuf>,
    /// Environment of plugins, beside CNI's variables and what the test inherits.
    pub environment: Vec<(OsString, OsString)>,
    /// Who does the main plugin's work.
    pub main: MainPlugin,
    /// Pauses between attempts at a pod's sandbox.
    pub backoff: Backoff,
    /// A plugin that takes longer is killed.
    pub plugin_timeout: Duration,
    /// The lease is renewed so often; none: never, for clusters without a node controller.
    pub heartbeat: Option<Duration>,
}

impl Options {
    /// Quick pauses, no heartbeat, address 192.0.2.1, the stand-in itself as main plugin.
    pub fn new(client: Client, name: &str, conflist: Value, cni_path: Vec<PathBuf>) -> Self {
        Self {
            client,
            name: name.to_owned(),
            address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            labels: Vec::new(),
            conflist,
            conflist_file: None,
            cni_path,
            environment: Vec::new(),
            main: MainPlugin::Itself,
            backoff: Backoff::quick(),
            plugin_timeout: Duration::from_secs(120),
            heartbeat: None,
        }
    }
}

/// A stand-in node. It lives on the tokio runtime it was started on; dropping it stops it where it stands.
pub struct Node {
    options: Options,
    runtime: Arc<Runtime>,
    running: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Node {
    /// Registers the node and begins to look after its pods.
    pub async fn start(options: Options) -> Result<Self> {
        let runtime = Runtime {
            network: std::sync::RwLock::new(Network::of(&options.conflist, &options.name)?),
            file: options.conflist_file.clone().map(|file| (file, options.name.clone())),
            main: options.main.clone(),
            path: options.cni_path.clone(),
            environment: options.environment.clone(),
            timeout: options.plugin_timeout,
            sandboxes: Mutex::default(),
        };
        let node = Self { runtime: Arc::new(runtime), running: Mutex::new(None), options };
        node.start_again().await?;
        Ok(node)
    }

    /// Starts it after `kill` (it then has no running sandbox, takes down what it remembers and sets its pods up anew)
    /// or after `stop_kubelet` (it goes on with the sandboxes it has).
    pub async fn start_again(&self) -> Result<()> {
        self.stop_kubelet().await;
        let Options { client, name, address, labels, .. } = &self.options;
        status::register(client, name, *address, labels).await?;
        let kubelet = Kubelet {
            client: client.clone(),
            node: name.clone(),
            address: *address,
            runtime: self.runtime.clone(),
            backoff: self.options.backoff,
        };
        let (stop, stopped) = oneshot::channel();
        let heart = (client.clone(), name.clone(), self.options.heartbeat);
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            let beats = async {
                match heart {
                    (client, name, Some(every)) => status::heartbeat(client, name, every).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = kubelet.run(stopped) => {}
                () = beats => {}
            }
        });
        *self.lock() = Some(Running { stop, task });
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stops looking after pods: running plugins are killed, sandboxes stay, nobody is told.
    pub async fn stop_kubelet(&self) {
        let running = self.lock().take();
        if let Some(running) = running {
            let _ = running.stop.send(());
            let _ = running.task.await;
        }
    }

    /// Power failure: everything stops abruptly and nothing is cleaned up. The node's Ready condition becomes Unknown at once;
    /// in a real cluster that takes the node controller some 40 s.
    pub async fn kill(&self) -> Result<()> {
        self.stop_kubelet().await;
        self.runtime.lose_power().await;
        status::mark_silent(&self.options.client, &self.options.name).await
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Another network configuration, which new calls follow.
    pub fn set_conflist(&self, conflist: &Value) -> Result<()> {
        let network = Network::of(conflist, &self.options.name)?;
        *self.runtime.network.write().unwrap_or_else(std::sync::PoisonError::into_inner) = network;
        Ok(())
    }

    /// The sandboxes its runtime remembers.
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.runtime.all()
    }

    /// Calls a CNI verb (`ADD`, `DEL`, `CHECK`, `STATUS`, `GC`, `VERSION`) as its runtime would, without a pod's worker.
    /// The runtime does not remember such calls. An error means that the plugin could not be run.
    pub async fn run(&self, verb: &str, attachment: &Attachment) -> Result<CniOutcome> {
        self.runtime.call(verb, attachment).await
    }

    /// What the plugin reads on stdin for an attachment.
    pub fn stdin(&self, attachment: &Attachment) -> Value {
        self.runtime.network().stdin(&attachment.extra)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Dropping the task drops its workers, and they kill their plugins.
        if let Some(running) = self.lock().take() {
            running.task.abort();
        }
    }
}

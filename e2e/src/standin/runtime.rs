//! The container runtime: sandboxes, their network, and what it remembers of them.
//!
//! Invariant: a sandbox is remembered from before its ADD until a DEL for it has succeeded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::network::Network;
use super::plugin::{self, Attachment, CniOutcome};

/// Who does the main plugin's work.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum MainPlugin {
    /// The stand-in itself: it runs the IPAM plugin and makes no interface. Needs no root.
    #[default]
    Itself,
    /// The binary of the conflist's first plugin, from this directory, in a network namespace made with `ip netns`. Needs root.
    Binary(PathBuf),
}

/// A pod's sandbox as the runtime remembers it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// Id, network namespace and arguments of its calls.
    pub attachment: Attachment,
    /// UID of its pod.
    pub pod: String,
    /// The answer of its ADD; none until it has succeeded.
    pub result: Option<Value>,
    /// True after a power failure: its processes and its network namespace are gone.
    pub lost: bool,
}

impl Sandbox {
    /// Its addresses, with prefix lengths.
    pub fn addresses(&self) -> Vec<String> {
        self.result.as_ref().map(plugin::addresses).unwrap_or_default()
    }

    /// Alive with a network.
    pub fn is_ready(&self) -> bool {
        self.result.is_some() && !self.lost
    }
}

/// The runtime of a node. Its memory outlives `Node::kill`, as a disk does.
#[derive(Debug)]
pub(super) struct Runtime {
    pub network: RwLock<Network>,
    /// Where the list is, and the node's name.
    pub file: Option<(PathBuf, String)>,
    pub main: MainPlugin,
    pub path: Vec<PathBuf>,
    pub environment: Vec<(OsString, OsString)>,
    pub timeout: Duration,
    pub sandboxes: Mutex<BTreeMap<String, Sandbox>>,
}

impl Runtime {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Sandbox>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network configuration as it is now. One that cannot be read leaves the one before it in use.
    pub fn network(&self) -> Network {
        if let Some((file, node)) = &self.file
            && let Ok(read) = Network::read(file, node)
        {
            *self.network.write().unwrap_or_else(PoisonError::into_inner) = read;
        }
        self.network.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn all(&self) -> Vec<Sandbox> {
        self.lock().values().cloned().collect()
    }

    pub fn of_pod(&self, uid: &str) -> Vec<Sandbox> {
        self.lock().values().filter(|sandbox| sandbox.pod == uid).cloned().collect()
    }

    /// The binary a call runs: the IPAM plugin, or the real main plugin.
    fn binary(&self) -> Result<PathBuf> {
        match &self.main {
            MainPlugin::Itself => plugin::find(self.network().ipam_type(), &self.path),
            MainPlugin::Binary(directory) => Ok(directory.join(self.network().main_type())),
        }
    }

    /// Runs a verb for an attachment.
    pub async fn call(&self, verb: &str, attachment: &Attachment) -> Result<CniOutcome> {
        let stdin = self.network().stdin(&attachment.extra);
        plugin::call(&self.binary()?, verb, &self.path, &self.environment, attachment, &stdin).await
    }

    /// Makes a sandbox for a pod and gives it a network; `Err` holds the words for the pod's Events.
    /// A sandbox that got no network is taken down at once, and remembered if even that failed.
    pub async fn set_up(&self, mut attachment: Attachment, pod: &str) -> Result<Sandbox, String> {
        attachment.kill_after = self.timeout;
        let failed = |id: &str, why: &str| {
            format!(
                "failed to setup network for sandbox \"{id}\": plugin type=\"{}\" failed (add): {why}",
                self.network().main_type()
            )
        };
        let id = attachment.container.clone();
        let mut sandbox = Sandbox { attachment, pod: pod.to_owned(), result: None, lost: false };
        self.lock().insert(id.clone(), sandbox.clone());
        if let MainPlugin::Binary(_) = self.main {
            netns("add", &sandbox.attachment.netns).await.map_err(|error| format!("{error:#}"))?;
        }
        let outcome = self.call("ADD", &sandbox.attachment).await;
        let why = match &outcome {
            Ok(outcome) if outcome.is_ok() && !outcome.addresses().is_empty() => {
                sandbox.result = Some(self.completed(outcome.json(), &sandbox.attachment));
                self.lock().insert(id, sandbox.clone());
                return Ok(sandbox);
            }
            Ok(outcome) if outcome.is_ok() => {
                format!("the answer holds no address: {}", outcome.stdout)
            }
            Ok(outcome) => outcome.error_text(),
            Err(error) => format!("{error:#}"),
        };
        if let Err(also) = self.tear_down(&sandbox).await {
            tracing::debug!(%also, "sandbox stays until its network is released");
        }
        Err(failed(&id, &why))
    }

    /// What a main plugin adds to the IPAM plugin's answer.
    fn completed(&self, mut result: Value, attachment: &Attachment) -> Value {
        if self.main != MainPlugin::Itself {
            return result;
        }
        result["interfaces"] = json!([{"name": attachment.interface, "sandbox": attachment.netns}]);
        for ip in result["ips"].as_array_mut().into_iter().flatten() {
            ip["interface"] = 0.into();
        }
        result
    }

    /// Releases a sandbox's network and forgets it; `Err` holds the words for the pod's Events.
    pub async fn tear_down(&self, sandbox: &Sandbox) -> Result<(), String> {
        let id = &sandbox.attachment.container;
        let mut attachment = sandbox.attachment.clone();
        if sandbox.lost {
            attachment.netns = String::new();
        }
        if let Some(result) = &sandbox.result {
            attachment = attachment.with("prevResult", result.clone());
        }
        let why = match self.call("DEL", &attachment).await {
            Ok(outcome) if outcome.is_ok() => {
                if let MainPlugin::Binary(_) = self.main {
                    // A namespace that is gone already is what is wanted.
                    let _ = netns("del", &sandbox.attachment.netns).await;
                }
                self.lock().remove(id);
                return Ok(());
            }
            Ok(outcome) => outcome.error_text(),
            Err(error) => format!("{error:#}"),
        };
        Err(format!(
            "failed to destroy network for sandbox \"{id}\": plugin type=\"{}\" failed (delete): {why}",
            self.network().main_type()
        ))
    }

    /// Power failure: what ran is gone, what is on disk stays.
    pub async fn lose_power(&self) {
        let lost = self.all();
        for sandbox in self.lock().values_mut() {
            sandbox.lost = true;
        }
        if let MainPlugin::Binary(_) = self.main {
            for sandbox in lost.iter().filter(|sandbox| !sandbox.lost) {
                let _ = netns("del", &sandbox.attachment.netns).await;
            }
        }
    }
}

/// `ip netns add|del` for the namespace at a path.
async fn netns(verb: &str, path: &str) -> Result<()> {
    let name = Path::new(path).file_name().context("a network namespace has a name")?;
    let output = Command::new("ip").args(["netns", verb]).arg(name).output().await.context("cannot run ip")?;
    ensure!(output.status.success(), "ip netns {verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

//! The agents of a lab: one process a node, ended with the lab.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for an agent's socket.
const START_TIME: Duration = Duration::from_secs(20);

/// The running agents by node.
#[derive(Default)]
pub(crate) struct Agents {
    running: Mutex<BTreeMap<String, Child>>,
}

impl Agents {
    fn running(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a node's agent; returns when plugins can reach it. `state` is its state directory as seen from here.
    pub(crate) async fn start(&self, name: &str, mut command: Command, state: &Path, log: &Path) -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(state)?;
        let socket = state.join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        if let Some(directory) = log.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let output = File::options().create(true).append(true).open(log)?;
        command.args(["--node-name", name, "--log-level", "info"]).env_remove("CNI_COMMAND").stdin(Stdio::null());
        command.envs(kube_ipam::agent::ALLOCATOR);
        let child = command.stdout(output.try_clone()?).stderr(output).spawn().context("starting an agent")?;
        self.running().insert(name.to_owned(), child);
        let until = tokio::time::Instant::now() + START_TIME;
        while !socket.exists() {
            let ended = self.running().get_mut(name).and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("the agent of {name} ended with {status}: {}", std::fs::read_to_string(log)?);
            }
            if tokio::time::Instant::now() >= until {
                bail!("the agent of {name} has no socket: {}", std::fs::read_to_string(log)?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// SIGKILL for a node's agent.
    pub(crate) fn kill(&self, name: &str) {
        if let Some(mut child) = self.running().remove(name) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM for a node's agent, which goes on until it has finished what it began.
    pub(crate) fn terminate(&self, name: &str) -> Result<()> {
        self.signal(name, Signal::TERM)
    }

    /// A signal for a node's agent.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let running = self.running();
        let pid = running.get(name).and_then(|child| Pid::from_raw(child.id().try_into().ok()?));
        Ok(kill_process(pid.with_context(|| format!("no agent of {name} runs"))?, signal)?)
    }

    /// Whether a node's agent has ended.
    pub(crate) fn has_ended(&self, name: &str) -> Result<bool> {
        Ok(self.running().get_mut(name).map(Child::try_wait).transpose()?.is_none_or(|status| status.is_some()))
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in self.running().values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

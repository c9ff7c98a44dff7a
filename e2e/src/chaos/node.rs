//! A node: a state directory on a small file system of its own, a network configuration, a clock, and maybe an agent.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;

use super::disk::Disk;
use crate::lab::agents::Agents;
use crate::lab::{MainPlugin, Network, Site};
use crate::standin::{self, Attachment, CniOutcome};

/// What of a node a pod's address depends on.
pub(super) struct Node {
    pub name: String,
    agent: Option<Ahead>,
    directory: PathBuf,
    /// With the state directory.
    pub state: Disk,
    binary: PathBuf,
    path: [PathBuf; 1],
    stdin: Value,
    clock: Option<Clock>,
}

/// Whether an agent takes addresses ahead.
pub(super) type Ahead = bool;

/// The library by which the node's programs read another time than the machine's.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    library: PathBuf,
}

/// Enough for locks, marks and notes; little to fill.
const SIZE: &str = "size=512k,nr_inodes=4096,mode=700";
/// Pause between two attempts to start an agent.
const RETRY: Duration = Duration::from_millis(300);

// === impl Node ===

impl Node {
    /// Writes a node's files below `directory`, where its state directory is mounted.
    pub(super) fn prepare(
        name: &str,
        agent: Option<Ahead>,
        directory: &Path,
        network: &Network,
        site: Site,
        clock: Option<Clock>,
    ) -> Result<Node> {
        let directory = directory.join(name);
        let lists = directory.join("net.d");
        fs::create_dir_all(&lists)?;
        let state = Disk::mount(directory.join("state"), SIZE)?;
        let site = Site { state_dir: Some(state.directory().display().to_string()), ..site };
        let list = network.conflist(MainPlugin::StandIn, name, &site);
        fs::write(lists.join("10-calico.conflist"), list.to_string())?;
        let binary = crate::tools::kube_ipam()?;
        let bin = binary.parent().context("a binary lies in a directory")?.to_path_buf();
        let stdin = standin::Network::of(&list, name)?.stdin(&Value::Null);
        let node = Node { name: name.to_owned(), agent, directory, state, binary, path: [bin], stdin, clock };
        node.set_clock("+0")?;
        Ok(node)
    }

    pub(super) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    pub(super) fn conflist(&self) -> PathBuf {
        self.directory.join("net.d/10-calico.conflist")
    }

    /// One call of the plugin.
    pub(super) async fn call(&self, verb: &str, attachment: &Attachment) -> Result<CniOutcome> {
        standin::call(&self.binary, verb, &self.path, &self.environment(), attachment, &self.stdin).await
    }

    /// Starts the agent; tries again until it serves, as whoever looks after it does.
    pub(super) async fn start_agent(&self, agents: &Agents, kubeconfig: &Path, log: &Path) {
        let Some(ahead) = self.agent else { return };
        loop {
            let mut command = Command::new(&self.binary);
            command.envs(self.environment()).args(["agent", "--take-ahead", if ahead { "true" } else { "false" }]);
            command.arg("--kubeconfig").arg(kubeconfig).arg("--state-dir").arg(self.state.directory());
            command.arg("--cni-conf-dir").arg(self.directory.join("net.d"));
            match agents.start(&self.name, command, self.state.directory(), log).await {
                Ok(()) => return,
                Err(error) => tracing::debug!("{error:#}"),
            }
            agents.kill(&self.name);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Whether its programs can be given another time.
    pub(super) fn has_clock(&self) -> bool {
        self.clock.is_some()
    }

    /// From now on its programs read the machine's time with this offset, such as `-90s`.
    pub(super) fn set_clock(&self, offset: &str) -> Result<()> {
        // By rename: a file that is half written is no time.
        let (new, file) = (self.directory.join("clock.new"), self.directory.join("clock"));
        fs::write(&new, offset)?;
        Ok(fs::rename(new, file)?)
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let Some(clock) = &self.clock else { return Vec::new() };
        let variable = |name: &str, value: &Path| (name.into(), value.as_os_str().to_owned());
        vec![
            variable("LD_PRELOAD", &clock.library),
            variable("FAKETIME_TIMESTAMP_FILE", &self.directory.join("clock")),
            variable("FAKETIME_CACHE_DURATION", Path::new("1")),
            // Time-outs are measured by the clock that nobody sets.
            variable("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
        ]
    }
}

/// Stops an agent in its tracks, or lets it go on.
pub(super) fn freeze(agents: &Agents, node: &str, still: bool) -> Result<()> {
    agents.signal(node, if still { Signal::STOP } else { Signal::CONT })
}

// === impl Clock ===

impl Clock {
    /// The library, where it is installed (Debian package libfaketime). It works on programs that are linked dynamically.
    pub(super) fn find() -> Option<Clock> {
        let libraries = fs::read_dir("/usr/lib").ok()?.flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
        let mut present = libraries.filter(|path| path.exists());
        Some(Clock { library: present.next()? })
    }

    /// Removes the shared memory that the library leaves behind when its program is killed.
    pub(super) fn clean_up() {
        for file in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let process = ["faketime_shm_", "sem.faketime_sem_"].iter().find_map(|prefix| name.strip_prefix(prefix));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_file(file.path());
            }
        }
    }
}

//! The agent of a node that is measured.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::way::When;

/// Longest wait for a started agent.
const START_TIME: Duration = Duration::from_secs(30);
/// A clock tick of `/proc/<pid>/stat`: a hundredth of a second on every Linux that runs Kubernetes.
const TICK: f64 = 0.01;

/// A running agent. Dropping it kills it.
pub(super) struct Agent {
    child: Child,
}

impl Agent {
    /// Starts it; returns when it has listed everything it watches.
    pub(super) async fn start(
        binary: &Path,
        node: &str,
        kubeconfig: &Path,
        directory: &Path,
        conflist: &Value,
        when: When,
        collect: bool,
    ) -> Result<Agent> {
        let (networks, state, log) = (directory.join("net.d"), directory.join("state"), directory.join("agent.log"));
        std::fs::create_dir_all(&networks)?;
        std::fs::write(networks.join("10-calico.conflist"), conflist.to_string())?;
        DirBuilder::new().recursive(true).mode(0o700).create(&state)?;
        let output = File::create(&log)?;
        let child = Command::new(binary)
            .args(["agent", "--node-name", node, "--take-ahead", if when == When::Ahead { "true" } else { "false" }])
            .args(["--collect", if collect { "true" } else { "false" }, "--events", "none"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--state-dir")
            .arg(&state)
            .arg("--cni-conf-dir")
            .arg(&networks)
            .envs(kube_ipam::agent::ALLOCATOR)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting an agent")?;
        let mut agent = Agent { child };
        let started = Instant::now();
        while !std::fs::read_to_string(&log)?.contains("every cache is filled") {
            if agent.child.try_wait()?.is_some() || started.elapsed() > START_TIME {
                bail!("the agent of {node} does not serve: {}", std::fs::read_to_string(&log)?);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(agent)
    }

    /// Resident memory now, in MB.
    pub(super) fn resident(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024.0 / 1e6)
    }

    /// Processor time so far, in seconds.
    pub(super) fn processor(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("a field of stat");
        Ok((ticks(11)? + ticks(12)?) * TICK)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

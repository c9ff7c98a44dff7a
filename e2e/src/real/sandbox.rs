//! A running pod's network, entered from the test: its addresses, its pings, its requests.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use super::process::succeed;

/// A process in the pod's network namespace.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox {
    process: u32,
}

impl Sandbox {
    /// Finds a process of the pod by its cgroup, below the node's.
    pub(super) fn find(node_cgroup: &str, pod: &Pod) -> Result<Sandbox> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let uid = pod.metadata.uid.as_deref().context("a pod from the API server has a uid")?;
        let pods = Path::new("/sys/fs/cgroup/pids").join(node_cgroup).join("kubepods");
        let by_quality = ["besteffort", "burstable", "."].map(|quality| pods.join(quality).join(format!("pod{uid}")));
        let containers = by_quality.iter().flat_map(|pod| fs::read_dir(pod).into_iter().flatten().flatten());
        let processes = containers.filter_map(|container| first_process(container.path().join("cgroup.procs")));
        let process = { processes }.next();
        Ok(Sandbox { process: process.with_context(|| format!("pod {name} has no process on its node"))? })
    }

    /// A command that will run in the pod's network namespace, with the host's files.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.process.to_string(), "--net"]).arg(program);
        command
    }

    /// The addresses of the pod's `eth0`, each with its netmask, link-local ones left out.
    pub fn addresses(&self) -> Result<Vec<IpNetwork>> {
        let printed = succeed(self.command("ip").args(["-json", "addr", "show", "dev", "eth0", "scope", "global"]))?;
        let interfaces: Vec<Interface> = serde_json::from_str(&printed)?;
        let shown = interfaces.into_iter().flat_map(|interface| interface.addr_info);
        shown
            .filter_map(|shown| match shown {
                Shown::Address { local, prefixlen } => Some(IpNetwork::new(local, prefixlen).map_err(Into::into)),
                Shown::LeftOut {} => None,
            })
            .collect()
    }

    /// The pod's routes, one a line, as `ip route` prints them.
    pub fn routes(&self) -> Result<String> {
        succeed(self.command("ip").arg("route"))
    }

    /// One echo request from the pod, answered within a second or an error.
    pub fn ping(&self, to: IpAddr) -> Result<()> {
        succeed(self.command("ping").args(["-n", "-c", "1", "-W", "1", &to.to_string()])).map(drop)
    }

    /// Pings until one is answered: a new IPv6 address takes a second before it may be used.
    pub async fn reaches(&self, to: IpAddr, limit: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            let sandbox = *self;
            match tokio::task::spawn_blocking(move || sandbox.ping(to)).await? {
                Ok(()) => return Ok(()),
                Err(error) if started.elapsed() > limit => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

fn first_process(list: PathBuf) -> Option<u32> {
    fs::read_to_string(list).ok()?.lines().next()?.parse().ok()
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    addr_info: Vec<Shown>,
}

/// `ip` leaves an empty object where it left an address out.
#[derive(Deserialize)]
#[serde(untagged)]
enum Shown {
    Address { local: IpAddr, prefixlen: u8 },
    LeftOut {},
}

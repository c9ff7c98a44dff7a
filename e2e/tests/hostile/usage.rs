//! What an agent takes of its node.

use std::fs;
use std::path::PathBuf;

use super::ground::Ground;
use super::process::Agent;

/// Memory and file descriptors of a process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// The most memory it ever had resident, in KiB.
    pub peak: u64,
    pub files: usize,
}

impl Usage {
    pub fn of(agent: &Agent) -> Self {
        let process = PathBuf::from(format!("/proc/{}", agent.pid()));
        let status = fs::read_to_string(process.join("status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
        Self { peak, files: fs::read_dir(process.join("fd")).unwrap().count() }
    }
}

/// Room for thousands of connections in this process.
pub fn many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum.map_or(8192, |most| most.min(8192));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
}

/// An agent with room for no more files than a service has by default.
pub async fn agent(ground: &Ground) -> Agent {
    let networks = ground.path("net.d");
    fs::create_dir_all(&networks).unwrap();
    fs::write(networks.join("10-calico.conflist"), ground.conflist().to_string()).unwrap();
    Agent::start_with(ground, false, |command| {
        command.args(["--metrics-address", "127.0.0.1:0"]);
    })
    .await
}

//! `kube-ipam agent`: the node's sidecar.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::agent::{Agent, Options};
use crate::netconf::STATE_DIR;
use crate::store::kube::KubeStore;

/// Flags of the agent.
#[derive(Args, Debug)]
pub(super) struct AgentArguments {
    /// This node's name, as in Calico's conflist.
    #[arg(long, env = "NODENAME")]
    node_name: String,
    /// Directory on tmpfs, private to this user, where the plugin finds the agent: `stateDir` of the conflist.
    #[arg(long, default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Directory of the runtime's network configurations; the first one is what addresses are taken ahead by.
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Whether an address is put on record as soon as a pod is bound to the node.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    take_ahead: bool,
    /// How much is logged: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
}

/// Serves until SIGTERM or SIGINT, and then finishes what was begun.
pub(super) async fn run(arguments: &AgentArguments, kubeconfig: Option<PathBuf>) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(arguments.log_level)
        .with_writer(std::io::stderr)
        .init();
    let config = match &kubeconfig {
        Some(path) => {
            let read = kube::config::Kubeconfig::read_from(path);
            let read = read.with_context(|| format!("--kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(read, &Default::default()).await?
        }
        None => kube::Config::infer().await?,
    };
    let store = KubeStore::from_config(config.clone())?;
    let watching = kube::Client::try_from(config)?;
    let options = Options {
        node: arguments.node_name.clone(),
        state_dir: arguments.state_dir.clone(),
        cni_conf_dir: arguments.cni_conf_dir.clone(),
        take_ahead: arguments.take_ahead,
    };
    let stop = CancellationToken::new();
    tokio::spawn(cancel_on_signal(stop.clone()));
    Agent::run(options, store, watching, stop).await?;
    Ok(ExitCode::SUCCESS)
}

async fn cancel_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut terminate) = signal(SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    stop.cancel();
}

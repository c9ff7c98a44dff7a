//! `kube-ipam agent`: the node's sidecar.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Outcome;
use super::connect::Connection;
use super::install::FileArguments;
use crate::agent::{Agent, Level, Options};
use crate::install;
use crate::netconf::STATE_DIR;
use crate::store::Group;
use crate::store::group::of_cluster;
use crate::store::kube::KubeStore;
use crate::store::transport::plain;

/// Flags of the agent.
#[derive(Args, Debug)]
pub(super) struct AgentArguments {
    /// This node's name, as in Calico's conflist.
    #[arg(long, env = "NODENAME")]
    node_name: String,
    /// Directory on tmpfs, private to this user, where the plugin finds the agent: `stateDir` of the conflist.
    #[arg(long, default_value = STATE_DIR)]
    state_dir: PathBuf,
    #[command(flatten)]
    files: FileArguments,
    /// Whether an address is put on record as soon as a pod is bound to the node.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    take_ahead: bool,
    /// Whether a DEL is answered as soon as it is noted in the state directory, and carried out right after.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    release_behind: bool,
    /// Address that /metrics, /healthz and /readyz are served on, such as 127.0.0.1:9099; by default on none. They
    /// are always served on status.sock in the state directory.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
    /// Which Events are sent: all, notable (fixed addresses, waits, refusals, takeovers, repairs) or none.
    #[arg(long, value_enum, default_value_t)]
    events: Level,
    /// Whether this agent takes part in the election of the one that looks after the whole cluster.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    collect: bool,
    /// How much is logged: error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log_level: LevelFilter,
}

impl AgentArguments {
    /// Serves until SIGTERM or SIGINT, and then finishes what was begun.
    pub(super) async fn run(self, connection: &Connection) -> Result<Outcome> {
        // Libraries tell of requests as they are, with whatever the address or the headers hold.
        let others = self.log_level.min(LevelFilter::WARN);
        let shown = Targets::new().with_default(others).with_target(env!("CARGO_CRATE_NAME"), self.log_level);
        let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
        tracing_subscriber::registry().with(lines.with_filter(shown)).init();
        let mut config = connection.site()?.kube_config().await?;
        let store = KubeStore::from_config(config.clone())?;
        let mut group = Group::of(install::api_group(&self.files.cni_conf_dir));
        if group.known().is_none()
            && let Ok(Some(found)) = of_cluster(&store).await
        {
            group = found.into();
        }
        let store = store.in_group(group.clone());
        // Watches begin anew by themselves, within seconds; the client's own retries would keep them waiting for
        // minutes, and nobody would hear of it.
        config.default_retry = false;
        let watching = group.client(&plain(config)?);
        let stop = CancellationToken::new();
        tokio::spawn(cancel_on_signal(stop.clone()));
        let options = Options {
            node: self.node_name,
            state_dir: self.state_dir,
            cni_conf_dir: self.files.cni_conf_dir.clone(),
            files: self.files.node_files(),
            take_ahead: self.take_ahead,
            release_behind: self.release_behind,
            metrics_address: self.metrics_address,
            events: self.events,
            collect: self.collect,
        };
        Agent::run(options, store, watching, stop).await?;
        Ok(Outcome::Well)
    }
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

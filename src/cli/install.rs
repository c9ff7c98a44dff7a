//! `install` and `uninstall`: the node's files, once.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use calico::IPPool;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use crate::install::{
    InstallError, Judge, NodeFiles, Pools, SERVICE_ACCOUNT, Watcher, Written, place_binary, restore_calico,
};
use crate::netconf::STATE_DIR;
use crate::protocol::{SOCKET, is_served};
use crate::store::kube::KubeStore;
use crate::store::{Group, Objects as _, group};

/// Which of the node's files are ours to keep.
#[derive(Args, Debug, Clone)]
pub(super) struct FileArguments {
    /// Directory of the runtime's network configurations. An agent takes addresses ahead by the first of them.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIRECTORY")]
    pub cni_conf_dir: PathBuf,
    /// File with the ipam section, type kube-ipam, that Calico's conflist is to have; without it the conflist is left
    /// alone.
    #[arg(long, value_name = "FILE")]
    ipam: Option<PathBuf>,
    /// File for the kubeconfig of the plugin, made of this pod's service account; without it none is written. The
    /// ipam section names it as kubeConfig.
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,
    /// Directory of this pod's service account.
    #[arg(long, default_value = SERVICE_ACCOUNT, value_name = "DIRECTORY")]
    service_account: PathBuf,
}

/// Flags of `install`.
#[derive(Args, Debug)]
pub(super) struct Install {
    /// Directory of the runtime's plugins.
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIRECTORY")]
    cni_bin_dir: PathBuf,
    #[command(flatten)]
    files: FileArguments,
}

/// Flags of `uninstall`.
#[derive(Args, Debug)]
pub(super) struct Uninstall {
    /// Directory of the runtime's network configurations.
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIRECTORY")]
    cni_conf_dir: PathBuf,
    /// The state directory of the agent, which must not run any more: it would undo this.
    #[arg(long, default_value = STATE_DIR, value_name = "DIRECTORY")]
    state_dir: PathBuf,
    /// Waits for the agent to be gone, and then for SIGTERM, so that a DaemonSet can do this on every node.
    #[arg(long)]
    stay: bool,
}

/// Until the agent is looked for again.
const AGENT_RETRY: Duration = Duration::from_secs(1);

// === impl FileArguments ===

impl FileArguments {
    /// What there is to keep, if anything is.
    pub(super) fn node_files(&self) -> Option<NodeFiles> {
        (self.ipam.is_some() || self.kubeconfig_out.is_some()).then(|| NodeFiles {
            cni_conf_dir: self.cni_conf_dir.clone(),
            ipam: self.ipam.clone(),
            kubeconfig: self.kubeconfig_out.clone(),
            service_account: self.service_account.clone(),
        })
    }
}

// === impl Install ===

impl Install {
    /// The binary first: a list must not name a plugin that is not there.
    pub(super) async fn run(self) -> Result<Outcome> {
        let files = self.files.node_files();
        files.as_ref().map_or(Ok(()), NodeFiles::check)?;
        match place_binary(&self.cni_bin_dir)? {
            Some(written) => say(&written),
            None => println!("{}: is up to date", self.cni_bin_dir.join("kube-ipam").display()),
        }
        let Some(files) = files else { return Ok(Outcome::Well) };
        let mut token = files.token();
        if let Some(token) = &mut token
            && let Err(error) = token.renew().await
        {
            println!("{error}; the agent tries again");
        }
        let mut judge = judge(&files).await;
        let outcome = files.put(token.as_ref(), &mut judge);
        outcome.written.iter().for_each(say);
        if !outcome.has_list {
            let directory = files.cni_conf_dir.display();
            println!("{directory}: no configuration of Calico's yet; the agent edits it as soon as there is one");
        }
        if let Some(unused) = outcome.unused {
            println!("{unused}");
        }
        all_done(outcome.failed)
    }
}

// === impl Uninstall ===

impl Uninstall {
    pub(super) async fn run(self) -> Result<Outcome> {
        let socket = self.state_dir.join(SOCKET);
        let mut told = false;
        while is_served(&socket) {
            if !self.stay {
                bail!(
                    "an agent answers on {}, and would undo this; stop it first (kubectl -n kube-system delete daemonset \
                     kube-ipam)",
                    socket.display()
                );
            }
            if !told {
                println!("waiting for the agent on {} to be gone", socket.display());
                told = true;
            }
            tokio::time::sleep(AGENT_RETRY).await;
        }
        if !self.stay {
            return self.restore();
        }
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => Ok(Outcome::Well),
            ended = self.keep_restored() => ended,
        }
    }

    /// calico-node's installer may still write a list with our section, from a ConfigMap that names us.
    async fn keep_restored(&self) -> Result<Outcome> {
        let mut watcher = Watcher::new(std::slice::from_ref(&self.cni_conf_dir))?;
        loop {
            self.restore()?;
            watcher.changed().await?;
        }
    }

    fn restore(&self) -> Result<Outcome> {
        let mut failed = Vec::new();
        for edit in restore_calico(&self.cni_conf_dir) {
            match edit {
                Ok(written) => written.iter().for_each(say),
                Err(error) => failed.push(error),
            }
        }
        all_done(failed)
    }
}

/// What the cluster says, by the way that an ADD of this node has: this pod's service account, or the section's kubeconfig.
/// Where Calico has not made a pool yet, the agent judges later.
async fn judge(files: &NodeFiles) -> Judge {
    let config = match kube::Config::incluster() {
        Ok(config) => Some(config),
        Err(_) => match files.net().and_then(|net| net.kubeconfig) {
            Some(path) => KubeStore::config(&path, None).await.ok(),
            None => None,
        },
    };
    let Some(store) = config.and_then(|config| KubeStore::from_config(config).ok()) else { return Judge::default() };
    let group = group::of_cluster(&store).await.unwrap_or_else(|error| {
        println!("which API group Calico's objects are in is left to the plugin: {error}");
        None
    });
    let pools = match store.in_group(Group::of(group)).list::<IPPool>("").await {
        Ok(pools) if !pools.is_empty() => Pools::Known(pools),
        Ok(_) => Pools::Unasked,
        Err(error) => {
            println!("the section is not held against Calico's IPPools: {error}");
            Pools::Unasked
        }
    };
    let mut judge = Judge::by(pools);
    judge.group = group;
    judge
}

fn say(written: &Written) {
    println!("{}: {}", written.path.display(), written.what);
}

fn all_done(failed: Vec<InstallError>) -> Result<Outcome> {
    let texts: Vec<String> = failed.iter().map(ToString::to_string).collect();
    if texts.is_empty() { Ok(Outcome::Well) } else { bail!("{}", texts.join("; ")) }
}

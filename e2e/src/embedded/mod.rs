//! The embedded tier: a whole control plane that needs nothing but Rust.
//!
//! `Cluster` is an API server, controllers, a scheduler and, if asked for, etcd, each on a thread or in a process of its own, so that a
//! test may block. Nodes are `crate::standin::Node`s, started by the test on a client of the cluster.

pub mod apiserver;
pub mod controllers;
pub mod etcd;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::oneshot;

use apiserver::Server;
use etcd::Etcd;

/// What a cluster starts with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Nodes registered as Ready from the start, for tests that call the plugin without a stand-in.
    /// A stand-in registers its node itself.
    pub nodes: Vec<String>,
    /// Definitions created before anything else.
    pub crds: Vec<CustomResourceDefinition>,
    /// True: an etcd member too.
    pub etcd: bool,
    /// Users by bearer token; empty: nobody needs one.
    pub tokens: BTreeMap<String, String>,
    /// True: the API server is behind TLS and speaks HTTP/2.
    pub tls: bool,
    /// True: only the API server; pods appear and vanish by the test's hand alone.
    pub without_controllers: bool,
}

/// A running cluster. Dropping it ends everything.
#[derive(Debug)]
pub struct Cluster {
    _controllers: Option<Controllers>,
    server: Server,
    etcd: Option<Etcd>,
    directory: TempDir,
    kubeconfig: PathBuf,
    token: Option<String>,
}

/// `User-Agent` of the controllers in the API server's call log.
pub const CONTROLLERS_AGENT: &str = "embedded-controllers";

impl Cluster {
    /// Starts a cluster and returns once it serves.
    pub async fn start(options: Options) -> Result<Self> {
        let etcd = options.etcd.then(|| tokio::task::spawn_blocking(|| Etcd::start(None)));
        let server = Server::start(&apiserver::Options {
            tokens: options.tokens.clone(),
            crds: options.crds,
            tls: options.tls,
        })?;
        for node in &options.nodes {
            server.create(
                "/api/v1/nodes",
                &json!({
                    "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}},
                }),
            )?;
            server.set_status(
                "/api/v1/nodes",
                node,
                &json!({"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}),
            )?;
        }
        let directory = TempDir::with_prefix("cluster-")?;
        let kubeconfig = directory.path().join("kubeconfig");
        let token = options.tokens.keys().next().cloned();
        server.write_kubeconfig(&kubeconfig, token.as_deref())?;
        let controllers = match options.without_controllers {
            true => None,
            false => Some(Controllers::start(&server, token.as_deref())?),
        };
        let etcd = match etcd {
            Some(starting) => Some(starting.await.context("etcd's start panicked")??),
            None => None,
        };
        Ok(Self { _controllers: controllers, server, etcd, directory, kubeconfig, token })
    }

    /// The API server: faults, calls, snapshots.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The etcd member.
    pub fn etcd(&self) -> Result<&Etcd> {
        self.etcd.as_ref().context("the cluster was started without etcd")
    }

    /// A client that the call log shows as `agent`, with the first token if there are tokens.
    pub fn client(&self, agent: &str) -> Result<kube::Client> {
        self.server.client_with_token(agent, self.token.as_deref())
    }

    /// A kubeconfig file, with the first token if there are tokens.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A directory that lives as long as the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// The controllers on their thread.
#[derive(Debug)]
struct Controllers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Controllers {
    fn start(server: &Server, token: Option<&str>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            server.client_with_token(CONTROLLERS_AGENT, token)?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("controllers".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = controllers::run(client) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

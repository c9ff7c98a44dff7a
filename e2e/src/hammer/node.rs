//! A node: the agent's driver over what the node has heard, and the plugin's own way without an agent.
//!
//! Both are wired as the program wires them, over the node's own state directory. What an agent does besides (taking
//! ahead, Events, the socket) is left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use calico::IPAMHandle;
use jiff::Timestamp;
use kube_ipam::cni::{CniArgs, CniError, Invocation, Verb};
use kube_ipam::driver::{Driver, GatedDriver};
use kube_ipam::netconf::NetConf;
use kube_ipam::service::state::State;
use kube_ipam::service::{Call, Served};
use kube_ipam::store::LazyLedger;
use kube_ipam::store::cached::{Cached, Shelves};
use kube_ipam::store::kube::KubeStore;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::meter::Meter;

/// Longest wait for handles that are deleted after the answer.
const AFTERWARDS: Duration = Duration::from_secs(60);

/// A node's way to its addresses.
pub(super) struct Node {
    pub name: String,
    net: NetConf,
    state: Arc<State>,
    agent: GatedDriver<Cached<KubeStore>, Arc<LazyLedger>>,
    store: KubeStore,
    ledger: Arc<LazyLedger>,
    meter: Arc<Meter>,
}

/// A connection that several nodes share.
#[derive(Clone)]
pub(super) struct Line {
    pub store: KubeStore,
    pub ledger: Arc<LazyLedger>,
}

/// Who is called for.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub container: String,
    pub namespace: &'static str,
    pub pod: String,
    pub uid: String,
}

/// By whom a call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The node's agent.
    Agent,
    /// The plugin itself, which finds no agent.
    Plugin,
}

/// Handles to be deleted after the answer, on whose behalf.
pub(super) struct Later {
    sender: UnboundedSender<(usize, IPAMHandle)>,
    under_way: Arc<AtomicUsize>,
}

// === impl Node ===

impl Node {
    /// Node `index`; its configuration is `conf`, as on stdin.
    pub(super) fn new(
        index: usize,
        conf: &Value,
        shelves: Arc<Shelves>,
        line: Line,
        later: &Later,
        meter: Arc<Meter>,
    ) -> Result<Node> {
        let net = NetConf::parse(conf, "kube-ipam").map_err(|error| anyhow::anyhow!("{error}"))?;
        let state = Arc::new(State::open(&net.ipam.state_dir));
        let Line { store, ledger } = line;
        let (noted, sender, under_way) = (state.clone(), later.sender.clone(), later.under_way.clone());
        let drop_later = move |handle: &IPAMHandle| {
            let taken = noted.put_pending(handle) && sender.send((index, handle.clone())).is_ok();
            under_way.fetch_add(usize::from(taken), Ordering::AcqRel);
            taken
        };
        let name = shelves.node().to_owned();
        let agent = Driver::new(Cached::new(store.clone(), shelves), Some(ledger.clone()), Timestamp::now)
            .gated(state.clone())
            .observed(meter.clone())
            .dropping_later(Arc::new(drop_later));
        Ok(Node { name, net, state, agent, store, ledger, meter })
    }

    /// A call to its end.
    pub(super) async fn call(&self, verb: Verb, sandbox: &Sandbox, by: By) -> Result<Served, CniError> {
        let args = CniArgs {
            pod_namespace: Some(sandbox.namespace.to_owned()),
            pod_name: Some(sandbox.pod.clone()),
            pod_uid: Some(sandbox.uid.clone()),
            ip: None,
        };
        let invocation = Invocation { verb, container_id: sandbox.container.clone(), ifname: "eth0".to_owned(), args };
        let call = Call {
            invocation: &invocation,
            net: &self.net,
            node: &self.name,
            state: &self.state,
            gone: &|| false,
            taken: None,
        };
        match by {
            By::Agent => call.run(&self.agent).await,
            By::Plugin => {
                // Anew each time, as each plugin is a process of its own.
                let driver = Driver::new(self.store.clone(), Some(self.ledger.clone()), Timestamp::now);
                call.run(&driver.gated(self.state.clone()).observed(self.meter.clone())).await
            }
        }
    }

    async fn finish(&self, handle: IPAMHandle) {
        let id = handle.spec.handle_id.clone();
        match self.agent.finish_handle(handle).await {
            Ok(()) => self.state.drop_pending(&id),
            Err(_) => self.meter.handle_left(),
        }
    }
}

// === impl Later ===

impl Later {
    pub(super) fn new() -> (Later, UnboundedReceiver<(usize, IPAMHandle)>) {
        let (sender, receiver) = unbounded_channel();
        (Later { sender, under_way: Arc::default() }, receiver)
    }

    /// Deletes what is handed over, for ever.
    pub(super) fn work(&self, nodes: Arc<Vec<Node>>, mut handles: UnboundedReceiver<(usize, IPAMHandle)>) {
        let under_way = self.under_way.clone();
        tokio::spawn(async move {
            while let Some((index, handle)) = handles.recv().await {
                let (nodes, under_way) = (nodes.clone(), under_way.clone());
                tokio::spawn(async move {
                    nodes[index].finish(handle).await;
                    under_way.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
    }

    /// Returns when all of them were tried.
    pub(super) async fn idle(&self) -> Result<()> {
        let idle = async {
            while self.under_way.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(AFTERWARDS, idle).await.context("handles are still being deleted")
    }
}

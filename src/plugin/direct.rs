//! Direct mode: the call runs in this process, with the credentials that the configuration names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde_json::Value;

use super::log;
use super::messenger::Unanswered;
use crate::cni::{CniError, Invocation, code};
use crate::driver::Driver;
use crate::netconf::NetConf;
use crate::service::state::State;
use crate::service::{Call, LazyLedger, log_answer, node_name};
use crate::store::kube::KubeStore;

/// Set by SIGTERM: the runtime has given up.
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// Runs the call here. `unanswered` says why the agent did not, for the log.
pub(super) fn run(call: &Invocation, net: &NetConf, unanswered: &Unanswered) -> Result<Option<Value>, CniError> {
    log::start(net);
    match unanswered {
        Unanswered::NoAgent => tracing::debug!("no agent on this node"),
        why => tracing::warn!(%why, "the agent did not answer: going on in direct mode"),
    }
    let started = std::time::Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CniError::new(code::INTERNAL, "no runtime", e.to_string()))?;
    let result = runtime.block_on(dispatch(call, net));
    log_answer(call, result.as_ref(), started.elapsed());
    result
}

async fn dispatch(invocation: &Invocation, net: &NetConf) -> Result<Option<Value>, CniError> {
    tokio::spawn(async {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
            TERMINATED.store(true, Ordering::Relaxed);
        }
    });
    let node = node_name(net)?;
    let state = Arc::new(State::open(&net.ipam.state_dir));
    let driver = driver(net).await?.gated(state.clone());
    let gone = || TERMINATED.load(Ordering::Relaxed);
    Call { invocation, net, node: &node, state: &state, gone: &gone, taken: None }.run(&driver).await
}

async fn driver(net: &NetConf) -> Result<Driver<KubeStore, LazyLedger>, CniError> {
    let Some(kubeconfig) = &net.kubeconfig else {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "ipam.kubeConfig is missing, and so is kubernetes.kubeconfig",
            "name the kubeconfig file by which this node reaches the API server",
        ));
    };
    let store = KubeStore::from_kubeconfig(kubeconfig, None).await;
    let store =
        store.map_err(|e| CniError::new(code::FORBIDDEN, e.to_string(), "check the file and who may read it"))?;
    let ledger = net.ipam.etcd.clone().map(|etcd| LazyLedger::new(etcd, &net.ipam.network));
    Ok(Driver::new(store, ledger, Timestamp::now))
}

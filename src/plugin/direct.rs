//! Direct mode: the call runs in this process, with the credentials that the configuration names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use serde_json::Value;

use super::log;
use super::messenger::Unanswered;
use crate::cni::{CniError, Invocation, code};
use crate::driver::{Driver, GatedDriver};
use crate::netconf::NetConf;
use crate::service::state::State;
use crate::service::{Call, Served, log_answer, node_name_for, unserved};
use crate::store::cluster::ClusterId;
use crate::store::kube::KubeStore;
use crate::store::{Group, LazyLedger, choose_tls};

/// Set by SIGTERM: the runtime has given up.
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// Runs the call here. `unanswered` says why the agent did not, for the log.
pub(super) fn run(
    call: &Invocation,
    net: &NetConf,
    broken: Option<CniError>,
    unanswered: &Unanswered,
) -> Result<Option<Value>, CniError> {
    log::start(net);
    choose_tls();
    if let Some(CniError { msg: error, details: remedy, .. }) = broken {
        tracing::warn!(error, remedy, "the network configuration is broken; DEL does without");
    }
    match unanswered {
        Unanswered::NoAgent => tracing::debug!("no agent on this node"),
        why => tracing::warn!(%why, "the agent did not answer: going on in direct mode"),
    }
    let started = std::time::Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CniError::new(code::INTERNAL, "no runtime", e.to_string()))?;
    let result = runtime.block_on(dispatch(call, net));
    log_answer(call, result.as_ref(), started.elapsed());
    result.map(|served| served.output)
}

async fn dispatch(invocation: &Invocation, net: &NetConf) -> Result<Served, CniError> {
    tokio::spawn(async {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
            TERMINATED.store(true, Ordering::Relaxed);
        }
    });
    // STATUS says in its own code whatever keeps an ADD from being served.
    let fault = |error| unserved(invocation.verb, error);
    let node = node_name_for(invocation.verb, net).map_err(fault)?;
    let state = Arc::new(State::open(&net.ipam.state_dir));
    let driver = driver(net, &state).await.map_err(fault)?.gated(state.clone());
    let gone = || TERMINATED.load(Ordering::Relaxed);
    Call { invocation, net, node: &node, state: &state, gone: &gone, taken: None }.run(&driver).await
}

async fn driver(net: &NetConf, state: &Arc<State>) -> Result<GatedDriver<KubeStore, LazyLedger>, CniError> {
    let Some(kubeconfig) = &net.kubeconfig else {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "ipam.kubeConfig is missing, and so is kubernetes.kubeconfig",
            "name the kubeconfig file by which this node reaches the API server",
        ));
    };
    let store = KubeStore::from_kubeconfig(kubeconfig, None).await;
    let store = store.map_err(|e| {
        let code = if e.unreadable { code::IO } else { code::DECODE };
        let remedy = "mend the file that kubeConfig (or kubernetes.kubeconfig) names, or name another";
        CniError::new(code, e.to_string(), remedy)
    })?;
    let store = store.in_group(Group::of(net.api_group));
    let cluster = Arc::new(ClusterId::new(store.clone()).remembered(state.clone()));
    let ledger = Some(LazyLedger::of_cluster(&net.ipam, &cluster));
    Ok(Driver::new(store, ledger, Timestamp::now))
}

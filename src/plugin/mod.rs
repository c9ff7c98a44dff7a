//! The CNI executable: environment and stdin in, one JSON document out.
//!
//! Whatever comes in, what goes out is an answer or a CNI error with a code; nothing panics and nothing is
//! written before the input is known to be right.

mod answer;
mod ledger;
mod log;
mod state;

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

pub use self::ledger::LazyLedger;

use crate::cni::{
    CniArgs, CniError, CniVersion, Invocation, READ_STDIN_LIMIT, Verb, code, invocation, parse_stdin, version_answer,
};
use crate::driver::{Attachment, Driver, Error, PodRef};
use crate::netconf::{Dialect, NetConf};
use crate::store::kube::KubeStore;

/// Time for everything but waiting for a holder. Runtimes give a plugin minutes, people do not.
const WORK_TIME: Duration = Duration::from_secs(9);

type Plugin = Driver<KubeStore, LazyLedger>;

/// Serves the CNI call that the environment describes. `called_as` is the name of the executable.
pub fn run(called_as: &str) -> ExitCode {
    let mut version = None;
    match serve(called_as, &mut version) {
        Ok(answer) => print(answer.as_ref(), ExitCode::SUCCESS),
        Err(error) => print(Some(&error.to_json(version)), ExitCode::FAILURE),
    }
}

fn print(json: Option<&Value>, exit: ExitCode) -> ExitCode {
    let Some(json) = json else { return exit };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{json}").and_then(|()| out.flush()) {
        Ok(()) => exit,
        // Nobody reads the answer any more: the runtime will call DEL.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(called_as: &str, version: &mut Option<CniVersion>) -> Result<Option<Value>, CniError> {
    let call = invocation(|name| std::env::var_os(name))?;
    if call.verb == Verb::Version {
        return Ok(Some(version_answer()));
    }
    let conf = parse_stdin(&stdin()?)?;
    let spoken = CniVersion::of(&conf)?;
    *version = Some(spoken);
    spoken.knows(call.verb)?;
    let (net, broken) = match call.verb {
        Verb::Del => NetConf::parse_for_del(&conf, called_as)?,
        _ => (NetConf::parse(&conf, called_as)?, None),
    };
    log::start(&net);
    if let Some(fault) = broken {
        tracing::warn!(
            error = fault.msg,
            remedy = fault.details,
            "the network configuration is broken; DEL does without"
        );
    }
    let started = std::time::Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CniError::new(code::INTERNAL, "no runtime", e.to_string()))?;
    let result = runtime.block_on(dispatch(&call, &net));
    log::answered(&call, result.as_ref(), started.elapsed());
    result
}

fn stdin() -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(READ_STDIN_LIMIT).unwrap_or(u64::MAX) + 1;
    match std::io::stdin().lock().take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(e) => Err(CniError::new(code::IO, "the network configuration on stdin could not be read", e.to_string())),
    }
}

/// Set by SIGTERM: the runtime has given up.
static TERMINATED: AtomicBool = AtomicBool::new(false);

async fn dispatch(call: &Invocation, net: &NetConf) -> Result<Option<Value>, CniError> {
    tokio::spawn(async {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
            TERMINATED.store(true, Ordering::Relaxed);
        }
    });
    // STATUS says in its own code whatever keeps an ADD from being served.
    let fault = |error: CniError| match call.verb {
        Verb::Status => CniError { code: code::NOT_AVAILABLE, ..error },
        _ => error,
    };
    let node = match call.verb {
        // DEL finds everything by the handle; a node that has lost its name can still be cleaned up.
        Verb::Del => node_name(net).unwrap_or_default(),
        _ => node_name(net).map_err(fault)?,
    };
    let driver = driver(net).await.map_err(fault)?;
    let state = state::State::open(net);
    let marks = state.container(&crate::driver::handle_of(&net.network, &call.container_id));
    let cancelled = || TERMINATED.load(Ordering::Relaxed) || marks.is_deleted();
    let mut attachment = Attachment {
        net,
        container_id: &call.container_id,
        interface: &call.ifname,
        pod: pod(&call.args),
        node: &node,
        explicit: if call.verb == Verb::Add { explicit(&call.args, net)? } else { &[] },
        cancelled: &cancelled,
        gate: &state,
        deadline: Instant::now() + WORK_TIME,
        policy: net.ipam.takeover,
    };
    match call.verb {
        Verb::Add => {
            let _turn = marks.begin_add().await;
            attachment.deadline = Instant::now() + WORK_TIME;
            let assigned = driver.add(&attachment).await.map_err(|e| answer::error(&e))?;
            answer::ok(net, &assigned).map(|a| Some(a.render(&net.cni_version)))
        }
        Verb::Del => {
            let _turn = marks.begin_del().await;
            attachment.deadline = Instant::now() + WORK_TIME;
            driver.del(&attachment).await.map(|_| None).map_err(|e| answer::error(&e))
        }
        Verb::Check => check(&driver, &attachment).await,
        Verb::Gc => gc(&driver, &attachment).await,
        Verb::Status => driver.status(net).await.map(|()| None).map_err(|e| answer::unavailable(&e)),
        Verb::Version => Ok(Some(version_answer())),
    }
}

async fn check(driver: &Plugin, attachment: &Attachment<'_>) -> Result<Option<Value>, CniError> {
    let Some(previous) = &attachment.net.prev_result else {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "prevResult is missing",
            "CHECK compares the records with the answer of ADD, which the runtime passes as prevResult",
        ));
    };
    let addresses: Vec<IpAddr> = previous.ips.iter().map(|ip| ip.address.ip()).collect();
    let missing = driver.check(attachment, &addresses).await.map_err(|e| answer::error(&e))?;
    if missing.is_empty() {
        return Ok(None);
    }
    let lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Err(CniError::new(
        code::CHECK_FAILED,
        lines.join("; "),
        "the container's address is not its own any more: delete the pod, so that it gets one again",
    ))
}

async fn gc(driver: &Plugin, attachment: &Attachment<'_>) -> Result<Option<Value>, CniError> {
    let Some(valid) = &attachment.net.attachments else {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "cni.dev/valid-attachments is missing",
            "GC releases everything that is not in this list, so it must be there, even if it is empty",
        ));
    };
    let collected = driver.gc(attachment, valid).await.map_err(|e| answer::error(&e))?;
    for gone in &collected {
        tracing::info!(container = gone.container_id, addresses = ?gone.addresses, "released what a container left");
    }
    Ok(None)
}

async fn driver(net: &NetConf) -> Result<Plugin, CniError> {
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
        CniError::new(
            code,
            e.to_string(),
            "mend the file that kubeConfig (or kubernetes.kubeconfig) names, or name another",
        )
    })?;
    let ledger = net.ipam.etcd.clone().map(|etcd| LazyLedger::new(etcd, &net.ipam.network));
    Ok(Driver::new(store, ledger, Timestamp::now))
}

fn node_name(net: &NetConf) -> Result<String, CniError> {
    let path = &net.nodename.file;
    let file = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        // Going on under another name would send traffic to the wrong node.
        Err(e) => {
            let wrong = format!("nodename_file {}: {e}", path.display());
            return Err(CniError::new(code::IO, wrong, "make the file readable for the runtime's user"));
        }
    };
    let host = hostname(Path::new("/proc/sys/kernel/hostname"));
    net.nodename.resolve(file.as_deref(), &host)
}

fn hostname(path: &Path) -> String {
    std::fs::read_to_string(path).map(|h| h.trim().to_lowercase()).unwrap_or_default()
}

fn pod(args: &CniArgs) -> Option<PodRef<'_>> {
    let (namespace, name) = (args.pod_namespace.as_deref()?, args.pod_name.as_deref()?);
    Some(PodRef { namespace, name, uid: args.pod_uid.as_deref() })
}

fn explicit<'a>(args: &'a CniArgs, net: &NetConf) -> Result<&'a [IpAddr], CniError> {
    match (args.ip.as_deref(), net.ipam.dialect) {
        (None, _) => Ok(&[]),
        (Some(addresses), Dialect::CalicoIpam { .. }) => Ok(addresses),
        (Some(_), Dialect::KubeIpam) => Err(CniError::new(
            code::INVALID_ENVIRONMENT,
            "CNI_ARGS has IP=, which kube-ipam does not take",
            "an address without a claim could be somebody's fixed one: use the annotation kube-ipam.ip",
        )),
    }
}

impl From<Error> for CniError {
    fn from(error: Error) -> Self {
        answer::error(&error)
    }
}

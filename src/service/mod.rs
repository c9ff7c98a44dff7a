//! One CNI call from parsed input to answer: the same for the plugin on its own and for the node's agent.

pub mod answer;
pub mod owed;
mod served;
pub mod state;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

pub use self::served::{Given, How, Served};
use self::state::{Begun, Container, Note, State, Turn};
use crate::cni::{CniArgs, CniError, Invocation, Verb, code, version_answer};
use crate::driver::handle_of;
use crate::driver::{Assigned, Attachment, Driver, Error, PodRef};
use crate::netconf::{Dialect, NetConf};
use crate::pod::{IP, IP_ADDRS};
use crate::store::{Ledger, Objects};

/// Time for everything but waiting for a holder. Runtimes give a plugin minutes, people do not.
const WORK_TIME: Duration = Duration::from_secs(9);

/// A call, and what this node knows of it.
pub struct Call<'a> {
    /// Environment of the call.
    pub invocation: &'a Invocation,
    /// The network's configuration.
    pub net: &'a NetConf,
    /// This node's name.
    pub node: &'a str,
    /// What the calls of this node have noted.
    pub state: &'a State,
    /// Whether the runtime has given up.
    pub gone: &'a (dyn Fn() -> bool + Sync),
    /// For an ADD: what is on record for the pod already, taken ahead of any container.
    pub taken: Option<&'a [Assigned]>,
}

/// A container and its pod for a DEL: no other call decides about them as long as this is.
pub struct Held {
    last_sandbox: bool,
    container: Turn,
    pod: Option<Turn>,
}

impl Held {
    /// Whether that is so: a call that has it for too long is not waited for.
    pub fn is_held(&self) -> bool {
        self.container.is_held() && self.pod.as_ref().is_none_or(Turn::is_held)
    }
}

impl Call<'_> {
    /// Runs the call on `driver`.
    ///
    /// # Errors
    /// In CNI's form: a code, what is wrong, what to do.
    pub async fn run<O: Objects, L: Ledger>(&self, driver: &Driver<O, L>) -> Result<Served, CniError> {
        let marks = self.container();
        let cancelled = || (self.gone)() || marks.is_deleted();
        match self.invocation.verb {
            Verb::Add => {
                let begun = marks.begin_add().await;
                let given = self.add(driver, &cancelled, &begun).await?;
                let output = answer::ok(self.net, &given.addresses)?.render(&self.net.cni_version);
                Ok(Served { output: Some(output), given: Some(given) })
            }
            Verb::Del => {
                let held = self.hold().await;
                self.release(driver, &held).await.map(|()| Served::default())
            }
            Verb::Check => check(driver, &self.attachment(&cancelled)?).await.map(|()| Served::default()),
            Verb::Gc => gc(driver, &self.attachment(&cancelled)?).await.map(|()| Served::default()),
            Verb::Status => {
                driver.status(self.net).await.map(|()| Served::default()).map_err(|e| answer::unavailable(&e))
            }
            Verb::Version => Ok(Served { output: Some(version_answer()), given: None }),
        }
    }

    async fn add<O: Objects, L: Ledger>(
        &self,
        driver: &Driver<O, L>,
        cancelled: &(dyn Fn() -> bool + Sync),
        begun: &Begun,
    ) -> Result<Given, CniError> {
        let anew = begun.anew;
        let attachment = Attachment { anew, ..self.attachment(cancelled)? };
        let call = self.invocation;
        let Some(uid) = attachment.pod.and_then(|p| p.uid) else {
            return Ok(Given { how: How::Decision, addresses: driver.add(&attachment).await? });
        };
        let pod = self.state.pod(uid);
        let concerns_pod = self.taken.is_some() || self.state.note(uid).is_some() || self.state.is_given_back(uid);
        let turn = match concerns_pod {
            true => Some(pod.turn().await),
            false => None,
        };
        let noted = self.state.note(uid);
        let serves = noted.as_ref().is_none_or(|n| n.serves(&call.container_id, &call.ifname));
        let own = noted.as_ref().is_some_and(|note| note.is_of(&call.container_id, &call.ifname));
        // An earlier ADD of this container, by another process, may have given it an address of its own.
        let has_own = concerns_pod && begun.again && !own && driver.has_handle(&attachment).await?;
        // A DEL that is still at it may be about to give back what the pod has.
        let may_have = serves && !has_own && turn.as_ref().is_some_and(Turn::is_held);
        let given_back = self.state.is_given_back(uid);
        // The plugin did without us once, and has given back what we remember.
        let taken = match self.taken.filter(|_| !given_back) {
            Some(taken) if may_have => Some((How::Ahead, taken.to_vec())),
            // An earlier sandbox had it, and nobody remembers it but the records.
            None if may_have && noted.is_some() => {
                let ahead = Attachment { anew: anew || given_back, ..attachment.ahead() };
                match driver.add(&ahead).await {
                    Ok(taken) => Some((How::Records, taken)),
                    // This container may run with what is on record, and is not to be given anything else.
                    Err(error) if own && !matches!(error, Error::NotAhead(_)) => return Err(error.into()),
                    Err(_) => None,
                }
            }
            _ => None,
        };
        match taken {
            // Noted before the answer: from now on only this container's DEL gives it back.
            Some((how, addresses)) if self.state.put_note(uid, &Note::of(call)) => {
                if how == How::Records {
                    name_container(driver, call, uid, &addresses).await;
                }
                Ok(Given { how, addresses })
            }
            _ => Ok(Given { how: How::Decision, addresses: driver.add(&attachment).await? }),
        }
    }

    /// The container's files.
    pub fn container(&self) -> Container {
        let call = self.invocation;
        self.state.container(&handle_of(&self.net.network, &call.container_id), &call.ifname)
    }

    /// For a DEL: waits for its turn. An ADD of the container that is under way undoes itself.
    pub async fn hold(&self) -> Held {
        let turn = self.container().begin_del().await;
        self.hold_pod(turn).await
    }

    /// The same for one that was answered earlier; `None` if it is not this one's turn, or it is not wanted any more.
    pub async fn hold_owed(&self) -> Option<Held> {
        let turn = self.container().begin_owed().await?;
        Some(self.hold_pod(turn).await).filter(Held::is_held)
    }

    async fn hold_pod(&self, container: Turn) -> Held {
        let call = self.invocation;
        let Some(uid) = pod_of(&call.args).and_then(|pod| pod.uid) else {
            return Held { last_sandbox: true, container, pod: None };
        };
        // A later sandbox of the pod takes its address on between two DELs, never within one.
        let turn = self.state.pod(uid).turn().await;
        let noted = self.state.note(uid);
        let last_sandbox = noted.is_none_or(|n| n.is_of(&call.container_id, &call.ifname));
        if last_sandbox {
            self.state.mark_given_back(uid);
        }
        Held { last_sandbox, container, pod: Some(turn) }
    }

    /// For a DEL: gives back what the container has.
    ///
    /// # Errors
    /// In CNI's form. It is to be done again, and may be at any time.
    pub async fn release<O: Objects, L: Ledger>(&self, driver: &Driver<O, L>, held: &Held) -> Result<(), CniError> {
        let attachment = self.attachment(&|| false)?;
        driver.del(&Attachment { last_sandbox: held.last_sandbox, ..attachment }).await?;
        let call = self.invocation;
        if let (Some(uid), true) = (attachment.pod.and_then(|p| p.uid), held.last_sandbox)
            && self.state.note(uid).is_some_and(|note| note.is_of(&call.container_id, &call.ifname))
        {
            self.state.drop_note(uid);
        }
        self.container().settle();
        Ok(())
    }

    /// What the driver is to know of the call.
    pub fn attachment<'c>(&'c self, cancelled: &'c (dyn Fn() -> bool + Sync)) -> Result<Attachment<'c>, CniError> {
        Ok(Attachment {
            net: self.net,
            container_id: &self.invocation.container_id,
            interface: &self.invocation.ifname,
            pod: pod_of(&self.invocation.args),
            node: self.node,
            explicit: match self.invocation.verb {
                Verb::Add => explicit(&self.invocation.args, self.net)?,
                _ => &[],
            },
            last_sandbox: true,
            anew: false,
            cancelled,
            deadline: Instant::now() + WORK_TIME,
            policy: self.net.ipam.takeover,
        })
    }
}

/// Lets the claims name the container that has the addresses by now. Nothing depends on it: the note does.
async fn name_container<O: Objects, L: Ledger>(
    driver: &Driver<O, L>,
    call: &Invocation,
    uid: &str,
    addresses: &[Assigned],
) {
    for fixed in addresses.iter().filter(|a| a.fixed) {
        if let Err(error) = driver.name_container(fixed.address, uid, &call.container_id, &call.ifname).await {
            tracing::info!(address = %fixed.address, %error, "the claim does not name its container yet");
        }
    }
}

async fn check<O: Objects, L: Ledger>(driver: &Driver<O, L>, attachment: &Attachment<'_>) -> Result<(), CniError> {
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
        return Ok(());
    }
    let lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Err(CniError::new(
        code::CHECK_FAILED,
        lines.join("; "),
        "the container's address is not its own any more: delete the pod, so that it gets one again",
    ))
}

async fn gc<O: Objects, L: Ledger>(driver: &Driver<O, L>, attachment: &Attachment<'_>) -> Result<(), CniError> {
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
    Ok(())
}

/// An error that keeps a verb from being served at all; STATUS has a code of its own for it.
pub fn unserved(verb: Verb, error: CniError) -> CniError {
    match verb {
        Verb::Status => CniError { code: code::NOT_AVAILABLE, ..error },
        _ => error,
    }
}

/// The same for a verb: DEL finds everything by the handle, so that a node which has lost its name can still be
/// cleaned up.
pub fn node_name_for(verb: Verb, net: &NetConf) -> Result<String, CniError> {
    match verb {
        Verb::Del => Ok(node_name(net).unwrap_or_default()),
        _ => node_name(net),
    }
}

/// This node's name, by the configuration, Calico's file or the host.
///
/// # Errors
/// The file is there and cannot be read: going on under another name would send traffic to the wrong node.
pub fn node_name(net: &NetConf) -> Result<String, CniError> {
    // It wins: what else could name the node need not be read.
    if net.nodename.nodename.is_some() {
        return net.nodename.resolve(None, "");
    }
    let path = &net.nodename.file;
    let file = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
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

/// The pod that a call is for, if it names one.
pub fn pod_of(args: &CniArgs) -> Option<PodRef<'_>> {
    let (namespace, name) = (args.pod_namespace.as_deref()?, args.pod_name.as_deref()?);
    Some(PodRef { namespace, name, uid: args.pod_uid.as_deref() })
}

/// The addresses that the runtime asks for, in the one way that calico-ipam serves.
fn explicit<'a>(args: &'a CniArgs, net: &NetConf) -> Result<&'a [IpAddr], CniError> {
    if let Some(refusal) = &net.asked {
        return Err(refusal.clone());
    }
    match (args.ip.as_deref(), net.ipam.dialect) {
        (None, _) => Ok(&[]),
        (Some(addresses), Dialect::CalicoIpam) => Ok(addresses),
        (Some(addresses), Dialect::KubeIpam) => {
            let list = addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
            // Kubernetes' runtimes pass no address by themselves.
            let asked = match (net.main_plugin.as_str(), &args.pod_name) {
                ("calico", Some(_)) => format!("the pod's annotation {IP_ADDRS}, passed on by Calico as IP={list},"),
                _ => format!("CNI_ARGS has IP={list}, which"),
            };
            Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("{asked} asks for an address in a way that kube-ipam does not serve"),
                format!(
                    "an address without a claim could be somebody's fixed one: annotate the pod with {IP}: {list:?} instead"
                ),
            ))
        }
    }
}

impl From<Error> for CniError {
    fn from(error: Error) -> Self {
        answer::error(&error)
    }
}

/// One line for an answer.
pub fn log_answer(call: &Invocation, result: Result<&Served, &CniError>, took: Duration) {
    let verb = call.verb.name();
    let (namespace, pod) = (call.args.pod_namespace.as_deref(), call.args.pod_name.as_deref());
    let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(served) => {
            let (ips, how) = (served.given.as_ref().map(Given::list), served.given.as_ref().map(|g| g.how.label()));
            tracing::info!(verb, namespace, pod, container = call.container_id, ips, how, milliseconds, "answered");
        }
        Err(error) => tracing::error!(
            verb,
            namespace,
            pod,
            container = call.container_id,
            code = error.code,
            error = error.msg,
            remedy = error.details,
            milliseconds,
            "refused"
        ),
    }
}

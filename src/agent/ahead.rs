//! Addresses that are put on record as soon as a pod is bound to the node, before the kubelet asks.
//!
//! They are recorded under the pod, `<namespace>.<pod>` with its UID, since no container is known yet; that is
//! a handle which Calico's own plugin gives back too. A sandbox takes such an address on by a note on tmpfs,
//! made before the answer; a later sandbox of the same pod takes it over. What no sandbox took on is given back
//! when the pod goes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calico::{Entry, IPAMBlock, cidr_name};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::metrics::Early;
use super::network::default_network;
use super::watches::PodEvent;
use super::{Agent, AgentDriver};
use crate::cni::CniError;
use crate::driver::{Assigned, Attachment, Error, POD_UID_KEY, PodRef};
use crate::netconf::NetConf;
use crate::pod;
use crate::service::state::State;
use crate::service::{Call, Served};
use crate::store::{Objects as _, StoreError};

/// Time for putting an address on record, or for taking it off again.
const WORK_TIME: Duration = Duration::from_secs(9);

/// Pods whose addresses are put on record at the same time: enough to share block writes, and a bound on the memory
/// that a hundred pods at once would take.
const AT_ONCE: usize = 16;

/// The pods of this node by UID.
pub(super) struct Ahead {
    pods: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Stage>>>>,
    turns: Semaphore,
    /// The network of the pod before: nearly always that of the next one, too.
    network: Mutex<Option<Arc<NetConf>>>,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { pods: Mutex::default(), turns: Semaphore::new(AT_ONCE), network: Mutex::default() }
    }
}

/// How far a pod is.
#[derive(Default)]
enum Stage {
    /// Nothing was done for it.
    #[default]
    New,
    /// Its addresses are on record, in this network.
    Taken(Arc<NetConf>, Vec<Assigned>),
    /// Its containers come and go by themselves.
    Over,
}

// === impl Ahead ===

impl Ahead {
    fn stage(&self, uid: &str) -> Arc<tokio::sync::Mutex<Stage>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).entry(uid.to_owned()).or_default().clone()
    }

    fn known(&self, uid: &str) -> Option<Arc<tokio::sync::Mutex<Stage>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// One in memory for all pods of a network.
    fn shared(&self, network: NetConf) -> Arc<NetConf> {
        let mut known = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(known) if **known == network => known.clone(),
            _ => known.insert(Arc::new(network)).clone(),
        }
    }

    fn forget(&self, uid: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// After a DEL: a pod's address that no sandbox has any more is not to be answered from memory.
    pub(super) fn forget_if_released(&self, uid: &str, state: &State) {
        let stage = self.known(uid);
        if state.note(uid).is_none()
            && let Some(Ok(mut stage)) = stage.as_ref().map(|s| s.try_lock())
        {
            *stage = Stage::Over;
        }
    }

    /// How many pods are kept in mind.
    pub(super) fn len(&self) -> usize {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many pods have addresses on record that no sandbox has taken on; those that are at it do not count.
    pub(super) fn waiting(&self, state: &State) -> usize {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |stage: &Arc<tokio::sync::Mutex<Stage>>| {
            stage.try_lock().is_ok_and(|stage| matches!(*stage, Stage::Taken(..)))
        };
        pods.iter().filter(|(uid, stage)| taken(stage) && state.note(uid).is_none()).count()
    }
}

impl Agent {
    /// An ADD of a pod: from memory, if its address is on record.
    pub(super) async fn add(&self, call: Call<'_>, uid: &str, driver: &AgentDriver) -> Result<Served, CniError> {
        if !self.options.take_ahead {
            // Nothing is on record, and nobody would forget the pod.
            return call.run(driver).await;
        }
        let stage = self.ahead.stage(uid);
        let mut stage = stage.lock().await;
        match &*stage {
            Stage::Taken(net, taken) if net.ipam == call.net.ipam && net.network == call.net.network => {
                let answer = Call { taken: Some(taken), ..call }.run(driver).await;
                if answer.is_ok() && taken.iter().any(|a| a.fixed) {
                    self.name_container(&call, uid, taken, driver);
                }
                // The DEL of an earlier sandbox could not say so here, as this call had the lock.
                if self.state.is_given_back(uid) {
                    *stage = Stage::Over;
                }
                answer
            }
            _ => {
                // From now on nothing is taken ahead for it, and the lock is not needed.
                *stage = Stage::Over;
                drop(stage);
                call.run(driver).await
            }
        }
    }

    /// Lets the claims name the container that has the addresses by now. Nothing depends on it: until then
    /// they are the pod's.
    fn name_container(&self, call: &Call<'_>, uid: &str, taken: &[Assigned], driver: &AgentDriver) {
        let (driver, uid) = (driver.clone(), uid.to_owned());
        let (container, interface) = (call.invocation.container_id.clone(), call.invocation.ifname.clone());
        let addresses: Vec<_> = taken.iter().filter(|a| a.fixed).map(|a| a.address).collect();
        self.tasks.spawn(async move {
            for address in addresses {
                if let Err(error) = driver.name_container(address, &uid, &container, &interface).await {
                    tracing::info!(%address, %error, "the claim does not name its container yet");
                }
            }
        });
    }

    /// Follows the pods of this node.
    pub(super) async fn follow_pods(self: Arc<Self>, mut events: UnboundedReceiver<PodEvent>) {
        let pulse = self.health.pulse("pods");
        while let Some(event) = pulse.while_waiting(events.recv()).await {
            if let (Some(add_on), PodEvent::Seen(pod)) = (&self.add_on, &event) {
                add_on.hear(pod);
            }
            if !self.options.take_ahead || self.stopping.is_cancelled() {
                continue;
            }
            let agent = self.clone();
            match event {
                PodEvent::Seen(pod) if is_ending(&pod) => drop(self.tasks.spawn(agent.give_back(pod, false))),
                PodEvent::Seen(pod) if is_waiting(&pod) => drop(self.tasks.spawn(agent.take(pod))),
                PodEvent::Seen(pod) if !addresses(&pod).is_empty() => {
                    drop(self.tasks.spawn(agent.give_back_if_other(pod)));
                }
                PodEvent::Seen(_) => {}
                PodEvent::Gone(pod) => drop(self.tasks.spawn(agent.give_back(pod, true))),
            }
        }
    }

    /// Puts a pod's addresses on record, if that is possible now.
    async fn take(self: Arc<Self>, pod: Box<Pod>) {
        let (Some(uid), Some(net)) = (pod.uid(), default_network(&self.options.cni_conf_dir)) else { return };
        let stage = self.ahead.stage(&uid);
        // Before the pod's lock: an ADD that comes meanwhile does not wait for its turn.
        let Ok(_turn) = self.ahead.turns.acquire().await else { return };
        let mut stage = stage.lock().await;
        if !matches!(*stage, Stage::New) || self.state.note(&uid).is_some() || self.state.is_given_back(&uid) {
            return;
        }
        *stage = Stage::Over;
        let mut patient = net.clone();
        // Whoever has the address now is waited for by the ADD, not here.
        patient.ipam.wait = Duration::ZERO;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let gone = || self.stopping.is_cancelled();
        let attachment = self.attachment(&patient, &namespace, &name, &uid, &gone);
        match self.driver_for(&net).add(&attachment).await {
            Ok(taken) => {
                let addresses: Vec<String> = taken.iter().map(|a| a.address.to_string()).collect();
                tracing::info!(namespace, pod = name, ips = addresses.join(","), "taken ahead");
                *stage = Stage::Taken(self.ahead.shared(net), taken);
                self.witness.metrics.early(Early::Taken);
            }
            // ADD meets the same and reports it to the runtime.
            Err(error) => {
                tracing::debug!(namespace, pod = name, %error, "not taken ahead");
                self.witness.metrics.early(Early::Failed);
                if matches!(error, Error::Locked) {
                    let agent = self.clone();
                    self.tasks.spawn(async move { agent.undo_later(&net, &pod, &uid).await });
                }
            }
        }
    }

    /// What was begun ahead when Calico's datastore was locked, and could not be undone, is given back once it is
    /// unlocked; an ADD that came since goes on with it.
    async fn undo_later(&self, net: &NetConf, pod: &Pod, uid: &str) {
        while self.unlocked().await {
            if self.state.note(uid).is_some() {
                return;
            }
            let Ok(found) = self.live_pod(&pod.namespace().unwrap_or_default(), &pod.name_any()).await else {
                continue;
            };
            // One that waits still is served by its ADD, and released by its DEL.
            let waits = found.is_some_and(|found| found.uid().as_deref() == Some(uid) && !is_ending(&found));
            if waits || !matches!(self.release(net, pod, uid).await, Err(Error::Locked)) {
                return;
            }
        }
    }

    /// Gives back what no sandbox took on; while Calico's datastore is locked, once it is unlocked.
    async fn give_back(self: Arc<Self>, pod: Box<Pod>, gone: bool) {
        let Some(uid) = pod.uid() else { return };
        let stage = self.ahead.stage(&uid);
        while self.is_owed(&mut *stage.lock().await, &pod, &uid).await {
            if !self.unlocked().await {
                // The next agent finds it in its sweep.
                return;
            }
        }
        if gone {
            self.ahead.forget(&uid);
        }
    }

    /// Gives back what a pod has that no sandbox took on; true if that has to wait for Calico's datastore.
    async fn is_owed(&self, stage: &mut Stage, pod: &Pod, uid: &str) -> bool {
        let Stage::Taken(net, taken) = std::mem::replace(stage, Stage::Over) else { return false };
        // If a sandbox has it, its DEL is yet to come.
        let noted = self.state.note(uid).is_some();
        let waits = !noted && matches!(self.release(&net, pod, uid).await, Err(Error::Locked));
        if noted || waits {
            *stage = Stage::Taken(net, taken);
        }
        waits
    }

    /// The pod has another address: an ADD in direct mode did not know of this one.
    async fn give_back_if_other(self: Arc<Self>, pod: Box<Pod>) {
        let Some(stage) = pod.uid().and_then(|uid| self.ahead.known(&uid)) else { return };
        let has = addresses(&pod);
        let unused = match &*stage.lock().await {
            Stage::Taken(_, taken) => !taken.iter().any(|a| has.contains(&a.address)),
            Stage::New | Stage::Over => false,
        };
        if unused {
            self.give_back(pod, false).await;
        }
    }

    async fn release(&self, net: &NetConf, pod: &Pod, uid: &str) -> Result<(), Error> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let attachment = self.attachment(net, &namespace, &name, uid, &|| false);
        match self.driver_for(net).del(&attachment).await {
            Ok(freed) => {
                tracing::info!(namespace, pod = name, freed = freed.len(), "given back unused");
                self.witness.metrics.early(Early::GivenBack);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(namespace, pod = name, %error, "an unused address was not given back");
                Err(error)
            }
        }
    }

    fn attachment<'a>(
        &'a self,
        net: &'a NetConf,
        namespace: &'a str,
        name: &'a str,
        uid: &'a str,
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Attachment<'a> {
        Attachment {
            net,
            container_id: "",
            interface: "",
            pod: Some(PodRef { namespace, name, uid: Some(uid) }),
            node: &self.options.node,
            explicit: &[],
            last_sandbox: true,
            anew: false,
            cancelled,
            deadline: Instant::now() + WORK_TIME,
            policy: net.ipam.takeover,
        }
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    pod::own_addresses(pod).unwrap_or_default()
}

/// Whether a pod has no sandbox yet, and will get one in the node's own network.
fn is_waiting(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let on_host = spec.is_some_and(|s| s.host_network == Some(true));
    let bound = spec.is_some_and(|s| s.node_name.is_some());
    // The runtime knows a static pod by another UID than its mirror's.
    let elsewhere = pod::is_static(pod) || pod.annotations().contains_key(pod::OTHER_NETWORK);
    bound && !on_host && addresses(pod).is_empty() && !elsewhere && !is_ending(pod)
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() || pod::has_finished(pod)
}

impl Agent {
    /// After a start: what an earlier agent had put on record for pods that are gone, or that got another
    /// address meanwhile, is given back. What is still waited for is taken on by [`Agent::take`].
    pub(super) async fn sweep(&self) {
        let Some(net) = default_network(&self.options.cni_conf_dir) else { return };
        for affinity in self.shelves().affinities.snapshot() {
            let Ok(Some(block)) = self.driver.objects().get::<IPAMBlock>(None, &cidr_name(&affinity.spec.cidr)).await
            else {
                continue;
            };
            for (address, entry) in block.spec.entries() {
                let Entry::Used { attribute, .. } = entry else { continue };
                let key = |key: &str| attribute.secondary(key);
                let (Some(uid), Some(namespace), Some(name)) = (key(POD_UID_KEY), key("namespace"), key("pod")) else {
                    continue;
                };
                if key("node") != Some(self.options.node.as_str()) || self.state.note(uid).is_some() {
                    continue;
                }
                let Ok(pod) = self.live_pod(namespace, name).await else { continue };
                let same = pod.as_ref().filter(|p| p.uid().as_deref() == Some(uid));
                // A pod that says it has the address has it, whatever became of the note.
                let needed = same.is_some_and(|p| is_waiting(p) || addresses(p).contains(&address));
                if !needed {
                    tracing::info!(%address, namespace, pod = name, "left by an earlier agent");
                    let attachment = self.attachment(&net, namespace, name, uid, &|| false);
                    if let Err(error) = self.driver_for(&net).del(&attachment).await {
                        tracing::warn!(%address, %error, "what an earlier agent left was not given back");
                    }
                }
            }
        }
    }

    async fn live_pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, StoreError> {
        self.driver.objects().inner().inner().get::<Pod>(Some(namespace), name).await
    }
}

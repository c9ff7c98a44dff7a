//! The way from a caller to the stores: messages that are slow, cut, repeated, refused, or arrive when nobody
//! waits for them any more, and callers that die at any of them.
//!
//! What happens to a call depends on the seed, the caller's name and the number of the call alone, so that a
//! run with one fault or action less is as much like the run before as it can be.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use kube_ipam::claim::{Claim, LedgerName};
use kube_ipam::pod::Owner;
use kube_ipam::store::{Failure, Ledger, Listed, Object, Objects, StoreError, Swap, Versioned};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::linear::{Did, Operation};
use super::rng::{Rng, hash, mix};
use super::sim::Sim;
use super::truth::{Shared, Truth, copy, describe};

/// What the server does, answered with what is shared.
type Act<T> = Box<dyn FnMut(&mut Truth) -> Result<T, StoreError> + Send>;

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused with 500, without effect.
    Fail,
    /// Refused with 429 for so many milliseconds.
    Busy(u64),
    /// Refused with 409 for no reason that the caller can see.
    Conflict,
    /// It takes effect, and the answer is lost.
    LoseReply,
    /// The caller hears of a time-out; it takes effect so many milliseconds later.
    Late(u64),
    /// It arrives twice, and the second answer is what the caller hears.
    Repeat,
    /// The caller is stopped for so long before it asks.
    Pause(u64),
    /// The caller dies before it.
    DieBefore,
    /// The caller dies after it.
    DieAfter,
}

/// Whoever makes calls: one process, or one call of a plugin.
pub struct Caller {
    pub name: String,
    id: u64,
    /// The node it runs on, whose connections may be cut.
    pub node: Option<usize>,
    /// Whether it may die by itself; an agent is killed with all its calls at once.
    mortal: bool,
    calls: AtomicU64,
    /// Wakes whoever is to drop it.
    died: Notify,
}

/// A caller's connection to both stores.
#[derive(Clone)]
pub struct Wire {
    sim: Arc<Sim>,
    caller: Arc<Caller>,
}

// === impl Caller ===

impl Caller {
    pub fn mortal(name: String, node: Option<usize>) -> Arc<Self> {
        Arc::new(Self { id: hash(&name), name, node, mortal: true, calls: AtomicU64::new(0), died: Notify::new() })
    }

    pub fn immortal(name: String, node: Option<usize>) -> Arc<Self> {
        Arc::new(Self { id: hash(&name), name, node, mortal: false, calls: AtomicU64::new(0), died: Notify::new() })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// Runs a piece of work of this caller; `None` if it died at it.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.died.notified() => None,
        }
    }
}

// === impl Wire ===

impl Wire {
    pub fn new(sim: &Arc<Sim>, caller: &Arc<Caller>) -> Self {
        Self { sim: sim.clone(), caller: caller.clone() }
    }

    /// One exchange, boxed: what a call consists of is moved about often, and would hold many of these.
    fn exchange<T: Send + 'static>(
        &self,
        verb: &'static str,
        object: String,
        act: impl FnMut(&mut Truth) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        self.carry(verb, object, Box::new(act)).boxed()
    }

    async fn carry<T: Send + 'static>(&self, verb: &'static str, object: String, act: Act<T>) -> Result<T, StoreError> {
        let number = self.caller.calls.fetch_add(1, Ordering::Relaxed);
        let mut chance = Rng::new(mix(&[self.sim.plan.seed, self.caller.id, number]));
        let (there, back) = (self.sim.latency(&mut chance), self.sim.latency(&mut chance));
        let fault = self.sim.fault(&mut chance, (self.caller.id, number), writes(verb), verb);
        let fault = fault.map(|fault| match fault {
            Fault::DieBefore if !self.caller.mortal => Fault::Fail,
            Fault::DieAfter if !self.caller.mortal => Fault::LoseReply,
            // Calico's writers take the answer for the truth.
            Fault::Repeat if self.caller.name.starts_with("calico") => Fault::LoseReply,
            other => other,
        });
        if let Some(fault) = fault {
            self.sim.tell(&self.caller.name, "fault", &object, || format!("{fault:?} at {verb} (call {number})"));
        }
        let outcome = self.deliver(verb, &object, act, fault, there, back).await;
        let told = match &outcome {
            Ok(_) => "ok",
            Err(error) => label(&error.failure),
        };
        self.sim.tell(&self.caller.name, verb, &object, || told.to_owned());
        outcome
    }

    async fn deliver<T: Send + 'static>(
        &self,
        verb: &'static str,
        object: &str,
        mut act: Act<T>,
        fault: Option<Fault>,
        there: u64,
        back: u64,
    ) -> Result<T, StoreError> {
        let fail = |failure| Err(StoreError::new(verb, object, failure));
        let unknown = |why: &str| fail(Failure::Unknown(why.to_owned()));
        if let Some(Fault::Pause(pause)) = fault {
            sleep(Duration::from_millis(pause)).await;
        }
        wait(there).await;
        if self.is_cut() {
            sleep(Duration::from_millis(1000)).await;
            return unknown("no connection");
        }
        match fault {
            Some(Fault::DieBefore) => return self.die().await,
            Some(Fault::Fail) => return unknown("HTTP 500"),
            Some(Fault::Busy(pause)) => return fail(Failure::Busy(Duration::from_millis(pause))),
            Some(Fault::Conflict) => return fail(Failure::Conflict),
            Some(Fault::Late(late)) => {
                let wire = self.clone();
                let object = object.to_owned();
                tokio::spawn(async move {
                    wait(late).await;
                    wire.arrives(verb, &object);
                    drop(act(&mut wire.sim.truth()));
                });
                wait(back).await;
                return unknown("timed out");
            }
            _ => {}
        }
        self.arrives(verb, object);
        let mut outcome = act(&mut self.sim.truth());
        if fault == Some(Fault::Repeat) {
            wait(1).await;
            outcome = act(&mut self.sim.truth());
        }
        wait(back).await;
        match fault {
            Some(Fault::DieAfter) => self.die().await,
            Some(Fault::LoseReply) => unknown("the reply was lost"),
            _ if self.is_cut() => unknown("the connection broke"),
            _ => outcome,
        }
    }

    /// Everything of a kind, and the version of which it is.
    pub async fn list_at<K: Object>(&self) -> Result<(u64, Vec<K>), StoreError> {
        let act = move |truth: &mut Truth| Ok((truth.revision(), truth.list::<K>("", 0)));
        let (revision, found) = self.exchange("list", K::plural(&()).into_owned(), act).await?;
        Ok((revision, found.iter().map(copy).collect()))
    }

    async fn list_as_of<K: Object>(&self, selector: &str, lag: u64) -> Result<Vec<K>, StoreError> {
        let selector = selector.to_owned();
        let act = move |truth: &mut Truth| Ok(truth.list::<K>(&selector, lag));
        let found: Vec<Shared> = self.exchange("list", K::plural(&()).into_owned(), act).await?;
        Ok(found.iter().map(copy).collect())
    }

    /// Calico's own writers have a way of their own to heed its lock.
    fn arrives(&self, verb: &str, object: &str) {
        let ours = !["calico", "kube-controllers"].iter().any(|other| self.caller.name.starts_with(other));
        if writes(verb) && ours {
            self.sim.truth().arrives(&self.caller.name, verb, object);
        }
    }

    fn is_cut(&self) -> bool {
        self.caller.node.is_some_and(|node| self.sim.is_cut(node))
    }

    async fn die<T>(&self) -> T {
        self.caller.died.notify_one();
        std::future::pending().await
    }
}

fn writes(verb: &str) -> bool {
    matches!(verb, "create" | "update" | "delete" | "txn")
}

async fn wait(milliseconds: u64) {
    if milliseconds > 0 {
        sleep(Duration::from_millis(milliseconds)).await;
    }
}

fn label(failure: &Failure) -> &'static str {
    match failure {
        Failure::Exists => "exists",
        Failure::Conflict => "conflict",
        Failure::Absent => "absent",
        Failure::Busy(_) => "busy",
        Failure::Unknown(_) => "no clear answer",
        _ => "refused",
    }
}

impl Objects for Wire {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        let (space, at) = (namespace.map(str::to_owned), name.to_owned());
        let act = move |truth: &mut Truth| Ok(truth.shared::<K>(space.as_deref(), &at));
        let found: Option<Shared> = self.exchange("get", describe::<K>(name), act).await?;
        Ok(found.as_ref().map(copy))
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.list_as_of(selector, 0).await
    }

    async fn list_cached<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.list_as_of(selector, self.sim.lag()).await
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let (name, object) = (describe::<K>(object.meta().name.as_deref().unwrap_or_default()), object.clone());
        self.exchange("create", name, move |truth| truth.create(&object)).await.map(|stored| copy(&stored))
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let (name, object) = (describe::<K>(object.meta().name.as_deref().unwrap_or_default()), object.clone());
        self.exchange("update", name, move |truth| truth.replace(&object)).await.map(|stored| copy(&stored))
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        let (name, object) = (describe::<K>(object.meta().name.as_deref().unwrap_or_default()), object.clone());
        self.exchange("delete", name, move |truth| truth.delete(&object)).await
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<serde_json::Value>, StoreError> {
        let sought = (owner.kind.clone(), owner.name.clone());
        self.exchange("get", owner.to_string(), move |truth| {
            Ok(truth.owners.contains(&sought).then(|| serde_json::json!({})))
        })
        .await
    }
}

impl Ledger for Wire {
    fn name(&self) -> LedgerName {
        LedgerName::objects("simulated")
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        let begun = self.sim.history().begin();
        let outcome = self.exchange("range", format!("claim {address}"), move |truth| Ok(truth.claim(address))).await;
        if let Ok(found) = &outcome {
            self.sim.history().end(address, begun, Operation::Read(found.as_ref().map(|claim| claim.revision)));
        }
        outcome
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        let listed = |truth: &mut Truth| Ok(Listed { claims: truth.claims(), unreadable: Vec::new() });
        self.exchange("range", "claims".to_owned(), listed).await
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        let begun = self.sim.history().begin_swap(address, expected, claim.is_some());
        let (claim, deliveries) = (claim.cloned(), Arc::new(AtomicU64::new(0)));
        let arrived = deliveries.clone();
        let act = move |truth: &mut Truth| {
            arrived.fetch_add(1, Ordering::Relaxed);
            Ok(truth.swap(address, expected, claim.as_ref()))
        };
        let outcome = self.exchange("txn", format!("claim {address}"), act).await;
        let repeated = deliveries.load(Ordering::Relaxed) > 1;
        self.sim.history().end_swap(
            begun,
            match &outcome {
                Ok(Swap::Done(revision)) => Did::Write(*revision),
                // The first delivery may have won, and what stands is its own.
                Ok(Swap::Lost(standing)) if !repeated => Did::Lose(standing.as_ref().map(|s| s.revision)),
                _ => Did::Unknown,
            },
        );
        outcome
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        let changes = self.sim.truth().claim_changes();
        changes.until(|_| self.sim.truth().claim(address).is_none_or(|claim| claim.revision > revision)).await;
        Ok(())
    }
}

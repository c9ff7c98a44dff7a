//! Faults on demand: what goes wrong with which requests, and how often.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::calls::Call;

/// Which requests a fault is for; a field that is not given matches all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    /// As in [`Call::verb`].
    pub verb: Option<String>,
    /// As in [`Call::resource`].
    pub resource: Option<String>,
    /// As in [`Call::subresource`]; a match without it takes the resource and its subresources.
    pub subresource: Option<String>,
    /// Name of the object. Creations carry it in their body, so they match by resource only.
    pub name: Option<String>,
    /// As in [`Call::user`].
    pub user: Option<String>,
    /// The beginning of the header `User-Agent`.
    pub agent: Option<String>,
}

impl Match {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with this verb for this resource.
    pub fn on(verb: &str, resource: &str) -> Self {
        Self { verb: Some(verb.to_owned()), resource: Some(resource.to_owned()), ..Self::default() }
    }

    /// The same, for one object.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The same, from one user.
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The same, from clients whose `User-Agent` begins so.
    pub fn agent(mut self, agent: &str) -> Self {
        self.agent = Some(agent.to_owned());
        self
    }

    fn takes(&self, call: &Call) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|w| w == found);
        is(&self.verb, &call.verb)
            && is(&self.resource, &call.resource)
            && is(&self.subresource, &call.subresource)
            && is(&self.name, &call.name)
            && is(&self.user, &call.user)
            && self.agent.as_deref().is_none_or(|a| call.agent.starts_with(a))
    }
}

/// What goes wrong.
#[derive(Clone)]
pub enum Fault {
    /// Nothing is done; this HTTP code is answered.
    Status {
        /// HTTP code, 400 to 599.
        code: u16,
        /// Seconds for the header `Retry-After`.
        retry_after: Option<u32>,
    },
    /// The request is carried out, then the connection is cut instead of an answer.
    LoseReplyAfterCommit,
    /// The request is carried out, then this HTTP code is answered, as a gateway does that gave up waiting.
    StatusAfterCommit(u16),
    /// Nothing is done; the connection is cut.
    CloseBefore,
    /// The request waits this long before it is carried out.
    Delay(Duration),
    /// The request waits at a gate that the test opens.
    Hold(Gate),
    /// The request is carried out, and its answer waits at a gate.
    HoldAfterCommit(Gate),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { code, .. } => write!(f, "Status({code})"),
            Self::LoseReplyAfterCommit => f.write_str("LoseReplyAfterCommit"),
            Self::StatusAfterCommit(code) => write!(f, "StatusAfterCommit({code})"),
            Self::CloseBefore => f.write_str("CloseBefore"),
            Self::Delay(time) => write!(f, "Delay({time:?})"),
            Self::Hold(_) => f.write_str("Hold"),
            Self::HoldAfterCommit(_) => f.write_str("HoldAfterCommit"),
        }
    }
}

/// A place where requests wait, so that a test decides who comes first.
#[derive(Clone)]
pub struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { arrived: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns once another request stands at the gate (each call waits for one).
    pub async fn arrival(&self) {
        if let Ok(permit) = self.arrived.acquire().await {
            permit.forget();
        }
    }

    /// Lets one request pass, the one waiting or the next.
    pub fn let_one_pass(&self) {
        self.open.add_permits(1);
    }

    /// Lets every request pass from now on.
    pub fn open(&self) {
        self.open.close();
    }

    pub(super) async fn pass(&self) {
        self.arrived.add_permits(1);
        if let Ok(permit) = self.open.acquire().await {
            permit.forget();
        }
    }
}

/// A fault that was asked for.
#[derive(Debug, Clone)]
pub struct Planned {
    wanted: Match,
    fault: Fault,
    left: Arc<AtomicUsize>,
    hits: Arc<AtomicUsize>,
}

impl Planned {
    /// How many requests it has struck so far.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// It strikes no more.
    pub fn stop(&self) {
        self.left.store(0, Ordering::SeqCst);
    }
}

/// The faults of a server; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    planned: Arc<Mutex<Vec<Planned>>>,
}

impl Faults {
    /// Makes `fault` strike the next `times` requests that match (`usize::MAX`: all of them).
    /// A request is struck by one fault at most: the oldest that matches.
    pub fn on(&self, wanted: Match, fault: Fault, times: usize) -> Planned {
        let planned = Planned { wanted, fault, left: Arc::new(AtomicUsize::new(times)), hits: Arc::default() };
        self.planned.lock().unwrap_or_else(PoisonError::into_inner).push(planned.clone());
        planned
    }

    /// Ends all faults.
    pub fn clear(&self) {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        planned.drain(..).for_each(|p| p.stop());
    }

    pub(super) fn strike(&self, call: &Call) -> Option<Fault> {
        let planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let struck = planned.iter().find(|p| p.wanted.takes(call) && p.left.load(Ordering::SeqCst) > 0)?;
        struck
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(usize::from(left != usize::MAX)))
            .ok()?;
        struck.hits.fetch_add(1, Ordering::SeqCst);
        Some(struck.fault.clone())
    }
}

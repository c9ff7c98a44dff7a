//! The log of requests, so that tests can count calls and prove that nothing was written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Plural and group, as `pods` or `ipamblocks.crd.projectcalico.org`; empty for discovery and health.
    pub resource: String,
    /// As `status`; empty for the resource itself.
    pub subresource: String,
    /// Empty for cluster-scoped objects and for lists across namespaces.
    pub namespace: String,
    /// Empty for lists and creations.
    pub name: String,
    /// User of the bearer token, or `system:anonymous`.
    pub user: String,
    /// The header `User-Agent`.
    pub agent: String,
    /// HTTP status; 0 while the request runs and if the connection was cut instead of an answer.
    pub status: u16,
    /// Time since the server started at which the request arrived.
    pub at: Duration,
}

impl Call {
    /// True if the verb may change something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// The log; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    log: Arc<Mutex<Vec<Call>>>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, call: Call) -> usize {
        let mut log = self.lock();
        log.push(call);
        log.len() - 1
    }

    pub(super) fn end(&self, at: usize, status: u16) {
        if let Some(call) = self.lock().get_mut(at) {
            call.status = status;
        }
    }

    /// How many requests there were so far: a mark for [`Calls::after`].
    pub fn mark(&self) -> usize {
        self.lock().len()
    }

    /// The requests since a mark, oldest first.
    pub fn after(&self, mark: usize) -> Vec<Call> {
        self.lock().get(mark..).map(<[Call]>::to_vec).unwrap_or_default()
    }

    /// All requests, oldest first.
    pub fn all(&self) -> Vec<Call> {
        self.after(0)
    }

    /// How many requests satisfy `wanted`.
    pub fn count(&self, wanted: impl Fn(&Call) -> bool) -> usize {
        self.lock().iter().filter(|c| wanted(c)).count()
    }

    /// Requests per verb and resource (with subresource, as `pods/status`), of those since `mark` that satisfy `wanted`.
    pub fn by_verb(&self, mark: usize, wanted: impl Fn(&Call) -> bool) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for call in self.after(mark).into_iter().filter(|c| wanted(c)) {
            let resource = if call.subresource.is_empty() {
                call.resource
            } else {
                format!("{}/{}", call.resource, call.subresource)
            };
            *counts.entry((call.verb, resource)).or_insert(0) += 1;
        }
        counts
    }
}

//! A store that goes wrong on demand: for tests of what every fault at every call leaves behind.
//!
//! Wraps any store of objects or ledger; each call is shown to a plan, which may have it fail, lose its
//! answer after it took effect, or stop the caller for good before or after it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Failure, Ledger, Listed, Object, Objects, StoreError, Swap, Versioned, describe};
use crate::claim::{Claim, LedgerName};
use crate::pod::Owner;

/// One call to a store, in the order of the calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Counts the calls to all stores that share a [`Faults`], from 0.
    pub number: usize,
    /// get, list, create, update, delete, range, txn, watch.
    pub verb: &'static str,
    /// "ipamblocks 10-244-0-192-26", "claim 10.244.0.216".
    pub object: String,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It fails and does nothing.
    Fail(Failure),
    /// It takes effect, and the caller never learns.
    LoseReply,
    /// The caller dies before it.
    CrashBefore,
    /// The caller dies after it.
    CrashAfter,
    /// Nothing, but this much time passes before it.
    Pause(Duration),
}

type Plan = dyn Fn(&Call) -> Option<Fault> + Send + Sync;

/// The plan that stores share, and what they were asked.
#[derive(Clone)]
pub struct Faults {
    plan: Arc<Plan>,
    calls: Arc<Mutex<Vec<Call>>>,
    crashed: Arc<Notify>,
}

/// A store with faults.
#[derive(Clone)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

// === impl Call ===

impl Call {
    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        matches!(self.verb, "create" | "update" | "delete" | "txn")
    }
}

// === impl Faults ===

impl Faults {
    /// Faults by `plan`.
    pub fn new(plan: impl Fn(&Call) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self { plan: Arc::new(plan), calls: Arc::default(), crashed: Arc::default() }
    }

    /// No faults; the calls are still recorded.
    pub fn none() -> Self {
        Self::new(|_| None)
    }

    /// `store` with these faults.
    pub fn wrap<S>(&self, store: S) -> Faulty<S> {
        Faulty { inner: store, faults: self.clone() }
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns once a fault has stopped the caller; its future is then to be dropped, as death would.
    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }

    async fn around<T>(
        &self,
        verb: &'static str,
        object: String,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let record = Call { number: calls.len(), verb, object: object.clone() };
            calls.push(record.clone());
            (self.plan)(&record)
        };
        match fault {
            None => call.await,
            Some(Fault::Pause(time)) => {
                tokio::time::sleep(time).await;
                call.await
            }
            Some(Fault::Fail(failure)) => Err(StoreError::new(verb, object, failure)),
            Some(Fault::CrashBefore) => self.crash().await,
            Some(Fault::LoseReply) => {
                let _ = call.await;
                Err(StoreError::new(verb, object, Failure::Unknown("the reply was lost".into())))
            }
            Some(Fault::CrashAfter) => {
                let _ = call.await;
                self.crash().await
            }
        }
    }

    async fn crash<T>(&self) -> T {
        self.crashed.notify_one();
        std::future::pending().await
    }
}

// === impl Faulty ===

impl<S: Objects> Objects for Faulty<S> {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        self.faults.around("get", describe::<K>(name), self.inner.get(namespace, name)).await
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.faults.around("list", K::plural(&()).into_owned(), self.inner.list(selector)).await
    }

    fn addresses_in_use(&self, except: Option<(&str, &str)>) -> Vec<IpAddr> {
        self.inner.addresses_in_use(except)
    }

    async fn newer_is_ready(&self) -> Result<Option<bool>, StoreError> {
        self.inner.newer_is_ready().await
    }

    async fn list_cached<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.faults.around("list", K::plural(&()).into_owned(), self.inner.list_cached(selector)).await
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let name = object.meta().name.clone().unwrap_or_default();
        self.faults.around("create", describe::<K>(&name), self.inner.create(object)).await
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let name = object.meta().name.clone().unwrap_or_default();
        self.faults.around("update", describe::<K>(&name), self.inner.replace(object)).await
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        let name = object.meta().name.clone().unwrap_or_default();
        self.faults.around("delete", describe::<K>(&name), self.inner.delete(object)).await
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<serde_json::Value>, StoreError> {
        self.faults.around("get", owner.to_string(), self.inner.owner(owner)).await
    }
}

impl<S: Ledger> Ledger for Faulty<S> {
    fn name(&self) -> LedgerName {
        self.inner.name()
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        self.faults.around("range", format!("claim {address}"), self.inner.read(address)).await
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        self.faults.around("range", "claims".into(), self.inner.listed()).await
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        self.faults.around("txn", format!("claim {address}"), self.inner.swap(address, expected, claim)).await
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        self.faults.around("watch", format!("claim {address}"), self.inner.changed(address, revision)).await
    }
}

//! Stores that write only while Calico's datastore is not locked.
//!
//! `spec.datastoreReady: false` in ClusterInformation `default` means that nobody writes Calico's objects: a migration
//! copies them, and what is written later is lost. Every store that a driver writes through is a [`Gated`] one, so no
//! writer can forget to look. Keeps: a write begins at most [`TRUSTED`] after the look that allows it was begun, and
//! a look that fails allows nothing. With the longest wait for a look and for a write, all writing has ended ten
//! seconds after the lock was set.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calico::{ClusterInformation, cluster_information};
use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Failure, Ledger, Listed, Object, Objects, StoreError, Swap, Versioned};
use crate::claim::{Claim, LedgerName};
use crate::pod::Owner;

/// How long a look at the lock allows writes, counted from its beginning.
pub const TRUSTED: Duration = Duration::from_secs(2);

/// Says whether Calico's objects and claims may be written now.
pub trait DatastoreGate: Send + Sync {
    /// Succeeds if a write may begin now.
    ///
    /// # Errors
    /// [`Failure::Locked`] while Calico's datastore is locked; else why that could not be found out.
    fn may_write(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async { self.look().await.map(drop) }.boxed()
    }

    /// Succeeds if a write may begin now and addresses be given: what a Calico that is too old has is only released.
    ///
    /// # Errors
    /// As for [`DatastoreGate::may_write`], and [`Failure::TooOld`].
    fn may_assign(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            match self.look().await?.too_old {
                None => Ok(()),
                Some(version) => Err(StoreError::new("read", "ClusterInformation default", Failure::TooOld(version))),
            }
        }
        .boxed()
    }

    /// What ClusterInformation says now, or has said a moment ago.
    fn look(&self) -> BoxFuture<'_, Result<Allowed, StoreError>>;
}

/// What an unlocked datastore allows beside releases.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Calico's version, if that is too old to give addresses.
    too_old: Option<String>,
}

/// A gate that reads ClusterInformation when somebody wants to write. All calls share a look that is younger than
/// [`TRUSTED`], and whoever asks while one is under way waits for it.
pub struct LiveGate<S> {
    store: S,
    last: Mutex<Option<Look>>,
}

/// One look at the lock.
struct Look {
    begun: Instant,
    found: Result<Allowed, StoreError>,
}

/// A store of objects, or a ledger, whose writes ask a gate first. Reads do not.
#[derive(Clone)]
pub struct Gated<S> {
    inner: S,
    gate: Arc<dyn DatastoreGate>,
}

/// What a gate says of ClusterInformation; that there is none means that nothing is locked.
///
/// # Errors
/// [`Failure::Locked`] if it says that the datastore is not ready.
pub fn verdict(information: Option<&ClusterInformation>) -> Result<Allowed, StoreError> {
    match information.is_none_or(|information| information.spec.is_ready()) {
        true => Ok(Allowed { too_old: information.and_then(|found| found.spec.too_old()).map(str::to_owned) }),
        false => Err(StoreError::new("read", "ClusterInformation default", Failure::Locked)),
    }
}

// === impl LiveGate ===

impl<S: Objects> LiveGate<S> {
    /// A gate over the store in which ClusterInformation is; nothing is read yet.
    pub fn new(store: S) -> Self {
        Self { store, last: Mutex::const_new(None) }
    }

    async fn shared(&self) -> Result<Allowed, StoreError> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(look) = last.as_ref().filter(|look| look.serves(asked)) {
            return look.found.clone();
        }
        let begun = Instant::now();
        let found = self.store.fresh::<ClusterInformation>(None, cluster_information::NAME).await;
        let found = match found {
            Ok(None) => self.of_none().await,
            found => found.and_then(|found| verdict(found.as_ref())),
        };
        *last = Some(Look { begun, found: found.clone() });
        found
    }
}

impl<S: Objects> LiveGate<S> {
    /// Without ClusterInformation nothing is locked, unless it is one of the first things that a migration took away.
    async fn of_none(&self) -> Result<Allowed, StoreError> {
        match self.store.newer_is_ready().await? {
            Some(_) => Err(StoreError::new("read", "ClusterInformation default", Failure::Locked)),
            None => verdict(None),
        }
    }
}

impl<S: Objects> DatastoreGate for LiveGate<S> {
    fn look(&self) -> BoxFuture<'_, Result<Allowed, StoreError>> {
        self.shared().boxed()
    }
}

// === impl Look ===

impl Look {
    /// Whether it answers somebody who asked then. A failure is shared only with those who waited for it.
    fn serves(&self, asked: Instant) -> bool {
        let is_answer = self.found.as_ref().err().is_none_or(StoreError::is_locked);
        self.begun > asked || (is_answer && self.begun.elapsed() < TRUSTED)
    }
}

// === impl Gated ===

impl<S> Gated<S> {
    /// `inner`, written only if `gate` allows it.
    pub fn new(inner: S, gate: Arc<dyn DatastoreGate>) -> Self {
        Self { inner, gate }
    }

    /// The store behind, for reads that are not the driver's.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S: Objects> Objects for Gated<S> {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        self.inner.get(namespace, name).await
    }

    async fn fresh<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        self.inner.fresh(namespace, name).await
    }

    fn is_cache(&self) -> bool {
        self.inner.is_cache()
    }

    fn addresses_in_use(&self, except: Option<(&str, &str)>) -> Vec<IpAddr> {
        self.inner.addresses_in_use(except)
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.inner.list(selector).await
    }

    async fn newer_is_ready(&self) -> Result<Option<bool>, StoreError> {
        self.inner.newer_is_ready().await
    }

    async fn list_cached<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.inner.list_cached(selector).await
    }

    async fn fold<K: Object, T: Send>(
        &self,
        selector: &str,
        start: impl Fn() -> T + Send + Sync,
        add: impl Fn(&mut T, K) + Send + Sync,
    ) -> Result<T, StoreError> {
        self.inner.fold(selector, start, add).await
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        self.gate.may_write().await?;
        self.inner.create(object).await
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        self.gate.may_write().await?;
        self.inner.replace(object).await
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        self.gate.may_write().await?;
        self.inner.delete(object).await
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<serde_json::Value>, StoreError> {
        self.inner.owner(owner).await
    }
}

impl<L: Ledger> Ledger for Gated<L> {
    fn name(&self) -> LedgerName {
        self.inner.name()
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        self.inner.read(address).await
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        self.inner.listed().await
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        self.gate.may_write().await?;
        self.inner.swap(address, expected, claim).await
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        self.inner.changed(address, revision).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use calico::ClusterInformationSpec;
    use futures::future::join_all;
    use tokio::time::advance;

    use super::*;
    use crate::store::faulty::{Fault, Faults, Faulty};
    use crate::store::memory::MemoryObjects;

    fn set_ready(store: &MemoryObjects, ready: bool) {
        let spec = ClusterInformationSpec { datastore_ready: Some(ready), ..Default::default() };
        store.put(&ClusterInformation::new(cluster_information::NAME, spec));
    }

    fn gate(store: &MemoryObjects, faults: &Faults) -> LiveGate<Faulty<MemoryObjects>> {
        LiveGate::new(faults.wrap(store.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn one_look_serves_all_writes_of_two_seconds_and_no_longer() {
        let (store, faults) = (MemoryObjects::default(), Faults::none());
        let gate = gate(&store, &faults);
        assert!(join_all((0..5).map(|_| gate.may_write())).await.into_iter().all(|may| may.is_ok()));
        set_ready(&store, false);
        advance(TRUSTED - Duration::from_millis(1)).await;
        gate.may_write().await.unwrap();
        assert_eq!(faults.calls().len(), 1);
        advance(Duration::from_millis(1)).await;
        assert!(gate.may_write().await.unwrap_err().is_locked());
        set_ready(&store, true);
        advance(TRUSTED).await;
        gate.may_write().await.unwrap();
        assert_eq!(faults.calls().len(), 3);
    }

    /// Nothing is given by it, and what was given is released.
    #[tokio::test(start_paused = true)]
    async fn a_calico_that_is_too_old_is_named_to_whoever_would_give_an_address() {
        let (store, faults) = (MemoryObjects::default(), Faults::none());
        let gate = gate(&store, &faults);
        gate.may_assign().await.unwrap();
        let spec = ClusterInformationSpec { calico_version: Some("v3.23.5".into()), ..Default::default() };
        store.put(&ClusterInformation::new(cluster_information::NAME, spec));
        advance(TRUSTED).await;
        let refused = gate.may_assign().await.unwrap_err();
        assert_eq!(refused.failure, Failure::TooOld("v3.23.5".into()));
        gate.may_write().await.unwrap();
        assert_eq!(faults.calls().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_fails_allows_nothing_and_is_shared_only_with_those_who_waited_for_it() {
        let (store, fails) = (MemoryObjects::default(), Arc::new(AtomicBool::new(true)));
        let plan = fails.clone();
        let faults = Faults::new(move |_| {
            let unknown = || Fault::Fail(Failure::Unknown("no answer".into()));
            plan.load(Ordering::Relaxed).then(unknown)
        });
        let gate = gate(&store, &faults);
        assert!(matches!(gate.may_write().await.unwrap_err().failure, Failure::Unknown(_)));
        fails.store(false, Ordering::Relaxed);
        gate.may_write().await.unwrap();
    }

    /// A server that answers late is asked by one at a time, and twice at most for those who wait meanwhile.
    #[tokio::test(start_paused = true)]
    async fn who_asks_while_a_look_is_under_way_waits_for_it() {
        let store = MemoryObjects::default();
        let faults = Faults::new(|_| Some(Fault::Pause(Duration::from_secs(3))));
        let gate = gate(&store, &faults);
        let later = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            join_all((0..20).map(|_| gate.may_write())).await
        };
        let (first, others) = futures::future::join(gate.may_write(), later).await;
        first.unwrap();
        assert!(others.into_iter().all(|may| may.is_ok()));
        assert_eq!(faults.calls().len(), 2);
    }
}

//! What is really stored: objects and claims behind one lock, each write judged in the moment it is made.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use calico::{BlockAffinity, ClusterInformation, ClusterInformationSpec, IPAMBlock, IPAMConfig, cluster_information};
use kube_ipam::claim::Claim;
use kube_ipam::store::{Failure, Object, StoreError, Swap, Versioned};

use super::oracle::Oracle;
use super::plan::Definitions;
use super::signal::Signal;
use super::time;

/// Milliseconds after which nothing is written any more once Calico's datastore is locked.
const DRAINED: u64 = 10_000;

/// An object as it is handed around: a version of it is never changed.
pub type Shared = Arc<dyn Any + Send + Sync>;

/// An object in its last version, and what it was before that.
struct Stored {
    current: Option<Shared>,
    before: Option<Shared>,
    version: u64,
    uid: String,
    /// Milliseconds.
    changed: u64,
}

/// A change that watches tell of.
pub struct Changed<K> {
    pub object: K,
    pub deleted: bool,
}

/// The changes of a kind, in order.
#[derive(Default)]
struct Log {
    entries: Vec<(u64, Shared, bool)>,
    newest: Option<Arc<Signal<u64>>>,
}

/// Both stores, and the oracle that watches them.
pub struct Truth {
    /// By kind, and by namespace and name.
    objects: BTreeMap<TypeId, BTreeMap<String, Stored>>,
    revision: u64,
    /// Of kinds that somebody watches.
    logs: BTreeMap<TypeId, Log>,
    uids: u64,
    claims: BTreeMap<IpAddr, Versioned<Claim>>,
    claim_revision: Arc<Signal<i64>>,
    /// Every value that a claim has had, where some of them are to come back.
    pub backups: Option<BTreeMap<IpAddr, Vec<Claim>>>,
    pub definitions: Definitions,
    /// Since when Calico's datastore is locked, if it is.
    locked: Option<u64>,
    /// Kind and name of the owners of pods that exist.
    pub owners: BTreeSet<(String, String)>,
    pub oracle: Oracle,
}

fn key<'a>(namespace: Option<&str>, name: &'a str) -> Cow<'a, str> {
    namespace.map_or(Cow::Borrowed(name), |namespace| Cow::Owned(format!("{namespace}/{name}")))
}

fn name<K: Object>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// "ipamblocks 10-244-0-8-29".
pub fn describe<K: Object>(name: &str) -> String {
    format!("{} {name}", K::plural(&()))
}

fn error<K: Object>(verb: &'static str, name: &str, failure: Failure) -> StoreError {
    StoreError::new(verb, describe::<K>(name), failure)
}

fn matches<K: Object>(object: &K, selector: &str) -> bool {
    let labels = object.meta().labels.as_ref();
    selector
        .split(',')
        .filter_map(|term| term.split_once('='))
        .all(|(key, wanted)| labels.and_then(|labels| labels.get(key)).is_some_and(|value| value == wanted))
}

impl Truth {
    pub fn new(oracle: Oracle) -> Self {
        Self {
            objects: BTreeMap::new(),
            revision: 0,
            logs: BTreeMap::new(),
            uids: 0,
            claims: BTreeMap::new(),
            claim_revision: Arc::new(Signal::new(0)),
            backups: None,
            definitions: Definitions::Newest,
            locked: None,
            owners: BTreeSet::new(),
            oracle,
        }
    }

    // === objects ===

    fn stored<K: Object>(&self, namespace: Option<&str>, name: &str) -> Option<&Stored> {
        self.objects.get(&TypeId::of::<K>())?.get(&*key(namespace, name))
    }

    fn of_kind<K: Object>(&self) -> impl Iterator<Item = &Stored> {
        self.objects.get(&TypeId::of::<K>()).into_iter().flat_map(BTreeMap::values)
    }

    pub fn shared<K: Object>(&self, namespace: Option<&str>, name: &str) -> Option<Shared> {
        self.stored::<K>(namespace, name)?.current.clone()
    }

    pub fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Option<K> {
        self.stored::<K>(namespace, name)?.current.as_ref().map(copy)
    }

    pub fn list<K: Object>(&self, selector: &str, lag: u64) -> Vec<Shared> {
        let present = self.of_kind::<K>().filter_map(|stored| stored.as_of(lag));
        present.filter(|object| seen(object).is_some_and(|object: &K| matches(object, selector))).cloned().collect()
    }

    /// Everything of a kind, looked at where it lies.
    pub fn each<K: Object>(&self) -> impl Iterator<Item = &K> {
        self.of_kind::<K>().filter_map(|stored| seen(stored.current.as_ref()?))
    }

    /// Writes without a precondition, as somebody of no interest here.
    pub fn put<K: Object>(&mut self, mut object: K) -> Shared {
        self.prune(&mut object);
        self.revision += 1;
        let uid = object.meta().uid.clone().unwrap_or_else(|| {
            self.uids += 1;
            format!("00000000-0000-4000-8000-{:012}", self.uids)
        });
        let meta = object.meta_mut();
        (meta.uid, meta.resource_version) = (Some(uid.clone()), Some(self.revision.to_string()));
        let at = key(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default()).into_owned();
        let object: Shared = Arc::new(object);
        let of_kind = self.objects.entry(TypeId::of::<K>()).or_default();
        let before = of_kind.get_mut(&at).and_then(|stored| stored.current.take());
        let current = Some(object.clone());
        of_kind.insert(at, Stored { current, before, version: self.revision, uid, changed: time::now() });
        if let Some(block) = object.downcast_ref::<IPAMBlock>() {
            self.oracle.block_written(block);
        }
        self.log::<K>(&object, false);
        object
    }

    /// Drops what the definitions do not know.
    fn prune<K: Object>(&self, object: &mut K) {
        let (object, of) = (object as &mut dyn Any, self.definitions);
        if let Some(affinity) = object.downcast_mut::<BlockAffinity>().filter(|_| of < Definitions::V3_30) {
            affinity.spec.type_ = None;
        }
        if let Some(config) = object.downcast_mut::<IPAMConfig>().filter(|_| of < Definitions::Newest) {
            config.spec.ip_cooldown_seconds = None;
        }
        if let Some(block) = object.downcast_mut::<IPAMBlock>().filter(|_| of < Definitions::V3_32) {
            block.spec.affinity_claim_time = None;
        }
        if let Some(block) = object.downcast_mut::<IPAMBlock>().filter(|_| of < Definitions::Newest) {
            block.spec.attributes.iter_mut().for_each(|attribute| attribute.released_at = None);
        }
    }

    pub fn remove<K: Object>(&mut self, namespace: Option<&str>, name: &str) -> bool {
        let of_kind = self.objects.get_mut(&TypeId::of::<K>());
        let Some(stored) = of_kind.and_then(|all| all.get_mut(&*key(namespace, name))) else { return false };
        let Some(gone) = stored.current.take() else { return false };
        (stored.before, stored.changed) = (Some(gone.clone()), time::now());
        self.revision += 1;
        if self.logs.contains_key(&TypeId::of::<K>()) {
            let mut last: K = copy(&gone);
            last.meta_mut().resource_version = Some(self.revision.to_string());
            let last: Shared = Arc::new(last);
            self.log::<K>(&last, true);
        }
        if let Some(block) = gone.downcast_ref::<IPAMBlock>() {
            self.oracle.block_deleted(block);
        }
        true
    }

    // === watches ===

    fn log<K: Object>(&mut self, object: &Shared, deleted: bool) {
        let Some(log) = self.logs.get_mut(&TypeId::of::<K>()) else { return };
        log.entries.push((self.revision, object.clone(), deleted));
        log.newest.iter().for_each(|newest| newest.set(self.revision));
    }

    /// The version of everything.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The newest version of a kind that is watched from now on.
    pub fn changes_of<K: Object>(&mut self) -> Arc<Signal<u64>> {
        let log = self.logs.entry(TypeId::of::<K>()).or_default();
        log.newest.get_or_insert_with(|| Arc::new(Signal::new(0))).clone()
    }

    /// What has happened since that version to the objects of a kind that are asked for.
    pub fn changed_since<K: Object>(&self, revision: u64, selects: impl Fn(&K) -> bool) -> (u64, Vec<Changed<K>>) {
        let log = self.logs.get(&TypeId::of::<K>());
        let entries = log.map(|log| log.entries.as_slice()).unwrap_or_default();
        let first = entries.partition_point(|(at, _, _)| *at <= revision);
        let last = entries.last().map_or(revision, |(at, _, _)| revision.max(*at));
        let wanted = entries[first..].iter().filter(|(_, object, _)| seen(object).is_some_and(&selects));
        (last, wanted.map(|(_, object, deleted)| Changed { object: copy(object), deleted: *deleted }).collect())
    }

    fn check<K: Object>(&self, verb: &'static str, object: &K) -> Result<(), StoreError> {
        let (meta, at) = (object.meta(), name(object));
        let stored = self.stored::<K>(None, at).filter(|stored| stored.current.is_some());
        let stored = stored.ok_or_else(|| error::<K>(verb, at, Failure::Absent))?;
        let Some(version) = &meta.resource_version else {
            return Err(error::<K>(verb, at, Failure::Refused("a write without resourceVersion".into())));
        };
        let same = meta.uid.as_ref().is_none_or(|uid| stored.uid == *uid) && stored.version.to_string() == *version;
        if same { Ok(()) } else { Err(error::<K>(verb, at, Failure::Conflict)) }
    }

    pub fn create<K: Object>(&mut self, object: &K) -> Result<Shared, StoreError> {
        let at = name(object);
        if self.stored::<K>(None, at).is_some_and(|stored| stored.current.is_some()) {
            return Err(error::<K>("create", at, Failure::Exists));
        }
        let mut fresh = object.clone();
        fresh.meta_mut().uid = None;
        Ok(self.put(fresh))
    }

    pub fn replace<K: Object>(&mut self, object: &K) -> Result<Shared, StoreError> {
        self.check("update", object)?;
        Ok(self.put(object.clone()))
    }

    pub fn delete<K: Object>(&mut self, object: &K) -> Result<(), StoreError> {
        self.check("delete", object)?;
        self.remove::<K>(None, name(object));
        Ok(())
    }

    // === the lock ===

    /// Locks Calico's datastore or unlocks it; false if it was so already.
    pub fn lock(&mut self, locked: bool) -> bool {
        if self.locked.is_some() == locked {
            return false;
        }
        self.locked = locked.then(time::now);
        let spec = ClusterInformationSpec { datastore_ready: Some(!locked), ..ClusterInformationSpec::default() };
        self.put(ClusterInformation::new(cluster_information::NAME, spec));
        true
    }

    pub fn is_locked(&self) -> bool {
        self.locked.is_some()
    }

    /// A write of ours arrives. Those that began before the lock have ended some time after it was set.
    pub fn arrives(&mut self, caller: &str, verb: &str, object: &str) {
        let since = self.locked.map(|since| time::now() - since).filter(|since| *since > DRAINED);
        if let Some(since) = since {
            self.oracle.fail("lock", format!("{verb} {object} by {caller}, {since} ms after the lock was set"));
        }
    }

    // === claims ===

    pub fn claim(&self, address: IpAddr) -> Option<Versioned<Claim>> {
        self.claims.get(&address).cloned()
    }

    pub fn claims(&self) -> Vec<Versioned<Claim>> {
        self.claims.values().cloned().collect()
    }

    pub fn swap(&mut self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Swap {
        let standing = self.claims.get(&address);
        if standing.map(|s| s.revision) != expected {
            return Swap::Lost(standing.cloned());
        }
        let revision = self.store_claim(address, claim);
        if let (Some(backups), Some(claim)) = (&mut self.backups, claim) {
            backups.entry(address).or_default().push(claim.clone());
        }
        self.oracle.claim_written(address, claim);
        Swap::Done(if claim.is_some() { revision } else { 0 })
    }

    fn store_claim(&mut self, address: IpAddr, claim: Option<&Claim>) -> i64 {
        let revision = self.claim_revision.value() + 1;
        match claim {
            Some(claim) => drop(self.claims.insert(address, Versioned { value: claim.clone(), revision })),
            None => drop(self.claims.remove(&address)),
        }
        self.claim_revision.set(revision);
        revision
    }

    /// Somebody writes a claim by hand, or takes it away; gives the revision that it had, and the one that it has.
    pub fn harm_claim(&mut self, address: IpAddr, claim: Option<&Claim>) -> (Option<i64>, i64) {
        let before = self.claims.get(&address).map(|standing| standing.revision);
        let after = self.store_claim(address, claim);
        self.oracle.claim_harmed(address, claim);
        (before, if claim.is_some() { after } else { 0 })
    }

    /// Wakes whoever waits for a claim to change.
    pub fn claim_changes(&self) -> Arc<Signal<i64>> {
        self.claim_revision.clone()
    }
}

impl Stored {
    fn as_of(&self, lag: u64) -> Option<&Shared> {
        let changed_since = lag > 0 && self.changed + lag > time::now();
        if changed_since { self.before.as_ref() } else { self.current.as_ref() }
    }
}

fn seen<K: Object>(object: &Shared) -> Option<&K> {
    object.downcast_ref::<K>()
}

/// An object of its own for whoever asked.
pub fn copy<K: Object>(object: &Shared) -> K {
    seen::<K>(object).unwrap().clone()
}

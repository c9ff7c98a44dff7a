//! Both stores in memory, for tests and simulations: the same contract, none of the waiting.
//!
//! Objects are kept as JSON with a `resourceVersion` that counts writes, so a typed round trip through this
//! store shows what a real one would keep.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Failure, Ledger, Listed, Object, Objects, StoreError, Swap, Unreadable, Versioned, describe};
use crate::claim::{Claim, LedgerName};
use crate::pod::Owner;

/// Kubernetes objects in memory. Clones share the content.
#[derive(Clone, Default)]
pub struct MemoryObjects {
    state: Arc<Mutex<ObjectState>>,
}

#[derive(Default)]
struct ObjectState {
    revision: u64,
    uids: u64,
    /// (plural, namespace, name) to object.
    objects: BTreeMap<(String, String, String), Value>,
}

/// A ledger in memory. Clones share the content.
#[derive(Clone)]
pub struct MemoryLedger {
    name: LedgerName,
    state: Arc<Mutex<BTreeMap<IpAddr, Versioned<Claim>>>>,
    /// Addresses whose records cannot be read.
    spoilt: Arc<Mutex<BTreeSet<IpAddr>>>,
    /// Latest revision; its receivers wake whoever waits in [`Ledger::changed`].
    revision: Arc<watch::Sender<i64>>,
}

// === impl MemoryObjects ===

impl MemoryObjects {
    fn state(&self) -> MutexGuard<'_, ObjectState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts an object there as if somebody else had written it: no precondition, any namespace.
    pub fn put<K: Object>(&self, object: &K) {
        self.state().put(object);
    }

    /// Takes an object away as if somebody else had deleted it.
    pub fn remove<K: Object>(&self, namespace: Option<&str>, name: &str) -> bool {
        self.state().objects.remove(&key::<K>(namespace, name)).is_some()
    }

    /// Everything stored, as JSON, in order of kind, namespace and name.
    pub fn dump(&self) -> Vec<Value> {
        self.state().objects.values().cloned().collect()
    }
}

impl ObjectState {
    fn put<K: Object>(&mut self, object: &K) -> Value {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        let meta = object.meta();
        let key = key::<K>(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default());
        let uid = meta.uid.clone().unwrap_or_else(|| self.next_uid());
        value["metadata"]["uid"] = json!(uid);
        value["metadata"]["resourceVersion"] = json!(self.next_revision());
        self.objects.insert(key, value.clone());
        value
    }

    /// UID and `resourceVersion`, where given, must be the stored ones.
    fn check<K: Object>(&self, verb: &'static str, name: &str, object: &K) -> Result<(), StoreError> {
        let fail = |failure| StoreError::new(verb, describe::<K>(name), failure);
        let stored = self.objects.get(&key::<K>(None, name)).ok_or_else(|| fail(Failure::Absent))?;
        let meta = object.meta();
        let Some(version) = &meta.resource_version else {
            return Err(fail(Failure::Refused("a write without resourceVersion would overwrite blindly".into())));
        };
        let same_uid = meta.uid.as_ref().is_none_or(|uid| stored["metadata"]["uid"] == json!(uid));
        if !same_uid || stored["metadata"]["resourceVersion"] != json!(version) {
            return Err(fail(Failure::Conflict));
        }
        Ok(())
    }

    fn next_revision(&mut self) -> String {
        self.revision += 1;
        self.revision.to_string()
    }

    fn next_uid(&mut self) -> String {
        self.uids += 1;
        format!("00000000-0000-4000-8000-{:012}", self.uids)
    }
}

fn key<K: Object>(namespace: Option<&str>, name: &str) -> (String, String, String) {
    (K::plural(&()).into_owned(), namespace.unwrap_or_default().to_owned(), name.to_owned())
}

fn decode<K: Object>(verb: &'static str, name: &str, value: &Value) -> Result<K, StoreError> {
    serde_json::from_value(value.clone())
        .map_err(|e| StoreError::new(verb, describe::<K>(name), Failure::Corrupt(e.to_string())))
}

impl Objects for MemoryObjects {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        self.state().objects.get(&key::<K>(namespace, name)).map(|v| decode("get", name, v)).transpose()
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        let wanted: Vec<(&str, &str)> = selector.split(',').filter_map(|term| term.split_once('=')).collect();
        let plural = K::plural(&()).into_owned();
        let state = self.state();
        let of_kind = state.objects.iter().filter(|((kind, _, _), _)| *kind == plural);
        let unwanted: Vec<&str> = selector.split(',').filter_map(|term| term.strip_prefix('!')).collect();
        let matching = of_kind.filter(|(_, v)| {
            let label = |key: &str| &v["metadata"]["labels"][key];
            wanted.iter().all(|(k, w)| *label(k) == json!(w)) && unwanted.iter().all(|k| label(k).is_null())
        });
        matching.map(|((_, _, name), v)| decode("list", name, v)).collect()
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let name = object.meta().name.clone().unwrap_or_default();
        let mut state = self.state();
        if state.objects.contains_key(&key::<K>(None, &name)) {
            return Err(StoreError::new("create", describe::<K>(&name), Failure::Exists));
        }
        decode("create", &name, &state.put(object))
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let name = object.meta().name.clone().unwrap_or_default();
        let mut state = self.state();
        state.check::<K>("update", &name, object)?;
        decode("update", &name, &state.put(object))
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        let name = object.meta().name.clone().unwrap_or_default();
        let mut state = self.state();
        state.check::<K>("delete", &name, object)?;
        state.objects.remove(&key::<K>(None, &name));
        Ok(())
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<Value>, StoreError> {
        let state = self.state();
        let mut found = state.objects.iter().filter(|((_, namespace, name), v)| {
            *namespace == owner.namespace && *name == owner.name && v["kind"] == json!(owner.kind)
        });
        Ok(found.next().map(|(_, value)| value.clone()))
    }
}

// === impl MemoryLedger ===

impl Default for MemoryLedger {
    fn default() -> Self {
        Self::named(LedgerName::objects("in-memory"))
    }
}

impl MemoryLedger {
    /// An empty ledger of that name.
    pub fn named(name: LedgerName) -> Self {
        Self { name, state: Arc::default(), spoilt: Arc::default(), revision: Arc::new(watch::Sender::new(0)) }
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Versioned<Claim>>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes the record of an address one that cannot be read, as a person's edit may.
    pub fn spoil(&self, address: IpAddr) {
        self.spoilt.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(address);
    }

    fn fault(&self, address: IpAddr) -> Result<(), StoreError> {
        match self.spoilt.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&address) {
            true => Err(StoreError::new("range", format!("claim {address}"), Failure::Corrupt("it was spoilt".into()))),
            false => Ok(()),
        }
    }
}

impl Ledger for MemoryLedger {
    fn name(&self) -> LedgerName {
        self.name.clone()
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        self.fault(address)?;
        Ok(self.state().get(&address).cloned())
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        let mut listed = Listed::default();
        for (address, claim) in self.state().iter() {
            match self.fault(*address) {
                Ok(()) => listed.claims.push(claim.clone()),
                Err(error) => listed.unreadable.push(Unreadable {
                    record: error.object,
                    address: Some(*address),
                    why: error.failure.to_string(),
                    remedy: "mend it".to_owned(),
                }),
            }
        }
        Ok(listed)
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        self.fault(address)?;
        let mut state = self.state();
        let standing = state.get(&address).cloned();
        if standing.as_ref().map(|s| s.revision) != expected {
            return Ok(Swap::Lost(standing));
        }
        let revision = *self.revision.borrow() + 1;
        match claim {
            Some(claim) => {
                state.insert(address, Versioned { value: claim.clone(), revision });
            }
            None => {
                state.remove(&address);
            }
        }
        self.revision.send_replace(revision);
        Ok(Swap::Done(if claim.is_some() { revision } else { 0 }))
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        let mut latest = self.revision.subscribe();
        loop {
            let moved = self.state().get(&address).is_none_or(|c| c.revision > revision);
            if moved || latest.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

//! All objects, their history, and who is told about changes.
//!
//! Invariants: every change takes the next revision and is in the history until compaction; an object's resourceVersion
//! is the revision of its last change; a reader under the lock sees one state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::meta;

/// Where an object lies; ordered as lists are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// `Resource::id`.
    pub resource: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
}

/// One change of one object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub revision: u64,
    pub key: Key,
    pub before: Option<Arc<Value>>,
    /// What the object became; for a deletion its last state with the revision of the deletion.
    pub after: Arc<Value>,
    pub deleted: bool,
}

/// Objects and history at one moment.
#[derive(Debug, Default)]
pub(super) struct State {
    pub revision: u64,
    /// History up to here is forgotten.
    pub compacted: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
}

/// Changes kept before the oldest are forgotten.
const HISTORY: usize = 200_000;

impl State {
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The objects of a resource, in one namespace or in all, in the order of keys.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<(Key, Arc<Value>)> {
        let from = Key {
            resource: resource.to_owned(),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        self.objects
            .range(from..)
            .take_while(|(key, _)| key.resource == resource && namespace.is_none_or(|n| key.namespace == n))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect()
    }

    /// The same as it was at `revision`, or none if that is forgotten.
    pub fn list_at(&self, resource: &str, namespace: Option<&str>, revision: u64) -> Option<Vec<(Key, Arc<Value>)>> {
        if revision < self.compacted {
            return None;
        }
        let mut then: BTreeMap<_, _> = self.list(resource, namespace).into_iter().collect();
        for change in self.history.iter().rev().take_while(|c| c.revision > revision) {
            if change.key.resource != resource || namespace.is_some_and(|n| n != change.key.namespace) {
                continue;
            }
            match &change.before {
                Some(object) => then.insert(change.key.clone(), object.clone()),
                None => then.remove(&change.key),
            };
        }
        Some(then.into_iter().collect())
    }

    /// Every object.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    /// Stores an object under the next revision, which becomes its resourceVersion.
    pub fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        meta::set(&mut object, "resourceVersion", Some(self.revision.to_string().into()));
        let after = Arc::new(object);
        let before = self.objects.insert(key.clone(), after.clone());
        self.remember(Change { revision: self.revision, key, before, after: after.clone(), deleted: false });
        after
    }

    /// Removes an object; its last state bears the revision of the deletion.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut last = Value::clone(&before);
        meta::set(&mut last, "resourceVersion", Some(self.revision.to_string().into()));
        let after = Arc::new(last);
        self.remember(Change {
            revision: self.revision,
            key: key.clone(),
            before: Some(before),
            after: after.clone(),
            deleted: true,
        });
        Some(after)
    }

    fn remember(&mut self, change: Change) {
        self.history.push_back(change);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.revision;
        }
    }

    /// Changes after `revision`, or none if some of them are forgotten.
    pub fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Change>> {
        if revision < self.compacted {
            return None;
        }
        let first = self.history.partition_point(|c| c.revision <= revision);
        Some(self.history.range(first..))
    }

    /// Forgets the history.
    pub fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.revision;
    }
}

/// The state behind its lock.
#[derive(Debug)]
pub(super) struct Store {
    state: Mutex<State>,
    /// The newest revision; watchers wait on it.
    newest: watch::Sender<u64>,
}

impl Store {
    pub fn new() -> Self {
        Self { state: Mutex::new(State { revision: 1, ..State::default() }), newest: watch::Sender::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` under the lock, then tells watchers if the state moved.
    pub fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        let revision = state.revision;
        drop(state);
        self.newest.send_if_modified(|newest| {
            let moved = revision > *newest;
            *newest = revision.max(*newest);
            moved
        });
        result
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(name: &str) -> Key {
        Key { resource: "pods".into(), namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn a_list_of_the_past_is_what_it_was_then() {
        let mut state = State::default();
        state.put(key("a"), json!({"n": 1}));
        state.put(key("b"), json!({"n": 1}));
        let then = state.revision;
        state.put(key("a"), json!({"n": 2}));
        state.remove(&key("b"));
        state.put(key("c"), json!({"n": 1}));
        let past = state.list_at("pods", Some("default"), then).unwrap();
        assert_eq!(
            past.iter().map(|(k, o)| (k.name.as_str(), o["n"].as_i64().unwrap())).collect::<Vec<_>>(),
            [("a", 1), ("b", 1)]
        );
        state.compact();
        assert!(state.list_at("pods", None, then).is_none());
        assert!(state.since(then).is_none());
    }
}

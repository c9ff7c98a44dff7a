//! Objects of one kind, as last heard of. Keeps: an older version never replaces a newer one, and what a failed
//! write has shown to be out of date is not answered from here until it was read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use kube::Resource;

use crate::store::Object;

/// What an absence on a shelf means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All objects of the kind are here once it is synced: what is not here does not exist.
    All,
    /// Only some are: what is not here has to be looked for.
    Part,
}

/// What a shelf knows of an object.
#[derive(Debug)]
pub enum Lookup<K> {
    /// It is this, or was a moment ago.
    Found(K),
    /// It does not exist, or did not a moment ago.
    Absent,
    /// Nothing: ask the API server.
    Unknown,
}

/// How a shelf stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShelfState {
    /// The kind's plural.
    pub kind: String,
    /// Whether a list was received since the start, or none is to come.
    pub synced: bool,
    /// How many objects are here.
    pub objects: usize,
    /// Time since anything was put here or taken away; `None` before the first time.
    pub age: Option<Duration>,
}

/// Objects of one kind.
pub struct Shelf<K> {
    scope: Scope,
    /// Which objects are worth remembering.
    keep: Box<dyn Fn(&K) -> bool + Send + Sync>,
    /// Takes away what nobody here reads.
    trim: fn(&mut K),
    state: RwLock<State<K>>,
}

struct State<K> {
    synced: bool,
    objects: BTreeMap<String, K>,
    doubtful: BTreeSet<String>,
    heard: Option<Instant>,
}

/// `<namespace>/<name>`, or the name alone.
pub(super) fn key(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

pub(super) fn key_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    key(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default())
}

/// The API server's versions are numbers that grow; one that is not counts as the oldest.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

// === impl Shelf ===

impl<K: Object> Shelf<K> {
    /// An empty shelf.
    pub fn new(scope: Scope, keep: impl Fn(&K) -> bool + Send + Sync + 'static, trim: fn(&mut K)) -> Self {
        let state = State { synced: false, objects: BTreeMap::new(), doubtful: BTreeSet::new(), heard: None };
        Self { scope, keep: Box::new(keep), trim, state: RwLock::new(state) }
    }

    /// An empty shelf for objects that are heard of one by one, never listed.
    pub fn unlisted(keep: impl Fn(&K) -> bool + Send + Sync + 'static, trim: fn(&mut K)) -> Self {
        let shelf = Self::new(Scope::Part, keep, trim);
        shelf.write().synced = true;
        shelf
    }

    /// What an absence here means.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether a list was received since the start.
    pub fn is_synced(&self) -> bool {
        self.read().synced
    }

    /// How many objects are here.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.read().objects.is_empty()
    }

    /// How it stands.
    pub fn state(&self) -> ShelfState {
        let state = self.read();
        ShelfState {
            kind: K::plural(&()).into_owned(),
            synced: state.synced,
            objects: state.objects.len(),
            age: state.heard.map(|heard| heard.elapsed()),
        }
    }

    /// What is known of an object.
    pub fn lookup(&self, key: &str) -> Lookup<K> {
        let state = self.read();
        if !state.synced || state.doubtful.contains(key) {
            return Lookup::Unknown;
        }
        match (state.objects.get(key), self.scope) {
            (Some(object), _) => Lookup::Found(object.clone()),
            (None, Scope::All) => Lookup::Absent,
            (None, Scope::Part) => Lookup::Unknown,
        }
    }

    /// All objects; `None` before the first list, or while one of them is in doubt.
    pub fn all(&self) -> Option<Vec<K>> {
        let state = self.read();
        (state.synced && state.doubtful.is_empty()).then(|| state.objects.values().cloned().collect())
    }

    /// Whatever is here, synced or not: for looking around, not for decisions.
    pub fn snapshot(&self) -> Vec<K> {
        self.read().objects.values().cloned().collect()
    }

    /// An object was read, written or heard of.
    pub fn put(&self, mut object: K) {
        let key = key_of(&object);
        let wanted = (self.keep)(&object);
        let mut state = self.write();
        state.heard = Some(Instant::now());
        if state.objects.get(&key).is_some_and(|known| version(known) > version(&object)) {
            return;
        }
        state.doubtful.remove(&key);
        if wanted {
            (self.trim)(&mut object);
            state.objects.insert(key, object);
        } else {
            state.objects.remove(&key);
        }
    }

    /// An object is gone, by our own deletion or a read that did not find it.
    pub fn forget(&self, key: &str) {
        let mut state = self.write();
        state.objects.remove(key);
        state.doubtful.remove(key);
    }

    /// A watch told of a deletion; one that is older than what is here was of an earlier object of that name.
    pub fn deleted(&self, object: &K) {
        let key = key_of(object);
        let mut state = self.write();
        state.heard = Some(Instant::now());
        if state.objects.get(&key).is_none_or(|known| version(known) <= version(object)) {
            state.objects.remove(&key);
            state.doubtful.remove(&key);
        }
    }

    /// A write failed: what is here is out of date, or nobody knows.
    pub fn doubt(&self, key: &str) {
        self.write().doubtful.insert(key.to_owned());
    }

    /// A complete list. What was written since that list was taken stays.
    pub fn reset(&self, listed: Vec<K>) {
        let newest = listed.iter().map(version).max().unwrap_or_default();
        let mut state = self.write();
        state.heard = Some(Instant::now());
        state.objects.retain(|_, known| version(known) > newest);
        state.doubtful.clear();
        for mut object in listed {
            let key = key_of(&object);
            if (self.keep)(&object) && !state.objects.contains_key(&key) {
                (self.trim)(&mut object);
                state.objects.insert(key, object);
            }
        }
        state.synced = true;
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, version: u64) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})).unwrap()
    }

    fn shelf(scope: Scope) -> Shelf<Namespace> {
        Shelf::new(scope, |_| true, |_| ())
    }

    fn found(shelf: &Shelf<Namespace>, name: &str) -> Option<u64> {
        match shelf.lookup(name) {
            Lookup::Found(object) => Some(version(&object)),
            Lookup::Absent | Lookup::Unknown => None,
        }
    }

    #[test]
    fn nothing_is_said_before_the_first_list_and_an_absence_means_something_only_where_all_are_here() {
        let (all, part) = (shelf(Scope::All), shelf(Scope::Part));
        all.put(namespace("a", 1));
        assert!(matches!(all.lookup("a"), Lookup::Unknown) && all.all().is_none());
        all.reset(vec![namespace("a", 1)]);
        part.reset(vec![namespace("a", 1)]);
        assert_eq!((found(&all, "a"), found(&part, "a")), (Some(1), Some(1)));
        assert!(matches!(all.lookup("b"), Lookup::Absent));
        assert!(matches!(part.lookup("b"), Lookup::Unknown));
    }

    #[test]
    fn an_older_version_never_replaces_a_newer_one() {
        let shelf = shelf(Scope::All);
        shelf.reset(vec![]);
        shelf.put(namespace("a", 7));
        shelf.put(namespace("a", 5));
        shelf.deleted(&namespace("a", 6));
        assert_eq!(found(&shelf, "a"), Some(7));
        shelf.reset(vec![namespace("b", 6)]);
        assert_eq!((found(&shelf, "a"), found(&shelf, "b")), (Some(7), Some(6)), "what we wrote after the list stays");
        shelf.reset(vec![namespace("b", 8)]);
        assert_eq!(found(&shelf, "a"), None);
    }

    #[test]
    fn its_state_tells_whether_a_list_came_and_whether_anything_was_heard() {
        let shelf = shelf(Scope::All);
        let fresh = ShelfState { kind: "namespaces".into(), synced: false, objects: 0, age: None };
        assert_eq!(shelf.state(), fresh);
        shelf.put(namespace("a", 1));
        assert_eq!((shelf.state().synced, shelf.state().objects), (false, 1));
        shelf.reset(vec![]);
        let state = shelf.state();
        assert!(state.synced && state.objects == 1 && state.age.is_some(), "{state:?}");
    }

    #[test]
    fn what_is_in_doubt_is_not_answered_until_it_was_read_again() {
        let shelf = shelf(Scope::All);
        shelf.reset(vec![namespace("a", 1), namespace("b", 2)]);
        shelf.doubt("a");
        assert!(matches!(shelf.lookup("a"), Lookup::Unknown) && shelf.all().is_none());
        assert_eq!(found(&shelf, "b"), Some(2));
        shelf.put(namespace("a", 3));
        assert_eq!((found(&shelf, "a"), shelf.all().unwrap().len()), (Some(3), 2));
        shelf.doubt("a");
        shelf.forget("a");
        assert!(matches!(shelf.lookup("a"), Lookup::Absent));
    }
}

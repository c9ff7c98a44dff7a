//! Objects of one kind, as last heard of. Keeps: an older version never replaces a newer one, also where the newer
//! one is that the object is gone; what a failed write has shown to be out of date is not answered from here until it
//! was read again; a list says what exists, and only what was written or read since it began outlives it.
//!
//! Versions decide. A request sees what was so at the newest version that was heard of when it began, or later: a
//! list that lacks an object of such a version says that the object is gone, and a read that finds nothing says so of
//! every version up to that one.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use kube::Resource;

use crate::store::Object;

/// Most objects of which a shelf remembers that they are gone: a watch lags by a few events, not by so many.
const MOST_GONE: usize = 256;

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

/// A list that has begun, for [`Shelf::reset`].
#[derive(Debug, Clone, Copy)]
pub struct Listing {
    /// The newest version that was heard of then: what the list says was so at that version, or later.
    newest: u64,
    /// How many steps the shelf had taken then.
    step: u64,
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
    /// What is not answered from here, and the step at which it came into doubt.
    doubtful: BTreeMap<String, u64>,
    gone: BTreeMap<String, Gone>,
    /// The newest version that was heard of.
    newest: u64,
    /// Counts doubts and deletions: what came after a list began is known by it.
    step: u64,
    heard: Option<Instant>,
}

/// An object that does not exist, or is not worth remembering.
struct Gone {
    /// Every version up to this one is over.
    version: u64,
    /// The step at which that was heard.
    step: u64,
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
pub(super) fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

// === impl Shelf ===

impl<K: Object> Shelf<K> {
    /// An empty shelf.
    pub fn new(scope: Scope, keep: impl Fn(&K) -> bool + Send + Sync + 'static, trim: fn(&mut K)) -> Self {
        let (objects, doubtful, gone) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let state = State { synced: false, objects, doubtful, gone, newest: 0, step: 0, heard: None };
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
        if !state.synced || state.doubtful.contains_key(key) {
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

    /// What `of` makes of each key and object that is here, without a copy of any object.
    pub fn gather<T>(&self, of: impl Fn(&str, &K) -> Option<T>) -> Vec<T> {
        self.read().objects.iter().filter_map(|(key, object)| of(key, object)).collect()
    }

    /// The newest version that was heard of: a read that begins now says what is so at that version, or later.
    pub fn newest(&self) -> u64 {
        self.read().newest
    }

    /// An object was read, written or heard of.
    pub fn put(&self, object: K) {
        let mut state = self.write();
        state.heard = Some(Instant::now());
        let (key, version_of) = (key_of(&object), version(&object));
        state.newest = state.newest.max(version_of);
        if !state.is_news(&key, version_of) {
            return;
        }
        state.doubtful.remove(&key);
        self.shelve(&mut state, key, object);
    }

    fn shelve(&self, state: &mut State<K>, key: String, mut object: K) {
        if (self.keep)(&object) {
            (self.trim)(&mut object);
            state.gone.remove(&key);
            state.objects.insert(key, object);
        } else {
            state.end(key, version(&object));
        }
    }

    /// An object does not exist, by our own deletion or a read that did not find it: no version of it up to `version`
    /// is to come back. What was put here since and is newer stays.
    pub fn absent(&self, key: &str, version: u64) {
        let mut state = self.write();
        if state.objects.get(key).is_none_or(|known| self::version(known) <= version) {
            state.doubtful.remove(key);
            state.end(key.to_owned(), version);
        }
    }

    /// An object is of no concern any more, whether it exists or not: what is heard of it next is taken as it comes.
    pub fn evict(&self, key: &str) {
        let mut state = self.write();
        state.objects.remove(key);
        state.doubtful.remove(key);
    }

    /// A watch told of a deletion; one that is older than what is here was of an earlier object of that name.
    pub fn deleted(&self, object: &K) {
        let version = version(object);
        {
            let mut state = self.write();
            state.heard = Some(Instant::now());
            state.newest = state.newest.max(version);
        }
        self.absent(&key_of(object), version);
    }

    /// A write failed: what is here is out of date, or nobody knows.
    pub fn doubt(&self, key: &str) {
        let mut state = self.write();
        let step = state.next_step();
        state.doubtful.insert(key.to_owned(), step);
    }

    /// A list begins: to be called before it is asked for.
    pub fn begin_list(&self) -> Listing {
        let state = self.read();
        Listing { newest: state.newest, step: state.step }
    }

    /// A list is complete: what it lacks does not exist. Gives what went with it.
    ///
    /// What was written or read since the list began, and is newer than anything that the list could show, stays: but
    /// as it may have been deleted before the list was taken, it is in doubt until it is heard of again.
    pub fn reset(&self, began: Listing, listed: Vec<K>) -> Vec<K> {
        let mut state = self.write();
        state.heard = Some(Instant::now());
        state.synced = true;
        state.doubtful.retain(|_, step| *step > began.step);
        state.gone.retain(|_, gone| gone.step > began.step);
        let certain = listed.iter().map(version).fold(began.newest, u64::max);
        let mut earlier = std::mem::take(&mut state.objects);
        for object in listed {
            let key = key_of(&object);
            let newest = version(&object).max(began.newest);
            match earlier.remove(&key) {
                Some(known) if version(&known) > newest => drop(state.objects.insert(key, known)),
                _ if state.is_news(&key, version(&object)) => self.shelve(&mut state, key, object),
                _ => {}
            }
        }
        let (since, went): (BTreeMap<_, _>, BTreeMap<_, _>) =
            earlier.into_iter().partition(|(_, known)| version(known) > certain);
        for (key, known) in since {
            let step = state.next_step();
            state.doubtful.insert(key.clone(), step);
            state.objects.insert(key, known);
        }
        let of_gone = state.gone.values().map(|gone| gone.version);
        state.newest = state.objects.values().map(version).chain(of_gone).max().unwrap_or_default();
        went.into_values().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl<K: Object> State<K> {
    /// Whether that version of an object is as new as what is known of it.
    fn is_news(&self, key: &str, version: u64) -> bool {
        let is_older = |known: &K| self::version(known) > version;
        !self.objects.get(key).is_some_and(is_older) && self.gone.get(key).is_none_or(|gone| gone.version < version)
    }

    /// An object is gone, in every version up to this one.
    fn end(&mut self, key: String, version: u64) {
        self.objects.remove(&key);
        let step = self.next_step();
        let version = self.gone.get(&key).map_or(version, |gone| gone.version.max(version));
        // Without a version nothing can be told to be older.
        if version > 0 {
            self.gone.insert(key, Gone { version, step });
        }
        if self.gone.len() > MOST_GONE
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, gone)| gone.step).map(|(key, _)| key.clone())
        {
            self.gone.remove(&oldest);
        }
    }

    fn next_step(&mut self) -> u64 {
        self.step += 1;
        self.step
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

    fn relist(shelf: &Shelf<Namespace>, listed: Vec<Namespace>) -> Vec<Namespace> {
        shelf.reset(shelf.begin_list(), listed)
    }

    #[test]
    fn nothing_is_said_before_the_first_list_and_an_absence_means_something_only_where_all_are_here() {
        let (all, part) = (shelf(Scope::All), shelf(Scope::Part));
        all.put(namespace("a", 1));
        assert!(matches!(all.lookup("a"), Lookup::Unknown) && all.all().is_none());
        relist(&all, vec![namespace("a", 1)]);
        relist(&part, vec![namespace("a", 1)]);
        assert_eq!((found(&all, "a"), found(&part, "a")), (Some(1), Some(1)));
        assert!(matches!(all.lookup("b"), Lookup::Absent));
        assert!(matches!(part.lookup("b"), Lookup::Unknown));
    }

    #[test]
    fn an_older_version_never_replaces_a_newer_one() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![]);
        shelf.put(namespace("a", 7));
        shelf.put(namespace("a", 5));
        shelf.deleted(&namespace("a", 6));
        assert_eq!(found(&shelf, "a"), Some(7));
    }

    #[test]
    fn what_a_list_lacks_is_gone_though_nothing_newer_was_listed() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("old", 3), namespace("deleted in the gap", 7)]);
        let went = relist(&shelf, vec![namespace("old", 3)]);
        assert_eq!(went.iter().map(key_of).collect::<Vec<_>>(), ["deleted in the gap"]);
        assert!(matches!(shelf.lookup("deleted in the gap"), Lookup::Absent));
        assert_eq!(shelf.all().unwrap().len(), 1);
        relist(&shelf, vec![]);
        assert!(matches!(shelf.lookup("old"), Lookup::Absent), "an empty list says that there is none");
        assert!(shelf.is_empty());
    }

    #[test]
    fn what_was_written_since_the_list_began_outlives_it_and_is_in_doubt_where_the_list_lacks_it() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("a", 5), namespace("b", 6)]);
        let began = shelf.begin_list();
        shelf.put(namespace("a", 9));
        shelf.put(namespace("new", 10));
        shelf.put(namespace("read", 4));
        let went = shelf.reset(began, vec![namespace("a", 5), namespace("b", 6)]);
        assert_eq!(found(&shelf, "a"), Some(9), "the list showed an older one");
        assert!(matches!(shelf.lookup("new"), Lookup::Unknown) && shelf.all().is_none(), "it may be gone again");
        assert!(matches!(shelf.lookup("read"), Lookup::Absent), "the list would have shown that version");
        assert_eq!(went.iter().map(key_of).collect::<Vec<_>>(), ["read"]);
        shelf.put(namespace("new", 10));
        assert_eq!(found(&shelf, "new"), Some(10), "the watch goes on with what came after the list");
        relist(&shelf, vec![namespace("a", 9), namespace("b", 6)]);
        assert!(matches!(shelf.lookup("new"), Lookup::Absent), "the next list knows");
    }

    #[test]
    fn what_was_deleted_since_the_list_began_does_not_come_back_by_it() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("a", 5), namespace("b", 6), namespace("c", 7)]);
        let began = shelf.begin_list();
        shelf.absent("a", 5);
        shelf.absent("b", 7);
        shelf.reset(began, vec![namespace("a", 5), namespace("b", 9), namespace("c", 7)]);
        assert!(matches!(shelf.lookup("a"), Lookup::Absent));
        assert_eq!((found(&shelf, "b"), found(&shelf, "c")), (Some(9), Some(7)), "that one was made after it");
        shelf.put(namespace("a", 5));
        assert!(matches!(shelf.lookup("a"), Lookup::Absent), "an older event");
    }

    #[test]
    fn a_doubt_that_came_since_the_list_began_outlives_it() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("a", 5), namespace("b", 6)]);
        shelf.doubt("a");
        let began = shelf.begin_list();
        shelf.doubt("b");
        shelf.reset(began, vec![namespace("a", 5), namespace("b", 6)]);
        assert_eq!(found(&shelf, "a"), Some(5));
        assert!(matches!(shelf.lookup("b"), Lookup::Unknown));
    }

    #[test]
    fn what_is_gone_comes_back_only_in_a_newer_version() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("deleted", 5), namespace("heard", 6)]);
        shelf.absent("deleted", 5);
        shelf.deleted(&namespace("heard", 8));
        shelf.put(namespace("deleted", 4));
        shelf.put(namespace("heard", 6));
        assert_eq!((found(&shelf, "deleted"), found(&shelf, "heard")), (None, None));
        shelf.put(namespace("deleted", 9));
        shelf.put(namespace("heard", 10));
        assert_eq!((found(&shelf, "deleted"), found(&shelf, "heard")), (Some(9), Some(10)), "others by those names");
    }

    #[test]
    fn a_read_that_found_nothing_does_not_take_away_what_was_put_since_it_began() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("a", 5), namespace("b", 6)]);
        let began = shelf.newest();
        shelf.put(namespace("a", 7));
        shelf.absent("a", began);
        shelf.absent("b", began);
        assert_eq!((found(&shelf, "a"), found(&shelf, "b")), (Some(7), None));
        shelf.put(namespace("b", 6));
        assert_eq!(found(&shelf, "b"), None, "the read was of that version or later");
    }

    #[test]
    fn versions_that_begin_anew_are_taken_from_the_list() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("a", 500), namespace("b", 501)]);
        shelf.absent("b", 501);
        relist(&shelf, vec![namespace("a", 40), namespace("b", 41)]);
        assert_eq!((found(&shelf, "a"), found(&shelf, "b")), (Some(40), Some(41)));
        assert_eq!(shelf.newest(), 41);
        let began = shelf.begin_list();
        shelf.put(namespace("a", 42));
        shelf.reset(began, vec![namespace("a", 40), namespace("b", 41)]);
        assert_eq!(found(&shelf, "a"), Some(42));
    }

    #[test]
    fn what_is_of_no_concern_any_more_is_evicted_and_may_come_back_as_it_was() {
        let shelf = Shelf::<Namespace>::unlisted(|n| n.metadata.name.as_deref() != Some("b"), |_| ());
        shelf.put(namespace("a", 5));
        shelf.evict("a");
        assert!(matches!(shelf.lookup("a"), Lookup::Unknown));
        shelf.put(namespace("a", 5));
        assert_eq!(found(&shelf, "a"), Some(5));
        shelf.put(namespace("b", 6));
        assert_eq!(found(&shelf, "b"), None);
    }

    #[test]
    fn it_remembers_of_so_many_that_they_are_gone_and_no_more() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![]);
        (1..=400).for_each(|n| shelf.absent(&format!("n{n}"), n));
        assert_eq!(shelf.read().gone.len(), MOST_GONE);
        shelf.put(namespace("n400", 400));
        assert!(shelf.is_empty(), "the last ones are those that a watch may still tell of");
    }

    #[test]
    fn its_state_tells_whether_a_list_came_and_whether_anything_was_heard() {
        let shelf = shelf(Scope::All);
        let fresh = ShelfState { kind: "namespaces".into(), synced: false, objects: 0, age: None };
        assert_eq!(shelf.state(), fresh);
        shelf.put(namespace("a", 1));
        assert_eq!((shelf.state().synced, shelf.state().objects), (false, 1));
        relist(&shelf, vec![namespace("a", 1)]);
        let state = shelf.state();
        assert!(state.synced && state.objects == 1 && state.age.is_some(), "{state:?}");
    }

    #[test]
    fn what_is_in_doubt_is_not_answered_until_it_was_read_again() {
        let shelf = shelf(Scope::All);
        relist(&shelf, vec![namespace("a", 1), namespace("b", 2)]);
        shelf.doubt("a");
        assert!(matches!(shelf.lookup("a"), Lookup::Unknown) && shelf.all().is_none());
        assert_eq!(found(&shelf, "b"), Some(2));
        shelf.put(namespace("a", 3));
        assert_eq!((found(&shelf, "a"), shelf.all().unwrap().len()), (Some(3), 2));
        shelf.doubt("a");
        shelf.absent("a", 3);
        assert!(matches!(shelf.lookup("a"), Lookup::Absent));
    }
}

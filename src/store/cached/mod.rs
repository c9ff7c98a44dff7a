//! A store that answers from memory what it has heard of, and asks the API server for the rest.
//!
//! Only reads are spared. A write goes out with the precondition of what was read, so a memory that is out of
//! date costs another attempt and never gives a wrong answer; after a write that failed, the object is read anew.

mod shelf;

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;

use calico::block_affinity::label_selector;
use calico::{Affinity, BlockAffinity, ClusterInformation, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};

pub use self::shelf::{Listing, Lookup, Scope, Shelf, ShelfState};
use self::shelf::{key, key_of, version};
use super::{Objects, StoreError, trim};
use crate::pod::{self, Owner};
use crate::store::Object;

/// What a node's agent remembers.
pub struct Shelves {
    /// The pods of this node; of each only what is read here.
    pub pods: Shelf<Pod>,
    /// This node.
    pub nodes: Shelf<Node>,
    /// All namespaces.
    pub namespaces: Shelf<Namespace>,
    /// All pools.
    pub pools: Shelf<IPPool>,
    /// All reservations.
    pub reservations: Shelf<IPReservation>,
    /// Calico's configuration.
    pub config: Shelf<IPAMConfig>,
    /// Calico's lock for migrations.
    pub information: Shelf<ClusterInformation>,
    /// This node's affinities.
    pub affinities: Shelf<BlockAffinity>,
    /// This node's blocks.
    pub blocks: Shelf<IPAMBlock>,
    /// The handles of this node's containers, as they were written.
    pub handles: Shelf<IPAMHandle>,
    node: String,
    /// The label selector of this node's affinities.
    selector: String,
}

/// A store behind [`Shelves`]. Clones share them.
#[derive(Clone)]
pub struct Cached<S> {
    inner: S,
    shelves: Arc<Shelves>,
}

// === impl Shelves ===

impl Shelves {
    /// Empty shelves for `node`.
    pub fn new(node: &str) -> Self {
        let (of_pods, of_node, of_affinities, of_blocks) =
            (node.to_owned(), node.to_owned(), node.to_owned(), node.to_owned());
        Self {
            pods: Shelf::new(
                Scope::Part,
                move |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.as_deref() == Some(of_pods.as_str())),
                trim::pod,
            ),
            nodes: Shelf::new(
                Scope::Part,
                move |n: &Node| n.metadata.name.as_deref() == Some(of_node.as_str()),
                trim::node,
            ),
            namespaces: Shelf::new(Scope::All, |_| true, trim_namespace),
            pools: Shelf::new(Scope::All, |_| true, |_| ()),
            reservations: Shelf::new(Scope::All, |_| true, |_| ()),
            config: Shelf::new(Scope::All, |_| true, |_| ()),
            information: Shelf::new(Scope::All, |_| true, |_| ()),
            affinities: Shelf::new(Scope::Part, move |a: &BlockAffinity| a.spec.node == of_affinities, |_| ()),
            blocks: Shelf::unlisted(
                move |b: &IPAMBlock| b.spec.host() == Some(of_blocks.as_str()) && !b.spec.is_deleted(),
                // The server keeps what is left out.
                |b| b.metadata.managed_fields = None,
            ),
            handles: Shelf::unlisted(|h: &IPAMHandle| !h.spec.is_deleted(), |h| h.metadata.managed_fields = None),
            node: node.to_owned(),
            selector: label_selector(&Affinity::Host(node.to_owned())),
        }
    }

    /// The node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The label selector of this node's affinities.
    pub fn selector(&self) -> &str {
        &self.selector
    }

    /// How every kind stands.
    pub fn states(&self) -> [ShelfState; 10] {
        [
            self.pods.state(),
            self.nodes.state(),
            self.namespaces.state(),
            self.pools.state(),
            self.reservations.state(),
            self.config.state(),
            self.information.state(),
            self.affinities.state(),
            self.blocks.state(),
            self.handles.state(),
        ]
    }

    /// The kinds whose first list has not come yet.
    pub fn unsynced(&self) -> Vec<String> {
        self.states().into_iter().filter(|state| !state.synced).map(|state| state.kind).collect()
    }

    fn shelf<K: Object>(&self) -> Option<&Shelf<K>> {
        let shelves: [&dyn Any; 10] = [
            &self.pods,
            &self.nodes,
            &self.namespaces,
            &self.pools,
            &self.reservations,
            &self.config,
            &self.information,
            &self.affinities,
            &self.blocks,
            &self.handles,
        ];
        shelves.into_iter().find_map(|shelf| shelf.downcast_ref())
    }
}

/// What a pod has until it has ended.
fn in_use(pod: &Pod) -> Vec<IpAddr> {
    match pod::has_finished(pod) {
        true => Vec::new(),
        false => pod::own_addresses(pod).unwrap_or_default(),
    }
}

fn trim_namespace(namespace: &mut Namespace) {
    namespace.metadata.managed_fields = None;
}

// === impl Cached ===

impl<S> Cached<S> {
    /// `inner` behind `shelves`.
    pub fn new(inner: S, shelves: Arc<Shelves>) -> Self {
        Self { inner, shelves }
    }

    /// The store behind.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// What is remembered.
    pub fn shelves(&self) -> &Arc<Shelves> {
        &self.shelves
    }

    /// Remembers what a write left, or that its outcome is not what was expected.
    fn learn<K: Object>(&self, object: &K, written: &Result<K, StoreError>) {
        let Some(shelf) = self.shelves.shelf::<K>() else { return };
        match written {
            Ok(stored) => shelf.put(stored.clone()),
            Err(_) => shelf.doubt(&key_of(object)),
        }
    }
}

impl<S: Objects> Objects for Cached<S> {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        match self.shelves.shelf::<K>().map(|shelf| shelf.lookup(&key(namespace, name))) {
            Some(Lookup::Found(object)) => Ok(Some(object)),
            Some(Lookup::Absent) => Ok(None),
            Some(Lookup::Unknown) | None => self.fresh(namespace, name).await,
        }
    }

    async fn fresh<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        let Some(shelf) = self.shelves.shelf::<K>() else { return self.inner.fresh(namespace, name).await };
        let newest = shelf.newest();
        let found = self.inner.fresh::<K>(namespace, name).await?;
        match &found {
            Some(object) => shelf.put(object.clone()),
            None => shelf.absent(&key(namespace, name), newest),
        }
        Ok(found)
    }

    fn is_cache(&self) -> bool {
        true
    }

    fn addresses_in_use(&self, except: Option<(&str, &str)>) -> Vec<IpAddr> {
        let except = except.map(|(namespace, name)| key(Some(namespace), name));
        let others = self.shelves.pods.gather(|at, pod| (Some(at) != except.as_deref()).then(|| in_use(pod)));
        others.into_iter().flatten().collect()
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        let shelf = self.shelves.shelf::<K>().filter(|shelf| shelf.holds_list(selector, &self.shelves.selector));
        match shelf.and_then(Shelf::all) {
            Some(objects) => Ok(objects),
            None => self.inner.list(selector).await,
        }
    }

    async fn newer_is_ready(&self) -> Result<Option<bool>, StoreError> {
        self.inner.newer_is_ready().await
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let written = self.inner.create(object).await;
        self.learn(object, &written);
        written
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let written = self.inner.replace(object).await;
        self.learn(object, &written);
        written
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        let Some(shelf) = self.shelves.shelf::<K>() else { return self.inner.delete(object).await };
        let newest = shelf.newest().max(version(object));
        let deleted = self.inner.delete(object).await;
        match &deleted {
            Ok(()) => shelf.absent(&key_of(object), newest),
            Err(_) => shelf.doubt(&key_of(object)),
        }
        deleted
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<serde_json::Value>, StoreError> {
        self.inner.owner(owner).await
    }
}

impl<K: Object> Shelf<K> {
    /// Whether a list by this selector is what is here.
    fn holds_list(&self, selector: &str, of_node: &str) -> bool {
        match self.scope() {
            Scope::All => selector.is_empty(),
            Scope::Part => selector == of_node,
        }
    }
}

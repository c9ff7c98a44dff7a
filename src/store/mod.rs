//! Where records live: Kubernetes objects and the ledger of claims.
//!
//! Both are traits, so that the driver is the same over a live cluster, over memory in tests, and over a
//! store that injects faults. What every implementation must keep: a write is decided by its precondition
//! alone (never by an earlier read), and an error says whether the write is known not to have happened.

pub mod cached;
pub mod cluster;
pub mod conformance;
pub mod etcd;
pub mod faulty;
pub mod gated;
pub mod group;
pub(crate) mod heard;
pub mod ipclaim;
pub mod kube;
mod ledgers;
pub mod memory;
mod tls;
mod token_file;
pub(crate) mod transport;
pub(crate) mod trim;

pub use self::gated::{Allowed, DatastoreGate, Gated, LiveGate, TRUSTED};
pub use self::group::Group;
pub use self::ledgers::{AnyLedger, LazyLedger};

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use ::kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::claim::{Claim, LedgerName};
use crate::pod::Owner;

/// Says once for this process who does the arithmetic of TLS, before the first connection is made.
pub fn choose_tls() {
    // Fails only if one was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A Kubernetes object that the store can carry: typed, self-describing, cloneable.
pub trait Object:
    Resource<DynamicType = ()> + Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Kubernetes objects with compare-and-swap on `metadata.resourceVersion`.
pub trait Objects: Send + Sync {
    /// The object, or `None` if there is none of that name. `namespace` is `None` for cluster-scoped kinds.
    fn get<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> impl Future<Output = Result<Option<K>, StoreError>> + Send;

    /// The object as it is now, also from a store whose `get` may answer from memory.
    fn fresh<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> impl Future<Output = Result<Option<K>, StoreError>> + Send {
        self.get(namespace, name)
    }

    /// Whether `get` and `list` may answer from memory, and so may be a little out of date.
    fn is_cache(&self) -> bool {
        false
    }

    /// All objects of a kind, over all namespaces, whose labels match `selector` (empty: all).
    /// A kind that the cluster does not serve gives [`Failure::NoKind`], never an empty list.
    fn list<K: Object>(&self, selector: &str) -> impl Future<Output = Result<Vec<K>, StoreError>> + Send;

    /// The same as the server last heard of it: it may lag behind what was written a moment ago. An API server
    /// answers this at once, and [`Objects::list`] only after it has asked etcd how far that is, which it does
    /// ten times a second.
    fn list_cached<K: Object>(&self, selector: &str) -> impl Future<Output = Result<Vec<K>, StoreError>> + Send {
        self.list(selector)
    }

    /// Goes through what [`Objects::list`] gives, object by object, and keeps only what `add` makes of each: the
    /// parts of all objects may be much smaller than all objects. Begins anew with `start` if it has to read anew.
    fn fold<K: Object, T: Send>(
        &self,
        selector: &str,
        start: impl Fn() -> T + Send + Sync,
        add: impl Fn(&mut T, K) + Send + Sync,
    ) -> impl Future<Output = Result<T, StoreError>> + Send {
        let listed = self.list(selector);
        async move {
            let mut sum = start();
            listed.await?.into_iter().for_each(|object| add(&mut sum, object));
            Ok(sum)
        }
    }

    /// Addresses that pods have by their status, that of the pod `except` (namespace and name) left out, as far as this
    /// store knows without a request: an agent's knows the pods of its node.
    fn addresses_in_use(&self, _except: Option<(&str, &str)>) -> Vec<IpAddr> {
        Vec::new()
    }

    /// Whether a newer group than this store's has Calico's objects, and then whether that one is unlocked. Asked by whoever
    /// misses something: while the older group's definitions are deleted, its objects go one kind after the other.
    fn newer_is_ready(&self) -> impl Future<Output = Result<Option<bool>, StoreError>> + Send {
        async { Ok(None) }
    }

    /// Creates a cluster-scoped object and returns it as stored; [`Failure::Exists`] if the name is taken.
    fn create<K: Object>(&self, object: &K) -> impl Future<Output = Result<K, StoreError>> + Send;

    /// Replaces a cluster-scoped object and returns it as stored. Its `resourceVersion` is the precondition:
    /// [`Failure::Conflict`] if it is not the stored one, [`Failure::Absent`] if the object is gone.
    fn replace<K: Object>(&self, object: &K) -> impl Future<Output = Result<K, StoreError>> + Send;

    /// Deletes exactly this version of a cluster-scoped object (UID and `resourceVersion` are preconditions).
    fn delete<K: Object>(&self, object: &K) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// The object behind an owner, by a live read of its kind; `None` if it does not exist.
    fn owner(&self, owner: &Owner) -> impl Future<Output = Result<Option<serde_json::Value>, StoreError>> + Send;

    /// The object by which an owner exists, by live reads: its own, or a virtual machine's instance that is alone.
    fn living_owner(
        &self,
        owner: &Owner,
    ) -> impl Future<Output = Result<Option<serde_json::Value>, StoreError>> + Send {
        async {
            for object in owner.objects() {
                let found = self.owner(&object).await?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        }
    }

    /// Whether an owner still exists, see [`Objects::living_owner`].
    fn owner_exists(&self, owner: &Owner) -> impl Future<Output = Result<bool, StoreError>> + Send {
        async { Ok(self.living_owner(owner).await?.is_some()) }
    }
}

/// A value and the revision that a later write compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The value as stored.
    pub value: T,
    /// Revision at which the value was last written; in etcd the key's `mod_revision`.
    pub revision: i64,
}

/// The claims of a network, and what is among them that is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those that can be read, in order of address.
    pub claims: Vec<Versioned<Claim>>,
    /// The others.
    pub unreadable: Vec<Unreadable>,
}

/// A record of a claim that cannot be read. What it says is unknown, so nothing may be concluded from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{record} cannot be read: {why}; {remedy}")]
pub struct Unreadable {
    /// The record: the object, or the key in etcd.
    pub record: String,
    /// The address that it would be the claim on, by its name.
    pub address: Option<IpAddr>,
    /// What is wrong with it.
    pub why: String,
    /// What to do with it.
    pub remedy: String,
}

impl Listed {
    /// The claims that can be read; the log names the others.
    fn readable(self) -> Vec<Versioned<Claim>> {
        for unreadable in &self.unreadable {
            tracing::warn!(%unreadable, "a record of a claim is passed over");
        }
        self.claims
    }
}

/// Outcome of a compare-and-swap that reached the ledger.
// One for each call, and looked at right away: a box would cost more than the bytes.
#[expect(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// Written; the revision it got (0 after a deletion).
    Done(i64),
    /// Somebody else wrote in between: what stands there now.
    Lost(Option<Versioned<Claim>>),
}

/// The ledger: who owns each fixed address, and which pod holds it now.
pub trait Ledger: Send + Sync {
    /// Names it, for our reservations, which say in which ledger an address is claimed.
    fn name(&self) -> LedgerName;

    /// The claim on an address, read with the ledger's full consistency.
    fn read(&self, address: IpAddr) -> impl Future<Output = Result<Option<Versioned<Claim>>, StoreError>> + Send;

    /// All claims of the network that can be read, in order of address; a record that cannot is named in the log. An
    /// error is never an empty list.
    fn all(&self) -> impl Future<Output = Result<Vec<Versioned<Claim>>, StoreError>> + Send {
        let listed = self.listed();
        async move { Ok(listed.await?.readable()) }
    }

    /// The same with the records that cannot be read, for whoever concludes anything from a claim that is not there.
    fn listed(&self) -> impl Future<Output = Result<Listed, StoreError>> + Send;

    /// Writes `claim` (or deletes it: `None`) if the stored revision is still `expected` (`None`: no claim there).
    /// One transaction. With [`Failure::Unknown`] the caller must read back before it concludes anything.
    fn swap(
        &self,
        address: IpAddr,
        expected: Option<i64>,
        claim: Option<&Claim>,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;

    /// Returns when the claim on `address` was written or deleted after `revision`; may return early for
    /// no reason (a cut watch, a compacted revision): the caller reads again.
    fn changed(&self, address: IpAddr, revision: i64) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl<L: Ledger> Ledger for std::sync::Arc<L> {
    fn name(&self) -> LedgerName {
        L::name(self)
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        L::read(self, address).await
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        L::listed(self).await
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        L::swap(self, address, expected, claim).await
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        L::changed(self, address, revision).await
    }
}

/// A store's refusal or failure, with the call that met it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{verb} {object}: {failure}")]
pub struct StoreError {
    /// The verb as the store knows it: get, list, create, update, delete, txn, range, watch, connect.
    pub verb: &'static str,
    /// What it was about: "ipamblocks 10-244-0-192-26", "claim 10.244.0.216".
    pub object: String,
    /// What came back.
    pub failure: Failure,
}

/// Why a call to a store did not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The name is taken (create).
    #[error("it exists already")]
    Exists,
    /// The precondition does not hold any more; nothing was written.
    #[error("it was changed by somebody else in between")]
    Conflict,
    /// There is no such object; nothing was written.
    #[error("it does not exist")]
    Absent,
    /// The cluster does not serve the kind at all (its CRD is not installed).
    #[error("the API server does not know this kind; is Calico (its CRDs) installed?")]
    NoKind,
    /// There is no ledger: the network names no etcd, and the cluster does not serve IPClaims. Then there is no
    /// claim either, as far as this network is concerned.
    #[error("the API server does not know the kind IPClaim (kube-ipam.io), and no etcdConfig is named")]
    NoLedger,
    /// Calico's datastore is locked; nothing was written. A gate says so, no server.
    #[error(
        "datastoreReady is false: Calico's datastore is locked, as it is during a migration or an upgrade; nothing is \
         written until it is unlocked"
    )]
    Locked,
    /// Calico is older than any that is supported; nothing was written. A gate says so, no server.
    #[error("Calico {0} is older than v3.24, the oldest release that kube-ipam works with; no address is given")]
    TooOld(String),
    /// The claims are another cluster's; nothing was read or written. The text names both clusters and the remedy.
    #[error("{0}")]
    Foreign(String),
    /// Which cluster this is cannot be told, and so neither whose the claims in etcd are.
    #[error("{0}; the UID of this namespace tells whose claims etcd has, and fixed addresses need it")]
    Unidentified(String),
    /// The server is overloaded and refused before doing anything; wait at least this long.
    #[error("the server asks to wait {0:?} (429 Too Many Requests)")]
    Busy(Duration),
    /// The credential was not accepted, or does not allow this.
    #[error("not allowed: {0}")]
    Denied(String),
    /// The server understood and refused; nothing was written.
    #[error("refused: {0}")]
    Refused(String),
    /// A file of credentials cannot be read; nothing was sent.
    #[error("{0}")]
    Unreadable(String),
    /// A file of credentials is not what it should be; nothing was sent.
    #[error("{0}")]
    Malformed(String),
    /// The server has no room left to write; nothing was written.
    #[error("no room is left: {0}")]
    Full(String),
    /// No answer, or one that leaves open whether the call took effect.
    #[error("no clear answer: {0}")]
    Unknown(String),
    /// The stored value cannot be understood.
    #[error("its stored value cannot be read: {0}")]
    Corrupt(String),
}

// === impl StoreError ===

impl StoreError {
    /// An error of `verb` on `object`.
    pub fn new(verb: &'static str, object: impl Into<String>, failure: Failure) -> Self {
        Self { verb, object: object.into(), failure }
    }

    /// Whether the same call may succeed later without anybody changing anything by hand.
    pub fn is_transient(&self) -> bool {
        matches!(self.failure, Failure::Conflict | Failure::Busy(_) | Failure::Unknown(_))
    }

    /// Whether it says that Calico's datastore is locked, see [`Failure::Locked`].
    pub fn is_locked(&self) -> bool {
        self.failure == Failure::Locked
    }

    /// Whether it says that there is no ledger at all, see [`Failure::NoLedger`].
    pub fn is_no_ledger(&self) -> bool {
        self.failure == Failure::NoLedger
    }

    /// Whether it says that no claim of this cluster is there for it: there is no ledger, it is another cluster's, or
    /// which cluster this is cannot be told.
    pub fn is_none_of_ours(&self) -> bool {
        matches!(self.failure, Failure::NoLedger | Failure::Foreign(_) | Failure::Unidentified(_))
    }
}

/// What a ledger gave; `None` where there is no ledger at all.
pub(crate) fn if_any<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Err(error) if error.is_no_ledger() => Ok(None),
        other => other.map(Some),
    }
}

/// What a ledger gave; `None` where it has nothing of this cluster's to give, for calls that have to go on all the same:
/// a DEL must not wait for a configuration to be corrected.
pub(crate) fn if_ours<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Err(error) if error.is_none_of_ours() => {
            if !error.is_no_ledger() {
                tracing::warn!(%error, "going on without the claims in etcd");
            }
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// "ipamblocks 10-244-0-192-26": how an object is named in errors.
pub(crate) fn describe<K: Object>(name: &str) -> String {
    format!("{} {name}", K::plural(&()))
}

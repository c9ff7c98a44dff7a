//! Runs decisions: reads what they need, asks the pure core, writes what it says.
//!
//! The order of writes keeps I3 (an answer is on record before it is given) and makes every crash harmless:
//! ADD writes claim, reservation, handle, block; DEL writes block, claim, handle. The handle goes first and
//! leaves last, because it is the only record by which a container's leftovers can be found again.
//! Objects are written through [`converge`], the one retry loop for them, and everything through the gate that knows
//! whether Calico's datastore is locked ([`crate::store::gated`]).
//!
//! Where records disagree, the block's entry counts more than the claim: see [`displace`].

mod add;
mod adopt;
mod block;
mod check;
mod claims;
mod commit;
mod converge;
mod displace;
pub mod edit;
mod error;
mod gate;
mod gc;
mod handle;
mod machine;
mod mend;
mod observer;
mod place;
mod release;
mod reservation;
mod searches;
mod snapshot;
mod status;
mod undo;
mod wants;
mod withdraw;

use std::net::IpAddr;
use std::sync::Arc;

use calico::IPAMHandle;
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::add::Assigned;
pub use self::adopt::{BY_HAND, NotClaimed, Wanted};
pub use self::check::Unrecorded;
pub(crate) use self::claims::ONE_ATTACHMENT;
pub use self::claims::{Blocked, Handover, Impasse};
pub(crate) use self::claims::{is_held_by, is_holders};
use self::commit::Queues;
pub use self::error::Error;
pub use self::gate::{Gate, Open, Pass, Trace};
pub use self::gc::Collected;
pub(crate) use self::mend::Lost;
pub use self::observer::{Observer, Silent};
pub use self::place::{Apart, Exhaustion};
pub use self::release::Freed;
pub use self::reservation::LEDGERS_ANNOTATION;
pub(crate) use self::reservation::{
    any_claimed_elsewhere, as_written, claimed_elsewhere, is_own_reservation, reservation_name, reserved_addresses,
    unmarked,
};
pub use self::snapshot::UnmetPool;
pub(crate) use self::snapshot::{check_coverage, node_state, pod_state, state_of};
pub use self::withdraw::{ClaimFate, NotWithdrawn, Shown};

use crate::claim::{Claim, Policy};
use crate::netconf::NetConf;
use crate::store::{DatastoreGate, Gated, Ledger, LiveGate, Objects, StoreError};

/// Key in an allocation's `secondary` attributes that marks a fixed address; its value is the claim's generation.
pub const CLAIM_KEY: &str = "kube-ipam.claim";
/// Key in an allocation's `secondary` attributes that marks one made for a pod before its container was known;
/// its value is the pod's UID. A handle that bears it as an annotation is one of ours, whatever its id.
pub const POD_UID_KEY: &str = "kube-ipam.pod-uid";

/// Key in the attributes of a container's allocation: the UID of its pod, so that a later pod of the same name is not
/// taken for it.
pub const CONTAINERS_POD_KEY: &str = "kube-ipam.container-of";
/// Key in the same attributes: the container that has the address by now, once a later write has noted it.
pub const CONTAINER_KEY: &str = "kube-ipam.container";

/// Takes over the deletion of a handle that nothing is recorded under any more, to be done by
/// [`Driver::finish_handle`]; false if it cannot.
pub type DropLater = dyn Fn(&IPAMHandle) -> bool + Send + Sync;
/// Key in an allocation's `secondary` attributes that names the interface: with it a container's attachments
/// are told apart, which Calico's handles do not do. Calico's own readers skip keys that they do not know.
pub const INTERFACE_KEY: &str = "kube-ipam.interface";

/// Runs decisions against a store of objects and, where one is configured, a ledger. Both are behind one gate: a
/// driver that could write while Calico's datastore is locked cannot be made.
#[derive(Clone)]
pub struct Driver<O, L> {
    objects: O,
    ledger: Option<L>,
    datastore: Arc<dyn DatastoreGate>,
    clock: fn() -> Timestamp,
    queues: Arc<Queues>,
    gate: Arc<dyn Gate>,
    /// Where handles go that are to be deleted after the answer; none: they are deleted before it.
    drop_later: Option<Arc<DropLater>>,
    observer: Arc<dyn Observer>,
}

/// A driver over stores as their makers know them: it puts them behind the gate itself.
pub type GatedDriver<O, L> = Driver<Gated<O>, Gated<L>>;

/// One container's attachment, and everything that the runtime and the config say about it.
#[derive(Clone, Copy)]
pub struct Attachment<'a> {
    /// The plugin's configuration.
    pub net: &'a NetConf,
    /// Container id of the sandbox; empty while the address is taken ahead of it.
    pub container_id: &'a str,
    /// Interface inside it.
    pub interface: &'a str,
    /// The pod, unless the container is none of Kubernetes'.
    pub pod: Option<PodRef<'a>>,
    /// This node's name, as Calico knows it.
    pub node: &'a str,
    /// Addresses asked for by `IP=` in CNI_ARGS (calico-ipam's dialect only).
    pub explicit: &'a [IpAddr],
    /// For a DEL: whether no later sandbox of the same pod is known on this node. What was put on record for
    /// the pod before it had a container goes with its last sandbox only.
    pub last_sandbox: bool,
    /// For an ADD: whether a release of what it may find on record was begun and may still take effect. Then that is
    /// written anew before it is answered, so that such a write comes too late.
    pub anew: bool,
    /// Whether the runtime has given this container up in the meantime (a DEL arrived).
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// When an answer must have been given, waiting for a holder not counted.
    pub deadline: Instant,
    /// When a held fixed address may pass on without a DEL.
    pub policy: Policy,
}

/// The pod that a container belongs to.
#[derive(Debug, Clone, Copy)]
pub struct PodRef<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// UID, if the runtime passes it.
    pub uid: Option<&'a str>,
}

// === impl Driver ===

impl<O: Objects, L: Ledger> Driver<Gated<O>, Gated<L>> {
    /// A driver over the stores; `clock` is read for records and graces only. Before it writes it looks whether
    /// Calico's datastore is locked, at most once in two seconds.
    pub fn new(objects: O, ledger: Option<L>, clock: fn() -> Timestamp) -> Self
    where
        O: Clone + 'static,
    {
        let datastore = Arc::new(LiveGate::new(objects.clone()));
        Self::behind(datastore, objects, ledger, clock)
    }

    /// The same with a gate that others ask, too.
    pub fn behind(datastore: Arc<dyn DatastoreGate>, objects: O, ledger: Option<L>, clock: fn() -> Timestamp) -> Self {
        let (queues, gate, observer) = (Arc::default(), Arc::new(Open), Arc::new(Silent));
        let objects = Gated::new(objects, datastore.clone());
        let ledger = ledger.map(|ledger| Gated::new(ledger, datastore.clone()));
        Self { objects, ledger, datastore, clock, queues, gate, drop_later: None, observer }
    }

    /// The same driver on another ledger; its writers of blocks are one queue with this one's.
    pub fn on_ledger(&self, ledger: Option<L>) -> Self
    where
        O: Clone,
    {
        let ledger = ledger.map(|ledger| Gated::new(ledger, self.datastore.clone()));
        Self {
            objects: self.objects.clone(),
            ledger,
            datastore: self.datastore.clone(),
            clock: self.clock,
            queues: self.queues.clone(),
            gate: self.gate.clone(),
            drop_later: self.drop_later.clone(),
            observer: self.observer.clone(),
        }
    }
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Says whether a write could begin now.
    ///
    /// # Errors
    /// [`Failure::Locked`](crate::store::Failure::Locked) while Calico's datastore is locked; else why that could
    /// not be found out.
    pub async fn may_write(&self) -> Result<(), StoreError> {
        self.datastore.may_write().await
    }

    /// Says whether an address could be given now.
    ///
    /// # Errors
    /// As for [`Driver::may_write`], and if Calico is older than any that is supported.
    pub async fn may_assign(&self) -> Result<(), StoreError> {
        self.datastore.may_assign().await
    }

    /// The same driver, with a turnstile that orders this node's processes where they write blocks, so that
    /// they need not retry against each other.
    pub fn gated(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate, ..self }
    }

    /// The same driver, which hands the deletion of a released container's handle over.
    pub fn dropping_later(self, later: Arc<DropLater>) -> Self {
        Self { drop_later: Some(later), ..self }
    }

    /// The same driver, which tells of its work while it is at it.
    pub fn observed(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer, ..self }
    }

    /// The store of objects.
    pub fn objects(&self) -> &O {
        &self.objects
    }

    /// The ledger, if one is configured.
    pub fn ledger(&self) -> Option<&L> {
        self.ledger.as_ref()
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

// === impl Attachment ===

impl<'a> Attachment<'a> {
    /// The id under which Calico records this container's addresses.
    pub fn handle(&self) -> String {
        match self.pod {
            Some(pod) if self.is_ahead() => pod.handle(),
            _ => handle_of(&self.net.network, self.container_id),
        }
    }

    /// The same pod before it has a container.
    pub fn ahead(&self) -> Self {
        Self { container_id: "", interface: "", ..*self }
    }

    /// Whether a claim names this container, or this pod while there is none, as its holder.
    fn is_holder(&self, claim: &Claim) -> bool {
        if self.is_ahead() {
            let uid = self.pod.and_then(|p| p.uid);
            return claim.holder.as_ref().is_some_and(|h| Some(h.pod_uid.as_str()) == uid);
        }
        claim.is_held_by(self.container_id, self.interface)
    }

    /// Whether the pod's address is put on record before a container is known.
    pub fn is_ahead(&self) -> bool {
        self.container_id.is_empty()
    }
}

// === impl PodRef ===

impl PodRef<'_> {
    /// `<namespace>.<pod>`, the handle by which Calico's plugin gives back what is recorded for no container.
    pub fn handle(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }
}

/// `<network>.<containerID>`, Calico's form.
pub(crate) fn handle_of(network: &str, container_id: &str) -> String {
    format!("{network}.{container_id}")
}

/// A single address as the CIDR that holds nothing else.
pub(crate) fn host_cidr(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

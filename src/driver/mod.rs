//! Runs decisions: reads what they need, asks the pure core, writes what it says.
//!
//! The order of writes keeps I3 (an answer is on record before it is given) and makes every crash harmless:
//! ADD writes claim, reservation, handle, block; DEL writes block, claim, handle. The handle goes first and
//! leaves last, because it is the only record by which a container's leftovers can be found again.
//! All writes pass through [`converge`], the one retry loop.

mod add;
mod block;
mod check;
mod claims;
mod converge;
mod error;
mod gate;
mod gc;
mod handle;
mod mend;
mod place;
mod release;
mod reservation;
mod snapshot;
mod status;
mod withdraw;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use tokio::time::Instant;

pub use self::add::Assigned;
pub use self::check::Unrecorded;
pub(crate) use self::claims::is_holders;
pub use self::claims::{Blocked, Impasse};
pub use self::error::Error;
pub use self::gate::{Gate, Open, Pass};
pub use self::gc::Collected;
pub use self::place::Exhaustion;
pub use self::release::Freed;
pub(crate) use self::reservation::{is_own_reservation, reservation_name};
pub use self::snapshot::UnmetPool;
pub(crate) use self::snapshot::{node_state, pod_state};
pub use self::withdraw::{ClaimFate, NotWithdrawn, Shown};

use crate::claim::Policy;
use crate::netconf::NetConf;
use crate::store::{Ledger, Objects};

/// Key in an allocation's `secondary` attributes that marks a fixed address; its value is the claim's generation.
pub const CLAIM_KEY: &str = "kube-ipam.claim";
/// Key in an allocation's `secondary` attributes that marks one made for a pod before its container was known;
/// its value is the pod's UID. A handle that bears it as an annotation is one of ours, whatever its id.
pub const POD_UID_KEY: &str = "kube-ipam.pod-uid";

/// Runs decisions against a store of objects and, where one is configured, a ledger.
#[derive(Clone)]
pub struct Driver<O, L> {
    objects: O,
    ledger: Option<L>,
    clock: fn() -> Timestamp,
}

/// One container's attachment, and everything that the runtime and the config say about it.
pub struct Attachment<'a> {
    /// The plugin's configuration.
    pub net: &'a NetConf,
    /// Container id of the sandbox.
    pub container_id: &'a str,
    /// Interface inside it.
    pub interface: &'a str,
    /// The pod, unless the container is none of Kubernetes'.
    pub pod: Option<PodRef<'a>>,
    /// This node's name, as Calico knows it.
    pub node: &'a str,
    /// Addresses asked for by `IP=` in CNI_ARGS (calico-ipam's dialect only).
    pub explicit: &'a [IpAddr],
    /// Whether the runtime has given this container up in the meantime (a DEL arrived).
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Orders this node's writers of blocks, so that they need not retry against each other.
    pub gate: &'a dyn Gate,
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

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// A driver over the stores; `clock` is read for records and graces only.
    pub fn new(objects: O, ledger: Option<L>, clock: fn() -> Timestamp) -> Self {
        Self { objects, ledger, clock }
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

impl Attachment<'_> {
    /// The id under which Calico records this container's addresses.
    pub fn handle(&self) -> String {
        handle_of(&self.net.network, self.container_id)
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

//! Judges the whole live state: what Calico's objects, the claims, the pods and the nodes say of each other.
//!
//! Pure but for [`read`]: [`audit`] takes a [`Snapshot`] and gives every breach of a named invariant in it,
//! writing nothing. It owns I1, I2, I3, I7, I8 and I9 over pods and claims; I4, I5 and I6 are judged by
//! [`calico::invariants`]. On a live cluster the lists of a snapshot are read one after the other while others
//! write: take two snapshots and believe what is in both, see [`persisting`].

mod claims;
mod migration;
mod objects;
pub(crate) mod party;
pub(crate) mod pods;
pub(crate) mod read;
mod rules;
pub(crate) mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use calico::invariants::Invariant;
use calico::{ApiGroup, BlockAffinity, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Serialize;

pub use self::read::{Reading, read};

use self::view::View;
use crate::claim::Claim;
use crate::netconf::NetConf;
use crate::pod::Owner;
use crate::store::Versioned;

/// Everything that is judged, as it was read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// All blocks.
    pub blocks: Vec<IPAMBlock>,
    /// All handles.
    pub handles: Vec<IPAMHandle>,
    /// All block affinities.
    pub affinities: Vec<BlockAffinity>,
    /// All pools.
    pub pools: Vec<IPPool>,
    /// All reservations, ours and others'.
    pub reservations: Vec<IPReservation>,
    /// Calico's configuration, if there is one.
    pub config: Option<IPAMConfig>,
    /// All pods.
    pub pods: Vec<Pod>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All claims of the network; `None` if they were not looked at, and then nothing is said about them.
    pub claims: Option<Vec<Versioned<Claim>>>,
    /// Which owners of claims exist, and which virtual machines; one that is not listed was not looked for.
    pub owners: BTreeMap<Owner, bool>,
    /// The API group of Calico's objects, for what a person is told to type.
    pub group: ApiGroup,
    /// What the newer group holds without a migration, as `<kind>/<name>`, while the older one is in use.
    pub early: Vec<String>,
    /// The network's configuration, if it is known: only then can a random address be outside of its range.
    pub net: Option<NetConf>,
}

/// What kind of breach it is: finer than the invariant, and stable for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Two blocks hold the same address, or a block has a name nobody looks for.
    BlocksOverlap,
    /// Two live pods have one address.
    SharedAddress,
    /// A live pod has an address that its block records for another.
    OthersAddress,
    /// Claim, block and pod do not agree on who holds a fixed address.
    ClaimDisagrees,
    /// A fixed address is held by a pod of another owner.
    ForeignHolder,
    /// A claim's holder is a pod that is gone, though one of its name runs.
    HolderGone,
    /// A block says that an address is fixed, and there is no claim on it.
    FixedWithoutClaim,
    /// A claimed address that Calico's automatic assignment is not kept from.
    ClaimNotReserved,
    /// A live pod has an address of a pool that no block records.
    Unrecorded,
    /// A handle does not count the allocations that bear it.
    HandleCount,
    /// A block contradicts itself.
    BlockShape,
    /// A confirmed affinity and its block do not agree.
    AffinityMismatch,
    /// An affinity that stayed on its way in or out.
    HalfDoneAffinity,
    /// An allocation or claim outside of every pool.
    OutsidePools,
    /// A subnet of the network's configuration that no pool covers: no pod gets an address.
    SubnetWithoutPool,
    /// An address that the network's configuration does not permit.
    OutsideRange,
    /// Few addresses are left for random assignment.
    RangeNearlyFull,
    /// An allocation whose user does not exist any more.
    Leak,
    /// An object marked deleted that was not deleted.
    DeletedLeftover,
    /// An entry of our reservations that no claim accounts for.
    ReservationWithoutClaim,
    /// A pod with a fixed annotation that has another address.
    WrongFixed,
    /// A claim whose owner does not exist any more: lawful, but worth knowing.
    OwnerGone,
    /// An object of the newer API group that is there before its time: a migration takes it for a conflict.
    Early,
    /// A handle whose id has capitals: a migration cannot copy it.
    HandleCase,
}

/// One breach, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Violation {
    /// The invariant.
    pub invariant: Invariant,
    /// What kind of breach.
    pub class: Class,
    /// The object, as `<kind>/<name>`.
    pub object: String,
    /// What is wrong with it.
    pub detail: String,
    /// What a person can do.
    pub remedy: String,
}

/// Every violation in the snapshot, without repetition and in order: what keeps all pods from starting comes first. What
/// only follows from another one is not said.
pub fn audit(snapshot: &Snapshot) -> Vec<Violation> {
    let view = View::of(snapshot);
    let mut found = objects::violations(snapshot);
    found.extend(pods::violations(&view));
    found.extend(rules::violations(&view));
    found.extend(claims::violations(&view));
    found.sort_by(|a, b| (a.class != Class::SubnetWithoutPool, a).cmp(&(b.class != Class::SubnetWithoutPool, b)));
    found.dedup();
    found
}

/// What the elected agent sets right without anybody's help, in the words of a remedy.
fn by_itself(otherwise: &str) -> String {
    format!("mends itself within minutes while an agent with --collect runs; without one: {otherwise}")
}

/// What is lawful and still worth a look: claims that outlive their owners, ranges that are nearly full, and what would hold
/// up a migration of Calico's to its newer API group.
pub fn notes(snapshot: &Snapshot) -> Vec<Violation> {
    let mut found = claims::notes(snapshot);
    found.extend(rules::notes(snapshot));
    found.extend(migration::notes(snapshot));
    found.sort();
    found
}

/// The violations that are in both results: what was no step of a writer at work.
pub fn persisting(earlier: &[Violation], later: &[Violation]) -> Vec<Violation> {
    let earlier: BTreeSet<_> = earlier.iter().collect();
    later.iter().filter(|violation| earlier.contains(violation)).cloned().collect()
}

// === impl Class ===

impl Class {
    /// The invariant that it breaches.
    pub fn invariant(self) -> Invariant {
        match self {
            Self::BlocksOverlap | Self::SharedAddress | Self::OthersAddress => Invariant::I1,
            Self::ClaimDisagrees
            | Self::ForeignHolder
            | Self::HolderGone
            | Self::FixedWithoutClaim
            | Self::ClaimNotReserved
            | Self::OwnerGone => Invariant::I2,
            Self::Unrecorded => Invariant::I3,
            Self::HandleCount | Self::HandleCase => Invariant::I4,
            Self::BlockShape => Invariant::I5,
            Self::AffinityMismatch | Self::HalfDoneAffinity => Invariant::I6,
            Self::OutsidePools | Self::SubnetWithoutPool | Self::OutsideRange | Self::RangeNearlyFull => Invariant::I7,
            Self::Leak | Self::DeletedLeftover | Self::ReservationWithoutClaim | Self::Early => Invariant::I8,
            Self::WrongFixed => Invariant::I9,
        }
    }
}

// === impl Violation ===

impl Violation {
    fn new(class: Class, object: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (object, detail, remedy) = (object.into(), detail.into(), remedy.into());
        Self { invariant: class.invariant(), class, object, detail, remedy }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}; {}", self.invariant, self.object, self.detail, self.remedy)
    }
}

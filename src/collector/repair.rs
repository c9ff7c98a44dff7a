//! What was repaired, described well enough for a log line, a counter and an Event.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{Filling, Notice};
use crate::claim::Claim;
use crate::store::{StoreError, Versioned};

/// The kinds of repair; the label of their counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A holder's pod has ended while its node is Ready, or has another address: the grace was started.
    HolderContested,
    /// A claim's holder lost the address by the rules; the claim stays with its owner.
    HolderCleared,
    /// A claim that contradicted its block's entry, or was lost, was rewritten from that entry; or one that belonged to a
    /// controller which its pod had before follows the pod.
    ClaimMended,
    /// The owner of a claim that nobody holds is gone, or does not ask for it: the grace was started.
    OwnerMissed,
    /// The owner is there or asks for it again, or a pod holds the claim: the grace was ended.
    OwnerFound,
    /// A claim whose owner is gone, or did not ask for it, was dropped, with its reservation.
    ClaimDropped,
    /// An allocation that no pod uses was freed.
    AllocationFreed,
    /// An address that a running pod has and no block recorded was recorded for it again.
    AllocationRestored,
    /// A claimed address was put into an IPReservation.
    ReservationAdded,
    /// An address without claim was taken out of our IPReservation.
    ReservationRemoved,
    /// An IPReservation was made to say in which ledger its addresses are claimed.
    ReservationMarked,
    /// A handle that counts nothing, or whose deletion had begun, was deleted.
    HandleRemoved,
    /// A handle was made to count what the blocks bear.
    HandleCorrected,
    /// An affinity that leads nowhere, or whose deletion had begun, was deleted.
    AffinityRemoved,
    /// An affinity that stayed half done was confirmed, as its block says the same.
    AffinityConfirmed,
    /// An affinity was made for a block that names a node as its owner and had none.
    AffinityRestored,
    /// An affinity was labelled, so that its node finds it: writers before Calico v3.31 gave no labels.
    AffinityLabelled,
    /// A block whose deletion had begun was deleted.
    BlockRemoved,
    /// An empty block of a node that is gone was released, with its affinity.
    BlockReleased,
}

/// A pod by name; its UID where one is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: Option<String>,
}

/// One repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// What kind.
    pub kind: Kind,
    /// The object, as `<kind>/<name>`: what it is called in an audit.
    pub object: String,
    /// What was wrong with it, as the end of a sentence that begins with the object.
    pub detail: String,
    /// The pod it concerns, which may be gone.
    pub pod: Option<PodName>,
    /// The node it concerns, which may be gone.
    pub node: Option<String>,
}

/// A repair that did not succeed; a later round tries again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// What was to be done.
    pub repair: Repair,
    /// Why it was not.
    pub error: String,
}

/// What came of one round.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What was repaired, in order.
    pub repairs: Vec<Repair>,
    /// What a store kept from being repaired.
    pub failed: Vec<Failed>,
    /// What looked wrong, but was not any more when it was read again.
    pub moot: Vec<Repair>,
    /// What has not been as it is for long enough.
    pub waiting: BTreeMap<Kind, usize>,
    /// What could not be read; nothing that depends on it was touched.
    pub unread: Vec<StoreError>,
    /// The claims of the network as they were when the round began; `None` without a ledger that could be read.
    pub claims: Option<Claims>,
    /// Pods whose annotation is not kept, and that no earlier report named.
    pub notices: Vec<Notice>,
    /// Ranges that are nearly full, which was not said in the last hour.
    pub filling: Vec<Filling>,
    /// How long it took to read everything.
    pub read_in: Duration,
    /// Whether the round ended early because it might not go on.
    pub interrupted: bool,
}

/// How many claims there are, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claims {
    /// A pod has the address.
    pub held: usize,
    /// A pod has it that is gone, while its node may still release it.
    pub contested: usize,
    /// The owner has it, and no pod.
    pub idle: usize,
}

// === impl Claims ===

impl Claims {
    /// Counts.
    pub fn of(claims: &[Versioned<Claim>]) -> Self {
        let mut counts = Self::default();
        for claim in claims.iter().map(|claim| &claim.value) {
            match (&claim.holder, claim.contested) {
                (None, _) => counts.idle += 1,
                (Some(_), None) => counts.held += 1,
                (Some(_), Some(_)) => counts.contested += 1,
            }
        }
        counts
    }
}

// === impl Kind ===

impl Kind {
    /// All kinds, for counters that start at zero.
    pub const ALL: [Self; 19] = [
        Self::HolderContested,
        Self::HolderCleared,
        Self::ClaimMended,
        Self::OwnerMissed,
        Self::OwnerFound,
        Self::ClaimDropped,
        Self::AllocationFreed,
        Self::AllocationRestored,
        Self::ReservationAdded,
        Self::ReservationRemoved,
        Self::ReservationMarked,
        Self::HandleRemoved,
        Self::HandleCorrected,
        Self::AffinityRemoved,
        Self::AffinityConfirmed,
        Self::AffinityRestored,
        Self::AffinityLabelled,
        Self::BlockRemoved,
        Self::BlockReleased,
    ];

    /// As a label: `holder_cleared`.
    pub fn label(self) -> &'static str {
        match self {
            Self::HolderContested => "holder_contested",
            Self::HolderCleared => "holder_cleared",
            Self::ClaimMended => "claim_mended",
            Self::OwnerMissed => "owner_missed",
            Self::OwnerFound => "owner_found",
            Self::ClaimDropped => "claim_dropped",
            Self::AllocationFreed => "allocation_freed",
            Self::AllocationRestored => "allocation_restored",
            Self::ReservationAdded => "reservation_added",
            Self::ReservationRemoved => "reservation_removed",
            Self::ReservationMarked => "reservation_marked",
            Self::HandleRemoved => "handle_removed",
            Self::HandleCorrected => "handle_corrected",
            Self::AffinityRemoved => "affinity_removed",
            Self::AffinityConfirmed => "affinity_confirmed",
            Self::AffinityRestored => "affinity_restored",
            Self::AffinityLabelled => "affinity_labelled",
            Self::BlockRemoved => "block_removed",
            Self::BlockReleased => "block_released",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.kind, self.object, self.detail)
    }
}

// === impl Report ===

impl Report {
    /// How many repairs of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for repair in &self.repairs {
            *counts.entry(repair.kind).or_default() += 1;
        }
        counts
    }
}

//! What one container wants done to a block, as plain data: an edit is made on whatever the block says at the
//! moment, and again if the write lost a race, so it recognises its own work.

use std::collections::BTreeMap;
use std::net::IpAddr;

use calico::{
    Affinity, AllocationAttribute, AssignError, Entry, Holder as Allocation, IPAMBlockSpec, IPAMHandle, Reservations,
};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::machine::Sides;
use super::release::Freed;
use super::{CLAIM_KEY, CONTAINER_KEY, Error, INTERFACE_KEY, POD_UID_KEY};
use crate::range::RangeSet;

/// A change to one block.
pub enum Edit {
    /// An address for a container.
    Assign(Box<Assign>),
    /// Everything that a container has.
    Release(Release),
    /// Which pods of a virtual machine have its addresses.
    Sides(Sides),
}

/// An address to be given out.
pub struct Assign {
    /// Which one.
    pub which: Which,
    /// Who gets it.
    pub allocation: Allocation,
    /// The node's affinity.
    pub ours: Affinity,
    /// Whether other nodes' blocks are out of bounds.
    pub strict: bool,
    /// `ipCooldownSeconds`.
    pub cooldown: i64,
    /// Whether an entry that the container has already is written anew.
    pub renews: bool,
    /// The entry of another container that the rules for a holder let go, if there is one. No other is displaced.
    pub displaces: Option<Judged>,
    /// The configured ranges of the family, if there are any.
    pub ranges: Option<RangeSet>,
    /// What automatic assignment leaves alone.
    pub reservations: Reservations,
}

/// A block's entry that was judged: the handle that it bears, and the block's sequence number at its assignment, so that
/// a later entry of the same address is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The handle.
    pub handle: Option<String>,
    /// The sequence number; `None` in blocks of old writers.
    pub sequence: Option<i64>,
}

/// Which address.
#[derive(Clone, Copy)]
pub enum Which {
    /// This one; the claim's generation if it is a fixed one.
    Exactly(IpAddr, Option<u64>),
    /// Any permitted one; whether the block must be the node's own.
    Any {
        /// Whether it must be.
        own: bool,
    },
}

/// Addresses to be given back.
pub struct Release {
    /// The handle that they bear.
    pub handle: String,
    /// Whose among them.
    pub whose: Whose,
    /// `ipCooldownSeconds`.
    pub cooldown: i64,
    /// What the last attempt was to release.
    attempted: Vec<Freed>,
    /// What attempts without an answer may have released is gone at the next look, so it is remembered.
    unanswered: Vec<Freed>,
    others: bool,
}

/// Whose allocations a release means, among those that bear the handle.
#[derive(Debug, Clone)]
pub enum Whose {
    /// A container's own handle; entries that are recorded for another interface than this are not meant.
    Container {
        /// `None` means those of every interface.
        interface: Option<String>,
    },
    /// A container's own handle of any interface; entries that were made after this time are not meant.
    Before(Timestamp),
    /// A virtual machine's; entries with a pod on a side are not meant.
    Vacant,
    /// A pod's, which were put on record before a container was known; see [`super::Attachment::is_ahead`].
    Pod {
        /// `None` if the runtime does not say.
        uid: Option<String>,
        /// The container that goes; `None` gives the pod's address back whichever container has it.
        container: Option<String>,
    },
}

/// What came of an edit.
#[derive(Debug)]
pub enum Outcome {
    /// The address is in the block for this container.
    Assigned {
        /// The address.
        address: IpAddr,
        /// The handle of the superseded holder it was taken from.
        displaced: Option<String>,
    },
    /// No permitted address is free in it, or it is not the node's own any more.
    Full,
    /// These were given back.
    Released {
        /// Which.
        freed: Vec<Freed>,
        /// Whether the handle bears entries of others in this block.
        others: bool,
    },
    /// What a virtual machine has in the block.
    Sides {
        /// Its addresses.
        addresses: Vec<IpAddr>,
        /// Whether a pod is on a side of one of them.
        occupied: bool,
    },
}

// === impl Edit ===

impl Edit {
    pub(super) fn cooldown(&self) -> i64 {
        match self {
            Self::Assign(assign) => assign.cooldown,
            Self::Release(release) => release.cooldown,
            Self::Sides(sides) => sides.cooldown,
        }
    }

    /// Whether the write of its last attempt was refused, or got no answer.
    pub(super) fn heard(&mut self, refused: bool) {
        if let Self::Release(release) = self {
            let attempted = std::mem::take(&mut release.attempted);
            release.unanswered.extend(attempted.into_iter().filter(|_| !refused));
        }
    }

    /// Whether it gives back what is on record for the pod of this UID.
    pub(super) fn releases_pod(&self, of: &str) -> bool {
        matches!(self, Self::Release(Release { whose: Whose::Pod { uid, .. }, .. }) if uid.as_deref().is_none_or(|uid| uid == of))
    }

    /// Makes the edit on a block that is valid and collected. Whether it changed anything, and what came of
    /// it; a refusal changes nothing.
    pub fn apply(&mut self, block: &mut IPAMBlockSpec, now: Timestamp) -> (bool, Result<Outcome, Error>) {
        match self {
            Self::Assign(assign) => assign.apply(block),
            Self::Release(release) => (release.apply(block, now), Ok(release.outcome())),
            Self::Sides(sides) => {
                let changed = sides.apply(block);
                (changed, Ok(sides.outcome(block)))
            }
        }
    }

    /// What comes of it where there is no block: it was empty, or it would be there.
    pub(super) fn without_block(&self) -> Outcome {
        match self {
            Self::Assign(_) => Outcome::Full,
            Self::Release(release) => release.outcome(),
            Self::Sides(_) => Outcome::Sides { addresses: Vec::new(), occupied: false },
        }
    }
}

impl Assign {
    fn apply(&self, block: &mut IPAMBlockSpec) -> (bool, Result<Outcome, Error>) {
        if let Some(address) = self.recorded_in(block) {
            return self.keep(block, address);
        }
        let strict = self.strict.then_some(&self.ours);
        match self.which {
            Which::Exactly(address, generation) => {
                let mut changed = block.clone();
                let displaced = give_way(&mut changed, address, generation, self.displaces.as_ref());
                match changed.assign(address, &self.allocation, strict) {
                    Ok(()) => {
                        *block = changed;
                        (true, Ok(Outcome::Assigned { address, displaced }))
                    }
                    Err(error) => (false, Err(refused(error, block.cidr))),
                }
            }
            Which::Any { own } => {
                let must_own = own.then_some(&self.ours).or(strict);
                match block.assign_first(|a| self.permits(a), &self.allocation, must_own) {
                    Ok(Some(address)) => (true, Ok(Outcome::Assigned { address, displaced: None })),
                    Ok(None) | Err(AssignError::ForeignBlock { .. }) => (false, Ok(Outcome::Full)),
                    Err(error) => (false, Err(refused(error, block.cidr))),
                }
            }
        }
    }

    fn keep(&self, block: &mut IPAMBlockSpec, address: IpAddr) -> (bool, Result<Outcome, Error>) {
        if self.renews {
            let mut renewed = block.clone();
            renewed.vacate(address);
            if let Err(error) = renewed.assign(address, &self.allocation, None) {
                return (false, Err(refused(error, block.cidr)));
            }
            *block = renewed;
        }
        (self.renews, Ok(Outcome::Assigned { address, displaced: None }))
    }

    fn permits(&self, address: IpAddr) -> bool {
        self.ranges.as_ref().is_none_or(|r| r.permits_random(address)) && !self.reservations.covers(address)
    }

    /// The entry that an earlier attempt of this very write left.
    fn recorded_in(&self, block: &IPAMBlockSpec) -> Option<IpAddr> {
        let ours = |entry: &Entry<'_>| {
            matches!(entry, Entry::Used { attribute, .. } if attribute.handle() == Some(self.allocation.handle.as_str())
                && attribute.secondary(POD_UID_KEY) == self.allocation.secondary.get(POD_UID_KEY).map(String::as_str))
        };
        match self.which {
            Which::Exactly(address, _) => ours(&block.entry(address)).then_some(address),
            Which::Any { .. } => block.entries().find(|(_, entry)| ours(entry)).map(|(address, _)| address),
        }
    }
}

impl Release {
    /// Gives back what bears `handle`, as far as it is `whose`.
    pub fn new(handle: &str, whose: Whose, cooldown: i64) -> Self {
        Self {
            handle: handle.to_owned(),
            whose,
            cooldown,
            attempted: Vec::new(),
            unanswered: Vec::new(),
            others: false,
        }
    }

    fn apply(&mut self, block: &mut IPAMBlockSpec, now: Timestamp) -> bool {
        let (handle, whose) = (self.handle.as_str(), &self.whose);
        self.others = block.entries().any(|(_, entry)| {
            matches!(entry, Entry::Used { attribute, .. } if attribute.handle() == Some(handle) && !whose.covers(attribute))
        });
        let released = block.release_matching(handle, |a| whose.covers(a), self.cooldown, now);
        if released.is_empty() {
            return false;
        }
        let freed = |r: calico::Released| Freed { address: r.address, fixed: is_fixed(r.attribute.secondary.as_ref()) };
        self.attempted = released.into_iter().map(freed).collect();
        true
    }

    fn outcome(&self) -> Outcome {
        let mut freed = self.attempted.clone();
        freed.extend(self.unanswered.iter().filter(|before| !self.attempted.contains(before)).cloned());
        Outcome::Released { freed, others: self.others }
    }
}

// === impl Judged ===

impl Judged {
    /// The entry as it stands.
    pub fn new(attribute: &AllocationAttribute, sequence: Option<i64>) -> Self {
        Self { handle: attribute.handle().map(str::to_owned), sequence }
    }

    fn is(&self, attribute: &AllocationAttribute, sequence: Option<i64>) -> bool {
        self.handle.as_deref() == attribute.handle() && self.sequence == sequence
    }
}

// === impl Whose ===

impl Whose {
    /// Whether a handle of the pod's name says that it is of another pod, by its UID.
    pub(super) fn is_other_pods(&self, handle: &IPAMHandle) -> bool {
        let Self::Pod { uid: Some(uid), .. } = self else { return false };
        handle.annotations().get(POD_UID_KEY).is_some_and(|of| of != uid)
    }

    pub(super) fn covers(&self, attribute: &AllocationAttribute) -> bool {
        let (uid, container) = match self {
            Self::Container { interface } => {
                let recorded = attribute.secondary(INTERFACE_KEY);
                return recorded.is_none() || interface.as_deref().is_none_or(|i| recorded == Some(i));
            }
            Self::Vacant => return attribute.is_vacant(),
            // Written like this, times sort as they read.
            Self::Before(time) => {
                return attribute
                    .secondary("timestamp")
                    .is_none_or(|made| made <= calico::holder::timestamp(*time).as_str());
            }
            Self::Pod { uid, container } => (uid, container),
        };
        let Some(of) = attribute.secondary(POD_UID_KEY) else {
            // Very old releases of Calico wrote this form of handle, for whatever container the pod had.
            return container.is_some();
        };
        let noted = attribute.secondary(CONTAINER_KEY);
        uid.as_deref().is_none_or(|uid| uid == of)
            && container.as_deref().is_none_or(|c| noted.is_none_or(|noted| noted == c))
    }
}

/// Makes room for the claim's holder. A cooldown does not keep an address from its owner. An entry gives way if it is
/// the one that was judged, and of an earlier generation of the claim: one of a later generation belongs to a pod that
/// has superseded this one. Gives the old handle.
fn give_way(
    block: &mut IPAMBlockSpec,
    address: IpAddr,
    generation: Option<u64>,
    displaces: Option<&Judged>,
) -> Option<String> {
    let generation = generation?;
    let old = match block.entry(address) {
        Entry::Cooling { .. } => None,
        Entry::Used { attribute, sequence } => {
            let theirs = generation_of(attribute)?;
            if theirs >= generation || !displaces?.is(attribute, sequence) {
                return None;
            }
            attribute.handle().map(str::to_owned)
        }
        _ => return None,
    };
    block.vacate(address);
    old
}

/// The generation of the claim under which an allocation was made; `None` if it is not a fixed one of ours.
pub(super) fn generation_of(attribute: &AllocationAttribute) -> Option<u64> {
    attribute.secondary(CLAIM_KEY)?.parse().ok()
}

fn refused(error: AssignError, block: IpNetwork) -> Error {
    match error {
        AssignError::Taken { address, by } => Error::Taken { address, by },
        AssignError::Corrupt(reason) => Error::Damaged { block, reason },
        other => Error::Assign(other),
    }
}

/// Whether an allocation's attributes say that its address is a fixed one.
pub(super) fn is_fixed(secondary: Option<&BTreeMap<String, String>>) -> bool {
    secondary.is_some_and(|s| s.contains_key(CLAIM_KEY))
}

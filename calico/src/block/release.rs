//! Release of addresses, their cooldown, and the collection of what is over.
//!
//! A released address bears an attribute with only the time of release. Whoever uses the block next returns
//! it to the free ones once the cooldown is over. Releases work on malformed blocks too: they are the way out.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};

use super::{AllocationAttribute, Entry, IPAMBlockSpec, wire_time};
use crate::names;

/// An address that was released, and who had it.
#[derive(Debug, Clone, PartialEq)]
pub struct Released {
    /// The address.
    pub address: IpAddr,
    /// Who had it. Its handle is to be counted down.
    pub attribute: AllocationAttribute,
}

/// What the caller believes of the allocation it releases; `None` is no opinion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expect {
    /// Handle id of the holder.
    pub handle: Option<String>,
    /// Sequence number of the block at the assignment.
    pub sequence: Option<i64>,
}

/// Why an address was not released. The block is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// The address is outside of the block.
    #[error("address {address} is not in block {cidr}")]
    NotInBlock {
        /// The address.
        address: IpAddr,
        /// The block.
        cidr: IpNetwork,
    },
    /// Somebody else has the address by now.
    #[error("address {address} is held under handle {}, not {expected}", found.as_deref().unwrap_or("(none)"))]
    OtherHandle {
        /// The address.
        address: IpAddr,
        /// The handle that was to be released.
        expected: String,
        /// The handle that has the address.
        found: Option<String>,
    },
    /// The address has been released and assigned again since.
    #[error("address {address} was assigned at sequence {}, not {expected}", sequence_text(found))]
    OtherSequence {
        /// The address.
        address: IpAddr,
        /// The sequence number that was to be released.
        expected: i64,
        /// The sequence number of the allocation; `None` in blocks of old writers.
        found: Option<i64>,
    },
    /// The block is malformed: it does not say who has the address.
    #[error("block {cidr} does not say who has {address}: it is malformed")]
    Unreadable {
        /// The address.
        address: IpAddr,
        /// The block.
        cidr: IpNetwork,
    },
}

fn sequence_text(sequence: &Option<i64>) -> String {
    sequence.map_or_else(|| "(none)".to_owned(), |sequence| sequence.to_string())
}

impl IPAMBlockSpec {
    /// Releases every address that bears the handle, in order. Empty, and the block unchanged, if none does:
    /// then nothing is to be written.
    pub fn release_handle(&mut self, handle: &str, cooldown_seconds: i64, now: Timestamp) -> Vec<Released> {
        self.release_matching(handle, |_| true, cooldown_seconds, now)
    }

    /// The same for those among them whose attributes `wanted` accepts.
    pub fn release_matching(
        &mut self,
        handle: &str,
        wanted: impl Fn(&AllocationAttribute) -> bool,
        cooldown_seconds: i64,
        now: Timestamp,
    ) -> Vec<Released> {
        let handle = names::clean_handle(handle);
        let mut ordinals = Vec::new();
        let mut released = Vec::new();
        for ordinal in 0..self.allocations.len() {
            if let Entry::Used { attribute, .. } = self.entry_at(ordinal)
                && attribute.handle() == Some(handle)
                && wanted(attribute)
            {
                ordinals.push(ordinal);
                released.push(Released { address: self.address(ordinal), attribute: attribute.clone() });
            }
        }
        if !released.is_empty() {
            self.cool(&ordinals, now);
            self.collect(cooldown_seconds, now);
        }
        released
    }

    /// Releases one address if it is held as expected. `None`, and the block unchanged, if nobody has it any
    /// more: a repeated release is no error.
    pub fn release_address(
        &mut self,
        address: IpAddr,
        expect: &Expect,
        cooldown_seconds: i64,
        now: Timestamp,
    ) -> Result<Option<Released>, ReleaseError> {
        let cidr = self.cidr;
        let Some(ordinal) = self.ordinal(address) else {
            return Err(ReleaseError::NotInBlock { address, cidr });
        };
        let (attribute, sequence) = match self.entry_at(ordinal) {
            Entry::Free | Entry::Cooling { .. } => return Ok(None),
            Entry::Used { attribute, sequence } => (attribute, sequence),
            Entry::Unreadable | Entry::NotInBlock => {
                return Err(ReleaseError::Unreadable { address, cidr });
            }
        };
        if let Some(expected) = expect.sequence
            && sequence != Some(expected)
        {
            return Err(ReleaseError::OtherSequence { address, expected, found: sequence });
        }
        if let Some(expected) = expect.handle.as_deref().map(names::clean_handle)
            && attribute.handle() != Some(expected)
        {
            let found = attribute.handle().map(str::to_owned);
            return Err(ReleaseError::OtherHandle { address, expected: expected.to_owned(), found });
        }
        let released = Released { address, attribute: attribute.clone() };
        self.cool(&[ordinal], now);
        // As Calico does for a release by address, and only there: a second release that names the old
        // sequence number no longer matches while the address cools.
        self.sequence_number_for_allocation.insert(ordinal.to_string(), self.sequence_number);
        self.collect(cooldown_seconds, now);
        Ok(Some(released))
    }

    /// Frees the addresses whose cooldown is over, and those whose attribute says nothing, and drops the attributes that no allocation uses; true if
    /// that changed anything. Call it on every block that was read, before anything else: what it changed is
    /// written with the next write and is no reason for one.
    pub fn collect(&mut self, cooldown_seconds: i64, now: Timestamp) -> bool {
        let freed = self.free_cooled(cooldown_seconds, now);
        self.drop_unused_attributes() || freed
    }

    fn cool(&mut self, ordinals: &[usize], now: Timestamp) {
        let released_at = Some(wire_time(now));
        let index = self.add_attribute(AllocationAttribute { released_at, ..AllocationAttribute::default() });
        for &ordinal in ordinals {
            if let Some(allocation) = self.allocations.get_mut(ordinal) {
                *allocation = Some(index);
            }
        }
    }

    /// Adds an attribute; gives its index.
    pub(super) fn add_attribute(&mut self, attribute: AllocationAttribute) -> usize {
        let index = self.attributes.len();
        // In a malformed block an allocation may name the attribute that is about to exist: it must not come
        // to mean this one, for nobody knows whose it is.
        for dangling in self.allocations.iter_mut().flatten().filter(|named| **named >= index) {
            *dangling = dangling.saturating_add(1);
        }
        self.attributes.push(attribute);
        index
    }

    fn free_cooled(&mut self, cooldown_seconds: i64, now: Timestamp) -> bool {
        let mut freed = false;
        for ordinal in 0..self.allocations.len() {
            let Some(attribute) = self.allocations[ordinal].and_then(|index| self.attributes.get(index)) else {
                continue;
            };
            let is_cooled = attribute.is_cooling() && is_over(attribute, cooldown_seconds, now);
            if is_cooled || attribute.is_nobodys() {
                self.allocations[ordinal] = None;
                self.sequence_number_for_allocation.remove(&ordinal.to_string());
                if !self.unallocated.contains(&ordinal) {
                    self.unallocated.push(ordinal);
                }
                freed = true;
            }
        }
        freed
    }

    pub(super) fn drop_unused_attributes(&mut self) -> bool {
        let mut used = vec![false; self.attributes.len()];
        for &index in self.allocations.iter().flatten() {
            if let Some(used) = used.get_mut(index) {
                *used = true;
            }
        }
        if used.iter().all(|used| *used) {
            return false;
        }
        let mut kept = 0;
        let moved: Vec<usize> = used
            .iter()
            .map(|used| {
                kept += usize::from(*used);
                kept.saturating_sub(1)
            })
            .collect();
        for index in self.allocations.iter_mut().flatten() {
            // An index beyond the attributes stays beyond them: it must not come to mean somebody.
            if let Some(moved) = moved.get(*index) {
                *index = *moved;
            }
        }
        let mut used = used.into_iter();
        self.attributes.retain(|_| used.next().unwrap_or(true));
        true
    }
}

/// Whether the cooldown of a released address is over. A time that cannot be read counts as just now: the
/// address then stays out of use until the cooldown is switched off.
fn is_over(attribute: &AllocationAttribute, cooldown_seconds: i64, now: Timestamp) -> bool {
    if cooldown_seconds <= 0 {
        return true;
    }
    let Some(released) = attribute.released() else {
        return false;
    };
    now.duration_since(released) > SignedDuration::from_secs(cooldown_seconds)
}

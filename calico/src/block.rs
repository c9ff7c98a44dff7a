//! `IPAMBlock`: one slice of a pool, the unit of compare-and-swap.
//!
//! Owns: which address of the slice is free, cooling or whose. Keeps I5: `allocations`, `unallocated` and
//! `attributes` describe the same set, see [`IPAMBlockSpec::validate`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::affinity::Affinity;
use crate::names;
use crate::net;
use crate::wire::{Unknown, null_as_default};

mod amend;
mod assign;
mod release;
mod side;
mod vacate;
mod validate;

pub use assign::AssignError;
pub use release::{Expect, ReleaseError, Released};
pub use validate::Corrupt;

/// The most addresses a block may have. Calico's own blocks have at most 4096 (`/20`, `/116`); a larger
/// CIDR is never filled in and every assignment from it is refused as [`Corrupt`].
pub const MOST_ADDRESSES: usize = 1 << 16;

/// Handle that Calico uses to keep the first and last addresses of a block from pods on Windows nodes. It
/// has no `IPAMHandle`, and a block with no other allocation counts as empty.
pub const WINDOWS_RESERVED_HANDLE: &str = "windows-reserved-ipam-handle";

/// A slice of a pool: who owns it, and who has each of its addresses. An address is named by its ordinal,
/// its distance from the first address of the block.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "IPAMBlock",
    plural = "ipamblocks",
    singular = "ipamblock",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct IPAMBlockSpec {
    /// The slice.
    pub cidr: IpNetwork,
    /// The owner, `host:<node>` or `virtual:<name>`. Absent: nobody's, assigned from by borrowing only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
    /// When the owner claimed it, RFC 3339 in whole seconds. Absent in blocks of old writers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_claim_time: Option<String>,
    /// By ordinal: none if free, else an index into `attributes`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub allocations: Vec<Option<usize>>,
    /// Free ordinals, first in first out: taken from the head, given back at the tail.
    #[serde(default, deserialize_with = "null_as_default")]
    pub unallocated: Vec<usize>,
    /// Who the allocations belong to.
    #[serde(default, deserialize_with = "null_as_default")]
    pub attributes: Vec<AllocationAttribute>,
    /// Goes up by one with every write; starts at the clock in nanoseconds, so that a block that is deleted
    /// and created again does not repeat a number.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sequence_number: i64,
    /// By ordinal, as decimal text: `sequenceNumber` of the block when the address was assigned.
    #[serde(default, deserialize_with = "null_as_default")]
    pub sequence_number_for_allocation: BTreeMap<String, i64>,
    /// The first step of a deletion: to readers the block is gone.
    #[serde(default, deserialize_with = "null_as_default")]
    pub deleted: bool,
    /// Not used any more, but required by the schema.
    #[serde(default, deserialize_with = "null_as_default")]
    pub strict_affinity: bool,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Who one or more allocations of a block belong to; or, with only `released_at`, that they are cooling.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AllocationAttribute {
    /// Handle id, the key under which the allocation is released.
    #[serde(default, rename = "handle_id", skip_serializing_if = "Option::is_none")]
    pub handle_id: Option<String>,
    /// The party using the address: `pod`, `namespace`, `node`, `timestamp`, `type`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary: Option<BTreeMap<String, String>>,
    /// The other party of a live migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alternate_owner_attrs: Option<BTreeMap<String, String>>,
    /// When the address was released, RFC 3339 in whole seconds: it cools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<String>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What a block says of one address.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Entry<'a> {
    /// Nobody has it.
    Free,
    /// Released, and not given out again before the cooldown is over.
    Cooling {
        /// The time of release as the block has it, RFC 3339.
        released_at: &'a str,
    },
    /// Somebody has it.
    Used {
        /// Who.
        attribute: &'a AllocationAttribute,
        /// Sequence number of the block at the assignment; `None` in blocks of old writers.
        sequence: Option<i64>,
    },
    /// The address is outside of the block.
    NotInBlock,
    /// The block does not say, because it is malformed: no allocation for the ordinal, or an allocation
    /// without attribute.
    Unreadable,
}

impl AllocationAttribute {
    /// The handle id without what Calico's readers ignore, see [`names::clean_handle`].
    pub fn handle(&self) -> Option<&str> {
        self.handle_id.as_deref().map(names::clean_handle)
    }

    /// A value of `secondary`, such as `pod`, `namespace` or `node`.
    pub fn secondary(&self, key: &str) -> Option<&str> {
        self.secondary.as_ref()?.get(key).map(String::as_str)
    }

    /// When the address was released; `None` if it is in use or the time cannot be read.
    pub fn released(&self) -> Option<Timestamp> {
        self.released_at.as_deref()?.parse().ok()
    }

    /// Whether it says nothing at all. A Calico that does not know `releasedAt` leaves that of an address that cooled, when it
    /// rewrites the block or copies it: the address is nobody's.
    pub fn is_nobodys(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the addresses that bear this attribute cool.
    pub fn is_cooling(&self) -> bool {
        self.released_at.is_some()
    }
}

/// A time as Calico stores it: whole seconds, UTC.
pub(crate) fn wire_time(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

// === impl IPAMBlockSpec ===

impl IPAMBlockSpec {
    /// A block without allocations that `affinity` claims at `now`. Host bits of `cidr` are cleared. A CIDR
    /// of more than [`MOST_ADDRESSES`] gives a block that holds nothing and refuses every assignment.
    pub fn new(cidr: IpNetwork, affinity: &Affinity, now: Timestamp) -> Self {
        let addresses = match usize::try_from(net::count(&cidr)) {
            Ok(addresses) if addresses <= MOST_ADDRESSES => addresses,
            _ => 0,
        };
        Self {
            cidr: net::masked(&cidr),
            affinity: Some(affinity.to_string()),
            affinity_claim_time: Some(wire_time(now)),
            allocations: vec![None; addresses],
            unallocated: (0..addresses).collect(),
            attributes: Vec::new(),
            sequence_number: i64::try_from(now.as_nanosecond()).unwrap_or(0),
            sequence_number_for_allocation: BTreeMap::new(),
            deleted: false,
            strict_affinity: false,
            unknown: Unknown::new(),
        }
    }

    /// The block as an object to be created, named after its CIDR.
    pub fn object(self) -> IPAMBlock {
        let mut block = IPAMBlock::new(&names::cidr_name(&self.cidr), self);
        let metadata = (names::METADATA_ANNOTATION.to_owned(), "{}".to_owned());
        block.metadata.annotations = Some([metadata].into());
        block
    }

    /// The distance of an address from the first of the block; `None` if it is not in the block.
    pub fn ordinal(&self, address: IpAddr) -> Option<usize> {
        usize::try_from(net::offset(&self.cidr, address)?).ok()
    }

    /// The address at a distance from the first of the block. Distances beyond the block give addresses
    /// beyond the block.
    pub fn address(&self, ordinal: usize) -> IpAddr {
        net::above(self.cidr.network(), ordinal as u128)
    }

    /// The owner, if there is one and its form is known.
    pub fn affinity(&self) -> Option<Affinity> {
        self.affinity.as_deref()?.parse().ok()
    }

    /// The node that owns the block. `None` also for a virtual owner.
    pub fn host(&self) -> Option<&str> {
        self.affinity.as_deref()?.strip_prefix("host:")
    }

    /// Whether `owner` is the owner.
    pub fn belongs_to(&self, owner: &Affinity) -> bool {
        self.affinity() == Some(owner.clone())
    }

    /// When the owner claimed it; `None` for blocks of old writers.
    pub fn claimed_at(&self) -> Option<Timestamp> {
        self.affinity_claim_time.as_deref()?.parse().ok()
    }

    /// Gives the block away: it stays for the allocations in it.
    pub fn disown(&mut self) {
        self.affinity = None;
        self.affinity_claim_time = None;
    }

    /// Whether a deletion has begun: to readers the block is gone.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// Whether no address is in use or cooling. Addresses that Calico keeps from Windows pods, and those that are nobody's, do
    /// not count.
    pub fn is_empty(&self) -> bool {
        self.allocations.iter().flatten().all(|&index| {
            self.attributes.get(index).is_some_and(|attribute| {
                let of_windows = |handle: &str| handle.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE);
                attribute.is_nobodys() || attribute.handle().is_some_and(of_windows)
            })
        })
    }

    /// What the block says of an address.
    pub fn entry(&self, address: IpAddr) -> Entry<'_> {
        match self.ordinal(address) {
            Some(ordinal) => self.entry_at(ordinal),
            None => Entry::NotInBlock,
        }
    }

    /// Every address that is in use or cooling, in order, with what the block says of it.
    pub fn entries(&self) -> impl Iterator<Item = (IpAddr, Entry<'_>)> {
        let taken = self.allocations.iter().enumerate().filter(|(_, index)| index.is_some());
        taken.map(|(ordinal, _)| (self.address(ordinal), self.entry_at(ordinal)))
    }

    fn entry_at(&self, ordinal: usize) -> Entry<'_> {
        let index = match self.allocations.get(ordinal) {
            None => return Entry::Unreadable,
            Some(None) => return Entry::Free,
            Some(Some(index)) => *index,
        };
        match self.attributes.get(index) {
            None => Entry::Unreadable,
            Some(AllocationAttribute { released_at: Some(released_at), .. }) => Entry::Cooling { released_at },
            Some(attribute) => Entry::Used { attribute, sequence: self.sequence_of(ordinal) },
        }
    }

    fn sequence_of(&self, ordinal: usize) -> Option<i64> {
        self.sequence_number_for_allocation.get(&ordinal.to_string()).copied()
    }

    /// Counts the sequence number up: once for every write of a block that was read.
    pub fn advance(&mut self) {
        self.sequence_number = self.sequence_number.wrapping_add(1);
    }
}

impl JsonSchema for IPAMBlockSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IPAMBlockSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["allocations", "attributes", "cidr", "strictAffinity", "unallocated"],
            "properties": {
                "affinity": {"type": "string"},
                "affinityClaimTime": {"type": "string", "format": "date-time"},
                "allocations": {"type": "array", "items": {"type": "integer", "nullable": true}},
                "attributes": {"type": "array", "items": {"type": "object", "properties": {
                    "alternateOwnerAttrs": {"type": "object", "additionalProperties": {"type": "string"}},
                    "handle_id": {"type": "string"},
                    "releasedAt": {"type": "string", "format": "date-time"},
                    "secondary": {"type": "object", "additionalProperties": {"type": "string"}},
                }}},
                "cidr": {"type": "string"},
                "deleted": {"type": "boolean"},
                "sequenceNumber": {"type": "integer", "format": "int64", "default": 0},
                "sequenceNumberForAllocation": {
                    "type": "object",
                    "additionalProperties": {"type": "integer", "format": "int64"},
                },
                "strictAffinity": {"type": "boolean"},
                "unallocated": {"type": "array", "items": {"type": "integer"}},
            },
        })
    }
}

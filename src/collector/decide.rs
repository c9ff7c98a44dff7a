//! Pure: from what was read to what ought to be repaired.
//!
//! The same functions judge a whole cluster and the few objects that are read again before a write: what a
//! finding needs for that is in its [`Needs`], and whether the second judgement is about the same thing is
//! told by its [`Key`].

mod affinities;
mod allocations;
mod blocks;
mod claims;
mod handles;
mod reservations;
mod unrecorded;

use std::net::IpAddr;
use std::time::Duration;

use calico::{BlockAffinity, Expect, IPAMBlock, IPAMHandle};
use ipnetwork::IpNetwork;
use jiff::Timestamp;

use super::census::Census;
use super::{Kind, Options, Repair};
use crate::claim::{Claim, ClaimedElsewhere, LedgerName, NodeState, Policy};
use crate::driver::{Lost, Shown, claimed_elsewhere};
use crate::netconf::Ipam;
use crate::pod::Owner;
use crate::store::Versioned;

/// What does not change from round to round.
pub(super) struct Rules {
    /// The network, the prefix of its handle ids.
    pub network: String,
    pub policy: Policy,
    /// The ledger of claims, if there is one.
    pub ledger: Option<LedgerName>,
    /// Which addresses are this network's to claim.
    pub ipam: Ipam,
    pub options: Options,
}

/// What is judged, by what, at what time.
pub(super) struct Scene<'a> {
    pub census: &'a Census,
    pub rules: &'a Rules,
    pub now: Timestamp,
}

/// What a finding is about, down to the version: another allocation of the same address is another key.
pub(super) type Key = (Kind, String);

/// Something that ought to be repaired.
pub(super) struct Finding {
    pub key: Key,
    /// How long it must have been so, with at least two sightings; `None` acts on the first.
    pub patience: Option<Duration>,
    /// The end of a grace that is on record, before which nothing is done.
    pub not_before: Option<Timestamp>,
    pub needs: Needs,
    pub repair: Repair,
    pub task: Task,
}

/// What must be read again to come to the same finding.
#[derive(Default)]
pub(super) struct Needs {
    pub pods: Vec<(String, String)>,
    pub nodes: Vec<String>,
    pub owners: Vec<Owner>,
    pub claims: Vec<IpAddr>,
    pub handles: Vec<String>,
    pub affinities: Vec<String>,
    pub reservations: Vec<String>,
    pub blocks: Vec<IpNetwork>,
}

/// What is to be written, with its precondition.
pub(super) enum Task {
    /// Delete a claim and its reservation.
    DropClaim(Shown),
    /// Clear a claim's holder, and release the holder's allocation.
    ClearHolder(Shown),
    /// Start or end a grace that the claim records.
    Grace(Versioned<Claim>, Box<Claim>),
    /// Rewrite a claim from its block's entry.
    Mend(IpAddr, IpNetwork),
    /// Release the allocations of a handle.
    Free(Vec<Allocation>),
    /// Record an address for the pod that has it.
    Record(Lost),
    /// Put a claimed address into the reservation of its block.
    Reserve(IpAddr, IpNetwork),
    /// Say in a reservation that these addresses are claimed in this collector's ledger.
    Mark(String, Vec<IpAddr>),
    /// Take an address out of a reservation.
    Unreserve(String, IpAddr),
    /// Delete a handle in this version.
    RemoveHandle(Box<IPAMHandle>),
    /// Make a handle count what these blocks bear.
    Recount(String, Option<Box<IPAMHandle>>, Vec<IpNetwork>),
    /// Delete an affinity in this version.
    RemoveAffinity(Box<BlockAffinity>),
    /// Confirm an affinity.
    ConfirmAffinity(Box<BlockAffinity>),
    /// Label an affinity.
    LabelAffinity(Box<BlockAffinity>),
    /// Make the affinity of a block for the node that it names.
    RestoreAffinity(IpNetwork, String),
    /// Delete a block in this version.
    RemoveBlock(Box<IPAMBlock>),
    /// Release an empty block and its affinity.
    ReleaseBlock(Box<IPAMBlock>),
}

/// One address in use, as it was seen.
pub(super) struct Allocation {
    pub address: IpAddr,
    pub cidr: IpNetwork,
    pub expect: Expect,
}

/// Everything in the scene that ought to be repaired.
pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let mut found = claims::findings(scene);
    found.extend(allocations::findings(scene));
    found.extend(unrecorded::findings(scene));
    found.extend(reservations::findings(scene));
    found.extend(handles::findings(scene));
    found.extend(affinities::findings(scene));
    found.extend(affinities::missing(scene));
    found.extend(blocks::findings(scene));
    found
}

// === impl Finding ===

impl Finding {
    /// Whether a grace that is on record is over.
    pub(super) fn is_ripe(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|end| now >= end)
    }
}

// === impl Scene ===

impl Scene<'_> {
    /// The block an address lies in by today's pools, whether or not it exists.
    fn block_of(&self, address: IpAddr) -> Option<IpNetwork> {
        Some(calico::covering(&self.census.pools, address)?.spec.block_of(address))
    }

    /// The ledger in which an address is claimed by one of our reservations, if that is another one.
    fn claimed_elsewhere(&self, address: IpAddr) -> Option<ClaimedElsewhere> {
        claimed_elsewhere(&self.census.reservations, address, self.rules.ledger.as_ref()?)
    }

    /// A node's state; of any UID, as Calico records names only.
    fn node(&self, name: &str) -> NodeState {
        self.census.nodes.state(name, None)
    }

    /// Whether nothing runs on a node any more, by the word of whoever deleted or tainted it.
    fn is_out(&self, name: &str) -> bool {
        matches!(self.node(name), NodeState::Deleted | NodeState::OutOfService)
    }
}

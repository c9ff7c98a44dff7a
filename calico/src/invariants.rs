//! What must hold over all of Calico's IPAM objects of a cluster, as named functions.
//!
//! They take a snapshot and give every violation in it; none of them writes. They are about what Calico's
//! objects say of each other. What they say of pods and claims is judged elsewhere, by the same
//! [`Violation`].
//!
//! On a live cluster the lists of a snapshot are read one after the other, and writers work in steps, handle
//! before block: take two snapshots and believe what is in both, see [`persisting`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::IpNetwork;
use kube::ResourceExt as _;
use serde::{Serialize, Serializer};

use crate::block::WINDOWS_RESERVED_HANDLE;
use crate::names;
use crate::net;
use crate::{BlockAffinity, Entry, IPAMBlock, IPAMHandle};

/// A named invariant of the whole system. This crate judges I1, I4, I5 and I6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// An address is in use by at most one container.
    I1,
    /// A fixed address is held by at most one pod, of its owner.
    I2,
    /// Every answer given is on record before it is given.
    I3,
    /// A handle's counts equal the allocations that bear it.
    I4,
    /// Allocations, free list and attributes of a block describe the same set.
    I5,
    /// A confirmed affinity has its block, and the block says the same host.
    I6,
    /// No address outside subnet and range, or on a special address, is given.
    I7,
    /// An error changes nothing that stays.
    I8,
    /// A fixed annotation never yields another address.
    I9,
}

/// One breach of an invariant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Violation {
    /// The invariant.
    pub invariant: Invariant,
    /// The object, as `<kind>/<name>`.
    pub object: String,
    /// What is wrong.
    pub detail: String,
}

/// Calico's IPAM objects of a whole cluster. Objects that are marked as deleted count as absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Snapshot<'a> {
    /// All blocks.
    pub blocks: &'a [IPAMBlock],
    /// All handles.
    pub handles: &'a [IPAMHandle],
    /// All block affinities.
    pub affinities: &'a [BlockAffinity],
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Serialize for Invariant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.invariant, self.object, self.detail)
    }
}

impl Violation {
    /// A breach found on an object.
    pub fn new(invariant: Invariant, kind: &str, name: &str, detail: impl Into<String>) -> Self {
        Self { invariant, object: format!("{kind}/{name}"), detail: detail.into() }
    }
}

/// Every violation in the snapshot, in order and without repetition.
pub fn all(snapshot: &Snapshot<'_>) -> Vec<Violation> {
    let mut violations = one_holder_per_address(snapshot.blocks);
    violations.extend(handles_count_allocations(snapshot.blocks, snapshot.handles));
    violations.extend(blocks_have_their_shape(snapshot.blocks));
    violations.extend(affinities_match_blocks(snapshot.blocks, snapshot.affinities));
    violations.sort();
    violations.dedup();
    violations
}

/// The violations that are in both snapshots' results: what was no step of a writer at work.
pub fn persisting(earlier: &[Violation], later: &[Violation]) -> Vec<Violation> {
    let earlier: BTreeSet<_> = earlier.iter().collect();
    later.iter().filter(|violation| earlier.contains(violation)).cloned().collect()
}

/// I1: an address is in one block only, and a block is one object under the name all writers look for.
/// Within a block an address has one allocation by construction.
pub fn one_holder_per_address(blocks: &[IPAMBlock]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut sorted: Vec<&IPAMBlock> = present_blocks(blocks).collect();
    sorted.sort_by_key(|block| {
        let cidr = &block.spec.cidr;
        (cidr.is_ipv6(), net::number(cidr.network()), cidr.prefix())
    });
    // Networks nest or are apart: in this order each is followed by what lies in it.
    let mut around: Vec<&IPAMBlock> = Vec::new();
    for block in sorted {
        let cidr = &block.spec.cidr;
        around.retain(|outer| net::covers(&outer.spec.cidr, cidr));
        if let Some(outer) = around.last() {
            let detail =
                format!("lies in {} of {}: their addresses could be given twice", outer.spec.cidr, block_name(outer));
            violations.push(Violation::new(Invariant::I1, "IPAMBlock", &block.name_any(), detail));
        }
        around.push(block);
        let right = names::cidr_name(cidr);
        if block.name_any() != right {
            let detail = format!("is the block {cidr}, which every writer looks for as {right}");
            violations.push(Violation::new(Invariant::I1, "IPAMBlock", &block.name_any(), detail));
        }
    }
    violations
}

/// I4: every handle counts the allocations that bear it, block by block, and every handle that an allocation
/// bears exists.
pub fn handles_count_allocations(blocks: &[IPAMBlock], handles: &[IPAMHandle]) -> Vec<Violation> {
    let borne = borne_counts(blocks);
    let mut counted: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    let mut violations = Vec::new();
    for handle in handles.iter().filter(|handle| !handle.spec.is_deleted()) {
        let name = handle.name_any();
        let right = names::handle_name(names::clean_handle(&handle.spec.handle_id));
        if name != right && name != names::handle_name(&handle.spec.handle_id) {
            let detail = format!("is the handle {}, which every writer looks for as {right}", handle.spec.handle_id);
            violations.push(Violation::new(Invariant::I4, "IPAMHandle", &name, detail));
        }
        if handle.spec.is_empty() {
            violations.push(Violation::new(Invariant::I4, "IPAMHandle", &name, "has no address: it should not exist"));
        }
        let counts = counted.entry(right).or_default();
        for (cidr, count) in &handle.spec.block {
            let sum = counts.entry(canonical(cidr)).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    for (handle, blocks) in &borne {
        if !counted.contains_key(handle) {
            let cidrs = blocks.keys().cloned().collect::<Vec<_>>().join(", ");
            let detail = format!("does not exist, but allocations in {cidrs} bear it");
            violations.push(Violation::new(Invariant::I4, "IPAMHandle", handle, detail));
        }
    }
    for (handle, counts) in &counted {
        let none = BTreeMap::new();
        let borne = borne.get(handle).unwrap_or(&none);
        for cidr in counts.keys().chain(borne.keys()).collect::<BTreeSet<_>>() {
            let (counts, bears) = (counts.get(cidr).copied().unwrap_or(0), borne.get(cidr).copied().unwrap_or(0));
            if counts != bears {
                let detail = format!("counts {counts} in block {cidr}, where {bears} allocations bear it");
                violations.push(Violation::new(Invariant::I4, "IPAMHandle", handle, detail));
            }
        }
    }
    violations
}

/// I5: every block has its shape, see [`crate::IPAMBlockSpec::validate`].
pub fn blocks_have_their_shape(blocks: &[IPAMBlock]) -> Vec<Violation> {
    present_blocks(blocks)
        .filter_map(|block| {
            let corrupt = block.spec.validate().err()?;
            Some(Violation::new(Invariant::I5, "IPAMBlock", &block.name_any(), corrupt.to_string()))
        })
        .collect()
}

/// I6: every confirmed affinity has its block, the block says the same owner, and every block that says an
/// owner has that owner's affinity, confirmed or not.
pub fn affinities_match_blocks(blocks: &[IPAMBlock], affinities: &[BlockAffinity]) -> Vec<Violation> {
    let by_cidr: BTreeMap<IpNetwork, &IPAMBlock> =
        present_blocks(blocks).map(|block| (net::masked(&block.spec.cidr), block)).collect();
    let mut claims = BTreeSet::new();
    let mut violations = Vec::new();
    let mut report = |name: &str, detail: String| {
        violations.push(Violation::new(Invariant::I6, "BlockAffinity", name, detail));
    };
    for affinity in affinities.iter().filter(|affinity| !affinity.is_deleted()) {
        let (name, spec) = (affinity.name_any(), &affinity.spec);
        let owner = match spec.owner() {
            Ok(owner) => owner,
            Err(error) => {
                report(&name, error.to_string());
                continue;
            }
        };
        let right = names::affinity_name(&spec.node, &spec.cidr);
        if name != right {
            report(&name, format!("is the claim of {owner} to {}, which every writer looks for as {right}", spec.cidr));
        }
        let cidr = net::masked(&spec.cidr);
        claims.insert((cidr, owner.to_string()));
        if !affinity.is_confirmed() {
            continue;
        }
        match by_cidr.get(&cidr) {
            None => report(&name, format!("is confirmed, but block {cidr} does not exist")),
            Some(block) if !block.spec.belongs_to(&owner) => {
                let other = block.spec.affinity.as_deref().unwrap_or("nobody");
                report(&name, format!("is confirmed for {owner}, but block {cidr} belongs to {other}"));
            }
            Some(_) => {}
        }
    }
    for (cidr, block) in by_cidr {
        if let Some(owner) = &block.spec.affinity
            && !claims.contains(&(cidr, owner.clone()))
        {
            let detail = format!("belongs to {owner}, which has no BlockAffinity for it");
            violations.push(Violation::new(Invariant::I6, "IPAMBlock", &block.name_any(), detail));
        }
    }
    violations
}

fn present_blocks(blocks: &[IPAMBlock]) -> impl Iterator<Item = &IPAMBlock> {
    blocks.iter().filter(|block| !block.spec.is_deleted())
}

fn block_name(block: &IPAMBlock) -> String {
    format!("IPAMBlock/{}", block.name_any())
}

/// How many allocations bear each handle, by handle name and block.
fn borne_counts(blocks: &[IPAMBlock]) -> BTreeMap<String, BTreeMap<String, i64>> {
    let mut borne: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    for block in present_blocks(blocks) {
        let cidr = net::masked(&block.spec.cidr).to_string();
        for (_, entry) in block.spec.entries() {
            let Entry::Used { attribute, .. } = entry else {
                continue;
            };
            let Some(handle) = attribute.handle() else {
                continue;
            };
            if !handle.is_empty() && !handle.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE) {
                *borne.entry(names::handle_name(handle)).or_default().entry(cidr.clone()).or_default() += 1;
            }
        }
    }
    borne
}

/// A handle's key for a block, as this crate would write it.
fn canonical(cidr: &str) -> String {
    cidr.parse::<IpNetwork>().map_or_else(|_| cidr.to_owned(), |cidr| net::masked(&cidr).to_string())
}

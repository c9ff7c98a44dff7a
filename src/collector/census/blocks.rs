//! The blocks, and every allocation with whose it is.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;

use calico::{AllocationAttribute, Entry, IPAMBlock, handle_name};
use ipnetwork::IpNetwork;
use kube::ResourceExt as _;

use super::pods::Names;
use super::{Nodes, Pods};
use crate::audit::party::Party;

/// Allocations by block.
pub(in crate::collector) type Counts = BTreeMap<IpNetwork, i64>;

/// The blocks, and what is allocated in them.
#[derive(Default)]
pub(in crate::collector) struct Blocks {
    present: Vec<Block>,
    by_cidr: BTreeMap<IpNetwork, usize>,
    /// By address, once sorted.
    allocations: Vec<Allocation>,
    /// Digests of handles' names with the positions of the allocations that bear them, in order.
    bearers: Vec<(u64, u32)>,
    /// Whole: those whose deletion has begun, and those of nodes that are gone.
    pub kept: Vec<IPAMBlock>,
    /// Blocks that contradict themselves: who has their addresses may not be told.
    pub malformed: BTreeSet<IpNetwork>,
    names: Names,
}

/// A block that is not being deleted.
pub(in crate::collector) struct Block {
    pub cidr: IpNetwork,
    /// The owner as the block has it.
    pub affinity: Option<Arc<str>>,
    /// Whether no address is in use or cooling.
    pub empty: bool,
    name: Box<str>,
}

/// What decides which blocks are kept whole, and what their allocations are compared with.
pub(in crate::collector) struct Judged<'a> {
    pub pods: &'a Pods,
    pub nodes: &'a Nodes,
}

/// An address in use.
#[derive(Clone, Copy)]
pub(in crate::collector) struct Used<'a> {
    pub address: IpAddr,
    pub block: &'a Block,
    /// Sequence number of the block at the assignment.
    pub sequence: Option<i64>,
    pub party: Party<'a>,
}

struct Allocation {
    address: IpAddr,
    block: u32,
    fixed: Option<u64>,
    sequence: Option<i64>,
    handle: Option<Box<str>>,
    node: Option<Arc<str>>,
    user: User,
}

/// Most allocations name a pod that exists.
enum User {
    /// By its position among the pods; and whether the allocation bears its UID.
    Listed(u32, bool),
    /// What else the block says, if anything.
    Other(Option<Box<Words>>),
}

struct Words {
    namespace: Option<String>,
    pod: Option<String>,
    uid: Option<String>,
}

/// A digest of a text, equal for equal texts within a process.
pub(super) fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

// === impl Blocks ===

impl Blocks {
    /// Takes down a block and its allocations.
    pub(in crate::collector) fn add(&mut self, block: IPAMBlock, judged: &Judged<'_>) {
        if block.spec.validate().is_err() {
            self.malformed.insert(block.spec.cidr);
        }
        if block.spec.is_deleted() {
            self.kept.push(block);
            return;
        }
        let position = self.present.len();
        self.by_cidr.insert(block.spec.cidr, position);
        for (address, entry) in block.spec.entries() {
            if let Entry::Used { attribute, sequence } = entry {
                let allocation = self.allocation(position, address, attribute, sequence, judged.pods);
                self.allocations.push(allocation);
            }
        }
        self.present.push(Block {
            cidr: block.spec.cidr,
            affinity: block.spec.affinity.as_deref().map(|affinity| self.names.get(affinity)),
            empty: block.spec.is_empty(),
            name: block.name_any().into(),
        });
        if block.spec.host().is_some_and(|node| !judged.nodes.exists(node)) {
            self.kept.push(block);
        }
    }

    fn allocation(
        &mut self,
        block: usize,
        address: IpAddr,
        attribute: &AllocationAttribute,
        sequence: Option<i64>,
        pods: &Pods,
    ) -> Allocation {
        let party = Party::of(attribute);
        Allocation {
            address,
            block: index(block),
            fixed: party.fixed,
            sequence,
            handle: party.handle.map(Into::into),
            node: party.node.map(|node| self.names.get(node)),
            user: User::of(&party, pods),
        }
    }

    /// To be called once all are in: only then they are found.
    pub(in crate::collector) fn sort(&mut self) {
        // Of two blocks with one address the last counts.
        self.allocations.reverse();
        self.allocations.sort_by_key(|allocation| allocation.address);
        self.allocations.dedup_by_key(|allocation| allocation.address);
        let bears = |(position, allocation): (usize, &Allocation)| {
            let handle = allocation.handle.as_deref().filter(|handle| !handle.is_empty())?;
            Some((digest(&handle_name(handle)), index(position)))
        };
        self.bearers = self.allocations.iter().enumerate().filter_map(bears).collect();
        self.bearers.sort_unstable();
    }

    /// The block of a CIDR, unless it is being deleted.
    pub(in crate::collector) fn get(&self, cidr: &IpNetwork) -> Option<&Block> {
        self.by_cidr.get(cidr).map(|position| &self.present[*position])
    }

    /// Every block that is not being deleted.
    pub(in crate::collector) fn present(&self) -> impl Iterator<Item = &Block> {
        self.present.iter()
    }

    /// An address in use.
    pub(super) fn used<'a>(&'a self, address: IpAddr, pods: &'a Pods) -> Option<Used<'a>> {
        let position = self.allocations.binary_search_by_key(&address, |allocation| allocation.address).ok()?;
        Some(self.at(position, pods))
    }

    /// Every address in use, in order.
    pub(in crate::collector) fn all<'a>(&'a self, pods: &'a Pods) -> impl Iterator<Item = Used<'a>> {
        (0..self.allocations.len()).map(|position| self.at(position, pods))
    }

    /// Every address in use under a handle with that name, in order.
    pub(in crate::collector) fn under<'a>(&'a self, name: String, pods: &'a Pods) -> impl Iterator<Item = Used<'a>> {
        self.bearers(name).map(|position| self.at(position, pods))
    }

    /// How many allocations bear a handle with that name, by block.
    pub(in crate::collector) fn borne_by(&self, name: String) -> Counts {
        let mut counts = Counts::new();
        for position in self.bearers(name) {
            *counts.entry(self.present[self.allocations[position].block as usize].cidr).or_default() += 1;
        }
        counts
    }

    /// The positions of the allocations that bear a handle with that name.
    fn bearers(&self, name: String) -> impl Iterator<Item = usize> {
        let digest = digest(&name);
        let first = self.bearers.partition_point(|(other, _)| *other < digest);
        let alike = self.bearers[first..].iter().take_while(move |(other, _)| *other == digest);
        let bears = move |at: &usize| {
            let handle = self.allocations[*at].handle.as_deref();
            handle.is_some_and(|handle| handle_name(handle) == name)
        };
        alike.map(|(_, at)| *at as usize).filter(bears)
    }

    fn at<'a>(&'a self, position: usize, pods: &'a Pods) -> Used<'a> {
        let allocation = &self.allocations[position];
        let block = &self.present[allocation.block as usize];
        let (namespace, pod, uid) = allocation.user.names(pods);
        let (handle, node) = (allocation.handle.as_deref(), allocation.node.as_deref());
        let party = Party { handle, namespace, pod, node, uid, fixed: allocation.fixed };
        Used { address: allocation.address, block, sequence: allocation.sequence, party }
    }
}

// === impl Block ===

impl Block {
    /// The node that owns the block. `None` also for a virtual owner.
    pub(in crate::collector) fn host(&self) -> Option<&str> {
        self.affinity.as_deref()?.strip_prefix("host:")
    }
}

// === impl Used ===

impl Used<'_> {
    pub(in crate::collector) fn object(&self) -> String {
        format!("IPAMBlock/{}", self.block.name)
    }
}

// === impl User ===

impl User {
    fn of(party: &Party<'_>, pods: &Pods) -> Self {
        let listed = party.pod().and_then(|(namespace, name)| pods.position(namespace, name));
        // Of another pod of that name the UID says so.
        let listed = listed.filter(|at| party.uid.is_none_or(|uid| pods.at(*at).2.has_uid(uid)));
        if let Some(position) = listed {
            return Self::Listed(index(position), party.uid.is_some());
        }
        if party.namespace.is_none() && party.pod.is_none() && party.uid.is_none() {
            return Self::Other(None);
        }
        let own = |text: Option<&str>| text.map(str::to_owned);
        Self::Other(Some(Box::new(Words { namespace: own(party.namespace), pod: own(party.pod), uid: own(party.uid) })))
    }

    /// Namespace, pod and UID.
    fn names<'a>(&'a self, pods: &'a Pods) -> (Option<&'a str>, Option<&'a str>, Option<&'a str>) {
        match self {
            Self::Listed(position, by_uid) => {
                let (namespace, name, seen) = pods.at(*position as usize);
                (Some(namespace), Some(name), seen.uid.filter(|_| *by_uid))
            }
            Self::Other(None) => (None, None, None),
            Self::Other(Some(words)) => (words.namespace.as_deref(), words.pod.as_deref(), words.uid.as_deref()),
        }
    }
}

/// A position as it is kept: no cluster has four thousand million of anything.
fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

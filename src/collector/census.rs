//! What a round knows of the cluster: of every object only what decisions ask for.
//!
//! A pod or a block as the API server gives it is some thousand bytes, and a large cluster has a quarter of a
//! million of them. Here a pod is about two hundred, an allocation as much, a block that stands in order a
//! hundred, and an affinity or a handle in order nothing at all: they are judged as they come, and only those
//! with something odd about them are kept whole.
//!
//! The same is made of the few objects that are read again before a write, so that both are judged alike.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | `pods` | which pods there are, and what they have |
//! | `nodes` | which nodes there are, and whether they work |
//! | `blocks` | the blocks, and every allocation with whose it is |
//! | `read` | reading all that, page by page |

mod blocks;
mod nodes;
mod pods;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::{BlockAffinity, IPAMConfig, IPAMHandle, IPPool, IPReservation, affinity_name, handle_name};
use kube::ResourceExt as _;

pub(super) use self::blocks::{Block, Blocks, Counts, Judged, Used};
pub(super) use self::nodes::Nodes;
pub(super) use self::pods::Pods;
pub(super) use self::read::{by_address, read};

use crate::audit::party::staleness;
use crate::audit::read::is_machine_gone;
use crate::claim::Claim;
use crate::pod::Owner;
use crate::store::{Unreadable, Versioned};

/// The cluster, as far as decisions ask for it.
#[derive(Default)]
pub(super) struct Census {
    /// Calico's configuration, if there is one.
    pub config: Option<IPAMConfig>,
    /// All pools.
    pub pools: Vec<IPPool>,
    /// All nodes.
    pub nodes: Nodes,
    /// All claims of the network, by address; `None` if they were not looked at, and then nothing is said about them.
    pub claims: Option<Vec<Versioned<Claim>>>,
    /// The records among them that cannot be read: there may be a claim.
    pub unreadable: Vec<Unreadable>,
    /// Which owners of claims exist, and which virtual machines; one that is not listed was not looked for.
    pub owners: BTreeMap<Owner, bool>,
    /// The claimed addresses that their owners do not ask for any more.
    pub given_up: BTreeSet<IpAddr>,
    /// All pods.
    pub pods: Pods,
    /// All blocks.
    pub blocks: Blocks,
    /// The handles.
    pub handles: Handles,
    /// The affinities.
    pub affinities: Affinities,
    /// All reservations, ours and others'.
    pub reservations: Vec<IPReservation>,
}

/// The handles, of which those that count what the blocks bear are only known to be there.
#[derive(Default)]
pub(super) struct Handles {
    /// Those that do not.
    pub kept: Vec<IPAMHandle>,
    known: Known,
}

/// The affinities, of which those that are labelled and confirmed, with a block that says the same, are only known to be there.
#[derive(Default)]
pub(super) struct Affinities {
    /// The others.
    pub kept: Vec<BlockAffinity>,
    known: Known,
}

/// Digests of names.
#[derive(Default)]
struct Known(Vec<u64>);

// === impl Census ===

impl Census {
    /// An address in use.
    pub(super) fn used(&self, address: IpAddr) -> Option<Used<'_>> {
        self.blocks.used(address, &self.pods)
    }

    /// Whether there may be a claim on the address that cannot be read.
    pub(super) fn is_unread(&self, address: IpAddr) -> bool {
        self.unreadable.iter().any(|record| record.address.is_none_or(|of| of == address))
    }

    /// The claim on an address.
    pub(super) fn claim(&self, address: IpAddr) -> Option<&Claim> {
        let claims = self.claims.as_deref()?;
        let at = claims.binary_search_by_key(&address, |claim| claim.value.address).ok()?;
        Some(&claims[at].value)
    }

    /// Why nobody uses an allocation any more, see [`staleness`].
    pub(super) fn staleness(&self, used: &Used<'_>) -> Option<String> {
        let pod = used.party.pod().and_then(|(namespace, name)| self.pods.get(namespace, name));
        let is_machine_gone = |namespace: &str, name: &str| is_machine_gone(&self.owners, namespace, name);
        staleness(used.address, &used.party, pod.as_ref(), |node| self.nodes.exists(node), is_machine_gone)
    }
}

// === impl Handles ===

impl Handles {
    /// Takes down a handle: as a whole, if it does not count what the blocks bear.
    pub(super) fn add(&mut self, handle: IPAMHandle, blocks: &Blocks) {
        let name = handle.name_any();
        self.known.add(&name);
        if handle.spec.is_deleted() || handle.spec.is_empty() || counted(&handle) != Some(blocks.borne_by(name)) {
            self.kept.push(handle);
        }
    }

    /// To be called once all are in.
    pub(super) fn sort(&mut self) {
        self.known.sort();
    }

    /// Whether there is a handle for an id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.known.has(&handle_name(id))
    }
}

// === impl Affinities ===

impl Affinities {
    /// Takes down an affinity: as a whole, unless it stands in order.
    pub(super) fn add(&mut self, affinity: BlockAffinity, blocks: &Blocks) {
        let spec = &affinity.spec;
        // By the name that every writer looks for, whatever its own is.
        self.known.add(&affinity_name(&spec.node, &spec.cidr));
        let leads_to_block = blocks.get(&spec.cidr).is_some_and(|block| block.host() == Some(&spec.node));
        if !affinity.is_confirmed() || affinity.is_deleted() || !leads_to_block || !affinity.is_labelled() {
            self.kept.push(affinity);
        }
    }

    /// To be called once all are in.
    pub(super) fn sort(&mut self) {
        self.known.sort();
    }

    /// Whether there is an affinity that goes by that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.known.has(name)
    }
}

// === impl Known ===

impl Known {
    fn add(&mut self, name: &str) {
        self.0.push(blocks::digest(name));
    }

    /// To be called once all are in: only then they are found.
    fn sort(&mut self) {
        self.0.sort_unstable();
    }

    fn has(&self, name: &str) -> bool {
        self.0.binary_search(&blocks::digest(name)).is_ok()
    }
}

/// What a handle counts; `None` if it names what is no block.
pub(super) fn counted(handle: &IPAMHandle) -> Option<Counts> {
    handle.spec.block.iter().map(|(cidr, count)| Some((cidr.parse().ok()?, *count))).collect()
}

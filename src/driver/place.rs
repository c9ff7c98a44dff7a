//! Finding a block with room for a random address, by Calico's rules: an own block, a new one, an empty one
//! taken back, another node's.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use calico::{AllowedUse, BlockAffinity, Family, IPAMBlock, IPPool, PoolRequest, Reservations, cidr_name, eligible};
use futures::future::try_join_all;
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use tokio::time::Instant;

use super::block::Claimed;
use super::searches::Terms;
use super::snapshot::{Snapshot, contains, labels};
use super::wants::Named;
use super::{Attachment, Driver, Error, Trace};
use crate::range::RangeSet;
use crate::store::{Ledger, Objects, StoreError};

/// How many blocks of a pool are looked at one by one, before all of them are listed.
const PROBES: usize = 32;
/// How many of those at a time.
const PROBES_AT_ONCE: usize = 8;

/// A search for room in one family.
pub(super) struct Search<'a> {
    pub attachment: &'a Attachment<'a>,
    pub snapshot: &'a Snapshot,
    pub node: Option<&'a Node>,
    pub family: Family,
    /// Pools that the pod, its namespace or the config ask for.
    pub named: &'a Named,
    pub reservations: &'a Reservations,
}

/// Where an address may be taken.
pub(super) struct Room {
    pub block: IPAMBlock,
    /// Whether the block must be this node's at the time of the write.
    pub own: bool,
}

/// Nothing is left: what was looked at.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Exhaustion {
    /// Family of the address that was wanted.
    pub family: Family,
    /// The configured ranges, or the pools where none are configured.
    pub range: String,
    /// Addresses that could be given out at all.
    pub size: u128,
    /// Of those, in use.
    pub used: u128,
    /// Of those, free but reserved (by fixed addresses or other IPReservations).
    pub reserved: u128,
    /// Free ones in blocks that the rules keep from this node.
    pub out_of_reach: u128,
    /// Which rule kept the node from them, or from claiming another block.
    pub because: Option<String>,
}

/// The pools that are named for a pod have no address of the configured range.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{by} names IPPool {pools}, and the CNI config has subnet {range}: no address lies in both")]
pub struct Apart {
    /// Where the pools are named.
    pub by: String,
    /// Their names and networks.
    pub pools: String,
    /// The configured subnets and ranges.
    pub range: String,
}

/// The blocks of a search that exist already.
#[derive(Default)]
struct Seen {
    blocks: Vec<IPAMBlock>,
}

impl fmt::Display for Exhaustion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, range, size, used, reserved, out_of_reach, because } = self;
        write!(f, "no {family} address is left in {range}: {size} in all, {used} in use, {reserved} reserved")?;
        if *out_of_reach > 0 {
            write!(f, ", {out_of_reach} free in blocks of other nodes")?;
        }
        because.as_ref().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

// === impl Search ===

impl Search<'_> {
    fn ranges(&self) -> Option<&RangeSet> {
        self.attachment.net.ipam.ranges(self.family)
    }

    /// Whether automatic assignment may give this address.
    pub(super) fn permits(&self, address: IpAddr) -> bool {
        self.ranges().is_none_or(|r| r.permits_random(address)) && !self.reservations.covers(address)
    }

    fn in_range(&self, cidr: &IpNetwork) -> bool {
        self.ranges().is_none_or(|r| r.intersects(cidr)) && !self.reservations.covers_all(cidr)
    }

    /// The blocks of a pool that the range touches, from a point that depends on the node: nodes spread out
    /// instead of racing for the same block.
    fn blocks_of<'p>(&'p self, pool: &'p IPPool) -> impl Iterator<Item = IpNetwork> + 'p {
        let start = pool.spec.start_for(self.attachment.node);
        let spans: Vec<(IpAddr, IpAddr)> = match self.ranges() {
            Some(ranges) => ranges.subnets().iter().map(|s| (s.start, s.end)).collect(),
            None => vec![(pool.spec.cidr.network(), pool.spec.cidr.broadcast())],
        };
        let blocks = spans.into_iter().flat_map(move |(first, last)| pool.spec.blocks_within(first, last, start));
        blocks.filter(|cidr| self.in_range(cidr))
    }

    fn terms(&self, pools: &[&IPPool]) -> Terms {
        let pools = pools.iter().map(|pool| pool.name_any()).collect();
        Terms { family: self.family, range: self.ranges().map(ToString::to_string), pools }
    }

    /// The pools that this pod may take an address from.
    fn pools(&self) -> Result<Vec<&IPPool>, Error> {
        let node_labels = labels(self.node);
        let namespace_labels = labels(self.snapshot.namespace.as_ref());
        let request = PoolRequest {
            family: self.family,
            requested: &self.named.pools,
            use_: AllowedUse::Workload,
            node_labels: &node_labels,
            namespace_labels: &namespace_labels,
            automatic: true,
        };
        let pools = eligible(&self.snapshot.pools, &request)?;
        let Some(ranges) = self.ranges() else { return Ok(pools) };
        let within = |pool: &IPPool| ranges.intersects(&pool.spec.cidr);
        if pools.iter().any(|pool| within(pool)) {
            return Ok(pools);
        }
        if self.named.pools.is_empty() {
            // What keeps the pod from those that the range lies in.
            let ours: Vec<IPPool> = self.snapshot.pools.iter().filter(|pool| within(pool)).cloned().collect();
            eligible(&ours, &request)?;
        }
        let pools: Vec<String> = pools.iter().map(|p| format!("{} ({})", p.name_any(), p.spec.cidr)).collect();
        Err(Apart { by: self.named.by.clone(), pools: pools.join(", "), range: ranges.to_string() }.into())
    }
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// The node's own blocks of the families wanted, read side by side; those that turn out to be another's
    /// or missing are left to the claim that follows.
    pub(super) async fn own_blocks(
        &self,
        attachment: &Attachment<'_>,
        affinities: &[BlockAffinity],
        families: &[Family],
    ) -> Result<Vec<IPAMBlock>, StoreError> {
        let wanted = |a: &&BlockAffinity| {
            let family = Family::of(a.spec.cidr.ip());
            let in_range = attachment.net.ipam.ranges(family).is_none_or(|r| r.intersects(&a.spec.cidr));
            a.is_confirmed()
                && !a.is_deleted()
                && a.spec.node == attachment.node
                && families.contains(&family)
                && in_range
        };
        let reads = affinities.iter().filter(wanted).map(|a| self.read_block(a.spec.cidr));
        let blocks = try_join_all(reads).await?;
        Ok(blocks.into_iter().flatten().filter(|b| b.spec.host() == Some(attachment.node)).collect())
    }

    pub(super) async fn read_block(&self, cidr: IpNetwork) -> Result<Option<IPAMBlock>, StoreError> {
        let block = self.objects.get::<IPAMBlock>(None, &cidr_name(&cidr)).await?;
        Ok(block.filter(|b| !b.spec.is_deleted()))
    }

    /// A block with room. `own` are the node's blocks as just read; blocks in `full` were tried in vain.
    pub(super) async fn find_room(
        &self,
        search: &Search<'_>,
        own: &[IPAMBlock],
        full: &[IpNetwork],
    ) -> Result<Room, Error> {
        let pools = search.pools()?;
        let in_pools = |b: &&IPAMBlock| pools.iter().any(|p| contains(&p.spec.cidr, &b.spec.cidr));
        let own: Vec<&IPAMBlock> =
            own.iter().filter(|b| Family::of(b.spec.cidr.ip()) == search.family).filter(in_pools).collect();
        if let Some(block) = own.iter().find(|b| !full.contains(&b.spec.cidr) && self.free(search, b) > 0) {
            return Ok(Room { block: (*block).clone(), own: true });
        }
        if let Some(room) = self.about_to_be_free(search, &own).await? {
            return Ok(room);
        }
        let asked = Instant::now();
        let terms = search.terms(&pools);
        let mut results = self.queues.searches.turn(search.attachment.deadline).await?;
        if let Some(room) = self.found_meanwhile(search, &pools, full, results.rooms(asked)).await? {
            return Ok(room);
        }
        if let Some(exhausted) = results.exhausted_since(asked, &terms) {
            return Err(Error::Exhausted(Box::new(exhausted)));
        }
        // The other processes of this node would claim the same block, against this one.
        let _pass = self.gate.search().await;
        let begun = Instant::now();
        let outcome = self.search(search, &pools, own.len(), full).await;
        match &outcome {
            Ok(room) => results.note_room(room.block.spec.cidr),
            Err(Error::Exhausted(exhausted)) if full.is_empty() => {
                results.note_exhaustion(begun, terms, (**exhausted).clone());
            }
            Err(_) => {}
        }
        outcome
    }

    /// One of the node's blocks, `own`, in which a DEL that was answered already has just released an address: a pod
    /// that comes after another one finds the room that this had.
    async fn about_to_be_free(&self, search: &Search<'_>, own: &[&IPAMBlock]) -> Result<Option<Room>, Error> {
        if own.is_empty() || !self.gate.releases().await {
            return Ok(None);
        }
        for known in own {
            let Some(block) = self.read_block(known.spec.cidr).await? else { continue };
            if block.spec.host() == Some(search.attachment.node) && self.free(search, &block) > 0 {
                return Ok(Some(Room { block, own: true }));
            }
        }
        Ok(None)
    }

    /// A block that another call found: one that is this node's by now, or any that it found while this one waited for
    /// its turn.
    async fn found_meanwhile(
        &self,
        search: &Search<'_>,
        pools: &[&IPPool],
        full: &[IpNetwork],
        found: Vec<(IpNetwork, bool)>,
    ) -> Result<Option<Room>, Error> {
        let fits = |cidr: &IpNetwork| !full.contains(cidr) && pools.iter().any(|p| contains(&p.spec.cidr, cidr));
        for (cidr, meanwhile) in found.into_iter().filter(|(cidr, _)| fits(cidr)) {
            let Some(block) = self.read_block(cidr).await? else { continue };
            let own = block.spec.host() == Some(search.attachment.node);
            if (own || meanwhile && !search.snapshot.config.strict_affinity) && self.free(search, &block) > 0 {
                return Ok(Some(Room { block, own }));
            }
        }
        Ok(None)
    }

    /// Looks for a block beyond the `own` ones that the node has.
    async fn search(
        &self,
        search: &Search<'_>,
        pools: &[&IPPool],
        own: usize,
        full: &[IpNetwork],
    ) -> Result<Room, Error> {
        let config = &search.snapshot.config;
        let attachment = search.attachment;
        let old = self.unlabelled_affinities(attachment.node, attachment.deadline).await?;
        let mut old = self.own_blocks(attachment, &old, &[search.family]).await?;
        old.retain(|b| pools.iter().any(|p| contains(&p.spec.cidr, &b.spec.cidr)));
        if let Some(block) = old.iter().find(|b| !full.contains(&b.spec.cidr) && self.free(search, b) > 0) {
            return Ok(Room { block: block.clone(), own: true });
        }
        let own = own + old.len();
        let at_limit = own >= config.max_blocks();
        let may_claim = config.auto_allocate_blocks && !at_limit;
        let mut seen = Seen::default();
        for pool in pools {
            if let Some(block) = self.claim_new(search, pool, may_claim, &mut seen).await? {
                return Ok(Room { block, own: true });
            }
        }
        if may_claim && let Some(block) = self.take_back(search, &seen).await? {
            return Ok(Room { block, own: true });
        }
        let because = if at_limit {
            Some(format!("this node has {own} blocks, and maxBlocksPerHost is {}", config.max_blocks()))
        } else if config.strict_affinity {
            Some("strictAffinity forbids to borrow from other nodes' blocks".to_owned())
        } else {
            let free = seen.blocks.iter().find(|b| !full.contains(&b.spec.cidr) && self.free(search, b) > 0);
            if let Some(block) = free {
                return Ok(Room { block: block.clone(), own: false });
            }
            (!config.auto_allocate_blocks)
                .then(|| "autoAllocateBlocks is false: no new block may be claimed".to_owned())
        };
        Err(Error::Exhausted(Box::new(self.exhaustion(search, pools, &seen, because))))
    }

    fn free(&self, search: &Search<'_>, block: &IPAMBlock) -> usize {
        if block.spec.validate().is_err() {
            return 0;
        }
        let free = block.spec.free(|a| search.permits(a));
        if free > 0 {
            return free;
        }
        // What has cooled down long enough.
        let mut spec = block.spec.clone();
        spec.collect(search.snapshot.config.cooldown_seconds(), self.now());
        spec.free(|a| search.permits(a))
    }

    /// Claims a block of `pool` that nobody has. Every block met on the way is remembered in `seen`.
    async fn claim_new(
        &self,
        search: &Search<'_>,
        pool: &IPPool,
        may_claim: bool,
        seen: &mut Seen,
    ) -> Result<Option<IPAMBlock>, Error> {
        let candidates = || search.blocks_of(pool);
        let probes: Vec<IpNetwork> = candidates().take(PROBES).collect();
        for chunk in probes.chunks(PROBES_AT_ONCE) {
            let found = try_join_all(chunk.iter().map(|cidr| self.read_block(*cidr))).await?;
            for (cidr, block) in chunk.iter().zip(found) {
                if let Some(claimed) = self.claim_unless(search, *cidr, block, may_claim, seen).await? {
                    return Ok(Some(claimed));
                }
            }
        }
        if candidates().nth(PROBES).is_none() {
            return Ok(None);
        }
        let mut listed = self.objects.list::<IPAMBlock>("").await?;
        listed.retain(|b| {
            !b.spec.is_deleted() && contains(&pool.spec.cidr, &b.spec.cidr) && search.in_range(&b.spec.cidr)
        });
        let mut known: BTreeMap<IpNetwork, IPAMBlock> = listed.into_iter().map(|b| (b.spec.cidr, b)).collect();
        seen.blocks.iter().for_each(|b| drop(known.remove(&b.spec.cidr)));
        // Ends at the first block that does not exist, so a pool of 2^70 blocks is no longer walk than it has blocks in use.
        for cidr in candidates().skip(PROBES).take_while(|_| may_claim) {
            if let Some(claimed) = self.claim_unless(search, cidr, known.remove(&cidr), may_claim, seen).await? {
                return Ok(Some(claimed));
            }
        }
        seen.blocks.extend(known.into_values());
        Ok(None)
    }

    async fn claim_unless(
        &self,
        search: &Search<'_>,
        cidr: IpNetwork,
        block: Option<IPAMBlock>,
        may_claim: bool,
        seen: &mut Seen,
    ) -> Result<Option<IPAMBlock>, Error> {
        let attachment = search.attachment;
        let found = match block {
            // Ours, but missing among the own blocks: another process of this node has just claimed it, or its affinity
            // was never confirmed.
            Some(block) if may_claim && block.spec.host() == Some(attachment.node) && self.free(search, &block) > 0 => {
                if self.has_affinity(&block, attachment.node).await? {
                    return Ok(Some(block));
                }
                None
            }
            Some(block) => Some(block),
            None if !may_claim => return Ok(None),
            None => None,
        };
        match found {
            Some(block) => seen.blocks.push(block),
            None => {
                self.gate.note(&attachment.handle(), Trace::Block);
                match self.claim_block(cidr, attachment.node, attachment.deadline).await? {
                    Claimed::Ours(block) if self.free(search, &block) > 0 => return Ok(Some(block)),
                    Claimed::Ours(block) | Claimed::Theirs(block) => seen.blocks.push(block),
                }
            }
        }
        Ok(None)
    }

    /// Takes back an empty block that another node claimed a while ago.
    async fn take_back(&self, search: &Search<'_>, seen: &Seen) -> Result<Option<IPAMBlock>, Error> {
        let attachment = search.attachment;
        for block in seen.blocks.iter().filter(|b| b.spec.host() != Some(attachment.node)) {
            self.gate.note(&attachment.handle(), Trace::Block);
            if self.free(search, block) == 0 || !self.reclaim_block(block, attachment.deadline).await? {
                continue;
            }
            if let Claimed::Ours(block) =
                self.claim_block(block.spec.cidr, attachment.node, attachment.deadline).await?
            {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    fn exhaustion(&self, search: &Search<'_>, pools: &[&IPPool], seen: &Seen, because: Option<String>) -> Exhaustion {
        let in_range = |a: IpAddr| search.ranges().is_none_or(|r| r.permits_random(a));
        let (mut used, mut reserved, mut out_of_reach) = (0, 0, 0);
        for block in &seen.blocks {
            used += block.spec.entries().filter(|(a, _)| in_range(*a)).count() as u128;
            reserved += block.spec.free(|a| in_range(a) && search.reservations.covers(a)) as u128;
            out_of_reach += block.spec.free(|a| search.permits(a)) as u128;
        }
        let names: Vec<String> = pools.iter().map(|p| format!("{} {}", p.name_any(), p.spec.cidr)).collect();
        let range = search.ranges().map_or_else(|| format!("IPPools {}", names.join(", ")), |r| format!("range {r}"));
        let size = search
            .ranges()
            .map_or_else(|| pools.iter().map(|p| calico::address_count(&p.spec.cidr)).sum(), RangeSet::size);
        Exhaustion { family: search.family, range, size, used, reserved, out_of_reach, because }
    }
}

//! How full pools and blocks are, counted as Calico's own tools count.
//!
//! In use is everything that is not on a block's free list, so cooling addresses too. Reserved is what
//! IPReservations cover, in use or not; free is what is neither. The three need not add up to the total.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::net;
use crate::{AllocationAttribute, Entry, IPAMBlock, IPPool, Reservations};

/// Numbers of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All there are; saturates at `u128::MAX`.
    pub total: u128,
    /// In use or cooling.
    pub in_use: u128,
    /// Covered by an IPReservation.
    pub reserved: u128,
    /// Neither in use nor reserved, whether or not a block holds them yet.
    pub free: u128,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockUse<'a> {
    /// The block.
    pub block: &'a IPAMBlock,
    /// Its addresses.
    pub counts: Counts,
    /// How many of those in use are used on another node than the block's.
    pub borrowed: u128,
}

/// One pool with its blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolUse<'a> {
    /// The pool.
    pub pool: &'a IPPool,
    /// Its addresses, in blocks and outside of them.
    pub counts: Counts,
    /// Its blocks, in order.
    pub blocks: Vec<BlockUse<'a>>,
}

/// All pools, in the order in which they were given, and the blocks that lie in none of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Utilization<'a> {
    /// The pools.
    pub pools: Vec<PoolUse<'a>>,
    /// Blocks whose pool is gone.
    pub orphans: Vec<BlockUse<'a>>,
}

/// An address in use on another node than its block's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Borrowed<'a> {
    /// The address.
    pub address: IpAddr,
    /// The node that uses it.
    pub node: &'a str,
    /// The block.
    pub block: &'a IPAMBlock,
    /// Who uses it.
    pub attribute: &'a AllocationAttribute,
}

impl<'a> Utilization<'a> {
    /// Counts. A block belongs to the first pool that it overlaps; one marked deleted counts as absent.
    pub fn of(pools: &'a [IPPool], blocks: &'a [IPAMBlock], reservations: &Reservations) -> Self {
        let mut by_pool: Vec<Vec<BlockUse<'a>>> = vec![Vec::new(); pools.len()];
        let mut orphans = Vec::new();
        let mut sorted: Vec<&IPAMBlock> = blocks.iter().filter(|block| !block.spec.is_deleted()).collect();
        sorted.sort_by_key(|block| block.spec.cidr);
        for block in sorted {
            let used = BlockUse::of(block, reservations);
            match pools.iter().position(|pool| net::overlap(&pool.spec.cidr, &block.spec.cidr)) {
                Some(index) => by_pool[index].push(used),
                None => orphans.push(used),
            }
        }
        let pools = pools.iter().zip(by_pool).map(|(pool, blocks)| PoolUse::of(pool, blocks, reservations)).collect();
        Self { pools, orphans }
    }
}

impl<'a> PoolUse<'a> {
    fn of(pool: &'a IPPool, blocks: Vec<BlockUse<'a>>, reservations: &Reservations) -> Self {
        let cidr = &pool.spec.cidr;
        let reserved: Vec<IpNetwork> = reservations.networks().copied().collect();
        let taken: Vec<IpNetwork> = reserved.iter().copied().chain(blocks.iter().map(|b| b.block.spec.cidr)).collect();
        let total = net::count(cidr);
        let outside_blocks = total.saturating_sub(covered(cidr, &taken));
        let counts = Counts {
            total,
            in_use: blocks.iter().map(|b| b.counts.in_use).sum(),
            reserved: covered(cidr, &reserved),
            free: blocks.iter().fold(outside_blocks, |sum, b| sum.saturating_add(b.counts.free)),
        };
        Self { pool, counts, blocks }
    }
}

impl<'a> BlockUse<'a> {
    fn of(block: &'a IPAMBlock, reservations: &Reservations) -> Self {
        let spec = &block.spec;
        let total = net::count(&spec.cidr);
        let reserved: Vec<IpNetwork> = reservations.networks().copied().collect();
        let free = spec.unallocated.iter().filter(|ordinal| !reservations.covers(spec.address(**ordinal)));
        let counts = Counts {
            total,
            in_use: total.saturating_sub(spec.unallocated.len() as u128),
            reserved: covered(&spec.cidr, &reserved),
            free: free.count() as u128,
        };
        Self { block, counts, borrowed: borrowed(block).count() as u128 }
    }
}

/// The addresses of a block that are used on another node than its own, or on any if it is nobody's.
pub fn borrowed(block: &IPAMBlock) -> impl Iterator<Item = Borrowed<'_>> {
    block.spec.entries().filter_map(move |(address, entry)| {
        let Entry::Used { attribute, .. } = entry else { return None };
        let node = attribute.secondary("node")?;
        (block.spec.host() != Some(node)).then_some(Borrowed { address, node, block, attribute })
    })
}

/// How many addresses of `cidr` the networks cover together. Networks nest or are apart, so once those that
/// lie in another are left out the others add up.
fn covered(cidr: &IpNetwork, networks: &[IpNetwork]) -> u128 {
    if networks.iter().any(|network| net::covers(network, cidr)) {
        return net::count(cidr);
    }
    let mut inside: Vec<&IpNetwork> = networks.iter().filter(|network| net::covers(cidr, network)).collect();
    inside.sort_by_key(|network| (net::number(network.network()), network.prefix()));
    let mut last: Option<&IpNetwork> = None;
    let mut sum = 0u128;
    for network in inside {
        if last.is_none_or(|outer| !net::covers(outer, network)) {
            sum = sum.saturating_add(net::count(network));
            last = Some(network);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn covered_by(network: &str, by: &[&str]) -> u128 {
        covered(&cidr(network), &by.iter().map(|text| cidr(text)).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_covered_twice_counts_once() {
        assert_eq!(covered_by("10.0.0.0/24", &["10.0.0.0/30", "10.0.0.1/32", "10.0.0.0/30", "10.0.0.8/31"]), 6);
        assert_eq!(covered_by("10.0.0.0/24", &["10.0.0.0/16"]), 256);
        assert_eq!(covered_by("10.0.0.0/24", &["10.0.1.0/24", "fd00::/64", "::/0"]), 0);
        assert_eq!(covered_by("::/0", &["::/1", "8000::/1"]), u128::MAX);
    }
}

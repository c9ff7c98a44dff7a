//! What is to be run: which workloads there are, which of them have fixed addresses, and where each pod runs next.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use ipnetwork::Ipv4Network;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::Options;
use crate::bench::ground::BLOCK_SIZE;

/// The subnet's first address. Fixed ones begin some further on, as people leave room for routers.
const FIRST: u32 = u32::from_be_bytes([10, 240, 0, 0]);
const LEFT_OUT: u32 = 10;
/// The largest subnet: a million addresses.
const WIDEST: u8 = 12;

/// The workloads, and where their pods are.
#[derive(Debug)]
pub(super) struct Plan {
    /// As many blocks as are needed and a third more: nodes find many that others have.
    pub subnet: Ipv4Network,
    /// What random pods may get.
    pub range: (Ipv4Addr, Ipv4Addr),
    /// The fixed address of each workload that has one.
    pub fixed: Vec<Option<Ipv4Addr>>,
    /// The node of each workload's pod.
    pub places: Vec<usize>,
    pods: usize,
    random: StdRng,
}

/// A piece of a round, worked off by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// The random pods of one node, side by side.
    Node(Vec<usize>),
    /// The fixed pod of a workload, which goes to this node.
    Move(usize, usize),
}

// === impl Plan ===

impl Plan {
    pub(super) fn new(options: &Options) -> Result<Plan> {
        let &Options { nodes, pods, fixed, seed, .. } = options;
        let count = nodes * pods;
        // Spread evenly: each time the share's whole part grows.
        let is_fixed = |workload: usize| workload * fixed / 100 != (workload + 1) * fixed / 100;
        let mut next = FIRST + LEFT_OUT;
        let mut fixed = Vec::with_capacity(count);
        for workload in 0..count {
            fixed.push(is_fixed(workload).then(|| Ipv4Addr::from(next)));
            next += u32::from(is_fixed(workload));
        }
        let of_block = 1usize << (32 - BLOCK_SIZE);
        let wanted = nodes * pods.div_ceil(of_block) + (next - FIRST).div_ceil(64) as usize;
        let bits = (wanted + wanted / 3).next_power_of_two().trailing_zeros();
        let prefix = BLOCK_SIZE.saturating_sub(u8::try_from(bits)?);
        ensure!(prefix >= WIDEST, "{nodes} nodes with {pods} pods each need more than a /{WIDEST}");
        let subnet = Ipv4Network::new(Ipv4Addr::from(FIRST), prefix)?;
        let last = u32::from(subnet.broadcast()) - 1;
        Ok(Plan {
            subnet,
            range: (Ipv4Addr::from(next), Ipv4Addr::from(last)),
            fixed,
            places: (0..count).map(|workload| workload / pods).collect(),
            pods,
            random: StdRng::seed_from_u64(seed),
        })
    }

    /// The fixed addresses and their owners' names.
    pub(super) fn owners(&self) -> BTreeMap<IpAddr, String> {
        let named = |(workload, address): (usize, &Option<Ipv4Addr>)| Some(((*address)?.into(), owner(workload)));
        self.fixed.iter().enumerate().filter_map(named).collect()
    }

    /// Every pod where it is, in an order of its own.
    pub(super) fn stay(&mut self) -> Vec<Piece> {
        let mut pieces = self.nodes();
        pieces.extend(self.movers().into_iter().map(|workload| Piece::Move(workload, self.places[workload])));
        pieces.shuffle(&mut self.random);
        pieces
    }

    /// Every random pod made again on its node, and every fixed one on the node of another.
    pub(super) fn churn(&mut self) -> Vec<Piece> {
        let mut pieces = self.nodes();
        let movers = self.movers();
        let mut places: Vec<usize> = movers.iter().map(|workload| self.places[*workload]).collect();
        if places.len() > 1 {
            let by = self.random.random_range(1..places.len());
            places.rotate_left(by);
        }
        for (workload, place) in movers.into_iter().zip(places) {
            self.places[workload] = place;
            pieces.push(Piece::Move(workload, place));
        }
        pieces.shuffle(&mut self.random);
        pieces
    }

    fn nodes(&self) -> Vec<Piece> {
        let nodes = (0..self.fixed.len()).step_by(self.pods);
        let random = |first: usize| (first..first + self.pods).filter(|workload| self.fixed[*workload].is_none());
        nodes.map(|first| Piece::Node(random(first).collect())).collect()
    }

    fn movers(&self) -> Vec<usize> {
        (0..self.fixed.len()).filter(|workload| self.fixed[*workload].is_some()).collect()
    }
}

/// Name of a workload's Deployment.
pub(super) fn owner(workload: usize) -> String {
    format!("fixed-{workload}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(nodes: usize, pods: usize, fixed: usize) -> Plan {
        Plan::new(&Options { nodes, pods, fixed, ..Options::default() }).unwrap()
    }

    #[test]
    fn fixed_addresses_lie_before_the_range_and_the_subnet_is_not_much_larger_than_what_is_needed() {
        let plan = plan(1500, 10, 10);
        assert_eq!(plan.fixed.iter().flatten().count(), 1500);
        assert_eq!(plan.subnet.to_string(), "10.240.0.0/15");
        assert_eq!(plan.range.0, "10.240.5.230".parse::<Ipv4Addr>().unwrap());
        assert!(plan.fixed.iter().flatten().all(|address| *address < plan.range.0));
        assert_eq!(plan.owners().len(), 1500);
        let (none, all) = (self::plan(3, 4, 0), self::plan(3, 4, 100));
        assert_eq!((none.fixed.iter().flatten().count(), all.fixed.iter().flatten().count()), (0, 12));
    }

    #[test]
    fn a_churn_moves_every_fixed_pod_and_touches_every_workload_once() {
        let mut plan = plan(5, 10, 10);
        let before = plan.places.clone();
        for churns in [false, true] {
            let pieces = if churns { plan.churn() } else { plan.stay() };
            let mut touched: Vec<usize> = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Node(workloads) => touched.extend(workloads),
                    Piece::Move(workload, place) => {
                        assert_eq!(place, plan.places[workload]);
                        touched.push(workload);
                    }
                }
            }
            touched.sort_unstable();
            assert_eq!(touched, (0..50).collect::<Vec<_>>());
        }
        let moved = (0..50).filter(|workload| plan.places[*workload] != before[*workload]).collect::<Vec<_>>();
        assert_eq!(moved, [9, 19, 29, 39, 49]);
    }
}

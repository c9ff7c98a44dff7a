//! What is done to whom, in an order that a seed gives: a deck of harms, shuffled anew whenever it is used up.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::members::{Cut, MEMBERS};

/// One harm, with everything that can be said of it beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Harm {
    /// One of the next calls is killed after so long.
    KillPlugin {
        after: Duration,
    },
    /// The agent of a node.
    KillAgent {
        node: usize,
        down: Duration,
    },
    KillApiServer {
        down: Duration,
    },
    KillLeader {
        down: Duration,
    },
    /// A member that does not lead, counted from the leader.
    KillFollower {
        next: usize,
        down: Duration,
    },
    /// The leader and another one: nobody is left who could agree.
    KillMajority {
        down: Duration,
    },
    /// A member is cut off: the leader, or another one.
    Partition {
        leader: bool,
        cut: Cut,
        lasts: Duration,
    },
    /// The state directory of a node has no room.
    FillDisk {
        node: usize,
        lasts: Duration,
    },
    /// The disk of one etcd member, counted from the leader, has no room.
    FillMemberDisk {
        next: usize,
        lasts: Duration,
    },
    /// The disks of all etcd members.
    FillAllDisks {
        lasts: Duration,
    },
    /// etcd holds more than its quota allows.
    ExceedQuota {
        lasts: Duration,
    },
    /// An agent stands still.
    Freeze {
        node: usize,
        lasts: Duration,
    },
    /// A node's clock goes back, and comes right again.
    SetClockBack {
        node: usize,
        seconds: u64,
        lasts: Duration,
    },
}

/// The sequence of harms of a seed, each with the pause before it.
pub(super) struct Plan {
    random: StdRng,
    deck: VecDeque<Card>,
    agents: usize,
    nodes: usize,
    clocks: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Card {
    Plugin,
    Agent,
    ApiServer,
    Leader,
    Follower,
    Majority,
    Partition,
    Disk,
    MemberDisk,
    AllDisks,
    Quota,
    Freeze,
    Clock,
}

/// How often each harm is in the deck.
const DECK: [(Card, usize); 13] = [
    (Card::Plugin, 30),
    (Card::Agent, 14),
    (Card::Leader, 4),
    (Card::Follower, 2),
    (Card::Majority, 1),
    (Card::ApiServer, 2),
    (Card::Partition, 3),
    (Card::Disk, 2),
    (Card::MemberDisk, 1),
    (Card::AllDisks, 1),
    (Card::Quota, 1),
    (Card::Freeze, 3),
    (Card::Clock, 2),
];
/// Pause between two harms, in milliseconds.
const PAUSE: std::ops::Range<u64> = 50..1000;

// === impl Plan ===

impl Plan {
    /// Of a cluster whose first `agents` nodes have agents; `clocks`: whether nodes have clocks of their own.
    pub(super) fn of(seed: u64, agents: usize, nodes: usize, clocks: bool) -> Plan {
        Plan { random: StdRng::seed_from_u64(seed), deck: VecDeque::new(), agents, nodes, clocks }
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    /// Of all of etcd: most calls outlast it, or none does.
    fn outage(&mut self) -> Duration {
        if self.random.random_ratio(1, 3) { self.millis(10_000..14_000) } else { self.millis(500..4000) }
    }

    fn card(&mut self) -> Card {
        if self.deck.is_empty() {
            let mut deck: Vec<Card> = DECK
                .iter()
                .filter(|(card, _)| self.clocks || *card != Card::Clock)
                .flat_map(|(card, times)| std::iter::repeat_n(*card, *times))
                .collect();
            deck.shuffle(&mut self.random);
            self.deck = deck.into();
        }
        self.deck.pop_front().unwrap_or(Card::Plugin)
    }

    fn harm(&mut self, card: Card) -> Harm {
        let agent = self.random.random_range(0..self.agents);
        let node = self.random.random_range(0..self.nodes);
        let some = |plan: &mut Plan| plan.millis(500..4000);
        match card {
            // Most calls take milliseconds; some wait.
            Card::Plugin if self.random.random_ratio(1, 5) => Harm::KillPlugin { after: self.millis(50..2000) },
            Card::Plugin => Harm::KillPlugin { after: self.millis(0..60) },
            Card::Agent => Harm::KillAgent { node: agent, down: self.millis(0..1500) },
            Card::ApiServer => Harm::KillApiServer { down: self.millis(0..1000) },
            Card::Leader => Harm::KillLeader { down: self.millis(0..2500) },
            Card::Follower => Harm::KillFollower { next: self.random.random_range(1..3), down: some(self) },
            Card::Majority => Harm::KillMajority { down: self.millis(0..2000) },
            Card::Partition => {
                let cut = if self.random.random_ratio(1, 2) { Cut::Wholly } else { Cut::FromPeers };
                Harm::Partition { leader: self.random.random_ratio(2, 3), cut, lasts: some(self) }
            }
            Card::Disk => Harm::FillDisk { node, lasts: some(self) },
            Card::MemberDisk => Harm::FillMemberDisk { next: self.random.random_range(0..MEMBERS), lasts: some(self) },
            Card::AllDisks => Harm::FillAllDisks { lasts: self.outage() },
            Card::Quota => Harm::ExceedQuota { lasts: self.outage() },
            Card::Freeze => Harm::Freeze { node: agent, lasts: some(self) },
            Card::Clock => Harm::SetClockBack { node, seconds: self.random.random_range(20..300), lasts: some(self) },
        }
    }
}

/// Without end.
impl Iterator for Plan {
    type Item = (Duration, Harm);

    fn next(&mut self) -> Option<Self::Item> {
        let pause = self.millis(PAUSE);
        let card = self.card();
        Some((pause, self.harm(card)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harms(seed: u64, clocks: bool) -> Vec<(Duration, Harm)> {
        Plan::of(seed, 3, 4, clocks).take(132).collect()
    }

    #[test]
    fn a_seed_gives_one_sequence_and_another_seed_another() {
        assert_eq!(harms(1, true), harms(1, true));
        assert_ne!(harms(1, true), harms(2, true));
    }

    #[test]
    fn every_harm_is_in_every_deck_and_clocks_only_where_they_can_be_set() {
        let kinds = |harms: &[(Duration, Harm)]| {
            let kinds = harms.iter().map(|(_, harm)| format!("{harm:?}").split(' ').next().map(str::to_owned));
            kinds.collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(kinds(&harms(3, true)[..66]), 13);
        assert_eq!(kinds(&harms(3, false)[..64]), 12);
    }
}

//! What came of a run, in figures.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Options;
use super::books::Breach;
use super::collector::Collected;
use super::meter::{Counts, Refused};
use super::servers::{Servers, Usage};
use super::verdict::Findings;
use crate::bench::{Machine, Spread};

/// Of each kind of finding so many are told in words.
pub(super) const TOLD: usize = 10;

/// Everything that one run measured and counted.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// How large it was.
    pub options: Options,
    /// Filling, every round, emptying.
    pub rounds: Vec<Round>,
    /// All of them together.
    pub total: Round,
    /// Requests that the API server answered with 409, by its own count, whoever made them.
    pub server_conflicts: f64,
    /// Requests that it put off by 429.
    pub server_put_off: f64,
    /// What the API server used.
    pub api_server: Usage,
    /// What etcd used.
    pub etcd: Usage,
    /// Size of etcd's database in MB at the end.
    pub etcd_size: f64,
    /// What this process used: all nodes, the collector, the books.
    pub load: Usage,
    /// The collector's work.
    pub collector: Collected,
}

/// One round, or all of them.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// "fill", "1", "empty", "all"
    pub name: String,
    /// Its time without the accounts.
    pub seconds: f64,
    /// ADDs that were answered.
    pub adds: usize,
    /// DELs that were answered.
    pub dels: usize,
    /// ADDs in a second.
    pub adds_per_second: f64,
    /// DELs in a second.
    pub dels_per_second: f64,
    /// Writes that met another writer's, of ADDs and DELs, for one ADD; none where there were no ADDs.
    pub conflicts_per_add: Option<f64>,
    /// The same by the kind of object.
    pub conflicts: BTreeMap<String, u64>,
    /// Times.
    pub operations: Vec<Operation>,
    /// Calls that were refused and tried again, by verb and code.
    pub refused: BTreeMap<String, Refused>,
    /// Handles whose deletion after the answer did not succeed.
    pub handles_left: u64,
    /// The accounts at its end.
    pub account: Account,
    #[serde(skip)]
    counts: Counts,
}

/// How long one kind of call took.
#[derive(Debug, Clone, Serialize)]
pub struct Operation {
    /// "ADD random"
    pub operation: String,
    /// Times in milliseconds.
    pub spread: Spread,
}

/// The accounts: answers so far, and the records at that moment.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Account {
    /// Answers with an address that another container had, and addresses on record for another than was told them.
    pub duplicates: usize,
    /// Other answers that must not have been given.
    pub wrong_answers: usize,
    /// Allocations without a living container.
    pub leaks: usize,
    /// Handles, affinities, blocks, claims, holders and reservations that belong to nothing.
    pub orphans: usize,
    /// What a living container should have on record, and has not.
    pub missing: usize,
    /// What the program's own audit finds wrong.
    pub violations: usize,
    /// Blocks there are.
    pub blocks: usize,
    /// The first of each in words.
    pub told: Vec<String>,
}

// === impl Account ===

impl Account {
    pub(super) fn of(
        (duplicates, others): (Vec<&Breach>, Vec<&Breach>),
        found: Findings,
        violations: Vec<String>,
        blocks: usize,
    ) -> Account {
        let words = |breaches: &[&Breach]| breaches.iter().take(TOLD).map(ToString::to_string).collect::<Vec<_>>();
        let mut told = [words(&duplicates), words(&others)].concat();
        for list in [&found.duplicates, &found.leaks, &found.orphans, &found.missing, &violations] {
            told.extend(list.iter().take(TOLD).cloned());
        }
        Account {
            duplicates: duplicates.len() + found.duplicates.len(),
            wrong_answers: others.len(),
            leaks: found.leaks.len(),
            orphans: found.orphans.len(),
            missing: found.missing.len(),
            violations: violations.len(),
            blocks,
            told,
        }
    }

    /// Whether everything is as it must be.
    pub fn is_clean(&self) -> bool {
        self.duplicates + self.wrong_answers + self.leaks + self.orphans + self.missing + self.violations == 0
    }

    /// The worst of both: a finding of any round counts.
    fn worst(&self, other: &Account) -> Account {
        let mut told = self.told.clone();
        told.extend(other.told.iter().filter(|text| !self.told.contains(text)).cloned());
        Account {
            duplicates: self.duplicates.max(other.duplicates),
            wrong_answers: self.wrong_answers.max(other.wrong_answers),
            leaks: self.leaks.max(other.leaks),
            orphans: self.orphans.max(other.orphans),
            missing: self.missing.max(other.missing),
            violations: self.violations.max(other.violations),
            blocks: self.blocks.max(other.blocks),
            told,
        }
    }
}

// === impl Round ===

impl Round {
    pub(super) fn of(name: String, seconds: f64, counts: Counts, account: Account) -> Round {
        let (adds, dels) = (counts.answered("ADD"), counts.answered("DEL"));
        let conflicts: u64 = counts.conflicts.values().sum();
        let timed = |(name, times): (&&'static str, &Vec<_>)| {
            Some(Operation { operation: (*name).to_owned(), spread: Spread::of(times)? })
        };
        let refused = |((verb, code), refused): (&(&str, u32), &Refused)| (format!("{verb} {code}"), refused.clone());
        Round {
            name,
            seconds,
            adds,
            dels,
            adds_per_second: adds as f64 / seconds,
            dels_per_second: dels as f64 / seconds,
            conflicts_per_add: (adds > 0).then(|| conflicts as f64 / adds as f64),
            conflicts: counts.conflicts.clone(),
            operations: counts.times.iter().filter_map(timed).collect(),
            refused: counts.refusals.iter().map(refused).collect(),
            handles_left: counts.handles_left,
            account,
            counts,
        }
    }

    /// Of one kind of call.
    pub fn operation(&self, name: &str) -> Option<&Spread> {
        self.operations.iter().find(|operation| operation.operation == name).map(|operation| &operation.spread)
    }
}

// === impl Report ===

impl Report {
    pub(super) fn of(
        options: &Options,
        rounds: Vec<Round>,
        before: Servers,
        after: Servers,
        collector: Collected,
    ) -> Report {
        let (mut counts, mut account, mut seconds) = (Counts::default(), Account::default(), 0.0);
        for round in &rounds {
            counts.add(&round.counts);
            account = account.worst(&round.account);
            seconds += round.seconds;
        }
        Report {
            machine: Machine::here(),
            options: *options,
            rounds,
            total: Round::of("all".to_owned(), seconds, counts, account),
            server_conflicts: after.conflicts - before.conflicts,
            server_put_off: after.put_off - before.put_off,
            api_server: after.api_server.since(before.api_server),
            etcd: after.etcd.since(before.etcd),
            etcd_size: after.etcd_size,
            load: after.load.since(before.load),
            collector,
        }
    }

    /// Whether nothing was wrong, ever.
    pub fn is_clean(&self) -> bool {
        self.total.account.is_clean() && self.collector.repairs.is_empty() && self.collector.failed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn round(name: &str, account: Account) -> Round {
        let times =
            [("ADD random", vec![Duration::from_millis(3); 4]), ("DEL random", vec![Duration::from_millis(2); 2])];
        let counts =
            Counts { times: times.into(), conflicts: [("ipamblocks".to_owned(), 2)].into(), ..Counts::default() };
        Round::of(name.to_owned(), 2.0, counts, account)
    }

    fn report(rounds: Vec<Round>) -> Report {
        let usage = Usage { processor: 1.0, resident: 2.0 };
        let servers =
            Servers { conflicts: 3.0, put_off: 0.0, api_server: usage, etcd: usage, etcd_size: 9.0, load: usage };
        Report::of(&Options::default(), rounds, servers, servers, Collected::default())
    }

    #[test]
    fn rounds_add_up_and_a_finding_of_any_round_stays() {
        let leak = Account { leaks: 1, told: vec!["10.0.0.1 leaks".to_owned()], ..Account::default() };
        let report =
            report(vec![round("fill", Account::default()), round("1", leak), round("empty", Account::default())]);
        assert_eq!((report.total.adds, report.total.dels, report.total.adds_per_second), (12, 6, 2.0));
        assert_eq!((report.total.conflicts_per_add, report.total.account.leaks), (Some(0.5), 1));
        assert!(!report.is_clean());
        let text = report.to_string();
        assert!(text.contains("0 duplicates, 1 leaks, 0 orphans") && text.contains("10.0.0.1 leaks"), "{text}");
        assert_eq!(report.total.operation("ADD random").map(|spread| (spread.count, spread.p99)), Some((12, 3.0)));
    }

    #[test]
    fn a_repair_of_the_collector_is_a_fault() {
        let mut report = report(vec![round("fill", Account::default())]);
        assert!(report.is_clean());
        report.collector.repairs.push("AllocationFreed IPAMBlock/x: is nobody's".to_owned());
        assert!(!report.is_clean());
    }
}

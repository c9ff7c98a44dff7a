//! What came of a run: figures for machines, tables for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::Options;
use super::books::Breach;
use super::collector::Collected;
use super::meter::{Counts, Refused};
use super::servers::{Servers, Usage};
use super::verdict::Findings;
use crate::bench::{Machine, Spread, table};

/// Of each kind of finding so many are told in words.
const TOLD: usize = 10;

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

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Account { duplicates, wrong_answers, leaks, orphans, missing, violations, .. } = self;
        write!(
            f,
            "{duplicates} duplicates, {leaks} leaks, {orphans} orphans, {missing} missing, {wrong_answers} other wrong \
             answers, {violations} violations"
        )
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Round { name, seconds, adds_per_second, dels_per_second, account, .. } = self;
        let conflicts: u64 = self.conflicts.values().sum();
        write!(
            f,
            "{name}: {seconds:.0} s, {adds_per_second:.0} ADD/s, {dels_per_second:.0} DEL/s, {conflicts} conflicts; {account}"
        )?;
        account.told.iter().try_for_each(|told| write!(f, "\n  {told}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { nodes, pods, rounds, fixed, direct, at_once, seed } = &self.options;
        let Machine { cores, processor } = &self.machine;
        writeln!(f, "{cores} cores, {processor}")?;
        writeln!(
            f,
            "{nodes} nodes, {pods} pods each, {rounds} rounds, {fixed} % fixed, {direct} % direct, {at_once} at once, seed \
             {seed}\n"
        )?;
        writeln!(f, "{}\n\n{}\n", self.by_round(), self.by_operation())?;
        let conflicts: Vec<String> =
            self.total.conflicts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let met = if conflicts.is_empty() { "none".to_owned() } else { conflicts.join(", ") };
        writeln!(f, "conflicts by kind: {met}; 409 by the API server's count: {}", self.server_conflicts)?;
        writeln!(f, "429 by the API server's count: {}", self.server_put_off)?;
        for (what, refused) in &self.total.refused {
            writeln!(f, "refused and tried again: {} times {what}, such as: {}", refused.count, refused.example)?;
        }
        let Collected { rounds, unread, repairs, failed, moot } = &self.collector;
        let (repaired, failures) = (repairs.len(), failed.len());
        writeln!(
            f,
            "collector: {rounds} rounds, {unread} not read, {repaired} repairs, {failures} failed, {moot} found moot"
        )?;
        repairs.iter().chain(failed).take(TOLD).try_for_each(|repair| writeln!(f, "  {repair}"))?;
        for (name, usage) in [("API server", self.api_server), ("etcd", self.etcd), ("all nodes", self.load)] {
            let Usage { processor, resident } = usage;
            writeln!(f, "{name}: {processor:.0} s of a processor, {resident:.0} MB resident at the end")?;
        }
        writeln!(f, "etcd's database: {:.0} MB at the end", self.etcd_size)?;
        writeln!(f, "{}", self.total.account)?;
        self.total.account.told.iter().try_for_each(|told| writeln!(f, "  {told}"))
    }
}

impl Report {
    fn by_round(&self) -> String {
        let header = ["round", "s", "ADDs", "ADD/s", "DELs", "DEL/s", "conflicts per ADD", "blocks", "wrong"];
        let mut table = table(header.iter().map(ToString::to_string));
        for round in self.rounds.iter().chain([&self.total]) {
            let Account { duplicates, wrong_answers, leaks, orphans, missing, violations, blocks, .. } = round.account;
            let wrong = duplicates + wrong_answers + leaks + orphans + missing + violations;
            table.add_row([
                round.name.clone(),
                format!("{:.0}", round.seconds),
                round.adds.to_string(),
                format!("{:.0}", round.adds_per_second),
                round.dels.to_string(),
                format!("{:.0}", round.dels_per_second),
                round.conflicts_per_add.map_or("-".to_owned(), |conflicts| format!("{conflicts:.4}")),
                blocks.to_string(),
                wrong.to_string(),
            ]);
        }
        trimmed(&table.to_string())
    }

    fn by_operation(&self) -> String {
        let mut table = table(["ms", "calls", "p50", "p99"].iter().map(ToString::to_string));
        for Operation { operation, spread } in &self.total.operations {
            let cells = [spread.count.to_string(), format!("{:.1}", spread.p50), format!("{:.1}", spread.p99)];
            table.add_row([operation.clone()].into_iter().chain(cells));
        }
        trimmed(&table.to_string())
    }
}

fn trimmed(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
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

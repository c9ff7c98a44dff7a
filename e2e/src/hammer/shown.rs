//! A report as people read it.

use std::fmt;

use super::Options;
use super::collector::Collected;
use super::report::{Account, Operation, Report, Round, TOLD};
use super::servers::Usage;
use crate::bench::{Machine, table};

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

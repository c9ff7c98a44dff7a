//! What was done, and what came of it: counted while it happens, and printed as a table at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bench::table;

/// Counts by what they count.
#[derive(Default)]
pub(super) struct Tally {
    counts: Mutex<BTreeMap<Line, u64>>,
    /// An example of each failure.
    examples: Mutex<BTreeMap<String, String>>,
}

/// What is counted, in the table's order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// SIGKILL for one of these.
    Kill(&'static str),
    /// Another harm.
    Harm(&'static str),
    /// Replies lost after their write took effect.
    Lost(&'static str),
    /// Pods that ran.
    Pods(&'static str),
    /// Calls of a verb that succeeded.
    Done(&'static str),
    /// Calls of a verb that failed, with the error's code.
    Failed(&'static str, String),
    /// What was looked at.
    Looked(&'static str),
}

// === impl Tally ===

impl Tally {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<Line, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, line: Line) {
        self.add(line, 1);
    }

    pub(super) fn add(&self, line: Line, more: u64) {
        *self.counts().entry(line).or_default() += more;
    }

    /// A call that failed, with what it said.
    pub(super) fn failed(&self, verb: &'static str, why: String, said: &str) {
        let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        examples.entry(format!("{verb}: {why}")).or_insert_with(|| said.chars().take(300).collect());
        drop(examples);
        self.count(Line::Failed(verb, why));
    }

    /// An example of each kind of failure.
    pub(super) fn examples(&self) -> BTreeMap<String, String> {
        self.examples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The sum of the lines that `which` chooses.
    pub(super) fn sum(&self, which: impl Fn(&Line) -> bool) -> u64 {
        self.counts().iter().filter(|(line, _)| which(line)).map(|(_, count)| count).sum()
    }

    pub(super) fn kills(&self) -> u64 {
        self.sum(|line| matches!(line, Line::Kill(_)))
    }

    pub(super) fn of(&self, line: &Line) -> u64 {
        self.counts().get(line).copied().unwrap_or_default()
    }

    /// One line of what has happened so far.
    pub(super) fn progress(&self) -> String {
        let kills: Vec<String> = self
            .counts()
            .iter()
            .filter_map(|(line, count)| match line {
                Line::Kill(what) => Some(format!("{what} {count}")),
                _ => None,
            })
            .collect();
        let (adds, dels) = (self.of(&Line::Done("ADD")), self.of(&Line::Done("DEL")));
        let failed = self.sum(|line| matches!(line, Line::Failed(..)));
        format!("{} kills ({}); {adds} ADDs, {dels} DELs, {failed} failed", self.kills(), kills.join(", "))
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = table(["WHAT".to_owned(), "TIMES".to_owned()].into_iter());
        for (line, count) in &*self.counts() {
            table.add_row([line.to_string(), count.to_string()]);
        }
        write!(f, "{table}")
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Kill(what) => write!(f, "kill -9: {what}"),
            Line::Harm(what) => write!(f, "harm: {what}"),
            Line::Lost(what) => write!(f, "lost after commit: {what}"),
            Line::Pods(what) => write!(f, "pods: {what}"),
            Line::Done(verb) => write!(f, "{verb} done"),
            Line::Failed(verb, why) => write!(f, "{verb} failed: {why}"),
            Line::Looked(what) => write!(f, "looked at: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_of_every_kind_add_up_and_the_table_has_a_row_for_each_count() {
        let tally = Tally::default();
        tally.add(Line::Kill("plugin"), 3);
        tally.count(Line::Kill("agent"));
        tally.count(Line::Harm("disk full"));
        tally.failed("ADD", "code 11".into(), "try again");
        assert_eq!((tally.kills(), tally.of(&Line::Kill("plugin"))), (4, 3));
        assert_eq!(tally.to_string().lines().count(), 5, "{tally}");
        assert!(tally.progress().contains("4 kills (agent 1, plugin 3)"), "{}", tally.progress());
        assert_eq!(tally.examples()["ADD: code 11"], "try again");
    }
}

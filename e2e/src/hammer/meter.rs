//! What is counted while a round runs: calls and their times, conflicts as the driver meets them, refusals.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube_ipam::cni::CniError;
use kube_ipam::driver::Observer;
use serde::Serialize;

/// Counts. Shared by all nodes.
#[derive(Debug, Default)]
pub struct Meter {
    counts: Mutex<Counts>,
}

/// What was counted since the last time somebody looked.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Times of calls that were answered well, by what they were.
    pub times: BTreeMap<&'static str, Vec<Duration>>,
    /// Writes that met another writer's, by the kind of object.
    pub conflicts: BTreeMap<String, u64>,
    /// Whatever was tried once more within a call, by the kind of object.
    pub retries: BTreeMap<String, u64>,
    /// Calls that were refused, by verb and code.
    pub refusals: BTreeMap<(&'static str, u32), Refused>,
    /// Handles that could not be deleted after the answer.
    pub handles_left: u64,
}

/// Calls that were refused for one reason.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// How many.
    pub count: u64,
    /// What the first was told.
    pub example: String,
}

// === impl Meter ===

impl Meter {
    /// A call was answered.
    pub fn answered(&self, operation: &'static str, took: Duration) {
        self.counts().times.entry(operation).or_default().push(took);
    }

    /// A call was refused; the runtime will try again.
    pub fn refused(&self, verb: &'static str, error: &CniError) {
        let mut counts = self.counts();
        let refused = counts.refusals.entry((verb, error.code)).or_default();
        refused.count += 1;
        if refused.example.is_empty() {
            refused.example = error.to_string();
        }
    }

    /// A handle stays for the collector.
    pub fn handle_left(&self) {
        self.counts().handles_left += 1;
    }

    /// What was counted so far, which stays.
    pub fn look(&self) -> (usize, usize, u64) {
        let counts = self.counts();
        (counts.answered("ADD"), counts.answered("DEL"), counts.conflicts.values().sum())
    }

    /// What was counted since the last time.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *self.counts())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Meter {
    fn conflict(&self, kind: &str) {
        *self.counts().conflicts.entry(kind.to_owned()).or_default() += 1;
    }

    fn retry(&self, kind: &str) {
        *self.counts().retries.entry(kind.to_owned()).or_default() += 1;
    }
}

// === impl Counts ===

impl Counts {
    /// How many calls of a verb were answered well.
    pub fn answered(&self, verb: &str) -> usize {
        self.times.iter().filter(|(operation, _)| operation.starts_with(verb)).map(|(_, times)| times.len()).sum()
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Counts) {
        for (operation, times) in &other.times {
            self.times.entry(operation).or_default().extend(times);
        }
        other.conflicts.iter().for_each(|(kind, n)| *self.conflicts.entry(kind.clone()).or_default() += n);
        other.retries.iter().for_each(|(kind, n)| *self.retries.entry(kind.clone()).or_default() += n);
        for (what, refused) in &other.refusals {
            let known = self.refusals.entry(*what).or_insert_with(|| Refused { count: 0, ..refused.clone() });
            known.count += refused.count;
        }
        self.handles_left += other.handles_left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_rounds_add_up() {
        let meter = Meter::default();
        meter.answered("ADD random", Duration::from_millis(3));
        meter.answered("ADD fixed", Duration::from_millis(5));
        meter.answered("DEL random", Duration::from_millis(1));
        meter.conflict("ipamblocks");
        meter.refused("ADD", &CniError::new(11, "busy", "wait"));
        assert_eq!(meter.look(), (2, 1, 1));
        let first = meter.take();
        assert_eq!(meter.look(), (0, 0, 0));
        let mut all = first.clone();
        all.add(&first);
        assert_eq!((all.answered("ADD"), all.answered("DEL"), all.conflicts["ipamblocks"]), (4, 2, 2));
        assert_eq!((all.refusals.len(), all.refusals[&("ADD", 11)].count), (1, 2));
    }
}

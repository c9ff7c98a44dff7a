//! Since when something has been as it is.
//!
//! Kept in the memory of the leader only: a new leader begins to count anew. Measured by a clock that does
//! not jump.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::decide::{Finding, Key};

/// What the last round saw, and since when.
#[derive(Default)]
pub(super) struct Sightings {
    since: BTreeMap<Key, Instant>,
}

impl Sightings {
    /// Takes down what a round found and says for each finding whether its time has come: whether an earlier
    /// round saw it too, in every round since, for as long as it must have been so.
    pub(super) fn note(&mut self, findings: &[Finding], now: Instant) -> Vec<bool> {
        let earlier = std::mem::take(&mut self.since);
        let due = findings.iter().map(|finding| {
            let since = earlier.get(&finding.key).copied();
            self.since.insert(finding.key.clone(), since.unwrap_or(now));
            match finding.patience {
                None => true,
                Some(patience) => since.is_some_and(|since| now.duration_since(since) >= patience),
            }
        });
        due.collect()
    }
}

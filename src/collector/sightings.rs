//! Since when something has been as it is.
//!
//! Measured by a clock that does not jump. What has a long grace is recorded in the Lease, too, so that the grace does not
//! begin again with another leader. Another leader's word is not enough by itself: nothing is due that this process has not
//! seen in an earlier round of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::decide::Finding;

/// What a leader leaves to the next one: what was found, and since when.
pub type Standing = BTreeMap<String, Timestamp>;

/// A grace shorter than this may begin again.
const LONG: Duration = Duration::from_secs(60);
/// What has been so for this part of its grace is recorded: most of what is seen is gone by then.
const SETTLED: u32 = 10;
/// Most that is recorded. The graces of the rest begin again with another leader.
const MOST: usize = 500;

/// What the last round saw, and since when.
#[derive(Default)]
pub(super) struct Sightings {
    since: BTreeMap<String, Sighting>,
}

/// Since when a finding has been so.
struct Sighting {
    /// When this process heard of it.
    heard: Instant,
    /// How long it had been so by then.
    before: Duration,
    /// When that was, by the clock of whoever saw it first.
    since: Timestamp,
    patience: Option<Duration>,
    /// Whether this process saw it itself.
    seen: bool,
}

// === impl Sightings ===

impl Sightings {
    /// Takes down what a round found and says for each finding whether its time has come: whether an earlier
    /// round saw it too, in every round since, for as long as it must have been so.
    pub(super) fn note(&mut self, findings: &[Finding], now: Instant, clock: Timestamp) -> Vec<bool> {
        let mut earlier = std::mem::take(&mut self.since);
        let due = findings.iter().map(|finding| {
            let key = format!("{} {}", finding.key.0, finding.key.1);
            let fresh = || Sighting { heard: now, before: Duration::ZERO, since: clock, patience: None, seen: false };
            let sighting = earlier.remove(&key).unwrap_or_else(fresh);
            let due = finding.patience.is_none_or(|patience| sighting.seen && sighting.age(now) >= patience);
            self.since.insert(key, Sighting { patience: finding.patience, seen: true, ..sighting });
            due
        });
        due.collect()
    }

    /// What another leader is to know.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        let long = |sighting: &Sighting| {
            sighting.patience.is_some_and(|patience| patience >= LONG && sighting.age(now) >= patience / SETTLED)
        };
        let standing = self.since.iter().filter(|(_, sighting)| long(sighting)).take(MOST);
        standing.map(|(key, sighting)| (key.clone(), sighting.since)).collect()
    }

    /// Takes over what another leader recorded.
    pub(super) fn recall(&mut self, standing: Standing, now: Instant, clock: Timestamp) {
        self.since = standing
            .into_iter()
            .map(|(key, since)| {
                let before = Duration::try_from(clock.duration_since(since).max(SignedDuration::ZERO));
                let before = before.unwrap_or_default();
                (key, Sighting { heard: now, before, since, patience: None, seen: false })
            })
            .collect();
    }
}

// === impl Sighting ===

impl Sighting {
    fn age(&self, now: Instant) -> Duration {
        self.before + now.duration_since(self.heard)
    }
}

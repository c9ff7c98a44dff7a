//! The last calls that were refused: for a person who looks at the node before its logs.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many are kept.
const KEPT: usize = 20;

/// A call that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// When; the last time, if it was refused more than once.
    pub time: Timestamp,
    /// How often: a runtime that tries the same again and again is no reason to forget the rest.
    #[serde(default = "once")]
    pub count: u64,
    /// The verb, or `invalid`.
    pub verb: String,
    /// The pod as `<namespace>/<name>`, if the call named one.
    #[serde(default)]
    pub pod: Option<String>,
    /// CNI's code.
    pub code: u32,
    /// What the runtime was told.
    pub message: String,
}

/// The last of them, oldest first.
#[derive(Default)]
pub(super) struct Troubles {
    last: Mutex<VecDeque<Trouble>>,
}

fn once() -> u64 {
    1
}

// === impl Trouble ===

impl Trouble {
    fn is_same(&self, other: &Self) -> bool {
        (&self.verb, &self.pod, self.code, &self.message) == (&other.verb, &other.pod, other.code, &other.message)
    }
}

// === impl Troubles ===

impl Troubles {
    /// Takes one in; the same as before counts there.
    pub(super) fn add(&self, trouble: Trouble) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.iter().position(|known| known.is_same(&trouble)).and_then(|at| last.remove(at));
        if last.len() == KEPT {
            last.pop_front();
        }
        let count = trouble.count + before.map_or(0, |known| known.count);
        last.push_back(Trouble { count, ..trouble });
    }

    pub(super) fn all(&self) -> Vec<Trouble> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(code: u32) -> Trouble {
        let (verb, message) = ("ADD".to_owned(), "no".to_owned());
        Trouble { time: Timestamp::UNIX_EPOCH, count: 1, verb, pod: None, code, message }
    }

    #[test]
    fn only_the_last_ones_are_kept_in_order() {
        let troubles = Troubles::default();
        (0..50).for_each(|code| troubles.add(trouble(code)));
        let codes: Vec<u32> = troubles.all().iter().map(|t| t.code).collect();
        assert_eq!(codes, (30..50).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_refused_again_and_again_displaces_nothing_else() {
        let troubles = Troubles::default();
        troubles.add(trouble(7));
        troubles.add(trouble(11));
        (0..100).for_each(|_| troubles.add(trouble(7)));
        let counts: Vec<(u32, u64)> = troubles.all().iter().map(|t| (t.code, t.count)).collect();
        assert_eq!(counts, [(11, 1), (7, 101)]);
    }
}

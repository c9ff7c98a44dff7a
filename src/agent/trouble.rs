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
    /// When.
    pub time: Timestamp,
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

// === impl Troubles ===

impl Troubles {
    pub(super) fn add(&self, trouble: Trouble) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == KEPT {
            last.pop_front();
        }
        last.push_back(trouble);
    }

    pub(super) fn all(&self) -> Vec<Trouble> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ones_are_kept_in_order() {
        let troubles = Troubles::default();
        for code in 0..50 {
            let (verb, message) = ("ADD".to_owned(), "no".to_owned());
            troubles.add(Trouble { time: Timestamp::UNIX_EPOCH, verb, pod: None, code, message });
        }
        let codes: Vec<u32> = troubles.all().iter().map(|t| t.code).collect();
        assert_eq!(codes, (30..50).collect::<Vec<_>>());
    }
}

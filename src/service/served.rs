//! What a call came to: the answer, and for an ADD how it was found.

use serde_json::Value;

use crate::driver::Assigned;

/// A call that succeeded.
#[derive(Debug, Default)]
pub struct Served {
    /// What the runtime gets; `None` where CNI wants no output.
    pub output: Option<Value>,
    /// What an ADD gave.
    pub given: Option<Given>,
}

/// The addresses of an ADD.
#[derive(Debug)]
pub struct Given {
    /// How they were found.
    pub how: How,
    /// The addresses, all of them on record.
    pub addresses: Vec<Assigned>,
}

/// How an ADD was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// From memory: the address was on record before the call.
    Ahead,
    /// From the records that an earlier sandbox of the pod left.
    Records,
    /// By a decision, written during the call.
    Decision,
}

// === impl How ===

impl How {
    /// All ways, for counters that start at zero.
    pub const ALL: [Self; 3] = [Self::Ahead, Self::Records, Self::Decision];

    /// As a label: `ahead`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Records => "records",
            Self::Decision => "decision",
        }
    }
}

// === impl Given ===

impl Given {
    /// The addresses, separated by commas.
    pub fn list(&self) -> String {
        self.addresses.iter().map(|a| a.address.to_string()).collect::<Vec<_>>().join(",")
    }
}

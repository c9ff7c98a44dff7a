//! A turnstile for the writers of one node. Correctness never rests on it (the writes' preconditions do);
//! it keeps a hundred ADDs at once from retrying against each other.

use futures::future::{BoxFuture, FutureExt as _};

/// Lets one writer of blocks pass at a time.
pub trait Gate: Send + Sync {
    /// Waits for this writer's turn, within a bound of the gate's own.
    fn pass(&self) -> BoxFuture<'_, Pass>;
}

/// A writer's turn; over when dropped.
pub struct Pass {
    waited: bool,
    _turn: Option<Box<dyn Send>>,
}

/// A gate that is always open.
pub struct Open;

// === impl Pass ===

impl Pass {
    /// A turn that ends with `turn`; `waited` says whether another writer was before.
    pub fn new(waited: bool, turn: Option<Box<dyn Send>>) -> Self {
        Self { waited, _turn: turn }
    }

    /// Whether another writer had to be waited for: what was read before is likely out of date.
    pub fn waited(&self) -> bool {
        self.waited
    }
}

impl Gate for Open {
    fn pass(&self) -> BoxFuture<'_, Pass> {
        std::future::ready(Pass::new(false, None)).boxed()
    }
}

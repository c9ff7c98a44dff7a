//! What the calls of one node tell each other. Correctness never rests on it (the writes' preconditions do):
//! turns keep a hundred ADDs at once from retrying against each other, and notes say where an ADD that was
//! killed has to be cleaned up after, before any record in Calico names its container.

use futures::future::{BoxFuture, FutureExt as _};

/// A step of ADD that leaves something which no handle leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// Claims on fixed addresses, and their reservations.
    Claims,
    /// A block, or an affinity to one.
    Block,
}

/// Lets one writer of blocks and one search for a block pass at a time, and keeps notes about containers, which are named by their handles.
pub trait Gate: Send + Sync {
    /// Waits for this writer's turn, within a bound of the gate's own.
    fn pass(&self) -> BoxFuture<'_, Pass>;

    /// Waits for the turn to look for a block with room, within such a bound, too.
    fn search(&self) -> BoxFuture<'_, Pass> {
        open()
    }

    /// Waits, within such a bound, for releases that were answered and are being put on record; whether there were any.
    fn releases(&self) -> BoxFuture<'_, bool> {
        std::future::ready(false).boxed()
    }

    /// Notes that an ADD is about to leave a trace.
    fn note(&self, _handle: &str, _trace: Trace) {}

    /// Whether an ADD may have left such a trace, and no DEL has finished since.
    fn noted(&self, _handle: &str, _trace: Trace) -> bool {
        false
    }

    /// Everything that the notes were about is cleaned up.
    fn forget(&self, _handle: &str) {}

    /// The container that was given what is on record for a pod, if that is known.
    fn container_of(&self, _pod_uid: &str) -> Option<String> {
        None
    }

    /// Whether another call is at work on the container right now.
    fn is_busy(&self, _handle: &str) -> bool {
        false
    }
}

/// A writer's turn; over when dropped.
pub struct Pass {
    waited: bool,
    _turn: Option<Box<dyn Send>>,
}

/// A gate that is always open, and forgets.
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
        open()
    }
}

fn open() -> BoxFuture<'static, Pass> {
    std::future::ready(Pass::new(false, None)).boxed()
}

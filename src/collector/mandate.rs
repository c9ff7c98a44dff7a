//! Leave to act: asked before every repair.

use futures::future::{BoxFuture, FutureExt as _, ready};

/// Says whether a repair may be begun.
pub trait Mandate: Send + Sync {
    /// Whether one may be begun now, and brought to its end within
    /// [`REPAIR_TIME`](super::REPAIR_TIME).
    fn holds(&self) -> BoxFuture<'_, bool>;
}

/// Leave without end: for a single process, or a person.
pub struct Always;

impl Mandate for Always {
    fn holds(&self) -> BoxFuture<'_, bool> {
        ready(true).boxed()
    }
}

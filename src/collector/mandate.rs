//! Leave to act: asked before every repair.

use std::fmt;

use futures::future::{BoxFuture, FutureExt as _, ready};

/// Says whether a repair may be begun.
pub trait Mandate: Send + Sync {
    /// Whether one may be begun now, and brought to its end within
    /// [`REPAIR_TIME`](super::REPAIR_TIME).
    fn holds(&self) -> BoxFuture<'_, bool>;
}

impl fmt::Debug for dyn Mandate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mandate")
    }
}

/// Leave without end: for a single process, or a person.
pub struct Always;

impl Mandate for Always {
    fn holds(&self) -> BoxFuture<'_, bool> {
        ready(true).boxed()
    }
}

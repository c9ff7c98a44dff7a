//! The time of a run: tokio's paused clock, and one wall clock for each node, which drifts.

use std::cell::{Cell, RefCell};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Nodes at most; one more clock for whatever runs on none.
pub const NODES: usize = 4;

thread_local! {
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    static DRIFT: RefCell<[Drift; NODES + 1]> = const { RefCell::new([Drift { offset: 0, per_thousand: 0 }; NODES + 1]) };
}

/// What a clock that is right shows at the beginning of a run, in milliseconds.
const BEGINNING: i64 = 1_800_000_000_000;

/// How far a clock is off, and how much further it gets.
#[derive(Clone, Copy, Default, Debug)]
pub struct Drift {
    /// Milliseconds at the start.
    pub offset: i64,
    /// Milliseconds more in every second.
    pub per_thousand: i64,
}

/// A run begins on this thread.
pub fn begin(drift: [Drift; NODES + 1]) {
    START.set(Some(Instant::now()));
    DRIFT.set(drift);
}

/// Milliseconds since the beginning of the run.
pub fn now() -> u64 {
    let start = START.get().unwrap_or_else(Instant::now);
    u64::try_from(Instant::now().duration_since(start).as_millis()).unwrap_or_default()
}

/// The wall clock of a node, in the form that a driver takes.
pub fn clock(node: usize) -> fn() -> Timestamp {
    [read::<0>, read::<1>, read::<2>, read::<3>, read::<4>][node.min(NODES)]
}

/// The wall clock that is right.
pub fn true_now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_millis(BEGINNING + i64::try_from(now()).unwrap_or_default())
}

fn read<const NODE: usize>() -> Timestamp {
    let elapsed = i64::try_from(now()).unwrap_or_default();
    let Drift { offset, per_thousand } = DRIFT.with_borrow(|drift| drift[NODE]);
    let wall = BEGINNING + elapsed + offset + elapsed * per_thousand / 1000;
    Timestamp::UNIX_EPOCH + SignedDuration::from_millis(wall)
}

//! The one retry loop: read, decide, write under a precondition, and once more if the precondition failed.
//!
//! A lost reply is handled by the same loop: the object is read back and the decision made again, so a
//! decision must recognise its own work ([`Step::Done`]) and is never compensated blindly.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Driver;
use crate::store::{Failure, Ledger, Object, Objects, StoreError};

/// Attempts for one object before the conflict is reported. A node writes to its own blocks, and other
/// writers come and go, so this many conflicts in a row mean that something writes without pause.
const ATTEMPTS: u32 = 24;
/// First pause between attempts; doubled up to [`LONGEST_PAUSE`], and drawn from the upper half.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// What is known about an object before the first attempt.
pub(super) enum Known<K> {
    /// Nothing: read it.
    Unread,
    /// Nothing, and what is remembered may be of an earlier object of that name: read what stands.
    Doubted,
    /// It is believed not to exist; a create finds out.
    Absent,
    /// Read a moment ago.
    Present(K),
}

/// What a decision wants done with an object.
pub(super) enum Step<K, T> {
    /// It is as it should be.
    Done(T),
    /// Create it.
    Create(K, T),
    /// Replace it.
    Replace(K, T),
    /// Delete it, and be done.
    Delete(K, T),
    /// Somebody marked it deleted and stopped half way: finish that, then decide again.
    Finish(K),
}

/// A decision's result, and the object as it is stored now (`None` if it does not exist).
pub(super) struct Settled<K, T> {
    pub value: T,
    pub object: Option<K>,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Brings the cluster-scoped object `name` to what `decide` wants, by compare-and-swap.
    pub(super) async fn converge<K, T, E>(
        &self,
        name: &str,
        known: Known<K>,
        deadline: Instant,
        mut decide: impl FnMut(Option<K>) -> Result<Step<K, T>, E>,
    ) -> Result<Settled<K, T>, E>
    where
        K: Object,
        E: From<StoreError>,
    {
        self.converge_told(name, known, deadline, |current, _| decide(current)).await
    }

    /// The same for a decision that is told whether its last write was refused: then what it was to do has not happened,
    /// or somebody else did it.
    pub(super) async fn converge_told<K, T, E>(
        &self,
        name: &str,
        known: Known<K>,
        deadline: Instant,
        mut decide: impl FnMut(Option<K>, bool) -> Result<Step<K, T>, E>,
    ) -> Result<Settled<K, T>, E>
    where
        K: Object,
        E: From<StoreError>,
    {
        let mut known = known;
        let mut first = !matches!(known, Known::Doubted);
        let mut refused = false;
        let mut backoff = Backoff::new(deadline);
        loop {
            let current = match std::mem::replace(&mut known, Known::Unread) {
                Known::Absent => None,
                Known::Present(object) => Some(object),
                Known::Unread | Known::Doubted => match self.read_for_write(std::mem::take(&mut first), name).await {
                    Ok(object) => object,
                    Err(error) => {
                        self.again::<K>(&mut backoff, error).await?;
                        continue;
                    }
                },
            };
            let written = match decide(current.clone(), std::mem::take(&mut refused))? {
                Step::Done(value) => return Ok(Settled { value, object: current }),
                Step::Create(object, value) => {
                    self.objects.create(&object).await.map(|stored| Some((value, Some(stored))))
                }
                Step::Replace(object, value) => {
                    self.objects.replace(&object).await.map(|stored| Some((value, Some(stored))))
                }
                Step::Delete(object, value) => self.objects.delete(&object).await.map(|()| Some((value, None))),
                Step::Finish(object) => self.objects.delete(&object).await.map(|()| None),
            };
            match written {
                Ok(Some((value, object))) => return Ok(Settled { value, object }),
                Ok(None) => known = Known::Absent,
                Err(error) => {
                    refused = is_refusal(&error);
                    self.again::<K>(&mut backoff, error).await?;
                }
            }
            first = false;
        }
    }

    async fn again<K: Object>(&self, backoff: &mut Backoff, error: StoreError) -> Result<(), StoreError> {
        let kind = K::plural(&());
        if is_refusal(&error) {
            self.observer.conflict(&kind);
        }
        backoff.pause(error).await?;
        self.observer.retry(&kind);
        Ok(())
    }

    /// Only the first look may be at what is remembered: a write that failed has shown it to be out of date.
    async fn read_for_write<K: Object>(&self, first: bool, name: &str) -> Result<Option<K>, StoreError> {
        if first { self.objects.get(None, name).await } else { self.objects.fresh(None, name).await }
    }
}

/// Whether the server says that a write's precondition did not hold.
fn is_refusal(error: &StoreError) -> bool {
    matches!(error.failure, Failure::Conflict | Failure::Exists | Failure::Absent)
}

/// Bounded, jittered pauses between attempts.
pub(super) struct Backoff {
    left: u32,
    pause: Duration,
    deadline: Instant,
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { left: ATTEMPTS, pause: FIRST_PAUSE, deadline }
    }

    /// Waits after `error` before the next attempt; gives the error back if another attempt cannot help or
    /// there is no time for it.
    pub(super) async fn pause(&mut self, error: StoreError) -> Result<(), StoreError> {
        let least = match &error.failure {
            Failure::Conflict | Failure::Exists | Failure::Absent | Failure::Unknown(_) => Duration::ZERO,
            Failure::Busy(wait) => *wait,
            _ => return Err(error),
        };
        self.left = self.left.saturating_sub(1);
        let jittered = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        let wait = least.max(jittered);
        if self.left == 0 || Instant::now() + wait >= self.deadline {
            return Err(error);
        }
        sleep(wait).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

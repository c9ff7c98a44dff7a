//! Bounds on what the agent takes on, so that whoever floods it harms nobody else: places among which the one taken
//! longest ago makes room, and how much may be under way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Calls under way at most: more than a node has pods.
const CALLS: usize = 512;
/// Memory for requests that are larger than any usual one, in KiB.
const MEMORY: usize = 48 << 10;

/// A number of places for those whom nothing is known of yet. What they have to say takes a moment, so that whoever
/// has been there longest has the least to lose.
pub(super) struct Room {
    places: usize,
    inside: Mutex<VecDeque<CancellationToken>>,
    /// For those inside and as many on their way out.
    all: Arc<Semaphore>,
}

/// A place, until it is dropped or lost.
pub(super) struct Place {
    token: CancellationToken,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What calls take while they are under way.
pub(super) struct Load {
    calls: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

// === impl Room ===

impl Room {
    pub(super) fn new(places: usize) -> Self {
        Self { places, inside: Mutex::default(), all: Arc::new(Semaphore::new(places * 2)) }
    }

    /// A place. If there is none left, the one who came first loses his; waits while too many have yet to go.
    pub(super) async fn enter(&self) -> Place {
        let permit = self.all.clone().acquire_owned().await.ok();
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.retain(|place| !place.is_cancelled());
        while inside.len() >= self.places {
            let Some(first) = inside.pop_front() else { break };
            first.cancel();
        }
        let token = CancellationToken::new();
        inside.push_back(token.clone());
        Place { token, _permit: permit }
    }
}

// === impl Place ===

impl Place {
    /// Returns once somebody else needs it.
    pub(super) async fn lost(&self) {
        self.token.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

// === impl Load ===

impl Default for Load {
    fn default() -> Self {
        Self { calls: Arc::new(Semaphore::new(CALLS)), memory: Arc::new(Semaphore::new(MEMORY)) }
    }
}

impl Load {
    /// One more call; `None` if there are too many.
    pub(super) fn call(&self) -> Option<OwnedSemaphorePermit> {
        self.calls.clone().try_acquire_owned().ok()
    }

    /// Memory for a large request, in bytes; `None` if too much is in use.
    pub(super) fn memory(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kilobytes = u32::try_from(bytes.div_ceil(1 << 10)).ok()?;
        self.memory.clone().try_acquire_many_owned(kilobytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_came_first_makes_room_and_nobody_else() {
        let room = Room::new(2);
        let (first, second) = (room.enter().await, room.enter().await);
        drop(first);
        let third = room.enter().await;
        assert!(!second.token.is_cancelled(), "there was a place left");
        let fourth = room.enter().await;
        assert!(second.token.is_cancelled() && !third.token.is_cancelled() && !fourth.token.is_cancelled());
        let fifth = room.enter().await;
        let soon = std::time::Duration::from_millis(1);
        let sixth = tokio::time::timeout(soon, room.enter()).await;
        assert!(sixth.is_err(), "two have yet to go");
        drop((second, third));
        assert!(!fifth.token.is_cancelled());
        room.enter().await;
    }

    #[test]
    fn what_is_too_much_is_refused_until_something_ends() {
        let load = Load::default();
        let half = load.memory(MEMORY << 9).unwrap();
        let other = load.memory(MEMORY << 9).unwrap();
        assert!(load.memory(1).is_none());
        drop(half);
        assert!(load.memory(1).is_some());
        drop(other);
        let calls: Vec<_> = (0..CALLS).map_while(|_| load.call()).collect();
        assert!(calls.len() == CALLS && load.call().is_none());
    }
}

//! Which replies are lost, and how many were.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Where a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// The API server.
    Api,
    /// etcd, which holds the claims.
    Etcd,
}

/// What becomes of the reply to a write that took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    /// The connection ends before the reply.
    Cut,
    /// Nothing comes any more.
    Silent,
}

/// Draws fates from a seed, in the order in which the replies come.
pub(super) struct Losses {
    random: Mutex<StdRng>,
    on: AtomicBool,
    api: AtomicU64,
    etcd: AtomicU64,
    silent: AtomicU64,
}

/// One reply in so many is lost: an ADD writes some three objects, and only fixed addresses have claims.
const OF_API: u32 = 25;
const OF_ETCD: u32 = 5;
/// One lost reply in so many comes with silence instead of a cut.
const SILENT: u32 = 6;

// === impl Losses ===

impl Losses {
    /// None until it is switched on.
    pub(super) fn new(seed: u64) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        let [api, etcd, silent] = [(); 3].map(|()| AtomicU64::new(0));
        Self { random, on: AtomicBool::new(false), api, etcd, silent }
    }

    pub(super) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// Replies lost after their write had taken effect: of the API server, of etcd, and how many of both in silence.
    pub(super) fn counts(&self) -> [u64; 3] {
        [&self.api, &self.etcd, &self.silent].map(|count| count.load(Ordering::SeqCst))
    }

    /// Of a reply to a write that took effect.
    pub(super) fn fate(&self, store: Store) -> Fate {
        if !self.on.load(Ordering::SeqCst) {
            return Fate::Passes;
        }
        let (one_in, count) = match store {
            Store::Api => (OF_API, &self.api),
            Store::Etcd => (OF_ETCD, &self.etcd),
        };
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        if !random.random_ratio(1, one_in) {
            return Fate::Passes;
        }
        count.fetch_add(1, Ordering::SeqCst);
        if !random.random_ratio(1, SILENT) {
            return Fate::Cut;
        }
        self.silent.fetch_add(1, Ordering::SeqCst);
        Fate::Silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_come_from_the_seed_and_are_counted() {
        let draw = |losses: &Losses| (0..500).map(|_| losses.fate(Store::Etcd)).collect::<Vec<_>>();
        let (one, same) = (Losses::new(7), Losses::new(7));
        assert!(draw(&one).iter().all(|fate| *fate == Fate::Passes));
        one.switch(true);
        same.switch(true);
        let drawn = draw(&one);
        assert_eq!(drawn, draw(&same));
        let lost = drawn.iter().filter(|fate| **fate != Fate::Passes).count() as u64;
        let silent = drawn.iter().filter(|fate| **fate == Fate::Silent).count() as u64;
        assert!(lost > 50 && silent > 3, "{lost} lost, {silent} of them in silence");
        assert_eq!(one.counts(), [0, lost, silent]);
    }
}

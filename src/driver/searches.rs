//! One search for a block with room at a time. Whoever waited for it takes what it found.
//!
//! Without this a hundred ADDs that find their node's blocks full would claim the same next block, against each
//! other, and each of them might list all blocks of the cluster for it.

use calico::Family;
use ipnetwork::IpNetwork;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use super::Error;
use super::place::Exhaustion;

/// Results that are remembered.
const REMEMBERED: usize = 8;

/// The turn to search.
#[derive(Default)]
pub(super) struct Searches {
    turn: Mutex<Results>,
}

/// What the last searches found.
#[derive(Default)]
pub(super) struct Results {
    rooms: Vec<(Instant, IpNetwork)>,
    exhausted: Vec<(Instant, Terms, Exhaustion)>,
}

/// What makes two searches the same.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub family: Family,
    pub range: Option<String>,
    /// Names of the pools that are permitted.
    pub pools: Vec<String>,
}

// === impl Searches ===

impl Searches {
    /// Waits for the turn.
    pub(super) async fn turn(&self, deadline: Instant) -> Result<MutexGuard<'_, Results>, Error> {
        let turn = timeout_at(deadline, self.turn.lock()).await;
        turn.map_err(|_| Error::Late("other calls of this node still look for a block with room"))
    }
}

// === impl Results ===

impl Results {
    /// Blocks that were found lately, the latest first, and whether that was after `asked`.
    pub(super) fn rooms(&self, asked: Instant) -> Vec<(IpNetwork, bool)> {
        self.rooms.iter().rev().map(|(found, cidr)| (*cidr, *found >= asked)).collect()
    }

    /// What a search of the same terms said that began after `asked` and found nothing.
    pub(super) fn exhausted_since(&self, asked: Instant, terms: &Terms) -> Option<Exhaustion> {
        let mut same = self.exhausted.iter().filter(|(begun, of, _)| *begun >= asked && of == terms);
        same.next_back().map(|(_, _, exhaustion)| exhaustion.clone())
    }

    pub(super) fn note_room(&mut self, cidr: IpNetwork) {
        push(&mut self.rooms, (Instant::now(), cidr));
    }

    pub(super) fn note_exhaustion(&mut self, begun: Instant, terms: Terms, exhaustion: Exhaustion) {
        push(&mut self.exhausted, (begun, terms, exhaustion));
    }
}

fn push<T>(list: &mut Vec<T>, new: T) {
    if list.len() >= REMEMBERED {
        list.remove(0);
    }
    list.push(new);
}

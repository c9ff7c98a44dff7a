//! Releases that a DEL was answered for and that are not on record yet: on tmpfs, so that an agent that is killed
//! leaves them to the next one, and in memory, so that an ADD knows of addresses that are about to be free.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::state::{Container, State, Turn, is_there, put, read};

/// Longest request that is put off, in bytes: any usual one has 2,000.
const LONGEST: usize = 64 << 10;
/// How the files' names end.
const SUFFIX: &str = "release";

/// Releases that this process is at.
#[derive(Default)]
pub struct Releases {
    state: watch::Sender<Numbers>,
}

#[derive(Default)]
struct Numbers {
    next: u64,
    under_way: BTreeSet<u64>,
}

/// One of them, until it is dropped.
pub struct UnderWay {
    all: Arc<Releases>,
    number: u64,
}

// === impl Releases ===

impl Releases {
    /// One begins.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        let mut number = 0;
        self.state.send_modify(|numbers| {
            number = numbers.next;
            numbers.next += 1;
            numbers.under_way.insert(number);
        });
        UnderWay { all: self.clone(), number }
    }

    /// Waits for those that have begun by now; whether there were any.
    pub async fn settled(&self) -> bool {
        let mut changes = self.state.subscribe();
        let (last, idle) = {
            let numbers = changes.borrow_and_update();
            (numbers.next, numbers.under_way.is_empty())
        };
        let over = |numbers: &Numbers| numbers.under_way.first().is_none_or(|first| *first >= last);
        // The sender lives as long as `self`.
        let _ = changes.wait_for(over).await;
        !idle
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.state.send_modify(|numbers| {
            numbers.under_way.remove(&self.number);
        });
    }
}

// === impl State ===

impl State {
    /// The requests whose releases are not on record yet, with their files.
    pub fn owed(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.ending(SUFFIX).into_iter().filter_map(|path| read(&path).map(|request| (path, request))).collect()
    }

    /// How many there are.
    pub fn owed_count(&self) -> usize {
        self.ending(SUFFIX).len()
    }

    pub(super) fn owed_path(&self, handle: &str, interface: &str) -> Option<PathBuf> {
        self.file(handle, &format!("{interface}.{SUFFIX}"))
    }
}

// === impl Container ===

impl Container {
    /// Notes the request of a DEL that is going to be answered; false if that is not possible.
    pub fn owe(&self, request: &[u8]) -> bool {
        self.owed.as_ref().is_some_and(|path| request.len() <= LONGEST && put(path, request))
    }

    /// Whether a release is owed.
    pub fn is_owed(&self) -> bool {
        self.owed.as_deref().is_some_and(is_there)
    }

    /// It is on record, or not wanted any more. Whether it was owed.
    pub fn settle(&self) -> bool {
        self.owed.as_ref().is_some_and(|path| fs::remove_file(path).is_ok())
    }

    /// The turn of a DEL that was answered already; `None` if somebody else is at the container, or nothing is owed. An
    /// ADD that came since keeps what it was given: it has the turn, and then nothing is owed.
    pub async fn begin_owed(&self) -> Option<Turn> {
        let turn = self.del_turn().await;
        (turn.is_held() && self.is_owed()).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_releases_waits_for_those_that_had_begun() {
        let releases = Arc::new(Releases::default());
        assert!(!releases.settled().await);
        let (first, second) = (releases.begin(), releases.begin());
        let mut settled = Box::pin(releases.settled());
        assert!(settled.as_mut().now_or_never().is_none());
        let later = releases.begin();
        drop(second);
        assert!(settled.as_mut().now_or_never().is_none());
        drop(first);
        assert!(settled.await);
        drop(later);
        assert!(!releases.settled().await);
    }

    #[tokio::test]
    async fn what_is_owed_is_void_once_an_add_of_the_attachment_has_its_turn() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let state = State::open(directory.path());
        let (container, other) = (state.container("net.c", "eth0"), state.container("net.c", "eth1"));
        let turn = container.begin_del().await;
        assert!(container.owe(b"request") && !container.owe(&[b' '; LONGEST + 1]));
        assert_eq!(state.owed().into_iter().map(|(_, request)| request).collect::<Vec<_>>(), [b"request"]);
        drop(turn);
        drop(other.begin_add().await);
        assert!(container.begin_owed().await.is_some() && other.begin_owed().await.is_none());
        let begun = container.begin_add().await;
        assert!(begun.anew && begun.again && begun.turn.is_held());
        drop(begun);
        assert!(container.begin_owed().await.is_none());
        assert_eq!(state.owed_count(), 0);
    }

    #[tokio::test]
    async fn an_add_waits_for_the_del_before_it_though_that_takes_its_lock_away() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let container = State::open(directory.path()).container("net.c", "eth0");
        let del = container.begin_del().await;
        let mut first = Box::pin(container.begin_add());
        assert!(first.as_mut().now_or_never().is_none());
        drop(del);
        let mut second = Box::pin(container.begin_add());
        let held = second.as_mut().now_or_never().expect("nobody has it");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert!(first.as_mut().now_or_never().is_none(), "two ADDs of one container at once");
        drop(held);
        assert!(first.await.turn.is_held());
    }
}

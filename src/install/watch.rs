//! Hearing of changes in directories, by inotify.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};

/// Room for a burst of events, in bytes.
const BUFFER: usize = 4096;
/// Whoever writes several files is let finish.
const SETTLE: Duration = Duration::from_millis(20);

/// Hears of files that appear, change or go in some directories.
pub struct Watcher {
    events: EventStream<[u8; BUFFER]>,
}

impl Watcher {
    /// Begins to listen; what happens from now on is heard.
    ///
    /// # Errors
    /// A directory does not exist, or the kernel has no watch left (`fs.inotify.max_user_watches`).
    pub fn new(directories: &[PathBuf]) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let changes = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        for directory in directories {
            let named = |error| io::Error::other(format!("{}: {error}", directory.display()));
            inotify.watches().add(directory, changes).map_err(named)?;
        }
        Ok(Self { events: inotify.into_event_stream([0; BUFFER])? })
    }

    /// Returns after the next change, and once nothing has changed for a moment.
    ///
    /// # Errors
    /// A directory is gone, or the kernel has ended the watch.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.next().await?;
        while let Ok(more) = tokio::time::timeout(SETTLE, self.next()).await {
            more?;
        }
        Ok(())
    }

    async fn next(&mut self) -> io::Result<()> {
        let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        let gone = inotify::EventMask::DELETE_SELF | inotify::EventMask::MOVE_SELF | inotify::EventMask::IGNORED;
        match event.mask.intersects(gone) {
            true => Err(io::Error::new(io::ErrorKind::NotFound, "a directory is gone")),
            false => Ok(()),
        }
    }
}

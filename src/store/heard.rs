//! When a connection was last heard of: evidence that what is watched over it would be known by now.
//!
//! An HTTP/2 connection with a request on it asks the other side for a sign of life whenever it was silent for two
//! seconds. So one that was silent for longer than [`SILENCE`] is in doubt, long before it is given up.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::time::Instant;

/// A connection that was silent for so long is in doubt: the pause before a ping, and time for its answer.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// After a silence that was too long, what came in its course may not have been looked at for so long.
const CATCHING_UP: Duration = Duration::from_secs(1);

/// When something came over a connection. Clones are of the same connection; responses bear one as an extension.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    times: Arc<Mutex<Times>>,
}

#[derive(Debug)]
struct Times {
    last: Instant,
    /// Since when there was no silence that was too long.
    unbroken: Instant,
}

/// A stream of bytes that notes when it is heard of.
pub(super) struct Listening<T> {
    inner: T,
    heard: Heard,
}

// === impl Heard ===

impl Heard {
    /// A connection that was made now.
    pub(super) fn now() -> Self {
        let now = Instant::now();
        Self { times: Arc::new(Mutex::new(Times { last: now, unbroken: now.checked_sub(CATCHING_UP).unwrap_or(now) })) }
    }

    fn note(&self) {
        let now = Instant::now();
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if now - times.last >= SILENCE {
            times.unbroken = now;
        }
        times.last = now;
    }

    /// Whether the connection answers: it was not silent for too long, neither now nor a moment ago.
    pub(crate) fn answers(&self) -> bool {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.last.elapsed() < SILENCE && times.unbroken.elapsed() >= CATCHING_UP
    }
}

// === impl Listening ===

impl<T> Listening<T> {
    pub(super) fn new(inner: T, heard: Heard) -> Self {
        Self { inner, heard }
    }
}

impl<T: Read + Unpin> Read for Listening<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_read(cx, buf);
        if matches!(outcome, Poll::Ready(Ok(()))) {
            this.heard.note();
        }
        outcome
    }
}

impl<T: Write + Unpin> Write for Listening<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_answers_as_long_as_it_is_never_silent_for_three_seconds() {
        let heard = Heard::now();
        for _ in 0..5 {
            advance(Duration::from_millis(2100)).await;
            assert!(heard.answers());
            heard.note();
        }
        advance(SILENCE).await;
        assert!(!heard.answers());
    }

    /// A process that stood still finds on its connections what came meanwhile, and has looked at none of it.
    #[tokio::test(start_paused = true)]
    async fn after_a_long_silence_it_answers_once_there_was_time_to_look_at_what_came() {
        let heard = Heard::now();
        advance(Duration::from_secs(60)).await;
        heard.note();
        assert!(!heard.answers());
        advance(CATCHING_UP).await;
        assert!(heard.answers());
    }
}

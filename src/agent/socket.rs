//! The socket that the plugin meets the agent on: private to this user, and no path of it a symlink.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};

use super::Agent;
use super::metrics::Decline;
use crate::protocol::{LINE_LIMIT, Reply, Request, line};
use crate::service::state::is_private;

/// Longest wait for a request on a connection that was made.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Others could have written there.
    #[error(
        "state directory {0} is not a directory of this user's alone: make it mode 0700, owned by who runs the agent"
    )]
    NotPrivate(PathBuf),
    /// Somebody answers there.
    #[error("another agent serves {0}: one is enough for a node")]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("{0} is there and is no socket: remove it, or choose another state directory")]
    NoSocket(PathBuf),
    /// The address for metrics cannot be had.
    #[error("--metrics-address {address}: {source}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The system refused.
    #[error("socket {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The socket.
pub(super) struct Listener {
    path: PathBuf,
    listener: UnixListener,
}

/// Makes the socket, in place of one that a dead agent left.
pub(super) fn bind(path: &Path) -> Result<Listener, BindError> {
    let fail = |source| BindError::Io { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(path);
    if !is_private(directory) {
        return Err(BindError::NotPrivate(directory.to_owned()));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(BindError::InUse(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(fail)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(Listener { path: path.to_owned(), listener })
}

// === impl Listener ===

impl Listener {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Serves until the agent is to stop. From then on there is no socket, so that plugins go on by themselves.
    pub(super) async fn serve(self, agent: Arc<Agent>) {
        let pulse = agent.health.pulse("socket");
        loop {
            let accepted = tokio::select! {
                () = agent.stopping.cancelled() => break,
                accepted = pulse.while_waiting(self.listener.accept()) => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: others are about to be closed.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if is_ours(&stream) {
                let serving = exchange(agent.clone(), stream);
                agent.tasks.spawn(serving);
            }
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether root or this user is at the other end.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    let user = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap_or_default();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == user => true,
        peer => {
            tracing::warn!(?peer, "refused a peer that is neither root nor this user");
            false
        }
    }
}

/// One call: a request, and its replies.
async fn exchange(agent: Arc<Agent>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut requests = BufReader::new(read).take(LINE_LIMIT as u64);
    let mut text = Vec::new();
    match tokio::time::timeout(REQUEST_TIME, requests.read_until(b'\n', &mut text)).await {
        Ok(Ok(_)) if text.ends_with(b"\n") => {}
        // Somebody who looked whether the socket answers, or died.
        _ => return,
    }
    let request = match Request::read(&text) {
        Ok(_) if agent.stopping.is_cancelled() => {
            agent.witness.metrics.declined(Decline::Stopping);
            Err(Reply::Declined { reason: "the agent is stopping".to_owned() })
        }
        Err(declined) => {
            agent.witness.metrics.declined(Decline::Protocol);
            Err(declined)
        }
        request => request,
    };
    let request = match request {
        Ok(request) => request,
        Err(declined) => {
            say(&mut write, &declined).await;
            return;
        }
    };
    if !say(&mut write, &Reply::Accepted {}).await {
        return;
    }
    // A plugin says nothing more; the end of what it says is its end.
    let gone = AtomicBool::new(false);
    let hang_up = async {
        let mut more = [0u8; 16];
        while matches!(requests.read(&mut more).await, Ok(n) if n > 0) {}
        gone.store(true, Ordering::Relaxed);
        std::future::pending::<()>().await;
    };
    let reply = tokio::select! {
        reply = agent.answer(&request, &gone) => reply,
        () = hang_up => return,
    };
    let delivered = !gone.load(Ordering::Relaxed) && say(&mut write, &reply).await;
    if !delivered && matches!(reply, Reply::Answer(_)) {
        agent.take_back(&request).await;
    }
}

async fn say(write: &mut OwnedWriteHalf, reply: &Reply) -> bool {
    write.write_all(&line(reply)).await.is_ok()
}

//! The socket that the plugin meets the agent on: private to this user, and no path of it a symlink.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;

use super::Agent;
use super::metrics::Decline;
use super::room::{Load, Place, Room};
use crate::cni::value_count;
use crate::protocol::{LINE_LIMIT, Reply, Request, is_served, line};
use crate::service::state::is_private;

/// Longest wait for a request on a connection that was made.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Longest wait for a peer that does not read what it is told.
const REPLY_TIME: Duration = Duration::from_secs(5);
/// Connections whose request has not come yet. A plugin sends it at once.
const SILENT: usize = 128;
/// Longest request, in bytes, for which no memory is asked for: far more than any usual one.
const USUAL: usize = 32 << 10;
/// Memory that a JSON value takes at most, in bytes: an object of one field.
const VALUE: usize = 704;

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
        // One that hangs may go on.
        Ok(_) if is_served(path) => return Err(BindError::InUse(path.to_owned())),
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
        let (room, load) = (Room::new(SILENT), Arc::new(Load::default()));
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
                let serving = exchange(agent.clone(), stream, room.enter().await, load.clone());
                agent.tasks.spawn(serving);
            }
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether root or this user is at the other end.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    let user = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == user => true,
        peer => {
            tracing::warn!(?peer, "refused a peer that is neither root nor this user");
            false
        }
    }
}

/// A request as it was read, with what it takes of the agent for as long as it is under way.
struct Taken {
    request: Request,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// Why there is no request to serve.
enum Untaken {
    /// Somebody who looked whether the socket answers, or died, or says nothing.
    Silent,
    /// The plugin is to go on by itself.
    Declined(Decline, Reply),
}

fn busy(reason: &str) -> Untaken {
    Untaken::Declined(Decline::Busy, Reply::Declined { reason: format!("the agent is busy: {reason}") })
}

/// Reads a request, within bounds of bytes and memory.
async fn take(requests: &mut (impl AsyncBufRead + Unpin), load: &Load) -> Result<Taken, Untaken> {
    let (mut text, mut permits) = (Vec::new(), Vec::new());
    let mut usual = (&mut *requests).take(USUAL as u64);
    usual.read_until(b'\n', &mut text).await.map_err(|_| Untaken::Silent)?;
    if text.len() == USUAL && !text.ends_with(b"\n") {
        permits.push(load.memory(LINE_LIMIT).ok_or_else(|| busy("too many large requests"))?);
        requests.read_until(b'\n', &mut text).await.map_err(|_| Untaken::Silent)?;
    }
    if !text.ends_with(b"\n") {
        return Err(Untaken::Silent);
    }
    let memory = value_count(&text) * VALUE;
    if memory > USUAL * 2 {
        permits.push(load.memory(memory).ok_or_else(|| busy("too many large requests"))?);
    }
    permits.push(load.call().ok_or_else(|| busy("too many calls are under way"))?);
    let request = Request::read(&text).map_err(|declined| Untaken::Declined(Decline::Protocol, declined))?;
    Ok(Taken { request, _permits: permits })
}

/// One call: a request, and its replies.
async fn exchange(agent: Arc<Agent>, stream: UnixStream, place: Place, load: Arc<Load>) {
    let (read, mut write) = stream.into_split();
    let mut requests = BufReader::new(read).take(LINE_LIMIT as u64);
    let taken = tokio::select! {
        taken = tokio::time::timeout(REQUEST_TIME, take(&mut requests, &load)) => taken.unwrap_or(Err(Untaken::Silent)),
        () = place.lost() => Err(busy("others came, and no request had")),
    };
    let taken = match taken {
        Ok(_) if agent.stopping.is_cancelled() => {
            let reason = "the agent is stopping".to_owned();
            Err(Untaken::Declined(Decline::Stopping, Reply::Declined { reason }))
        }
        taken => taken,
    };
    let Taken { request, _permits } = match taken {
        Ok(taken) => taken,
        Err(Untaken::Silent) => return,
        Err(Untaken::Declined(why, declined)) => {
            agent.witness.metrics.declined(why);
            say(&mut write, &[&declined]).await;
            return;
        }
    };
    drop(place);
    let (gone, accepted) = (AtomicBool::new(false), Reply::Accepted {});
    let mut answer = pin!(agent.answer(&request, &gone));
    let (reply, delivered) = match futures::poll!(answer.as_mut()) {
        // What is known at once is said in one piece, for which the plugin wakes up once.
        Poll::Ready(reply) => {
            let delivered = say(&mut write, &[&accepted, &reply]).await;
            (reply, delivered)
        }
        Poll::Pending => {
            gone.store(!say(&mut write, &[&accepted]).await, Ordering::Relaxed);
            // A plugin says nothing more; the end of what it says is its end.
            let hang_up = async {
                let mut more = [0u8; 16];
                while matches!(requests.read(&mut more).await, Ok(n) if n > 0) {}
                gone.store(true, Ordering::Relaxed);
                std::future::pending::<Infallible>().await
            };
            let reply = tokio::select! {
                reply = answer => reply,
                never = hang_up => match never {},
            };
            let delivered = !gone.load(Ordering::Relaxed) && say(&mut write, &[&reply]).await;
            (reply, delivered)
        }
    };
    if !delivered && matches!(reply, Reply::Answer(_)) {
        agent.take_back(&request).await;
    }
}

/// Whether the peer was told.
async fn say(write: &mut OwnedWriteHalf, replies: &[&Reply]) -> bool {
    let lines: Vec<u8> = replies.iter().flat_map(line).collect();
    matches!(tokio::time::timeout(REPLY_TIME, write.write_all(&lines)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, SockAddr, Socket, Type};

    use super::*;

    /// A stopped process keeps its socket; what connects waits in a queue, and once that is full for ever.
    #[test]
    fn an_agent_that_hangs_is_found_in_time() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let path = directory.path().join("agent.sock");
        let address = SockAddr::unix(&path).unwrap();
        let frozen = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        frozen.bind(&address).unwrap();
        frozen.listen(0).unwrap();
        let mut queue = Vec::new();
        loop {
            let waiting = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            waiting.set_nonblocking(true).unwrap();
            match waiting.connect(&address) {
                Ok(()) => queue.push(waiting),
                Err(_) => break,
            }
        }
        let (done, found) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(bind(&path).err()));
        let found = found.recv_timeout(Duration::from_secs(20)).expect("bind waits for an agent that hangs");
        assert!(matches!(found, Some(BindError::InUse(_))), "{found:?}");
        drop((frozen, queue));
    }
}

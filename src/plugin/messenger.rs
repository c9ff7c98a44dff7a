//! Asking the node's agent: one blocking exchange, no runtime, no TLS.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cni::CniError;
use crate::protocol::{ACCEPT_TIME, LINE_LIMIT, Reply, Request, SOCKET, connect, line};
use crate::service::state::is_private;

/// Longest wait for its answer beyond the configured wait for a holder: more than its own limits add up to.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// `waitSeconds` where the configuration does not say.
const DEFAULT_WAIT: u64 = 20;

/// The longest of them, which an update that hands an address over may take whatever is configured.
const LONGEST_WAIT: u64 = 100;

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// There is no socket, or nobody behind it.
    #[error("no agent")]
    NoAgent,
    /// Somebody else could have put it there.
    #[error("{0} is not private to this user, so it is not trusted")]
    Untrusted(PathBuf),
    /// It said so.
    #[error("it declined: {0}")]
    Declined(String),
    /// It broke off, or took too long.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is of another kind.
    #[error("its reply cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// What the agent answers. If it does not, the call may have been carried out all the same; doing it again is
/// safe, since every call is idempotent.
pub(super) fn ask(request: &Request) -> Result<Result<Option<Value>, CniError>, Unanswered> {
    let directory = directory(&request.config);
    let socket = directory.join(SOCKET);
    match fs::symlink_metadata(&socket) {
        Ok(found) if found.file_type().is_socket() && is_private(&directory) => {}
        Ok(_) => return Err(Unanswered::Untrusted(socket)),
        Err(_) => return Err(Unanswered::NoAgent),
    }
    let stream = connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Unanswered::Io(error),
        _ => Unanswered::NoAgent,
    })?;
    (&stream).write_all(&line(request))?;
    let mut replies = BufReader::new(&stream).take(LINE_LIMIT as u64);
    match reply(&stream, &mut replies, ACCEPT_TIME)? {
        Reply::Accepted {} => {}
        other => return conclude(other),
    }
    conclude(reply(&stream, &mut replies, longest_wait(&request.config) + ANSWER_TIME)?)
}

/// How long an ADD may wait for the holder of its address.
fn longest_wait(config: &Value) -> Duration {
    let wait = config.pointer("/ipam/waitSeconds").and_then(Value::as_u64).unwrap_or(DEFAULT_WAIT);
    let hands_over = config.pointer("/ipam/handover").and_then(Value::as_str) == Some("evict");
    Duration::from_secs(if hands_over { LONGEST_WAIT } else { wait.min(LONGEST_WAIT) })
}

fn conclude(reply: Reply) -> Result<Result<Option<Value>, CniError>, Unanswered> {
    match reply {
        Reply::Answer(answer) => Ok(Ok(answer)),
        Reply::Error { code, msg, details } => Ok(Err(CniError { code, msg, details })),
        Reply::Declined { reason } => Err(Unanswered::Declined(reason)),
        Reply::Accepted {} => Err(Unanswered::Declined("it accepted the call twice".to_owned())),
    }
}

/// One line, within `limit` in all: a socket's own time-out starts anew with every byte.
fn reply(stream: &UnixStream, replies: &mut impl BufRead, limit: Duration) -> Result<Reply, Unanswered> {
    let until = Instant::now() + limit;
    let mut text = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = replies.fill_buf()?;
        if read.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(read.len(), |end| end + 1);
        text.extend_from_slice(&read[..used]);
        replies.consume(used);
        if end.is_some() {
            return Ok(serde_json::from_slice(&text)?);
        }
    }
}

/// The state directory, before the configuration is parsed: a malformed one is for the agent to refuse.
fn directory(config: &Value) -> PathBuf {
    let named = config.pointer("/ipam/stateDir").and_then(Value::as_str).map(Path::new);
    named.filter(|path| path.is_absolute()).map_or_else(|| crate::netconf::STATE_DIR.into(), Path::to_path_buf)
}

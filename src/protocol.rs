//! What the plugin and the node's agent say to each other: one line of JSON from the plugin, two from the
//! agent. The first tells that it took the call on, the second is the answer.
//!
//! Either side may be of another version. Fields that a side does not know are skipped, and a request of a
//! newer protocol is declined, which sends the plugin into direct mode; so does an answer it cannot read.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::error::Category;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::cni::{MOST_VALUES, value_count};

/// The protocol spoken here.
pub const VERSION: u32 = 1;

/// File name of the agent's socket in the state directory.
pub const SOCKET: &str = "agent.sock";

/// File name of the socket beside it that tells over HTTP how the agent stands.
pub const STATUS_SOCKET: &str = "status.sock";

/// Longest line that either side reads, in bytes: a configuration and what JSON needs to quote it.
pub const LINE_LIMIT: usize = 4 << 20;

/// Longest wait for an agent to take on a connection, or a call.
pub const ACCEPT_TIME: Duration = Duration::from_secs(2);

/// Connects to an agent's socket within [`ACCEPT_TIME`]. An agent that hangs accepts nobody, and once its queue is full a
/// connection waits: that is [`io::ErrorKind::TimedOut`], and there is an agent.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    stream.set_write_timeout(Some(ACCEPT_TIME))?;
    match stream.connect(&SockAddr::unix(socket)?) {
        Ok(()) => Ok(OwnedFd::from(stream).into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error),
    }
}

/// Whether an agent is at this socket, be it one that hangs.
pub fn is_served(socket: &Path) -> bool {
    match connect(socket) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::TimedOut,
    }
}

/// The variables that make up a call.
pub const CALL_VARIABLES: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// A CNI call as the plugin was called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The protocol that the plugin speaks.
    pub protocol: u32,
    /// The plugin's release, for the log.
    #[serde(default)]
    pub release: String,
    /// Name of the executable: `kube-ipam` or `calico-ipam`.
    pub called_as: String,
    /// Its `CNI_` variables.
    pub environment: BTreeMap<String, String>,
    /// Its stdin.
    pub config: Value,
}

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// It has begun; the answer follows.
    Accepted {},
    /// It succeeded; `None` where CNI wants no output.
    Answer(Option<Value>),
    /// It failed, with an error that the runtime is to have.
    Error {
        /// See [`crate::cni::code`].
        code: u32,
        /// What is wrong.
        msg: String,
        /// What to do.
        #[serde(default)]
        details: String,
    },
    /// It did nothing and will not: the plugin is to go on by itself.
    Declined {
        /// Why.
        reason: String,
    },
}

// === impl Request ===

impl Request {
    /// A request of this release.
    pub fn new(called_as: &str, environment: BTreeMap<String, String>, config: Value) -> Self {
        let release = env!("CARGO_PKG_VERSION").to_owned();
        Self { protocol: VERSION, release, called_as: called_as.to_owned(), environment, config }
    }

    /// Reads a request; the reply that declines it, if it cannot be served as it is meant.
    pub fn read(line: &[u8]) -> Result<Self, Reply> {
        #[derive(Deserialize)]
        struct Spoken {
            protocol: u32,
        }
        let declined = |reason: String| Reply::Declined { reason };
        // Where it is wrong, not what stands there: that may be long, or a secret.
        let unread = |e: serde_json::Error| {
            declined(format!("the request cannot be read: wrong {} at byte {}", kind(&e), e.column()))
        };
        let Spoken { protocol } = serde_json::from_slice(line).map_err(unread)?;
        if value_count(line) > MOST_VALUES {
            return Err(declined(format!("the request has more than {MOST_VALUES} JSON values")));
        }
        if protocol > VERSION {
            return Err(declined(format!("protocol {protocol} is not spoken here, only up to {VERSION}")));
        }
        serde_json::from_slice(line).map_err(unread)
    }
}

fn kind(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        Category::Io => "reading",
        Category::Syntax => "syntax",
        Category::Data => "value or missing field",
        Category::Eof => "end",
    }
}

/// A message as a line.
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    // JSON of our own types with string keys always serialises.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> Request {
        let environment = [("CNI_COMMAND".to_owned(), "ADD".to_owned())].into();
        Request::new("kube-ipam", environment, json!({"name": "net\nwork"}))
    }

    #[test]
    fn a_request_is_one_line_and_comes_back_as_it_went() {
        let line = line(&request());
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(Request::read(&line).unwrap(), request());
    }

    #[test]
    fn a_newer_protocol_is_declined_even_if_its_requests_look_different() {
        let Err(Reply::Declined { reason }) = Request::read(br#"{"protocol": 2, "call": {"verb": "ADD"}}"#) else {
            panic!("not declined");
        };
        assert!(reason.contains("protocol 2") && reason.contains("up to 1"), "{reason}");
    }

    #[test]
    fn fields_of_later_releases_are_skipped() {
        let mut value = serde_json::to_value(request()).unwrap();
        value["trace"] = json!("4bf92f");
        assert_eq!(Request::read(&line(&value)).unwrap(), request());
        let reply = br#"{"error": {"code": 11, "msg": "later", "retryAfter": 3}}"#;
        let expected = Reply::Error { code: 11, msg: "later".into(), details: String::new() };
        assert_eq!(serde_json::from_slice::<Reply>(reply).unwrap(), expected);
    }

    #[test]
    fn what_is_no_request_is_declined_and_not_guessed() {
        for text in ["", "{", "[]", "{}", r#"{"protocol": -1}"#, r#"{"protocol": 1}"#, "\u{0}"] {
            assert!(matches!(Request::read(text.as_bytes()), Err(Reply::Declined { .. })), "{text:?}");
        }
    }

    #[test]
    fn every_reply_comes_back_as_it_went() {
        for reply in [
            Reply::Accepted {},
            Reply::Answer(None),
            Reply::Answer(Some(json!({"ips": []}))),
            Reply::Error { code: 7, msg: "m".into(), details: "d".into() },
            Reply::Declined { reason: "stopping".into() },
        ] {
            assert_eq!(serde_json::from_slice::<Reply>(&line(&reply)).unwrap(), reply);
        }
    }
}

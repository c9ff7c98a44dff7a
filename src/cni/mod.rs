//! The CNI protocol as text: what a runtime says to a plugin (environment and stdin) and what it reads back (JSON on stdout).
//!
//! Nothing here performs I/O. Every way in yields either a type that holds or a [`CniError`] with the code the specification asks for,
//! and no value that might be a secret is ever repeated in an error.

mod answer;
mod args;
mod dns;
pub(crate) mod error;
mod invocation;
pub(crate) mod names;
pub(crate) mod object;
mod stdin;
pub(crate) mod text;
mod version;

pub use answer::{Answer, AnswerIp, Route};
pub use args::CniArgs;
pub use dns::Dns;
pub use error::{CniError, code};
pub use invocation::{Invocation, Verb, invocation};
pub use stdin::{MOST_VALUES, READ_STDIN_LIMIT, parse_stdin, value_count};
pub use version::{CniVersion, version_answer};

#[cfg(test)]
mod tests;

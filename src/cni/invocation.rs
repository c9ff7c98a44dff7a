//! The environment of a plugin call, checked once.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::{CniArgs, CniError};

/// What the runtime asks for (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Give the container an address.
    Add,
    /// Take it back.
    Del,
    /// Is it still as the answer to ADD said?
    Check,
    /// Could an ADD be served now?
    Status,
    /// Take back everything that is not listed as valid.
    Gc,
    /// Which versions are spoken?
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
            Verb::Version => "VERSION",
        })
    }
}

/// A call as its environment describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// `CNI_COMMAND`
    pub verb: Verb,
    /// `CNI_CONTAINERID`: letters, digits, `_`, `.`, `-`. Empty for STATUS, GC and VERSION, never for ADD, DEL and CHECK.
    pub container_id: String,
    /// `CNI_IFNAME`: 1 to 15 bytes, no `/`, `:` or white space. Empty for STATUS, GC and VERSION.
    pub ifname: String,
    /// `CNI_NETNS`: an absolute path; none where the runtime has lost it, which only DEL allows.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`
    pub args: CniArgs,
    /// `CNI_PATH`, split at `:`.
    pub path: Vec<PathBuf>,
}

/// Reads a call from its variables. Code 4 names every variable that is missing for the verb, or the first malformed one.
pub fn invocation(var: impl Fn(&str) -> Option<OsString>) -> Result<Invocation, CniError> {
    let _ = var;
    unimplemented!()
}

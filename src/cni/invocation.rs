//! The environment of a plugin call, checked once.

use std::ffi::OsString;
use std::fmt;

use super::{CniArgs, CniError, code, names};

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

impl Verb {
    const ALL: [Verb; 6] = [Verb::Add, Verb::Del, Verb::Check, Verb::Status, Verb::Gc, Verb::Version];

    /// As it stands in `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
            Verb::Gc => "GC",
            Verb::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
    /// `CNI_ARGS`
    pub args: CniArgs,
}

/// Reads a call from its variables. Code 4 names every variable that is missing for the verb, or the first malformed one.
pub fn invocation(var: impl Fn(&str) -> Option<OsString>) -> Result<Invocation, CniError> {
    let read = |name: &str| match var(name).filter(|value| !value.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => {
            Err(CniError::new(code::INVALID_ENVIRONMENT, format!("{name}: is not UTF-8"), "set it to plain text"))
        }
    };
    let Some(command) = read("CNI_COMMAND")? else {
        return Err(missing(&["CNI_COMMAND"], "set it to ADD, DEL, CHECK, STATUS, GC or VERSION"));
    };
    let Some(verb) = Verb::ALL.into_iter().find(|verb| verb.to_string() == command) else {
        let right = "use ADD, DEL, CHECK, STATUS, GC or VERSION, in capitals";
        return Err(CniError::variable("CNI_COMMAND", &command, "is not a CNI verb", right));
    };
    let absent: Vec<_> =
        required(verb).iter().copied().filter(|name| var(name).is_none_or(|value| value.is_empty())).collect();
    if !absent.is_empty() {
        return Err(missing(&absent, format!("{verb} needs {}", required(verb).join(", "))));
    }
    let args = |text: String| match CniArgs::parse(&text) {
        // Its ADD was refused for them. Refused again, the sandbox could never go away.
        Err(_) if verb == Verb::Del => Ok(CniArgs::default()),
        read => read,
    };
    // A verb that is about no container ignores what an environment may still hold of one.
    let about_container = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
    let of_container = |name: &str| if about_container { read(name) } else { Ok(None) };
    Ok(Invocation {
        verb,
        container_id: container_id(of_container("CNI_CONTAINERID")?)?,
        ifname: ifname(of_container("CNI_IFNAME")?)?,
        args: args(of_container("CNI_ARGS")?.unwrap_or_default())?,
    })
}

/// The variables that a verb requires by the specification. What is in `CNI_NETNS` and `CNI_PATH` is not judged: an IPAM
/// plugin enters no namespace, which a virtual machine or Windows names by an identifier, and runs no other plugin.
fn required(verb: Verb) -> &'static [&'static str] {
    match verb {
        Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
        Verb::Gc => &["CNI_PATH"],
        Verb::Status | Verb::Version => &[],
    }
}

fn missing(names: &[&str], right: impl Into<String>) -> CniError {
    let are = if names.len() == 1 { "is" } else { "are" };
    CniError::new(code::INVALID_ENVIRONMENT, format!("{} {are} not set", names.join(", ")), right)
}

fn container_id(value: Option<String>) -> Result<String, CniError> {
    let id = value.unwrap_or_default();
    if id.is_empty() || (names::is_cni_name(&id) && id.len() <= 128) {
        return Ok(id);
    }
    let right = "use a letter or digit, then letters, digits, _ . - only, at most 128 in all";
    Err(CniError::variable("CNI_CONTAINERID", &id, "is not a container id", right))
}

fn ifname(value: Option<String>) -> Result<String, CniError> {
    let name = value.unwrap_or_default();
    match names::interface_fault(&name) {
        None => Ok(name),
        Some(fault) => Err(CniError::variable("CNI_IFNAME", &name, fault, "give an interface's name, such as eth0")),
    }
}

//! The one error that leaves the plugin: a code of the CNI specification, what is wrong, and what would be right.
//!
//! `msg` names the field or object and the value; `details` says what to do. Kubernetes shows both, joined by `; `, in the pod's Events.

use serde_json::{Value, json};

use super::CniVersion;

/// Codes of [`CniError`]: below 100 the specification's, from 100 on our own.
pub mod code {
    /// The configuration's `cniVersion`, or the verb in that version, is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// CHECK and DEL on a container that is not known.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_` variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed, for instance stdin, a file, a socket.
    pub const IO: u32 = 5;
    /// Text that should be JSON (or a certificate, a kubeconfig) is not.
    pub const DECODE: u32 = 6;
    /// The network configuration or an annotation cannot be honoured as written.
    pub const INVALID_CONFIG: u32 = 7;
    /// Transient: the runtime should try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD cannot be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD cannot be served, and existing containers may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// A fixed address belongs to another owner, or is in use by another container.
    pub const ADDRESS_HELD: u32 = 100;
    /// No free address is left in the range or the pools.
    pub const EXHAUSTED: u32 = 101;
    /// No Calico IP pool covers the subnet, or the pool is disabled.
    pub const NO_POOL: u32 = 102;
    /// A fixed address was asked for, but there is no ledger of claims.
    pub const NO_LEDGER: u32 = 103;
    /// The API server or etcd does not accept the credentials, or they are not enough.
    pub const FORBIDDEN: u32 = 104;
    /// CHECK found that the records differ from the configuration or from `prevResult`.
    pub const CHECK_FAILED: u32 = 105;
    /// A rule of our own was broken: a bug.
    pub const INTERNAL: u32 = 199;
}

/// An error in the form the CNI specification gives it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { "; " })]
pub struct CniError {
    /// See [`code`].
    pub code: u32,
    /// What is wrong: the field or object, its value, the rule. Never empty.
    pub msg: String,
    /// What would be right, who holds what; may be empty.
    pub details: String,
}

impl CniError {
    /// An error from its parts, in one line whatever they hold: they name keys and variables that others wrote.
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> CniError {
        CniError { code, msg: one_line(msg.into()), details: one_line(details.into()) }
    }

    /// The JSON object the runtime reads from stdout. Without a known version the newest is named.
    pub fn to_json(&self, version: Option<CniVersion>) -> Value {
        let mut json = json!({
            "cniVersion": version.unwrap_or(CniVersion::NEWEST).as_str(),
            "code": self.code,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            json["details"] = self.details.clone().into();
        }
        json
    }

    /// Code 7 for a field of the network configuration: `ipam.rangeStart: "10.9.0.1" <wrong>`, and what is `right`.
    pub(crate) fn field(path: &str, value: &str, wrong: impl AsRef<str>, right: impl Into<String>) -> CniError {
        CniError::new(code::INVALID_CONFIG, format!("{path}: {} {}", shown(value), wrong.as_ref()), right)
    }

    /// Code 7 for an annotation: `annotation kube-ipam.ip: "10.9.0.1" <wrong>`, and what is `right`.
    pub(crate) fn annotation(name: &str, value: &str, wrong: impl AsRef<str>, right: impl Into<String>) -> CniError {
        CniError::field(&format!("annotation {name}"), value, wrong, right)
    }

    /// Code 4 for a variable: `CNI_IFNAME: "a/b" <wrong>`, and what is `right`.
    pub(crate) fn variable(name: &str, value: &str, wrong: impl AsRef<str>, right: impl Into<String>) -> CniError {
        CniError { code: code::INVALID_ENVIRONMENT, ..CniError::field(name, value, wrong, right) }
    }
}

/// Control characters escaped: raw, they would write lines of their own in a log, or move a terminal's cursor.
fn one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// A value as an error shows it: quoted, control characters escaped, cut to a length that fits a log line and an Event. What looks like
/// a key or certificate, plain or in base64, is not shown at all.
pub(crate) fn shown(value: &str) -> String {
    const MOST: usize = 120;
    if value.contains("-----BEGIN") || value.contains("LS0tLS1CRUdJTi") {
        return "(PEM data, not shown)".to_owned();
    }
    match value.char_indices().nth(MOST) {
        None => format!("{value:?}"),
        Some((cut, _)) => format!("{:?}... ({} bytes)", &value[..cut], value.len()),
    }
}

/// A JSON value as an error shows it; of objects and arrays only that they are one, since anything may be inside.
pub(crate) fn shown_json(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Object(_) => "(an object)".to_owned(),
        Value::Array(_) => "(an array)".to_owned(),
        plain => plain.to_string(),
    }
}

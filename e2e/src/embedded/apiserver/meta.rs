//! Small readings and writings of `metadata` in JSON objects, and the names the server accepts.

use jiff::Timestamp;
use rand::RngExt as _;
use serde_json::{Map, Value};

use super::error::{Cause, CauseKind};

/// The string at a JSON pointer, or the empty string.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata.name`.
pub(super) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The map at `metadata`, made if absent.
pub(super) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let meta = &mut object["metadata"];
    if !meta.is_object() {
        *meta = Value::Object(Map::new());
    }
    match meta {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

/// Sets or removes one key of `metadata`.
pub(super) fn set(object: &mut Value, key: &str, value: Option<Value>) {
    let meta = metadata(object);
    match value {
        Some(value) => meta.insert(key.to_owned(), value),
        None => meta.remove(key),
    };
}

/// The strings of `metadata.finalizers`.
pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// True once a graceful or finalizer-held deletion has begun.
pub(super) fn is_deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Now, in whole seconds, as Kubernetes writes times.
pub(super) fn now() -> String {
    stamp(Timestamp::now())
}

/// A time in whole seconds, as Kubernetes writes it.
pub(super) fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A random UUID of version 4.
pub(super) fn uid() -> String {
    let bits: u128 = rand::random();
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Letters and digits that form no words, as Kubernetes uses for generated names.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `length` random characters for a generated name.
pub(super) fn suffix(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(SAFE[rng.random_range(0..SAFE.len())])).collect()
}

/// The form of names a resource demands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum NameRule {
    /// Lower-case labels joined by dots, 253 characters at most.
    Subdomain,
    /// One lower-case label, 63 characters at most.
    Label,
    /// Any path segment (RBAC objects).
    Segment,
}

impl NameRule {
    /// What is wrong with `name`, if anything.
    pub fn violation(self, name: &str) -> Option<Cause> {
        let wrong = match self {
            Self::Segment => (name == "." || name == ".." || name.contains(['/', '%'])).then(|| "may not be '.', '..' or contain '/' or '%'".to_owned()),
            Self::Label => (name.len() > 63 || !is_label(name)).then(|| "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character".to_owned()),
            Self::Subdomain => (name.len() > 253 || !name.split('.').all(is_label)).then(|| "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character".to_owned()),
        }?;
        Some(Cause::new(CauseKind::Invalid, "metadata.name", format!("{name:?}: {wrong}")))
    }
}

fn is_label(label: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = label.as_bytes();
    !bytes.is_empty()
        && bytes.iter().all(|&c| inner(c) || c == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
}

/// What is wrong with labels' keys and values, if anything.
pub(super) fn label_violations(object: &Value) -> Vec<Cause> {
    let Some(labels) = object.pointer("/metadata/labels").and_then(Value::as_object) else {
        return Vec::new();
    };
    let mut causes = Vec::new();
    for (key, value) in labels {
        if !is_qualified(key) {
            causes.push(Cause::new(
                CauseKind::Invalid,
                "metadata.labels",
                format!("{key:?}: name part must consist of alphanumeric characters, '-', '_' or '.'"),
            ));
        }
        let value = value.as_str().unwrap_or_default();
        if !(value.is_empty() || is_label_word(value)) {
            causes.push(Cause::new(CauseKind::Invalid, "metadata.labels", format!("{value:?}: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', 63 at most")));
        }
    }
    causes
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, word)) => NameRule::Subdomain.violation(prefix).is_none() && is_label_word(word),
        None => is_label_word(key),
    }
}

fn is_label_word(word: &str) -> bool {
    let bytes = word.as_bytes();
    let edge = |c: u8| c.is_ascii_alphanumeric();
    !bytes.is_empty()
        && bytes.len() <= 63
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
        && bytes.iter().all(|&c| edge(c) || matches!(c, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_has_the_form_of_version_four() {
        let uid = uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"), "{uid}");
    }

    #[test]
    fn names_are_judged_as_kubernetes_does() {
        assert!(NameRule::Subdomain.violation("10-244-0-192-26").is_none());
        assert!(NameRule::Subdomain.violation("k8s-pod-network.0a1b").is_none());
        assert!(NameRule::Subdomain.violation("Upper").is_some());
        assert!(NameRule::Subdomain.violation("a..b").is_some());
        assert!(NameRule::Subdomain.violation("-a").is_some());
        assert!(NameRule::Subdomain.violation(&"a".repeat(254)).is_some());
        assert!(NameRule::Label.violation("a.b").is_some());
        assert!(NameRule::Segment.violation("system:node").is_none());
    }
}

//! What is fuzzed: each target takes any bytes and panics only if a promise is broken.
//!
//! The same functions run under libFuzzer (`tests/fuzz/libfuzzer`) and in a short run on any compiler
//! (`tests/fuzz/main.rs`). Nothing here does I/O or reads a clock, so that an input does the same every time.

mod annotations;
mod block;
mod claim;
mod cni;
mod conflist;
mod protocol;

use kube_ipam::cni::CniError;
use serde_json::Value;

/// A target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its corpus.
pub const ALL: [(&str, Target); 6] = [
    ("annotations", annotations::run),
    ("block", block::run),
    ("claim", claim::run),
    ("cni", cni::run),
    ("conflist", conflist::run),
    ("protocol", protocol::run),
];

/// Runs a target by its name.
#[allow(dead_code, reason = "for libFuzzer's binaries")]
pub fn run(name: &str, data: &[u8]) {
    for (known, target) in ALL {
        if known == name {
            target(data);
        }
    }
}

/// Longest error that anybody may be shown, in bytes: an Event has 1,024, a log line not many more.
const LONGEST_ERROR: usize = 16 << 10;

/// An error says what is wrong under a code of its own, in one line, whatever it is about.
fn is_proper(error: &CniError) {
    assert!(matches!(error.code, 1 | 3..=7 | 11 | 50 | 51 | 100..=105), "code {}: {error}", error.code);
    assert!(!error.msg.is_empty(), "an error without a word");
    let text = error.to_string();
    assert!(text.len() <= LONGEST_ERROR, "{} bytes of error: {}", text.len(), &error.msg[..80.min(error.msg.len())]);
    assert!(!text.contains(['\n', '\r', '\0', '\u{1b}']), "an error of several lines: {text:?}");
    let json = error.to_json(None);
    assert_eq!((&json["code"], &json["msg"]), (&error.code.into(), &error.msg.clone().into()));
}

fn json(data: &[u8]) -> Option<Value> {
    serde_json::from_slice(data).ok()
}

/// The texts of a JSON object of texts; others are left out.
fn texts(object: Option<&Value>) -> std::collections::BTreeMap<String, String> {
    let fields = object.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

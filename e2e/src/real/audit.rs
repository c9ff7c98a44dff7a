//! The API server's audit log, read to count what each client asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::calls::Counts;

/// What the API server is told to log: every finished request, without bodies.
pub(super) const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [{ "level": "Metadata" }]
}"#;

/// The log's file.
#[derive(Debug, Clone)]
pub struct AuditLog {
    path: PathBuf,
}

/// A place in the log: what comes later happened later.
#[derive(Debug, Clone, Copy)]
pub struct Mark(u64);

/// One request that the API server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// User name, such as `kube-ipam`, `calico`, `system:node:node1`.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, ...
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural, with the subresource after a slash: `ipamblocks`, `pods/status`. Empty for paths such as `/version`.
    pub resource: String,
    /// Namespace and name of the object, where there are any: `default/web-0`, `10-244-0-0-26`.
    pub object: String,
    /// HTTP status.
    pub code: u16,
    /// Whether the user had no right to it. A 403 may have other reasons, such as a namespace that is going away.
    pub forbidden: bool,
}

impl AuditLog {
    /// The log in this file, which need not exist yet.
    pub fn new(path: &Path) -> AuditLog {
        AuditLog { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log's present end.
    pub fn mark(&self) -> Mark {
        Mark(std::fs::metadata(&self.path).map_or(0, |file| file.len()))
    }

    /// Every call that was ever answered.
    pub fn all(&self) -> Result<Vec<Call>> {
        self.since(Mark(0))
    }

    /// Every call answered since `mark`, in the order of the answers. The log is written before the answer is sent.
    pub fn since(&self, mark: Mark) -> Result<Vec<Call>> {
        let log = std::fs::read(&self.path).with_context(|| self.path.display().to_string())?;
        let new = log.get(mark.0 as usize..).unwrap_or_default();
        let complete = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let events = serde_json::Deserializer::from_slice(&new[..complete]).into_iter::<Event>();
        events.map(|event| Ok(Call::from(event?))).collect()
    }

    /// Runs `work`, and counts what `user` asked meanwhile.
    pub async fn counted<T>(&self, user: &str, work: impl Future<Output = Result<T>>) -> Result<(T, Counts)> {
        let mark = self.mark();
        let done = work.await?;
        let new = self.since(mark)?.into_iter().filter(|call| call.user == user);
        Ok((done, new.map(|call| (call.verb, call.resource)).collect()))
    }
}

/// How often each user did what: (user, verb, resource) to the number of calls.
pub fn count(calls: &[Call]) -> BTreeMap<(String, String, String), usize> {
    let mut counts = BTreeMap::new();
    for call in calls {
        *counts.entry((call.user.clone(), call.verb.clone(), call.resource.clone())).or_default() += 1;
    }
    counts
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: Status,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Deserialize)]
struct User {
    /// Absent from a request whose credentials were not accepted.
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ObjectRef {
    #[serde(rename = "apiGroup")]
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "authorization.k8s.io/decision")]
    decision: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    code: u16,
}

impl From<Event> for Call {
    fn from(event: Event) -> Call {
        let joined = |first: String, second: String| match (first.is_empty(), second.is_empty()) {
            (_, true) => first,
            (true, false) => second,
            (false, false) => format!("{first}/{second}"),
        };
        Call {
            user: event.user.username,
            verb: event.verb,
            group: event.object_ref.group,
            resource: joined(event.object_ref.resource, event.object_ref.subresource),
            object: joined(event.object_ref.namespace, event.object_ref.name),
            code: event.response_status.code,
            forbidden: event.annotations.decision == "forbid",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_line_is_left_for_the_next_reading() {
        let directory = tempfile::tempdir().unwrap();
        let log = AuditLog::new(&directory.path().join("audit.log"));
        let line = r#"{"verb":"update","user":{"username":"kube-ipam"},"objectRef":{"resource":"ipamblocks","name":"10-244-0-0-26"},"responseStatus":{"code":409}}"#;
        std::fs::write(log.path(), format!("{line}\n{line}\n{{\"verb\":")).unwrap();
        let calls = log.since(Mark(line.len() as u64 + 1)).unwrap();
        let [call] = calls.as_slice() else { panic!("one call after the mark, not {calls:?}") };
        assert_eq!((call.verb.as_str(), call.object.as_str(), call.code), ("update", "10-244-0-0-26", 409));
        assert_eq!(count(&calls).into_values().sum::<usize>(), 1);
    }
}

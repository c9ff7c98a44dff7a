//! Events: one storage, two groups. Objects of events.k8s.io/v1 are stored in core/v1's form, as in the real server.

use serde_json::{Map, Value};

use super::resources::Resource;

/// Fields of events.k8s.io/v1 and their names in core/v1.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn is_later(resource: &Resource) -> bool {
    resource.is("events.k8s.io", "events")
}

/// The id under which objects of a resource are stored.
pub(super) fn storage_id(resource: &Resource) -> String {
    if is_later(resource) { "events".to_owned() } else { resource.id() }
}

fn rename(map: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = map.remove(from) {
        map.insert(to.to_owned(), value);
    }
}

/// The stored form of an object as a client wrote it.
pub(super) fn stored(resource: &Resource, mut object: Value) -> Value {
    if is_later(resource)
        && let Some(map) = object.as_object_mut()
    {
        RENAMED.iter().for_each(|(later, core)| rename(map, later, core));
        map.insert("apiVersion".to_owned(), "v1".into());
    }
    object
}

/// The form of a stored object that a client of this resource and version reads.
pub(super) fn presented(resource: &Resource, version: &str, mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        if is_later(resource) {
            RENAMED.iter().for_each(|(later, core)| rename(map, core, later));
        }
        map.insert("apiVersion".to_owned(), resource.api_version(version).into());
    }
    object
}

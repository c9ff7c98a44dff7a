//! Patches: how each kind of patch turns an object into its successor.
//!
//! Server-side apply is a merge here: ownership of fields (`managedFields`) is not kept.

use serde_json::{Map, Value};

use super::error::ApiError;
use super::resources::Resource;

/// A patch as it came.
#[derive(Debug)]
pub(super) enum Patch {
    Merge(Value),
    Json(json_patch::Patch),
    Strategic(Value),
    Apply(Value),
}

impl Patch {
    /// By the media type of the body.
    pub fn read(resource: &Resource, media: &str, body: &[u8], field_manager: &str) -> Result<Self, ApiError> {
        let json = || serde_json::from_slice(body).map_err(|e| ApiError::bad_request(format!("invalid patch: {e}")));
        match media.split(';').next().unwrap_or_default().trim() {
            "application/merge-patch+json" => Ok(Self::Merge(json()?)),
            "application/json-patch+json" => serde_json::from_slice(body)
                .map(Self::Json)
                .map_err(|e| ApiError::bad_request(format!("invalid JSON patch: {e}"))),
            "application/strategic-merge-patch+json" if resource.is_custom() => {
                Err(ApiError::unsupported_media("application/strategic-merge-patch+json"))
            }
            "application/strategic-merge-patch+json" => Ok(Self::Strategic(json()?)),
            "application/apply-patch+yaml" if field_manager.is_empty() => Err(ApiError::bad_request(
                "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch",
            )),
            "application/apply-patch+yaml" => serde_yaml_ng::from_slice(body)
                .map(Self::Apply)
                .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}"))),
            other => Err(ApiError::unsupported_media(other)),
        }
    }

    /// The successor of `current`.
    pub fn apply(&self, resource: &Resource, current: &Value) -> Result<Value, ApiError> {
        let mut next = current.clone();
        match self {
            Self::Merge(patch) => json_patch::merge(&mut next, patch),
            Self::Json(patch) => json_patch::patch(&mut next, patch).map_err(|e| {
                ApiError::new(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {e}"),
                )
            })?,
            Self::Apply(patch) if resource.is_custom() => json_patch::merge(&mut next, patch),
            Self::Strategic(patch) | Self::Apply(patch) => merge_strategic(&mut next, patch),
        }
        Ok(next)
    }
}

/// The key by which a list of objects is merged, by the list's field name; other lists are replaced.
fn merge_key(field: &str) -> Option<&'static str> {
    Some(match field {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => "name",
        "conditions" | "addresses" => "type",
        "ownerReferences" => "uid",
        "taints" => "key",
        "podIPs" | "hostIPs" => "ip",
        "volumeMounts" => "mountPath",
        "ports" => "containerPort",
        _ => return None,
    })
}

fn merge_strategic(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if changes.get("$patch") == Some(&Value::from("replace")) {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else {
        return;
    };
    for (field, change) in changes.iter().filter(|(field, _)| !field.starts_with('$')) {
        match (change, merge_key(field)) {
            (Value::Null, _) => {
                map.remove(field);
            }
            (Value::Array(items), Some(key)) if items.iter().all(Value::is_object) => {
                let list = map.entry(field.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(list, items, key);
            }
            (Value::Array(items), _) if field == "finalizers" => {
                let list = map.entry(field.clone()).or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    let new = items.iter().filter(|i| !list.contains(i)).cloned().collect::<Vec<_>>();
                    list.extend(new);
                }
            }
            (Value::Object(_), _) => merge_strategic(map.entry(field.clone()).or_insert(Value::Null), change),
            _ => {
                map.insert(field.clone(), change.clone());
            }
        }
    }
}

fn merge_list(list: &mut Value, items: &[Value], key: &str) {
    let mut merged = list.as_array().cloned().unwrap_or_default();
    for item in items {
        let at = merged.iter().position(|present| present.get(key) == item.get(key));
        match (at, item.get("$patch").and_then(Value::as_str)) {
            (Some(at), Some("delete")) => {
                merged.remove(at);
            }
            (None, Some("delete")) => {}
            (Some(at), _) => merge_strategic(&mut merged[at], item),
            (None, _) => merged.push(item.clone()),
        }
    }
    *list = Value::Array(merged);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_strategic_merge_keeps_the_other_items_of_a_keyed_list() {
        let mut pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]}});
        merge_strategic(
            &mut pod,
            &json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}], "$setElementOrder/conditions": []}}),
        );
        assert_eq!(
            pod["status"]["conditions"],
            json!([{"type": "Ready", "status": "Unknown"}, {"type": "Other", "status": "True"}])
        );
        merge_strategic(&mut pod, &json!({"status": {"conditions": [{"type": "Ready", "$patch": "delete"}]}}));
        assert_eq!(pod["status"]["conditions"], json!([{"type": "Other", "status": "True"}]));
    }
}

//! From a request's body to an object that may be stored: types, pruning, defaults, validity.

use std::cmp::Ordering;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::error::{ApiError, Cause, CauseKind};
use super::meta::{self, label_violations, name, text};
use super::resources::{Origin, Resource, Version};
use super::{builtin, events, schema};

/// A body that was understood.
pub(super) struct Admitted {
    /// In the stored form and version.
    pub object: Value,
    /// Fields that were dropped, for the header `Warning`.
    pub dropped: Vec<String>,
}

/// Reads a body as an object of `resource` at `version`; `strict` refuses unknown fields of custom resources.
pub(super) fn admit(
    resource: &Resource,
    version: &Version,
    mut body: Value,
    strict: bool,
) -> Result<Admitted, ApiError> {
    if !body.is_object() {
        return Err(ApiError::bad_request("the body is not a JSON object"));
    }
    check_type(resource, version, &mut body)?;
    if let Some(meta) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
        meta.remove("selfLink");
    }
    let (mut object, dropped) = match resource.origin {
        Origin::Builtin(coerce) => {
            let read = coerce(body).map_err(|e| {
                ApiError::bad_request(format!(
                    "{} in version {:?} cannot be handled as a {}: {e}",
                    resource.kind, version.name, resource.kind
                ))
            })?;
            (events::stored(resource, read), Vec::new())
        }
        Origin::Custom => admit_custom(version, body)?,
    };
    if strict && !dropped.is_empty() {
        let list = dropped.iter().map(|f| format!("unknown field {f:?}")).collect::<Vec<_>>().join(", ");
        return Err(ApiError::bad_request(format!("strict decoding error: {list}")));
    }
    builtin::default(resource, &mut object);
    if resource.is_custom() {
        object["apiVersion"] = resource.api_version(resource.storage_version()).into();
    }
    Ok(Admitted { object, dropped })
}

fn check_type(resource: &Resource, version: &Version, body: &mut Value) -> Result<(), ApiError> {
    let expected = resource.api_version(&version.name);
    for (key, expected) in [("apiVersion", expected.as_str()), ("kind", resource.kind.as_str())] {
        let found = text(body, &format!("/{key}")).to_owned();
        if found.is_empty() && !resource.is_custom() {
            body[key] = expected.into();
        } else if found.is_empty() {
            return Err(ApiError::bad_request(format!("Object '{key}' is missing")));
        } else if found != expected {
            return Err(ApiError::bad_request(format!(
                "the {key} in the data ({found}) does not match the expected {key} ({expected})"
            )));
        }
    }
    Ok(())
}

fn admit_custom(version: &Version, mut body: Value) -> Result<(Value, Vec<String>), ApiError> {
    let mut dropped = Vec::new();
    if let Some(schema) = &version.schema {
        dropped = schema::prune(&mut body, schema);
        schema::default(&mut body, schema);
    }
    let metadata = serde_json::from_value::<ObjectMeta>(body["metadata"].take())
        .and_then(serde_json::to_value)
        .map_err(|e| ApiError::bad_request(format!("metadata cannot be read: {e}")))?;
    body["metadata"] = metadata;
    Ok((body, dropped))
}

/// Refuses what may not be stored, with every cause.
pub(super) fn validate(resource: &Resource, object: &Value) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    match name(object) {
        "" => causes.push(Cause::new(CauseKind::Required, "metadata.name", "name or generateName is required")),
        name => causes.extend(resource.names.violation(name)),
    }
    causes.extend(label_violations(object));
    if let Some(schema) = resource.version(resource.storage_version()).and_then(|v| v.schema.as_ref()) {
        causes.extend(schema::violations(object, schema));
    }
    causes.extend(builtin::violations(resource, object));
    if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, name(object), &causes)) }
}

/// Metadata that only the server decides, for a new object.
pub(super) fn birth(resource: &Resource, version: &Version, object: &mut Value) {
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion"] {
        meta::set(object, key, None);
    }
    meta::set(object, "uid", Some(meta::uid().into()));
    meta::set(object, "creationTimestamp", Some(meta::now().into()));
    meta::set(object, "generation", has_generation(resource).then(|| json!(1)));
    if version.status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    builtin::at_birth(resource, object);
}

/// Metadata that only the server decides, carried from the current object to its successor.
pub(super) fn inherit(current: &Value, next: &mut Value) {
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "namespace",
        "generateName",
    ] {
        meta::set(next, key, current["metadata"].get(key).cloned());
    }
}

/// Raises the generation if what the object asks for changed.
pub(super) fn raise_generation(resource: &Resource, version: &Version, current: &Value, next: &mut Value) {
    if !has_generation(resource) {
        return;
    }
    let wish = |object: &Value| {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.remove("metadata");
            if version.status {
                map.remove("status");
            }
        }
        object
    };
    if wish(current) != wish(next) {
        let generation = current["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        meta::set(next, "generation", Some(generation.into()));
    }
}

fn has_generation(resource: &Resource) -> bool {
    resource.is_custom()
        || matches!(
            resource.id().as_str(),
            "pods"
                | "deployments.apps"
                | "replicasets.apps"
                | "statefulsets.apps"
                | "daemonsets.apps"
                | "jobs.batch"
                | "customresourcedefinitions.apiextensions.k8s.io"
        )
}

/// Refuses an update that does not start from the current object.
pub(super) fn check_base(resource: &Resource, current: &Value, next: &Value) -> Result<(), ApiError> {
    let name = name(current);
    let (uid, current_uid) = (text(next, "/metadata/uid"), text(current, "/metadata/uid"));
    if !uid.is_empty() && uid != current_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {current_uid}");
        return Err(ApiError::conflict(resource, name, &why));
    }
    let (base, newest) = (text(next, "/metadata/resourceVersion"), text(current, "/metadata/resourceVersion"));
    match base.cmp(newest) {
        Ordering::Equal => Ok(()),
        _ if !base.is_empty() => Err(ApiError::modified(resource, name)),
        _ if resource.unconditional_update => Ok(()),
        _ => {
            let cause =
                Cause::new(CauseKind::Invalid, "metadata.resourceVersion", "0x0: must be specified for an update");
            Err(ApiError::invalid(resource, name, &[cause]))
        }
    }
}

/// Refuses finalizers that appear after a deletion has begun.
pub(super) fn check_finalizers(resource: &Resource, current: &Value, next: &Value) -> Result<(), ApiError> {
    let old = meta::finalizers(current);
    let new = meta::finalizers(next).into_iter().filter(|f| !old.contains(f)).collect::<Vec<_>>();
    if !meta::is_deleting(current) || new.is_empty() {
        return Ok(());
    }
    let cause = Cause::new(
        CauseKind::Forbidden,
        "metadata.finalizers",
        format!("no new finalizers can be added if the object is being deleted, found new finalizers {new:?}"),
    );
    Err(ApiError::invalid(resource, name(current), &[cause]))
}

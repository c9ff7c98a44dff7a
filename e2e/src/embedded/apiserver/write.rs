//! Creating and updating.
//!
//! Invariant: what an update read and what it replaces are the same object at the same revision, since both happen under the store's lock.

use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::admit::{self, admit};
use super::api::{Api, Asked, Reply, Target};
use super::error::{ApiError, Cause, CauseKind};
use super::meta::{self, name, text};
use super::resources::Resource;
use super::store::{Key, State};
use super::{builtin, delete};

impl Api {
    pub fn create(&self, target: &Target, asked: &Asked) -> Result<Reply, ApiError> {
        self.create_object(target, asked.object()?, asked)
    }

    /// Creates what an apply patch found missing.
    pub fn create_applied(
        &self,
        target: &Target,
        name: &str,
        mut body: Value,
        asked: &Asked,
    ) -> Result<Reply, ApiError> {
        meta::set(&mut body, "name", Some(name.into()));
        self.create_object(target, body, asked)
    }

    fn create_object(&self, target: &Target, body: Value, asked: &Asked) -> Result<Reply, ApiError> {
        let resource = &target.resource;
        if !text(&body, "/metadata/resourceVersion").is_empty() {
            return Err(ApiError::new(500, "", "resourceVersion should not be set on objects to be created"));
        }
        let admitted = admit(resource, &target.version, body, asked.is_strict())?;
        let mut object = admitted.object;
        place(target, &mut object)?;
        let generated = name(&object).is_empty();
        if generated && !text(&object, "/metadata/generateName").is_empty() {
            let generated = format!("{}{}", text(&object, "/metadata/generateName"), meta::suffix(5));
            meta::set(&mut object, "name", Some(generated.into()));
        }
        admit::birth(resource, &target.version, &mut object);
        admit::validate(resource, &object)?;
        let definition = definition(resource, &object)?;
        let stored = self.store.with(|state| {
            check_namespace(state, target, name(&object))?;
            let key = target.key(name(&object));
            if state.get(&key).is_some() {
                return Err(ApiError::already_exists(resource, name(&object)));
            }
            Ok(if asked.is_dry_run() { Arc::new(object) } else { state.put(key, object) })
        })?;
        if let Some(crd) = definition.filter(|_| !asked.is_dry_run()) {
            self.establish(&crd, &target.key(name(&stored)));
        }
        Ok(Reply::Object { code: 201, body: target.present(&stored), dropped: admitted.dropped })
    }

    /// Serves the resource of a definition and says so in its status.
    fn establish(&self, crd: &CustomResourceDefinition, key: &Key) {
        let Ok(resource) = Resource::from_crd(crd) else {
            return;
        };
        let names = serde_json::to_value(&crd.spec.names).unwrap_or_default();
        let stored = resource.storage_version().to_owned();
        self.registry.add(resource);
        self.store.with(|state| {
            let Some(current) = state.get(key) else { return };
            let mut object = Value::clone(current);
            let condition = |kind: &str, reason: &str, message: &str| json!({
                "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": meta::now(),
            });
            object["status"] = json!({"acceptedNames": names, "storedVersions": [stored], "conditions": [
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ]});
            state.put(key.clone(), object);
        });
    }

    /// Replaces an object, or its status, by what `build` makes of the current one.
    pub fn update(
        &self,
        target: &Target,
        wanted: &str,
        asked: &Asked,
        build: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Reply, ApiError> {
        let key = target.key(wanted);
        let mut dropped = Vec::new();
        let stored = self.store.with(|state| {
            let current = state.get(&key).cloned().ok_or_else(|| ApiError::not_found(&target.resource, wanted))?;
            let body = build(&target.present(&current))?;
            let admitted = admit(&target.resource, &target.version, body, asked.is_strict())?;
            dropped = admitted.dropped;
            let next = successor(target, &current, admitted.object)?;
            if next == *current || asked.is_dry_run() {
                return Ok(Arc::new(next));
            }
            let stored = state.put(key.clone(), next);
            Ok(if delete::is_due(&stored) { state.remove(&key).unwrap_or(stored) } else { stored })
        })?;
        if let Some(crd) =
            definition(&target.resource, &stored)?.filter(|_| target.subresource.is_none() && !asked.is_dry_run())
            && let Ok(resource) = Resource::from_crd(&crd)
        {
            self.registry.add(resource);
        }
        Ok(Reply::Object { code: 200, body: target.present(&stored), dropped })
    }
}

/// The namespace of an object is that of its path.
fn place(target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let (own, path) = (text(object, "/metadata/namespace"), target.namespace.as_deref().unwrap_or_default());
    if !own.is_empty() && own != path {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({own:?} and {path:?})"
        )));
    }
    meta::set(object, "namespace", target.namespace.clone().map(Value::from));
    Ok(())
}

fn check_namespace(state: &State, target: &Target, name: &str) -> Result<(), ApiError> {
    let Some(namespace) = &target.namespace else {
        return Ok(());
    };
    let key = Key { resource: "namespaces".into(), namespace: String::new(), name: namespace.clone() };
    match state.get(&key) {
        None => {
            let mut error = ApiError::new(404, "NotFound", format!("namespaces {namespace:?} not found"));
            error.details = Some(json!({"name": namespace, "kind": "namespaces"}));
            Err(error)
        }
        Some(found) if meta::is_deleting(found) => {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            Err(ApiError::forbidden(&target.resource, name, &why))
        }
        Some(_) => Ok(()),
    }
}

/// What `current` becomes when `next` is written to the target.
fn successor(target: &Target, current: &Value, mut next: Value) -> Result<Value, ApiError> {
    let resource = &target.resource;
    if name(&next) != name(current) {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            name(&next),
            name(current)
        )));
    }
    place(target, &mut next)?;
    admit::check_base(resource, current, &next)?;
    match target.subresource.as_deref() {
        Some("status") => next = with_status(resource, current, &next),
        Some("finalize") => {
            let finalizers = next["spec"]["finalizers"].clone();
            next = current.clone();
            next["spec"]["finalizers"] = finalizers;
        }
        _ if target.version.status => replace_field(&mut next, "status", current.get("status")),
        _ => {}
    }
    admit::inherit(current, &mut next);
    admit::check_finalizers(resource, current, &next)?;
    admit::validate(resource, &next)?;
    if target.subresource.is_none() {
        builtin::check_update(resource, current, &next)?;
    }
    admit::raise_generation(resource, &target.version, current, &mut next);
    Ok(next)
}

/// An update of the status changes nothing else; of pods and nodes it may change labels and annotations too.
fn with_status(resource: &Resource, current: &Value, next: &Value) -> Value {
    let mut result = current.clone();
    replace_field(&mut result, "status", next.get("status"));
    if matches!(resource.id().as_str(), "pods" | "nodes") {
        for key in ["labels", "annotations"] {
            meta::set(&mut result, key, next["metadata"].get(key).cloned());
        }
    }
    result
}

fn replace_field(object: &mut Value, field: &str, value: Option<&Value>) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
}

/// The definition in an object, if it is one that can be served.
fn definition(resource: &Resource, object: &Value) -> Result<Option<CustomResourceDefinition>, ApiError> {
    if !resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
        return Ok(None);
    }
    let crd: CustomResourceDefinition =
        serde_json::from_value(object.clone()).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let mut causes = Vec::new();
    let full = format!("{}.{}", crd.spec.names.plural, crd.spec.group);
    if name(object) != full {
        causes.push(Cause::new(
            CauseKind::Invalid,
            "metadata.name",
            format!("{:?}: must be spec.names.plural+\".\"+spec.group", name(object)),
        ));
    }
    if crd.spec.versions.iter().filter(|v| v.storage).count() != 1 {
        causes.push(Cause::new(
            CauseKind::Invalid,
            "spec.versions",
            "must have exactly one version marked as storage version",
        ));
    }
    for (at, version) in crd.spec.versions.iter().enumerate() {
        if version.schema.as_ref().is_none_or(|s| s.open_api_v3_schema.is_none()) {
            causes.push(Cause::new(
                CauseKind::Required,
                format!("spec.versions[{at}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
    if causes.is_empty() { Ok(Some(crd)) } else { Err(ApiError::invalid(resource, name(object), &causes)) }
}

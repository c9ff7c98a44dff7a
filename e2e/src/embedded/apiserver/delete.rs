//! Deleting: preconditions, grace, finalizers.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::{Value, json};

use super::api::{Api, Asked, Reply, Target};
use super::builtin;
use super::error::ApiError;
use super::meta::{self, text};
use super::store::{Key, State};

/// Finalizer of a deletion that waits for the object's dependents.
const FOREGROUND: &str = "foregroundDeletion";

/// What became of an object that was asked to go.
enum Gone {
    Removed(Arc<Value>),
    Waiting(Arc<Value>),
}

/// True if nothing holds back an object whose deletion has begun.
pub(super) fn is_due(object: &Value) -> bool {
    let grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(0);
    meta::is_deleting(object) && grace == 0 && meta::finalizers(object).is_empty() && !has_namespace_finalizers(object)
}

fn has_namespace_finalizers(object: &Value) -> bool {
    text(object, "/kind") == "Namespace"
        && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty())
}

fn options(asked: &Asked) -> Result<DeleteOptions, ApiError> {
    let mut options = if asked.body.is_empty() {
        DeleteOptions::default()
    } else {
        serde_json::from_slice(asked.body)
            .map_err(|e| ApiError::bad_request(format!("DeleteOptions cannot be read: {e}")))?
    };
    if let Some(seconds) = asked.query.number("gracePeriodSeconds")? {
        options.grace_period_seconds = i64::try_from(seconds).ok();
    }
    if let policy @ ("Orphan" | "Background" | "Foreground") = asked.query.text("propagationPolicy") {
        options.propagation_policy = Some(policy.to_owned());
    }
    if asked.is_dry_run() {
        options.dry_run = Some(vec!["All".to_owned()]);
    }
    Ok(options)
}

impl Api {
    pub fn delete(&self, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
        self.delete_with(target, name, &options(asked)?)
    }

    /// Deletes as the options say; also the way an eviction goes.
    pub fn delete_with(&self, target: &Target, name: &str, options: &DeleteOptions) -> Result<Reply, ApiError> {
        let key = target.key(name);
        let gone = self.store.with(|state| mark_or_remove(state, target, &key, options))?;
        match gone {
            Gone::Waiting(object) => Ok(Reply::ok(target.present(&object))),
            Gone::Removed(object) => {
                self.after_removal(target, name);
                Ok(Reply::ok(removed_reply(target, name, &object)))
            }
        }
    }

    pub fn delete_collection(&self, target: &Target, asked: &Asked) -> Result<Reply, ApiError> {
        let (options, selector) = (options(asked)?, target.selector(asked.query)?);
        let doomed = self.store.with(|state| state.list(&target.key("").resource, target.namespace.as_deref()));
        let mut items = Vec::new();
        for (key, object) in doomed.into_iter().filter(|(_, object)| selector.matches(object)) {
            match self.delete_with(target, &key.name, &options) {
                Ok(_) => items.push(target.present(&object)),
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
        let revision = self.store.with(|state| state.revision.to_string());
        Ok(Reply::ok(json!({
            "kind": target.resource.list_kind, "apiVersion": target.resource.api_version(&target.version.name),
            "metadata": {"resourceVersion": revision}, "items": items,
        })))
    }

    /// A definition takes its objects with it.
    fn after_removal(&self, target: &Target, name: &str) {
        if !target.resource.is("apiextensions.k8s.io", "customresourcedefinitions") {
            return;
        }
        if let Some((plural, group)) = name.split_once('.') {
            self.registry.remove(group, plural);
            self.store.with(|state| {
                for (key, _) in state.list(name, None) {
                    state.remove(&key);
                }
            });
        }
    }
}

fn removed_reply(target: &Target, name: &str, object: &Value) -> Value {
    if matches!(target.resource.id().as_str(), "pods" | "services" | "serviceaccounts") {
        return target.present(object);
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": {"name": name, "group": target.resource.group, "kind": target.resource.plural, "uid": text(object, "/metadata/uid")},
    })
}

fn mark_or_remove(state: &mut State, target: &Target, key: &Key, options: &DeleteOptions) -> Result<Gone, ApiError> {
    let current = state.get(key).cloned().ok_or_else(|| ApiError::not_found(&target.resource, &key.name))?;
    check_preconditions(target, &current, options)?;
    let marked = marked(target, &current, options);
    let dry = options.dry_run.as_ref().is_some_and(|d| !d.is_empty());
    if dry || marked == *current {
        return Ok(Gone::Waiting(Arc::new(marked)));
    }
    if options.propagation_policy.as_deref() == Some("Orphan") {
        orphan(state, text(&current, "/metadata/uid"));
    }
    if is_due(&marked) {
        return Ok(Gone::Removed(state.remove(key).unwrap_or(current)));
    }
    Ok(Gone::Waiting(state.put(key.clone(), marked)))
}

fn check_preconditions(target: &Target, current: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let Some(wanted) = &options.preconditions else {
        return Ok(());
    };
    let name = meta::name(current);
    for (what, wanted, found) in [
        ("UID", &wanted.uid, text(current, "/metadata/uid")),
        ("ResourceVersion", &wanted.resource_version, text(current, "/metadata/resourceVersion")),
    ] {
        if let Some(wanted) = wanted.as_deref().filter(|w| *w != found) {
            let why = format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
            return Err(ApiError::conflict(&target.resource, name, &why));
        }
    }
    Ok(())
}

/// The object with its deletion begun, or hastened.
fn marked(target: &Target, current: &Value, options: &DeleteOptions) -> Value {
    let asked = options.grace_period_seconds.and_then(|s| u64::try_from(s).ok());
    let grace = builtin::grace(&target.resource, current, asked);
    let mut next = current.clone();
    let waiting = current.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_u64);
    if !meta::is_deleting(current) || waiting.is_some_and(|w| grace < w) {
        let until = Timestamp::now() + SignedDuration::from_secs(i64::try_from(grace).unwrap_or(0));
        meta::set(&mut next, "deletionTimestamp", Some(meta::stamp(until).into()));
        meta::set(&mut next, "deletionGracePeriodSeconds", Some(grace.into()));
        if let Some(generation) = next["metadata"]["generation"].as_i64() {
            meta::set(&mut next, "generation", Some((generation + 1).into()));
        }
    }
    if options.propagation_policy.as_deref() == Some("Foreground") && !meta::finalizers(&next).contains(&FOREGROUND) {
        let mut list = meta::finalizers(&next).into_iter().map(Value::from).collect::<Vec<_>>();
        list.push(FOREGROUND.into());
        meta::set(&mut next, "finalizers", Some(list.into()));
    }
    if has_namespace_finalizers(&next) {
        next["status"]["phase"] = "Terminating".into();
    }
    next
}

/// Removes references to an owner from all its dependents.
fn orphan(state: &mut State, owner: &str) {
    let is_owner = |reference: &Value| text(reference, "/uid") == owner;
    let children = state
        .all()
        .filter(|(_, object)| {
            object
                .pointer("/metadata/ownerReferences")
                .and_then(Value::as_array)
                .is_some_and(|r| r.iter().any(is_owner))
        })
        .map(|(key, object)| (key.clone(), Value::clone(object)))
        .collect::<Vec<_>>();
    for (key, mut object) in children {
        if let Some(list) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) {
            list.retain(|reference| !is_owner(reference));
        }
        state.put(key, object);
    }
}

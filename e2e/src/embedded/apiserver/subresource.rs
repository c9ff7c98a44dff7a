//! `status`, `scale`, `finalize`, and the pods' `binding` and `eviction`.

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use serde_json::{Value, json};

use super::api::{Api, Asked, Reply, Target};
use super::error::ApiError;
use super::meta::{self, text};
use super::patch::Patch;

/// Carries out a request for a subresource of a named object.
pub(super) fn handle(api: &Api, target: &Target, name: &str, sub: &str, asked: &Asked) -> Result<Reply, ApiError> {
    let pods = target.resource.is("", "pods");
    match sub {
        "status" if target.version.status => whole(api, target, name, asked),
        "finalize" if target.resource.is("", "namespaces") => whole(api, target, name, asked),
        "scale" if target.version.scale => scale(api, target, name, asked),
        "binding" if pods && *asked.method == Method::POST => bind(api, target, name, asked),
        "eviction" if pods && *asked.method == Method::POST => evict(api, target, name, asked),
        _ => Err(ApiError::no_such_path()),
    }
}

/// Subresources whose body is the whole object.
fn whole(api: &Api, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
    match *asked.method {
        Method::GET => api.read(target, name, asked.query),
        Method::PUT => {
            let body = asked.object()?;
            api.update(target, name, asked, |_| Ok(body.clone()))
        }
        Method::PATCH => {
            let patch =
                Patch::read(&target.resource, asked.content_type, asked.body, asked.query.text("fieldManager"))?;
            api.update(target, name, asked, |current| patch.apply(&target.resource, current))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// The `Scale` of a workload.
fn scale_of(object: &Value) -> Value {
    let labels = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(",");
    let metadata = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .map(|key| (key.to_owned(), object["metadata"][key].clone()))
        .collect::<serde_json::Map<_, _>>();
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": object["spec"]["replicas"]},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector},
    })
}

fn scale(api: &Api, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
    let whole = Target { subresource: None, ..target.clone() };
    let scaled = |current: &Value, scale: &Value| {
        let mut next = current.clone();
        next["spec"]["replicas"] = scale["spec"]["replicas"].clone();
        let base = text(scale, "/metadata/resourceVersion");
        if !base.is_empty() {
            meta::set(&mut next, "resourceVersion", Some(base.into()));
        }
        next
    };
    let reply = match *asked.method {
        Method::GET => api.read(&whole, name, asked.query),
        Method::PUT => {
            let body = asked.object()?;
            api.update(&whole, name, asked, |current| Ok(scaled(current, &body)))
        }
        Method::PATCH => {
            let patch =
                Patch::read(&target.resource, asked.content_type, asked.body, asked.query.text("fieldManager"))?;
            api.update(&whole, name, asked, |current| {
                Ok(scaled(current, &patch.apply(&target.resource, &scale_of(current))?))
            })
        }
        _ => Err(ApiError::method_not_allowed()),
    }?;
    Ok(match reply {
        Reply::Object { code, body, dropped } => Reply::Object { code, body: scale_of(&body), dropped },
        watch => watch,
    })
}

fn success(code: u16) -> Reply {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code});
    Reply::Object { code, body, dropped: Vec::new() }
}

/// What the scheduler does to a pod.
fn bind(api: &Api, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
    let binding = asked.object()?;
    let node = text(&binding, "/target/name");
    if node.is_empty() {
        return Err(ApiError::bad_request("binding: target.name is required"));
    }
    let key = target.key(name);
    api.store.with(|state| {
        let current = state.get(&key).cloned().ok_or_else(|| ApiError::not_found(&target.resource, name))?;
        let uid = text(&binding, "/metadata/uid");
        if !uid.is_empty() && uid != text(&current, "/metadata/uid") {
            return Err(ApiError::conflict(
                &target.resource,
                name,
                "Precondition failed: UID of the binding is not the pod's",
            ));
        }
        if meta::is_deleting(&current) {
            return Err(ApiError::conflict(
                &target.resource,
                name,
                &format!("pod {name} is being deleted, cannot be assigned to a host"),
            ));
        }
        let bound = text(&current, "/spec/nodeName");
        if !bound.is_empty() {
            return Err(ApiError::conflict(
                &target.resource,
                name,
                &format!("pod {name} is already assigned to node {bound:?}"),
            ));
        }
        let mut next = Value::clone(&current);
        next["spec"]["nodeName"] = node.into();
        let scheduled =
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": meta::now()});
        let mut conditions = next["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|c| text(c, "/type") != "PodScheduled");
        conditions.push(scheduled);
        next["status"]["conditions"] = conditions.into();
        state.put(key.clone(), next);
        Ok(success(201))
    })
}

/// An eviction is a deletion here: there are no disruption budgets.
fn evict(api: &Api, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
    let eviction = asked.object()?;
    let options: DeleteOptions = match eviction.get("deleteOptions") {
        Some(options) => serde_json::from_value(options.clone()).map_err(|e| ApiError::bad_request(e.to_string()))?,
        None => DeleteOptions::default(),
    };
    api.delete_with(target, name, &options)?;
    Ok(success(201))
}

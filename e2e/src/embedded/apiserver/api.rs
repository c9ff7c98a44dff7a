//! One request for a resource, from its target to its reply.

use std::sync::Arc;

use http::Method;
use serde_json::Value;

use super::error::ApiError;
use super::meta;
use super::patch::Patch;
use super::represent::Form;
use super::request::{Path, Query};
use super::resources::{Registry, Resource, Version};
use super::selector::Selector;
use super::store::{Key, Store};
use super::watch::Watch;
use super::{events, subresource};

/// Resources and objects.
#[derive(Debug)]
pub(super) struct Api {
    pub registry: Registry,
    pub store: Store,
    /// Rises when every watch is to end.
    pub watch_epoch: tokio::sync::watch::Sender<u64>,
    /// Rises when every watch is to send a bookmark.
    pub bookmarks: tokio::sync::watch::Sender<u64>,
}

/// What a request is about.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub resource: Arc<Resource>,
    pub version: Version,
    /// None: all namespaces, or a cluster-scoped resource.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Target {
    /// The key of the object of this name.
    pub fn key(&self, name: &str) -> Key {
        Key {
            resource: events::storage_id(&self.resource),
            namespace: self.namespace.clone().unwrap_or_default(),
            name: name.to_owned(),
        }
    }

    /// An object in the form this target's clients read.
    pub fn present(&self, object: &Value) -> Value {
        events::presented(&self.resource, &self.version.name, object.clone())
    }

    pub fn selector(&self, query: &Query) -> Result<Selector, ApiError> {
        Selector::parse(query.text("labelSelector"), query.text("fieldSelector"), &events::storage_id(&self.resource))
    }
}

/// The answer to a request.
pub(super) enum Reply {
    Object { code: u16, body: Value, dropped: Vec<String> },
    Watch(Box<Watch>),
}

impl Reply {
    pub fn ok(body: Value) -> Self {
        Self::Object { code: 200, body, dropped: Vec::new() }
    }
}

/// The parts of a request beside its path.
pub(super) struct Asked<'a> {
    pub method: &'a Method,
    pub query: &'a Query,
    pub accept: &'a str,
    pub content_type: &'a str,
    pub body: &'a [u8],
}

impl Asked<'_> {
    /// The body as JSON or, if its type says so, YAML.
    pub fn object(&self) -> Result<Value, ApiError> {
        let read = if self.content_type.contains("yaml") {
            serde_yaml_ng::from_slice(self.body).map_err(|e| e.to_string())
        } else if self.content_type.is_empty() || self.content_type.contains("json") {
            serde_json::from_slice(self.body).map_err(|e| e.to_string())
        } else {
            return Err(ApiError::unsupported_media(self.content_type));
        };
        read.map_err(|e| {
            ApiError::bad_request(format!("the object provided is unrecognized (must be of type {}): {e}", "JSON"))
        })
    }

    pub fn is_dry_run(&self) -> bool {
        self.query.text("dryRun") == "All"
    }

    pub fn is_strict(&self) -> bool {
        self.query.text("fieldValidation") == "Strict"
    }
}

impl Api {
    pub fn new() -> Self {
        Self {
            registry: Registry::new(),
            store: Store::new(),
            watch_epoch: tokio::sync::watch::Sender::new(0),
            bookmarks: tokio::sync::watch::Sender::new(0),
        }
    }

    fn target(&self, path: Path) -> Result<Target, ApiError> {
        let resource = self.registry.find(&path.group, &path.plural).ok_or_else(ApiError::no_such_path)?;
        let version = resource.version(&path.version).cloned().ok_or_else(ApiError::no_such_path)?;
        let misplaced = path.namespace.is_some() && !resource.namespaced;
        let homeless = path.namespace.is_none() && resource.namespaced && path.name.is_some();
        if misplaced || homeless {
            return Err(ApiError::no_such_path());
        }
        Ok(Target { resource, version, namespace: path.namespace, name: path.name, subresource: path.subresource })
    }

    /// Carries out one request.
    pub fn handle(self: &Arc<Self>, path: Path, asked: &Asked) -> Result<Reply, ApiError> {
        let target = self.target(path)?;
        let form = Form::accepted(asked.accept);
        let reply = match (&target.name, &target.subresource) {
            (Some(name), Some(sub)) => subresource::handle(self, &target, name, sub, asked),
            (Some(name), None) => self.handle_object(&target, name, asked),
            _ => self.handle_collection(&target, form, asked),
        }?;
        Ok(match reply {
            Reply::Object { code, body, dropped }
                if target.name.is_some() && meta::text(&body, "/kind") != "Status" =>
            {
                Reply::Object { code, body: form.object(body), dropped }
            }
            other => other,
        })
    }

    fn handle_object(self: &Arc<Self>, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
        match *asked.method {
            Method::GET if asked.query.flag("watch") => self.watch_one(target, name, asked),
            Method::GET => self.read(target, name, asked.query),
            Method::PUT => {
                let body = asked.object()?;
                self.update(target, name, asked, |_| Ok(body.clone()))
            }
            Method::PATCH => self.patch(target, name, asked),
            Method::DELETE => self.delete(target, name, asked),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn handle_collection(self: &Arc<Self>, target: &Target, form: Form, asked: &Asked) -> Result<Reply, ApiError> {
        let homeless = target.resource.namespaced && target.namespace.is_none();
        match *asked.method {
            Method::GET if asked.query.flag("watch") => Ok(Reply::Watch(Box::new(Watch::open(
                self.clone(),
                target.clone(),
                target.selector(asked.query)?,
                form,
                asked.query,
            )?))),
            Method::GET => self.list(target, form, asked.query),
            Method::POST if !homeless => self.create(target, asked),
            Method::DELETE if !homeless => self.delete_collection(target, asked),
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// The old form of a watch on one object: `GET .../<name>?watch=true`.
    fn watch_one(self: &Arc<Self>, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
        let selector = Selector::parse("", &format!("metadata.name={name}"), &target.resource.id())?;
        let form = Form::accepted(asked.accept);
        Ok(Reply::Watch(Box::new(Watch::open(self.clone(), target.clone(), selector, form, asked.query)?)))
    }

    fn patch(&self, target: &Target, name: &str, asked: &Asked) -> Result<Reply, ApiError> {
        let patch = Patch::read(&target.resource, asked.content_type, asked.body, asked.query.text("fieldManager"))?;
        if let Patch::Apply(body) = &patch
            && self.store.with(|state| state.get(&target.key(name)).is_none())
        {
            return self.create_applied(target, name, body.clone(), asked);
        }
        self.update(target, name, asked, |current| patch.apply(&target.resource, current))
    }
}

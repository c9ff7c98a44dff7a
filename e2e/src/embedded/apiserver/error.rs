//! What the server refuses, as Kubernetes `Status` objects.
//!
//! Invariant: `code` and `reason` go together as in the real server, since clients read either.

use serde_json::{Value, json};

use super::resources::Resource;

/// A refusal, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Value>,
    /// Seconds, also sent as the header `Retry-After`.
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after: None }
    }

    /// The refusal with the reason that belongs to an HTTP code, for faults on demand.
    pub fn of_code(code: u16, retry_after: Option<u32>) -> Self {
        let (reason, message) = match code {
            400 => ("BadRequest", "bad request"),
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            409 => (
                "Conflict",
                "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again",
            ),
            410 => ("Expired", "too old resource version"),
            422 => ("Invalid", "the server rejected our request due to an error in our request"),
            429 => ("TooManyRequests", "too many requests, please try again later"),
            500 => ("InternalError", "Internal error occurred"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "request did not complete within the allowed duration"),
            _ => ("", "unknown"),
        };
        let mut error = Self::new(code, reason, message);
        error.retry_after = retry_after;
        if let Some(seconds) = retry_after {
            error.details = Some(json!({"retryAfterSeconds": seconds}));
        }
        error
    }

    fn about(code: u16, reason: &'static str, resource: &Resource, name: &str, message: String) -> Self {
        let mut error = Self::new(code, reason, message);
        error.details = Some(json!({"name": name, "group": resource.group, "kind": resource.plural}));
        error
    }

    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::about(404, "NotFound", resource, name, format!("{} \"{name}\" not found", resource.id()))
    }

    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        Self::about(409, "AlreadyExists", resource, name, format!("{} \"{name}\" already exists", resource.id()))
    }

    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.id());
        Self::about(409, "Conflict", resource, name, message)
    }

    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        Self::about(403, "Forbidden", resource, name, format!("{} \"{name}\" is forbidden: {why}", resource.id()))
    }

    /// 422 with one cause per violation.
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Self {
        let list = causes.iter().map(Cause::to_string).collect::<Vec<_>>();
        let text = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if resource.group.is_empty() {
            resource.kind.clone()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let mut error = Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {text}"));
        error.details = Some(json!({
            "name": name, "group": resource.group, "kind": resource.kind,
            "causes": causes.iter().map(Cause::json).collect::<Vec<_>>(),
        }));
        error
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// What is not served at all. The real server says so in plain text, and by that a client tells a kind that is
    /// not there from an object that is not.
    pub fn no_such_path() -> Self {
        let mut error = Self::new(404, "NotFound", "the server could not find the requested resource");
        error.details = Some(json!({}));
        error
    }

    /// What is sent.
    pub fn body(&self) -> Value {
        if *self == Self::no_such_path() { "404 page not found\n".into() } else { self.status() }
    }

    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub fn unsupported_media(what: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format - {what} is not accepted here"),
        )
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// One reason why an object is not valid.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cause {
    /// Path of the field, as `spec.allocations[3]`.
    pub field: String,
    pub kind: CauseKind,
    pub message: String,
}

/// The classes of causes that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum CauseKind {
    Required,
    Invalid,
    NotSupported,
    Forbidden,
    Duplicate,
    Type,
}

impl Cause {
    pub fn new(kind: CauseKind, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), kind, message: message.into() }
    }

    fn json(&self) -> Value {
        let reason = match self.kind {
            CauseKind::Required => "FieldValueRequired",
            CauseKind::Invalid => "FieldValueInvalid",
            CauseKind::NotSupported => "FieldValueNotSupported",
            CauseKind::Forbidden => "FieldValueForbidden",
            CauseKind::Duplicate => "FieldValueDuplicate",
            CauseKind::Type => "FieldValueTypeInvalid",
        };
        json!({"reason": reason, "field": self.field, "message": self.words()})
    }

    fn words(&self) -> String {
        let head = match self.kind {
            CauseKind::Required => "Required value",
            CauseKind::Invalid | CauseKind::Type => "Invalid value",
            CauseKind::NotSupported => "Unsupported value",
            CauseKind::Forbidden => "Forbidden",
            CauseKind::Duplicate => "Duplicate value",
        };
        if self.message.is_empty() { head.to_owned() } else { format!("{head}: {}", self.message) }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.words())
    }
}

//! HTTP: from bytes on a connection to a request, and from a reply to bytes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;

use super::api::{Api, Asked, Reply};
use super::calls::{Call, Calls};
use super::discovery;
use super::error::ApiError;
use super::faults::{Fault, Faults};
use super::request::{Path, Query, verb};
use super::watch::Watch;

/// Objects larger than this are refused, as etcd does.
const BODY_LIMIT: usize = 3 << 20;

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut on purpose")]
pub(super) struct Cut;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub api: Arc<Api>,
    pub calls: Calls,
    pub faults: Faults,
    /// Users by bearer token; empty: everybody may do everything.
    pub tokens: Mutex<BTreeMap<String, String>>,
    pub address: String,
    pub started: Instant,
}

fn header(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

impl Shared {
    /// The user of a request, or a refusal.
    fn user(&self, headers: &HeaderMap) -> Result<String, ApiError> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        match header(headers, header::AUTHORIZATION).strip_prefix("Bearer ") {
            Some(token) => match tokens.get(token) {
                Some(user) => Ok(user.clone()),
                None if tokens.is_empty() => Ok(token.to_owned()),
                None => Err(ApiError::unauthorized()),
            },
            None if tokens.is_empty() => Ok("system:anonymous".to_owned()),
            None => Err(ApiError::unauthorized()),
        }
    }

    /// Answers one request, with the faults asked for.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let (parts, body) = request.into_parts();
        let path = Path::parse(parts.uri.path());
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let user = self.user(&parts.headers);
        let call = self.describe(&parts, path.as_ref(), &query, user.as_deref().unwrap_or("system:unauthenticated"));
        let fault = self.faults.strike(&call);
        let number = self.calls.begin(call);
        match &fault {
            Some(Fault::CloseBefore) => return Err(Cut),
            Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
            Some(Fault::Hold(gate)) => gate.pass().await,
            _ => {}
        }
        let outcome = match (&fault, user) {
            (Some(Fault::Status { code, retry_after }), _) => Err(ApiError::of_code(*code, *retry_after)),
            (_, Err(refusal)) => Err(refusal),
            _ => self.carry_out(&parts, path, &query, body).await,
        };
        let outcome = match fault {
            Some(Fault::LoseReplyAfterCommit) => return Err(Cut),
            Some(Fault::StatusAfterCommit(code)) => Err(ApiError::of_code(code, None)),
            Some(Fault::HoldAfterCommit(gate)) => {
                gate.pass().await;
                outcome
            }
            _ => outcome,
        };
        let response = outcome.map_or_else(|error| refusal(&error), respond);
        self.calls.end(number, response.status().as_u16());
        Ok(response)
    }

    fn describe(&self, parts: &http::request::Parts, path: Option<&Path>, query: &Query, user: &str) -> Call {
        let of_path = |field: fn(&Path) -> Option<String>| path.and_then(field).unwrap_or_default();
        Call {
            verb: verb(&parts.method, path, query).to_owned(),
            resource: of_path(|p| Some(p.id())),
            subresource: of_path(|p| p.subresource.clone()),
            namespace: of_path(|p| p.namespace.clone()),
            name: of_path(|p| p.name.clone()),
            user: user.to_owned(),
            agent: header(&parts.headers, header::USER_AGENT).to_owned(),
            status: 0,
            at: self.started.elapsed(),
        }
    }

    async fn carry_out(
        &self,
        parts: &http::request::Parts,
        path: Option<Path>,
        query: &Query,
        body: Incoming,
    ) -> Result<Reply, ApiError> {
        let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|_| {
            ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {BODY_LIMIT}"))
        })?;
        let Some(path) = path else {
            return discovery::document(&self.api, parts.uri.path(), &self.address)
                .map(Reply::ok)
                .ok_or_else(ApiError::no_such_path);
        };
        let asked = Asked {
            method: &parts.method,
            query,
            accept: header(&parts.headers, header::ACCEPT),
            content_type: header(&parts.headers, header::CONTENT_TYPE),
            body: &body.to_bytes(),
        };
        self.api.handle(path, &asked)
    }
}

fn respond(reply: Reply) -> Response<Body> {
    match reply {
        Reply::Object { code, body, dropped } => object(code, &body, &dropped),
        Reply::Watch(watch) => streamed(*watch),
    }
}

fn object(code: u16, body: &Value, dropped: &[String]) -> Response<Body> {
    let (media, text) = match body {
        Value::String(text) => ("text/plain; charset=utf-8", text.clone()),
        body => ("application/json", body.to_string()),
    };
    let mut response = Response::builder().status(code).header(header::CONTENT_TYPE, media);
    for field in dropped {
        response =
            response.header(header::WARNING, format!("299 - \"unknown field {}\"", field.replace(['"', '\\'], "'")));
    }
    response.body(Full::new(Bytes::from(text)).boxed_unsync()).unwrap_or_default()
}

fn refusal(error: &ApiError) -> Response<Body> {
    let mut response = object(error.code, &error.body(), &[]);
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn streamed(watch: Watch) -> Response<Body> {
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok(Frame::data(line)), watch))
    });
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json;stream=watch")
        .body(StreamBody::new(lines).boxed_unsync())
        .unwrap_or_default()
}

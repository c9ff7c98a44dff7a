//! Watches: what was, what changes, and when to start over.
//!
//! Invariant: a watch sends every change after its resourceVersion once, in order, as its selector sees it; if some of
//! them are forgotten it says 410 and ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{Api, Target};
use super::error::ApiError;
use super::meta;
use super::represent::Form;
use super::request::Query;
use super::selector::Selector;
use super::store::{Change, State};

/// The real server sends bookmarks about once a minute; tests ask for them at once with `Server::send_bookmarks`.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// The last bookmark of a watch comes this long before its end.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// When the next bookmark is due.
fn bookmark_time(now: Instant, deadline: Instant) -> Instant {
    let last = deadline.checked_sub(BEFORE_THE_END).filter(|last| *last > now);
    (now + BOOKMARK_EVERY).min(last.unwrap_or(now + BOOKMARK_EVERY))
}

/// One open watch.
pub(super) struct Watch {
    api: Arc<Api>,
    target: Target,
    selector: Selector,
    form: Form,
    /// Changes up to here are sent.
    position: u64,
    ready: VecDeque<Bytes>,
    newest: watch::Receiver<u64>,
    epoch: watch::Receiver<u64>,
    asked_bookmarks: watch::Receiver<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    over: bool,
}

impl Watch {
    pub fn open(
        api: Arc<Api>,
        target: Target,
        selector: Selector,
        form: Form,
        query: &Query,
    ) -> Result<Self, ApiError> {
        let from = query.resource_version()?;
        let streams_list = query.flag("sendInitialEvents");
        if streams_list && query.text("resourceVersionMatch") != "NotOlderThan" {
            return Err(ApiError::new(
                422,
                "Invalid",
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        let timeout = query.number("timeoutSeconds")?.unwrap_or(1800);
        let now = Instant::now();
        let mut watch = Self {
            newest: api.store.subscribe(),
            epoch: api.watch_epoch.subscribe(),
            asked_bookmarks: api.bookmarks.subscribe(),
            position: from.unwrap_or(0),
            ready: VecDeque::new(),
            bookmarks: query.flag("allowWatchBookmarks"),
            next_bookmark: bookmark_time(now, now + Duration::from_secs(timeout)),
            deadline: now + Duration::from_secs(timeout),
            over: false,
            api,
            target,
            selector,
            form,
        };
        if from.unwrap_or(0) == 0 || streams_list {
            watch.replay(streams_list);
        }
        Ok(watch)
    }

    /// Sends the present state as additions.
    fn replay(&mut self, marks_the_end: bool) {
        let (resource, namespace) = (self.target.key("").resource, self.target.namespace.clone());
        let (objects, revision) =
            self.api.store.with(|state| (state.list(&resource, namespace.as_deref()), state.revision));
        for (_, object) in objects {
            if self.selector.matches(&object) {
                self.send("ADDED", &object);
            }
        }
        self.position = revision;
        if marks_the_end {
            self.send_bookmark(json!({"k8s.io/initial-events-end": "true"}));
        }
    }

    fn send(&mut self, kind: &str, object: &Value) {
        let object = self.form.object(self.target.present(object));
        self.push(&json!({"type": kind, "object": object}));
    }

    fn push(&mut self, event: &Value) {
        self.ready.push_back(Bytes::from(format!("{event}\n")));
    }

    fn send_bookmark(&mut self, annotations: Value) {
        let (kind, api_version) = match self.form {
            Form::Whole => {
                (self.target.resource.kind.clone(), self.target.resource.api_version(&self.target.version.name))
            }
            Form::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
            Form::Table => ("Table".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let mut metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        if annotations.as_object().is_some_and(|a| !a.is_empty()) {
            metadata["annotations"] = annotations;
        }
        self.push(
            &json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": api_version, "metadata": metadata}}),
        );
    }

    /// The next line; none when the watch is over.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            self.newest.borrow_and_update();
            self.collect();
            if self.ready.is_empty() && !self.over {
                self.wait().await;
            }
        }
    }

    async fn wait(&mut self) {
        tokio::select! {
            changed = self.newest.changed() => self.over = changed.is_err(),
            _ = self.epoch.changed() => self.over = true,
            _ = self.asked_bookmarks.changed() => {
                self.asked_bookmarks.borrow_and_update();
                self.collect();
                self.bookmark();
            }
            () = tokio::time::sleep_until(self.next_bookmark.min(self.deadline)) => {
                let now = Instant::now();
                self.collect();
                self.over |= now >= self.deadline;
                self.bookmark();
                self.next_bookmark = bookmark_time(now, self.deadline);
            }
        }
    }

    fn bookmark(&mut self) {
        if self.bookmarks && !self.over {
            self.send_bookmark(json!({}));
        }
    }

    /// Queues the changes since the last time.
    fn collect(&mut self) {
        let api = self.api.clone();
        let found = api.store.with(|state| self.changes(state));
        match found {
            Ok((changes, revision)) => {
                changes.iter().for_each(|change| self.send_change(change));
                self.position = self.position.max(revision);
            }
            Err(error) => {
                self.push(&json!({"type": "ERROR", "object": error.status()}));
                self.over = true;
            }
        }
    }

    fn changes(&self, state: &State) -> Result<(Vec<Change>, u64), ApiError> {
        let resource = self.target.key("").resource;
        let changes = state.since(self.position).ok_or_else(|| {
            ApiError::expired(format!("too old resource version: {} ({})", self.position, state.compacted))
        })?;
        let mine = |change: &&Change| {
            change.key.resource == resource && self.target.namespace.as_ref().is_none_or(|n| *n == change.key.namespace)
        };
        Ok((changes.filter(mine).cloned().collect(), state.revision))
    }

    fn send_change(&mut self, change: &Change) {
        let before = change.before.as_ref().filter(|object| self.selector.matches(object));
        let seen_after = !change.deleted && self.selector.matches(&change.after);
        match (before, seen_after) {
            (None, true) => self.send("ADDED", &change.after),
            (Some(_), true) => self.send("MODIFIED", &change.after),
            (Some(_), false) if change.deleted => self.send("DELETED", &change.after),
            (Some(before), false) => {
                let mut last = Value::clone(before);
                meta::set(&mut last, "resourceVersion", Some(change.revision.to_string().into()));
                self.send("DELETED", &last);
            }
            (None, false) => {}
        }
    }
}

//! Whether Calico's datastore is locked, as this agent knows it without asking for each call.
//!
//! The agent watches ClusterInformation over the connection on which it writes. What the watch told last is believed
//! as long as that connection answers (see [`Heard`]): a lock set meanwhile would have been told. In doubt, or where
//! the server does not speak HTTP/2, one live read serves two seconds of writing. Keeps: no write begins later than
//! three seconds after the lock was set, as far as the API server tells its watchers at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calico::{ClusterInformation, cluster_information};
use futures::future::{BoxFuture, FutureExt as _, ready};
use http_body_util::BodyExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::client::Body;
use kube::core::Request;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::time::{Instant, sleep, timeout};

use super::Agent;
use super::watches::{self, Seen};
use crate::store::cached::{Cached, Shelves};
use crate::store::gated::{Allowed, TRUSTED, verdict};
use crate::store::heard::Heard;
use crate::store::kube::{KubeStore, chain};
use crate::store::{DatastoreGate, LiveGate, StoreError};

/// Longest wait for a list, and for a watch to begin.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a watch is asked to last, in seconds; it goes on in the next one.
const WATCH_SECONDS: u32 = 290;
/// Pauses after a watch that broke off; doubled, and drawn from the upper half.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// What happened while a watch began slowly is told by it within this time.
const CATCHING_UP: Duration = Duration::from_secs(1);
/// How often is looked whether the lock is gone, by what waits for that.
const LOOK: Duration = Duration::from_secs(2);

/// The gate of an agent's writes.
pub(super) struct AgentGate {
    known: Mutex<Option<Known>>,
    live: LiveGate<Cached<KubeStore>>,
}

/// What a watch told that goes on.
struct Known {
    found: Result<Allowed, StoreError>,
    connection: Heard,
    /// From when on it is believed.
    from: Instant,
}

/// How a watch ended.
enum Ended {
    /// In good order: another goes on from this version.
    At(String),
    /// The server does not speak HTTP/2, so nothing tells whether it is still connected.
    Unheard,
}

// === impl AgentGate ===

impl AgentGate {
    pub(super) fn new(store: Cached<KubeStore>) -> Self {
        Self { known: Mutex::default(), live: LiveGate::new(store) }
    }

    /// What the watch says, if it can be believed.
    fn heard(&self) -> Option<Result<Allowed, StoreError>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = |known: &&Known| known.connection.answers() && Instant::now() >= known.from;
        known.as_ref().filter(believed).map(|known| known.found.clone())
    }

    fn know(&self, known: Option<Known>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn tell(&self, information: &ClusterInformation) {
        let found = verdict(Some(information));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = known.as_mut() else { return };
        match (&known.found, &found) {
            (Ok(_), Err(error)) => tracing::warn!(%error, "Calico's datastore is locked: nothing is written"),
            (Err(_), Ok(_)) => tracing::info!("Calico's datastore is unlocked: writing goes on"),
            _ => {}
        }
        known.found = found;
    }

    /// Follows ClusterInformation for ever, or until the server turns out not to speak HTTP/2.
    pub(super) async fn follow(&self, client: Client, shelves: Arc<Shelves>, seen: Seen) {
        let (mut version, mut pause) = (None, FIRST_PAUSE);
        loop {
            let begun = Instant::now();
            let outcome = self.watch(&client, &shelves, version.take()).await;
            self.know(None);
            match outcome {
                Ok(Ended::Unheard) => return,
                Ok(Ended::At(last)) => {
                    version = Some(last);
                    // A server that ends its watches at once is not asked without a pause.
                    if begun.elapsed() < CATCHING_UP {
                        sleep(FIRST_PAUSE).await;
                    }
                }
                Err(error) => {
                    seen.metrics.watch_restart(&ClusterInformation::plural(&()));
                    tracing::warn!(kind = %ClusterInformation::plural(&()), error, "a watch broke off and begins anew");
                    if begun.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// One watch, from `version` on; without one, from what a list says.
    async fn watch(&self, client: &Client, shelves: &Shelves, version: Option<String>) -> Result<Ended, String> {
        let (begun, shelf) = (Instant::now(), &shelves.information);
        let mut version = match version {
            Some(version) => version,
            None => {
                let api = Api::<ClusterInformation>::all(client.clone());
                let began = shelf.begin_list();
                let listed = timeout(CALL_TIMEOUT, api.list(&ListParams::default())).await;
                let listed = listed.map_err(|_| "no list in time".to_owned())?.map_err(|e| chain(&e))?;
                shelf.reset(began, listed.items);
                watches::tell_filled(shelves, &ClusterInformation::plural(&()));
                listed.metadata.resource_version.unwrap_or_default()
            }
        };
        let params = WatchParams::default().timeout(WATCH_SECONDS);
        let request = Request::new(ClusterInformation::url_path(&(), None)).watch(&params, &version);
        let request = request.map_err(|e| chain(&e))?.map(Body::from);
        let response = timeout(CALL_TIMEOUT, client.send(request)).await;
        let response = response.map_err(|_| "no watch in time".to_owned())?.map_err(|e| chain(&e))?;
        if !response.status().is_success() {
            return Err(format!("HTTP {}", response.status()));
        }
        let Some(connection) = response.extensions().get::<Heard>().cloned() else { return Ok(Ended::Unheard) };
        let now = Instant::now();
        let from = if begun.elapsed() < TRUSTED { now } else { now + CATCHING_UP };
        let standing = shelf.snapshot().into_iter().find(is_the_one);
        self.know(Some(Known { found: verdict(standing.as_ref()), connection, from }));
        let mut body = response.into_body();
        let mut lines = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| chain(&e))?;
            lines.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                let event = serde_json::from_slice(&line).map_err(|e| e.to_string())?;
                if let Some(newer) = self.hear(event, shelves)? {
                    version = newer;
                }
            }
        }
        Ok(Ended::At(version))
    }

    /// The version that the event brings.
    fn hear(&self, event: WatchEvent<ClusterInformation>, shelves: &Shelves) -> Result<Option<String>, String> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                if is_the_one(&object) {
                    self.tell(&object);
                }
                let version = object.resource_version();
                shelves.information.put(object);
                Ok(version)
            }
            WatchEvent::Deleted(object) => {
                // What that means is looked up from now on, see [`Objects::newer_is_ready`].
                if is_the_one(&object) {
                    self.know(None);
                }
                shelves.information.deleted(&object);
                Ok(object.resource_version())
            }
            WatchEvent::Bookmark(bookmark) => Ok(Some(bookmark.metadata.resource_version)),
            WatchEvent::Error(status) => Err(status.message),
        }
    }
}

fn is_the_one(information: &ClusterInformation) -> bool {
    information.metadata.name.as_deref() == Some(cluster_information::NAME)
}

impl DatastoreGate for AgentGate {
    fn look(&self) -> BoxFuture<'_, Result<Allowed, StoreError>> {
        match self.heard() {
            Some(found) => ready(found).boxed(),
            None => self.live.look(),
        }
    }
}

// === impl Agent ===

impl Agent {
    /// Whether Calico's datastore is known to be locked.
    pub(super) async fn is_locked(&self) -> bool {
        self.datastore.may_write().await.is_err_and(|error| error.is_locked())
    }

    /// Waits until something may be written again; false if the agent stops before.
    pub(super) async fn unlocked(&self) -> bool {
        loop {
            if self.stopping.run_until_cancelled(sleep(LOOK)).await.is_none() {
                return false;
            }
            if self.datastore.may_write().await.is_ok() {
                return true;
            }
        }
    }
}

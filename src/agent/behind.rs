//! DELs that are carried out behind their answers: a runtime waits for a note on tmpfs, and the cluster hears of
//! the release a moment later.
//!
//! Until then the address is on record for a container that is gone, so nobody else gets it. The answer is given with
//! the container's turn, and the pod's, which the release keeps until it is through: whoever asks about either comes
//! after it. What fails is tried again, by a later agent if need be, and is then a DEL that a runtime repeats.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Agent;
use super::serve::Parsed;
use crate::cni::CniError;
use crate::protocol::{Request, line};
use crate::service::owed::UnderWay;
use crate::service::{Held, Served};

/// Releases that may be owed at once: more than a node has pods. Any further DEL waits for its own.
const MOST: usize = 512;
/// Pauses between attempts; half of each is by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Room for releases that are owed.
pub(super) struct Behind {
    room: Arc<Semaphore>,
}

impl Default for Behind {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MOST)) }
    }
}

/// An attempt that is under way.
struct Attempt {
    held: Held,
    /// Of the first one, for which ADDs wait that look for a free address.
    _under_way: Option<UnderWay>,
}

impl Agent {
    /// A DEL: answered once it cannot be lost.
    pub(super) async fn del(self: &Arc<Self>, request: &Request, parsed: &Arc<Parsed>) -> Result<Served, CniError> {
        let call = self.call_of(parsed, &|| false);
        let held = call.hold().await;
        // An ADD of the container that stands still is not to find the note, and to make it void.
        let puts_off =
            self.options.release_behind && parsed.is_whole && held.is_held() && !self.stopping.is_cancelled();
        let room = self.behind.room.clone().try_acquire_owned().ok().filter(|_| puts_off);
        match room {
            Some(room) if call.container().owe(&line(request)) => {
                let first = Attempt { held, _under_way: Some(self.state.releases().begin()) };
                self.tasks.spawn(self.clone().pay(parsed.clone(), room, Some(first)));
            }
            _ => self.carry_out(parsed, &held).await?,
        }
        Ok(Served::default())
    }

    /// Goes on with what earlier agents have answered.
    pub(super) fn resume_releases(self: &Arc<Self>) {
        for (path, request) in self.state.owed() {
            let parsed = Request::read(&request).ok().and_then(|request| Parsed::of(&request).ok());
            let Some(parsed) = parsed else {
                let file = path.display();
                tracing::warn!(%file, "a release that an earlier agent noted cannot be read: the collector will find it");
                let _ = std::fs::remove_file(path);
                continue;
            };
            let (agent, room) = (self.clone(), self.behind.room.clone());
            self.tasks.spawn(async move {
                if let Some(Ok(room)) = agent.stopping.run_until_cancelled(room.acquire_owned()).await {
                    agent.pay(Arc::new(parsed), room, None).await;
                }
            });
        }
    }

    /// Tries until it is through or this agent stops; then the next one goes on.
    async fn pay(self: Arc<Self>, parsed: Arc<Parsed>, _room: OwnedSemaphorePermit, mut first: Option<Attempt>) {
        let call = self.call_of(&parsed, &|| false);
        let (container, mut pause) = (&parsed.invocation.container_id, FIRST_PAUSE);
        loop {
            let attempt = match first.take() {
                Some(first) => Some(first),
                None => match self.stopping.run_until_cancelled(call.hold_owed()).await {
                    Some(held) => held.map(|held| Attempt { held, _under_way: None }),
                    None => return,
                },
            };
            match attempt {
                Some(attempt) => match self.carry_out(&parsed, &attempt.held).await {
                    Ok(()) => return tracing::debug!(container, "released"),
                    Err(error) => {
                        tracing::warn!(container, %error, "a release that was answered is not on record yet");
                        self.witness.not_released(&parsed.invocation, &error);
                        if self.is_locked().await {
                            drop(attempt);
                            match self.unlocked().await {
                                true => pause = FIRST_PAUSE,
                                false => return,
                            }
                            continue;
                        }
                    }
                },
                None if !call.container().is_owed() => return,
                // Another call is at the container.
                None => {}
            }
            let wait = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            if self.stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

//! Whether the agent's loops move: each of them shows a pulse while it waits, and none while it is stuck or gone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often a loop that waits shows that it does.
const BEAT: Duration = Duration::from_secs(10);
/// A loop that was silent for so long is stuck: none of them does anything but wait and hand over.
const SILENCE: Duration = Duration::from_secs(60);

/// The loops of an agent.
#[derive(Default)]
pub(super) struct Health {
    loops: Mutex<Vec<Pulse>>,
}

/// One loop's sign of life.
#[derive(Clone)]
pub(super) struct Pulse {
    name: String,
    last: Arc<Mutex<Instant>>,
}

// === impl Health ===

impl Health {
    /// A loop that is to run as long as the agent does.
    pub(super) fn pulse(&self, name: impl Into<String>) -> Pulse {
        let pulse = Pulse { name: name.into(), last: Arc::new(Mutex::new(Instant::now())) };
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).push(pulse.clone());
        pulse
    }

    /// The loops that do not move.
    pub(super) fn stuck(&self) -> Vec<String> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.iter().filter(|pulse| pulse.silence() > SILENCE).map(|pulse| pulse.name.clone()).collect()
    }
}

// === impl Pulse ===

impl Pulse {
    /// Waits for `next`, which may take for ever, and shows that it does.
    pub(super) async fn while_waiting<T>(&self, next: impl Future<Output = T>) -> T {
        let mut next = std::pin::pin!(next);
        loop {
            self.beat();
            tokio::select! {
                biased;
                found = &mut next => {
                    self.beat();
                    return found;
                }
                () = sleep(BEAT) => {}
            }
        }
    }

    fn beat(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_waits_is_alive_and_one_that_hangs_or_ended_is_not() {
        let health = Health::default();
        let (waiting, ended) = (health.pulse("waiting"), health.pulse("ended"));
        let task = tokio::spawn(async move { waiting.while_waiting(pending::<()>()).await });
        ended.while_waiting(async {}).await;
        sleep(SILENCE / 2).await;
        assert!(health.stuck().is_empty());
        sleep(SILENCE).await;
        assert_eq!(health.stuck(), ["ended"]);
        task.abort();
        sleep(SILENCE * 2).await;
        assert_eq!(health.stuck(), ["waiting", "ended"]);
    }
}

//! The node's files that somebody else writes, too: calico-node's installer writes Calico's own IPAM into the
//! conflist at each start, and the kubelet renews the service account's token.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Agent;
use crate::install::{NodeFiles, Outcome, PluginToken, Watcher};

/// Until a watch that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl Agent {
    /// Keeps the files as they should be, for as long as the agent runs.
    pub(super) async fn keep_files(self: Arc<Self>, files: NodeFiles) {
        let pulse = self.health.pulse("files");
        let mut given_back = self.given_back.subscribe();
        loop {
            let watching = Watcher::new(&files.directories());
            // After the watch began, so that no change is missed in between.
            self.put_files(&files).await;
            let ended = match watching {
                Ok(mut watcher) => loop {
                    let renewal = self.token.lock().await.as_ref().map_or(Duration::MAX, PluginToken::rest);
                    let next = async {
                        tokio::select! {
                            changed = tokio::time::timeout(renewal, watcher.changed()) => changed.unwrap_or(Ok(())),
                            _ = given_back.changed() => Ok(()),
                        }
                    };
                    match pulse.while_waiting(next).await {
                        Ok(()) => self.put_files(&files).await,
                        Err(error) => break error,
                    }
                },
                Err(error) => error,
            };
            tracing::warn!(error = %ended, "the node's files are not watched; trying again");
            pulse.while_waiting(tokio::time::sleep(RETRY)).await;
        }
    }

    /// Makes the files what they should be; one call at a time, so that nobody writes by what was so before.
    pub(super) async fn put_files(&self, files: &NodeFiles) {
        let mut token = self.token.lock().await;
        if !self.is_given_back()
            && let Some(token) = token.as_mut()
            && let Err(error) = token.renew().await
        {
            tracing::warn!(%error, "the plugin has no new token yet; trying again");
        }
        let outcome = if self.is_given_back() { files.take_away() } else { files.put(token.as_ref()) };
        let Outcome { written, failed, unused, .. } = outcome;
        for written in &written {
            tracing::info!(file = %written.path.display(), "{}", written.what);
            self.witness.metrics.file_written();
        }
        let failed = failed.into_iter().chain(unused).collect::<Vec<_>>();
        for error in &failed {
            tracing::warn!(%error, "a file of this node is not what it should be");
        }
        let failed = failed.iter().map(ToString::to_string).collect();
        *self.bad_files.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}

//! The node's files that somebody else writes, too: calico-node's installer writes Calico's own IPAM into the
//! conflist at each start, and the kubelet renews the service account's token.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Agent;
use crate::install::{NodeFiles, PluginToken, Watcher};

/// Until a watch that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl Agent {
    /// Keeps the files as they should be, for as long as the agent runs.
    pub(super) async fn keep_files(self: Arc<Self>, files: NodeFiles) {
        let pulse = self.health.pulse("files");
        let mut token = files.token();
        loop {
            let watching = Watcher::new(&files.directories());
            // After the watch began, so that no change is missed in between.
            self.put_files(&files, &mut token).await;
            let ended = match watching {
                Ok(mut watcher) => loop {
                    let renewal = token.as_ref().map_or(Duration::MAX, PluginToken::rest);
                    let changed = tokio::time::timeout(renewal, watcher.changed());
                    match pulse.while_waiting(changed).await {
                        Ok(Ok(())) | Err(_) => self.put_files(&files, &mut token).await,
                        Ok(Err(error)) => break error,
                    }
                },
                Err(error) => error,
            };
            tracing::warn!(error = %ended, "the node's files are not watched; trying again");
            pulse.while_waiting(tokio::time::sleep(RETRY)).await;
        }
    }

    async fn put_files(&self, files: &NodeFiles, token: &mut Option<PluginToken>) {
        if let Some(token) = token
            && let Err(error) = token.renew().await
        {
            tracing::warn!(%error, "the plugin has no new token yet; trying again");
        }
        let outcome = files.put(token.as_ref());
        for written in &outcome.written {
            tracing::info!(file = %written.path.display(), "{}", written.what);
            self.witness.metrics.file_written();
        }
        for error in &outcome.failed {
            tracing::warn!(%error, "a file of this node is not what it should be");
        }
        let failed = outcome.failed.iter().map(ToString::to_string).collect();
        *self.bad_files.lock().unwrap_or_else(PoisonError::into_inner) = failed;
    }
}

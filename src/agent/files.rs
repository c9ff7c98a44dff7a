//! The node's files that somebody else writes, too: calico-node's installer writes Calico's own IPAM into the
//! conflist at each start, and the kubelet renews the service account's token.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use calico::IPPool;
use kube::Resource as _;

use super::Agent;
use crate::install::{NodeFiles, Outcome, PluginToken, Pools, Watcher};
use crate::store::Objects as _;

/// Until a watch that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Until files that are not what they should be are looked at again: Calico's pools may have come.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Agent {
    /// Keeps the files as they should be, for as long as the agent runs.
    pub(super) async fn keep_files(self: Arc<Self>, files: NodeFiles) {
        let pulse = self.health.pulse("files");
        let mut given_back = self.given_back.subscribe();
        loop {
            let watching = Watcher::new(&files.directories());
            // After the watch began, so that no change is missed in between.
            let mut well = self.put_files(&files).await;
            let ended = match watching {
                Ok(mut watcher) => loop {
                    let renewal = self.token.lock().await.as_ref().map_or(Duration::MAX, PluginToken::rest);
                    let rest = if well { renewal } else { renewal.min(LOOK_AGAIN) };
                    let next = async {
                        tokio::select! {
                            changed = tokio::time::timeout(rest, watcher.changed()) => changed.unwrap_or(Ok(())),
                            _ = given_back.changed() => Ok(()),
                        }
                    };
                    match pulse.while_waiting(next).await {
                        Ok(()) => well = self.put_files(&files).await,
                        Err(error) => break error,
                    }
                },
                Err(error) => error,
            };
            tracing::warn!(error = %ended, "the node's files are not watched; trying again");
            pulse.while_waiting(tokio::time::sleep(RETRY)).await;
        }
    }

    /// Makes the files what they should be, and says whether they all are; one call at a time, so that nobody writes by what
    /// was so before.
    pub(super) async fn put_files(&self, files: &NodeFiles) -> bool {
        let mut token = self.token.lock().await;
        let mut judge = self.judge.lock().await;
        if !self.is_given_back()
            && let Some(token) = token.as_mut()
            && let Err(error) = token.renew().await
        {
            tracing::warn!(%error, "the plugin has no new token yet; trying again");
        }
        judge.pools = self.pools().await;
        let outcome = if self.is_given_back() { files.take_away() } else { files.put(token.as_ref(), &mut judge) };
        let Outcome { written, failed, unused, .. } = outcome;
        for written in &written {
            tracing::info!(file = %written.path.display(), "{}", written.what);
            self.witness.metrics.file_written();
        }
        let failed: Vec<String> = failed.iter().chain(&unused).map(ToString::to_string).collect();
        let before = {
            let mut bad = self.bad_files.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *bad, failed.clone())
        };
        for error in failed.iter().filter(|error| !before.contains(error)) {
            tracing::warn!(%error, "a file of this node is not what it should be");
        }
        failed.is_empty()
    }

    /// Calico's pools as this agent remembers them.
    async fn pools(&self) -> Pools {
        let kind = IPPool::plural(&()).into_owned();
        if self.shelves().unsynced().contains(&kind) {
            return Pools::Unknown;
        }
        self.driver.objects().list_cached("").await.map_or(Pools::Unknown, Pools::Known)
    }
}

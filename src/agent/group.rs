//! Whether this agent still speaks the API group in which the cluster has Calico's objects.
//!
//! A migration of Calico's locks the older group, copies everything and leaves the older group locked. Keeps: what the agent has
//! heard in one group is never answered in another: it ends, and the next one begins with nothing.

use std::sync::Arc;
use std::time::Duration;

use calico::ApiGroup;
use tokio::time::sleep;

use super::Agent;
use crate::install;
use crate::store::Group;
use crate::store::gated::verdict;
use crate::store::group::of_cluster;

/// Between two looks while the cluster may move.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks at what could not be found out.
const RETRY: Duration = Duration::from_secs(60);

impl Agent {
    /// Enters the cluster's group in the lists, at the start and whenever Calico's datastore is locked, and ends this agent if
    /// the next one would speak another group.
    pub(super) async fn follow_group(self: Arc<Self>) {
        let pulse = self.health.pulse("group");
        let store = self.driver.objects().inner().inner();
        let mut pause = Some(Duration::ZERO);
        loop {
            pulse.while_waiting(sleep(pause.unwrap_or(LOOK))).await;
            if pause.is_none() && !self.hears_lock() {
                continue;
            }
            pause = match pulse.while_waiting(of_cluster(store)).await {
                Ok(found) => {
                    if let Some(group) = found
                        && self.name_group(group).await
                    {
                        self.stopping.cancel();
                    }
                    None
                }
                Err(error) => {
                    tracing::debug!(%error, "which API group the cluster has Calico's objects in could not be found out");
                    Some(if self.hears_lock() { LOOK } else { RETRY })
                }
            };
        }
    }

    /// Whether the watch says that Calico's datastore is locked.
    fn hears_lock(&self) -> bool {
        self.shelves().information.snapshot().iter().any(|information| verdict(Some(information)).is_err())
    }

    /// Enters the group in the lists, if they are ours. Whether the next agent would speak another group than this one.
    async fn name_group(&self, group: ApiGroup) -> bool {
        let known = self.judge.lock().await.group.replace(group);
        if let Some(files) = self.options.files.clone().filter(|_| known != Some(group)) {
            self.put_files(&files).await;
        }
        let own = self.driver.objects().inner().inner().group().known();
        let next = Group::of(install::api_group(&self.options.cni_conf_dir)).known().unwrap_or(group);
        let moved = own.is_some_and(|own| own != next);
        if moved {
            tracing::warn!(group = %next, "Calico's objects are in another API group now: the agent starts anew");
        }
        moved
    }
}

//! An agent whose add-on was taken off the cluster gives its node back to calico-ipam: when it is stopped, and as soon
//! as its service account is deleted. If the add-on comes back, so does the node.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::time::{Instant, sleep};

use super::Agent;
use crate::install::{AddOn, PATIENCE, Verdict};

/// Between two looks while something is in doubt.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks for an add-on that was gone.
const RETURN: Duration = Duration::from_secs(10);
/// An API server goes on accepting the tokens of a deleted account for ten seconds.
const REMEMBERED: Duration = Duration::from_secs(15);
/// An agent whose add-on is there when it is stopped looks once more: people delete pods and what makes them in one go.
const AFTERTHOUGHT: Duration = Duration::from_secs(3);
/// An agent that is stopped looks no longer, whatever it sees; the manifests give it more time than this.
const PARTING: Duration = REMEMBERED.saturating_add(PATIENCE).saturating_add(Duration::from_secs(8));

impl Agent {
    /// Follows the service account, and finds out what it means when that goes.
    pub(super) async fn follow_account(self: Arc<Self>, add_on: Arc<AddOn>) {
        let pulse = self.health.pulse("service account");
        let (namespace, name) = add_on.account();
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let mut events = watcher(accounts, config).default_backoff().boxed();
        let mut listed = false;
        while let Some(event) = pulse.while_waiting(events.next()).await {
            let doubtful = match event {
                Ok(watcher::Event::Init) => {
                    listed = false;
                    false
                }
                Ok(watcher::Event::InitApply(_) | watcher::Event::Apply(_)) => {
                    listed = true;
                    false
                }
                Ok(watcher::Event::InitDone) => !listed,
                Ok(watcher::Event::Delete(_)) => true,
                Err(error) => is_refusal(&error),
            };
            if doubtful {
                pulse.while_waiting(self.settle(&add_on)).await;
            }
        }
    }

    /// Looks until it is known whether the add-on is still there; if it is gone, until it is there again.
    async fn settle(&self, add_on: &AddOn) {
        let mut since = Instant::now();
        loop {
            let pause = match add_on.look().await {
                Verdict::Gone(why) => {
                    self.give_node_back(&why).await;
                    RETURN
                }
                Verdict::Doubtful => {
                    since = Instant::now();
                    LOOK
                }
                Verdict::There if self.is_given_back() => {
                    tracing::info!("the add-on is there again, and the node is kube-ipam's again");
                    self.given_back.send_replace(None);
                    return;
                }
                _ if self.is_given_back() => RETURN,
                _ if since.elapsed() < REMEMBERED => LOOK,
                _ => return,
            };
            sleep(pause).await;
        }
    }

    /// Before the end: whether this agent is only replaced, or taken off with everything else.
    pub(super) async fn part(&self) {
        let Some(add_on) = self.add_on.as_ref().filter(|_| !self.is_given_back()) else { return };
        let (begun, mut since) = (Instant::now(), Instant::now());
        loop {
            match add_on.look().await {
                Verdict::There if begun.elapsed() >= AFTERTHOUGHT => return,
                Verdict::There => {}
                Verdict::Gone(why) => return self.give_node_back(&why).await,
                Verdict::Doubtful => since = Instant::now(),
                Verdict::Unknown(why) if since.elapsed() >= REMEMBERED => {
                    tracing::warn!(
                        why,
                        "nobody can tell whether kube-ipam was taken off this cluster: the node stays as it is"
                    );
                    return;
                }
                Verdict::Unknown(_) => {}
            }
            if begun.elapsed() >= PARTING {
                return;
            }
            sleep(LOOK).await;
        }
    }

    async fn give_node_back(&self, why: &str) {
        let Some(files) = &self.options.files else { return };
        if !self.is_given_back() {
            tracing::warn!(why, "kube-ipam is gone from this cluster: this node is given back to calico-ipam");
        }
        self.given_back.send_replace(Some(why.to_owned()));
        self.put_files(files).await;
    }

    pub(super) fn is_given_back(&self) -> bool {
        self.given_back.borrow().is_some()
    }
}

/// Whether a watch could not begin since the account's token is refused.
fn is_refusal(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => status.code == 401,
        _ => false,
    }
}

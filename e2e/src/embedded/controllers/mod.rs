//! Stand-ins for kube-controller-manager and kube-scheduler, as far as pods come and go by them.
//!
//! Layout: a file per controller; `pods` holds what they share. Each reads live before it acts, so that no cache can mislead it,
//! and is woken by watches only.

mod daemonset;
mod deployment;
mod garbage;
mod job;
mod namespace;
mod nodes;
mod pods;
mod replicaset;
mod scheduler;
mod statefulset;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::runtime::controller::Action;

/// What a reconciliation may fail with; it is tried again soon.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub(super) struct Failure(#[from] anyhow::Error);

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self(error.into())
    }
}

type Outcome = Result<Action, Failure>;

/// Pause before a reconciliation that failed is tried again.
const AGAIN: Duration = Duration::from_millis(20);

fn again<K>(_: Arc<K>, error: &Failure, _: Arc<Client>) -> Action {
    tracing::debug!(%error, "reconciliation failed");
    Action::requeue(AGAIN)
}

/// Runs all controllers and the scheduler until dropped.
pub async fn run(client: Client) {
    tokio::join!(
        deployment::run(client.clone()),
        replicaset::run(client.clone()),
        statefulset::run(client.clone()),
        daemonset::run(client.clone()),
        job::run(client.clone()),
        scheduler::run(client.clone()),
        garbage::run(client.clone()),
        nodes::run(client.clone()),
        namespace::run(client),
    );
}

/// Drives a controller's stream; its errors are tried again by the stream itself.
async fn drive<T, E: std::fmt::Display>(stream: impl futures::Stream<Item = Result<T, E>>) {
    stream
        .for_each(|outcome| async move {
            if let Err(error) = outcome {
                tracing::debug!(%error, "controller");
            }
        })
        .await;
}

//! The cluster's one collector, as the leading agent runs it: with its defaults, over live reads.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use kube_ipam::collector::{self, Collector, Election, News, Options};
use kube_ipam::driver::Driver;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::ground::Ground;

/// The running collector.
pub(super) struct Collecting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), collector::lead::TooShort>>,
    seen: Arc<Mutex<Collected>>,
}

/// What it did in the whole run.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Collected {
    /// Rounds that read everything.
    pub rounds: usize,
    /// Rounds that could not.
    pub unread: usize,
    /// Repairs. Nothing breaks here, so each would be a mistake of its own or of an agent.
    pub repairs: Vec<String>,
    /// Repairs that did not succeed.
    pub failed: Vec<String>,
    /// What looked wrong and was not, when it was looked at again.
    pub moot: usize,
}

// === impl Collecting ===

impl Collecting {
    pub(super) fn start(ground: &Ground) -> Collecting {
        let driver = Driver::new(ground.line.store.clone(), Some(ground.line.ledger.clone()), Timestamp::now);
        let mut collector = Collector::new(driver, &ground.net, Options::default());
        let client = ground.line.store.client().clone();
        let election = Election { identity: "node-0".to_owned(), ..Election::default() };
        let seen: Arc<Mutex<Collected>> = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let told = seen.clone();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            let hear = |news: News<'_>| told.lock().unwrap_or_else(PoisonError::into_inner).note(&news);
            collector::lead(client, &election, &mut collector, stopped, hear).await
        });
        Collecting { stop, task, seen }
    }

    /// Ends it, after the repair under way.
    pub(super) async fn stop(self) -> Result<Collected> {
        let _ = self.stop.send(());
        self.task.await?.context("the collector's election")?;
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

// === impl Collected ===

impl Collected {
    fn note(&mut self, news: &News<'_>) {
        let News::Round(round) = news else { return };
        match round {
            Err(_) => self.unread += 1,
            Ok(report) => {
                self.rounds += 1;
                self.moot += report.moot.len();
                let named =
                    |repair: &collector::Repair| format!("{:?} {}: {}", repair.kind, repair.object, repair.detail);
                self.repairs.extend(report.repairs.iter().map(named));
                let failed = |f: &collector::Failed| format!("{}: {}", named(&f.repair), f.error);
                self.failed.extend(report.failed.iter().map(failed));
            }
        }
    }
}

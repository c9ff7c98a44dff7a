//! One collector in the cluster at a time, by a Lease.
//!
//! The election only spares the cluster double work: that two collectors do no harm is kept by the
//! preconditions of their writes. Still no repair is begun on hearsay: before each one the Lease itself is
//! read, and must name this process for longer than the repair may last. What the elector believes would not
//! do, as it does not learn of a lease that ran out while the API server could not be reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::{Collector, Mandate, REPAIR_TIME, Report, Standing, Unread};
use crate::store::{Ledger, Objects};

/// How a leader is elected, and how often it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// This process's name in the Lease, such as its node's; something random is added, so that two processes
    /// of one node are told apart.
    pub identity: String,
    /// How long a lease lasts without being renewed, in whole seconds. It is renewed when half of it is left,
    /// which must be more than [`REPAIR_TIME`].
    pub duration: Duration,
    /// Time between the beginnings of two rounds; longer, but at most five minutes, if a cluster is so large that to
    /// read it takes more than a twentieth of that.
    pub interval: Duration,
}

/// What a candidate tells of its work.
#[derive(Debug)]
pub enum News<'a> {
    /// This process leads now, and may act by this mandate.
    Leading(Arc<dyn Mandate>),
    /// It does not any more.
    Following,
    /// What came of a round.
    Round(&'a Result<Report, Unread>),
}

/// The lease is too short for its holder to begin anything under it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a lease of {duration:?} is too short: it must last at least {least:?}")]
pub struct TooShort {
    /// What was asked for.
    pub duration: Duration,
    /// What would do.
    pub least: Duration,
}

/// Annotation of the Lease: what has been so since when, and waits for the end of a long grace.
const STANDING: &str = "kube-ipam.io/standing";
/// Pause before another attempt to take part in the election.
const RETRY: Duration = Duration::from_secs(5);
/// After a round the cluster is left alone for this many times as long as it took to read it: the API server has others
/// to serve.
const SPARED: u32 = 20;
/// But not for longer: a slow API server does not keep the cluster from being repaired.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// Longest wait for the Lease, and for its release at the end.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);

impl Default for Election {
    fn default() -> Self {
        Self {
            namespace: "kube-system".into(),
            lease: "kube-ipam-collector".into(),
            identity: String::new(),
            duration: Duration::from_secs(30),
            interval: Duration::from_secs(30),
        }
    }
}

/// Takes part in the election until `stop`, and runs rounds while it is won. At `stop` the repair under way is
/// brought to its end, and the lease is given up.
///
/// # Errors
/// The election's lease is too short. Everything that can pass is waited out.
pub async fn lead<O: Objects, L: Ledger>(
    client: Client,
    election: &Election,
    collector: &mut Collector<O, L>,
    stop: impl Future<Output = ()>,
    mut hear: impl FnMut(News<'_>),
) -> Result<(), TooShort> {
    let least = 2 * (REPAIR_TIME + Duration::from_secs(1));
    if election.duration < least {
        return Err(TooShort { duration: election.duration, least });
    }
    let mut stop = std::pin::pin!(stop);
    let identity = format!("{}_{:016x}", election.identity, fastrand::u64(..));
    loop {
        let candidate = tokio::select! {
            () = &mut stop => return Ok(()),
            candidate = Candidate::new(client.clone(), election.clone(), identity.clone()).boxed() => candidate,
        };
        let candidate = match candidate {
            Ok(candidate) => candidate,
            Err(error) => {
                tracing::warn!(%error, lease = election.lease, "cannot take part in the election of a collector");
                tokio::select! {
                    () = &mut stop => return Ok(()),
                    () = sleep(RETRY) => continue,
                }
            }
        };
        let stopped = candidate.serve(election, collector, stop.as_mut(), &mut hear).await;
        candidate.resign().await;
        if stopped {
            return Ok(());
        }
    }
}

/// A process in the election.
struct Candidate {
    /// What the elector believes.
    elected: watch::Receiver<bool>,
    elector: JoinHandle<Result<LeaseManager, LeaseManagerError>>,
    mandate: Arc<Held>,
}

/// Leave to act by a Lease that is read each time.
struct Held {
    leases: Api<Lease>,
    lease: String,
    identity: String,
    stopping: AtomicBool,
}

// === impl Candidate ===

impl Candidate {
    async fn new(client: Client, election: Election, identity: String) -> Result<Self, LeaseManagerError> {
        let duration = election.duration.as_secs();
        let manager = LeaseManagerBuilder::new(client.clone(), election.lease.clone())
            .with_namespace(election.namespace.clone())
            .with_identity(identity.clone())
            .with_duration(duration)
            .with_grace(duration / 2)
            .build()
            .await?;
        let (elected, elector) = manager.watch().await;
        let leases = Api::namespaced(client, &election.namespace);
        let mandate = Arc::new(Held { leases, lease: election.lease, identity, stopping: AtomicBool::new(false) });
        Ok(Self { elected, elector, mandate })
    }

    /// Runs rounds while elected; true once `stop` says so, false if the elector has ended.
    async fn serve<O: Objects, L: Ledger>(
        &self,
        election: &Election,
        collector: &mut Collector<O, L>,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
        hear: &mut impl FnMut(News<'_>),
    ) -> bool {
        let mut elected = self.elected.clone();
        let (mut leading, mut noted) = (false, Standing::new());
        let mut rounds = interval(election.interval);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stopped = loop {
            tokio::select! {
                () = stop.as_mut() => break true,
                changed = elected.changed() => {
                    if changed.is_err() {
                        break false;
                    }
                    let now = *elected.borrow_and_update();
                    if now != leading {
                        leading = now;
                        tracing::info!(leading, identity = self.mandate.identity, "election of a collector");
                        // Others may have worked meanwhile: what was seen before proves nothing.
                        collector.forget();
                        if leading {
                            noted = self.mandate.noted().await;
                            collector.recall(noted.clone());
                        }
                        hear(if leading { News::Leading(self.mandate.clone()) } else { News::Following });
                        rounds.reset_immediately();
                    }
                    continue;
                }
                _ = rounds.tick(), if leading => {}
            }
            if !self.mandate.holds().await {
                continue;
            }
            let mut round = collector.round(self.mandate.as_ref());
            let report = tokio::select! {
                report = &mut round => report,
                () = stop.as_mut() => {
                    self.mandate.stopping.store(true, Ordering::Release);
                    let report = round.await;
                    hear(News::Round(&report));
                    break true;
                }
            };
            drop(round);
            match &report {
                Ok(report) => {
                    let standing = collector.standing();
                    if standing != noted && self.mandate.note(&standing).await {
                        noted = standing;
                    }
                    let rest = LONGEST_REST.min(SPARED * report.read_in);
                    if rest > election.interval {
                        rounds.reset_after(rest);
                    }
                }
                Err(error) => tracing::warn!(%error, "a round of the collector"),
            }
            hear(News::Round(&report));
        };
        if leading {
            hear(News::Following);
        }
        stopped
    }

    /// Gives the lease up, so that another need not wait until it runs out.
    async fn resign(self) {
        let Self { elected, elector, .. } = self;
        drop(elected);
        match timeout(CALL_TIMEOUT, elector).await {
            Ok(Ok(Ok(_))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the collector's lease was not released and runs out"),
            Ok(Err(error)) => tracing::warn!(%error, "the collector's elector broke off"),
            Err(_) => tracing::warn!("the collector's lease was not released in time and runs out"),
        }
    }
}

// === impl Held ===

impl Held {
    /// What the last leader recorded of long graces; nothing, if that cannot be read.
    async fn noted(&self) -> Standing {
        let lease = timeout(CALL_TIMEOUT, self.leases.get(&self.lease)).await;
        let text = lease.ok().and_then(Result::ok).and_then(|lease| lease.metadata.annotations?.remove(STANDING));
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// Records it for the next one.
    async fn note(&self, standing: &Standing) -> bool {
        let patch = json!({"metadata": {"annotations": {STANDING: json!(standing).to_string()}}});
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        match timeout(CALL_TIMEOUT, self.leases.patch(&self.lease, &parameters, &patch)).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "graces under way are not recorded: another leader begins them again");
                false
            }
            Err(_) => false,
        }
    }
}

impl Mandate for Held {
    fn holds(&self) -> BoxFuture<'_, bool> {
        async {
            if self.stopping.load(Ordering::Acquire) {
                return false;
            }
            match timeout(CALL_TIMEOUT, self.leases.get(&self.lease)).await {
                Ok(Ok(lease)) => lease.spec.is_some_and(|spec| {
                    spec.holder_identity.as_ref() == Some(&self.identity) && lasts(&spec, Timestamp::now(), REPAIR_TIME)
                }),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the collector's lease cannot be read");
                    false
                }
                Err(_) => false,
            }
        }
        .boxed()
    }
}

/// Whether a lease lasts for `span` from `now` on if nobody renews it.
fn lasts(spec: &LeaseSpec, now: Timestamp, span: Duration) -> bool {
    let (Some(renewed), Some(seconds)) = (&spec.renew_time, spec.lease_duration_seconds) else { return false };
    let left = SignedDuration::from_secs(seconds.into()) - now.duration_since(renewed.0);
    left >= SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}

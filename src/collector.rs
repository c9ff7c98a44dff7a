//! Looks after the whole cluster: finishes what crashes left half done, frees what nobody uses any more.
//!
//! One pass ([`Collector::round`]) reads everything, decides, and repairs. Every repair is decided three
//! times by the same pure function: from the lists of a round, again from those of a later round, and last
//! from live reads of the few objects it is about. Only what that last decision says is written, under the
//! precondition of what was read for it. So an empty or stale list alone removes nothing, and an ADD that
//! lands between any two steps makes the repair moot.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | [`repair`] | what is repaired and reported |
//! | `census` | what a round knows of the cluster |
//! | `decide` | pure: from a snapshot to what ought to be repaired |
//! | `sightings` | since when something has been as it is |
//! | `execute` | the confirming reads, and the writes through the driver |
//! | `notice` | what is only said, as nobody can repair it |
//! | [`lead`](mod@lead) | one collector in the cluster at a time, by a Lease |

mod census;
mod decide;
mod execute;
pub mod lead;
mod mandate;
mod notice;
pub mod repair;
mod sightings;

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::time::Instant;

pub use self::execute::REPAIR_TIME;
pub use self::lead::{Election, News, lead};
pub use self::mandate::{Always, Mandate};
pub use self::notice::{Filling, Notice, Unkept};
pub use self::repair::{Claims, Failed, Kind, PodName, Repair, Report};
pub use self::sightings::Standing;

use self::census::Census;
use self::decide::{Rules, Scene};
use self::notice::Told;
use self::sightings::Sightings;
use crate::claim::LONGEST_ADD;
use crate::driver::{Driver, reserved_addresses};
use crate::netconf::NetConf;
use crate::range::Usage;
use crate::store::{Ledger, Objects, StoreError};

/// How long things must have been as they are before they are touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A claim whose owner does not exist and which nobody holds, from when that was noted in the claim.
    pub owner_grace: Duration,
    /// An allocation whose pod is gone while its node exists: that node's runtime may still call DEL.
    pub allocation_grace: Duration,
    /// An affinity on its way in or out while its node exists: that node may be at work on it.
    pub half_done_grace: Duration,
    /// Anything else: the least time between two sightings of it.
    pub settle: Duration,
}

/// The collector of one network.
pub struct Collector<O, L> {
    driver: Driver<O, L>,
    rules: Rules,
    sightings: Sightings,
    told: Told,
}

/// Why a round could not even look.
#[derive(Debug, thiserror::Error)]
#[error("nothing was repaired, as the cluster could not be read or must not be written: {}", list(.unread))]
pub struct Unread {
    /// Every read that failed, or what says that Calico's datastore is locked.
    pub unread: Vec<StoreError>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            owner_grace: Duration::from_secs(600),
            allocation_grace: Duration::from_secs(900),
            half_done_grace: Duration::from_secs(300),
            settle: Duration::from_secs(10),
        }
    }
}

// === impl Collector ===

impl<O: Objects, L: Ledger> Collector<O, L> {
    /// A collector for the network of `net`, whose takeover policy holds here too.
    pub fn new(driver: Driver<O, L>, net: &NetConf, options: Options) -> Self {
        let rules = Rules {
            network: net.network.clone(),
            policy: net.ipam.takeover,
            ledger: driver.ledger().map(Ledger::name),
            ipam: net.ipam.clone(),
            options,
        };
        Self { driver, rules, sightings: Sightings::default(), told: Told::default() }
    }

    /// Forgets what was seen so far: for a leader whose term ended, as others may have worked meanwhile.
    pub fn forget(&mut self) {
        self.sightings = Sightings::default();
    }

    /// What has been so for a while, and waits for the end of a long grace: for the next leader.
    pub fn standing(&self) -> Standing {
        self.sightings.standing(Instant::now())
    }

    /// Goes on with the graces of an earlier leader. Nothing is due that this collector does not see twice itself.
    pub fn recall(&mut self, standing: Standing) {
        self.sightings.recall(standing, Instant::now(), self.driver.now());
    }

    /// One pass: reads everything, and repairs what has been so for long enough. No repair is begun without
    /// `mandate`.
    ///
    /// # Errors
    /// A list that everything depends on could not be read: nothing was done, and nothing was forgotten.
    pub fn round<'a>(&'a mut self, mandate: &'a dyn Mandate) -> BoxFuture<'a, Result<Report, Unread>> {
        // Boxed here, where every store is seen to be Send: past this point the compiler asks each one anew,
        // and for futures that borrow it does not get an answer.
        self.pass(mandate).boxed()
    }

    async fn pass(&mut self, mandate: &dyn Mandate) -> Result<Report, Unread> {
        // While Calico's datastore is locked nothing can be repaired, and what is read is about to change.
        if let Err(locked) = self.driver.may_write().await {
            return Err(Unread { unread: vec![locked] });
        }
        let begun = self.driver.now();
        let reading = Instant::now();
        let (census, unread) = census::read(self.driver.objects(), self.driver.ledger()).await;
        let Some(census) = census else { return Err(Unread { unread }) };
        let findings = self.findings(&census, begun);
        let due = self.sightings.note(&findings, Instant::now(), begun);
        let read_in = reading.elapsed();
        let claims = census.claims.as_deref().map(Claims::of);
        let notices = self.told.news(census.pods.notices());
        let filling = self.told.filling(self.filling(&census), Instant::now());
        let mut report = Report { unread, claims, read_in, notices, filling, ..Report::default() };
        for (finding, due) in findings.iter().zip(due) {
            if !due || !finding.is_ripe(begun) {
                *report.waiting.entry(finding.repair.kind).or_default() += 1;
                continue;
            }
            if !mandate.holds().await {
                tracing::info!("the collector stops: it may not begin another repair");
                report.interrupted = true;
                break;
            }
            if self.driver.may_write().await.is_err_and(|error| error.is_locked()) {
                tracing::info!("the collector stops: Calico's datastore is locked");
                report.interrupted = true;
                break;
            }
            self.execute(finding, &census, &mut report).await;
        }
        Ok(report)
    }

    /// The ranges in which few addresses are left, each with the pool that it begins in.
    fn filling(&self, census: &Census) -> Vec<Filling> {
        let reserved = || census.reservations.iter().flat_map(reserved_addresses);
        let used = || census.blocks.all(&census.pods).map(|used| used.address);
        let usages = self.rules.ipam.range_sets().map(|ranges| Usage::of(ranges, used(), reserved()));
        usages
            .filter(Usage::is_nearly_full)
            .filter_map(|usage| Some(Filling { pool: calico::covering(&census.pools, usage.first)?.name_any(), usage }))
            .collect()
    }

    /// `begun`: when the first of it was read. What was not there may have come since.
    fn findings(&self, census: &Census, begun: Timestamp) -> Vec<decide::Finding> {
        decide::findings(&Scene { census, rules: &self.rules, now: begun })
    }
}

// === impl Options ===

impl Options {
    /// For things that an ADD under way shows too, though only while it lasts.
    fn longest_add(&self) -> Duration {
        self.settle.max(2 * LONGEST_ADD.unsigned_abs())
    }
}

fn list(errors: &[StoreError]) -> String {
    errors.iter().map(StoreError::to_string).collect::<Vec<_>>().join("; ")
}

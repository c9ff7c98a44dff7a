//! What is counted: the registry, and every name and label in it.
//!
//! No label has values without bound: verbs, results, kinds and states are fixed, pools are as many as the
//! cluster has. Pods and addresses are in the log and in Events.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::status::Status;
use crate::cni::{CniError, code};
use crate::collector::{Claims, Kind, News};
use crate::handover::Outcome;
use crate::service::How;

/// Verb of a call whose verb could not be read.
pub(super) const INVALID: &str = "invalid";

/// Bounds in seconds: from an answer out of memory to an ADD that waits for a holder.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0];

type Counters<L> = Family<L, Counter>;
type Gauges<L> = Family<L, Gauge>;
type Seconds<L> = Family<L, Gauge<f64, AtomicU64>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    verb: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHow {
    how: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolState {
    pool: String,
    state: &'static str,
}

/// Why a call was left to the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decline {
    /// The request is of a newer protocol, or none.
    Protocol,
    /// The agent stops.
    Stopping,
    /// The configuration names another node.
    Node,
    /// The configuration names another API group.
    Group,
    /// Too much is under way.
    Busy,
}

/// What became of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Posted {
    /// The API server has it.
    Sent,
    /// The API server did not take it.
    Failed,
    /// Too many waited.
    Dropped,
}

/// What became of an attempt to put an address on record ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Early {
    /// It is on record.
    Taken,
    /// It was not possible; ADD decides.
    Failed,
    /// It was given back, as no sandbox took it on.
    GivenBack,
}

/// All metrics of an agent.
pub(super) struct Metrics {
    registry: Registry,
    /// Held while the gauges are set and read, so that no scrape sees half of another's.
    scrape: Mutex<()>,
    requests: Family<Call, Histogram, fn() -> Histogram>,
    adds: Counters<OfHow>,
    declined: Counters<OfReason>,
    conflicts: Counters<OfKind>,
    retries: Counters<OfKind>,
    watch_restarts: Counters<OfKind>,
    early: Counters<OfResult>,
    events: Counters<OfResult>,
    repairs: Counters<OfKind>,
    failed_repairs: Counters<OfKind>,
    rounds: Counters<OfResult>,
    handovers: Counters<OfResult>,
    waiting_repairs: Gauges<OfKind>,
    leader: Gauge,
    claims: Gauges<OfState>,
    addresses: Gauges<PoolState>,
    blocks: Gauges<OfPool>,
    cache_synced: Gauges<OfKind>,
    cache_objects: Gauges<OfKind>,
    cache_age: Seconds<OfKind>,
    mended_claims: Counter,
    failed_releases: Counter,
    pending_releases: Gauge,
    pending_handles: Gauge,
    under_way: Gauge,
    queued_events: Gauge,
    ahead_pods: Gauge,
    ahead_waiting: Gauge,
    files: Counter,
    uptime: Gauge,
    resident: Gauge,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            scrape: Mutex::default(),
            requests: Family::new_with_constructor(histogram),
            adds: Family::default(),
            declined: Family::default(),
            conflicts: Family::default(),
            retries: Family::default(),
            watch_restarts: Family::default(),
            early: Family::default(),
            events: Family::default(),
            repairs: Family::default(),
            failed_repairs: Family::default(),
            rounds: Family::default(),
            handovers: Family::default(),
            waiting_repairs: Family::default(),
            leader: Gauge::default(),
            claims: Family::default(),
            addresses: Family::default(),
            blocks: Family::default(),
            cache_synced: Family::default(),
            cache_objects: Family::default(),
            cache_age: Family::default(),
            mended_claims: Counter::default(),
            failed_releases: Counter::default(),
            pending_releases: Gauge::default(),
            pending_handles: Gauge::default(),
            under_way: Gauge::default(),
            queued_events: Gauge::default(),
            ahead_pods: Gauge::default(),
            ahead_waiting: Gauge::default(),
            files: Counter::default(),
            uptime: Gauge::default(),
            resident: Gauge::default(),
        };
        metrics.register();
        metrics.start_at_zero();
        metrics
    }
}

// === impl Metrics ===

impl Metrics {
    fn register(&mut self) {
        let Self { registry: r, .. } = self;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("kube_ipam_build", "Release of this agent", build);
        r.register_with_unit(
            "kube_ipam_request_duration",
            "Time from a CNI call to its answer",
            Unit::Seconds,
            self.requests.clone(),
        );
        r.register("kube_ipam_adds", "Answered ADDs by how the address was found", self.adds.clone());
        r.register("kube_ipam_declined_requests", "Calls left to the plugin's direct mode", self.declined.clone());
        r.register("kube_ipam_write_conflicts", "Writes that met another writer's", self.conflicts.clone());
        r.register("kube_ipam_write_retries", "Further attempts at reads and writes", self.retries.clone());
        r.register(
            "kube_ipam_claims_mended",
            "Claims that contradicted their block's entry and were rewritten from it by an ADD",
            self.mended_claims.clone(),
        );
        r.register("kube_ipam_watch_restarts", "Watches that broke off and began anew", self.watch_restarts.clone());
        r.register("kube_ipam_ahead", "Attempts to put addresses on record before ADD", self.early.clone());
        r.register("kube_ipam_events", "Events by what became of them", self.events.clone());
        r.register("kube_ipam_collector_repairs", "What this agent's collector repaired", self.repairs.clone());
        r.register(
            "kube_ipam_collector_failed_repairs",
            "What this agent's collector could not repair yet",
            self.failed_repairs.clone(),
        );
        r.register("kube_ipam_collector_rounds", "Rounds of this agent's collector", self.rounds.clone());
        r.register(
            "kube_ipam_collector_waiting_repairs",
            "What has not been wrong for long enough yet; the leader tells",
            self.waiting_repairs.clone(),
        );
        r.register(
            "kube_ipam_handovers",
            "Addresses that updates of workloads handed over, by what this agent did for it",
            self.handovers.clone(),
        );
        r.register("kube_ipam_collector_leader", "1 while this agent leads the collectors", self.leader.clone());
        r.register("kube_ipam_claims", "Claims on fixed addresses by state; the leader tells", self.claims.clone());
        r.register("kube_ipam_block_addresses", "Addresses of this node's blocks by state", self.addresses.clone());
        r.register("kube_ipam_blocks", "This node's blocks", self.blocks.clone());
        r.register("kube_ipam_cache_synced", "1 once the kind was listed", self.cache_synced.clone());
        r.register("kube_ipam_cache_objects", "Objects remembered", self.cache_objects.clone());
        r.register_with_unit(
            "kube_ipam_cache_age",
            "Time since anything was heard of the kind: long where nothing changes",
            Unit::Seconds,
            self.cache_age.clone(),
        );
        let failed = "Attempts to put a release on record that was answered already, in vain";
        r.register("kube_ipam_failed_releases", failed, self.failed_releases.clone());
        let pending = "Releases that were answered and are not on record yet";
        r.register("kube_ipam_pending_releases", pending, self.pending_releases.clone());
        r.register("kube_ipam_pending_handles", "Handles still to be deleted", self.pending_handles.clone());
        r.register("kube_ipam_tasks", "Calls and other work under way", self.under_way.clone());
        r.register("kube_ipam_queued_events", "Events still to be sent", self.queued_events.clone());
        r.register("kube_ipam_ahead_pods", "Pods of this node that the agent keeps in mind", self.ahead_pods.clone());
        r.register(
            "kube_ipam_ahead_waiting_pods",
            "Pods whose addresses are on record and whose ADD has not come",
            self.ahead_waiting.clone(),
        );
        r.register("kube_ipam_node_files_written", "Files of the node that were put right", self.files.clone());
        r.register_with_unit("kube_ipam_uptime", "Time since the start", Unit::Seconds, self.uptime.clone());
        r.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, self.resident.clone());
    }

    /// A rate needs a beginning: what is known to be counted is there before it happens.
    fn start_at_zero(&self) {
        for verb in ["ADD", "DEL"] {
            for result in ["ok", "again", "refused"] {
                drop(self.requests.get_or_create(&Call { verb, result }));
            }
        }
        How::ALL.iter().for_each(|how| drop(self.adds.get_or_create(&OfHow { how: how.label() })));
        for decline in [Decline::Protocol, Decline::Stopping, Decline::Node, Decline::Group, Decline::Busy] {
            drop(self.declined.get_or_create(&OfReason { reason: decline.label() }));
        }
        for posted in [Posted::Sent, Posted::Failed, Posted::Dropped] {
            drop(self.events.get_or_create(&OfResult { result: posted.label() }));
        }
        for early in [Early::Taken, Early::Failed, Early::GivenBack] {
            drop(self.early.get_or_create(&OfResult { result: early.label() }));
        }
        for result in ["evicted", "kept", "blocked"] {
            drop(self.handovers.get_or_create(&OfResult { result }));
        }
        for kind in Kind::ALL {
            drop(self.repairs.get_or_create(&of_kind(kind.label())));
            drop(self.failed_repairs.get_or_create(&of_kind(kind.label())));
        }
    }

    /// A call was answered.
    pub(super) fn answered(&self, verb: &'static str, error: Option<&CniError>, took: Duration) {
        self.requests.get_or_create(&Call { verb, result: result(error) }).observe(took.as_secs_f64());
    }

    /// An ADD was answered with addresses.
    pub(super) fn given(&self, how: How) {
        self.adds.get_or_create(&OfHow { how: how.label() }).inc();
    }

    /// How many ADDs were answered that way.
    pub(super) fn adds(&self, how: How) -> u64 {
        self.adds.get_or_create(&OfHow { how: how.label() }).get()
    }

    /// A release that was answered already failed.
    pub(super) fn not_released(&self) {
        self.failed_releases.inc();
    }

    pub(super) fn declined(&self, why: Decline) {
        self.declined.get_or_create(&OfReason { reason: why.label() }).inc();
    }

    pub(super) fn conflict(&self, kind: &str) {
        self.conflicts.get_or_create(&of_kind(kind)).inc();
    }

    pub(super) fn mended(&self) {
        self.mended_claims.inc();
    }

    pub(super) fn retry(&self, kind: &str) {
        self.retries.get_or_create(&of_kind(kind)).inc();
    }

    pub(super) fn watch_restart(&self, kind: &str) {
        self.watch_restarts.get_or_create(&of_kind(kind)).inc();
    }

    /// A file of the node was not what it should be, and is now.
    pub(super) fn file_written(&self) {
        self.files.inc();
    }

    /// What came of a handover, as the elected agent.
    pub(super) fn handed_over(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Evicted => "evicted",
            Outcome::Kept => "kept",
            Outcome::Blocked(_) => "blocked",
            Outcome::Changed => return,
        };
        self.handovers.get_or_create(&OfResult { result }).inc();
    }

    pub(super) fn early(&self, what: Early) {
        self.early.get_or_create(&OfResult { result: what.label() }).inc();
    }

    pub(super) fn posted(&self, what: Posted) {
        self.events.get_or_create(&OfResult { result: what.label() }).inc();
    }

    /// Whether this agent leads the collectors.
    pub(super) fn leads(&self) -> bool {
        self.leader.get() == 1
    }

    /// What the collector tells. What only the leader knows is not said by anyone else.
    pub(super) fn collector(&self, news: &News<'_>) {
        let report = match news {
            News::Leading(_) => {
                self.leader.set(1);
                return;
            }
            News::Following => {
                self.leader.set(0);
                self.claims.clear();
                return self.waiting_repairs.clear();
            }
            News::Round(Err(_)) => {
                self.rounds.get_or_create(&OfResult { result: "unread" }).inc();
                return;
            }
            News::Round(Ok(report)) => report,
        };
        let result = if report.interrupted { "interrupted" } else { "done" };
        self.rounds.get_or_create(&OfResult { result }).inc();
        for (kind, count) in report.counts() {
            self.repairs.get_or_create(&of_kind(kind.label())).inc_by(count as u64);
        }
        for failed in &report.failed {
            self.failed_repairs.get_or_create(&of_kind(failed.repair.kind.label())).inc();
        }
        for kind in Kind::ALL {
            let waiting = report.waiting.get(&kind).copied().unwrap_or_default();
            self.waiting_repairs.get_or_create(&of_kind(kind.label())).set(number(waiting));
        }
        if let Some(Claims { held, contested, idle }) = report.claims {
            for (state, count) in [("held", held), ("contested", contested), ("idle", idle)] {
                self.claims.get_or_create(&OfState { state }).set(number(count));
            }
        }
    }

    /// Everything, in the text format of OpenMetrics.
    pub(super) fn text(&self, status: &Status) -> String {
        let _turn = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.look(status);
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn look(&self, status: &Status) {
        self.addresses.clear();
        self.blocks.clear();
        for pool in &status.pools {
            let name = || pool.pool.clone();
            self.blocks.get_or_create(&OfPool { pool: name() }).set(number(pool.blocks));
            for (state, count) in
                [("used", pool.used), ("free", pool.free), ("reserved", pool.reserved), ("cooling", pool.cooling)]
            {
                self.addresses.get_or_create(&PoolState { pool: name(), state }).set(number(count));
            }
        }
        for cache in &status.caches {
            let kind = of_kind(&cache.kind);
            self.cache_synced.get_or_create(&kind).set(cache.synced.into());
            self.cache_objects.get_or_create(&kind).set(number(cache.objects));
            if let Some(age) = cache.age_seconds {
                self.cache_age.get_or_create(&kind).set(age);
            }
        }
        self.pending_releases.set(number(status.queues.pending_releases));
        self.pending_handles.set(number(status.queues.pending_handles));
        self.under_way.set(number(status.queues.tasks));
        self.queued_events.set(number(status.queues.events));
        self.ahead_pods.set(number(status.ahead.pods));
        self.ahead_waiting.set(number(status.ahead.waiting));
        self.uptime.set(i64::try_from(status.uptime_seconds).unwrap_or(i64::MAX));
        self.resident.set(number(status.resident_bytes));
    }
}

fn of_kind(kind: &str) -> OfKind {
    OfKind { kind: kind.to_owned() }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// `again` is what the runtime tries again by itself; `refused` wants somebody to do something.
fn result(error: Option<&CniError>) -> &'static str {
    match error {
        None => "ok",
        Some(error) if error.code == code::TRY_AGAIN => "again",
        Some(_) => "refused",
    }
}

impl Decline {
    fn label(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Stopping => "stopping",
            Self::Node => "node",
            Self::Group => "group",
            Self::Busy => "busy",
        }
    }
}

impl Posted {
    fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

impl Early {
    fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Failed => "failed",
            Self::GivenBack => "given_back",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::{CacheStatus, PoolStatus};
    use super::*;
    use crate::collector::Report;

    fn lines(metrics: &Metrics, status: &Status) -> Vec<String> {
        metrics.text(status).lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_was_counted_stands_in_the_text_under_its_name() {
        let metrics = Metrics::default();
        let error = |code| CniError::new(code, "no", "");
        metrics.answered("ADD", None, Duration::from_millis(2));
        metrics.answered("ADD", Some(&error(code::TRY_AGAIN)), Duration::from_secs(3));
        metrics.answered(INVALID, Some(&error(code::INVALID_CONFIG)), Duration::ZERO);
        metrics.given(How::Ahead);
        metrics.conflict("ipamblocks");
        let text = lines(&metrics, &Status::default());
        for wanted in [
            r#"kube_ipam_request_duration_seconds_count{verb="ADD",result="ok"} 1"#,
            r#"kube_ipam_request_duration_seconds_bucket{le="0.0025",verb="ADD",result="ok"} 1"#,
            r#"kube_ipam_request_duration_seconds_count{verb="ADD",result="again"} 1"#,
            r#"kube_ipam_request_duration_seconds_count{verb="invalid",result="refused"} 1"#,
            r#"kube_ipam_request_duration_seconds_count{verb="DEL",result="ok"} 0"#,
            r#"kube_ipam_adds_total{how="ahead"} 1"#,
            r#"kube_ipam_adds_total{how="decision"} 0"#,
            r#"kube_ipam_write_conflicts_total{kind="ipamblocks"} 1"#,
            r#"kube_ipam_collector_repairs_total{kind="holder_cleared"} 0"#,
            "kube_ipam_collector_leader 0",
            concat!("kube_ipam_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.iter().any(|line| line == wanted), "{wanted} is not in\n{}", text.join("\n"));
        }
    }

    #[test]
    fn a_pool_without_blocks_is_not_shown_any_more() {
        let (metrics, mut status) = (Metrics::default(), Status::default());
        status.pools = vec![PoolStatus { pool: "a".into(), blocks: 1, used: 3, free: 61, ..Default::default() }];
        status.caches = vec![CacheStatus { kind: "pods".into(), synced: true, objects: 3, age_seconds: Some(0.5) }];
        let text = lines(&metrics, &status).join("\n");
        assert!(text.contains(r#"kube_ipam_block_addresses{pool="a",state="used"} 3"#), "{text}");
        assert!(text.contains(r#"kube_ipam_cache_age_seconds{kind="pods"} 0.5"#), "{text}");
        status.pools.clear();
        assert!(!lines(&metrics, &status).join("\n").contains(r#"pool="a""#));
    }

    #[test]
    fn what_only_a_leader_knows_is_not_said_by_one_that_lost_the_lead() {
        let metrics = Metrics::default();
        metrics.collector(&News::Leading(std::sync::Arc::new(crate::collector::Always)));
        let claims = Some(Claims { held: 2, contested: 0, idle: 1 });
        let report = Ok(Report { claims, waiting: [(Kind::ClaimDropped, 4)].into(), ..Report::default() });
        metrics.collector(&News::Round(&report));
        let text = lines(&metrics, &Status::default()).join("\n");
        assert!(metrics.leads() && text.contains(r#"kube_ipam_claims{state="held"} 2"#), "{text}");
        assert!(text.contains(r#"kube_ipam_collector_waiting_repairs{kind="claim_dropped"} 4"#), "{text}");
        metrics.collector(&News::Following);
        let text = lines(&metrics, &Status::default()).join("\n");
        assert!(!metrics.leads() && !text.contains("state=\"held\""), "{text}");
        assert!(text.contains(r#"kube_ipam_collector_rounds_total{result="done"} 1"#), "{text}");
    }
}

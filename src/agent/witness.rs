//! What the agent shows of its calls: counters, Events, and the last errors.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::events::Events;
use super::metrics::Metrics;
use super::trouble::{Trouble, Troubles};
use crate::claim::Claim;
use crate::cni::{CniError, Invocation, Verb, code};
use crate::collector::News;
use crate::driver::{Attachment, Blocked, Observer, PodRef};
use crate::handover::Told;
use crate::service::{Served, log_answer, pod_of};

/// Hears of everything that is worth showing.
pub(super) struct Witness {
    pub(super) node: String,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Events,
    pub(super) troubles: Troubles,
}

// === impl Witness ===

impl Witness {
    /// A call is over. Nobody wants an Event of one that the runtime has given up.
    pub(super) fn answered(&self, call: &Invocation, result: Result<&Served, &CniError>, took: Duration, gone: bool) {
        log_answer(call, result, took);
        self.metrics.answered(call.verb.name(), result.err(), took);
        let pod = pod_of(&call.args);
        match result {
            Ok(served) => {
                let Some(given) = &served.given else { return };
                self.metrics.given(given.how);
                if let Some(pod) = pod.filter(|_| !gone) {
                    self.events.given(pod, given);
                }
            }
            Err(error) => {
                self.refused(call.verb.name(), pod, error);
                if let Some(pod) = pod.filter(|_| call.verb == Verb::Add && !gone) {
                    self.events.refused(pod, error.to_string());
                }
                if error.code == code::EXHAUSTED {
                    self.events.exhausted(&self.node, error.to_string());
                }
            }
        }
    }

    /// A call was refused before anybody looked at what it wants.
    pub(super) fn unread(&self, verb: &'static str, error: &CniError, took: Duration) {
        self.metrics.answered(verb, Some(error), took);
        self.refused(verb, None, error);
    }

    /// A DEL that was answered could not be carried out yet.
    pub(super) fn not_released(&self, call: &Invocation, error: &CniError) {
        self.metrics.not_released();
        self.refused(call.verb.name(), pod_of(&call.args), error);
    }

    fn refused(&self, verb: &str, pod: Option<PodRef<'_>>, error: &CniError) {
        self.troubles.add(Trouble {
            time: Timestamp::now(),
            count: 1,
            verb: verb.to_owned(),
            pod: pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            code: error.code,
            message: error.to_string(),
        });
    }

    /// The elected agent tells of a pod that waits for the address of another one.
    pub(super) fn handover(&self, told: &Told<'_>) {
        match told {
            Told::Decided(case) => {
                tracing::debug!(pod = ?case.pod, decision = ?case.decision, "no handover");
                self.events.not_handed_over(case);
            }
            Told::Done(case, outcome) => {
                let pod = &case.pod;
                tracing::info!(namespace = pod.namespace, pod = pod.name, ?outcome, decision = ?case.decision, "handover");
                self.metrics.handed_over(outcome);
                self.events.handed_over(case, outcome);
            }
            Told::Failed(error) => tracing::warn!(%error, "a handover is tried again"),
        }
    }

    /// The collector tells.
    pub(super) fn collector(&self, news: &News<'_>) {
        self.metrics.collector(news);
        if let News::Round(Ok(report)) = news {
            report.repairs.iter().for_each(|repair| self.events.repaired(repair));
            report.notices.iter().for_each(|notice| self.events.unkept(notice));
            report.filling.iter().for_each(|filling| self.events.filling(filling));
        }
    }
}

impl Observer for Witness {
    fn conflict(&self, kind: &str) {
        self.metrics.conflict(kind);
    }

    fn retry(&self, kind: &str) {
        self.metrics.retry(kind);
    }

    fn waiting(&self, attachment: &Attachment<'_>, blocked: &[Blocked]) {
        let reasons: Vec<String> = blocked.iter().map(Blocked::reason).collect();
        let reasons = reasons.join("; ");
        let pod = attachment.pod.map(|pod| pod.name);
        tracing::info!(pod, container = attachment.container_id, reasons, "waits for a holder");
        if let Some(pod) = attachment.pod {
            self.events.waiting(pod, &reasons);
        }
    }

    fn taken_over(&self, attachment: &Attachment<'_>, before: &Claim) {
        let note = taken_over_note(before);
        let pod = attachment.pod.map(|pod| pod.name);
        tracing::info!(pod, container = attachment.container_id, note, "took a claim over");
        if let Some(pod) = attachment.pod {
            self.events.taken_over(pod, note);
        }
    }

    fn mended(&self, before: Option<&Claim>, after: &Claim) {
        self.metrics.mended();
        let note = mended_note(before, after);
        tracing::warn!(address = %after.address, note, "rewrote a claim from its block");
        if let Some(holder) = &after.holder {
            let uid = (!holder.pod_uid.is_empty()).then_some(holder.pod_uid.as_str());
            self.events.mended(PodRef { namespace: &after.owner.namespace, name: &holder.pod, uid }, note);
        }
    }
}

/// What a claim said, and who has the address by the block.
fn mended_note(before: Option<&Claim>, after: &Claim) -> String {
    let holder = |claim: &Claim| claim.holder.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
    let said = match before {
        Some(before) => format!("said that {} held it", holder(before)),
        None => "was missing".to_owned(),
    };
    format!(
        "the claim on {} {said}; by Calico's block {} has it, and the claim says so again",
        after.address,
        holder(after)
    )
}

/// From whom an address was taken over: from a pod of the same owner, or from an owner that is gone.
fn taken_over_note(before: &Claim) -> String {
    let (address, owner) = (before.address, &before.owner);
    match &before.holder {
        Some(holder) => format!("{address} taken over from {holder}, which {owner} had before"),
        None => format!("{address} taken over from {owner}, which does not exist any more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_takeover_names_the_holder_and_its_node_or_the_owner_that_is_gone() {
        let claim: Claim = serde_json::from_value(json!({
            "address": "10.244.0.216", "created": "2026-11-24T02:01:28Z", "generation": 1,
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
            "holder": {
                "podUid": "u", "pod": "web-1", "containerId": "c", "interface": "eth0", "node": "n1",
                "since": "2026-11-24T02:01:28Z",
            },
        }))
        .unwrap();
        assert_eq!(
            taken_over_note(&claim),
            "10.244.0.216 taken over from pod web-1 on node n1 since 2026-11-24T02:01:28Z, which Deployment \
             default/web had before"
        );
        let free = Claim { holder: None, ..claim.clone() };
        assert_eq!(
            taken_over_note(&free),
            "10.244.0.216 taken over from Deployment default/web, which does not exist any more"
        );
        let since = "2026-11-24T02:01:28Z";
        let after = mended_note(None, &claim);
        assert_eq!(
            after,
            format!(
                "the claim on 10.244.0.216 was missing; by Calico's block pod web-1 on node n1 since {since} has it, and the \
                 claim says so again"
            )
        );
        assert!(mended_note(Some(&free), &claim).contains("said that nobody held it; by Calico's block pod web-1"));
    }
}

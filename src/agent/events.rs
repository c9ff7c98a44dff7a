//! Events on pods, nodes and pools. They go through a bounded queue, so that nothing that waits for an answer
//! waits for them; what does not fit is dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use calico::IPPool;
use clap::ValueEnum;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics::{Metrics, Posted};
use crate::collector::{Filling, Notice, PodName, Repair, Unkept};
use crate::driver::PodRef;
use crate::handover::{Case, Decision, Holder, Lineage, Outcome, Refusal, Waiting};
use crate::range::WIDEN;
use crate::service::Given;

/// Most Events that wait to be sent.
const QUEUE: usize = 256;
/// Longest wait for the API server to take one.
const SEND_TIME: Duration = Duration::from_secs(5);
/// Longest note that the API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// Longest action, in bytes.
const LONGEST_ACTION: usize = 128;
/// Who reports.
const CONTROLLER: &str = "kube-ipam";

/// Which Events are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Level {
    /// All, also one for every random address.
    All,
    /// Fixed addresses, waits, refusals, takeovers, repairs, a range that is used up or nearly.
    #[default]
    Notable,
    /// None.
    None,
}

/// An Event and what it is about.
pub(super) struct Letter {
    about: ObjectReference,
    event: Event,
}

/// Takes Events in.
pub(super) struct Events {
    level: Level,
    queue: Sender<Letter>,
    metrics: Arc<Metrics>,
}

// === impl Events ===

impl Events {
    /// The queue, and its end for [`post`].
    pub(super) fn new(level: Level, metrics: Arc<Metrics>) -> (Self, Receiver<Letter>) {
        let (queue, letters) = channel(QUEUE);
        (Self { level, queue, metrics }, letters)
    }

    /// How many wait to be sent.
    pub(super) fn len(&self) -> usize {
        QUEUE - self.queue.capacity()
    }

    /// A pod has its addresses.
    pub(super) fn given(&self, pod: PodRef<'_>, given: &Given) {
        if self.level == Level::All || given.addresses.iter().any(|a| a.fixed) {
            self.send(about_pod(pod), EventType::Normal, "AddressGiven", given_note(given));
        }
    }

    /// A pod's ADD waits.
    pub(super) fn waiting(&self, pod: PodRef<'_>, reasons: &str) {
        self.send(about_pod(pod), EventType::Normal, "AddressAwaited", format!("waiting: {reasons}"));
    }

    /// A pod got no address; `why` is what the runtime is told.
    pub(super) fn refused(&self, pod: PodRef<'_>, why: String) {
        self.send(about_pod(pod), EventType::Warning, "AddressRefused", why);
    }

    /// A pod has an address that another one had.
    pub(super) fn taken_over(&self, pod: PodRef<'_>, note: String) {
        self.send(about_pod(pod), EventType::Normal, "AddressTakenOver", note);
    }

    /// The claim on a pod's address was rewritten, as it said something else than the block.
    pub(super) fn mended(&self, pod: PodRef<'_>, note: String) {
        self.send(about_pod(pod), EventType::Warning, "ClaimMended", note);
    }

    /// A node's range is used up.
    pub(super) fn exhausted(&self, node: &str, why: String) {
        self.send(about_node(node), EventType::Warning, "RangeExhausted", why);
    }

    /// The collector has repaired something that concerns a node.
    pub(super) fn repaired(&self, repair: &Repair) {
        if let Some(node) = &repair.node {
            self.send(about_node(node), EventType::Normal, "CollectorRepaired", repair.to_string());
        }
    }

    /// A pod's annotation is not kept.
    pub(super) fn unkept(&self, notice: &Notice) {
        let PodName { namespace, name, uid } = &notice.pod;
        let reason = match notice.what {
            Unkept::OtherAddress => "AddressNotAsAsked",
            Unkept::HostNetwork => "AnnotationIgnored",
        };
        let pod = PodRef { namespace, name, uid: uid.as_deref() };
        self.send(about_pod(pod), EventType::Warning, reason, notice.text.clone());
    }

    /// Few addresses are left in a range.
    pub(super) fn filling(&self, filling: &Filling) {
        self.send(
            about_pool(&filling.pool),
            EventType::Warning,
            "RangeNearlyFull",
            format!("{}; {WIDEN}", filling.usage),
        );
    }

    /// An update hands an address over: said to the pod that gets it, to the one that has it, and to their owner.
    pub(super) fn handed_over(&self, case: &Case, outcome: &Outcome) {
        let (Decision::Evict { holder, addresses, .. } | Decision::Keep { holder, addresses }) = &case.decision else {
            return;
        };
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let (list, (old, new)) = (addresses.join(","), (&holder.name, &case.pod.name));
        let (type_, reason, note) = match outcome {
            Outcome::Evicted => {
                let note = format!("pod {old} of an old revision is evicted, and {new} gets its address {list}");
                (EventType::Normal, "HandoverBegun", note)
            }
            Outcome::Kept => {
                let note = format!("pod {old} of an old revision is ending, and {new} gets its address {list}");
                (EventType::Normal, "HandoverBegun", note)
            }
            Outcome::Blocked(why) => {
                let note = format!(
                    "pod {new} needs the address {list} of pod {old}, which may not be evicted now: {why}; tried again. A \
                     budget that never allows a pod less keeps the update from finishing: change it, or delete pod {old}"
                );
                (EventType::Warning, "HandoverBlocked", note)
            }
            Outcome::Changed => return,
        };
        for about in [about_case(case), about_holder(case, holder), about_owner(case)].into_iter().flatten() {
            self.send(about, type_, reason, note.clone());
        }
        if let (Decision::Evict { images_known: false, .. }, Outcome::Evicted) = (&case.decision, outcome) {
            let note = format!(
                "whether the node of pod {new} can have its image is not known before the pod has its address: no further \
                 pod is evicted before {new} is available"
            );
            for about in [about_case(case), about_owner(case)].into_iter().flatten() {
                self.send(about, EventType::Warning, "HandoverImageUnknown", note.clone());
            }
        }
    }

    /// A pod that waits for a handover is told why there is none yet.
    pub(super) fn not_handed_over(&self, case: &Case) {
        let Some(about) = about_case(case) else { return };
        match &case.decision {
            Decision::Wait(Waiting::NotWaiting | Waiting::Coming | Waiting::NotObserved) => {}
            Decision::Wait(why) => self.send(about, EventType::Normal, "HandoverAwaited", why.to_string()),
            // The old set's replacement, which the update is about to end.
            Decision::Refuse(Refusal::OldRevision) => {}
            Decision::Refuse(why) => self.send(about, EventType::Warning, "HandoverRefused", why.to_string()),
            Decision::Evict { .. } | Decision::Keep { .. } => {}
        }
    }

    fn send(&self, about: ObjectReference, type_: EventType, reason: &str, note: String) {
        if self.level == Level::None {
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            // The recorder counts what differs in nothing but the note as one Event with the first note: the
            // action keeps them apart.
            action: clip(note.clone(), LONGEST_ACTION),
            note: Some(clip(note, LONGEST_NOTE)),
            secondary: None,
        };
        if self.queue.try_send(Letter { about, event }).is_err() {
            self.metrics.posted(Posted::Dropped);
        }
    }
}

/// Sends what is queued, one after the other; once `closing` is cancelled only what is queued by then.
pub(super) async fn post(
    client: kube::Client,
    node: String,
    mut letters: Receiver<Letter>,
    metrics: Arc<Metrics>,
    closing: CancellationToken,
) {
    let recorder = Recorder::new(client, Reporter { controller: CONTROLLER.to_owned(), instance: Some(node) });
    loop {
        let letter = tokio::select! {
            letter = letters.recv() => letter,
            () = closing.cancelled(), if !letters.is_closed() => {
                letters.close();
                continue;
            }
        };
        let Some(Letter { about, event }) = letter else { return };
        match timeout(SEND_TIME, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => metrics.posted(Posted::Sent),
            outcome => {
                metrics.posted(Posted::Failed);
                let error = outcome.map_or_else(|late| late.to_string(), |sent| format!("{sent:?}"));
                tracing::warn!(reason = event.reason, about = about.name, error, "an Event was not sent");
            }
        }
    }
}

fn about_case(case: &Case) -> Option<ObjectReference> {
    let pod = &case.pod;
    Some(about_pod(PodRef { namespace: &pod.namespace, name: &pod.name, uid: Some(&pod.uid) }))
}

fn about_holder(case: &Case, holder: &Holder) -> Option<ObjectReference> {
    Some(about_pod(PodRef { namespace: &case.pod.namespace, name: &holder.name, uid: Some(&holder.uid) }))
}

fn about_owner(case: &Case) -> Option<ObjectReference> {
    let Lineage { uid, api_version, kind, name, .. } = case.owner.as_ref()?;
    Some(ObjectReference {
        api_version: Some(api_version.clone()),
        kind: Some(kind.clone()),
        namespace: Some(case.pod.namespace.clone()),
        name: Some(name.clone()),
        uid: Some(uid.clone()),
        ..ObjectReference::default()
    })
}

fn about_pod(pod: PodRef<'_>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_owned()),
        name: Some(pod.name.to_owned()),
        uid: pod.uid.map(str::to_owned),
        ..ObjectReference::default()
    }
}

/// With the name as UID, as the kubelet has it: that is how its Events are found.
fn about_node(node: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}

fn about_pool(pool: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(IPPool::api_version(&()).into_owned()),
        kind: Some(IPPool::kind(&()).into_owned()),
        name: Some(pool.to_owned()),
        ..ObjectReference::default()
    }
}

/// `10.244.0.216 (fixed), fd00::9 (random)`.
fn given_note(given: &Given) -> String {
    let one = |a: &crate::driver::Assigned| format!("{} ({})", a.address, if a.fixed { "fixed" } else { "random" });
    given.addresses.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// At most so many bytes of it, and never half a character.
fn clip(mut text: String, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Assigned;
    use crate::service::How;

    const POD: PodRef<'_> = PodRef { namespace: "default", name: "web", uid: Some("u") };

    fn given(fixed: bool) -> Given {
        let (address, block) = ("10.244.0.9".parse().unwrap(), "10.244.0.0/26".parse().unwrap());
        let assigned = Assigned { address, block, fixed, netmask: None, gateway: None, target: false };
        Given { how: How::Decision, addresses: vec![assigned] }
    }

    fn events(level: Level) -> (Events, Receiver<Letter>) {
        Events::new(level, Arc::default())
    }

    #[test]
    fn a_random_address_is_told_only_where_everything_is() {
        for (level, expected) in [(Level::All, 3), (Level::Notable, 2), (Level::None, 0)] {
            let (events, _letters) = events(level);
            events.given(POD, &given(false));
            events.given(POD, &given(true));
            events.refused(POD, "no".into());
            assert_eq!(events.len(), expected, "{level:?}");
        }
    }

    #[test]
    fn what_does_not_fit_into_the_queue_is_dropped_and_counted() {
        let (events, mut letters) = events(Level::Notable);
        (0..QUEUE + 3).for_each(|_| events.refused(POD, "no".into()));
        assert_eq!(events.len(), QUEUE);
        let text = events.metrics.text(&Default::default());
        assert!(text.contains("kube_ipam_events_total{result=\"dropped\"} 3"), "{text}");
        let letter = letters.try_recv().unwrap();
        assert_eq!((letter.about.uid.as_deref(), letter.event.reason.as_str()), (Some("u"), "AddressRefused"));
    }

    #[test]
    fn whoever_made_a_pod_is_told_that_its_annotation_is_not_kept() {
        let (events, mut letters) = events(Level::Notable);
        for (what, reason) in [(Unkept::OtherAddress, "AddressNotAsAsked"), (Unkept::HostNetwork, "AnnotationIgnored")]
        {
            let pod = PodName { namespace: "default".into(), name: "web".into(), uid: Some("u".into()) };
            events.unkept(&Notice { pod, what, text: "why".into() });
            let Letter { about, event } = letters.try_recv().unwrap();
            assert_eq!((about.uid.as_deref(), event.reason.as_str()), (Some("u"), reason));
            assert!(matches!(event.type_, EventType::Warning) && event.note.as_deref() == Some("why"));
        }
    }

    #[test]
    fn notes_are_cut_between_characters() {
        assert_eq!(clip("häuser".into(), 2), "h");
        assert_eq!(clip("häuser".into(), 3), "hä");
        assert_eq!(clip("häuser".into(), 99), "häuser");
    }

    #[test]
    fn the_addresses_of_a_pod_say_which_are_fixed() {
        assert_eq!(given_note(&given(true)), "10.244.0.9 (fixed)");
        assert_eq!(given_note(&given(false)), "10.244.0.9 (random)");
    }
}

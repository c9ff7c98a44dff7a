//! Getting one of the wanted fixed addresses: the claim is taken, waited for, or refused with a reason.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use calico::{AllocationAttribute, Entry, IPAMBlock};
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use tokio::time::{Instant, timeout};

use super::converge::Backoff;
use super::snapshot::{node_state, not_ready_since, pod_state, state_of};
use super::{Attachment, Driver, Error, POD_UID_KEY, handle_of};
pub(super) use crate::claim::in_flight;
use crate::claim::{
    Asker, Claim, Decision, Evidence, Holder, NodeState, Obstacle, PodState, Successor, SuccessorEvidence, decide,
    has_lapsed, take_over,
};
use crate::pod::{FixedRequest, HandoverMode, IP, Owner, Workload, own_addresses};
use crate::store::{Ledger, Objects, StoreError, Swap, Versioned};

/// How long to wait for a holder that nobody is ending: a controller may be about to.
const SETTLE: Duration = Duration::from_secs(3);
/// Longest wait on one watch before evidence is looked at again: a node's failure shows in no claim.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The same where an update is to get the address handed over, which somebody must begin.
const BEGINNING: Duration = Duration::from_secs(10);
/// What a kubelet takes beyond a pod's grace to end it, and its runtime to give the address back.
const ENDING: SignedDuration = SignedDuration::from_secs(5);
/// Longest wait for a pod that is evicted for the asking one. The kubelet gives a sandbox two minutes.
const LONGEST_HANDOVER: Duration = Duration::from_secs(100);
/// How often a wait looks whether the runtime has given up.
const CANCEL_CHECK: Duration = Duration::from_millis(250);

/// An address that an annotation asks for, as it was found.
#[derive(Clone)]
pub(super) struct Candidate {
    pub address: IpAddr,
    /// The block it lies in, whether or not that exists.
    pub cidr: IpNetwork,
    pub block: Option<IPAMBlock>,
    pub claim: Option<Versioned<Claim>>,
}

/// An address whose claim now names the asking container as holder.
pub(super) struct Held {
    pub address: IpAddr,
    pub cidr: IpNetwork,
    pub block: Option<IPAMBlock>,
    pub claim: Versioned<Claim>,
    /// Whether this ADD wrote the claim, and so must take it back if it fails.
    pub taken: Option<Taken>,
    /// The holder from whom this ADD took it, after that was judged.
    pub superseded: Option<Holder>,
}

/// What stood before a claim was taken.
pub(super) enum Taken {
    /// There was no claim.
    New,
    /// There was one, which keeps its owner.
    Existing,
}

/// Why no address could be had: for every candidate what stands in the way.
#[derive(Debug, thiserror::Error)]
pub struct Impasse {
    /// Who asked.
    pub asker: Owner,
    /// Name of the asking pod.
    pub pod: String,
    /// How long was waited.
    pub waited: Duration,
    /// One for every candidate address.
    pub blocked: Vec<Blocked>,
}

/// What stands in the way of one address.
#[derive(Debug, Clone)]
pub struct Blocked {
    /// The claim as it stands.
    pub claim: Claim,
    /// Why it cannot be taken.
    pub obstacle: Obstacle,
    /// What was found out about its holder, if it was asked.
    pub evidence: Option<Evidence>,
    /// Whether the address is handed over to the asking pod, or is about to be.
    pub handover: Handover,
    /// Whether holder and asker come from the same revision of a Deployment's template; `None` for other owners.
    pub same_template: Option<bool>,
}

/// How far the handover of an address to the asking pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// There is none.
    None,
    /// One may be begun, as the holder is of another revision.
    Expected,
    /// The address is kept for the asking pod; until when the holder has time to end, if it is ending.
    Begun(Option<Timestamp>),
}

/// A candidate's outcome in one round.
enum Outcome {
    Held(Box<Held>),
    Blocked(Box<Blocked>),
}

/// What was found out about a holder.
struct Examined {
    evidence: Evidence,
    template_hash: Option<String>,
    /// The end of the holder's grace, if it is being deleted.
    ends: Option<Timestamp>,
    /// When the look began: what was not there may have come since.
    at: Timestamp,
}

/// The remedy where a container is attached to one network twice.
pub(crate) const ONE_ATTACHMENT: &str = "A container is attached to a network once: give the second attachment a \
                                         network configuration with a name of its own.";

/// What claims are called where kinds are counted.
pub(super) const CLAIMS: &str = "claims";

/// Label by which the Deployment controller tells its revisions apart.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Who asks, and for the messages which template it was made from.
pub(super) struct Applicant<'a> {
    pub asker: Asker<'a>,
    pub pod: &'a Pod,
    /// What becomes of an update that needs the address.
    pub handover: HandoverMode,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Takes the first of `candidates` that can be had, waiting for one to become free where that can help.
    pub(super) async fn acquire(
        &self,
        attachment: &Attachment<'_>,
        ledger: &L,
        applicant: &Applicant<'_>,
        mut candidates: Vec<Candidate>,
    ) -> Result<Held, Error> {
        let started = Instant::now();
        let mut told = false;
        // What this very container has on record comes before anything else on the list, whatever became of the claim;
        // then what its pod holds.
        let uid = &applicant.asker.holder.pod_uid;
        let holds = |c: &Candidate| c.claim.as_ref().and_then(|v| holder_uid(&v.value)) == Some(uid);
        candidates.sort_by_key(|c| (!c.is_recorded_for(attachment), !holds(c)));
        loop {
            let mut blocked = Vec::new();
            for candidate in &mut candidates {
                match self.attempt(attachment, ledger, applicant, candidate).await? {
                    Outcome::Held(held) => return Ok(*held),
                    Outcome::Blocked(why) => blocked.push(*why),
                }
            }
            let waited = started.elapsed();
            let Some(wait) = longest_wait(&blocked, attachment, waited, self.now()) else {
                let asker = applicant.asker;
                return Err(Error::Impasse(Box::new(Impasse {
                    asker: asker.owner.clone(),
                    pod: asker.holder.pod.clone(),
                    waited,
                    blocked,
                })));
            };
            if !std::mem::replace(&mut told, true) {
                self.observer.waiting(attachment, &blocked);
            }
            self.await_change(attachment, ledger, &candidates, wait).await?;
            for candidate in &mut candidates {
                self.look_again(candidate).await?;
            }
        }
    }

    /// One candidate: decide, find out what the decision needs, write, until it is ours or blocked.
    async fn attempt(
        &self,
        attachment: &Attachment<'_>,
        ledger: &L,
        applicant: &Applicant<'_>,
        candidate: &mut Candidate,
    ) -> Result<Outcome, Error> {
        let asker = &applicant.asker;
        let mut examined: Option<Examined> = None;
        let mut backoff = Backoff::new(Instant::now() + attachment.net.ipam.wait + LOOK_AGAIN);
        loop {
            // By now a later sandbox of the same pod may have the address, which passes to whichever asks last.
            if (attachment.cancelled)() {
                return Err(Error::Cancelled);
            }
            if let Some(mended) = self.contradiction(candidate, &attachment.net.network, asker.owner).await? {
                self.mend(ledger, candidate, mended, &mut backoff).await?;
                examined = None;
                continue;
            }
            let standing = candidate.claim.as_ref();
            let claim = standing.map(|v| &v.value);
            let evidence = examined.as_ref().map(|e| &e.evidence);
            let now = examined.as_ref().map_or_else(|| self.now(), |e| e.at);
            let mut decision = decide(candidate.address, claim, asker, evidence, &attachment.policy, now);
            if let (Decision::ExamineOwner, Some(claim)) = (&decision, claim) {
                // Boxed, as the rest here that few calls need: it would make every ADD's future larger.
                let keeps = Box::pin(self.owner_keeps(claim, asker)).await?;
                decision = take_over(claim, asker, keeps, self.now());
            }
            if let (Decision::Take(_), Some(claim)) = (&decision, claim)
                && let Some(successor) = claim.kept_from(asker, self.now())
                && !Box::pin(self.lapsed(&claim.owner.namespace, successor, candidate.address)).await?
            {
                decision = Decision::Wait(Obstacle::HandingOver);
            }
            let (claim, contested) = match decision {
                Decision::Held => {
                    let Some(claim) = candidate.claim.clone() else { continue };
                    return Ok(Outcome::Held(Box::new(candidate.held(claim, None, None))));
                }
                Decision::Examine => {
                    let Some(claim) = claim else { continue };
                    examined = Some(Box::pin(self.examine(attachment, claim, candidate)).await?);
                    continue;
                }
                Decision::Wait(obstacle) | Decision::Refuse(obstacle) => {
                    let Some(claim) = claim.cloned() else { continue };
                    let blocked = block(claim, obstacle, examined.as_ref(), applicant, self.now());
                    return Ok(Outcome::Blocked(Box::new(blocked)));
                }
                Decision::ExamineOwner => continue,
                Decision::Take(mut claim) => {
                    // This call may have waited: how long it may take from here to its answer counts from now.
                    claim.holder.iter_mut().for_each(|holder| holder.since = self.now());
                    (claim, false)
                }
                Decision::Contest(claim) => (claim, true),
            };
            let expected = standing.map(|v| v.revision);
            // What this container holds already follows its pod to another owner, and is not this call's to take back.
            let follows = standing.is_some_and(|v| attachment.is_holder(&v.value));
            let taken = match expected {
                None => Some(Taken::New),
                Some(_) => (!follows).then_some(Taken::Existing),
            };
            let superseded = standing.and_then(|v| v.value.holder.clone());
            let revision = match ledger.swap(candidate.address, expected, Some(&claim)).await {
                Ok(Swap::Done(revision)) => {
                    if let Some(before) = standing.map(|v| &v.value).filter(|c| !contested && passes_on(c, asker)) {
                        self.observer.taken_over(attachment, before);
                    }
                    revision
                }
                Ok(Swap::Lost(now)) => {
                    self.observer.conflict(CLAIMS);
                    (candidate.claim, examined) = (now, None);
                    continue;
                }
                Err(error) => {
                    // The outcome may be unknown: what stands there now decides.
                    backoff.pause(error).await?;
                    self.observer.retry(CLAIMS);
                    (candidate.claim, examined) = (ledger.read(candidate.address).await?, None);
                    if let Some(ours) = candidate.claim.clone().filter(|v| v.value == *claim && !contested) {
                        return Ok(Outcome::Held(Box::new(candidate.held(ours, taken, superseded))));
                    }
                    continue;
                }
            };
            let written = Versioned { value: *claim, revision };
            candidate.claim = Some(written.clone());
            if !contested {
                return Ok(Outcome::Held(Box::new(candidate.held(written, taken, superseded))));
            }
        }
    }

    /// Whether the owner of a claim that nobody holds still exists, and wants the address.
    async fn owner_keeps(&self, claim: &Claim, asker: &Asker<'_>) -> Result<bool, StoreError> {
        let owner = &claim.owner;
        // The asking pod bears the name of a pod that owned by itself: its own before it had a controller, or one that is gone.
        if owner.is_pod(&asker.owner.namespace, &asker.holder.pod) {
            return Ok(false);
        }
        // A name has no object that could be gone: only `release` ends its claim.
        if owner.is_named() {
            return Ok(true);
        }
        let Some(object) = self.objects.living_owner(owner).await? else { return Ok(false) };
        let workload = Workload::of(&object);
        let gave_up = claim.is_given_up_by(&object);
        // An update that stands still halfway has pods of both templates: those that exist keep what they ask for.
        Ok(!gave_up || self.has_pods_asking(owner, &workload, claim.address).await?)
    }

    /// Whether pods of a workload ask for an address, by a live read; also where its pods cannot be told by labels.
    async fn has_pods_asking(
        &self,
        owner: &Owner,
        workload: &Workload<'_>,
        address: IpAddr,
    ) -> Result<bool, StoreError> {
        let Some(selector) = workload.selector() else { return Ok(true) };
        let pods = self.objects.list::<Pod>(&selector).await?;
        let asks = |pod: &Pod| {
            let asked = pod.annotations().get(IP).map(|value| FixedRequest::listed(value));
            !matches!(state_of(pod), PodState::Finished) && asked.is_some_and(|asked| asked.contains(&address))
        };
        Ok(pods.iter().any(|pod| pod.metadata.namespace.as_ref() == Some(&owner.namespace) && asks(pod)))
    }

    /// Whether the reservation for a successor counts no more, by live reads.
    pub(crate) async fn lapsed(
        &self,
        namespace: &str,
        successor: &Successor,
        address: IpAddr,
    ) -> Result<bool, StoreError> {
        let pod = self.objects.fresh::<Pod>(Some(namespace), &successor.pod).await?;
        let state = pod_state(pod.as_ref(), &successor.pod_uid);
        let has = pod.as_ref().and_then(own_addresses).unwrap_or_default();
        let alike = |other: &IpAddr| other.is_ipv4() == address.is_ipv4();
        let elsewhere = has.iter().any(alike) && !has.contains(&address);
        let node_name = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
        let mut evidence = SuccessorEvidence { pod: state, elsewhere, node: None, not_ready_since: None };
        if let Some(name) = node_name.filter(|_| state == PodState::Alive) {
            let node = self.objects.fresh::<Node>(None, name).await?;
            evidence.node = Some(node_state(node.as_ref(), None));
            evidence.not_ready_since = node.as_ref().and_then(not_ready_since);
        }
        Ok(has_lapsed(&evidence, self.now()))
    }

    /// Live reads about the holder; a failed read is an error, never "gone". The block is one of them: that an entry
    /// was missing before the claim was read, or a pause ago, proves no DEL.
    async fn examine(
        &self,
        attachment: &Attachment<'_>,
        claim: &Claim,
        candidate: &Candidate,
    ) -> Result<Examined, Error> {
        let at = self.now();
        let Some(holder) = &claim.holder else {
            let (pod, node) = (PodState::Gone, NodeState::Deleted);
            let evidence = Evidence { pod, node, in_block: false, elsewhere: false };
            return Ok(Examined { evidence, template_hash: None, ends: None, at });
        };
        let name = calico::cidr_name(&candidate.cidr);
        let (pod, node, block) = tokio::try_join!(
            self.objects.fresh::<Pod>(Some(&claim.owner.namespace), &holder.pod),
            self.objects.fresh::<Node>(None, &holder.node),
            self.objects.fresh::<IPAMBlock>(None, &name),
        )?;
        let evidence = Evidence {
            pod: pod_state(pod.as_ref(), &holder.pod_uid),
            node: node_state(node.as_ref(), holder.node_uid.as_deref()),
            in_block: block.is_some_and(|b| records(&b, candidate.address, &attachment.net.network, holder)),
            // One look is not enough to say so.
            elsewhere: false,
        };
        let pod = pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&holder.pod_uid));
        let ends = pod.as_ref().and_then(|pod| pod.metadata.deletion_timestamp.as_ref()).map(|time| time.0);
        Ok(Examined { evidence, template_hash: pod.as_ref().and_then(template_hash), ends, at })
    }

    /// Waits until a candidate's claim changes, the time is up, or the runtime gives up.
    async fn await_change(
        &self,
        attachment: &Attachment<'_>,
        ledger: &L,
        candidates: &[Candidate],
        wait: Duration,
    ) -> Result<(), Error> {
        let watches = candidates.iter().filter_map(|c| {
            let revision = c.claim.as_ref()?.revision;
            Some(Box::pin(ledger.changed(c.address, revision)))
        });
        let mut changed = futures::future::select_all(watches);
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if (attachment.cancelled)() {
                return Err(Error::Cancelled);
            }
            let slice = CANCEL_CHECK.min(until - Instant::now());
            match timeout(slice, &mut changed).await {
                // A watch that fails is no news: the claims are read again either way, and if the ledger is
                // down that read says so.
                Ok(_) => break,
                Err(_) => continue,
            }
        }
        Ok(())
    }

    async fn look_again(&self, candidate: &mut Candidate) -> Result<(), StoreError> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let name = calico::cidr_name(&candidate.cidr);
        let (claim, block) =
            tokio::try_join!(ledger.read(candidate.address), self.objects.fresh::<IPAMBlock>(None, &name))?;
        (candidate.claim, candidate.block) = (claim, block);
        Ok(())
    }
}

// === impl Candidate ===

impl Candidate {
    /// Whether the block, as far as it is known, has the address for this very attachment.
    fn is_recorded_for(&self, attachment: &Attachment<'_>) -> bool {
        let entry = self.block.as_ref().map(|block| block.spec.entry(self.address));
        let uid = attachment.pod.and_then(|pod| pod.uid).filter(|_| attachment.is_ahead());
        matches!(entry, Some(Entry::Used { attribute, .. })
            if attribute.handle() == Some(&attachment.handle()) && attribute.secondary(POD_UID_KEY) == uid)
    }

    fn held(&self, claim: Versioned<Claim>, taken: Option<Taken>, superseded: Option<Holder>) -> Held {
        Held { address: self.address, cidr: self.cidr, block: self.block.clone(), claim, taken, superseded }
    }
}

fn holder_uid(claim: &Claim) -> Option<&String> {
    claim.holder.as_ref().map(|h| &h.pod_uid)
}

/// Whether a claim that the asker takes was another pod's or another owner's until now.
fn passes_on(claim: &Claim, asker: &Asker<'_>) -> bool {
    claim.owner != *asker.owner || holder_uid(claim).is_some_and(|uid| *uid != asker.holder.pod_uid)
}

fn template_hash(pod: &Pod) -> Option<String> {
    pod.metadata.labels.as_ref()?.get(TEMPLATE_HASH_LABEL).cloned()
}

/// Whether the block records the address for a claim's holder.
fn records(block: &IPAMBlock, address: IpAddr, network: &str, holder: &Holder) -> bool {
    if block.spec.is_deleted() {
        return false;
    }
    matches!(block.spec.entry(address), Entry::Used { attribute, .. } if is_holders(attribute, network, holder))
}

/// Whether an allocation is the holder's: by its container, or by its pod where it bears the pod's UID.
pub(crate) fn is_holders(attribute: &AllocationAttribute, network: &str, holder: &Holder) -> bool {
    is_held_by(attribute.handle(), attribute.secondary(POD_UID_KEY), network, holder)
}

/// The same by the handle and the pod's UID that an allocation bears.
pub(crate) fn is_held_by(handle: Option<&str>, uid: Option<&str>, network: &str, holder: &Holder) -> bool {
    match uid {
        Some(uid) => uid == holder.pod_uid,
        None => handle == Some(&handle_of(network, &holder.container_id)),
    }
}

fn block(
    claim: Claim,
    obstacle: Obstacle,
    examined: Option<&Examined>,
    applicant: &Applicant<'_>,
    now: Timestamp,
) -> Blocked {
    let same_template = match (examined.and_then(|e| e.template_hash.as_ref()), template_hash(applicant.pod)) {
        (Some(holder), Some(asker)) if claim.owner.kind == "Deployment" => Some(*holder == asker),
        _ => None,
    };
    let is_kept = claim.handing_over(now).is_some_and(|kept| kept.pod_uid == applicant.asker.holder.pod_uid);
    let handover = match obstacle {
        _ if is_kept => Handover::Begun(examined.and_then(|e| e.ends)),
        Obstacle::InUse if same_template != Some(true) && applicant.handover.serves(&claim.owner) => Handover::Expected,
        _ => Handover::None,
    };
    Blocked { claim, obstacle, evidence: examined.map(|e| e.evidence), handover, same_template }
}

/// How long to wait before looking again; `None` once waiting cannot help or the time is used up.
fn longest_wait(
    blocked: &[Blocked],
    attachment: &Attachment<'_>,
    waited: Duration,
    now: Timestamp,
) -> Option<Duration> {
    let budget = attachment.net.ipam.wait;
    let left = |end: Timestamp| Duration::try_from(end.duration_since(now)).unwrap_or_default();
    let worth = |b: &Blocked| match (b.obstacle, b.handover) {
        (Obstacle::OtherOwner | Obstacle::OtherInterface | Obstacle::Moved, _) => Duration::ZERO,
        // What is put on record ahead of a container waits for nobody: its ADD does.
        (Obstacle::InUse, hands_over) if hands_over == Handover::None || attachment.is_ahead() => {
            budget.min(SETTLE).saturating_sub(waited)
        }
        (Obstacle::InUse, _) => BEGINNING.saturating_sub(waited),
        // Whatever the configuration says: the address comes as soon as the pod is down that was evicted for it.
        (_, Handover::Begun(Some(ends))) if !attachment.is_ahead() => {
            let ended = left(ends.saturating_add(ENDING).unwrap_or(ends)).max(budget.saturating_sub(waited));
            ended.min(LONGEST_HANDOVER.saturating_sub(waited))
        }
        (Obstacle::Leaving(..) | Obstacle::NotFenced(_) | Obstacle::HandingOver, _) => budget.saturating_sub(waited),
        (Obstacle::Grace(end), _) => budget.saturating_sub(waited).min(left(end) + Duration::from_millis(50)),
    };
    blocked.iter().map(worth).max().filter(|w| !w.is_zero()).map(|w| w.min(LOOK_AGAIN))
}

// === impl Impasse ===

impl fmt::Display for Impasse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, b) in self.blocked.iter().enumerate() {
            let lead = if i == 0 { "" } else { "; " };
            write!(f, "{lead}{}", b.reason())?;
        }
        Ok(())
    }
}

impl Impasse {
    /// What the user can do, one sentence for each kind of obstacle.
    pub fn remedies(&self) -> String {
        let mut remedies: Vec<String> = Vec::new();
        for blocked in &self.blocked {
            let remedy = blocked.remedy();
            if !remedies.contains(&remedy) {
                remedies.push(remedy);
            }
        }
        if self.waited >= Duration::from_secs(1) {
            remedies.push(format!("Waited {} s for it.", self.waited.as_secs()));
        }
        remedies.join(" ")
    }

    /// Whether it is a question of time; otherwise somebody has to do something.
    pub fn may_pass(&self) -> bool {
        self.blocked.iter().any(|b| !matches!(b.obstacle, Obstacle::OtherOwner | Obstacle::OtherInterface))
    }
}

impl Blocked {
    /// What stands in the way, with its holder and what was found out about it.
    pub fn reason(&self) -> String {
        let address = self.claim.address;
        let holder = self.claim.holder.as_ref().map_or_else(|| "nobody".to_owned(), Holder::to_string);
        match self.obstacle {
            Obstacle::OtherOwner => {
                format!("fixed address {address} belongs to {}, held by {holder}", self.claim.owner)
            }
            Obstacle::OtherInterface => {
                let interface = self.claim.holder.as_ref().map_or("another interface", |h| h.interface.as_str());
                format!("fixed address {address} is on {interface} of this very container")
            }
            Obstacle::HandingOver => {
                let successor = self.claim.successor.as_ref().map_or("another pod", |successor| successor.pod.as_str());
                format!(
                    "fixed address {address} is handed over to pod {successor} by an update of {}",
                    self.claim.owner
                )
            }
            Obstacle::Leaving(pod, node) => {
                format!("fixed address {address} is still held by {holder}, which is {pod} (node {node})")
            }
            Obstacle::Grace(until) => format!(
                "fixed address {address} is still held by {holder}, whose pod object is gone while its node is Ready; \
                 the node has until {} to release it",
                until.strftime("%H:%M:%SZ")
            ),
            Obstacle::InUse => format!("fixed address {address} is held by {holder}, which is running"),
            Obstacle::Moved => {
                let ledger = self.claim.moved.as_deref().unwrap_or("another ledger");
                format!("the claim on fixed address {address} was carried to {ledger}, which this node does not use")
            }
            Obstacle::NotFenced(node) => {
                format!("fixed address {address} is still held by {holder}, and its node ({}) is not fenced", node)
            }
        }
    }

    fn remedy(&self) -> String {
        match (self.obstacle, self.same_template) {
            (Obstacle::OtherOwner, _) if self.claim.owner.is_named() => format!(
                "Choose another address. {} is a name given by kube-ipam.owner, so nobody can tell whether it is still \
                 wanted: if it is not, `kube-ipam release {} --claim` frees it.",
                self.claim.owner, self.claim.address
            ),
            (Obstacle::OtherOwner, _) => format!(
                "Choose another address, or delete {}; `kube-ipam release` frees a claim that is not wanted any more.",
                self.claim.owner
            ),
            (Obstacle::OtherInterface, _) => ONE_ATTACHMENT.into(),
            (Obstacle::Moved, _) => {
                "Change ipam.etcdConfig in this node's CNI config as `kube-ipam claims move` says; then this is tried \
                 again by itself."
                    .into()
            }
            (Obstacle::HandingOver, _) => "The update ends this pod when the new one is ready; if that ends first, this one \
                 gets the address by itself."
                .into(),
            (Obstacle::InUse, _) if self.handover != Handover::None => {
                "The old pod is evicted for this one as soon as the rules allow it, see the Events of both pods; this is \
                 tried again by itself."
                    .into()
            }
            (Obstacle::InUse, Some(false)) => {
                "This is a rolling update that waits for itself: the new pod needs the address of \
                 the old one, which is kept until the new one is ready. Set the Deployment's strategy to Recreate, or \
                 rollingUpdate.maxSurge to 0; or let it be handed over by the annotation kube-ipam.handover: evict."
                    .into()
            }
            (Obstacle::InUse, Some(true)) => {
                "The Deployment has more replicas than addresses: scale it down, or list more \
                 addresses in kube-ipam.ip."
                    .into()
            }
            (Obstacle::InUse, None) if self.claim.owner.kind == "DaemonSet" => {
                "An update of this DaemonSet starts a node's new pod beside the old one, and waits for itself: set \
                 updateStrategy.rollingUpdate.maxSurge to 0 and maxUnavailable to 1, or list more addresses in \
                 kube-ipam.ip."
                    .into()
            }
            (Obstacle::InUse, None) => "Delete the pod that holds it, or list more addresses in kube-ipam.ip.".into(),
            (Obstacle::Leaving(_, NodeState::Ready) | Obstacle::Grace(_), _) => {
                "The address passes on as soon as the old pod is down; this is tried again by itself.".into()
            }
            (Obstacle::Leaving(..) | Obstacle::NotFenced(_), _) => {
                "If the node is down for good, delete the Node or taint it \
                 node.kubernetes.io/out-of-service; if only the pod is, delete the pod by force."
                    .into()
            }
        }
    }
}

//! Getting one of the wanted fixed addresses: the claim is taken, waited for, or refused with a reason.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use calico::{AllocationAttribute, Entry, IPAMBlock};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::time::{Instant, timeout};

use super::converge::Backoff;
use super::snapshot::{node_state, pod_state};
use super::{Attachment, Driver, Error, POD_UID_KEY, handle_of};
pub(super) use crate::claim::in_flight;
use crate::claim::{Asker, Claim, Decision, Evidence, Holder, NodeState, Obstacle, PodState, decide, take_over};
use crate::pod::Owner;
use crate::store::{Ledger, Objects, StoreError, Swap, Versioned};

/// How long to wait for a holder that nobody is ending: a controller may be about to.
const SETTLE: Duration = Duration::from_secs(3);
/// Longest wait on one watch before evidence is looked at again: a node's failure shows in no claim.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
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
    /// Whether holder and asker come from the same revision of a Deployment's template; `None` for other owners.
    pub same_template: Option<bool>,
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
                let exists = self.owner_exists(claim, asker).await?;
                decision = take_over(claim, asker, exists, self.now());
            }
            let (claim, contested) = match decision {
                Decision::Held => {
                    let Some(claim) = candidate.claim.clone() else { continue };
                    return Ok(Outcome::Held(Box::new(candidate.held(claim, None, None))));
                }
                Decision::Examine => {
                    let Some(claim) = claim else { continue };
                    examined = Some(self.examine(attachment, claim, candidate).await?);
                    continue;
                }
                Decision::Wait(obstacle) | Decision::Refuse(obstacle) => {
                    let Some(claim) = claim.cloned() else { continue };
                    return Ok(Outcome::Blocked(Box::new(block(claim, obstacle, examined.as_ref(), applicant))));
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

    /// Whether the owner of a claim that nobody holds still exists.
    async fn owner_exists(&self, claim: &Claim, asker: &Asker<'_>) -> Result<bool, StoreError> {
        let owner = &claim.owner;
        // The asking pod bears the name of a pod that owned by itself: its own before it had a controller, or one that is gone.
        if owner.is_pod(&asker.owner.namespace, &asker.holder.pod) {
            return Ok(false);
        }
        // A name has no object that could be gone: only `release` ends its claim.
        Ok(owner.is_named() || self.objects.owner_exists(owner).await?)
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
            return Ok(Examined { evidence, template_hash: None, at });
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
        Ok(Examined { evidence, template_hash: pod.as_ref().and_then(template_hash), at })
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

fn block(claim: Claim, obstacle: Obstacle, examined: Option<&Examined>, applicant: &Applicant<'_>) -> Blocked {
    let same_template = match (examined.and_then(|e| e.template_hash.as_ref()), template_hash(applicant.pod)) {
        (Some(holder), Some(asker)) if claim.owner.kind == "Deployment" => Some(*holder == asker),
        _ => None,
    };
    Blocked { claim, obstacle, evidence: examined.map(|e| e.evidence), same_template }
}

/// How long to wait before looking again; `None` once waiting cannot help or the time is used up.
fn longest_wait(
    blocked: &[Blocked],
    attachment: &Attachment<'_>,
    waited: Duration,
    now: Timestamp,
) -> Option<Duration> {
    let budget = attachment.net.ipam.wait;
    let worth = |b: &Blocked| match b.obstacle {
        Obstacle::OtherOwner | Obstacle::OtherInterface | Obstacle::Moved => Duration::ZERO,
        Obstacle::InUse => budget.min(SETTLE).saturating_sub(waited),
        Obstacle::Leaving(..) | Obstacle::NotFenced(_) => budget.saturating_sub(waited),
        Obstacle::Grace(end) => {
            let left = Duration::try_from(end.duration_since(now)).unwrap_or_default() + Duration::from_millis(50);
            budget.saturating_sub(waited).min(left)
        }
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
            (Obstacle::InUse, Some(false)) => {
                "This is a rolling update that waits for itself: the new pod needs the address of \
                 the old one, which is kept until the new one is ready. Set the Deployment's strategy to Recreate, or \
                 rollingUpdate.maxSurge to 0."
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

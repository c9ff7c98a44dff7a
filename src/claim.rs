//! Claims: who owns a fixed address, which pod holds it, and when it may pass to another.
//!
//! Pure: every decision is a function of the claim, the asker and what the driver found out about the holder.
//! Keeps I2 (a fixed address is held by at most one pod, of its owner).

mod ledger;

use std::fmt;
use std::net::IpAddr;

use calico::machine::is_machine_id;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::ledger::{ClaimedElsewhere, LedgerName};
use crate::pod::{Owner, Workload};

/// The record of one fixed address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The workload that owns it; outlives its pods.
    pub owner: Owner,
    /// The pod that has it now, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// When the owner got it.
    pub created: Timestamp,
    /// Counts the holders: raised by one whenever the holder becomes another container.
    pub generation: u64,
    /// When another pod of the owner, or the collector, first found the holder's pod gone while its node was
    /// Ready: the start of the grace in which that node may still release it. Or when the collector first found the
    /// holder's pod at another address. No ADD answers with an address whose holder is contested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contested: Option<Timestamp>,
    /// Since when nobody holds it and its owner does not exist, or does not ask for it, as the collector found: the start of the grace after
    /// which the claim is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_gone: Option<Timestamp>,
    /// The ledger that the claim was carried to. From then on nobody takes the address by this record: what stands
    /// there decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<String>,
    /// What made the claim: [`BY_ANNOTATION`], or nothing where a person did, or a release up to 0.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The pod that an update hands the address over to. Until then no other pod takes the address, unless the
    /// reservation lapses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<Successor>,
    /// Fields of newer versions, kept on every rewrite.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The origin of a claim that a pod's annotation made. Only such a claim follows the annotation when that is changed.
pub const BY_ANNOTATION: &str = "annotation";
/// The pod that an address is kept for, and how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Successor {
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the pod, in the owner's namespace.
    pub pod: String,
    /// The end of the reservation, whatever becomes of the pod.
    pub until: Timestamp,
    /// Fields of newer versions, kept on every rewrite.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// What is known about a claim's successor, by live reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessorEvidence {
    /// The successor's pod.
    pub pod: PodState,
    /// Whether that pod has another address instead.
    pub elsewhere: bool,
    /// Its node, if it is bound to one.
    pub node: Option<NodeState>,
    /// Since when that node has not been Ready, if it is not and says so.
    pub not_ready_since: Option<Timestamp>,
}

/// The container that a fixed address was given to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// UID of the pod: names come back, UIDs do not.
    pub pod_uid: String,
    /// Name of the pod, in the owner's namespace.
    pub pod: String,
    /// Container id of the pod's sandbox, as the runtime gave it.
    pub container_id: String,
    /// Interface inside the pod.
    pub interface: String,
    /// Name of the node.
    pub node: String,
    /// UID of the Node object, so that a node made again under the same name inherits nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_uid: Option<String>,
    /// When it was given.
    pub since: Timestamp,
    /// Fields of newer versions, kept on every rewrite.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// When a node that cannot be asked is believed to have stopped its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fencing {
    /// A pod object deleted while its node is not Ready counts as the administrator's word that it is dead.
    #[default]
    PodDeleted,
    /// Only a DEL, the deletion of the Node, or its taint `node.kubernetes.io/out-of-service`.
    NodeFenced,
}

/// The rules by which a held address may pass on without a DEL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What counts as proof.
    pub fencing: Fencing,
    /// How long a Ready node has to release the address of a pod whose object is gone.
    pub grace: SignedDuration,
}

/// What is known about the holder's pod object, compared by UID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// It exists and runs or will run.
    Alive,
    /// It exists with a deletion timestamp.
    Terminating,
    /// Its phase is Succeeded or Failed.
    Finished,
    /// There is no pod of that UID.
    Gone,
}

/// What is known about the holder's node, compared by UID where one was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeState {
    /// Its condition Ready is True.
    Ready,
    /// Its condition Ready is False or Unknown.
    NotReady,
    /// It bears the taint `node.kubernetes.io/out-of-service`.
    OutOfService,
    /// There is no Node of that UID.
    Deleted,
}

/// What the driver found out about a holder before it asks for a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// The holder's pod.
    pub pod: PodState,
    /// The holder's node.
    pub node: NodeState,
    /// Whether Calico's block still records the address for the holder's container.
    pub in_block: bool,
    /// Whether the holder's pod runs with another address instead, recorded for it. For the collector to find, which
    /// looks more than once.
    pub elsewhere: bool,
}

/// Who asks for the address.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Owner of the asking pod.
    pub owner: &'a Owner,
    /// The asking container.
    pub holder: &'a Holder,
}

/// What is to be done about one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Write this claim by compare-and-swap, and the address is the asker's.
    Take(Box<Claim>),
    /// The asker's container holds it already: nothing to write.
    Held,
    /// Find out about the holder, then decide again with [`Evidence`].
    Examine,
    /// Find out whether the owner still exists, then decide again by [`take_over`].
    ExamineOwner,
    /// Write this claim (it starts the grace), then wait.
    Contest(Box<Claim>),
    /// Wait for the claim to change.
    Wait(Obstacle),
    /// Waiting cannot help as things stand.
    Refuse(Obstacle),
}

/// How a claim's holder stands by the rules, whoever asks: an ADD that wants the address, or the collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// There is proof that its container does not use the address any more: it may be cleared.
    Lost,
    /// Its pod has ended while its node is Ready, or has another address: write this claim, which starts the grace.
    Contest(Box<Claim>),
    /// It keeps the address for now.
    Keeps(Obstacle),
}

/// Why an address is not free for the asker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// It belongs to another owner that exists, or that still holds it.
    OtherOwner,
    /// Another interface of the asking container has it.
    OtherInterface,
    /// An update keeps it for another pod of the owner.
    HandingOver,
    /// The holder is on its way out.
    Leaving(PodState, NodeState),
    /// The holder's pod is gone but its Ready node has not released the address; until when it may.
    Grace(Timestamp),
    /// The holder runs and nobody is ending it.
    InUse,
    /// Its claim was carried to another ledger, which this node does not use yet.
    Moved,
    /// The holder's node must be fenced first (policy [`Fencing::NodeFenced`]).
    NotFenced(NodeState),
}

// === impl Claim ===

impl Claim {
    /// A first claim.
    pub fn new(address: IpAddr, asker: &Asker<'_>, now: Timestamp) -> Self {
        Self {
            address,
            owner: asker.owner.clone(),
            holder: Some(asker.holder.clone()),
            created: now,
            generation: 1,
            contested: None,
            owner_gone: None,
            moved: None,
            origin: Some(BY_ANNOTATION.to_owned()),
            successor: None,
            unknown: Map::new(),
        }
    }

    /// Whether the annotation that made it, in the pod template of its owner's object, does not ask for the address any
    /// more.
    pub(crate) fn is_given_up_by(&self, owner: &Value) -> bool {
        self.origin.as_deref() == Some(BY_ANNOTATION) && Workload::of(owner).asks_for(self.address) == Some(false)
    }

    /// The same claim with another holder. A reservation stays for the pod that it is for, and for the holder's own
    /// next sandbox.
    pub fn held_by(&self, asker: &Asker<'_>) -> Self {
        let uid = &asker.holder.pod_uid;
        let same = self.holder.as_ref().is_some_and(|holder| holder.pod_uid == *uid);
        Self {
            successor: self.successor.clone().filter(|successor| same || successor.pod_uid == *uid),
            owner: asker.owner.clone(),
            holder: Some(asker.holder.clone()),
            generation: self.generation.saturating_add(1),
            contested: None,
            owner_gone: None,
            ..self.clone()
        }
    }

    /// The same claim with nobody holding it.
    pub fn released(&self) -> Self {
        Self { holder: None, contested: None, ..self.clone() }
    }

    /// Whether `container_id` and `interface` are the holder's.
    pub fn is_held_by(&self, container_id: &str, interface: &str) -> bool {
        self.holder.as_ref().is_some_and(|h| h.container_id == container_id && h.interface == interface)
    }
}

impl Claim {
    /// The reservation of an update under way: its pod has not got the address yet, and its time is not over.
    pub fn handing_over(&self, now: Timestamp) -> Option<&Successor> {
        let holder = self.holder.as_ref().map(|holder| holder.pod_uid.as_str());
        self.successor.as_ref().filter(|successor| now < successor.until && holder != Some(successor.pod_uid.as_str()))
    }

    /// The reservation for another pod of the owner that keeps `asker` from taking the address from nobody or from
    /// somebody who lost it, as long as it has not [lapsed](has_lapsed).
    pub fn kept_from(&self, asker: &Asker<'_>, now: Timestamp) -> Option<&Successor> {
        let uid = &asker.holder.pod_uid;
        let own = self.holder.as_ref().is_some_and(|holder| holder.pod_uid == *uid) || self.owner != *asker.owner;
        // The successor itself may have held it before: it is kept for its next sandbox, too.
        self.successor.as_ref().filter(|successor| !own && successor.pod_uid != *uid && now < successor.until)
    }
}

/// Whether a reservation counts no more: its pod will not come for the address.
pub fn has_lapsed(evidence: &SuccessorEvidence, now: Timestamp) -> bool {
    if evidence.pod != PodState::Alive || evidence.elsewhere {
        return true;
    }
    match evidence.node {
        Some(NodeState::Deleted | NodeState::OutOfService) => true,
        Some(NodeState::NotReady) => {
            evidence.not_ready_since.is_none_or(|since| now.duration_since(since) >= SUCCESSORS_NODE)
        }
        Some(NodeState::Ready) | None => false,
    }
}

/// How long a successor's node may be not Ready before the address is another pod's to take.
pub const SUCCESSORS_NODE: SignedDuration = SignedDuration::from_secs(60);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {} on node {} since {}", self.pod, self.node, self.since.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "running",
            Self::Terminating => "terminating",
            Self::Finished => "finished but not cleaned up",
            Self::Gone => "gone",
        })
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "Ready",
            Self::NotReady => "not Ready",
            Self::OutOfService => "out of service",
            Self::Deleted => "deleted",
        })
    }
}

// === decisions ===

/// What to do about `address` for `asker`, given the claim that stands and, once asked for, evidence
/// about its holder.
pub fn decide(
    address: IpAddr,
    claim: Option<&Claim>,
    asker: &Asker<'_>,
    evidence: Option<&Evidence>,
    policy: &Policy,
    now: Timestamp,
) -> Decision {
    let Some(claim) = claim else {
        return Decision::Take(Box::new(Claim::new(address, asker, now)));
    };
    if claim.moved.is_some() {
        return Decision::Refuse(Obstacle::Moved);
    }
    let Some(holder) = &claim.holder else {
        return if claim.owner == *asker.owner {
            Decision::Take(Box::new(claim.held_by(asker)))
        } else {
            Decision::ExamineOwner
        };
    };
    if holder.pod_uid == asker.holder.pod_uid {
        // A pod that asks before it has a container has what any of its containers has.
        let holds = asker.holder.container_id.is_empty()
            || claim.is_held_by(&asker.holder.container_id, &asker.holder.interface);
        return if holds && claim.owner == *asker.owner {
            Decision::Held
        } else if holds {
            // The pod was adopted by a controller, or orphaned, since: the claim follows.
            Decision::Take(Box::new(Claim { owner: asker.owner.clone(), ..claim.clone() }))
        } else if holder.container_id == asker.holder.container_id {
            Decision::Refuse(Obstacle::OtherInterface)
        } else {
            // A new sandbox of the same pod: the old one is dead, or the runtime would not have made this.
            Decision::Take(Box::new(claim.held_by(asker)))
        };
    }
    if is_same_machine(holder, asker.holder) && claim.owner == *asker.owner {
        // The machine has the address, whichever of its pods asks.
        return Decision::Take(Box::new(claim.held_by(asker)));
    }
    if claim.owner != *asker.owner {
        return match evidence {
            None => Decision::Examine,
            Some(e) if standing(claim, e, policy, now) == Standing::Lost => Decision::ExamineOwner,
            Some(_) => Decision::Refuse(Obstacle::OtherOwner),
        };
    }
    match evidence {
        None => Decision::Examine,
        // The holder is another pod of the same owner.
        Some(evidence) => match standing(claim, evidence, policy, now) {
            Standing::Lost => Decision::Take(Box::new(claim.held_by(asker))),
            Standing::Contest(contested) => Decision::Contest(contested),
            Standing::Keeps(obstacle) => Decision::Wait(obstacle),
        },
    }
}

fn is_same_machine(holder: &Holder, asker: &Holder) -> bool {
    is_machine_id(&holder.container_id) && holder.container_id == asker.container_id
}

/// A claim of another owner that holds nothing: may `asker` take it over? Only if that owner is gone, or wants the
/// address no more.
pub fn take_over(claim: &Claim, asker: &Asker<'_>, owner_keeps: bool, now: Timestamp) -> Decision {
    if owner_keeps {
        return Decision::Refuse(Obstacle::OtherOwner);
    }
    let origin = Some(BY_ANNOTATION.to_owned());
    Decision::Take(Box::new(Claim { created: now, origin, ..claim.held_by(asker) }))
}

/// Whether the holder may lose the address without a DEL: the one place with these rules. A claim that
/// nobody holds has lost its holder already.
pub fn standing(claim: &Claim, evidence: &Evidence, policy: &Policy, now: Timestamp) -> Standing {
    let Some(holder) = &claim.holder else { return Standing::Lost };
    match evidence.pod {
        PodState::Alive if is_elsewhere(holder, evidence, now) => match claim.contested {
            Some(since) if now >= end_of_grace(since, policy) => Standing::Lost,
            Some(since) => Standing::Keeps(Obstacle::Grace(end_of_grace(since, policy))),
            None => contest(claim, now),
        },
        PodState::Alive => Standing::Keeps(Obstacle::InUse),
        PodState::Terminating if evidence.node == NodeState::Ready => {
            Standing::Keeps(Obstacle::Leaving(evidence.pod, evidence.node))
        }
        _ if lost_its_holder(holder, evidence, claim, policy, now) => Standing::Lost,
        PodState::Terminating => Standing::Keeps(Obstacle::Leaving(evidence.pod, evidence.node)),
        PodState::Finished | PodState::Gone => match (policy.fencing, claim.contested) {
            (Fencing::NodeFenced, _) => Standing::Keeps(Obstacle::NotFenced(evidence.node)),
            (_, Some(since)) => Standing::Keeps(Obstacle::Grace(end_of_grace(since, policy))),
            (_, None) => contest(claim, now),
        },
    }
}

fn contest(claim: &Claim, now: Timestamp) -> Standing {
    Standing::Contest(Box::new(Claim { contested: Some(now), ..claim.clone() }))
}

/// Whether a pod that runs does so without the address that is claimed for it. Its ADD wrote the claim, or the store
/// did so late, and died; the next ADD got another address of the list.
///
/// That alone proves nothing: the container may be about to have it. But once the claim is contested no ADD answers
/// for it. One that did so before has its entry in the block, which is read after the claim that is contested.
fn is_elsewhere(holder: &Holder, evidence: &Evidence, now: Timestamp) -> bool {
    evidence.elsewhere && !evidence.in_block && !in_flight(holder, now)
}

/// Whether there is proof that the holder's container does not use the address any more.
fn lost_its_holder(holder: &Holder, evidence: &Evidence, claim: &Claim, policy: &Policy, now: Timestamp) -> bool {
    // Without the Node's UID on record a Node of that name may be another machine; its state then proves
    // nothing good, and only a deleted Node or the taint counts.
    let fenced = matches!(evidence.node, NodeState::Deleted | NodeState::OutOfService);
    if fenced {
        return true;
    }
    let pod_ended = matches!(evidence.pod, PodState::Gone | PodState::Finished);
    if !pod_ended {
        return false;
    }
    if !evidence.in_block && !in_flight(holder, now) {
        // Its DEL got as far as the block, the first of DEL's writes.
        return true;
    }
    match policy.fencing {
        Fencing::NodeFenced => false,
        Fencing::PodDeleted => {
            evidence.node == NodeState::NotReady
                || claim.contested.is_some_and(|since| now >= end_of_grace(since, policy))
        }
    }
}

/// An ADD takes the claim before the block: within its time limit a missing entry proves no DEL.
pub(crate) fn in_flight(holder: &Holder, now: Timestamp) -> bool {
    now.duration_since(holder.since) < LONGEST_ADD
}

/// No ADD of ours lives longer than this from taking the claim to its answer.
pub const LONGEST_ADD: SignedDuration = SignedDuration::from_secs(15);

fn end_of_grace(since: Timestamp, policy: &Policy) -> Timestamp {
    since.saturating_add(policy.grace).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;

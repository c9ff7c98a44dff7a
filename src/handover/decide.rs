//! Pure: whether a pod of an old revision is evicted for one of the current revision that needs its address.

use std::fmt;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use crate::claim::{Claim, PodState};

/// The controller at the top of a pod's owners, read live, and which revision the pod is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// UID of the controller at the top; two pods are of one workload if it is the same.
    pub uid: String,
    /// API version of its kind.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// UID of the controller of the pod itself, such as a ReplicaSet.
    pub set: String,
    /// Whether a pod of that set is Ready.
    pub set_was_ready: bool,
    /// The pod's revision; none where the kind does not tell revisions apart.
    pub revision: Option<String>,
    /// The revision that the owner is at now.
    pub current: Option<String>,
    /// Whether the owner is paused.
    pub paused: bool,
    /// Whether the owner's controller has seen the owner as it is now.
    pub observed: bool,
    /// Whether the owner's selector matches the pod's labels.
    pub selects: bool,
    /// How long a pod must have been Ready to count as available.
    pub min_ready: SignedDuration,
}

/// The pod that waits for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// UID of the pod.
    pub uid: String,
    /// Whether it lives, is bound to a node, and has no address yet.
    pub waits: bool,
    /// Its node.
    pub node: String,
    /// Whether its node is Ready.
    pub node_ready: bool,
    /// Whether its node lists all images of its containers.
    pub images_known: bool,
    /// What it is a pod of; none for a bare pod.
    pub lineage: Option<Lineage>,
}

/// A fixed address that the pod may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The address.
    pub address: IpAddr,
    /// The claim on it.
    pub claim: Option<Claim>,
    /// Whether the claim belongs to the asking pod's owner, as ADD judges it.
    pub of_owner: bool,
    /// Whether the reservation in the claim, if it has one for another pod, counts no more.
    pub lapsed: bool,
    /// The pod that holds it, if the claim names one.
    pub holder: Option<Holder>,
}

/// A pod that holds a wanted address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Name of the pod.
    pub name: String,
    /// UID of the pod, as the claim has it.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// How the pod of that UID is.
    pub state: PodState,
    /// Since when it has been Ready, if it is.
    pub ready_since: Option<Timestamp>,
    /// What it is a pod of; none for a bare pod.
    pub lineage: Option<Lineage>,
    /// Time that it has to end.
    pub grace: SignedDuration,
}

/// What is to be done for a pod that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Keep the addresses for the asking pod, then evict their holder.
    Evict {
        /// The pod to evict.
        holder: Holder,
        /// Those of its addresses that the asking pod may have.
        addresses: Vec<IpAddr>,
        /// Whether the asking pod's images are known to be there.
        images_known: bool,
    },
    /// Keep the addresses for the asking pod: their holder, of an old revision, is ending already.
    Keep {
        /// The pod that is ending.
        holder: Holder,
        /// Those of its addresses that the asking pod may have.
        addresses: Vec<IpAddr>,
    },
    /// Nothing, as it is a matter of time.
    Wait(Waiting),
    /// Nothing, as somebody would have to change something.
    Refuse(Refusal),
}

/// Why no handover is begun yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// The pod has an address, has ended, or is bound to no node.
    NotWaiting,
    /// An address that it may have is free or about to be, or is kept for it.
    Coming,
    /// The owner's controller has not seen its latest change.
    NotObserved,
    /// The node that the pod is bound to is not Ready.
    NodeNotReady,
    /// An address is handed over to another pod of the owner.
    Another(String),
    /// A pod of the current revision has an address and is not available.
    Unavailable(String),
}

/// Why there is no handover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A bare pod has no revision.
    Bare,
    /// The kind of its controller does not tell revisions apart.
    Kind(String),
    /// The owner's selector does not match the pod.
    NotSelected,
    /// It is of an old revision itself.
    OldRevision,
    /// The owner is paused.
    Paused(String),
    /// Its addresses are held by pods of its own revision, of other owners, or of nobody that can be evicted.
    NobodyToEvict,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWaiting => f.write_str("the pod does not wait for an address"),
            Self::Coming => f.write_str("an address that it may have is free, or about to be"),
            Self::NotObserved => f.write_str("the controller of its owner has not seen the latest change yet"),
            Self::NodeNotReady => f.write_str("its node is not Ready"),
            Self::Another(pod) => write!(f, "an address is being handed over to pod {pod}, and it is one at a time"),
            Self::Unavailable(pod) => {
                write!(f, "pod {pod} of the new revision is not available yet, and it is one at a time")
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => f.write_str("the pod has no controller, so it is no part of an update"),
            Self::Kind(kind) => write!(f, "a {kind} does not tell the revisions of its pods apart"),
            Self::NotSelected => f.write_str("its owner's selector does not match its labels"),
            Self::OldRevision => f.write_str("the pod is not of its owner's current revision"),
            Self::Paused(owner) => write!(f, "{owner} is paused; resume it"),
            Self::NobodyToEvict => f.write_str(
                "no live pod of an old revision of its owner holds one of its addresses: list more addresses in \
                 kube-ipam.ip, or scale down",
            ),
        }
    }
}

/// What to do for `asking`, whose addresses are `families`: one list for each family, one of which it gets.
pub fn decide(asking: &Asking, families: &[Vec<Candidate>], now: Timestamp) -> Decision {
    if !asking.waits {
        return Decision::Wait(Waiting::NotWaiting);
    }
    let Some(lineage) = &asking.lineage else { return Decision::Refuse(Refusal::Bare) };
    let (Some(revision), Some(current)) = (&lineage.revision, &lineage.current) else {
        return Decision::Refuse(Refusal::Kind(lineage.kind.clone()));
    };
    // Of the families of a dual-stack pod the first that is blocked is dealt with first.
    let Some(blocked) = families.iter().find(|family| !is_coming(family, asking, now)) else {
        return keep(asking, lineage, families, now).unwrap_or(Decision::Wait(Waiting::Coming));
    };
    if !lineage.observed {
        return Decision::Wait(Waiting::NotObserved);
    }
    if revision != current {
        return Decision::Refuse(Refusal::OldRevision);
    }
    if !lineage.selects {
        return Decision::Refuse(Refusal::NotSelected);
    }
    if lineage.paused {
        return Decision::Refuse(Refusal::Paused(format!("{} {}", lineage.kind, lineage.name)));
    }
    if !asking.node_ready {
        return Decision::Wait(Waiting::NodeNotReady);
    }
    let all = || families.iter().flatten();
    if let Some(other) = all().find_map(|candidate| kept_for_another(candidate, asking, now)) {
        return Decision::Wait(Waiting::Another(other));
    }
    let mut holders = all().filter_map(|candidate| candidate.holder.as_ref());
    if let Some(unavailable) = holders.find(|holder| {
        is_sibling(holder, lineage) && holder.uid != asking.uid && is_of(holder, current) && !is_available(holder, now)
    }) {
        return Decision::Wait(Waiting::Unavailable(unavailable.name.clone()));
    }
    let outdated = blocked.iter().filter(|candidate| candidate.of_owner).filter_map(|c| c.holder.as_ref());
    let outdated = outdated.filter(|holder| {
        holder.state == PodState::Alive && is_sibling(holder, lineage) && !is_of(holder, current) && selected(holder)
    });
    // A DaemonSet's pod follows that of its node. Else what does not serve goes first, as a ReplicaSet has it; then what
    // serves since the shortest time.
    let beside = |holder: &Holder| lineage.kind == "DaemonSet" && holder.node == asking.node;
    let order = |holder: &&Holder| (beside(holder), holder.ready_since.is_none(), holder.ready_since);
    let Some(holder) = outdated.max_by_key(order) else {
        return Decision::Refuse(Refusal::NobodyToEvict);
    };
    Decision::Evict {
        holder: holder.clone(),
        addresses: addresses_of(holder, families),
        images_known: asking.images_known || lineage.set_was_ready,
    }
}

/// Whether the pod gets an address of the list without a handover.
fn is_coming(family: &[Candidate], asking: &Asking, now: Timestamp) -> bool {
    let free = |candidate: &Candidate| match (&candidate.claim, &candidate.holder) {
        (None, _) => true,
        (Some(claim), _) if claim.moved.is_some() => false,
        (Some(_), _) if kept_for_another(candidate, asking, now).is_some() => false,
        (Some(_), None) => candidate.of_owner,
        (Some(_), Some(holder)) => candidate.of_owner && holder.state != PodState::Alive,
    };
    family.is_empty() || family.iter().any(free)
}

/// The pod that a candidate is kept for, if that is another one.
fn kept_for_another(candidate: &Candidate, asking: &Asking, now: Timestamp) -> Option<String> {
    let kept = candidate.claim.as_ref()?.handing_over(now)?;
    (kept.pod_uid != asking.uid && !candidate.lapsed).then(|| kept.pod.clone())
}

/// A holder that is ending, whose replacement by the old set must not win the address.
fn keep(asking: &Asking, lineage: &Lineage, families: &[Vec<Candidate>], now: Timestamp) -> Option<Decision> {
    let current = lineage.current.as_ref().filter(|current| lineage.revision.as_ref() == Some(*current))?;
    if !lineage.observed || !lineage.selects {
        return None;
    }
    let ending = |candidate: &&Candidate| {
        let kept = candidate.claim.as_ref().and_then(|claim| claim.handing_over(now)).is_some();
        candidate.of_owner && !kept && candidate.holder.as_ref().is_some_and(|h| h.state == PodState::Terminating)
    };
    // One that nobody holds is had at once: no reservation is needed.
    let blocked = families.iter().find(|family| !family.is_empty() && !family.iter().any(|c| c.holder.is_none()))?;
    let holder = blocked.iter().filter(ending).filter_map(|candidate| candidate.holder.as_ref());
    let holder = holder.into_iter().find(|holder| is_sibling(holder, lineage) && !is_of(holder, current))?;
    let reserved = families.iter().flatten().any(|c| {
        c.claim.as_ref().and_then(|claim| claim.handing_over(now)).is_some_and(|kept| kept.pod_uid == asking.uid)
    });
    (!reserved).then(|| Decision::Keep { holder: holder.clone(), addresses: addresses_of(holder, families) })
}

fn addresses_of(holder: &Holder, families: &[Vec<Candidate>]) -> Vec<IpAddr> {
    let held = families.iter().flatten().filter(|candidate| {
        candidate.of_owner && candidate.holder.as_ref().is_some_and(|other| other.uid == holder.uid)
    });
    held.map(|candidate| candidate.address).collect()
}

fn is_sibling(holder: &Holder, lineage: &Lineage) -> bool {
    holder.lineage.as_ref().is_some_and(|of| of.uid == lineage.uid)
}

/// Whether the holder is of that revision; one whose revision is not known is nobody's to evict.
fn is_of(holder: &Holder, revision: &str) -> bool {
    holder.lineage.as_ref().and_then(|of| of.revision.as_deref()).is_none_or(|of| of == revision)
}

fn selected(holder: &Holder) -> bool {
    holder.lineage.as_ref().is_some_and(|of| of.selects)
}

fn is_available(holder: &Holder, now: Timestamp) -> bool {
    let min_ready = holder.lineage.as_ref().map_or(SignedDuration::ZERO, |of| of.min_ready);
    holder.state == PodState::Alive && holder.ready_since.is_some_and(|since| now.duration_since(since) >= min_ready)
}

#[cfg(test)]
mod tests;

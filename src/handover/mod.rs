//! Handover: an update whose new pod needs the address of the old one has the old pod evicted.
//!
//! Runs in one process of the cluster at a time. For a pod that waits, everything is read live, [`decide`](decide())
//! says what is to be done, and that is done: the claim is made to keep the address for the pod, as the old
//! ReplicaSet makes a replacement at once, and the holder is evicted. Nothing is remembered that matters: another
//! process goes on from what the claims say.
//!
//! # Layout
//!
//! | module | what it owns |
//! |---|---|
//! | `decide` | pure: from what was read to what is done |
//! | `lineage` | reading a pod's owner and its revisions |
//! | `image` | whether a node has a pod's images |
//! | `evict` | the Eviction API |
//! | `watch` | the pods that wait, in turn |

mod decide;
mod evict;
mod image;
mod lineage;
mod watch;

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use serde_json::Map;

pub use self::decide::{Asking, Candidate, Decision, Holder, Lineage, Refusal, Waiting, decide};
pub use self::evict::{Evict, Evicted};
pub use self::lineage::{DeploymentConfig, Rollout};
pub use self::watch::{Told, watch};
use crate::claim::{Claim, NodeState, PodState, Successor};
use crate::driver::{Driver, node_state, pod_state, state_of};
use crate::pod::{FixedRequest, HandoverMode, IP, Owner, own_addresses};
use crate::store::{Ledger, Objects, StoreError, Swap, Versioned};

/// How long an address is kept beyond the holder's grace: a runtime that failed tries again within that time, several
/// times.
const KEPT: SignedDuration = SignedDuration::from_secs(300);
/// A pod's grace where it does not say.
const DEFAULT_GRACE: i64 = 30;

/// Decides and carries out handovers of one network.
#[derive(Clone)]
pub struct Handover<O, L, E> {
    driver: Driver<O, L>,
    evict: E,
    /// What holds where a pod's annotation does not say.
    mode: HandoverMode,
}

/// What was found out about a pod that waits.
#[derive(Debug, Clone)]
pub struct Case {
    /// The pod.
    pub pod: PodId,
    /// What it is a pod of.
    pub owner: Option<Lineage>,
    /// What is to be done.
    pub decision: Decision,
    /// The claims on the addresses that it may have.
    claims: Vec<Versioned<Claim>>,
}

/// A pod, for whoever is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// What came of a decision that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The holder is being deleted, for the pod.
    Evicted,
    /// The address is kept for the pod; its holder was ending by itself.
    Kept,
    /// A disruption budget does not allow it now; which, in the API server's words.
    Blocked(String),
    /// Somebody changed a claim or the holder meanwhile: decide again.
    Changed,
}

// === impl Handover ===

impl<O: Objects, L: Ledger, E: Evict> Handover<O, L, E> {
    /// Handovers over a driver that reads live, for pods whose annotation does not say otherwise by `mode`.
    pub fn new(driver: Driver<O, L>, evict: E, mode: HandoverMode) -> Self {
        Self { driver, evict, mode }
    }

    /// Whether a pod waits for a fixed address that may be handed over to it; told without a request.
    pub fn concerns(&self, pod: &Pod) -> bool {
        let mode = HandoverMode::of(pod.annotations()).ok().map(|asked| asked.unwrap_or(self.mode));
        mode == Some(HandoverMode::Evict) && pod.annotations().contains_key(IP) && waits(pod)
    }

    /// What is to be done for the pod, by live reads; `None` if it does not exist any more.
    ///
    /// # Errors
    /// A store failed.
    pub async fn examine(&self, namespace: &str, name: &str) -> Result<Option<Case>, StoreError> {
        let (objects, now) = (self.driver.objects(), self.driver.now());
        let Some(pod) = objects.fresh::<Pod>(Some(namespace), name).await? else { return Ok(None) };
        let lineage = lineage::of(objects, &pod).await?;
        let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let node = match node_name {
            "" => None,
            name => objects.fresh::<Node>(None, name).await?,
        };
        let asking = Asking {
            uid: pod.uid().unwrap_or_default(),
            node: node_name.to_owned(),
            waits: waits(&pod),
            node_ready: node_state(node.as_ref(), None) == NodeState::Ready,
            images_known: node.as_ref().is_some_and(|node| image::has_images(node, &pod)),
            lineage: lineage.clone(),
        };
        let mut claims = Vec::new();
        let mut families = [Vec::new(), Vec::new()];
        if asking.waits {
            let listed = pod.annotations().get(IP).map(|list| FixedRequest::listed(list)).unwrap_or_default();
            let owner = Owner::of(&pod).ok();
            for address in listed {
                let (candidate, claim) = self.candidate(address, owner.as_ref(), &asking, now).await?;
                families[usize::from(address.is_ipv6())].push(candidate);
                claims.extend(claim);
            }
        }
        let decision = decide(&asking, &families, now);
        let id = PodId { namespace: namespace.to_owned(), name: name.to_owned(), uid: asking.uid };
        Ok(Some(Case { pod: id, owner: lineage, decision, claims }))
    }

    async fn candidate(
        &self,
        address: IpAddr,
        owner: Option<&Owner>,
        asking: &Asking,
        now: Timestamp,
    ) -> Result<(Candidate, Option<Versioned<Claim>>), StoreError> {
        let claim = match self.driver.ledger() {
            Some(ledger) => ledger.read(address).await?,
            None => None,
        };
        let mut candidate = Candidate { address, claim: None, of_owner: false, lapsed: false, holder: None };
        let Some(standing) = &claim else { return Ok((candidate, None)) };
        candidate.of_owner = owner == Some(&standing.value.owner);
        if candidate.of_owner {
            candidate.holder = self.holder(&standing.value).await?;
            if let Some(kept) = standing.value.handing_over(now).filter(|kept| kept.pod_uid != asking.uid) {
                candidate.lapsed = self.driver.lapsed(&standing.value.owner.namespace, kept, address).await?;
            }
        }
        candidate.claim = Some(standing.value.clone());
        Ok((candidate, claim))
    }

    async fn holder(&self, claim: &Claim) -> Result<Option<Holder>, StoreError> {
        let Some(holder) = &claim.holder else { return Ok(None) };
        let objects = self.driver.objects();
        let pod = objects.fresh::<Pod>(Some(&claim.owner.namespace), &holder.pod).await?;
        let pod = pod.filter(|pod| pod.uid().as_deref() == Some(&holder.pod_uid));
        let lineage = match &pod {
            Some(pod) => lineage::of(objects, pod).await?,
            None => None,
        };
        let grace = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.termination_grace_period_seconds);
        Ok(Some(Holder {
            name: holder.pod.clone(),
            uid: holder.pod_uid.clone(),
            node: holder.node.clone(),
            state: pod_state(pod.as_ref(), &holder.pod_uid),
            ready_since: pod.as_ref().and_then(ready_since),
            lineage,
            grace: SignedDuration::from_secs(grace.unwrap_or(DEFAULT_GRACE)),
        }))
    }

    /// Carries out what was decided; nothing where nothing is to be done. Whether it may act is for the caller to know.
    ///
    /// # Errors
    /// A store failed, or the API server did not carry out the eviction.
    pub async fn carry_out(&self, case: &Case) -> Result<Option<Outcome>, StoreError> {
        let (holder, addresses, evicts) = match &case.decision {
            Decision::Evict { holder, addresses, .. } => (holder, addresses, true),
            Decision::Keep { holder, addresses } => (holder, addresses, false),
            Decision::Wait(_) | Decision::Refuse(_) => return Ok(None),
        };
        // A budget is asked first: while it keeps the holder, that keeps its address for its own next sandbox, too.
        if evicts && let Some(kept) = self.evict(case, holder, true).await? {
            return Ok(Some(kept));
        }
        for address in addresses {
            if !self.keep(case, *address, holder).await? {
                return Ok(Some(Outcome::Changed));
            }
        }
        if !evicts {
            return Ok(Some(Outcome::Kept));
        }
        Ok(Some(self.evict(case, holder, false).await?.unwrap_or(Outcome::Evicted)))
    }

    /// What keeps the holder from being evicted, if anything does.
    async fn evict(&self, case: &Case, holder: &Holder, trial: bool) -> Result<Option<Outcome>, StoreError> {
        Ok(match self.evict.evict(&case.pod.namespace, &holder.name, &holder.uid, trial).await? {
            Evicted::Done => None,
            Evicted::Gone => Some(Outcome::Changed),
            Evicted::Budget(why) => Some(Outcome::Blocked(why)),
        })
    }

    /// Makes the claim keep the address for the pod; false if somebody changed it since it was read.
    async fn keep(&self, case: &Case, address: IpAddr, holder: &Holder) -> Result<bool, StoreError> {
        let Some(ledger) = self.driver.ledger() else { return Ok(false) };
        let now = self.driver.now();
        let Some(standing) = case.claims.iter().find(|claim| claim.value.address == address) else { return Ok(false) };
        let at_least = now.saturating_add(holder.grace + KEPT / 2).unwrap_or(Timestamp::MAX);
        let kept = standing.value.successor.as_ref().filter(|kept| kept.pod_uid == case.pod.uid);
        if kept.is_some_and(|kept| kept.until > at_least) {
            return Ok(true);
        }
        let successor = Successor {
            pod_uid: case.pod.uid.clone(),
            pod: case.pod.name.clone(),
            until: now.saturating_add(holder.grace + KEPT).unwrap_or(Timestamp::MAX),
            unknown: Map::new(),
        };
        let claim = Claim { successor: Some(successor), ..standing.value.clone() };
        Ok(matches!(ledger.swap(address, Some(standing.revision), Some(&claim)).await?, Swap::Done(_)))
    }
}

/// Whether a pod lives, is bound to a node, and has no address of its own yet.
fn waits(pod: &Pod) -> bool {
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    bound && state_of(pod) == PodState::Alive && own_addresses(pod).is_some_and(|has| has.is_empty())
}

/// Since when a pod has been Ready, if it is.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

//! Where a block's entry bears a fixed address for another container than the claim says.
//!
//! The entry counts more than the claim. Keeps I1 and I2 whatever the claims say, which may have been restored from a
//! backup, lost, or edited by hand: an entry is displaced only if the rules for a holder ([`standing`]) let it go for the
//! pod and node that the entry itself names, and a claim that is not newer than an entry which contradicts it is
//! rewritten from that entry.

use std::net::IpAddr;
use std::time::Duration;

use calico::{AllocationAttribute, Entry, Expect, IPAMBlock, cidr_name};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::Map;
use tokio::time::Instant;

use super::claims::{Blocked, CLAIMS, Candidate, Handover, is_holders};
use super::converge::Backoff;
use super::edit::{Judged, generation_of};
use super::snapshot::{node_state, pod_state, state_of};
use super::{Attachment, CONTAINER_KEY, CONTAINERS_POD_KEY, Driver, Error, INTERFACE_KEY, Impasse, POD_UID_KEY};
use crate::claim::{Claim, Evidence, Fencing, Holder, Obstacle, PodState, Standing, standing};
use crate::pod::{self, Owner, own_addresses};
use crate::store::{Ledger, Objects, StoreError, Swap, Versioned};

/// Time for the entry to get the generation of a claim that was rewritten from it.
const MARK_TIME: Duration = Duration::from_secs(3);

/// A block's entry for a fixed address.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    /// The address.
    pub address: IpAddr,
    /// Namespace of the pod that has it.
    pub namespace: String,
    /// Who has it, as the entry tells. The pod's UID is empty in entries of old releases, and so is the container's id in
    /// one that was made ahead of it.
    pub holder: Holder,
    /// The generation of the claim under which it was made.
    pub generation: u64,
    /// The entry itself.
    judged: Judged,
    attribute: AllocationAttribute,
}

/// What gives an ADD the right to a fixed address.
#[derive(Clone)]
pub(super) struct Right {
    /// The claim that names the asking container, or its pod, as its holder.
    pub claim: Versioned<Claim>,
    /// The holder from whom this very call took it, after it was judged.
    pub superseded: Option<Holder>,
}

/// How an entry of another container stands to a claim.
enum Verdict {
    /// It may be displaced.
    GivesWay(Judged),
    /// Its pod keeps it.
    Keeps(Box<Occupant>),
}

/// Who has an address by a block's entry, as found by live reads.
struct Occupant {
    recorded: Recorded,
    obstacle: Obstacle,
    evidence: Evidence,
    pod: Option<Pod>,
}

// === impl Recorded ===

impl Recorded {
    /// The entry of `address`; `None` if there is none, or it is not a fixed one of a pod.
    pub(crate) fn of(block: &IPAMBlock, address: IpAddr, network: &str) -> Option<Self> {
        if block.spec.is_deleted() {
            return None;
        }
        let Entry::Used { attribute, sequence } = block.spec.entry(address) else { return None };
        let generation = generation_of(attribute)?;
        let key = |key: &str| attribute.secondary(key).map(str::to_owned);
        let of_network = |handle: &str| handle.strip_prefix(network)?.strip_prefix('.').map(str::to_owned);
        let container = match attribute.secondary(POD_UID_KEY) {
            Some(_) => key(CONTAINER_KEY).unwrap_or_default(),
            None => attribute.handle().and_then(of_network)?,
        };
        let since = attribute.secondary("timestamp").and_then(calico::holder::parse_timestamp);
        Some(Self {
            address,
            namespace: key("namespace")?,
            holder: Holder {
                pod_uid: key(POD_UID_KEY).or_else(|| key(CONTAINERS_POD_KEY)).unwrap_or_default(),
                pod: key("pod")?,
                interface: if container.is_empty() { String::new() } else { key(INTERFACE_KEY).unwrap_or_default() },
                container_id: container,
                node: key("node")?,
                node_uid: None,
                since: since.unwrap_or(Timestamp::UNIX_EPOCH),
                unknown: Map::new(),
            },
            generation,
            judged: Judged::new(attribute, sequence),
            attribute: attribute.clone(),
        })
    }

    /// Whether a claim names the entry's container, or its pod where it was made for that, as its holder.
    fn is_of(&self, claim: &Claim, network: &str) -> bool {
        claim.holder.as_ref().is_some_and(|holder| is_holders(&self.attribute, network, holder))
    }

    /// Whether the claim is missing, older than the entry, or of its generation and yet another holder's. By the order of
    /// writes, claim before block on ADD and block before claim on DEL, no call leaves that behind.
    pub(crate) fn contradicts(&self, claim: Option<&Claim>, network: &str) -> bool {
        claim.is_none_or(|claim| {
            let same = claim.generation == self.generation && self.is_of(claim, network);
            claim.moved.is_none() && claim.generation <= self.generation && !same
        })
    }

    /// The claim as the entry tells it; its generation never falls. `owner` is the workload of the entry's pod, if that is known; else the claim keeps
    /// its own, and a missing one gets `otherwise`.
    pub(crate) fn mended(
        &self,
        claim: Option<&Claim>,
        owner: Option<Owner>,
        otherwise: &Owner,
        now: Timestamp,
    ) -> Claim {
        let fresh = || Claim {
            address: self.address,
            owner: otherwise.clone(),
            holder: None,
            created: now,
            generation: self.generation,
            contested: None,
            owner_gone: None,
            moved: None,
            origin: None,
            successor: None,
            unknown: Map::new(),
        };
        let before = claim.cloned().unwrap_or_else(fresh);
        Claim {
            owner: owner.unwrap_or_else(|| before.owner.clone()),
            holder: Some(self.holder.clone()),
            generation: before.generation.max(self.generation),
            contested: None,
            owner_gone: None,
            ..before
        }
    }

    /// Whether `pod`, found by the name that the entry bears, is the entry's pod. Entries of old releases bear no UID: then
    /// it is unless it runs elsewhere or was created later.
    pub(crate) fn is_of_pod(&self, pod: &Pod) -> bool {
        if !self.holder.pod_uid.is_empty() {
            return pod::has_uid(pod, &self.holder.pod_uid);
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        node == Some(&self.holder.node) && created.is_none_or(|created| created <= self.holder.since)
    }

    /// Learns the UID that entries of old releases do not bear.
    pub(crate) fn identify(&mut self, pod: Option<&Pod>) {
        if self.holder.pod_uid.is_empty() {
            self.holder.pod_uid = pod.and_then(pod::uid).unwrap_or_default().to_owned();
        }
    }

    fn gives_way(&self, right: &Right, network: &str) -> Option<Judged> {
        let superseded = right.superseded.as_ref().is_some_and(|holder| is_holders(&self.attribute, network, holder));
        let earlier = self.is_of_asker(right) && !self.is_later(right);
        (superseded || earlier).then(|| self.judged.clone())
    }

    /// Whether the asking pod itself has the address.
    fn is_of_asker(&self, right: &Right) -> bool {
        let asker = right.claim.value.holder.as_ref();
        !self.holder.pod_uid.is_empty() && asker.is_some_and(|asker| asker.pod_uid == self.holder.pod_uid)
    }

    /// Whether the entry was made after the claim was taken: of two sandboxes of a pod, both on one node and by one clock,
    /// the later one lives.
    fn is_later(&self, right: &Right) -> bool {
        right.claim.value.holder.as_ref().is_none_or(|asker| self.holder.since > asker.since)
    }
}

/// Whether a pod has not ended, and its status says that it has the address.
fn has_address(pod: &Pod, address: IpAddr) -> bool {
    matches!(state_of(pod), PodState::Alive | PodState::Terminating)
        && own_addresses(pod).is_some_and(|addresses| addresses.contains(&address))
}

// === impl Candidate ===

impl Candidate {
    fn contradiction(&self, network: &str) -> Option<Recorded> {
        let recorded = Recorded::of(self.block.as_ref()?, self.address, network)?;
        recorded.contradicts(self.claim.as_ref().map(|claim| &claim.value), network).then_some(recorded)
    }
}

// === impl Driver ===

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// The claim on a candidate as it is to be rewritten because it contradicts what the block records; `None` if it does
    /// not. What is known of the block may be out of date, so it is read again before that is said.
    pub(super) async fn contradiction(
        &self,
        candidate: &mut Candidate,
        network: &str,
        asker: &Owner,
    ) -> Result<Option<Claim>, StoreError> {
        if candidate.contradiction(network).is_none() {
            return Ok(None);
        }
        candidate.block = self.objects.fresh::<IPAMBlock>(None, &cidr_name(&candidate.cidr)).await?;
        let Some(mut recorded) = candidate.contradiction(network) else { return Ok(None) };
        let pod = self.pod_of(&recorded).await?;
        recorded.identify(pod.as_ref());
        let owner = pod.as_ref().and_then(|pod| Owner::of(pod).ok());
        Ok(Some(recorded.mended(candidate.claim.as_ref().map(|claim| &claim.value), owner, asker, self.now())))
    }

    /// Rewrites a candidate's claim, unless somebody else wrote it; the candidate then has what stands.
    pub(super) async fn mend(
        &self,
        ledger: &L,
        candidate: &mut Candidate,
        mended: Claim,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let before = candidate.claim.take();
        candidate.claim = match ledger.swap(candidate.address, before.as_ref().map(|v| v.revision), Some(&mended)).await
        {
            Ok(Swap::Done(revision)) => {
                self.observer.mended(before.as_ref().map(|v| &v.value), &mended);
                Some(Versioned { value: mended, revision })
            }
            Ok(Swap::Lost(now)) => {
                self.observer.conflict(CLAIMS);
                now
            }
            Err(error) => {
                backoff.pause(error).await?;
                self.observer.retry(CLAIMS);
                ledger.read(candidate.address).await?
            }
        };
        Ok(())
    }

    /// Rewrites the claim on an address from its block's entry, if the entry's pod is alive and says that it has the
    /// address, while the claim is missing, has no holder, contradicts the entry, or belongs to a controller that the pod had
    /// before. Whether it was written.
    ///
    /// # Errors
    /// A store failed.
    pub async fn mend_claim(&self, address: IpAddr, cidr: &IpNetwork, network: &str) -> Result<bool, Error> {
        let Some(ledger) = &self.ledger else { return Ok(false) };
        let before = ledger.read(address).await?;
        let claim = before.as_ref().map(|before| &before.value);
        let block = self.objects.fresh::<IPAMBlock>(None, &cidr_name(cidr)).await?;
        let Some(mut recorded) = block.and_then(|block| Recorded::of(&block, address, network)) else {
            return Ok(false);
        };
        let free = claim.is_some_and(|claim| claim.holder.is_none() && claim.moved.is_none());
        let pod = self.pod_of(&recorded).await?.filter(|pod| has_address(pod, address));
        let Some(pod) = pod else { return Ok(false) };
        recorded.identify(Some(&pod));
        let owner = Owner::of(&pod)?;
        let mended = match claim {
            Some(claim) if !free && !recorded.contradicts(Some(claim), network) => {
                if claim.moved.is_some() || claim.owner == owner || !recorded.is_of(claim, network) {
                    return Ok(false);
                }
                Claim { owner, ..claim.clone() }
            }
            _ => recorded.mended(claim, Some(owner.clone()), &owner, self.now()),
        };
        match ledger.swap(address, before.as_ref().map(|before| before.revision), Some(&mended)).await? {
            Swap::Done(_) => self.mark_mended(&mended, &recorded, cidr).await.map(|()| true),
            Swap::Lost(_) => Ok(false),
        }
    }

    /// Lets the entry bear the generation of the claim that was rewritten from it, which never falls.
    async fn mark_mended(&self, claim: &Claim, recorded: &Recorded, cidr: &IpNetwork) -> Result<(), Error> {
        if claim.generation == recorded.generation {
            return Ok(());
        }
        let Judged { handle, sequence } = recorded.judged.clone();
        self.mark_fixed(claim, *cidr, &Expect { handle, sequence }, Instant::now() + MARK_TIME).await.map(drop)
    }

    /// The entry's pod, if it still exists, by a live read.
    async fn pod_of(&self, recorded: &Recorded) -> Result<Option<Pod>, StoreError> {
        let pod = self.objects.fresh::<Pod>(Some(&recorded.namespace), &recorded.holder.pod).await?;
        Ok(pod.filter(|pod| recorded.is_of_pod(pod)))
    }

    /// The entry that an ADD may displace, by what is known without a read: that of an earlier sandbox of its own pod, or of
    /// the holder that this call has judged.
    pub(super) fn gives_way(right: &Right, block: &IPAMBlock, network: &str) -> Option<Judged> {
        Recorded::of(block, right.claim.value.address, network)?.gives_way(right, network)
    }

    /// The entry that an ADD may displace, by live reads; `None` if there is none. If its pod keeps the address, the claim
    /// is given to that pod.
    ///
    /// # Errors
    /// [`Error::Impasse`] if somebody keeps the address.
    pub(super) async fn judge(
        &self,
        attachment: &Attachment<'_>,
        right: &Right,
        cidr: &IpNetwork,
    ) -> Result<Option<Judged>, Error> {
        let (address, network) = (right.claim.value.address, &attachment.net.network);
        let block = self.objects.fresh::<IPAMBlock>(None, &cidr_name(cidr)).await?;
        let Some(recorded) = block.and_then(|block| Recorded::of(&block, address, network)) else { return Ok(None) };
        if recorded.generation >= right.claim.value.generation {
            return Ok(None);
        }
        if let Some(judged) = recorded.gives_way(right, network) {
            return Ok(Some(judged));
        }
        match self.examine_entry(attachment, right, recorded).await? {
            Verdict::GivesWay(judged) => Ok(Some(judged)),
            Verdict::Keeps(occupant) => Err(self.yield_to(right, *occupant, cidr).await?),
        }
    }

    async fn examine_entry(
        &self,
        attachment: &Attachment<'_>,
        right: &Right,
        mut recorded: Recorded,
    ) -> Result<Verdict, Error> {
        let now = self.now();
        let (pod, node) =
            tokio::try_join!(self.pod_of(&recorded), self.objects.fresh::<Node>(None, &recorded.holder.node))?;
        recorded.identify(pod.as_ref());
        let own = recorded.is_of_asker(right);
        if own && recorded.is_later(right) {
            return Err(Error::Superseded(recorded.address));
        }
        let pod_state = if own { PodState::Gone } else { pod_state(pod.as_ref(), &recorded.holder.pod_uid) };
        let evidence =
            Evidence { pod: pod_state, node: node_state(node.as_ref(), None), in_block: true, elsewhere: false };
        let held = Some(recorded.holder.clone());
        let claim = Claim { holder: held, contested: None, owner_gone: None, ..right.claim.value.clone() };
        match standing(&claim, &evidence, &attachment.policy, now) {
            Standing::Lost => Ok(Verdict::GivesWay(recorded.judged)),
            // The claim has passed on since this entry was made, so its node has had the grace already.
            Standing::Contest(_) if attachment.policy.fencing == Fencing::PodDeleted => {
                Ok(Verdict::GivesWay(recorded.judged))
            }
            Standing::Contest(_) => {
                let obstacle = Obstacle::NotFenced(evidence.node);
                Ok(Verdict::Keeps(Box::new(Occupant { recorded, obstacle, evidence, pod })))
            }
            Standing::Keeps(obstacle) => Ok(Verdict::Keeps(Box::new(Occupant { recorded, obstacle, evidence, pod }))),
        }
    }

    /// Gives the claim to the pod that has the address, and tells why the ADD fails.
    async fn yield_to(&self, right: &Right, occupant: Occupant, cidr: &IpNetwork) -> Result<Error, Error> {
        let Occupant { recorded, obstacle, evidence, pod } = occupant;
        let (before, address) = (&right.claim.value, recorded.address);
        let owner = pod.as_ref().and_then(|pod| Owner::of(pod).ok());
        let mended = recorded.mended(Some(before), owner, &before.owner, self.now());
        if let Some(ledger) = &self.ledger
            && let Swap::Done(_) = ledger.swap(address, Some(right.claim.revision), Some(&mended)).await?
        {
            self.observer.mended(Some(before), &mended);
            self.mark_mended(&mended, &recorded, cidr).await?;
        }
        let handover = Handover::None;
        let blocked = Blocked { claim: mended, obstacle, evidence: Some(evidence), handover, same_template: None };
        Ok(Error::Impasse(Box::new(Impasse {
            asker: before.owner.clone(),
            pod: before.holder.as_ref().map(|holder| holder.pod.clone()).unwrap_or_default(),
            waited: Duration::ZERO,
            blocked: vec![blocked],
        })))
    }
}

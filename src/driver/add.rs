//! ADD: a container's addresses, all of them or none.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use calico::machine::Side;
use calico::{Entry, Family, Holder as Allocation, IPAMBlock, IPAMHandle, Reservations};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::Map;
use tokio::time::Instant;

use super::block::Claimed;
use super::claims::{Applicant, Candidate, Held, Taken, in_flight};
use super::converge::{Backoff, Known};
use super::displace::Right;
use super::edit::{Assign, Edit, Judged, Outcome, Which, is_fixed};
use super::handle::Counts;
use super::machine::{Machine, Owned};
use super::place::{Room, Search};
use super::release::{HeldBy, other_interface};
use super::reservation::{Asks, claimed_elsewhere, is_reserved};
use super::snapshot::{Snapshot, check_coverage, host};
use super::undo::Done;
use super::wants::{Want, wants, workload_block};
use super::{Attachment, CLAIM_KEY, CONTAINERS_POD_KEY, Driver, Error, INTERFACE_KEY, POD_UID_KEY, Trace};
use crate::claim::{Asker, Claim, Holder};
use crate::cni::{CniError, code};
use crate::netconf::Dialect;
use crate::pod::{self, FixedRequest, HandoverMode, Owner, check_namespace};
use crate::store::{Failure, Ledger, Objects, Swap};

/// How often another block is looked for after one filled up under our hands.
const PLACINGS: usize = 8;

/// An address that is on record for the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The address.
    pub address: IpAddr,
    /// The block it lies in.
    pub block: IpNetwork,
    /// Whether it is a fixed one.
    pub fixed: bool,
    /// Prefix length that the pod's annotation gives, if any; the address alone where it was asked for by `IP=`.
    pub netmask: Option<u8>,
    /// Gateway that the pod's annotation gives, if any.
    pub gateway: Option<IpAddr>,
    /// Whether it is for the target of a live migration: traffic goes to the source until the machine has moved.
    pub target: bool,
}

/// The second round of reads.
struct Round {
    node: Option<Node>,
    own: Vec<IPAMBlock>,
    candidates: Vec<Candidate>,
}

/// One address about to be written.
struct Placement {
    family: Family,
    cidr: IpNetwork,
    block: Known<IPAMBlock>,
    which: Which,
    /// What gives the right to a fixed address.
    right: Option<Right>,
    /// Whether the container has it already, and it is to be written anew.
    renews: bool,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Gives the container its addresses, IPv4 first. Called again for the same container it gives the same ones.
    ///
    /// # Errors
    /// Whatever failed; everything this call had written is taken back, as far as the stores can be reached.
    pub async fn add(&self, attachment: &Attachment<'_>) -> Result<Vec<Assigned>, Error> {
        let mut done = Done::default();
        match self.try_add(attachment, &mut done).await {
            Ok(assigned) => Ok(assigned),
            Err(error) => {
                if self.may_undo(attachment, &error).await {
                    self.undo(attachment, done).await;
                }
                Err(error)
            }
        }
    }

    async fn try_add(&self, attachment: &Attachment<'_>, done: &mut Done) -> Result<Vec<Assigned>, Error> {
        let begun = self.now();
        let mut snapshot = patiently(attachment.deadline, || self.snapshot(attachment)).await?;
        let request = match &snapshot.pod {
            Some(pod) => FixedRequest::parse(pod.annotations(), &attachment.net.ipam)?,
            None => None,
        };
        if let (Some(request), Some(pod)) = (&request, attachment.pod) {
            let namespace = snapshot.namespace.as_ref().map(|namespace| namespace.annotations());
            check_namespace(request, pod.namespace, namespace, attachment.net.ipam.fixed)?;
        }
        if let Some(request) = &request {
            request.check_pools(&snapshot.pools, &attachment.net.ipam)?;
        }
        let owner = snapshot.pod.as_ref().filter(|_| request.is_some()).map(Owner::of).transpose()?;
        let mut wants = wants(attachment, &snapshot, request.as_ref(), owner.as_ref())?;
        // Boxed, like what follows from it: it would make every ADD's future larger.
        snapshot.machine = Box::pin(self.machine(attachment, &snapshot)).await?;
        let machine = snapshot.machine.clone();
        let of_machine = machine.as_ref().map(|machine| machine.attachment(attachment));
        let attachment = of_machine.as_ref().unwrap_or(attachment);
        let mut owned = Vec::new();
        if let Some(machine) = &machine {
            done.machine = Some(machine.clone());
            owned = Box::pin(self.machines_own(attachment, machine, &wants)).await?;
            if machine.side == Side::Alternate {
                Box::pin(self.take_side(attachment, &snapshot, machine, &owned, done)).await?;
                return self.answer_of_machine(attachment, &owned, machine, &request, done);
            }
            only_owned(&mut wants, &owned);
        }
        for (family, _) in &wants {
            if let Some(ranges) = attachment.net.ipam.ranges(*family) {
                check_coverage(ranges, &snapshot.pools)?;
            }
        }
        let mut round = patiently(attachment.deadline, || self.second_round(attachment, &snapshot, &wants)).await?;
        if let Some(owner) = &owner {
            self.claimed_here(&snapshot, &round)?;
            let asked = request.as_ref().and_then(|request| request.handover);
            let handover = asked.unwrap_or(attachment.net.ipam.handover);
            self.take_claims(attachment, &snapshot, (owner, handover), &round, &wants, done).await?;
            self.mirror_claims(attachment, &snapshot, done).await?;
        }
        if let (Some(machine), false) = (&machine, owned.is_empty()) {
            Box::pin(self.take_side(attachment, &snapshot, machine, &owned, done)).await?;
            self.confirm_claims(attachment, done).await?;
            return self.answer_of_machine(attachment, &owned, machine, &request, done);
        }
        let earlier = earlier_sandboxes(attachment, &snapshot, &round.own, begun);
        let written = self.record(attachment, &snapshot, &mut round, &wants, done).await?;
        self.confirm_claims(attachment, done).await?;
        if (attachment.cancelled)() {
            return Err(Error::Cancelled);
        }
        self.give_up_earlier(attachment, earlier).await;
        let detail = |(family, address, block): (Family, IpAddr, IpNetwork)| Assigned {
            address,
            block,
            fixed: done.claims.iter().any(|h| h.address == address),
            netmask: match attachment.explicit.contains(&address) {
                true => Some(family.bits()),
                false => request.as_ref().and_then(|r| r.netmask(family)),
            },
            gateway: request.as_ref().and_then(|r| r.gateway(family)),
            target: false,
        };
        Ok(written.into_iter().map(detail).collect())
    }

    /// What a machine's pod is answered that uses what the machine has.
    fn answer_of_machine(
        &self,
        attachment: &Attachment<'_>,
        owned: &[Owned],
        machine: &Machine,
        request: &Option<FixedRequest>,
        done: &Done,
    ) -> Result<Vec<Assigned>, Error> {
        if (attachment.cancelled)() {
            return Err(Error::Cancelled);
        }
        let target = machine.side == Side::Alternate;
        let detail = |owned: &Owned| {
            let family = Family::of(owned.address);
            let full = (attachment.net.ipam.dialect == Dialect::CalicoIpam).then(|| family.bits());
            let annotated = request.as_ref().and_then(|request| request.netmask(family));
            Assigned {
                address: owned.address,
                block: owned.cidr,
                fixed: done.claims.iter().any(|held| held.address == owned.address),
                netmask: full.or(annotated),
                gateway: request.as_ref().and_then(|request| request.gateway(family)),
                target,
            }
        };
        let mut given: Vec<Assigned> = owned.iter().map(detail).collect();
        given.sort_by_key(|assigned| Family::of(assigned.address) != Family::V4);
        Ok(given)
    }

    // === reads ===

    /// Everything that depends on the first round, side by side.
    async fn second_round(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        wants: &[(Family, Want)],
    ) -> Result<Round, Error> {
        let random: Vec<Family> = wants.iter().filter(|(_, w)| matches!(w, Want::Random(_))).map(|(f, _)| *f).collect();
        let fixed =
            wants.iter().filter_map(|(_, w)| if let Want::Fixed(list) = w { Some(list) } else { None }).flatten();
        let fixed: Vec<(IpAddr, IpNetwork)> =
            fixed.map(|a| Ok((*a, workload_block(snapshot, *a)?))).collect::<Result<_, Error>>()?;
        let selects_nodes = snapshot.pools.iter().any(|p| !p.spec.selects_every_node());
        let node = async {
            if fixed.is_empty() && (random.is_empty() || !selects_nodes) {
                return Ok(None);
            }
            let node = self.objects.get::<Node>(None, attachment.node).await?;
            node.map(Some).ok_or_else(|| Error::NoNode(attachment.node.to_owned()))
        };
        let own = async { Ok(self.own_blocks(attachment, &snapshot.affinities, &random).await?) };
        let (node, own, candidates) = tokio::try_join!(node, own, self.candidates(&fixed))?;
        Ok(Round { node, own, candidates })
    }

    /// The addresses that are asked for with their records. One whose record cannot be read is passed over where the
    /// pod may have another of its family.
    async fn candidates(&self, fixed: &[(IpAddr, IpNetwork)]) -> Result<Vec<Candidate>, Error> {
        let reads = fixed.iter().map(|(address, cidr)| async { (*address, self.candidate(*address, *cidr).await) });
        let (mut candidates, mut unreadable) = (Vec::new(), Vec::new());
        for (address, read) in futures::future::join_all(reads).await {
            match read {
                Ok(candidate) => candidates.push(candidate),
                Err(Error::Store(error)) if matches!(error.failure, Failure::Corrupt(_)) => {
                    unreadable.push((address, error));
                }
                Err(error) => return Err(error),
            }
        }
        for (address, error) in unreadable {
            if !candidates.iter().any(|other| Family::of(other.address) == Family::of(address)) {
                return Err(Error::Store(error));
            }
            tracing::warn!(%address, %error, "the address is passed over");
        }
        Ok(candidates)
    }

    async fn candidate(&self, address: IpAddr, cidr: IpNetwork) -> Result<Candidate, Error> {
        let ledger = self.ledger.as_ref().ok_or_else(|| Error::NoLedger(address.to_string()))?;
        let (claim, block) = tokio::try_join!(ledger.read(address), self.read_block(cidr))?;
        Ok(Candidate { address, cidr, block, claim })
    }

    // === claims ===

    /// An address without a claim in this ledger is free only if no reservation says that its claim lies in another.
    fn claimed_here(&self, snapshot: &Snapshot, round: &Round) -> Result<(), Error> {
        let Some(here) = self.ledger.as_ref().map(Ledger::name) else { return Ok(()) };
        let unclaimed = round.candidates.iter().filter(|candidate| candidate.claim.is_none());
        let mut elsewhere = unclaimed.filter_map(|c| claimed_elsewhere(&snapshot.reservations, c.address, &here));
        elsewhere.next().map_or(Ok(()), |found| Err(found.into()))
    }

    async fn take_claims(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        (owner, handover): (&Owner, HandoverMode),
        round: &Round,
        wants: &[(Family, Want)],
        done: &mut Done,
    ) -> Result<(), Error> {
        let (Some(pod), Some(ledger)) = (&snapshot.pod, &self.ledger) else { return Ok(()) };
        let holder = Holder {
            pod_uid: pod::uid(pod).unwrap_or_default().to_owned(),
            pod: pod.name_any(),
            container_id: attachment.container_id.to_owned(),
            interface: attachment.interface.to_owned(),
            node: attachment.node.to_owned(),
            node_uid: round.node.as_ref().and_then(ResourceExt::uid),
            since: self.now(),
            unknown: Map::new(),
        };
        let applicant = Applicant { asker: Asker { owner, holder: &holder }, pod, handover };
        self.gate.note(&attachment.handle(), Trace::Claims);
        for list in wants.iter().filter_map(|(_, w)| if let Want::Fixed(list) = w { Some(list) } else { None }) {
            let candidates =
                round.candidates.iter().filter(|c| list.contains(&c.address)).map(Candidate::clone).collect();
            let held = Box::pin(self.acquire(attachment, ledger, &applicant, candidates)).await?;
            done.claims.push(held);
        }
        Ok(())
    }

    /// Every claimed address is mirrored as a reservation; written only where it is missing. For a new claim the
    /// list is not believed: it may still show what went with an earlier claim on the same address.
    async fn mirror_claims(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        done: &mut Done,
    ) -> Result<(), Error> {
        for held in &done.claims {
            let new = matches!(held.taken, Some(Taken::New));
            if !new && is_reserved(&snapshot.reservations, &held.cidr, held.address) {
                continue;
            }
            if new {
                done.reserved.push((held.address, held.cidr));
            }
            let asks = if new { Asks::ForNewClaim } else { Asks::ForClaim };
            self.reserve(held.address, &held.cidr, asks, self.late(attachment)).await?;
        }
        Ok(())
    }

    /// The last look before the answer: a claim that was taken over while this ADD was paused must not be answered,
    /// nor one that is contested, and may be cleared any moment.
    async fn confirm_claims(&self, attachment: &Attachment<'_>, done: &Done) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        for held in &done.claims {
            let standing = ledger.read(held.address).await?;
            let ours = |claim: &Claim| attachment.is_holder(claim) && claim.contested.is_none();
            let Some(claim) = standing.filter(|c| ours(&c.value)) else {
                return Err(Error::Superseded(held.address));
            };
            self.in_time(held, &claim.value)?;
            if attachment.anew {
                let (revision, mut again) = (claim.revision, claim.value);
                // An object that is written as it was is no write to the API server.
                again.holder.iter_mut().for_each(|holder| holder.since = self.now());
                if let Swap::Lost(_) = ledger.swap(held.address, Some(revision), Some(&again)).await? {
                    return Err(Error::Superseded(held.address));
                }
            }
        }
        Ok(())
    }

    /// Whoever finds a claim's entry missing long after it was taken is right to take it for released, and may be
    /// about to write so.
    fn in_time(&self, held: &Held, claim: &Claim) -> Result<(), Error> {
        let late = claim.holder.as_ref().is_some_and(|holder| !in_flight(holder, self.now()));
        if late && held.taken.is_some() {
            return Err(Error::Late("the claim was taken too long ago for an answer"));
        }
        Ok(())
    }

    // === handle and blocks ===

    /// Puts handle and block entries on record. Gives the addresses with their blocks, in order of the wants.
    async fn record(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        round: &mut Round,
        wants: &[(Family, Want)],
        done: &mut Done,
    ) -> Result<Vec<(Family, IpAddr, IpNetwork)>, Error> {
        let handle = attachment.handle();
        // What somebody released, or deleted, under a pod that runs is nobody's before that pod has ended.
        let own = attachment.pod.map(|pod| (pod.namespace, pod.name));
        let reservations = Reservations::new(&snapshot.reservations).with(&self.objects.addresses_in_use(own));
        let mut full: Vec<IpNetwork> = Vec::new();
        // What one family has got is kept while a block is looked for again for the other.
        let mut kept: Vec<(Family, IpAddr, IpNetwork)> = Vec::new();
        for placing in 0..PLACINGS {
            let open: Vec<&(Family, Want)> =
                wants.iter().filter(|(family, _)| !kept.iter().any(|(of, _, _)| of == family)).collect();
            // Not kept while the writes are waited for: a hundred ADDs at once would keep a hundred copies.
            let own = std::mem::take(&mut round.own);
            let mut placements =
                self.placements(attachment, snapshot, round, &open, done, &reservations, &own, &full).await?;
            drop(own);
            let mut counts = counted(placements.iter().map(|p| p.cidr).chain(kept.iter().map(|(_, _, cidr)| *cidr)));
            // What is written from here on only DEL takes away, and this container's may be over.
            if (attachment.cancelled)() {
                return Err(Error::Cancelled);
            }
            done.claims.iter().try_for_each(|held| self.in_time(held, &held.claim.value))?;
            let deadline = self.late(attachment);
            if placing > 0 {
                self.set_handle(attachment, &counts, deadline).await?;
            } else if let Some(found) = self.create_handle(attachment, &counts, deadline).await? {
                if snapshot.machine.is_some() {
                    if let Some(first) = Box::pin(self.await_first(attachment, snapshot, wants, done)).await? {
                        return Ok(first);
                    }
                    // Where the other pod meant to record it, so that it finds this record if it comes late.
                    for placement in &mut placements {
                        let of_family = |cidr: &IpNetwork| Family::of(cidr.ip()) == placement.family;
                        if let (Which::Any { .. }, Some(cidr)) = (placement.which, found.spec.blocks().find(of_family))
                        {
                            (placement.cidr, placement.block) = (cidr, Known::Unread);
                            placement.which = Which::Any { own: false };
                        }
                    }
                    counts = counted(placements.iter().map(|p| p.cidr));
                } else if let Some(earlier) = self.resume(attachment, &found, wants, done).await? {
                    self.renew(attachment, snapshot, &earlier, done, &reservations).await?;
                    return Ok(earlier);
                }
                if attachment.is_ahead() {
                    // An earlier pod's DEL may be about to delete it.
                    return Err(Error::NotAhead(handle));
                }
                self.set_handle(attachment, &counts, deadline).await?;
            }
            done.handle = true;
            done.blocks.extend(placements.iter().map(|placement| placement.cidr));
            let writes = placements.into_iter().map(|p| self.write(attachment, snapshot, p, &reservations));
            // All of them to their end, even if one fails: a write that is dropped on its way may still land.
            let written = futures::future::join_all(writes).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            let filled: Vec<IpNetwork> = written.iter().filter(|w| w.2.is_none()).map(|w| w.1).collect();
            kept.extend(written.into_iter().filter_map(|(family, cidr, address)| Some((family, address?, cidr))));
            if filled.is_empty() {
                kept.sort_by_key(|(of, _, _)| wants.iter().position(|(family, _)| family == of));
                return Ok(kept);
            }
            full.extend(filled);
            let random: Vec<Family> =
                wants.iter().filter(|(_, w)| matches!(w, Want::Random(_))).map(|(f, _)| *f).collect();
            round.own = self.own_blocks(attachment, &self.affinities(attachment.node).await?, &random).await?;
        }
        Err(Error::Overtaken("every block found had filled up before it could be written"))
    }

    #[allow(clippy::too_many_arguments)]
    async fn placements(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        round: &Round,
        wants: &[&(Family, Want)],
        done: &Done,
        reservations: &Reservations,
        own: &[IPAMBlock],
        full: &[IpNetwork],
    ) -> Result<Vec<Placement>, Error> {
        let mut placements = Vec::new();
        for (family, want) in wants {
            let family = *family;
            placements.push(match want {
                Want::Fixed(_) => {
                    let held = done.claims.iter().find(|h| Family::of(h.address) == family);
                    let held = held.ok_or_else(|| {
                        let bug = "this is a bug of kube-ipam: please report it";
                        CniError::new(code::INTERNAL, format!("an {family} address has no claim of this ADD"), bug)
                    })?;
                    let read =
                        if full.contains(&held.cidr) { self.read_block(held.cidr).await? } else { held.block.clone() };
                    let block = self.block_for(attachment, held.cidr, read).await?;
                    let which = Which::Exactly(held.address, Some(held.claim.value.generation));
                    let right = Some(Right { claim: held.claim.clone(), superseded: held.superseded.clone() });
                    Placement { family, cidr: held.cidr, block, which, right, renews: false }
                }
                Want::Explicit(address) => {
                    let cidr = workload_block(snapshot, *address)?;
                    let block = self.block_for(attachment, cidr, self.read_block(cidr).await?).await?;
                    Placement { family, cidr, block, which: Which::Exactly(*address, None), right: None, renews: false }
                }
                Want::Random(named) => {
                    let node = round.node.as_ref();
                    let search = Search { attachment, snapshot, node, family, named, reservations };
                    let Room { block, own } = self.find_room(&search, own, full).await?;
                    let cidr = block.spec.cidr;
                    // A cache is asked again when it is written: a hundred ADDs need not each keep a block until then.
                    let block = if self.objects.is_cache() { Known::Unread } else { Known::Present(block) };
                    Placement { family, cidr, block, which: Which::Any { own }, right: None, renews: false }
                }
            });
        }
        Ok(placements)
    }

    /// The block for a given address: as read, or claimed if there is none. A lost race is no failure; whose
    /// the block is, is decided where it is written.
    async fn block_for(
        &self,
        attachment: &Attachment<'_>,
        cidr: IpNetwork,
        read: Option<IPAMBlock>,
    ) -> Result<Known<IPAMBlock>, Error> {
        if let Some(block) = read {
            return Ok(Known::Present(block));
        }
        self.gate.note(&attachment.handle(), Trace::Block);
        match self.claim_block(cidr, attachment.node, self.late(attachment)).await? {
            Claimed::Ours(block) | Claimed::Theirs(block) => Ok(Known::Present(block)),
        }
    }

    /// A handle was there before: if an earlier ADD of this container is fully on record, its answer is
    /// repeated; otherwise what it left is taken away.
    async fn resume(
        &self,
        attachment: &Attachment<'_>,
        found: &IPAMHandle,
        wants: &[(Family, Want)],
        done: &Done,
    ) -> Result<Option<Vec<(Family, IpAddr, IpNetwork)>>, Error> {
        let handle = attachment.handle();
        let uid = attachment.pod.and_then(|p| p.uid).filter(|_| attachment.is_ahead());
        let blocks = self.blocks_of(found).await?;
        let mut recorded = Vec::new();
        for block in &blocks {
            if let Some(interface) = other_interface(&block.spec, &handle, attachment.interface) {
                let container = attachment.container_id.to_owned();
                return Err(Error::OtherInterface { container, interface: interface.to_owned() });
            }
            for (address, entry) in block.spec.entries() {
                if let Entry::Used { attribute, .. } = entry
                    && attribute.handle() == Some(handle.as_str())
                {
                    if attribute.secondary(POD_UID_KEY) != uid {
                        // An earlier pod of that name has not let go yet: the container's own handle is free.
                        return Err(Error::NotAhead(handle));
                    }
                    recorded.push((address, block.spec.cidr, is_fixed(attribute.secondary.as_ref())));
                }
            }
        }
        let answer: Vec<_> = wants
            .iter()
            .filter_map(|(family, want)| {
                let suits = |(address, _, fixed): &&(IpAddr, IpNetwork, bool)| {
                    Family::of(*address) == *family
                        && match want {
                            Want::Fixed(_) => *fixed && done.claims.iter().any(|h| h.address == *address),
                            Want::Explicit(wanted) => wanted == address,
                            Want::Random(_) => !*fixed,
                        }
                };
                recorded.iter().find(suits).map(|(address, cidr, _)| (*family, *address, *cidr))
            })
            .collect();
        if answer.len() == wants.len() && recorded.len() == wants.len() {
            return Ok(Some(answer));
        }
        if !recorded.is_empty() {
            self.release_handle(&handle, &attachment.whose(), None, self.late(attachment)).await?;
        }
        Ok(None)
    }

    /// Writes what an earlier ADD of this container recorded of fixed addresses once more, under the claims as they stand.
    /// As it was it may just be judged by a claim that was another's until this call: the collector takes that for what
    /// is left of an ADD that was refused. Or a release may be about to take it, of fixed addresses or others.
    async fn renew(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        earlier: &[(Family, IpAddr, IpNetwork)],
        done: &Done,
        reservations: &Reservations,
    ) -> Result<(), Error> {
        let anew = attachment.anew;
        for (family, address, cidr) in earlier.iter().copied().filter(|_| anew || !attachment.is_ahead()) {
            let held = done.claims.iter().find(|held| held.address == address);
            if held.is_none() && !anew {
                continue;
            }
            let which = Which::Exactly(address, held.map(|held| held.claim.value.generation));
            let placement = Placement { family, cidr, block: Known::Unread, which, right: None, renews: true };
            if self.write(attachment, snapshot, placement, reservations).await?.2.is_none() {
                return Err(Error::Overtaken("the block of an earlier attempt's address went"));
            }
        }
        Ok(())
    }

    /// Releases what earlier sandboxes of the pod have: a runtime whose ADD failed behind ours, at a chained plugin, goes on
    /// without a DEL. What cannot be released now is left to the pod's next ADD, or to the collector.
    async fn give_up_earlier(&self, attachment: &Attachment<'_>, handles: BTreeSet<String>) {
        let (whose, prefix) = (attachment.whose(), format!("{}.", attachment.net.network));
        for handle in handles {
            let container_id = handle.strip_prefix(&prefix).unwrap_or_default();
            let held = HeldBy { container_id, ..attachment.held_itself() };
            if let Err(error) = self.release_handle(&handle, &whose, Some(&held), self.late(attachment)).await {
                tracing::warn!(handle, %error, "what an earlier sandbox of the pod has could not be released");
            }
        }
    }

    /// Writes one entry into its block; no address if it filled up meanwhile.
    async fn write(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        placement: Placement,
        reservations: &Reservations,
    ) -> Result<(Family, IpNetwork, Option<IpAddr>), Error> {
        let Placement { family, cidr, block, which, right, renews } = placement;
        let edit = |displaces: Option<Judged>| {
            Edit::Assign(Box::new(Assign {
                which,
                allocation: self.allocation(attachment, snapshot, which),
                renews,
                displaces,
                ours: host(attachment.node),
                strict: snapshot.config.strict_affinity,
                cooldown: snapshot.config.cooldown_seconds(),
                ranges: attachment.net.ipam.ranges(family).cloned(),
                reservations: reservations.clone(),
            }))
        };
        let displaces = match (&right, &block) {
            (Some(right), Known::Present(block)) => Self::gives_way(right, block, &attachment.net.network),
            _ => None,
        };
        let mut committed = self.commit(cidr, edit(displaces), block, self.late(attachment)).await;
        if let (Some(right), Err(Error::Taken { .. })) = (&right, &committed)
            && let Some(judged) = self.judge(attachment, right, &cidr).await?
        {
            committed = self.commit(cidr, edit(Some(judged)), Known::Unread, self.late(attachment)).await;
        }
        match committed.map_err(|error| unless_own(error, attachment))? {
            Outcome::Assigned { address, displaced } => {
                if let Some(old) = displaced {
                    self.count_off(&old, &cidr, self.late(attachment)).await?;
                }
                Ok((family, cidr, Some(address)))
            }
            Outcome::Full | Outcome::Released { .. } | Outcome::Sides { .. } => Ok((family, cidr, None)),
        }
    }

    fn allocation(&self, attachment: &Attachment<'_>, snapshot: &Snapshot, which: Which) -> Allocation {
        let (handle, now) = (attachment.handle(), self.now());
        let mut allocation = match attachment.pod {
            _ if snapshot.machine.is_some() => snapshot
                .machine
                .as_ref()
                .map_or_else(|| Allocation::node("", "", now), |machine| machine.allocation(handle)),
            Some(pod) => Allocation::pod(handle, pod.namespace, pod.name, attachment.node, now),
            None => Allocation::node(handle, attachment.node, now),
        };
        if !attachment.is_ahead() && snapshot.machine.is_none() {
            allocation.secondary.insert(INTERFACE_KEY.to_owned(), attachment.interface.to_owned());
            if let Some(uid) = snapshot.pod.as_ref().and_then(pod::uid) {
                allocation.secondary.insert(CONTAINERS_POD_KEY.to_owned(), uid.to_owned());
            }
        }
        if let Which::Exactly(_, Some(generation)) = which {
            allocation.secondary.insert(CLAIM_KEY.to_owned(), generation.to_string());
        }
        if let Some(uid) = attachment.pod.and_then(|p| p.uid).filter(|_| attachment.is_ahead()) {
            allocation.secondary.insert(POD_UID_KEY.to_owned(), uid.to_owned());
        }
        allocation
    }

    /// The deadline for writes, which does not run while a holder is waited for.
    fn late(&self, attachment: &Attachment<'_>) -> Instant {
        attachment.deadline.max(Instant::now() + Duration::from_secs(5))
    }
}

/// An address that the pod itself has is nobody else's: the runtime's next attempt gets it.
fn unless_own(error: Error, attachment: &Attachment<'_>) -> Error {
    let Error::Taken { address, by: Some(by) } = &error else { return error };
    let uid = attachment.pod.and_then(|p| p.uid);
    if uid.is_some() && by.secondary(POD_UID_KEY) == uid { Error::Ahead(*address) } else { error }
}

/// Reads again after a pause that the API server asks for. Other failures go up: a runtime that hears of them
/// early tries again early.
async fn patiently<T, F>(deadline: Instant, read: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut backoff = Backoff::new(deadline);
    loop {
        match read().await {
            Err(Error::Store(error)) if matches!(error.failure, Failure::Busy(_)) => backoff.pause(error).await?,
            outcome => return outcome,
        }
    }
}

/// The handles of earlier sandboxes of the pod, as far as the node's own blocks show them: entries for the same pod and
/// interface that were made before this ADD began. A later sandbox's are none of them, if this ADD stood still.
fn earlier_sandboxes(
    attachment: &Attachment<'_>,
    snapshot: &Snapshot,
    own: &[IPAMBlock],
    begun: Timestamp,
) -> BTreeSet<String> {
    let Some(uid) = snapshot.pod.as_ref().and_then(pod::uid).filter(|_| !attachment.is_ahead()) else {
        return BTreeSet::new();
    };
    let (own_handle, prefix) = (attachment.handle(), format!("{}.", attachment.net.network));
    let entries = own.iter().flat_map(|block| block.spec.entries());
    let handles = entries.filter_map(|(_, entry)| {
        let Entry::Used { attribute, .. } = entry else { return None };
        let is = |key: &str, value: &str| attribute.secondary(key) == Some(value);
        let handle = attribute.handle().filter(|handle| *handle != own_handle && handle.starts_with(&prefix))?;
        let made = attribute.secondary("timestamp").and_then(calico::holder::parse_timestamp)?;
        let earlier = is(CONTAINERS_POD_KEY, uid) && is(INTERFACE_KEY, attachment.interface) && made < begun;
        earlier.then(|| handle.to_owned())
    });
    handles.collect()
}

/// Lets a pod whose machine has an address of a family ask for that one.
fn only_owned(wants: &mut [(Family, Want)], owned: &[Owned]) {
    for (family, want) in wants {
        if let (Want::Fixed(list), Some(owned)) =
            (want, owned.iter().find(|owned| Family::of(owned.address) == *family))
        {
            *list = vec![owned.address];
        }
    }
}

fn counted(blocks: impl Iterator<Item = IpNetwork>) -> Counts {
    let mut counts = Counts::new();
    for block in blocks {
        *counts.entry(block).or_default() += 1;
    }
    counts
}

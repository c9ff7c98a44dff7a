//! GC: releases what this node's containers left that the runtime does not know any more.
//!
//! An attachment is valid if the runtime lists its container with its interface. Entries of ours record the
//! interface; of others (calico-ipam's, from before a migration) the container alone is compared. What never
//! got as far as an entry is found by the handles that bear this node's label and by the claims that name this
//! node. The specification has the runtime run GC alone, without ADD or DEL beside it; a container that a call
//! of ours is busy with all the same is left to that call, and so is whatever was put on record after GC began: a
//! GC that stands still may outlive its runtime, whose successor has containers that were not there to be listed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::machine::is_machine_id;
use calico::{AffinityState, BlockAffinity, Entry, IPAMBlock, IPAMHandle};
use jiff::Timestamp;
use tokio::time::Instant;

use super::claims::in_flight;
use super::edit::Whose;
use super::release::HeldBy;
use super::{Attachment, Driver, Error, INTERFACE_KEY, Trace, handle, handle_of};
use crate::netconf::Attachment as Valid;
use crate::store::{Ledger, Objects, if_ours};

/// A container's leftovers that were released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// The container.
    pub container_id: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Whether the runtime knows an attachment; without an interface, whether it knows the container.
fn is_valid(valid: &[Valid], container: &str, interface: Option<&str>) -> bool {
    valid.iter().any(|v| v.container_id == container && interface.is_none_or(|i| v.ifname == i))
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Releases everything of this network on this node whose attachment is not in `valid`. Each one is read
    /// again before it is touched.
    ///
    /// # Errors
    /// The first failure; what could be released was released all the same.
    pub async fn gc(&self, attachment: &Attachment<'_>, valid: &[Valid]) -> Result<Vec<Collected>, Error> {
        let begun = self.now();
        let blocks = self.objects.list::<IPAMBlock>("").await?;
        let mut gone = self.unknown_entries(attachment, valid, &blocks);
        let handles = self.objects.list::<IPAMHandle>(&handle::node_selector(attachment.node)).await?;
        let prefix = format!("{}.", attachment.net.network);
        let containers = handles.iter().filter_map(|h| h.spec.handle_id.strip_prefix(&prefix));
        gone.extend(containers.filter(|c| !is_valid(valid, c, None)).map(str::to_owned));
        let mut collected = Vec::new();
        let mut failed = None;
        // A machine's address is released with the machine.
        for container_id in gone.into_iter().filter(|id| !is_machine_id(id)) {
            let handle = handle_of(&attachment.net.network, &container_id);
            if self.gate.is_busy(&handle) {
                continue;
            }
            let held = HeldBy { container_id: &container_id, interface: None, pod_uid: None, any_container: false };
            match self.release_handle(&handle, &Whose::Before(begun), Some(&held), attachment.deadline).await {
                Ok(freed) => {
                    self.gate.forget(&handle);
                    let addresses = freed.unwrap_or_default().into_iter().map(|f| f.address).collect();
                    collected.push(Collected { container_id, addresses });
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for step in [
            self.collect_claims(attachment, valid, &blocks, begun).await,
            self.settle_affinities(attachment.node, attachment.deadline).await,
        ] {
            failed = failed.or(step.err());
        }
        failed.map_or(Ok(collected), Err)
    }

    /// The containers with entries on this node that the runtime does not know.
    fn unknown_entries(&self, attachment: &Attachment<'_>, valid: &[Valid], blocks: &[IPAMBlock]) -> BTreeSet<String> {
        let prefix = format!("{}.", attachment.net.network);
        // A handle leads to one attachment: with one entry valid, all are.
        let mut known: BTreeMap<String, bool> = BTreeMap::new();
        for (_, entry) in blocks.iter().flat_map(|b| b.spec.entries()) {
            let Entry::Used { attribute, .. } = entry else { continue };
            let here = attribute.secondary("node") == Some(attachment.node);
            let container = attribute.handle().and_then(|h| h.strip_prefix(&prefix)).filter(|_| here);
            if let Some(container) = container {
                *known.entry(container.to_owned()).or_default() |=
                    is_valid(valid, container, attribute.secondary(INTERFACE_KEY));
            }
        }
        known.into_iter().filter(|(_, valid)| !valid).map(|(container, _)| container).collect()
    }

    /// Claims that name a container of this node which the runtime does not know and no block records: an ADD
    /// died between the two. Other networks may share the ledger, so a claim counts only if an ADD of this
    /// network left a note of it, or if no ADD can be under way any more.
    async fn collect_claims(
        &self,
        attachment: &Attachment<'_>,
        valid: &[Valid],
        blocks: &[IPAMBlock],
        begun: Timestamp,
    ) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        for claim in if_ours(ledger.all().await)?.unwrap_or_default() {
            let Some(holder) = claim.value.holder.as_ref().filter(|h| h.node == attachment.node) else { continue };
            let recorded = |b: &IPAMBlock| matches!(b.spec.entry(claim.value.address), Entry::Used { .. });
            let handle = handle_of(&attachment.net.network, &holder.container_id);
            let over = self.gate.noted(&handle, Trace::Claims) || !in_flight(holder, self.now());
            if is_machine_id(&holder.container_id)
                || is_valid(valid, &holder.container_id, Some(&holder.interface))
                || blocks.iter().any(recorded)
                || holder.since > begun
                || !over
                || self.gate.is_busy(&handle)
            {
                continue;
            }
            let held = HeldBy {
                container_id: &holder.container_id,
                interface: Some(&holder.interface),
                pod_uid: None,
                any_container: false,
            };
            self.give_up_claim(&claim, &held, attachment.deadline).await?;
            self.gate.forget(&handle);
        }
        Ok(())
    }

    /// Completes this node's block claims that a killed ADD left half done, or takes them back.
    pub async fn settle_affinities(&self, node: &str, deadline: Instant) -> Result<(), Error> {
        let half_done = |a: &BlockAffinity| {
            !a.is_deleted() && a.spec.node == node && a.spec.state == AffinityState::Pending.as_str()
        };
        for affinity in self.affinities(node).await?.into_iter().filter(half_done) {
            self.settle_affinity(affinity, deadline).await?;
        }
        Ok(())
    }
}

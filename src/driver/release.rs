//! DEL: everything that bears a container's handle is given back. Idempotent; without a handle nothing is written.
//!
//! Order: block, claim, handle. Whatever step is missing, the handle is still there for the next DEL to find.

use std::net::IpAddr;

use calico::{Entry, IPAMBlock, IPAMBlockSpec, IPAMConfig, IPAMConfigSpec, IPAMHandle, cidr_name, handle_name};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::converge::{Backoff, Known, Step};
use super::{Attachment, CLAIM_KEY, Driver, Error, INTERFACE_KEY, Trace};
use crate::claim::Claim;
use crate::store::{Ledger, Objects, Swap, Versioned};

/// An address that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// The address.
    pub address: IpAddr,
    /// Whether it was a fixed one, whose claim stays with its owner.
    pub fixed: bool,
}

/// Whose claims a release clears.
pub(super) struct HeldBy<'a> {
    pub container_id: &'a str,
    /// `None` releases whatever interface the claim names.
    pub interface: Option<&'a str>,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Releases a container's addresses. Releasing one that has none is success without a write.
    ///
    /// # Errors
    /// A store failed: the runtime must try again, and what was done already will not be done twice.
    pub async fn del(&self, attachment: &Attachment<'_>) -> Result<Vec<Freed>, Error> {
        let held = HeldBy { container_id: attachment.container_id, interface: Some(attachment.interface) };
        let (handle, deadline) = (attachment.handle(), attachment.deadline);
        let released = self.release_handle(&handle, Some(&held), deadline).await?;
        if released.is_none() && attachment.gate.noted(&handle, Trace::Claims) {
            self.give_up_claims(&held, deadline).await?;
        }
        if attachment.gate.noted(&handle, Trace::Block) {
            self.settle_affinities(attachment).await?;
        }
        attachment.gate.forget(&handle);
        let mut freed = released.unwrap_or_default();
        if let Some(pod) = attachment.pod {
            // The form of very old releases of Calico; nothing of ours is ever recorded under it.
            let workload = format!("{}.{}", pod.namespace, pod.name);
            freed.extend(self.release_handle(&workload, Some(&held), deadline).await?.unwrap_or_default());
        }
        Ok(freed)
    }

    /// Releases everything that bears `handle`, and the claims that `held` names; `None` if there is no such
    /// handle. A handle whose entries are of another interface is left as it is.
    pub(super) async fn release_handle(
        &self,
        handle: &str,
        held: Option<&HeldBy<'_>>,
        deadline: Instant,
    ) -> Result<Option<Vec<Freed>>, Error> {
        let Some(found) = self.objects.get::<IPAMHandle>(None, &handle_name(handle)).await? else {
            return Ok(None);
        };
        let interface = held.and_then(|h| h.interface);
        let config =
            self.objects.get::<IPAMConfig>(None, "default").await?.map_or_else(IPAMConfigSpec::default, |c| c.spec);
        let mut freed = Vec::new();
        for cidr in found.spec.blocks() {
            match self.release_in_block(handle, interface, cidr, config.cooldown_seconds(), deadline).await? {
                Some(released) => freed.extend(released),
                None => return Ok(Some(Vec::new())),
            }
        }
        if let Some(held) = held {
            self.clear_claims(&freed, held, deadline).await?;
        }
        self.drop_handle(found, deadline).await?;
        Ok(Some(freed))
    }

    /// `None` if the handle's entries in the block are recorded for another interface than the one given.
    async fn release_in_block(
        &self,
        handle: &str,
        interface: Option<&str>,
        cidr: IpNetwork,
        cooldown: i64,
        deadline: Instant,
    ) -> Result<Option<Vec<Freed>>, Error> {
        let now = self.now();
        // What an attempt without an answer had released is gone at the next look, so it is remembered.
        let mut attempted = Some(Vec::new());
        self.converge::<IPAMBlock, _, Error>(&cidr_name(&cidr), Known::Unread, deadline, |current| {
            let Some(mut block) = current else { return Ok(Step::Done(())) };
            if block.spec.is_deleted() {
                return Ok(Step::Finish(block));
            }
            block.spec.validate().map_err(|reason| Error::Damaged { block: cidr, reason })?;
            if interface.is_some_and(|i| other_interface(&block.spec, handle, i).is_some()) {
                attempted = None;
                return Ok(Step::Done(()));
            }
            block.spec.collect(cooldown, now);
            let released = block.spec.release_handle(handle, cooldown, now);
            if released.is_empty() {
                return Ok(Step::Done(()));
            }
            let freed = released
                .into_iter()
                .map(|r| Freed { address: r.address, fixed: is_fixed(r.attribute.secondary.as_ref()) });
            attempted = Some(freed.collect());
            if block.spec.is_empty() && block.spec.affinity().is_none() {
                return Ok(Step::Delete(block, ()));
            }
            block.spec.advance();
            Ok(Step::Replace(block, ()))
        })
        .await?;
        Ok(attempted)
    }

    /// Clears the holder of every fixed address that was released. A handle with nothing in its blocks is
    /// what a DEL leaves that got no further than the block; then the ledger itself is searched.
    async fn clear_claims(&self, freed: &[Freed], held: &HeldBy<'_>, deadline: Instant) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else {
            for freed in freed.iter().filter(|f| f.fixed) {
                tracing::warn!(address = %freed.address, "released, but its claim was not: no etcdConfig any more");
            }
            return Ok(());
        };
        let mut addresses: Vec<IpAddr> = freed.iter().filter(|f| f.fixed).map(|f| f.address).collect();
        if freed.is_empty() {
            let all = ledger.all().await?;
            addresses = all.into_iter().filter(|c| holds(&c.value, held)).map(|c| c.value.address).collect();
        }
        for address in addresses {
            self.clear_holder(ledger, address, held, deadline).await?;
        }
        Ok(())
    }

    /// Gives back the claims of a container that no handle leads to: its ADD died before it made one.
    async fn give_up_claims(&self, held: &HeldBy<'_>, deadline: Instant) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        for claim in ledger.all().await?.into_iter().filter(|c| holds(&c.value, held)) {
            self.give_up_claim(&claim, held, deadline).await?;
        }
        Ok(())
    }

    /// Gives back one of them: of the first generation it was made by that very ADD, and goes with its
    /// reservation; else it stays with its owner.
    pub(super) async fn give_up_claim(
        &self,
        claim: &Versioned<Claim>,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let address = claim.value.address;
        if claim.value.generation > 1 {
            return self.clear_holder(ledger, address, held, deadline).await;
        }
        self.drop_claim(ledger, &claim.value, held, deadline).await?;
        if ledger.read(address).await?.is_none() {
            self.unreserve_everywhere(address, deadline).await?;
        }
        Ok(())
    }

    /// Deletes a claim that an ADD made, unless somebody else has it by now.
    pub(super) async fn drop_claim(
        &self,
        ledger: &L,
        made: &Claim,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut backoff = Backoff::new(deadline);
        loop {
            let Some(standing) = ledger.read(made.address).await? else { return Ok(()) };
            let ours = standing.value.created == made.created
                && standing.value.owner == made.owner
                && standing.value.holder.as_ref().is_none_or(|_| holds(&standing.value, held));
            if !ours {
                return Ok(());
            }
            match ledger.swap(made.address, Some(standing.revision), None).await {
                Ok(Swap::Done(_)) => return Ok(()),
                // Somebody wrote in between: look again whose it is.
                Ok(Swap::Lost(_)) => {}
                Err(error) => backoff.pause(error).await?,
            }
        }
    }

    /// Sets a claim's holder to none, if it still is this container.
    pub(super) async fn clear_holder(
        &self,
        ledger: &L,
        address: IpAddr,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut backoff = Backoff::new(deadline);
        let mut standing = ledger.read(address).await?;
        loop {
            let Some(found) = standing.filter(|c| holds(&c.value, held)) else { return Ok(()) };
            match ledger.swap(address, Some(found.revision), Some(&found.value.released())).await {
                Ok(Swap::Done(_)) => return Ok(()),
                Ok(Swap::Lost(now)) => standing = now,
                Err(error) => {
                    backoff.pause(error).await?;
                    standing = ledger.read(address).await?;
                }
            }
        }
    }

    async fn drop_handle(&self, handle: IPAMHandle, deadline: Instant) -> Result<(), Error> {
        let name = handle_name(&handle.spec.handle_id);
        let released = handle.spec.block.clone();
        self.converge::<IPAMHandle, _, Error>(&name, Known::Present(handle), deadline, |current| {
            let Some(mut found) = current else { return Ok(Step::Done(())) };
            found.spec.block.retain(|cidr, _| !released.contains_key(cidr));
            Ok(if found.spec.block.is_empty() { Step::Delete(found, ()) } else { Step::Replace(found, ()) })
        })
        .await
        .map(|settled| settled.value)
    }
}

fn holds(claim: &Claim, held: &HeldBy<'_>) -> bool {
    match held.interface {
        Some(interface) => claim.is_held_by(held.container_id, interface),
        None => claim.holder.as_ref().is_some_and(|h| h.container_id == held.container_id),
    }
}

/// The interface for which a block records entries of `handle`, if it is not `interface`. Entries that name
/// none are anybody's.
pub(super) fn other_interface<'a>(block: &'a IPAMBlockSpec, handle: &str, interface: &str) -> Option<&'a str> {
    block.entries().find_map(|(_, entry)| match entry {
        Entry::Used { attribute, .. } if attribute.handle() == Some(handle) => {
            attribute.secondary(INTERFACE_KEY).filter(|recorded| *recorded != interface)
        }
        _ => None,
    })
}

/// Whether an allocation's attributes say that its address is a fixed one.
pub(super) fn is_fixed(secondary: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    secondary.is_some_and(|s| s.contains_key(CLAIM_KEY))
}

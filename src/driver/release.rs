//! DEL: everything that bears a container's handle is given back. Idempotent; without a handle nothing is written.
//!
//! Order: block, claim, handle. Whatever step is missing, the handle is still there for the next DEL to find.

use std::net::IpAddr;

use calico::{IPAMBlock, IPAMConfig, IPAMConfigSpec, IPAMHandle, cidr_name, handle_name};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::converge::{Known, Step};
use super::{Attachment, CLAIM_KEY, Driver, Error};
use crate::claim::Claim;
use crate::store::{Ledger, Objects, StoreError, Swap};

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
        let own = attachment.handle();
        // The form of very old releases of Calico; nothing of ours is ever recorded under it.
        let workload = attachment.pod.map(|pod| format!("{}.{}", pod.namespace, pod.name));
        let (found, of_workload, cooldown) = tokio::try_join!(
            self.find_handle(&own),
            async {
                match &workload {
                    Some(workload) => self.find_handle(workload).await,
                    None => Ok(None),
                }
            },
            self.cooldown(),
        )?;
        let mut freed = Vec::new();
        for (handle, found) in [(Some(own), found), (workload, of_workload)] {
            if let (Some(handle), Some(found)) = (handle, found) {
                freed.extend(self.release_found(&handle, found, cooldown, &held, attachment.deadline).await?);
            }
        }
        Ok(freed)
    }

    /// Releases everything that bears `handle`.
    pub(super) async fn release_handle(
        &self,
        handle: &str,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<Vec<Freed>, Error> {
        let (found, cooldown) = tokio::try_join!(self.find_handle(handle), self.cooldown())?;
        match found {
            Some(found) => self.release_found(handle, found, cooldown, held, deadline).await,
            None => Ok(Vec::new()),
        }
    }

    async fn find_handle(&self, handle: &str) -> Result<Option<IPAMHandle>, StoreError> {
        self.objects.get(None, &handle_name(handle)).await
    }

    /// Seconds for which a released address rests.
    async fn cooldown(&self) -> Result<i64, StoreError> {
        let config = self.objects.get::<IPAMConfig>(None, "default").await?;
        Ok(config.map_or_else(IPAMConfigSpec::default, |c| c.spec).cooldown_seconds())
    }

    async fn release_found(
        &self,
        handle: &str,
        found: IPAMHandle,
        cooldown: i64,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<Vec<Freed>, Error> {
        let mut freed = Vec::new();
        for cidr in found.spec.blocks() {
            freed.extend(self.release_in_block(handle, cidr, cooldown, deadline).await?);
        }
        self.clear_claims(&freed, held, deadline).await?;
        self.drop_handle(found, deadline).await?;
        Ok(freed)
    }

    async fn release_in_block(
        &self,
        handle: &str,
        cidr: IpNetwork,
        cooldown: i64,
        deadline: Instant,
    ) -> Result<Vec<Freed>, Error> {
        let now = self.now();
        // What an attempt without an answer had released is gone at the next look, so it is remembered.
        let mut attempted = Vec::new();
        self.converge::<IPAMBlock, _, Error>(&cidr_name(&cidr), Known::Unread, deadline, |current| {
            let Some(mut block) = current else { return Ok(Step::Done(())) };
            if block.spec.is_deleted() {
                return Ok(Step::Finish(block));
            }
            block.spec.validate().map_err(|reason| Error::Damaged { block: cidr, reason })?;
            block.spec.collect(cooldown, now);
            let released = block.spec.release_handle(handle, cooldown, now);
            if released.is_empty() {
                return Ok(Step::Done(()));
            }
            attempted = released
                .into_iter()
                .map(|r| Freed { address: r.address, fixed: is_fixed(r.attribute.secondary.as_ref()) })
                .collect();
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
        let Some(ledger) = &self.ledger else { return Ok(()) };
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

    /// Sets a claim's holder to none, if it still is this container.
    pub(super) async fn clear_holder(
        &self,
        ledger: &L,
        address: IpAddr,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        let mut backoff = super::converge::Backoff::new(deadline);
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
        let settled = self
            .converge::<IPAMHandle, _, Error>(&name, Known::Present(handle), deadline, |current| {
                let Some(mut found) = current else { return Ok(Step::Done(())) };
                found.spec.block.retain(|cidr, _| !released.contains_key(cidr));
                Ok(if found.spec.block.is_empty() { Step::Delete(found, ()) } else { Step::Replace(found, ()) })
            })
            .await?;
        Ok(settled.value)
    }
}

fn holds(claim: &Claim, held: &HeldBy<'_>) -> bool {
    match held.interface {
        Some(interface) => claim.is_held_by(held.container_id, interface),
        None => claim.holder.as_ref().is_some_and(|h| h.container_id == held.container_id),
    }
}

/// Whether an allocation's attributes say that its address is a fixed one.
pub(super) fn is_fixed(secondary: Option<&std::collections::BTreeMap<String, String>>) -> bool {
    secondary.is_some_and(|s| s.contains_key(CLAIM_KEY))
}

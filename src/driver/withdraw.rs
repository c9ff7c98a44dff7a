//! Taking an address back by hand: what a person was shown is the precondition of every write.
//!
//! Order: block, claim, handle, reservation. A crash in between leaves what a crash in a DEL leaves, or a
//! reservation without claim, which the same call made again removes.

use std::net::IpAddr;

use calico::{Expect, IPAMBlock, IPAMConfig, IPAMConfigSpec, ReleaseError, cidr_name};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::converge::{Backoff, Known, Step};
use super::reservation::Asks;
use super::{Driver, Error};
use crate::claim::Claim;
use crate::store::{Ledger, Objects, StoreError, Swap, Versioned};

/// What is to be taken back, as it was shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The address.
    pub address: IpAddr,
    /// The block's entry: the block, and whose allocation it is; `None` if there is none.
    pub entry: Option<(IpNetwork, Expect)>,
    /// The claim; `None` if there is none.
    pub claim: Option<Versioned<Claim>>,
    /// The block that the address lies in by today's pools, whether or not it exists.
    pub cidr: Option<IpNetwork>,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimFate {
    /// It stays with its owner, and nobody holds it.
    Keep,
    /// It goes, and so does the address's reservation.
    Drop,
}

/// Why an address was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum NotWithdrawn {
    /// Somebody else has the address by now, or has it anew.
    #[error("the allocation is not the one that was shown any more: {0}")]
    Changed(#[from] ReleaseError),
    /// The claim was written by somebody else in between. The allocation is released if `released` says so.
    #[error("the claim on {address} changed in between{}", if *released { "; its allocation was released" } else { "" })]
    ClaimChanged {
        /// The address.
        address: IpAddr,
        /// Whether the block had been written by then.
        released: bool,
    },
    /// A store failed.
    #[error(transparent)]
    Driver(#[from] Error),
}

impl From<StoreError> for NotWithdrawn {
    fn from(error: StoreError) -> Self {
        Self::Driver(error.into())
    }
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Releases the allocation and clears or drops the claim, if both still are as shown. Nobody is asked
    /// whether a pod uses the address: that is the caller's to find out.
    ///
    /// # Errors
    /// [`NotWithdrawn::Changed`] and, with `released` false, [`NotWithdrawn::ClaimChanged`]: nothing was
    /// written. Otherwise the same call made again, on what is shown then, completes it.
    pub async fn withdraw(&self, shown: &Shown, fate: ClaimFate, deadline: Instant) -> Result<(), NotWithdrawn> {
        self.claim_is_as_shown(shown).await?;
        let released = match &shown.entry {
            Some((cidr, expect)) => self.release_entry(shown.address, *cidr, expect, deadline).await?,
            None => false,
        };
        self.settle_claim(shown, fate, released, deadline).await?;
        if let Some((cidr, Expect { handle: Some(handle), .. })) = shown.entry.as_ref().filter(|_| released) {
            self.count_off(handle, cidr, deadline).await?;
        }
        if fate == ClaimFate::Drop {
            self.unreserve_everywhere(shown.address, deadline).await?;
            self.reserve_again(shown, deadline).await?;
        }
        Ok(())
    }

    async fn claim_is_as_shown(&self, shown: &Shown) -> Result<(), NotWithdrawn> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let standing = ledger.read(shown.address).await?;
        if standing.map(|c| c.revision) == shown.claim.as_ref().map(|c| c.revision) {
            return Ok(());
        }
        Err(NotWithdrawn::ClaimChanged { address: shown.address, released: false })
    }

    /// Whether this call released it; false if nobody had it any more.
    pub(super) async fn release_entry(
        &self,
        address: IpAddr,
        cidr: IpNetwork,
        expect: &Expect,
        deadline: Instant,
    ) -> Result<bool, NotWithdrawn> {
        let config = self.objects.get::<IPAMConfig>(None, "default").await?;
        let cooldown = config.map_or_else(IPAMConfigSpec::default, |c| c.spec).cooldown_seconds();
        let now = self.now();
        // Also after an attempt without an answer, whose effect the next look takes for somebody else's.
        let mut attempted = false;
        self.converge::<IPAMBlock, _, NotWithdrawn>(&cidr_name(&cidr), Known::Unread, deadline, |current| {
            let Some(mut block) = current else { return Ok(Step::Done(attempted)) };
            if block.spec.is_deleted() {
                return Ok(Step::Finish(block));
            }
            block.spec.validate().map_err(|reason| Error::Damaged { block: cidr, reason })?;
            block.spec.collect(cooldown, now);
            if block.spec.release_address(address, expect, cooldown, now)?.is_none() {
                return Ok(Step::Done(attempted));
            }
            attempted = true;
            if block.spec.is_empty() && block.spec.affinity().is_none() {
                return Ok(Step::Delete(block, true));
            }
            block.spec.advance();
            Ok(Step::Replace(block, true))
        })
        .await
        .map(|settled| settled.value)
    }

    async fn settle_claim(
        &self,
        shown: &Shown,
        fate: ClaimFate,
        released: bool,
        deadline: Instant,
    ) -> Result<(), NotWithdrawn> {
        let (Some(ledger), Some(claim)) = (&self.ledger, &shown.claim) else { return Ok(()) };
        let after = match fate {
            ClaimFate::Keep if claim.value.holder.is_none() => return Ok(()),
            ClaimFate::Keep => Some(claim.value.released()),
            ClaimFate::Drop => None,
        };
        let mut backoff = Backoff::new(deadline);
        loop {
            match ledger.swap(shown.address, Some(claim.revision), after.as_ref()).await {
                Ok(Swap::Done(_)) => return Ok(()),
                // A lost answer of ours, or somebody who wanted the same.
                Ok(Swap::Lost(standing)) if standing.as_ref().map(|c| &c.value) == after.as_ref() => return Ok(()),
                Ok(Swap::Lost(_)) => return Err(NotWithdrawn::ClaimChanged { address: shown.address, released }),
                Err(error) => backoff.pause(error).await?,
            }
        }
    }

    /// A claim made while the reservation went may have counted on it.
    async fn reserve_again(&self, shown: &Shown, deadline: Instant) -> Result<(), NotWithdrawn> {
        let (Some(ledger), Some(cidr)) = (&self.ledger, &shown.cidr) else { return Ok(()) };
        if ledger.read(shown.address).await?.is_some() {
            self.reserve(shown.address, cidr, Asks::ForClaim, deadline).await?;
        }
        Ok(())
    }
}

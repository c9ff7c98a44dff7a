//! Claims by hand: on an address that nobody has yet, and on one that a pod has already.
//!
//! Order: claim, reservation, block. Whatever is missing after a crash, the same call made again adds.

use std::net::IpAddr;

use calico::{Entry, Expect, IPAMBlock, IPReservation, cidr_name};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::converge::{Backoff, Known, Step};
use super::reservation::claimed_elsewhere;
use super::{CLAIM_KEY, Driver, Error};
use crate::claim::Claim;
use crate::store::{Ledger, Objects, Swap, Versioned};

/// The generation of a claim that was made by hand. A claim of the first one may be that of an ADD that was killed,
/// and goes with it.
pub const BY_HAND: u64 = 2;

/// A claim as it is to be, and what it takes the place of.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The claim.
    pub claim: Claim,
    /// The one that it replaces; equal if there is nothing to change.
    pub standing: Option<Versioned<Claim>>,
    /// The block that the address lies in by today's pools.
    pub cidr: IpNetwork,
    /// The block's entry that bears the address already: the block, and whose it is.
    pub entry: Option<(IpNetwork, Expect)>,
}

/// Why a claim was not made.
#[derive(Debug, thiserror::Error)]
pub enum NotClaimed {
    /// Somebody else has written the claim in between.
    #[error("the claim on {0} changed in between; nothing was written for it")]
    Changed(IpAddr),
    /// The pod has let the address go in between: the claim is its owner's, and nobody holds it.
    #[error("the pod has given {0} back in between; it is its owner's now, and held by nobody")]
    Gone(IpAddr),
    /// A store failed.
    #[error(transparent)]
    Driver(#[from] Error),
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Writes the claim with its reservation, and marks the block's entry as a fixed address.
    ///
    /// # Errors
    /// What kept it from being made; see [`NotClaimed`].
    pub async fn claim_by_hand(&self, wanted: &Wanted, deadline: Instant) -> Result<(), NotClaimed> {
        let Wanted { claim, standing, cidr, entry } = wanted;
        let Some(ledger) = &self.ledger else { return Err(Error::NoLedger(claim.address.to_string()).into()) };
        if standing.is_none() {
            let reservations = self.optional::<IPReservation>().await.map_err(Error::from)?;
            if let Some(found) = claimed_elsewhere(&reservations, claim.address, &ledger.name()) {
                return Err(Error::from(found).into());
            }
        }
        if standing.as_ref().map(|standing| &standing.value) != Some(claim) {
            self.put_claim(ledger, claim, standing.as_ref().map(|standing| standing.revision), deadline).await?;
        }
        self.mirror(claim.address, cidr, deadline).await?;
        let Some((block, expect)) = entry else { return Ok(()) };
        if self.mark_fixed(claim, *block, expect, deadline).await? {
            return Ok(());
        }
        // Its DEL came in between, and knew nothing of the claim.
        let still = ledger.read(claim.address).await.map_err(Error::from)?.filter(|still| still.value == *claim);
        if let Some(still) = still {
            self.put_claim(ledger, &claim.released(), Some(still.revision), deadline).await?;
        }
        Err(NotClaimed::Gone(claim.address))
    }

    async fn put_claim(
        &self,
        ledger: &L,
        claim: &Claim,
        expected: Option<i64>,
        deadline: Instant,
    ) -> Result<(), NotClaimed> {
        let mut backoff = Backoff::new(deadline);
        loop {
            match ledger.swap(claim.address, expected, Some(claim)).await {
                Ok(Swap::Done(_)) => return Ok(()),
                // The answer of an earlier attempt was lost.
                Ok(Swap::Lost(Some(now))) if now.value == *claim => return Ok(()),
                Ok(Swap::Lost(_)) => return Err(NotClaimed::Changed(claim.address)),
                Err(error) => backoff.pause(error).await.map_err(Error::from)?,
            }
        }
    }

    /// False if the entry is not the expected one any more.
    pub(super) async fn mark_fixed(
        &self,
        claim: &Claim,
        cidr: IpNetwork,
        expect: &Expect,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let (address, generation) = (claim.address, claim.generation.to_string());
        self.converge::<IPAMBlock, _, Error>(&cidr_name(&cidr), Known::Unread, deadline, |current| {
            let Some(mut block) = current.filter(|block| !block.spec.is_deleted()) else {
                return Ok(Step::Done(false));
            };
            block.spec.validate().map_err(|reason| Error::Damaged { block: cidr, reason })?;
            let same = matches!(block.spec.entry(address), Entry::Used { attribute, sequence }
                if attribute.handle() == expect.handle.as_deref() && sequence == expect.sequence);
            Ok(match same {
                false => Step::Done(false),
                true if !block.spec.amend(address, CLAIM_KEY, &generation) => Step::Done(true),
                true => {
                    block.spec.advance();
                    Step::Replace(block, true)
                }
            })
        })
        .await
        .map(|settled| settled.value)
    }
}

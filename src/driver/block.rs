//! Claiming blocks for this node, and taking empty ones back from others.

use std::time::Duration;

use calico::{AffinityState, BlockAffinity, IPAMBlock, IPAMBlockSpec, affinity_name, cidr_name};
use ipnetwork::IpNetwork;
use jiff::SignedDuration;
use tokio::time::Instant;

use super::converge::{Known, Step};
use super::mend::is_version;
use super::snapshot::host;
use super::{Driver, Error};
use crate::store::{Ledger, Objects, StoreError};

/// A block claimed more recently is left to its node even if it is empty: that node is about to use it.
const YOUNG: SignedDuration = SignedDuration::from_secs(60);

/// Time for what follows the block, if the call's own is used up.
const SECOND_PHASE: Duration = Duration::from_secs(5);

/// How often an affinity is made that others take away at once.
const RESTORINGS: usize = 8;

/// Whose block it turned out to be.
pub(super) enum Claimed {
    /// This node's, with a confirmed affinity.
    Ours(IPAMBlock),
    /// Another's, or nobody's.
    Theirs(IPAMBlock),
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Claims `cidr` in Calico's two phases: affinity pending, block, affinity confirmed. Whatever an earlier
    /// attempt left half done is completed; a lost race takes the own pending affinity back.
    pub(super) async fn claim_block(&self, cidr: IpNetwork, node: &str, deadline: Instant) -> Result<Claimed, Error> {
        let affinity = self.pending_affinity(cidr, node, deadline).await?;
        let now = self.now();
        let ours = host(node);
        let settled = self
            .converge::<IPAMBlock, (), Error>(&cidr_name(&cidr), Known::Absent, deadline, |current| {
                Ok(match current {
                    None => Step::Create(IPAMBlockSpec::new(cidr, &ours, now).object(), ()),
                    Some(block) if block.spec.is_deleted() => Step::Finish(block),
                    Some(_) => Step::Done(()),
                })
            })
            .await?;
        let block = settled.object.ok_or(Error::Overtaken("a block went as soon as it was claimed"))?;
        // However long that took: a block is not left without its affinity for want of time.
        let deadline = deadline.max(Instant::now() + SECOND_PHASE);
        if block.spec.host() != Some(node) {
            self.drop_affinity(affinity, deadline).await?;
            return Ok(Claimed::Theirs(block));
        }
        if self.confirm_seen(&affinity, deadline).await? || self.restore_affinity(cidr, node, deadline).await? {
            return Ok(Claimed::Ours(block));
        }
        let theirs = self.read_block(cidr).await?;
        theirs.map(Claimed::Theirs).ok_or(Error::Overtaken("a block went as soon as it was claimed"))
    }

    /// Whether a node's affinity to a block is confirmed.
    pub(super) async fn has_affinity(&self, block: &IPAMBlock, node: &str) -> Result<bool, StoreError> {
        let affinity = self.objects.get::<BlockAffinity>(None, &affinity_name(node, &block.spec.cidr)).await?;
        Ok(affinity.is_some_and(|found| found.is_confirmed() && !found.is_deleted()))
    }

    async fn pending_affinity(&self, cidr: IpNetwork, node: &str, deadline: Instant) -> Result<BlockAffinity, Error> {
        let settled = self
            .converge::<BlockAffinity, (), Error>(&affinity_name(node, &cidr), Known::Absent, deadline, |current| {
                Ok(match current {
                    None => Step::Create(BlockAffinity::pending(&host(node), &cidr), ()),
                    Some(found) if found.is_deleted() => Step::Finish(found),
                    Some(found) if found.spec.state == AffinityState::PendingDeletion.as_str() => {
                        Step::Replace(found.with_state(AffinityState::Pending), ())
                    }
                    Some(_) => Step::Done(()),
                })
            })
            .await?;
        settled.object.ok_or(Error::Overtaken("an affinity went as soon as it was made"))
    }

    /// Confirms an affinity in the version that was seen, or finds it confirmed; false if somebody has changed it since:
    /// who stood still for long enough to lose the block finds that the affinity is gone or going, too.
    pub(super) async fn confirm_seen(&self, seen: &BlockAffinity, deadline: Instant) -> Result<bool, Error> {
        let name = affinity_name(&seen.spec.node, &seen.spec.cidr);
        let settled = self.converge::<_, _, Error>(&name, Known::Present(seen.clone()), deadline, |current| {
            Ok(match current {
                Some(found) if found.is_confirmed() && !found.is_deleted() => Step::Done(true),
                Some(found) if is_version(&found, seen) => {
                    Step::Replace(found.with_state(AffinityState::Confirmed), true)
                }
                _ => Step::Done(false),
            })
        });
        Ok(settled.await?.value)
    }

    /// Begins to take another node's affinity away. Gives it as it is stored then; `None` if it is gone.
    async fn mark_leaving(&self, affinity: BlockAffinity, deadline: Instant) -> Result<Option<BlockAffinity>, Error> {
        let name = affinity_name(&affinity.spec.node, &affinity.spec.cidr);
        let settled = self.converge::<_, (), Error>(&name, Known::Present(affinity), deadline, |current| {
            Ok(match current {
                Some(found) if found.is_deleted() => Step::Finish(found),
                Some(found) if found.spec.state != AffinityState::PendingDeletion.as_str() => {
                    Step::Replace(found.with_state(AffinityState::PendingDeletion), ())
                }
                _ => Step::Done(()),
            })
        });
        Ok(settled.await?.object)
    }

    /// Deletes an affinity in the version that was seen: whoever has changed it since is at work on the block, and
    /// may have confirmed it.
    async fn drop_affinity(&self, affinity: BlockAffinity, deadline: Instant) -> Result<(), Error> {
        self.remove_as_seen(&affinity, deadline).await.map(drop)
    }

    /// A pending affinity of this node that nobody is at work on: confirmed if the block is the node's, else dropped.
    /// An ADD that is under way all the same makes it again.
    pub(super) async fn settle_affinity(&self, affinity: BlockAffinity, deadline: Instant) -> Result<(), Error> {
        let block = self.read_block(affinity.spec.cidr).await?;
        if block.is_some_and(|b| b.spec.host() == Some(affinity.spec.node.as_str())) {
            self.confirm_seen(&affinity, deadline).await.map(drop)
        } else {
            self.drop_affinity(affinity, deadline).await
        }
    }

    /// Gives a block the affinity that its node lost: an ADD dropped it for half done while another claimed the
    /// block, and was killed. The block is written in between, so that nobody who saw no affinity deletes it. False
    /// if it is the node's no more.
    pub(crate) async fn restore_affinity(&self, cidr: IpNetwork, node: &str, deadline: Instant) -> Result<bool, Error> {
        for _ in 0..RESTORINGS {
            let affinity = self.pending_affinity(cidr, node, deadline).await?;
            if !self.keep_block(cidr, node, deadline).await? {
                self.drop_affinity(affinity, deadline).await?;
                return Ok(false);
            }
            if self.confirm_seen(&affinity, deadline).await? {
                return Ok(true);
            }
        }
        Err(Error::Overtaken("an affinity went as soon as it was made"))
    }

    /// Writes a node's block as it is, so that whoever is about to delete the version that it saw finds another one.
    /// False if it is not the node's.
    pub(super) async fn keep_block(&self, cidr: IpNetwork, node: &str, deadline: Instant) -> Result<bool, Error> {
        let name = cidr_name(&cidr);
        let settled = self.converge::<IPAMBlock, _, Error>(&name, Known::Unread, deadline, |current| {
            Ok(match current {
                Some(mut block) if !block.spec.is_deleted() && block.spec.host() == Some(node) => {
                    block.spec.advance();
                    Step::Replace(block, true)
                }
                _ => Step::Done(false),
            })
        });
        Ok(settled.await?.value)
    }

    /// Frees an empty block of another node, so that it can be claimed; false if it is in use, young, or has
    /// changed since it was read.
    pub(crate) async fn reclaim_block(&self, block: &IPAMBlock, deadline: Instant) -> Result<bool, Error> {
        let Some(owner) = block.spec.host().map(str::to_owned) else { return Ok(false) };
        if !block.spec.is_empty() || !self.is_old(block) {
            return Ok(false);
        }
        let cidr = block.spec.cidr;
        let mut affinity = self.objects.get::<BlockAffinity>(None, &affinity_name(&owner, &cidr)).await?;
        if let Some(found) = affinity.take() {
            affinity = self.mark_leaving(found, deadline).await?;
        }
        let seen = block.spec.sequence_number;
        let settled = self
            .converge::<_, _, Error>(&cidr_name(&cidr), Known::Present(block.clone()), deadline, |current| {
                Ok(match current {
                    Some(block) if block.spec.sequence_number == seen => Step::Delete(block, true),
                    Some(_) => Step::Done(false),
                    None => Step::Done(true),
                })
            })
            .await?;
        if let Some(affinity) = affinity {
            if settled.value {
                self.drop_affinity(affinity, deadline).await?;
            } else {
                self.confirm_seen(&affinity, deadline).await?;
            }
        }
        Ok(settled.value)
    }

    fn is_old(&self, block: &IPAMBlock) -> bool {
        block.spec.claimed_at().is_none_or(|claimed| self.now().duration_since(claimed) >= YOUNG)
    }
}

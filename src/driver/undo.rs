//! Taking back what an ADD wrote that failed.

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::claims::{Held, Taken};
use super::converge::Backoff;
use super::machine::Machine;
use super::{Attachment, Driver, Error};
use crate::store::{Failure, Ledger, Objects, StoreError};

/// Time for taking back what a failed ADD left, after its own deadline.
const UNDO_TIME: Duration = Duration::from_secs(4);

/// What an ADD has done that must be taken back if it fails.
#[derive(Default)]
pub(super) struct Done {
    pub claims: Vec<Held>,
    pub reserved: Vec<(IpAddr, IpNetwork)>,
    pub handle: bool,
    /// The virtual machine that the pod runs.
    pub machine: Option<Machine>,
    /// The blocks that entries were written to, or may have been.
    pub blocks: Vec<IpNetwork>,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Whether to undo now. An API server that has asked to be left alone is left alone for so long; if that is
    /// too long for this call, undoing is left to DEL, which finds what there is by the handle and the notes; and so it is
    /// while Calico's datastore is locked.
    pub(super) async fn may_undo(&self, attachment: &Attachment<'_>, error: &Error) -> bool {
        if matches!(error, Error::Locked) {
            tracing::warn!(
                container = attachment.container_id,
                "Calico's datastore is locked; DEL undoes this ADD later"
            );
            return false;
        }
        let Error::Store(StoreError { failure: Failure::Busy(wait), .. }) = error else { return true };
        let soon = *wait <= UNDO_TIME;
        if soon {
            tokio::time::sleep(*wait).await;
        } else {
            tracing::warn!(container = attachment.container_id, "the API server asks for a pause; DEL undoes this ADD");
        }
        soon
    }

    /// Takes back what a failed ADD wrote. What cannot be reached now is left to DEL, which finds it by the handle.
    pub(super) async fn undo(&self, attachment: &Attachment<'_>, done: Done) {
        let deadline = Instant::now() + UNDO_TIME;
        let held = attachment.held_itself();
        if let Some(machine) = &done.machine {
            Box::pin(self.undo_machine(attachment, machine, &done, deadline)).await;
        } else if done.handle
            && let Err(error) = self.undo_handle(attachment, &done.blocks, deadline).await
        {
            tracing::warn!(container = attachment.container_id, %error, "a failed ADD could not be undone now; DEL will");
        }
        let Some(ledger) = &self.ledger else { return };
        for claimed in done.claims.into_iter().filter(|_| done.machine.is_none()) {
            let result = match claimed.taken {
                None => Ok(()),
                Some(Taken::Existing) => self.give_back(ledger, &claimed.claim.value, &held, deadline).await,
                Some(Taken::New) => self.drop_claim(ledger, &claimed.claim.value, &held, deadline).await,
            };
            if let Err(error) = result {
                tracing::warn!(address = %claimed.address, %error, "a claim could not be given back");
            }
        }
        for (address, cidr) in done.reserved {
            if let Ok(None) = ledger.read(address).await
                && let Err(error) = self.unreserve(address, &cidr, deadline).await
            {
                tracing::warn!(%address, %error, "a reservation could not be taken back");
            }
        }
    }

    /// Releases what was written and what else stands under the handle, however often that is tried: the DEL may have
    /// been before it. Then the handle is gone, too, or a collector has made it count what stood there so far.
    async fn undo_handle(
        &self,
        attachment: &Attachment<'_>,
        blocks: &[IpNetwork],
        deadline: Instant,
    ) -> Result<(), Error> {
        let (handle, whose, held) = (attachment.handle(), attachment.whose(), attachment.held_itself());
        let mut backoff = Backoff::new(deadline);
        loop {
            let released = async {
                self.release_in(blocks.iter().copied(), &handle, &whose, deadline).await?;
                self.release_handle(&handle, &whose, Some(&held), deadline).await
            };
            match released.await {
                Err(Error::Store(error)) => backoff.pause(error).await?,
                outcome => return outcome.map(drop),
            }
        }
    }
}

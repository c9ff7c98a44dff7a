//! DEL: everything that bears a container's handle is given back. Idempotent; without a handle nothing is written.
//!
//! Order: block, claim, handle. Whatever step is missing, the handle is still there for the next DEL to find.

use std::net::IpAddr;
use std::time::Duration;

use calico::machine::is_machine_id;
use calico::{
    Entry, IPAMBlock, IPAMBlockSpec, IPAMConfig, IPAMConfigSpec, IPAMHandle, IPPool, cidr_name, covering, handle_name,
};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::converge::{Backoff, Known, Step};
use super::edit::{Edit, Outcome, Release, Whose};
use super::{Attachment, Driver, Error, INTERFACE_KEY, POD_UID_KEY, Trace};
use crate::claim::Claim;
use crate::netconf::Dialect;
use crate::store::{Failure, Ledger, Objects, StoreError, Swap, Versioned, if_ours};

/// Time for the deletion of a handle that nobody waits for.
const FINISH_TIME: Duration = Duration::from_secs(30);

/// An address that was given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// The address.
    pub address: IpAddr,
    /// Whether it was a fixed one, whose claim stays with its owner.
    pub fixed: bool,
}

/// Whose claims a release clears.
#[derive(Clone, Copy)]
pub(super) struct HeldBy<'a> {
    pub container_id: &'a str,
    /// `None` releases whatever interface the claim names.
    pub interface: Option<&'a str>,
    /// A claim that was taken before a container was known is the pod's.
    pub pod_uid: Option<&'a str>,
    /// Whether the pod's UID is enough: an address that was recorded for the pod, and was released with its last
    /// sandbox, may still be claimed under an earlier one's name.
    pub any_container: bool,
}

impl Attachment<'_> {
    pub(super) fn held(&self) -> HeldBy<'_> {
        HeldBy {
            container_id: self.container_id,
            interface: Some(self.interface),
            pod_uid: self.pod.and_then(|p| p.uid),
            any_container: false,
        }
    }

    /// The same without what the pod has ahead of its containers, unless this is that.
    pub(super) fn held_itself(&self) -> HeldBy<'_> {
        let held = self.held();
        HeldBy { pod_uid: held.pod_uid.filter(|_| self.is_ahead()), ..held }
    }

    /// What this attachment's own handle covers.
    pub(super) fn whose(&self) -> Whose {
        if self.is_ahead() {
            return Whose::Pod { uid: self.pod.and_then(|p| p.uid).map(str::to_owned), container: None };
        }
        Whose::Container { interface: Some(self.interface.to_owned()) }
    }
}

/// How long a claim is tried to name its container: an ADD may wait for it.
const NAMING_TIME: Duration = Duration::from_secs(2);

/// A swap that somebody else's was before.
fn lost(address: IpAddr) -> StoreError {
    StoreError::new("txn", format!("claim {address}"), Failure::Conflict)
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Releases a container's addresses. Releasing one that has none is success without a write.
    ///
    /// # Errors
    /// A store failed: the runtime must try again, and what was done already will not be done twice.
    pub async fn del(&self, attachment: &Attachment<'_>) -> Result<Vec<Freed>, Error> {
        let (handle, deadline) = (attachment.handle(), attachment.deadline);
        let held = attachment.held();
        let own = attachment.held_itself();
        let containers = async {
            let released = self.release_handle(&handle, &attachment.whose(), Some(&own), deadline).await?;
            if released.is_none() && self.gate.noted(&handle, Trace::Claims) {
                self.give_up_claims(&own, deadline).await?;
            }
            if self.gate.noted(&handle, Trace::Block) {
                self.settle_affinities(attachment.node, deadline).await?;
            }
            self.gate.forget(&handle);
            Ok(released.unwrap_or_default())
        };
        let pods = async {
            let Some(pod) = attachment.pod.filter(|_| attachment.last_sandbox && !attachment.is_ahead()) else {
                return self.release_bare(attachment).await;
            };
            let uid = pod.uid.map(str::to_owned);
            let whose = Whose::Pod { uid, container: Some(attachment.container_id.to_owned()) };
            Ok(self.release_handle(&pod.handle(), &whose, Some(&held), deadline).await?.unwrap_or_default())
        };
        // Beside the first reads. Only a write needs the answer, and asks for it: what has nothing to release is
        // released, locked or not.
        let mut look = std::pin::pin!(self.may_write());
        // Both to their end: what one has released is not undone by the other's failure.
        let mut work = std::pin::pin!(futures::future::join(containers, pods));
        let mut said = None;
        let released = loop {
            tokio::select! {
                biased;
                released = &mut work => break released,
                found = &mut look, if said.is_none() => said = Some(found),
            }
        };
        let (mut freed, of_pod) = match released {
            (Ok(freed), Ok(of_pod)) => (freed, of_pod),
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        freed.extend(of_pod);
        if freed.is_empty() {
            // To its end: a look that nobody polls any more would keep what is written now waiting for its answer.
            let said = match said {
                Some(said) => said,
                None => look.await,
            };
            // What a virtual machine has bears neither handle.
            freed = Box::pin(self.del_of_machine(attachment)).await?;
            // Nothing is there to be released, unless a migration has taken it to another group, and deletes it here.
            let locked = freed.is_empty() && said.is_err_and(|error| error.is_locked());
            if locked && self.objects.newer_is_ready().await? == Some(true) {
                return Err(Error::Locked);
            }
        }
        Ok(freed)
    }

    /// Releases what very old releases of Calico recorded for a container that is no pod's: its id alone was the handle.
    async fn release_bare(&self, attachment: &Attachment<'_>) -> Result<Vec<Freed>, Error> {
        if attachment.pod.is_some() || attachment.net.ipam.dialect != Dialect::CalicoIpam {
            return Ok(Vec::new());
        }
        let whose = Whose::Container { interface: None };
        let released = self.release_handle(attachment.container_id, &whose, None, attachment.deadline).await?;
        Ok(released.unwrap_or_default())
    }

    /// Releases what bears `handle`, as far as it is `whose`, and the claims that `held` names; `None` if there
    /// is no such handle. One that bears entries of others stays.
    pub(super) async fn release_handle(
        &self,
        handle: &str,
        whose: &Whose,
        held: Option<&HeldBy<'_>>,
        deadline: Instant,
    ) -> Result<Option<Vec<Freed>>, Error> {
        let Some(found) = self.objects.get::<IPAMHandle>(None, &handle_name(handle)).await? else {
            return Ok(None);
        };
        let (freed, shared) = self.release_in(found.spec.blocks(), handle, whose, deadline).await?;
        // A later pod's ADD may have made it, and not have written its block yet.
        let shared = shared || whose.is_other_pods(&found);
        if shared && freed.is_empty() {
            return Ok(Some(freed));
        }
        if let Some(held) = held {
            let any_container = matches!(whose, Whose::Pod { .. }) && !freed.is_empty();
            self.clear_claims(&freed, &HeldBy { any_container, ..*held }, deadline).await?;
        }
        match (&self.drop_later, whose) {
            _ if shared => {}
            // Nothing is recorded under it any more; a later pod of the same name waits until it is gone.
            (Some(later), _) if later(&found) => {}
            _ => self.drop_handle(found, deadline).await?,
        }
        Ok(Some(freed))
    }

    /// Releases what bears `handle` in these blocks, as far as it is `whose`; and whether it bears entries of others.
    pub(super) async fn release_in(
        &self,
        blocks: impl IntoIterator<Item = IpNetwork>,
        handle: &str,
        whose: &Whose,
        deadline: Instant,
    ) -> Result<(Vec<Freed>, bool), Error> {
        let config =
            self.objects.get::<IPAMConfig>(None, "default").await?.map_or_else(IPAMConfigSpec::default, |c| c.spec);
        let (mut freed, mut shared) = (Vec::new(), false);
        for cidr in blocks {
            let edit = Edit::Release(Release::new(handle, whose.clone(), config.cooldown_seconds()));
            if let Outcome::Released { freed: released, others } =
                self.commit(cidr, edit, Known::Unread, deadline).await?
            {
                freed.extend(released);
                shared |= others;
            }
        }
        Ok((freed, shared))
    }

    /// Deletes a handle whose addresses were released, unless somebody has written it since.
    pub async fn finish_handle(&self, handle: IPAMHandle) -> Result<(), Error> {
        self.drop_handle(handle, Instant::now() + FINISH_TIME).await
    }

    /// Clears the holder of every fixed address that was released. A handle with nothing in its blocks is
    /// what a DEL leaves that got no further than the block; then the ledger itself is searched.
    async fn clear_claims(&self, freed: &[Freed], held: &HeldBy<'_>, deadline: Instant) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else {
            freed.iter().filter(|f| f.fixed).for_each(|f| no_claim(f.address));
            return Ok(());
        };
        if freed.is_empty() {
            let all = if_ours(ledger.all().await)?.unwrap_or_default();
            for claim in all.into_iter().filter(|c| holds(&c.value, held)) {
                self.give_back(ledger, &claim.value, held, deadline).await?;
            }
        }
        for address in freed.iter().filter(|f| f.fixed).map(|f| f.address) {
            self.clear_holder(ledger, address, held, deadline).await?;
        }
        Ok(())
    }

    /// Gives back the claims of a container that no handle leads to: its ADD died before it made one.
    pub(super) async fn give_up_claims(&self, held: &HeldBy<'_>, deadline: Instant) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let all = if_ours(ledger.all().await)?.unwrap_or_default();
        for claim in all.into_iter().filter(|c| holds(&c.value, held)) {
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
            return self.give_back(ledger, &claim.value, held, deadline).await;
        }
        self.drop_claim(ledger, &claim.value, held, deadline).await?;
        if ledger.read(address).await?.is_none() {
            self.unreserve_everywhere(address, deadline).await?;
        }
        Ok(())
    }

    /// Deletes a claim that an ADD made, unless somebody else has it by now, or the pod itself by a record that was made
    /// ahead of its containers.
    pub(super) async fn drop_claim(
        &self,
        ledger: &L,
        made: &Claim,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        if self.is_on_record_ahead(made).await? {
            return Ok(());
        }
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
                Ok(Swap::Lost(_)) => backoff.pause(lost(made.address)).await?,
                Err(error) => backoff.pause(error).await?,
            }
        }
    }

    /// Sets a claim's holder to none, if it still is this container, which may never have had the address: not if the
    /// pod has it by a record that was made ahead of its containers. With that record the claim is given back.
    pub(super) async fn give_back(
        &self,
        ledger: &L,
        claim: &Claim,
        held: &HeldBy<'_>,
        deadline: Instant,
    ) -> Result<(), Error> {
        if self.is_on_record_ahead(claim).await? {
            return Ok(());
        }
        self.clear_holder(ledger, claim.address, held, deadline).await
    }

    /// Whether the pod that a claim names has the address by a record that was made ahead of its containers.
    async fn is_on_record_ahead(&self, claim: &Claim) -> Result<bool, Error> {
        let (address, Some(holder)) = (claim.address, &claim.holder) else { return Ok(false) };
        let pools = self.objects.list_cached::<IPPool>("").await?;
        let Some(cidr) = covering(&pools, address).map(|pool| pool.spec.block_of(address)) else { return Ok(false) };
        let block = self.objects.fresh::<IPAMBlock>(None, &cidr_name(&cidr)).await?;
        let entry = block.as_ref().map(|block| block.spec.entry(address));
        let of_pod = |uid: Option<&str>| uid == Some(&holder.pod_uid);
        Ok(matches!(entry, Some(Entry::Used { attribute, .. }) if of_pod(attribute.secondary(POD_UID_KEY))))
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
        let Some(mut standing) = if_ours(ledger.read(address).await)? else {
            no_claim(address);
            return Ok(());
        };
        loop {
            let Some(found) = standing.filter(|c| holds(&c.value, held)) else { return Ok(()) };
            match ledger.swap(address, Some(found.revision), Some(&found.value.released())).await {
                Ok(Swap::Done(_)) => return Ok(()),
                Ok(Swap::Lost(now)) => {
                    backoff.pause(lost(address)).await?;
                    standing = now;
                }
                Err(error) => {
                    backoff.pause(error).await?;
                    standing = ledger.read(address).await?;
                }
            }
        }
    }

    /// Lets a claim that was taken before the pod had a container name the one it has by now. That is the one in the note
    /// on this node: whoever comes late with an earlier one changes nothing.
    pub async fn name_container(
        &self,
        address: IpAddr,
        pod_uid: &str,
        container_id: &str,
        interface: &str,
    ) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let mut backoff = Backoff::new(Instant::now() + NAMING_TIME);
        let mut standing = ledger.read(address).await?;
        loop {
            let Some(found) = standing else { return Ok(()) };
            let mut claim = found.value;
            match &mut claim.holder {
                // A machine is the holder itself.
                Some(holder) if is_machine_id(&holder.container_id) => return Ok(()),
                Some(holder) if holder.pod_uid == pod_uid && holder.container_id != container_id => {
                    (holder.container_id, holder.interface) = (container_id.to_owned(), interface.to_owned());
                }
                _ => return Ok(()),
            }
            // Looked at after the claim was read: a later sandbox changes both.
            if self.gate.container_of(pod_uid).is_none_or(|noted| noted != container_id) {
                return Ok(());
            }
            match ledger.swap(address, Some(found.revision), Some(&claim)).await? {
                Swap::Done(_) => return Ok(()),
                Swap::Lost(now) => {
                    backoff.pause(lost(address)).await?;
                    standing = now;
                }
            }
        }
    }

    async fn drop_handle(&self, handle: IPAMHandle, deadline: Instant) -> Result<(), Error> {
        let name = handle_name(&handle.spec.handle_id);
        let (uid, released) = (handle.metadata.uid.clone(), handle.spec.block.clone());
        self.converge::<IPAMHandle, _, Error>(&name, Known::Present(handle), deadline, |current| {
            Ok(match current {
                // Another pod's of the same name by now: what it counts is not what was released here.
                Some(found) if found.metadata.uid != uid => Step::Done(()),
                Some(mut found) => {
                    found.spec.block.retain(|cidr, _| !released.contains_key(cidr));
                    if found.spec.block.is_empty() { Step::Delete(found, ()) } else { Step::Replace(found, ()) }
                }
                None => Step::Done(()),
            })
        })
        .await
        .map(|settled| settled.value)
    }
}

/// The ledger in which the address was claimed is not named any more, or its kind was deleted.
fn no_claim(address: IpAddr) {
    tracing::warn!(%address, "a fixed address was released, but its claim was not: there is no ledger of this cluster");
}

/// By the container, or by the pod as long as the claim names no container.
fn holds(claim: &Claim, held: &HeldBy<'_>) -> bool {
    let Some(holder) = &claim.holder else { return false };
    let of_pod = held.pod_uid.is_some_and(|uid| uid == holder.pod_uid);
    if holder.container_id.is_empty() || (held.any_container && of_pod) {
        return of_pod;
    }
    holder.container_id == held.container_id && held.interface.is_none_or(|interface| interface == holder.interface)
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

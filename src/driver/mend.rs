//! Putting right what crashes and lost nodes leave: each write for what was seen, and for nothing that came after.

use std::collections::BTreeMap;
use std::net::IpAddr;

use calico::{
    BlockAffinity, Entry, Expect, Holder as Allocation, IPAMBlock, IPAMConfig, IPAMConfigSpec, IPAMHandle,
    Reservations, cidr_name, handle_name,
};
use futures::future::try_join_all;
use ipnetwork::IpNetwork;
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::converge::{Backoff, Known, Step};
use super::edit::{Assign, Edit, Outcome, Which};
use super::handle::{Counts, object_of};
use super::reservation::Asks;
use super::snapshot::host;
use super::{CLAIM_KEY, Driver, Error, NotWithdrawn, POD_UID_KEY, PodRef};
use crate::claim::Claim;
use crate::store::{Ledger, Object, Objects, Swap, Versioned};

/// An address that a running pod has and no block records.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    /// The address.
    pub address: IpAddr,
    /// The block that it belongs in.
    pub cidr: IpNetwork,
    /// Whose it is.
    pub namespace: String,
    /// Whose it is.
    pub pod: String,
    /// The pod's UID as its node knows it.
    pub uid: String,
    /// Where the pod runs.
    pub node: String,
    /// The generation of its claim, if the address is a fixed one.
    pub generation: Option<u64>,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Releases one allocation if it still is the expected one, and counts its handle down; false if nobody
    /// had the address any more.
    pub(crate) async fn free_as_seen(
        &self,
        address: IpAddr,
        cidr: &IpNetwork,
        expect: &Expect,
        deadline: Instant,
    ) -> Result<bool, NotWithdrawn> {
        let released = self.release_entry(address, *cidr, expect, deadline).await?;
        if let Some(handle) = expect.handle.as_ref().filter(|_| released) {
            self.count_off(handle, cidr, deadline).await?;
        }
        Ok(released)
    }

    /// Writes a claim in which a grace begins or ends; false if the claim is not as seen any more.
    pub(crate) async fn note_grace(
        &self,
        seen: &Versioned<Claim>,
        noted: &Claim,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let Some(ledger) = &self.ledger else { return Ok(false) };
        let mut backoff = Backoff::new(deadline);
        loop {
            match ledger.swap(seen.value.address, Some(seen.revision), Some(noted)).await {
                Ok(Swap::Done(_)) => return Ok(true),
                // The answer of an earlier attempt was lost.
                Ok(Swap::Lost(standing)) => return Ok(standing.is_some_and(|s| s.value == *noted)),
                Err(error) => backoff.pause(error).await?,
            }
        }
    }

    /// Mirrors a claim as a reservation. A claim that went meanwhile takes its reservation along; a claim that
    /// came back then gets it again.
    pub(crate) async fn mirror(&self, address: IpAddr, block: &IpNetwork, deadline: Instant) -> Result<(), Error> {
        self.reserve(address, block, Asks::ForClaim, deadline).await?;
        if self.is_claimed(address).await? {
            return Ok(());
        }
        self.unreserve(address, block, deadline).await?;
        if self.is_claimed(address).await? {
            self.reserve(address, block, Asks::ForClaim, deadline).await?;
        }
        Ok(())
    }

    /// Records an address again for the pod that has it, as what is recorded ahead of a pod's containers: the DEL of
    /// whichever container it has releases it. False if the address is not free any more.
    pub(crate) async fn record_again(&self, lost: &Lost, deadline: Instant) -> Result<bool, Error> {
        let Lost { address, cidr, .. } = *lost;
        let pod = PodRef { namespace: &lost.namespace, name: &lost.pod, uid: Some(&lost.uid) };
        let handle = pod.handle();
        if self.read_block(cidr).await?.is_none() {
            self.claim_block(cidr, &lost.node, deadline).await?;
        }
        self.converge::<IPAMHandle, _, Error>(&handle_name(&handle), Known::Absent, deadline, |current| {
            Ok(match current {
                None => {
                    let counts = [(cidr, 1)].into();
                    Step::Create(object_of(&handle, &counts, Some(&lost.node), Some(&lost.uid)), ())
                }
                Some(found) if found.spec.is_deleted() => Step::Finish(found),
                Some(_) => Step::Done(()),
            })
        })
        .await?;
        let mut allocation = Allocation::pod(handle.clone(), pod.namespace, pod.name, &lost.node, self.now());
        allocation.secondary.insert(POD_UID_KEY.to_owned(), lost.uid.clone());
        if let Some(generation) = lost.generation {
            allocation.secondary.insert(CLAIM_KEY.to_owned(), generation.to_string());
        }
        let config = self.objects.get::<IPAMConfig>(None, calico::config::NAME).await?;
        let assign = Assign {
            which: Which::Exactly(address, lost.generation),
            allocation,
            ours: host(&lost.node),
            strict: false,
            cooldown: config.map_or_else(IPAMConfigSpec::default, |config| config.spec).cooldown_seconds(),
            renews: false,
            displaces: None,
            ranges: None,
            reservations: Reservations::default(),
        };
        let recorded = match self.commit(cidr, Edit::Assign(Box::new(assign)), Known::Unread, deadline).await {
            Ok(Outcome::Assigned { .. }) => true,
            Ok(Outcome::Full | Outcome::Released { .. } | Outcome::Sides { .. }) | Err(Error::Taken { .. }) => false,
            Err(error) => return Err(error),
        };
        // Where nothing was recorded, a handle that counts too much is mended by itself.
        self.raise(&handle, &[cidr], deadline).await?;
        Ok(recorded)
    }

    /// Says in the reservation of that name that the claims on these addresses lie in this driver's ledger.
    pub(crate) async fn mark(&self, name: &str, addresses: &[IpAddr], deadline: Instant) -> Result<(), Error> {
        self.reserve_in(name, addresses, Asks::ForClaim, deadline).await
    }

    /// Takes `address` out of the reservation of that name; false if there is a claim on it, or there was one
    /// before this ended, and then the address is reserved as before.
    pub(crate) async fn unmirror(&self, name: &str, address: IpAddr, deadline: Instant) -> Result<bool, Error> {
        if self.is_claimed(address).await? {
            return Ok(false);
        }
        self.unreserve_in(name, address, deadline).await?;
        let claimed = self.is_claimed(address).await?;
        if claimed {
            self.reserve_in(name, &[address], Asks::ForClaim, deadline).await?;
        }
        Ok(!claimed)
    }

    /// Without a ledger nothing is known of claims, and an address counts as claimed.
    async fn is_claimed(&self, address: IpAddr) -> Result<bool, Error> {
        match &self.ledger {
            Some(ledger) => Ok(ledger.read(address).await?.is_some()),
            None => Ok(true),
        }
    }

    /// Deletes exactly the version that was seen; false if the object has changed or was made anew since.
    pub(crate) async fn remove_as_seen<K: Object>(&self, seen: &K, deadline: Instant) -> Result<bool, Error> {
        // Also after an attempt without an answer: the object is gone then, as it was to be.
        let mut attempted = false;
        let settled = self
            .converge::<K, _, Error>(&seen.name_any(), Known::Present(seen.clone()), deadline, |current| {
                Ok(match current {
                    None => Step::Done(attempted),
                    Some(found) if is_version(&found, seen) => {
                        attempted = true;
                        Step::Delete(found, true)
                    }
                    Some(_) => Step::Done(false),
                })
            })
            .await?;
        Ok(settled.value)
    }

    /// Completes an affinity that stayed on its way in or out; false if it has changed since it was seen. The block is
    /// written before: who began to take it away, and stood still for so long, does not delete it afterwards.
    pub(crate) async fn confirm_as_seen(&self, seen: &BlockAffinity, deadline: Instant) -> Result<bool, Error> {
        if !self.keep_block(seen.spec.cidr, &seen.spec.node, deadline).await? {
            return Ok(false);
        }
        self.confirm_seen(seen, deadline).await
    }

    /// Labels an affinity, so that its node finds it; false if it has changed since it was seen.
    pub(crate) async fn label_as_seen(&self, seen: &BlockAffinity, deadline: Instant) -> Result<bool, Error> {
        let settled = self
            .converge::<BlockAffinity, _, Error>(&seen.name_any(), Known::Present(seen.clone()), deadline, |current| {
                Ok(match current {
                    Some(found) if found.is_labelled() => Step::Done(true),
                    Some(found) if is_version(&found, seen) => Step::Replace(found.labelled(), true),
                    _ => Step::Done(false),
                })
            })
            .await?;
        Ok(settled.value)
    }

    /// Makes a handle count what the blocks in `among` bear now, by a live read of them; a handle that counts
    /// nothing goes. `seen` is the version that may be changed, `None` a handle that did not exist. False if
    /// it has changed since.
    pub(crate) async fn recount(
        &self,
        id: &str,
        seen: Option<&IPAMHandle>,
        among: &[IpNetwork],
        deadline: Instant,
    ) -> Result<bool, Error> {
        let Borne { counts: bears, node, pod_uid } = self.borne(id, among).await?;
        let mut attempted = false;
        let settled = self
            .converge::<IPAMHandle, _, Error>(&handle_name(id), known(seen), deadline, |current| {
                Ok(match (current, seen) {
                    (None, None) if bears.is_empty() => Step::Done(false),
                    (None, None) => {
                        attempted = true;
                        Step::Create(object_of(id, &bears, node.as_deref(), pod_uid.as_deref()), true)
                    }
                    (Some(mut found), Some(seen)) if is_version(&found, seen) => {
                        attempted = true;
                        found.spec.block = wire(&bears);
                        if bears.is_empty() { Step::Delete(found, true) } else { Step::Replace(found, true) }
                    }
                    _ => Step::Done(attempted),
                })
            })
            .await?;
        if settled.value {
            // An ADD that found the handle as it wanted it wrote nothing to it, and may have written its block
            // since the blocks were read.
            self.raise(id, among, deadline).await?;
        }
        Ok(settled.value)
    }

    /// Counts up what the blocks bear beyond what the handle says; takes nothing away.
    async fn raise(&self, id: &str, among: &[IpNetwork], deadline: Instant) -> Result<(), Error> {
        let Borne { counts: bears, node, pod_uid } = self.borne(id, among).await?;
        if bears.is_empty() {
            return Ok(());
        }
        self.converge::<IPAMHandle, _, Error>(&handle_name(id), Known::Unread, deadline, |current| {
            let (mut object, exists) = match current {
                Some(found) if found.spec.is_deleted() => return Ok(Step::Finish(found)),
                Some(found) => (found, true),
                None => (object_of(id, &Counts::new(), node.as_deref(), pod_uid.as_deref()), false),
            };
            let before = object.spec.block.clone();
            for (cidr, count) in &bears {
                let missing = count - object.spec.count(cidr);
                if missing > 0 {
                    object.spec.increment(cidr, missing);
                }
            }
            Ok(match exists {
                true if object.spec.block == before => Step::Done(()),
                true => Step::Replace(object, ()),
                false => Step::Create(object, ()),
            })
        })
        .await?;
        Ok(())
    }

    /// What the allocations that bear a handle say, read now.
    async fn borne(&self, id: &str, among: &[IpNetwork]) -> Result<Borne, Error> {
        let blocks = try_join_all(
            among.iter().map(|cidr| async move { self.objects.get::<IPAMBlock>(None, &cidr_name(cidr)).await }),
        )
        .await?;
        let mut borne = Borne::default();
        for block in blocks.into_iter().flatten().filter(|b| !b.spec.is_deleted()) {
            for (_, entry) in block.spec.entries() {
                let Entry::Used { attribute, .. } = entry else { continue };
                if attribute.handle().is_some_and(|handle| handle_name(handle) == handle_name(id)) {
                    *borne.counts.entry(block.spec.cidr).or_default() += 1;
                    borne.node = attribute.secondary("node").map(str::to_owned);
                    borne.pod_uid = attribute.secondary(POD_UID_KEY).map(str::to_owned);
                }
            }
        }
        Ok(borne)
    }
}

/// How many allocations bear a handle, block by block, and what they say of their node and pod.
#[derive(Default)]
struct Borne {
    counts: Counts,
    node: Option<String>,
    pod_uid: Option<String>,
}

fn known<K: Clone>(seen: Option<&K>) -> Known<K> {
    seen.map_or(Known::Absent, |object| Known::Present(object.clone()))
}

pub(super) fn is_version<K: Object>(found: &K, seen: &K) -> bool {
    let (found, seen) = (found.meta(), seen.meta());
    found.uid == seen.uid && found.resource_version == seen.resource_version
}

/// Counts as a handle has them.
fn wire(counts: &Counts) -> BTreeMap<String, i64> {
    counts.iter().map(|(cidr, count)| (cidr.to_string(), *count)).collect()
}

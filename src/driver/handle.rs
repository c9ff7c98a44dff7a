//! A container's handle: which of its addresses lie in which block. Keeps I4.

use std::collections::BTreeMap;

use calico::{IPAMBlock, IPAMHandle, IPAMHandleSpec, cidr_name, handle_name};
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::converge::{Known, Step};
use super::{Attachment, Driver, Error, POD_UID_KEY};
use crate::store::{Ledger, Objects};

/// Label of the handles that we make: the hash of the node that their container is on. Without it a handle
/// whose ADD was killed before the block names nobody who could clean it up.
const NODE_LABEL: &str = "kube-ipam/node-hash";

/// Selects the handles made on a node.
pub(super) fn node_selector(node: &str) -> String {
    format!("{NODE_LABEL}={}", calico::hostname_hash(node))
}

/// How many addresses a container is about to have in each block.
pub(super) type Counts = BTreeMap<IpNetwork, i64>;

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Puts a new container's handle on record; the handle found instead, if there is one already: an earlier
    /// ADD of the same container, or our own write whose answer was lost.
    pub(super) async fn create_handle(
        &self,
        attachment: &Attachment<'_>,
        counts: &Counts,
        deadline: Instant,
    ) -> Result<Option<IPAMHandle>, Error> {
        let handle = attachment.handle();
        self.converge::<IPAMHandle, _, Error>(&handle_name(&handle), Known::Absent, deadline, |current| {
            Ok(match current {
                None => Step::Create(handle_object(attachment, counts), None),
                Some(found) if found.spec.is_deleted() => Step::Finish(found),
                Some(found) => Step::Done(Some(found)),
            })
        })
        .await
        .map(|settled| settled.value)
    }

    /// Whether the container's own handle is on record, by a live read.
    ///
    /// # Errors
    /// A store failed.
    pub async fn has_handle(&self, attachment: &Attachment<'_>) -> Result<bool, Error> {
        let found = self.objects.fresh::<IPAMHandle>(None, &handle_name(&attachment.handle())).await?;
        Ok(found.is_some_and(|found| !found.spec.is_deleted()))
    }

    /// Makes the handle say exactly `counts`.
    pub(super) async fn set_handle(
        &self,
        attachment: &Attachment<'_>,
        counts: &Counts,
        deadline: Instant,
    ) -> Result<(), Error> {
        let handle = attachment.handle();
        let wanted = handle_object(attachment, counts).spec.block;
        self.converge::<IPAMHandle, _, Error>(&handle_name(&handle), Known::Unread, deadline, |current| {
            Ok(match current {
                None => Step::Create(handle_object(attachment, counts), ()),
                Some(found) if found.spec.is_deleted() => Step::Finish(found),
                Some(found) if found.spec.block == wanted => Step::Done(()),
                Some(mut found) => {
                    found.spec.block = wanted.clone();
                    Step::Replace(found, ())
                }
            })
        })
        .await
        .map(|settled| settled.value)
    }

    /// Counts one address in `block` off another container's handle, which lost it to this one; the handle
    /// goes when nothing is left on it.
    pub(super) async fn count_off(&self, handle: &str, block: &IpNetwork, deadline: Instant) -> Result<(), Error> {
        self.converge::<IPAMHandle, _, Error>(&handle_name(handle), Known::Unread, deadline, |current| {
            let Some(mut found) = current else { return Ok(Step::Done(())) };
            if found.spec.decrement(block, 1).is_err() {
                // It says nothing of this block (any more): its own DEL was here first.
                return Ok(Step::Done(()));
            }
            Ok(if found.spec.is_empty() { Step::Delete(found, ()) } else { Step::Replace(found, ()) })
        })
        .await
        .map(|settled| settled.value)
    }

    /// The blocks that a handle names, as they are now; those that do not exist are left out.
    pub(super) async fn blocks_of(&self, handle: &IPAMHandle) -> Result<Vec<IPAMBlock>, Error> {
        let reads = handle.spec.blocks().map(|cidr| {
            let name = cidr_name(&cidr);
            async move { self.objects.fresh::<IPAMBlock>(None, &name).await }
        });
        let blocks = futures::future::try_join_all(reads).await?;
        Ok(blocks.into_iter().flatten().filter(|b| !b.spec.is_deleted()).collect())
    }
}

fn handle_object(attachment: &Attachment<'_>, counts: &Counts) -> IPAMHandle {
    let pod_uid = attachment.pod.and_then(|p| p.uid).filter(|_| attachment.is_ahead());
    object_of(&attachment.handle(), counts, Some(attachment.node), pod_uid)
}

/// A handle that counts so much, with what it says besides: the node, and the pod if it was made ahead of a container.
pub(super) fn object_of(id: &str, counts: &Counts, node: Option<&str>, pod_uid: Option<&str>) -> IPAMHandle {
    let mut spec = IPAMHandleSpec::new(id);
    for (block, count) in counts {
        spec.increment(block, *count);
    }
    let mut object = spec.object();
    object.metadata.labels = node.map(|node| [(NODE_LABEL.to_owned(), calico::hostname_hash(node))].into());
    object.metadata.annotations = pod_uid.map(|uid| [(POD_UID_KEY.to_owned(), uid.to_owned())].into());
    object
}

//! GC: releases what this node's containers left that the runtime does not know any more.

use std::collections::BTreeSet;
use std::net::IpAddr;

use calico::{Entry, IPAMBlock};

use super::edit::Whose;
use super::release::HeldBy;
use super::{Attachment, Driver, Error};
use crate::store::{Ledger, Objects};

/// A container's leftovers that were released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// The container.
    pub container_id: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Releases every allocation of this network on this node whose container is not in `valid` (container ids
    /// that the runtime still runs). Each one is read again before it is touched.
    pub async fn gc(&self, attachment: &Attachment<'_>, valid: &BTreeSet<String>) -> Result<Vec<Collected>, Error> {
        let blocks = self.objects.list::<IPAMBlock>("").await?;
        let prefix = format!("{}.", attachment.net.network);
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for block in &blocks {
            for (_, entry) in block.spec.entries() {
                let Entry::Used { attribute, .. } = entry else { continue };
                let container = attribute.handle().and_then(|h| h.strip_prefix(&prefix));
                let here = attribute.secondary("node") == Some(attachment.node);
                gone.extend(container.filter(|c| here && !valid.contains(*c)).map(str::to_owned));
            }
        }
        let mut collected = Vec::new();
        for container_id in gone {
            let handle = super::handle_of(&attachment.net.network, &container_id);
            let held = HeldBy { container_id: &container_id, interface: None, pod_uid: None };
            let freed = self.release_handle(&handle, &Whose::Anyones, &held, attachment.deadline).await?;
            collected.push(Collected { container_id, addresses: freed.into_iter().map(|f| f.address).collect() });
        }
        Ok(collected)
    }
}

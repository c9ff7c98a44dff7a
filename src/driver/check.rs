//! CHECK: is what was answered still on record?

use std::collections::BTreeMap;
use std::net::IpAddr;

use calico::{AllocationAttribute, Entry, IPAMHandle, handle_name};

use super::{Attachment, Driver, Error, POD_UID_KEY};
use crate::store::{Ledger, Objects};

/// An address of a container that is not on record as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unrecorded {
    /// The container has no handle at all.
    #[error("no IPAMHandle records container {0}")]
    NoHandle(String),
    /// The block does not give the address to this container.
    #[error("no IPAMBlock gives {0} to this container")]
    NotInBlock(IpAddr),
    /// The address is fixed, and its claim names somebody else.
    #[error("the claim on {address} does not name this container as holder (it names {holder})")]
    NotHolder {
        /// The address.
        address: IpAddr,
        /// Whom it names.
        holder: String,
    },
}

/// What is recorded for each address.
type Entries = BTreeMap<IpAddr, AllocationAttribute>;

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Compares `addresses`, the ones that the runtime remembers, with the records. Writes nothing.
    pub async fn check(&self, attachment: &Attachment<'_>, addresses: &[IpAddr]) -> Result<Vec<Unrecorded>, Error> {
        let own = self.recorded(attachment).await?;
        let has = |entries: &Option<Entries>, address| entries.as_ref().is_some_and(|all| all.contains_key(address));
        let of_pod = match addresses.iter().all(|address| has(&own, address)) {
            true => None,
            false => self.recorded_ahead(attachment).await?,
        };
        if own.is_none() && of_pod.is_none() {
            if let Some(unrecorded) = Box::pin(self.check_of_machine(attachment, addresses)).await? {
                return Ok(unrecorded);
            }
            return Ok(vec![Unrecorded::NoHandle(attachment.container_id.to_owned())]);
        }
        let entries: Entries = of_pod.into_iter().chain(own).flatten().collect();
        let mut unrecorded = Vec::new();
        for address in addresses {
            match entries.get(address) {
                None => unrecorded.push(Unrecorded::NotInBlock(*address)),
                Some(attribute) if super::edit::is_fixed(attribute.secondary.as_ref()) => {
                    let ahead = attribute.secondary(POD_UID_KEY).is_some();
                    let holder = if ahead { attachment.ahead() } else { *attachment };
                    unrecorded.extend(self.check_claim(&holder, *address).await?);
                }
                Some(_) => {}
            }
        }
        Ok(unrecorded)
    }

    /// What was put on record for the pod before it had a container, unless another container has it by now.
    async fn recorded_ahead(&self, attachment: &Attachment<'_>) -> Result<Option<Entries>, Error> {
        let Some(uid) = attachment.pod.and_then(|pod| pod.uid) else { return Ok(None) };
        if self.gate.container_of(uid).is_some_and(|noted| noted != attachment.container_id) {
            return Ok(None);
        }
        let mut entries = self.recorded(&attachment.ahead()).await?;
        entries.iter_mut().for_each(|all| all.retain(|_, attribute| attribute.secondary(POD_UID_KEY) == Some(uid)));
        Ok(entries)
    }

    /// What blocks record under the handle; `None` if there is no handle.
    async fn recorded(&self, attachment: &Attachment<'_>) -> Result<Option<Entries>, Error> {
        let handle = attachment.handle();
        let Some(found) = self.objects.fresh::<IPAMHandle>(None, &handle_name(&handle)).await? else { return Ok(None) };
        let mut entries = Entries::new();
        for block in self.blocks_of(&found).await? {
            for (address, entry) in block.spec.entries() {
                if let Entry::Used { attribute, .. } = entry
                    && attribute.handle() == Some(handle.as_str())
                {
                    entries.insert(address, attribute.clone());
                }
            }
        }
        Ok(Some(entries))
    }

    async fn check_claim(&self, holder: &Attachment<'_>, address: IpAddr) -> Result<Option<Unrecorded>, Error> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        let named = match ledger.read(address).await? {
            Some(claim) if holder.is_holder(&claim.value) => return Ok(None),
            Some(claim) => claim.value.holder.map_or_else(|| "nobody".to_owned(), |h| h.to_string()),
            None => "nobody: there is no claim".to_owned(),
        };
        Ok(Some(Unrecorded::NotHolder { address, holder: named }))
    }
}

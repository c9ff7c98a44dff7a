//! CHECK: is what was answered still on record?

use std::net::IpAddr;

use calico::{Entry, IPAMHandle, handle_name};

use super::{Attachment, Driver, Error};
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

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Compares `addresses`, the ones that the runtime remembers, with the records. Writes nothing.
    pub async fn check(&self, attachment: &Attachment<'_>, addresses: &[IpAddr]) -> Result<Vec<Unrecorded>, Error> {
        let handle = attachment.handle();
        let Some(found) = self.objects.fresh::<IPAMHandle>(None, &handle_name(&handle)).await? else {
            return Ok(vec![Unrecorded::NoHandle(attachment.container_id.to_owned())]);
        };
        let blocks = self.blocks_of(&found).await?;
        let mut unrecorded = Vec::new();
        for address in addresses {
            let entry = blocks.iter().find_map(|b| match b.spec.entry(*address) {
                Entry::Used { attribute, .. } if attribute.handle() == Some(handle.as_str()) => Some(attribute.clone()),
                _ => None,
            });
            match entry {
                None => unrecorded.push(Unrecorded::NotInBlock(*address)),
                Some(attribute) if super::edit::is_fixed(attribute.secondary.as_ref()) => {
                    unrecorded.extend(self.check_claim(attachment, *address).await?);
                }
                Some(_) => {}
            }
        }
        Ok(unrecorded)
    }

    async fn check_claim(&self, attachment: &Attachment<'_>, address: IpAddr) -> Result<Option<Unrecorded>, Error> {
        let Some(ledger) = &self.ledger else { return Ok(None) };
        let holder = match ledger.read(address).await? {
            Some(claim) if claim.value.is_held_by(attachment.container_id, attachment.interface) => return Ok(None),
            Some(claim) => claim.value.holder.map_or_else(|| "nobody".to_owned(), |h| h.to_string()),
            None => "nobody: there is no claim".to_owned(),
        };
        Ok(Some(Unrecorded::NotHolder { address, holder }))
    }
}

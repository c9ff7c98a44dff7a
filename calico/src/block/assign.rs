//! Assignment from a block. Keeps I1 (an address that somebody has is refused) and I8 (a refusal changes
//! nothing).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{AllocationAttribute, Corrupt, Entry, IPAMBlockSpec};
use crate::affinity::Affinity;
use crate::holder::Holder;

/// Why an address was not assigned. The block is as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AssignError {
    /// Somebody has the address.
    #[error("address {address} is in use{}", by_whom(by.as_deref()))]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it; `None` if the block is malformed and does not say.
        by: Option<Box<AllocationAttribute>>,
    },
    /// The address was released a short time ago; its cooldown is not over.
    #[error("address {address} was released at {released_at} and still cools down")]
    Cooling {
        /// The address.
        address: IpAddr,
        /// When it was released, RFC 3339.
        released_at: String,
    },
    /// Borrowing is forbidden and the block is not the node's own.
    #[error("block {cidr} belongs to {} and strict affinity forbids borrowing", owner.as_deref().unwrap_or("nobody"))]
    ForeignBlock {
        /// The block.
        cidr: IpNetwork,
        /// Whose the block is, as it says itself; `None` if nobody's.
        owner: Option<String>,
    },
    /// The address is outside of the block.
    #[error("address {address} is not in block {cidr}")]
    NotInBlock {
        /// The address.
        address: IpAddr,
        /// The block.
        cidr: IpNetwork,
    },
    /// A deletion of the block has begun: it counts as absent.
    #[error("block {cidr} is being deleted")]
    Deleted {
        /// The block.
        cidr: IpNetwork,
    },
    /// The block is malformed: nothing it says about free addresses can be trusted.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

fn by_whom(attribute: Option<&AllocationAttribute>) -> String {
    let Some(attribute) = attribute else {
        return String::new();
    };
    let mut text = String::new();
    if let (Some(namespace), Some(pod)) = (attribute.secondary("namespace"), attribute.secondary("pod")) {
        text += &format!(" by pod {namespace}/{pod}");
    }
    if let Some(node) = attribute.secondary("node") {
        text += &format!(" on node {node}");
    }
    if let Some(handle) = attribute.handle() {
        text += &format!(" (handle {handle})");
    }
    text
}

impl IPAMBlockSpec {
    /// Assigns this very address. `strict_for` is the owner that the block must have if borrowing is
    /// forbidden, else `None`. Call [`IPAMBlockSpec::collect`] first, and [`IPAMBlockSpec::advance`] before
    /// the write.
    pub fn assign(
        &mut self,
        address: IpAddr,
        holder: &Holder,
        strict_for: Option<&Affinity>,
    ) -> Result<(), AssignError> {
        self.admit(strict_for)?;
        let Some(ordinal) = self.ordinal(address) else {
            return Err(AssignError::NotInBlock { address, cidr: self.cidr });
        };
        match self.entry_at(ordinal) {
            Entry::Free => {}
            Entry::Cooling { released_at } => {
                return Err(AssignError::Cooling { address, released_at: released_at.to_owned() });
            }
            Entry::Used { attribute, .. } => {
                return Err(AssignError::Taken { address, by: Some(Box::new(attribute.clone())) });
            }
            Entry::Unreadable | Entry::NotInBlock => {
                return Err(AssignError::Taken { address, by: None });
            }
        }
        self.unallocated.retain(|&free| free != ordinal);
        self.give(ordinal, holder);
        Ok(())
    }

    /// Assigns the address that has been free longest among those permitted; `None` if no free address is
    /// permitted. `strict_for` and the calls around it as for [`IPAMBlockSpec::assign`].
    pub fn assign_first(
        &mut self,
        permitted: impl Fn(IpAddr) -> bool,
        holder: &Holder,
        strict_for: Option<&Affinity>,
    ) -> Result<Option<IpAddr>, AssignError> {
        self.admit(strict_for)?;
        let Some(place) = self.unallocated.iter().position(|&free| permitted(self.address(free))) else {
            return Ok(None);
        };
        let ordinal = self.unallocated.remove(place);
        self.give(ordinal, holder);
        Ok(Some(self.address(ordinal)))
    }

    /// How many free addresses are permitted. Call [`IPAMBlockSpec::collect`] first.
    pub fn free(&self, permitted: impl Fn(IpAddr) -> bool) -> usize {
        self.unallocated.iter().filter(|&&free| permitted(self.address(free))).count()
    }

    fn admit(&self, strict_for: Option<&Affinity>) -> Result<(), AssignError> {
        if self.deleted {
            return Err(AssignError::Deleted { cidr: self.cidr });
        }
        if strict_for.is_some_and(|owner| !self.belongs_to(owner)) {
            return Err(AssignError::ForeignBlock { cidr: self.cidr, owner: self.affinity.clone() });
        }
        Ok(self.check_ordinals()?)
    }

    fn give(&mut self, ordinal: usize, holder: &Holder) {
        let attribute = AllocationAttribute {
            handle_id: Some(holder.handle.clone()),
            secondary: Some(holder.secondary.clone()),
            ..AllocationAttribute::default()
        };
        let index = match self.attributes.iter().position(|known| *known == attribute) {
            Some(index) => index,
            None => {
                self.attributes.push(attribute);
                self.attributes.len() - 1
            }
        };
        if let Some(allocation) = self.allocations.get_mut(ordinal) {
            *allocation = Some(index);
        }
        self.sequence_number_for_allocation.insert(ordinal.to_string(), self.sequence_number);
    }
}

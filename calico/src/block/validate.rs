//! The shape of a block (I5), and what is wrong with one that does not have it.

use ipnetwork::IpNetwork;

use super::{IPAMBlockSpec, MOST_ADDRESSES};
use crate::net;

/// The first thing that is wrong with the shape of a block. Every one names the block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The CIDR is larger than a block can be.
    #[error("block {cidr} is too large: a block has at most {MOST_ADDRESSES} addresses")]
    TooLarge {
        /// The block.
        cidr: IpNetwork,
    },
    /// `allocations` does not have one entry per address.
    #[error("block {cidr} has {found} allocations for {expected} addresses")]
    Length {
        /// The block.
        cidr: IpNetwork,
        /// Number of addresses of the CIDR.
        expected: usize,
        /// Length of `allocations`.
        found: usize,
    },
    /// `unallocated` names an ordinal that the block does not have.
    #[error("block {cidr} lists ordinal {ordinal} as free, but has no such address")]
    Beyond {
        /// The block.
        cidr: IpNetwork,
        /// The ordinal.
        ordinal: usize,
    },
    /// `unallocated` names an ordinal more than once.
    #[error("block {cidr} lists ordinal {ordinal} as free more than once")]
    Twice {
        /// The block.
        cidr: IpNetwork,
        /// The ordinal.
        ordinal: usize,
    },
    /// An ordinal is both in `allocations` and in `unallocated`.
    #[error("block {cidr} lists ordinal {ordinal} as free and as allocated")]
    FreeAndAllocated {
        /// The block.
        cidr: IpNetwork,
        /// The ordinal.
        ordinal: usize,
    },
    /// An ordinal is neither in `allocations` nor in `unallocated`.
    #[error("block {cidr} has lost ordinal {ordinal}: neither free nor allocated")]
    Lost {
        /// The block.
        cidr: IpNetwork,
        /// The ordinal.
        ordinal: usize,
    },
    /// An allocation names an attribute that does not exist.
    #[error("block {cidr} gives ordinal {ordinal} attribute {index}, but has {attributes}")]
    NoAttribute {
        /// The block.
        cidr: IpNetwork,
        /// The ordinal.
        ordinal: usize,
        /// The index that the allocation names.
        index: usize,
        /// Length of `attributes`.
        attributes: usize,
    },
    /// An attribute is used by no allocation.
    #[error("block {cidr} has attribute {index} without any allocation")]
    UnusedAttribute {
        /// The block.
        cidr: IpNetwork,
        /// Its index.
        index: usize,
    },
}

impl IPAMBlockSpec {
    /// Checks the shape (I5): one allocation entry per address, every ordinal either free once or allocated,
    /// every allocation with an attribute and every attribute with an allocation. Reports the first fault.
    pub fn validate(&self) -> Result<(), Corrupt> {
        self.check_ordinals()?;
        self.check_attributes()
    }

    /// The part of the shape on which an assignment depends. An attribute without user does it no harm: the
    /// next [`IPAMBlockSpec::collect`] removes it.
    pub(super) fn check_ordinals(&self) -> Result<(), Corrupt> {
        let cidr = self.cidr;
        let expected = usize::try_from(net::count(&cidr)).unwrap_or(usize::MAX);
        if expected > MOST_ADDRESSES {
            return Err(Corrupt::TooLarge { cidr });
        }
        if self.allocations.len() != expected {
            return Err(Corrupt::Length { cidr, expected, found: self.allocations.len() });
        }
        let mut free = vec![false; expected];
        for &ordinal in &self.unallocated {
            match free.get_mut(ordinal) {
                None => return Err(Corrupt::Beyond { cidr, ordinal }),
                Some(true) => return Err(Corrupt::Twice { cidr, ordinal }),
                Some(listed) => *listed = true,
            }
        }
        for (ordinal, (index, free)) in self.allocations.iter().zip(free).enumerate() {
            match (*index, free) {
                (Some(_), true) => return Err(Corrupt::FreeAndAllocated { cidr, ordinal }),
                (None, false) => return Err(Corrupt::Lost { cidr, ordinal }),
                (Some(index), false) if index >= self.attributes.len() => {
                    return Err(Corrupt::NoAttribute { cidr, ordinal, index, attributes: self.attributes.len() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_attributes(&self) -> Result<(), Corrupt> {
        let mut used = vec![false; self.attributes.len()];
        for &index in self.allocations.iter().flatten() {
            if let Some(used) = used.get_mut(index) {
                *used = true;
            }
        }
        match used.iter().position(|used| !used) {
            Some(index) => Err(Corrupt::UnusedAttribute { cidr: self.cidr, index }),
            None => Ok(()),
        }
    }
}

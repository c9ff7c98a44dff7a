//! The two pods of a virtual machine that may have its address, see [`machine`](crate::machine).

use std::net::IpAddr;

use super::{AllocationAttribute, Entry, IPAMBlockSpec};
use crate::machine::{Party, Side};

impl AllocationAttribute {
    /// The attributes of a side; `None` if nobody is on it.
    pub fn side(&self, side: Side) -> Option<&Party> {
        let party = match side {
            Side::Active => self.secondary.as_ref(),
            Side::Alternate => self.alternate_owner_attrs.as_ref(),
        };
        party.filter(|party| !party.is_empty())
    }

    /// Whether nobody is on either side.
    pub fn is_vacant(&self) -> bool {
        Side::BOTH.iter().all(|side| self.side(*side).is_none())
    }
}

impl IPAMBlockSpec {
    /// Puts `party` on a side of an address that somebody has, in the place of whoever was there, or nobody. The address stays
    /// allocated, as it was. False, and nothing changed, if nobody has the address or the side says so already.
    pub fn set_side(&mut self, address: IpAddr, side: Side, party: Option<Party>) -> bool {
        let (Some(ordinal), Entry::Used { attribute, .. }) = (self.ordinal(address), self.entry(address)) else {
            return false;
        };
        if attribute.side(side) == party.as_ref() {
            return false;
        }
        let mut changed = attribute.clone();
        match side {
            Side::Active => changed.secondary = party,
            Side::Alternate => changed.alternate_owner_attrs = party,
        }
        let known = self.attributes.iter().position(|known| *known == changed);
        let index = known.unwrap_or_else(|| self.add_attribute(changed));
        self.allocations[ordinal] = Some(index);
        self.drop_unused_attributes();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::{Affinity, Holder};

    fn party(pod: &str) -> Option<Party> {
        Some(BTreeMap::from([("pod".to_owned(), pod.to_owned())]))
    }

    #[test]
    fn a_side_is_filled_and_cleared_for_one_address_alone_and_the_address_stays() {
        let now = Timestamp::UNIX_EPOCH;
        let mut block = IPAMBlockSpec::new("10.0.0.0/29".parse().unwrap(), &Affinity::Host("n1".into()), now);
        let both: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let holder = Holder { handle: "net.vmi.default.vm".into(), secondary: party("a").unwrap() };
        both.iter().for_each(|address| block.assign(*address, &holder, None).unwrap());
        let sequence = block.sequence_number_for_allocation.clone();
        assert!(!block.set_side(both[0], Side::Active, party("a")), "it says so already");
        assert!(block.set_side(both[0], Side::Alternate, party("b")));
        assert!(block.set_side(both[0], Side::Active, None));
        let sides = |block: &IPAMBlockSpec, address: IpAddr| match block.entry(address) {
            Entry::Used { attribute, .. } => Side::BOTH.map(|side| attribute.side(side).cloned()),
            other => panic!("{other:?}"),
        };
        assert_eq!(sides(&block, both[0]), [None, party("b")]);
        assert_eq!(sides(&block, both[1]), [party("a"), None]);
        assert!(block.set_side(both[0], Side::Alternate, None));
        assert!(matches!(block.entry(both[0]), Entry::Used { attribute, .. } if attribute.is_vacant()));
        assert_eq!(block.sequence_number_for_allocation, sequence);
        block.validate().unwrap();
        assert!(!block.set_side("10.0.0.3".parse().unwrap(), Side::Active, party("a")), "nobody has it");
    }
}

//! Freeing an address at once, for a caller whose own record proves that its last user is done with it.

use std::net::IpAddr;

use super::IPAMBlockSpec;

impl IPAMBlockSpec {
    /// Frees `address` without a cooldown, whoever has it; false, and nothing changed, if it was free or is not
    /// in the block. Only for an address whose claim says that the entry is out of date: nothing here checks it.
    pub fn vacate(&mut self, address: IpAddr) -> bool {
        let Some(ordinal) = self.ordinal(address) else { return false };
        let Some(index) = self.allocations.get_mut(ordinal).and_then(Option::take) else { return false };
        self.sequence_number_for_allocation.remove(&ordinal.to_string());
        self.unallocated.push(ordinal);
        if !self.allocations.contains(&Some(index)) && index < self.attributes.len() {
            self.attributes.remove(index);
            for later in self.allocations.iter_mut().flatten().filter(|i| **i > index) {
                *later -= 1;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use crate::{Affinity, Entry, Holder, IPAMBlockSpec};

    #[test]
    fn vacating_one_of_two_addresses_keeps_the_other_and_the_shape() {
        let now = Timestamp::UNIX_EPOCH;
        let mut block = IPAMBlockSpec::new("10.0.0.0/30".parse().unwrap(), &Affinity::Host("n1".into()), now);
        let (first, second) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        block.assign(first, &Holder::pod("net.a", "default", "a", "n1", now), None).unwrap();
        block.assign(second, &Holder::pod("net.b", "default", "b", "n1", now), None).unwrap();
        assert!(block.vacate(first));
        assert!(!block.vacate(first));
        block.validate().unwrap();
        assert!(matches!(block.entry(first), Entry::Free));
        assert!(matches!(block.entry(second), Entry::Used { attribute, .. } if attribute.handle() == Some("net.b")));
    }
}

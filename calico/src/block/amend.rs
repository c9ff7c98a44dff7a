//! Adding to what a block says of an address that somebody has.

use std::net::IpAddr;

use super::{Entry, IPAMBlockSpec};

impl IPAMBlockSpec {
    /// Sets a key of `secondary` for `address` alone: other addresses that share its attribute keep theirs. False,
    /// and nothing changed, if nobody has the address or the key says so already.
    pub fn amend(&mut self, address: IpAddr, key: &str, value: &str) -> bool {
        let (Some(ordinal), Entry::Used { attribute, .. }) = (self.ordinal(address), self.entry(address)) else {
            return false;
        };
        if attribute.secondary(key) == Some(value) {
            return false;
        }
        let mut amended = attribute.clone();
        amended.secondary.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        let known = self.attributes.iter().position(|known| *known == amended);
        let index = known.unwrap_or_else(|| self.add_attribute(amended));
        self.allocations[ordinal] = Some(index);
        self.drop_unused_attributes();
        true
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use crate::{Affinity, Entry, Holder, IPAMBlockSpec};

    #[test]
    fn an_amendment_gives_a_dangling_allocation_to_nobody() {
        let now = Timestamp::UNIX_EPOCH;
        let mut block = IPAMBlockSpec::new("10.0.0.0/29".parse().unwrap(), &Affinity::Host("n1".into()), now);
        let address = "10.0.0.1".parse().unwrap();
        block.assign(address, &Holder::pod("net.a", "default", "a", "n1", now), None).unwrap();
        // One more than there are attributes: the index of the next one.
        block.allocations[6] = Some(1);
        assert!(block.amend(address, "k", "1"));
        assert_eq!(block.entry("10.0.0.6".parse().unwrap()), Entry::Unreadable);
    }

    #[test]
    fn one_of_two_addresses_of_a_container_is_amended_and_then_the_other() {
        let now = Timestamp::UNIX_EPOCH;
        let mut block = IPAMBlockSpec::new("10.0.0.0/29".parse().unwrap(), &Affinity::Host("n1".into()), now);
        let both = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let holder = Holder::pod("net.a", "default", "a", "n1", now);
        both.iter().for_each(|address| block.assign(*address, &holder, None).unwrap());
        let mark = |block: &IPAMBlockSpec| {
            both.map(|address| match block.entry(address) {
                Entry::Used { attribute, .. } => attribute.secondary("k").map(str::to_owned),
                _ => None,
            })
        };
        assert!(block.amend(both[0], "k", "1"));
        assert!(!block.amend(both[0], "k", "1"));
        block.validate().unwrap();
        assert_eq!((mark(&block), block.attributes.len()), ([Some("1".into()), None], 2));
        assert!(block.amend(both[1], "k", "1"));
        block.validate().unwrap();
        assert_eq!(block.attributes.len(), 1);
        assert!(!block.amend("10.0.0.3".parse().unwrap(), "k", "1"), "nobody has it");
        assert!(!block.amend("10.0.9.9".parse().unwrap(), "k", "1"), "it is elsewhere");
    }
}

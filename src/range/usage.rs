//! How full the ranges are, so that it is said before a pod fails. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use super::RangeSet;

/// The addresses that random assignment may give, and what has become of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The first address of the first range.
    pub first: IpAddr,
    /// The ranges, as text.
    pub ranges: String,
    /// How many addresses they have.
    pub size: u128,
    /// Of those, in use.
    pub used: u128,
    /// Of those, free and kept for fixed addresses.
    pub reserved: u128,
}

impl Usage {
    /// Counts those of `used` and of `reserved` that are in the ranges.
    pub fn of(
        ranges: &RangeSet,
        used: impl IntoIterator<Item = IpAddr>,
        reserved: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let within = |address: &IpAddr| ranges.permits_random(*address);
        let used: BTreeSet<IpAddr> = used.into_iter().filter(within).collect();
        let reserved: BTreeSet<IpAddr> =
            reserved.into_iter().filter(within).filter(|address| !used.contains(address)).collect();
        Self {
            first: ranges.subnets()[0].start,
            ranges: ranges.to_string(),
            size: ranges.size(),
            used: used.len() as u128,
            reserved: reserved.len() as u128,
        }
    }

    /// How many are left.
    pub fn left(&self) -> u128 {
        self.size.saturating_sub(self.used + self.reserved)
    }

    /// Whether no more than a tenth is left.
    pub fn is_nearly_full(&self) -> bool {
        self.left() <= self.size / 10
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranges, size, used, reserved, .. } = self;
        write!(f, "{} of {size} addresses are left in {ranges}: {used} in use, {reserved} reserved", self.left())
    }
}

/// What to do about it.
pub(crate) const WIDEN: &str = "widen rangeStart-rangeEnd, or leave both out to give the whole subnet";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::netconf::NetConf;

    #[test]
    fn ranges_are_nearly_full_when_a_tenth_is_left() {
        let ipam = json!({
            "type": "kube-ipam", "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.29",
        });
        let conf = json!({"name": "n", "cniVersion": "1.0.0", "type": "calico", "ipam": ipam});
        let net = NetConf::parse(&conf, "kube-ipam").unwrap();
        let ranges = net.ipam.ranges(calico::Family::V4).unwrap();
        let addresses = |first: u8, last: u8| (first..=last).map(|last| IpAddr::from([10, 244, 0, last]));
        // Outside of the range nothing counts, and what is in use counts once.
        let usage = Usage::of(ranges, addresses(1, 26).chain([IpAddr::from([0; 16])]), addresses(20, 26));
        assert_eq!((usage.size, usage.used, usage.reserved, usage.left()), (20, 17, 0, 3));
        assert!(!usage.is_nearly_full());
        let usage = Usage::of(ranges, addresses(1, 26), addresses(27, 40).take(1));
        assert!(usage.is_nearly_full());
        assert_eq!(
            usage.to_string(),
            "2 of 20 addresses are left in 10.244.0.0/16 (10.244.0.10 to 10.244.0.29): 17 in use, 1 reserved"
        );
    }
}

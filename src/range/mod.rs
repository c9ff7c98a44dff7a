//! Which addresses a network may give: subnets, ranges inside them, gateways.
//!
//! Invariant I7 lives here: whatever was accepted, [`RangeSet::permits_random`] and [`RangeSet::permits_fixed`] never permit a network
//! address, an IPv4 broadcast address, an IPv6 subnet-router anycast address, or a gateway.

mod parse;

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use calico::Family;
pub(crate) use parse::{FIELDS, parse};

/// One subnet and what may be given from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The subnet, without host bits.
    pub network: IpNetwork,
    /// First address for random assignment; inside `network`.
    pub start: IpAddr,
    /// Last address for random assignment, inclusive; inside `network`, not before `start`.
    pub end: IpAddr,
    /// The gateway, inside `network`; never given to a pod.
    pub gateway: Option<IpAddr>,
}

/// The subnets of one family. Never empty; they do not overlap, and at least one address may be given at random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Subnet>);

/// Why an address may not be given to a pod, not even as a fixed one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// In none of the subnets.
    #[error("is outside of {subnets}")]
    Outside {
        /// The subnets, as text.
        subnets: String,
    },
    /// The first address of a subnet.
    #[error("is the {} address of {network}", if network.is_ipv4() { "network" } else { "subnet-router anycast" })]
    Network {
        /// The subnet.
        network: IpNetwork,
    },
    /// The last address of an IPv4 subnet.
    #[error("is the broadcast address of {network}")]
    Broadcast {
        /// The subnet.
        network: IpNetwork,
    },
    /// A subnet's gateway.
    #[error("is the gateway of {network}")]
    Gateway {
        /// The subnet.
        network: IpNetwork,
    },
}

impl RangeSet {
    /// The subnets, in the order of the configuration.
    pub fn subnets(&self) -> &[Subnet] {
        &self.0
    }

    /// The family of all its subnets.
    pub fn family(&self) -> Family {
        Family::of(self.0[0].start)
    }

    /// The subnet an address lies in.
    pub fn subnet_of(&self, ip: IpAddr) -> Option<&Subnet> {
        self.0.iter().find(|subnet| subnet.network.contains(ip))
    }

    /// Whether random assignment may give this address: in a range, and nothing [`permits_fixed`](Self::permits_fixed) refuses.
    pub fn permits_random(&self, ip: IpAddr) -> bool {
        self.subnet_of(ip).is_some_and(|subnet| subnet.permitted_between(ip, ip) == 1)
    }

    /// Whether an annotation may ask for this address: anywhere in a subnet, but not its network, broadcast, anycast or gateway address.
    pub fn permits_fixed(&self, ip: IpAddr) -> Result<(), Why> {
        let Some(subnet) = self.subnet_of(ip) else {
            return Err(Why::Outside { subnets: self.networks() });
        };
        let network = subnet.network;
        if ip == network.network() {
            Err(Why::Network { network })
        } else if ip.is_ipv4() && ip == network.broadcast() {
            Err(Why::Broadcast { network })
        } else if subnet.gateway == Some(ip) {
            Err(Why::Gateway { network })
        } else {
            Ok(())
        }
    }

    /// The subnets' CIDRs, for an error.
    pub(crate) fn networks(&self) -> String {
        self.listed(|subnet| subnet.network.to_string())
    }

    fn listed(&self, text: impl Fn(&Subnet) -> String) -> String {
        const MOST: usize = 4;
        let first: Vec<String> = self.0.iter().take(MOST).map(text).collect();
        match self.0.len().saturating_sub(MOST) {
            0 => first.join(", "),
            more => format!("{} and {more} more", first.join(", ")),
        }
    }

    /// How many addresses random assignment may give; `u128::MAX` if it is more than that.
    pub fn size(&self) -> u128 {
        self.0.iter().fold(0, |sum, subnet| subnet.permitted_between(subnet.start, subnet.end).saturating_add(sum))
    }

    /// Whether random assignment may give at least one address of this network (a block, a pool).
    pub fn intersects(&self, network: &IpNetwork) -> bool {
        Family::of(network.ip()) == self.family()
            && self.0.iter().any(|subnet| subnet.permitted_between(network.network(), network.broadcast()) > 0)
    }
}

impl Subnet {
    /// How many addresses from `low` to `high`, inclusive and of this subnet's family, random assignment may give.
    fn permitted_between(&self, low: IpAddr, high: IpAddr) -> u128 {
        let (low, high) = (low.max(self.start), high.min(self.end));
        if low > high {
            return 0;
        }
        let never = self.never();
        let withheld = never.iter().enumerate().filter(|(index, ip)| {
            let repeated = never[..*index].contains(ip);
            ip.is_some_and(|ip| (low..=high).contains(&ip)) && !repeated
        });
        match withheld.count() as u128 {
            0 => (number(high) - number(low)).saturating_add(1),
            withheld => number(high) - number(low) - (withheld - 1),
        }
    }

    /// The addresses that are nobody's: network or anycast address, broadcast address, gateway.
    fn never(&self) -> [Option<IpAddr>; 3] {
        let broadcast = self.network.is_ipv4().then(|| self.network.broadcast());
        [Some(self.network.network()), broadcast, self.gateway]
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The first few subnets with their ranges.
impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listed(Subnet::to_string))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", self.network, self.start, self.end)
    }
}

#[cfg(test)]
mod tests;

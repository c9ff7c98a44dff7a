//! Which addresses a network may give: subnets, ranges inside them, gateways.
//!
//! Invariant I7 lives here: whatever was accepted, [`RangeSet::permits_random`] and [`RangeSet::permits_fixed`] never permit a network
//! address, an IPv4 broadcast address, an IPv6 subnet-router anycast address, or a gateway.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use calico::Family;

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
        let _ = ip;
        unimplemented!()
    }

    /// Whether an annotation may ask for this address: anywhere in a subnet, but not its network, broadcast, anycast or gateway address.
    pub fn permits_fixed(&self, ip: IpAddr) -> Result<(), Why> {
        let _ = ip;
        unimplemented!()
    }

    /// How many addresses random assignment may give; `u128::MAX` if it is more than that.
    pub fn size(&self) -> u128 {
        unimplemented!()
    }

    /// Whether random assignment may give at least one address of this network (a block, a pool).
    pub fn intersects(&self, network: &IpNetwork) -> bool {
        let _ = network;
        unimplemented!()
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, subnet) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{subnet}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", self.network, self.start, self.end)
    }
}

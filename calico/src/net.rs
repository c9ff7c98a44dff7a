//! Arithmetic on addresses: a network as a base and a number of addresses, without overflow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// An address as a number, comparable within one family only.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address `offset` above `base`; wraps at the end of the family's address space.
pub(crate) fn above(base: IpAddr, offset: u128) -> IpAddr {
    match base {
        // Truncation is the wrap.
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).wrapping_add(offset as u32))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).wrapping_add(offset))),
    }
}

/// The addresses from `first` to `last`, both included and of one family.
pub fn between(first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
    (0..=number(last).saturating_sub(number(first))).map(move |offset| above(first, offset))
}

/// Bits of an address of the network's family: 32 or 128.
pub(crate) fn width(network: &IpNetwork) -> u8 {
    if network.is_ipv4() { 32 } else { 128 }
}

/// Number of addresses in the network; `::/0` counts as `u128::MAX`.
pub fn count(network: &IpNetwork) -> u128 {
    let host_bits = u32::from(width(network).saturating_sub(network.prefix()));
    1u128.checked_shl(host_bits).unwrap_or(u128::MAX)
}

/// How far `address` lies above the network's first address; `None` outside of it or in the other family.
pub(crate) fn offset(network: &IpNetwork, address: IpAddr) -> Option<u128> {
    if network.is_ipv4() != address.is_ipv4() {
        return None;
    }
    let offset = number(address).checked_sub(number(network.network()))?;
    // The count of ::/0 does not fit, but everything is in it.
    (offset < count(network) || network.prefix() == 0).then_some(offset)
}

/// Whether every address of `inner` is in `outer`.
pub(crate) fn covers(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && offset(outer, inner.network()).is_some()
}

/// Whether the two networks share an address.
pub(crate) fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    covers(one, other) || covers(other, one)
}

/// The network with its host bits cleared.
pub(crate) fn masked(network: &IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(*network)
}

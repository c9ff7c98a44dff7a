//! Addresses and networks from text, with a word on what is wrong and what would be right.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Why a text is not what it should be.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Continues the sentence that names field and value: `is not an IP address`.
    pub wrong: String,
    /// The remedy.
    pub right: String,
}

impl Wrong {
    fn new(wrong: impl Into<String>, right: impl Into<String>) -> Wrong {
        Wrong { wrong: wrong.into(), right: right.into() }
    }
}

/// A plain address: no mask, no zone, no IPv4 address in IPv6 clothes (it would be equal to an address that it does not compare equal to).
pub(crate) fn address(text: &str) -> Result<IpAddr, Wrong> {
    if let Some((plain, _)) = text.split_once('/') {
        return Err(match plain.parse::<IpAddr>() {
            Ok(ip) => Wrong::new("has a mask", format!("write {ip}")),
            Err(_) => Wrong::new("is not an IP address", EXAMPLE),
        });
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(Wrong::new("is an IPv4 address in IPv6 form", format!("write {}", v6.to_canonical())))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(Wrong::new("is not an IP address", EXAMPLE)),
    }
}

const EXAMPLE: &str = "write an address such as 10.244.0.10 or fd00:10:244::10";

/// Addresses in a row, the first and the last: one address, `first-last`, or a CIDR, of which it is all.
pub(crate) fn span(text: &str) -> Result<(IpAddr, IpAddr), Wrong> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (address(first.trim())?, address(last.trim())?);
        return match first.is_ipv4() == last.is_ipv4() {
            false => Err(Wrong::new(
                "goes from one family to the other",
                "write the first and the last address of one family",
            )),
            true if last < first => Err(Wrong::new("ends before it begins", format!("write {last}-{first}"))),
            true => Ok((first, last)),
        };
    }
    if !text.contains('/') {
        return address(text).map(|ip| (ip, ip));
    }
    let given = address_with_mask(text)?;
    let network = without_host_bits(given);
    if network != given {
        let right = format!("write {} for the address, or {network} for all of the network", given.ip());
        return Err(Wrong::new("has host bits", right));
    }
    Ok((network.network(), network.broadcast()))
}

/// An address with its mask; host bits are kept.
pub(crate) fn address_with_mask(text: &str) -> Result<IpNetwork, Wrong> {
    let wrong = || Wrong::new("is not a CIDR", "write address/length, such as 10.244.0.0/16 or fd00:10:244::/64");
    let (ip, length) = text.split_once('/').ok_or_else(wrong)?;
    let ip = address(ip)?;
    let digits = (1..=3).contains(&length.len()) && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse::<u8>().ok().filter(|_| digits).ok_or_else(wrong)?;
    IpNetwork::new(ip, length).map_err(|_| wrong())
}

/// A network: no host bits.
pub(crate) fn network(text: &str) -> Result<IpNetwork, Wrong> {
    let given = address_with_mask(text)?;
    let network = without_host_bits(given);
    if network == given { Ok(network) } else { Err(Wrong::new("has host bits", format!("write {network}"))) }
}

/// The network that an address with mask lies in.
pub(crate) fn without_host_bits(given: IpNetwork) -> IpNetwork {
    IpNetwork::new(given.network(), given.prefix()).unwrap_or(given)
}

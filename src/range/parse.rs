//! Subnets and ranges from the `ipam` section: the flat form (`subnet`, `rangeStart`, `rangeEnd`, `gateway`) and host-local's `ranges`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{Family, RangeSet, Subnet};
use crate::cni::object::Object;
use crate::cni::{CniError, code, text};

/// The fields of a subnet.
pub(crate) const FIELDS: [&str; 4] = ["subnet", "rangeStart", "rangeEnd", "gateway"];

/// The subnets of an `ipam` section by family. With `default_gateway` a subnet that names no gateway gets its first usable address as such.
pub(crate) fn parse(
    ipam: &Object<'_>,
    default_gateway: bool,
) -> Result<(Option<RangeSet>, Option<RangeSet>), CniError> {
    let mut sets = Vec::new();
    if FIELDS.iter().any(|field| ipam.value(field).is_some()) {
        sets.push((ipam.path("subnet"), vec![subnet(ipam, default_gateway)?]));
    }
    for (index, set) in ipam.list("ranges")?.unwrap_or_default().iter().enumerate() {
        let path = format!("{}[{index}]", ipam.path("ranges"));
        let Some(items) = set.as_array().filter(|items| !items.is_empty()) else {
            return Err(CniError::new(
                code::INVALID_CONFIG,
                format!("{path}: is not a list of subnets"),
                "write [[{\"subnet\": \"10.244.0.0/16\"}]]: a list of sets, each a list of subnets",
            ));
        };
        let read = |(nth, item)| {
            let item = Object::new(format!("{path}[{nth}]"), item)?;
            item.refuse_misspelt(&FIELDS)?;
            subnet(&item, default_gateway)
        };
        sets.push((path.clone(), items.iter().enumerate().map(read).collect::<Result<_, _>>()?));
    }
    let (mut v4, mut v6) = (None, None);
    for (path, subnets) in sets {
        let set = range_set(&path, subnets)?;
        let slot = if set.family() == Family::V4 { &mut v4 } else { &mut v6 };
        if let Some(first) = slot {
            let wrong = format!("is a second {} set beside {first}", set.family());
            let right = "a pod gets one address a family: put all subnets of a family into one set of ipam.ranges";
            return Err(CniError::field(&path, &set.to_string(), wrong, right));
        }
        *slot = Some(set);
    }
    Ok((v4, v6))
}

fn range_set(path: &str, subnets: Vec<Subnet>) -> Result<RangeSet, CniError> {
    let refuse = |subnet: &Subnet, wrong, right| Err(CniError::field(path, &subnet.network.to_string(), wrong, right));
    let family = Family::of(subnets[0].start);
    if let Some(other) = subnets.iter().find(|subnet| Family::of(subnet.start) != family) {
        let wrong = format!("is of another family than {} in the same set", subnets[0].network);
        return refuse(other, wrong, "give each family its own set: [[{IPv4}], [{IPv6}]]");
    }
    // Two CIDRs are apart or one holds the other, so in this order one that holds any other holds its neighbour.
    let mut sorted: Vec<&Subnet> = subnets.iter().collect();
    sorted.sort_by_key(|subnet| (subnet.network.ip(), subnet.network.prefix()));
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].network.contains(pair[1].network.ip())) {
        return refuse(pair[1], format!("overlaps {}", pair[0].network), "leave one of them out, or split them");
    }
    Ok(RangeSet(subnets))
}

/// One subnet from an object that holds [`FIELDS`].
fn subnet(object: &Object<'_>, default_gateway: bool) -> Result<Subnet, CniError> {
    let network = network(object)?;
    let (first, last) = usable(network);
    let start = inside(object, "rangeStart", network)?.unwrap_or(first);
    let end = inside(object, "rangeEnd", network)?.unwrap_or(last);
    if start > end {
        let (key, value, right) = if object.value("rangeEnd").is_some() {
            ("rangeEnd", end, format!("is before rangeStart {start}"))
        } else {
            ("rangeStart", start, format!("is after {end}, the last address of the range"))
        };
        return Err(object.refuse(
            key,
            &value.to_string(),
            right,
            format!("give rangeStart <= rangeEnd, both in {network}"),
        ));
    }
    let gateway = inside(object, "gateway", network)?;
    if let Some(gateway) = gateway {
        let edge = gateway.is_ipv4() && (gateway == network.network() || gateway == network.broadcast());
        if edge {
            let wrong = format!("is the network or broadcast address of {network}");
            return Err(object.refuse(
                "gateway",
                &gateway.to_string(),
                wrong,
                format!("give a host's address, such as {first}"),
            ));
        }
    }
    let subnet = Subnet { network, start, end, gateway: gateway.or(default_gateway.then_some(first)) };
    if subnet.permitted_between(start, end) == 0 {
        let wrong = format!("leaves no address to give: {start} to {end} is the network, broadcast or gateway address");
        return Err(object.refuse(
            "subnet",
            &network.to_string(),
            wrong,
            "widen rangeStart to rangeEnd, or move the gateway",
        ));
    }
    Ok(subnet)
}

fn network(object: &Object<'_>) -> Result<IpNetwork, CniError> {
    let Some(text) = object.text("subnet")? else {
        return Err(object.missing("subnet", "give the subnet that the range lies in, such as \"10.244.0.0/16\""));
    };
    let network = object.read("subnet", text, text::network)?;
    let ip = network.ip();
    let longest = Family::of(ip).bits() - 2;
    if network.prefix() > longest {
        let right = format!("give a {} subnet of length {longest} or shorter", Family::of(ip));
        return Err(object.refuse("subnet", text, "is too small to give addresses from", right));
    }
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(object.refuse(
            "subnet",
            text,
            "is not a network for pods",
            "give the CIDR of a Calico IP pool, or part of it",
        ));
    }
    Ok(network)
}

/// The first and the last address that a host may have. IPv6 has no broadcast address.
fn usable(network: IpNetwork) -> (IpAddr, IpAddr) {
    match network {
        IpNetwork::V4(v4) => {
            (Ipv4Addr::from(u32::from(v4.network()) + 1).into(), Ipv4Addr::from(u32::from(v4.broadcast()) - 1).into())
        }
        IpNetwork::V6(v6) => (Ipv6Addr::from(u128::from(v6.network()) + 1).into(), v6.broadcast().into()),
    }
}

/// An address that has to lie in the subnet.
fn inside(object: &Object<'_>, key: &str, network: IpNetwork) -> Result<Option<IpAddr>, CniError> {
    let Some(text) = object.text(key)? else { return Ok(None) };
    let ip = object.read(key, text, text::address)?;
    if !network.contains(ip) {
        let (first, last) = usable(network);
        let right = format!("give an address from {first} to {last}, or change subnet");
        return Err(object.refuse(key, text, format!("is outside the subnet {network}"), right));
    }
    Ok(Some(ip))
}

//! The annotations `kube-ipam.ip`, `kube-ipam.netmask` and `kube-ipam.gateway`.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use calico::{IPPool, covering};
use ipnetwork::{IpNetwork, ip_mask_to_prefix};
use kube::ResourceExt as _;

use super::{GATEWAY, HANDOVER, HandoverMode, IP, IP_ADDRS, IP_ADDRS_NO_IPAM, NETMASK, OWNER};
use crate::cni::error::shown;
use crate::cni::text::{self, Wrong};
use crate::cni::{CniError, names};
use crate::netconf::{Dialect, Ipam};
use crate::range::Family;

/// A pod's request for fixed addresses, checked against the network. At least one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedRequest {
    /// The IPv4 addresses asked for, one of which the pod gets. In the annotation's order, without duplicates.
    pub v4: Vec<IpAddr>,
    /// The IPv6 addresses asked for, one of which the pod gets.
    pub v6: Vec<IpAddr>,
    netmasks: Vec<(Family, u8)>,
    gateways: Vec<IpAddr>,
    /// What the pod says of an update that needs its address; none if it says nothing.
    pub handover: Option<HandoverMode>,
}

impl FixedRequest {
    /// A request for one address, whatever the network says of it.
    pub(crate) fn of(address: IpAddr) -> FixedRequest {
        let (v4, v6) = [address].into_iter().partition(IpAddr::is_ipv4);
        FixedRequest { v4, v6, netmasks: Vec::new(), gateways: Vec::new(), handover: None }
    }

    /// The addresses that the value of `kube-ipam.ip` lists, whatever the network says of them; none if it is malformed.
    pub fn listed(value: &str) -> Vec<IpAddr> {
        addresses(IP, value, text::span).unwrap_or_default()
    }

    /// Reads a pod's annotations. None if the pod asks for no fixed address. Code 7 naming annotation, value and what is right:
    /// whatever is malformed is refused, never read as "any address".
    pub fn parse(annotations: &BTreeMap<String, String>, ipam: &Ipam) -> Result<Option<FixedRequest>, CniError> {
        refuse_misspelt(annotations)?;
        refuse_calicos(annotations, ipam.dialect)?;
        let handover = HandoverMode::of(annotations)?;
        let Some(value) = annotations.get(IP) else {
            return match [NETMASK, GATEWAY].into_iter().find_map(|key| Some((key, annotations.get(key)?))) {
                None => Ok(None),
                Some((key, value)) => {
                    let right = format!("add {IP}, or leave {key} out");
                    Err(CniError::annotation(key, value, format!("is of no use without {IP}"), right))
                }
            };
        };
        let ips = addresses(IP, value, text::span)?;
        for ip in &ips {
            permitted(*ip, value, ipam)?;
        }
        let (v4, v6) = ips.into_iter().partition(IpAddr::is_ipv4);
        let mut request = FixedRequest { v4, v6, netmasks: Vec::new(), gateways: Vec::new(), handover };
        if let Some(value) = annotations.get(NETMASK) {
            request.netmasks = request.read_netmasks(value, ipam)?;
        }
        if let Some(value) = annotations.get(GATEWAY) {
            request.gateways = request.read_gateways(value, ipam)?;
        }
        Ok(Some(request))
    }

    /// Checks mask and gateway against the pools that hold the addresses, where no subnet does it. Code 7 for a mask of
    /// another length than the pool's, and for a gateway that is no host of the pool.
    pub fn check_pools(&self, pools: &[IPPool], ipam: &Ipam) -> Result<(), CniError> {
        if ipam.dialect != Dialect::KubeIpam || !ipam.goes_by_pools() {
            return Ok(());
        }
        for ip in self.v4.iter().chain(&self.v6) {
            let Some(pool) = covering(pools, *ip) else { continue };
            let (family, cidr) = (Family::of(*ip), pool.spec.cidr);
            let holder = format!("{cidr}, the IPPool {} that holds {ip}", pool.name_any());
            if let Some(length) = self.netmask(family).filter(|length| *length != cidr.prefix()) {
                let mask = if cidr.is_ipv4() { format!("{} or ", cidr.mask()) } else { String::new() };
                let right = format!("write {mask}/{}, or leave {NETMASK} out", cidr.prefix());
                return Err(CniError::annotation(
                    NETMASK,
                    &format!("/{length}"),
                    format!("contradicts {holder}"),
                    right,
                ));
            }
            let is_host = |ip: &IpAddr| {
                cidr.contains(*ip) && !(ip.is_ipv4() && (*ip == cidr.network() || *ip == cidr.broadcast()))
            };
            if let Some(gateway) = self.gateway(family).filter(|gateway| !is_host(gateway)) {
                let right = format!("give a host of {cidr}, or leave {GATEWAY} out");
                return Err(CniError::annotation(
                    GATEWAY,
                    &gateway.to_string(),
                    format!("is no host of {holder}"),
                    right,
                ));
            }
        }
        Ok(())
    }

    /// The addresses a pod may get in a family: all, in order, or with an ordinal exactly the n-th (counted from 0). Code 7 if the list is
    /// shorter than that. Empty if none was asked for in this family.
    pub fn choices(&self, family: Family, ordinal: Option<u32>) -> Result<Vec<IpAddr>, CniError> {
        let all = self.addresses(family);
        let Some(ordinal) = ordinal.filter(|_| !all.is_empty()) else { return Ok(all.to_vec()) };
        let nth = usize::try_from(ordinal).ok().and_then(|nth| all.get(nth));
        nth.map(|ip| vec![*ip]).ok_or_else(|| {
            let list: Vec<_> = all.iter().map(IpAddr::to_string).collect();
            let wrong = format!("has {} {family} address(es), none for the pod with ordinal {ordinal}", all.len());
            let right = "list one address for each replica, the first for ordinal 0, or scale down";
            CniError::annotation(IP, &list.join(","), wrong, right)
        })
    }

    /// The addresses asked for in a family.
    pub fn addresses(&self, family: Family) -> &[IpAddr] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The prefix length that `kube-ipam.netmask` gives for a family. Equal to the subnet's, where the network has one.
    pub fn netmask(&self, family: Family) -> Option<u8> {
        self.netmasks.iter().find(|(of, _)| *of == family).map(|(_, length)| *length)
    }

    /// The gateway that `kube-ipam.gateway` gives for a family.
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| Family::of(*gateway) == family)
    }

    /// Dotted masks are for IPv4. A length (`16`, `/16`) is for the family whose subnet has it, IPv4 first.
    fn read_netmasks(&self, value: &str, ipam: &Ipam) -> Result<Vec<(Family, u8)>, CniError> {
        let mut netmasks: Vec<(Family, u8)> = Vec::new();
        for part in value.split(',').map(str::trim) {
            let (length, dotted) = mask(part, value)?;
            let open = |family: &Family| {
                !self.addresses(*family).is_empty() && netmasks.iter().all(|(given, _)| given != family)
            };
            let candidates: Vec<Family> = if dotted { vec![Family::V4] } else { Family::BOTH.to_vec() };
            let candidates: Vec<Family> = candidates.into_iter().filter(open).collect();
            let fits =
                |family: &&Family| length <= family.bits() && self.contradiction(**family, length, ipam).is_none();
            match (candidates.iter().find(fits), candidates.first()) {
                (Some(family), _) => netmasks.push((*family, length)),
                (None, Some(family)) => {
                    let (wrong, right) = self.contradiction(*family, length, ipam).unwrap_or_else(|| {
                        (format!("is too long for {family}"), format!("use at most /{}", family.bits()))
                    });
                    return Err(CniError::annotation(NETMASK, value, wrong, right));
                }
                (None, None) => {
                    let wrong = format!("has {}, which is for no address of {IP}", shown(part));
                    return Err(CniError::annotation(NETMASK, value, wrong, "give one mask for each family asked for"));
                }
            }
        }
        Ok(netmasks)
    }

    /// The first subnet of a requested address that has another length.
    fn contradiction(&self, family: Family, length: u8, ipam: &Ipam) -> Option<(String, String)> {
        let ranges = ipam.ranges(family)?;
        self.addresses(family).iter().find_map(|ip| {
            let network = ranges.subnet_of(*ip)?.network;
            (network.prefix() != length).then(|| {
                let mask = if network.is_ipv4() { format!("{} or ", network.mask()) } else { String::new() };
                let wrong = format!("contradicts {network}, the subnet of {ip}");
                (wrong, format!("write {mask}/{}, or leave {NETMASK} out", network.prefix()))
            })
        })
    }

    fn read_gateways(&self, value: &str, ipam: &Ipam) -> Result<Vec<IpAddr>, CniError> {
        let gateways = addresses(GATEWAY, value, |part| text::address(part).map(|ip| (ip, ip)))?;
        for (index, gateway) in gateways.iter().enumerate() {
            let family = Family::of(*gateway);
            let refuse = |wrong: String, right: &str| Err(CniError::annotation(GATEWAY, value, wrong, right));
            if gateways[..index].iter().any(|earlier| Family::of(*earlier) == family) {
                return refuse(format!("has two {family} gateways"), "give one gateway for each family");
            }
            if self.addresses(family).is_empty() {
                return refuse(format!("has an {family} gateway, but {IP} has no {family} address"), "leave it out");
            }
            if self.addresses(family).contains(gateway) {
                return refuse(
                    format!("has {gateway}, which {IP} asks for too"),
                    "a gateway cannot be a pod's address",
                );
            }
            if let Some((wrong, right)) = self.unreachable(*gateway, ipam) {
                return refuse(wrong, &right);
            }
        }
        Ok(gateways)
    }

    /// Why a gateway cannot serve all the addresses asked for: it has to be a host of their subnets.
    fn unreachable(&self, gateway: IpAddr, ipam: &Ipam) -> Option<(String, String)> {
        let family = Family::of(gateway);
        self.addresses(family).iter().find_map(|ip| {
            let subnet = match ipam.ranges(family) {
                Some(ranges) => ranges.subnet_of(*ip)?.network,
                None => IpNetwork::new(*ip, self.netmask(family)?).ok()?,
            };
            let edge = gateway.is_ipv4() && (gateway == subnet.network() || gateway == subnet.broadcast());
            if subnet.contains(gateway) && !edge {
                return None;
            }
            let fault = if edge { "is the network or broadcast address of" } else { "is outside" };
            let network = text::without_host_bits(subnet);
            Some((
                format!("has {gateway}, which {fault} {network}, the subnet of {ip}"),
                format!("give a host of {network}"),
            ))
        })
    }
}

/// Anything of ours that is not known, and anything that looks like ours: ignored, it would mean a random address.
fn refuse_misspelt(annotations: &BTreeMap<String, String>) -> Result<(), CniError> {
    const KNOWN: [&str; 5] = [IP, NETMASK, GATEWAY, OWNER, HANDOVER];
    for (key, value) in annotations.iter().filter(|(key, _)| !KNOWN.contains(&key.as_str())) {
        let meant = names::meant(key, &KNOWN);
        if meant.is_none() && !key.to_ascii_lowercase().starts_with("kube-ipam.") {
            continue;
        }
        let right = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("known are {}", KNOWN.join(", ")),
        };
        let key: String = key.chars().take(80).collect();
        return Err(CniError::annotation(&key, value, "is not an annotation of kube-ipam", right));
    }
    Ok(())
}

/// Calico's own annotations for addresses. Where calico-ipam is spoken its main plugin passes them on.
fn refuse_calicos(annotations: &BTreeMap<String, String>, dialect: Dialect) -> Result<(), CniError> {
    let found = [IP_ADDRS, IP_ADDRS_NO_IPAM].into_iter().find_map(|key| Some((key, annotations.get(key)?)));
    match found.filter(|_| dialect == Dialect::KubeIpam) {
        None => Ok(()),
        Some((key, value)) => {
            let listed = serde_json::from_str::<Vec<String>>(value).unwrap_or_default();
            let first = listed.iter().filter_map(|text| text::address(text).ok()).take(4);
            let list = first.map(|ip| ip.to_string()).collect::<Vec<_>>().join(",");
            let right = match annotations.contains_key(IP) {
                true => format!("leave it out: {IP} is there too"),
                false => format!("write {IP}: {list:?} in its place"),
            };
            Err(CniError::annotation(key, value, "is Calico's, and not served by kube-ipam", right))
        }
    }
}

/// A list of addresses, without empty parts and duplicates; `read` gives the first and the last of each part.
fn addresses(key: &str, value: &str, read: Read) -> Result<Vec<IpAddr>, CniError> {
    let (mut ips, mut seen, mut in_spans) = (Vec::new(), HashSet::new(), 0);
    for part in value.split(',').map(str::trim) {
        let refuse = |wrong: String, right: String| Err(CniError::annotation(key, value, wrong, right));
        if part.is_empty() {
            return refuse("has an empty place".to_owned(), "write addresses separated by commas".to_owned());
        }
        let (first, last) = match read(part) {
            Ok(span) => span,
            Err(error) => return refuse(format!("has {}, which {}", shown(part), error.wrong), error.right),
        };
        for ip in calico::addresses_between(first, last) {
            in_spans += usize::from(first != last);
            if in_spans > MOST_IN_SPANS {
                let wrong = format!("has ranges of more than {MOST_IN_SPANS} addresses");
                return refuse(wrong, "list those that the pods may have, one for each replica".to_owned());
            }
            if !seen.insert(ip) {
                return refuse(format!("has {ip} twice"), "name each address once".to_owned());
            }
            ips.push(ip);
        }
    }
    Ok(ips)
}

/// Reads the first and the last address of a part of a list.
type Read = fn(&str) -> Result<(IpAddr, IpAddr), Wrong>;

/// Addresses that the ranges and CIDRs of one annotation may come to: any of them may be a candidate of one ADD.
const MOST_IN_SPANS: usize = 256;

/// Whether the network may give this address to a pod that asks for it.
fn permitted(ip: IpAddr, value: &str, ipam: &Ipam) -> Result<(), CniError> {
    let family = Family::of(ip);
    let refuse = |wrong: String, right: String| Err(CniError::annotation(IP, value, wrong, right));
    match ipam.ranges(family) {
        Some(ranges) => ranges.permits_fixed(ip).or_else(|why| {
            let right = format!("give an address of {} that is not network, broadcast or gateway", ranges.networks());
            refuse(format!("has {ip}, which {why}"), right)
        }),
        None if ipam.dialect == Dialect::KubeIpam && !ipam.goes_by_pools() => {
            let other = Family::BOTH.into_iter().find_map(|family| ipam.ranges(family));
            let only = other.map(|ranges| format!("has {} only: {ranges}", ranges.family())).unwrap_or_default();
            let right = format!("leave it out, or configure an {family} subnet");
            refuse(format!("has {ip}, but network {} {only}", ipam.network), right)
        }
        // Which pool it is in, if any, is known later.
        None if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() => refuse(
            format!("has {ip}, which is not an address for a pod"),
            "give an address of a Calico IP pool".to_owned(),
        ),
        None => Ok(()),
    }
}

/// The length of a mask, and whether it was written with dots.
fn mask(part: &str, value: &str) -> Result<(u8, bool), CniError> {
    let digits = part.strip_prefix('/').unwrap_or(part);
    let length = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u8>().ok()).flatten();
    if let Some(length) = length.filter(|length| *length <= 128) {
        return Ok((length, false));
    }
    let dotted = part.parse::<Ipv4Addr>().ok().and_then(|mask| ip_mask_to_prefix(mask.into()).ok());
    dotted.map(|length| (length, true)).ok_or_else(|| {
        let right = "write it like 255.255.0.0, /16 or 16; for IPv6 like /64";
        CniError::annotation(NETMASK, value, format!("has {}, which is not a mask", shown(part)), right)
    })
}

//! `IPReservation`: addresses that automatic assignment skips. Explicit assignment may use them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::net;
use crate::wire::{Unknown, null_as_default};

/// Networks that automatic assignment must skip.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "IPReservation",
    plural = "ipreservations",
    singular = "ipreservation",
    derive = "PartialEq"
)]
pub struct IPReservationSpec {
    /// CIDRs, or single addresses.
    #[serde(
        default,
        rename = "reservedCIDRs",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub reserved_cidrs: Vec<String>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// All reservations of a cluster, ready to be asked. Clones share them: there may be thousands, and every assignment
/// asks about every address of a block.
#[derive(Debug, Clone, Default)]
pub struct Reservations {
    known: Arc<Known>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    names: Vec<String>,
    /// In the order of the objects, each with its name's index.
    networks: Vec<(IpNetwork, usize)>,
    /// Where in `networks` single addresses are, as most are.
    single: BTreeMap<IpAddr, Vec<usize>>,
    /// Where in `networks` the others are.
    wide: Vec<usize>,
    malformed: Vec<(String, String)>,
}

impl Reservations {
    /// Reads the objects. Blank entries are skipped, entries that are no network are kept aside, see
    /// [`Reservations::malformed`]: Calico ignores them, and one bad object must not stop every pod.
    pub fn new(objects: &[IPReservation]) -> Self {
        let mut known = Known::default();
        for object in objects {
            let name = object.metadata.name.clone().unwrap_or_default();
            for text in object.spec.reserved_cidrs.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
                match text.parse::<IpNetwork>() {
                    Ok(network) => known.add(network),
                    Err(_) => known.malformed.push((name.clone(), text.to_owned())),
                }
            }
            known.names.push(name);
        }
        Self { known: Arc::new(known) }
    }

    /// The same with further addresses, which no object reserves.
    #[must_use]
    pub fn with(mut self, addresses: &[IpAddr]) -> Self {
        let known = Arc::make_mut(&mut self.known);
        for address in addresses {
            known.single.entry(*address).or_default();
        }
        self
    }

    /// Whether the address is reserved.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.known.single.contains_key(&address) || self.known.wide_around(address).next().is_some()
    }

    /// Name of an object that reserves the address: the first, if there are several.
    pub fn holder(&self, address: IpAddr) -> Option<&str> {
        self.holders(address).next()
    }

    /// Names of all objects that reserve the address.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        let known = &self.known;
        let mut covering: Vec<usize> = known.single.get(&address).into_iter().flatten().copied().collect();
        covering.extend(known.wide_around(address));
        covering.sort_unstable();
        covering.into_iter().map(|index| known.names[known.networks[index].1].as_str())
    }

    /// Every network that is reserved, as often as it is listed.
    pub fn networks(&self) -> impl Iterator<Item = &IpNetwork> {
        self.known.networks.iter().map(|(network, _)| network)
    }

    /// Whether every address of the network is reserved, by one reservation or by several together.
    pub fn covers_all(&self, cidr: &IpNetwork) -> bool {
        let mut inside = Vec::new();
        for network in self.known.wide() {
            if net::covers(network, cidr) {
                return true;
            }
            if let Some(start) = net::offset(cidr, network.network()) {
                inside.push((start, net::count(network)));
            }
        }
        inside.extend(self.known.single_in(cidr).filter_map(|address| Some((net::offset(cidr, address)?, 1))));
        inside.sort_unstable();
        let mut covered_to = 0u128;
        for (start, count) in inside {
            if start > covered_to {
                return false;
            }
            covered_to = covered_to.max(start.saturating_add(count));
        }
        covered_to >= net::count(cidr)
    }

    /// Whether some address of the network is reserved.
    pub fn touches(&self, cidr: &IpNetwork) -> bool {
        self.known.single_in(cidr).next().is_some() || self.known.wide().any(|network| net::overlap(network, cidr))
    }

    /// Entries that are no network, as (object name, text).
    pub fn malformed(&self) -> &[(String, String)] {
        &self.known.malformed
    }
}

impl Known {
    /// Of the object whose name comes next.
    fn add(&mut self, network: IpNetwork) {
        let index = self.networks.len();
        if net::count(&network) == 1 {
            self.single.entry(network.network()).or_default().push(index);
        } else {
            self.wide.push(index);
        }
        self.networks.push((network, self.names.len()));
    }

    fn wide(&self) -> impl Iterator<Item = &IpNetwork> {
        self.wide.iter().map(|index| &self.networks[*index].0)
    }

    fn wide_around(&self, address: IpAddr) -> impl Iterator<Item = usize> {
        let around = move |index: &usize| net::offset(&self.networks[*index].0, address).is_some();
        self.wide.iter().copied().filter(around)
    }

    fn single_in(&self, cidr: &IpNetwork) -> impl Iterator<Item = IpAddr> {
        self.single.range(cidr.network()..=cidr.broadcast()).map(|(address, _)| *address)
    }
}

impl JsonSchema for IPReservationSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IPReservationSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "reservedCIDRs": {"type": "array", "items": {"type": "string", "format": "cidr"}},
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservations(objects: &[(&str, &[&str])]) -> Reservations {
        let objects: Vec<_> = objects
            .iter()
            .map(|(name, cidrs)| {
                let reserved_cidrs = cidrs.iter().map(|cidr| (*cidr).to_owned()).collect();
                IPReservation::new(name, IPReservationSpec { reserved_cidrs, ..Default::default() })
            })
            .collect();
        Reservations::new(&objects)
    }

    fn cidr(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_reserved_by_the_object_that_lists_it() {
        let all = reservations(&[("a", &["10.0.0.0/30"]), ("b", &["10.0.0.2/31", " 10.0.0.9 ", ""])]);
        let at = |text: &str| all.holders(text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(at("10.0.0.1"), ["a"]);
        assert_eq!(at("10.0.0.3"), ["a", "b"]);
        assert_eq!(at("10.0.0.9"), ["b"]);
        let both = reservations(&[("a", &["10.0.0.9"]), ("b", &["10.0.0.8/30", "10.0.0.9/32"]), ("c", &["fd00::9"])]);
        assert_eq!(both.holders("10.0.0.9".parse().unwrap()).collect::<Vec<_>>(), ["a", "b", "b"]);
        assert_eq!(both.networks().count(), 4);
        assert!(both.covers("fd00::9".parse().unwrap()) && !both.touches(&cidr("fd00::/125")));
        assert!(at("10.0.0.4").is_empty());
        assert!(at("fd00::1").is_empty());
        assert!(all.malformed().is_empty());
    }

    #[test]
    fn addresses_may_be_left_out_that_no_object_reserves() {
        let all =
            reservations(&[("a", &["10.0.0.0/31"])]).with(&["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()]);
        assert!(all.covers("10.0.0.2".parse().unwrap()) && all.covers_all(&"10.0.0.0/30".parse().unwrap()));
        assert_eq!(all.holder("10.0.0.2".parse().unwrap()), None);
        assert_eq!(all.networks().count(), 1);
    }

    #[test]
    fn several_reservations_may_cover_a_network_together() {
        let halves = reservations(&[("a", &["10.0.0.32/27", "10.0.0.40/29"]), ("b", &["10.0.0.0/27"])]);
        assert!(halves.covers_all(&cidr("10.0.0.0/26")));
        assert!(!halves.covers_all(&cidr("10.0.0.0/25")));
        let single: Vec<String> = (0..64).map(|host| format!("10.0.0.{host}/32")).collect();
        let single: Vec<&str> = single.iter().map(String::as_str).collect();
        assert!(reservations(&[("a", &single)]).covers_all(&cidr("10.0.0.0/26")));
        assert!(!reservations(&[("a", &single[1..])]).covers_all(&cidr("10.0.0.0/26")));
        assert!(reservations(&[("a", &single[..40]), ("b", &["10.0.0.32/27"])]).covers_all(&cidr("10.0.0.0/26")));
        let gap = reservations(&[("a", &["10.0.0.33/32", "10.0.0.34/31", "10.0.0.0/27"])]);
        assert!(!gap.covers_all(&cidr("10.0.0.0/26")));
        assert!(gap.touches(&cidr("10.0.0.0/26")));
        assert!(!gap.touches(&cidr("10.0.1.0/26")));
        assert!(reservations(&[("a", &["::/0"])]).covers_all(&cidr("::/0")));
        assert!(reservations(&[("a", &["::/1", "8000::/1"])]).covers_all(&cidr("::/0")));
        assert!(!reservations(&[]).covers_all(&cidr("10.0.0.0/26")));
    }

    #[test]
    fn an_entry_that_is_no_network_is_named_and_otherwise_ignored() {
        let all = reservations(&[("a", &["10.0.0.0/33", "10.0.0.1"])]);
        assert_eq!(all.malformed(), [("a".to_owned(), "10.0.0.0/33".to_owned())]);
        assert!(all.covers("10.0.0.1".parse().unwrap()));
    }
}

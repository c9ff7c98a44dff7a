//! `IPReservation`: addresses that automatic assignment skips. Explicit assignment may use them.

use std::net::IpAddr;

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

/// All reservations of a cluster, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Reservations {
    networks: Vec<(IpNetwork, String)>,
    malformed: Vec<(String, String)>,
}

impl Reservations {
    /// Reads the objects. Blank entries are skipped, entries that are no network are kept aside, see
    /// [`Reservations::malformed`]: Calico ignores them, and one bad object must not stop every pod.
    pub fn new(objects: &[IPReservation]) -> Self {
        let mut reservations = Self::default();
        for object in objects {
            let name = object.metadata.name.clone().unwrap_or_default();
            for text in object.spec.reserved_cidrs.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
                match text.parse::<IpNetwork>() {
                    Ok(network) => reservations.networks.push((network, name.clone())),
                    Err(_) => reservations.malformed.push((name.clone(), text.to_owned())),
                }
            }
        }
        reservations
    }

    /// Whether the address is reserved.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.holder(address).is_some()
    }

    /// Name of an object that reserves the address: the first, if there are several.
    pub fn holder(&self, address: IpAddr) -> Option<&str> {
        self.holders(address).next()
    }

    /// Names of all objects that reserve the address.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        let covering = self.networks.iter().filter(move |(network, _)| net::offset(network, address).is_some());
        covering.map(|(_, name)| name.as_str())
    }

    /// Every network that is reserved, as often as it is listed.
    pub fn networks(&self) -> impl Iterator<Item = &IpNetwork> {
        self.networks.iter().map(|(network, _)| network)
    }

    /// Whether every address of the network is reserved, by one reservation or by several together.
    pub fn covers_all(&self, cidr: &IpNetwork) -> bool {
        let mut inside = Vec::new();
        for (network, _) in &self.networks {
            if net::covers(network, cidr) {
                return true;
            }
            if let Some(start) = net::offset(cidr, network.network()) {
                inside.push((start, net::count(network)));
            }
        }
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
        self.networks.iter().any(|(network, _)| net::overlap(network, cidr))
    }

    /// Entries that are no network, as (object name, text).
    pub fn malformed(&self) -> &[(String, String)] {
        &self.malformed
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
        assert!(at("10.0.0.4").is_empty());
        assert!(at("fd00::1").is_empty());
        assert!(all.malformed().is_empty());
    }

    #[test]
    fn several_reservations_may_cover_a_network_together() {
        let halves = reservations(&[("a", &["10.0.0.32/27", "10.0.0.40/29"]), ("b", &["10.0.0.0/27"])]);
        assert!(halves.covers_all(&cidr("10.0.0.0/26")));
        assert!(!halves.covers_all(&cidr("10.0.0.0/25")));
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

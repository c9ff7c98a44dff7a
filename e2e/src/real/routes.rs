//! Routes between nodes, made from Calico's IPAM blocks alone, by the rules felix follows: a block is routed to
//! its host, an address that is recorded for another node to that node. So a ping that arrives proves the records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Deserialize;

use super::network::{ip, ip_batch};

/// Marks the routes that are ours, among those the kernel and the plugins make.
const PROTOCOL: &str = "80";

/// A destination and the next hop.
pub type Route = (IpNetwork, IpAddr);

/// Node names with their addresses, at most one of each family.
pub type NodeAddresses = BTreeMap<String, Vec<IpAddr>>;

/// The kind whose objects decide the routes.
pub fn ipam_blocks() -> ApiResource {
    let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", "IPAMBlock");
    ApiResource::from_gvk_with_plural(&kind, "ipamblocks")
}

/// The routes of one machine: to every block and every borrowed address that lies on another node.
/// `here` is the machine's node name, or `None` for one without pods.
pub fn wanted(blocks: &[DynamicObject], nodes: &NodeAddresses, here: Option<&str>) -> Result<BTreeSet<Route>> {
    let mut routes = BTreeSet::new();
    for block in blocks {
        let spec = block.data.get("spec").context("a block has a spec")?;
        let block: Block = serde_json::from_value(spec.clone()).context("reading a block")?;
        if block.deleted {
            continue;
        }
        let host = block.affinity.as_deref().and_then(|affinity| affinity.strip_prefix("host:"));
        let mut add = |destination: IpNetwork, node: &str| {
            let hop = nodes.get(node).into_iter().flatten().find(|hop| hop.is_ipv4() == destination.is_ipv4());
            if let (Some(hop), true) = (hop, here != Some(node)) {
                routes.insert((destination, *hop));
            }
        };
        if let Some(host) = host {
            add(block.cidr, host);
        }
        for (address, node) in block.nodes_of_addresses() {
            if host != Some(node) {
                add(IpNetwork::from(address), node);
            }
        }
    }
    Ok(routes)
}

/// Behind the main plugin's own routes (0, or 1024 for IPv6): a pod that moves here has its route while ours to the
/// old node still stands, and the two must not be taken for one.
const METRIC: u32 = 4096;

/// Makes the routes in a network namespace what is wanted, touching only those that differ.
pub fn sync(netns: &str, wanted: &BTreeSet<Route>) -> Result<()> {
    let mut present = BTreeSet::new();
    for family in ["-4", "-6"] {
        let printed = ip(Some(netns), &format!("-json {family} route show proto {PROTOCOL}"))?;
        let lines: Vec<Line> = serde_json::from_str(if printed.trim().is_empty() { "[]" } else { &printed })?;
        for line in lines {
            present.insert((line.dst.parse::<IpNetwork>()?, line.gateway.context("our routes have a next hop")?));
        }
    }
    let removed = present
        .difference(wanted)
        .map(|(to, hop)| format!("route del {to} via {hop} proto {PROTOCOL} metric {METRIC}\n"));
    let added = wanted
        .difference(&present)
        .map(|(to, hop)| format!("route add {to} via {hop} proto {PROTOCOL} metric {METRIC}\n"));
    let lines: String = removed.chain(added).collect();
    if lines.is_empty() { Ok(()) } else { ip_batch(Some(netns), &lines) }
}

#[derive(Deserialize)]
struct Block {
    cidr: IpNetwork,
    affinity: Option<String>,
    allocations: Vec<Option<usize>>,
    attributes: Vec<Attribute>,
    #[serde(default)]
    deleted: bool,
}

#[derive(Deserialize)]
struct Attribute {
    #[serde(default)]
    secondary: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Line {
    dst: String,
    gateway: Option<IpAddr>,
}

impl Block {
    fn nodes_of_addresses(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.allocations.iter().enumerate().filter_map(|(ordinal, index)| {
            let secondary = self.attributes.get((*index)?)?.secondary.as_ref()?;
            Some((nth_address(self.cidr.network(), ordinal), secondary.get("node")?.as_str()))
        })
    }
}

fn nth_address(first: IpAddr, ordinal: usize) -> IpAddr {
    match first {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + ordinal as u32).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + ordinal as u128).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> DynamicObject {
        let spec = serde_json::json!({
            "cidr": "10.244.0.192/26", "affinity": "host:node1", "strictAffinity": false, "unallocated": [],
            "allocations": [0, 1, null, 2],
            "attributes": [
                { "handle_id": "a", "secondary": { "node": "node1" } },
                { "handle_id": "b", "secondary": { "node": "node2" } },
                { "releasedAt": "2026-11-01T00:00:00Z" },
            ],
        });
        DynamicObject::new("10-244-0-192-26", &ipam_blocks()).data(serde_json::json!({ "spec": spec }))
    }

    fn nodes() -> NodeAddresses {
        let address = |last| vec![IpAddr::from([172, 29, 0, last])];
        BTreeMap::from([("node1".into(), address(11)), ("node2".into(), address(12))])
    }

    fn routes_of(here: Option<&str>) -> Vec<String> {
        let routes = wanted(&[block()], &nodes(), here).unwrap();
        routes.into_iter().map(|(to, hop)| format!("{to} via {hop}")).collect()
    }

    #[test]
    fn a_block_leads_to_its_host_and_a_borrowed_address_to_its_node() {
        assert_eq!(routes_of(None), ["10.244.0.192/26 via 172.29.0.11", "10.244.0.193/32 via 172.29.0.12"]);
    }

    #[test]
    fn a_node_has_no_route_to_what_it_holds_itself() {
        assert_eq!(routes_of(Some("node1")), ["10.244.0.193/32 via 172.29.0.12"]);
        assert_eq!(routes_of(Some("node2")), ["10.244.0.192/26 via 172.29.0.11"]);
    }
}

//! Who uses an address by Calico's block, and whose it is by its claim.

use std::net::IpAddr;

use calico::{AllocationAttribute, Entry, IPAMBlock, IPPool, Reservations};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::claim::Claim;
use crate::cli::output;

/// What is on record of one address.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    address: IpAddr,
    state: State,
    /// The user, while the address is in use.
    #[serde(flatten)]
    user: Option<User>,
    /// RFC 3339: since when it is in use or cooling.
    since: Option<String>,
    block: Option<Block>,
    /// Name of the pool; null: in none.
    pool: Option<String>,
    /// Names of the IPReservations that keep it from automatic assignment.
    reserved_by: Vec<String>,
    /// Absent: not looked at. Null: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<Option<Claim>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum State {
    InUse,
    /// Released, and not given out again yet.
    Cooling,
    Free,
    /// In no pool and no block.
    OutsidePools,
    /// The block is malformed.
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct User {
    /// Null: no pod's.
    pod: Option<Pod>,
    node: Option<String>,
    handle: Option<String>,
    /// What it is, if it is no pod's: `ipipTunnelAddress`, ...
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Pod {
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Block {
    cidr: IpNetwork,
    /// Null: nobody's.
    node: Option<String>,
}

impl Shown {
    /// `claim` is none if claims were not looked at.
    pub(super) fn of(
        address: IpAddr,
        pools: &[IPPool],
        blocks: &[IPAMBlock],
        reservations: &Reservations,
        claim: Option<Option<Claim>>,
    ) -> Self {
        let holds = |block: &&IPAMBlock| !block.spec.is_deleted() && block.spec.cidr.contains(address);
        let block = blocks.iter().find(holds);
        let pool = calico::covering(pools, address);
        let (mut user, mut since) = (None, None);
        let state = match block.map(|block| block.spec.entry(address)) {
            Some(Entry::Used { attribute, .. }) => {
                user = Some(User::of(attribute));
                since = attribute.secondary("timestamp").map(time);
                State::InUse
            }
            Some(Entry::Cooling { released_at }) => {
                since = Some(released_at.to_owned());
                State::Cooling
            }
            Some(Entry::Unreadable) => State::Unreadable,
            Some(Entry::Free) => State::Free,
            Some(Entry::NotInBlock) | None if pool.is_some() => State::Free,
            Some(Entry::NotInBlock) | None => State::OutsidePools,
        };
        Self {
            address,
            state,
            user,
            since,
            block: block.map(|b| Block { cidr: b.spec.cidr, node: b.spec.host().map(str::to_owned) }),
            pool: pool.map(|pool| pool.name_any()),
            reserved_by: reservations.holders(address).map(str::to_owned).collect(),
            claim,
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut fields = vec![("Address", self.address.to_string()), ("State", self.state.text().to_owned())];
        if let Some(user) = &self.user {
            let pod = user.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name));
            fields.push(("Pod", output::or_none(pod)));
            fields.extend(user.kind.clone().map(|kind| ("Type", kind)));
            fields.push(("Node", output::or_none(user.node.as_ref())));
            fields.push(("Handle", output::or_none(user.handle.as_ref())));
        }
        fields.extend(self.since.clone().map(|since| ("Since", since)));
        fields.push(("Block", self.block.as_ref().map_or("none yet".to_owned(), |block| self.block_text(block))));
        fields.push(("Pool", output::or_none(self.pool.as_ref())));
        let reserved = (!self.reserved_by.is_empty()).then(|| format!("by {}", self.reserved_by.join(", ")));
        fields.push(("Reserved", reserved.unwrap_or_else(|| "no".to_owned())));
        fields.extend(self.claim_fields());
        output::description(fields)
    }

    fn block_text(&self, block: &Block) -> String {
        let Some(owner) = &block.node else { return format!("{}, of no node", block.cidr) };
        let used_on = self.user.as_ref().and_then(|user| user.node.as_ref());
        let borrowed = if used_on.is_some_and(|node| node != owner) { ", borrowed" } else { "" };
        format!("{} of node {owner}{borrowed}", block.cidr)
    }

    fn claim_fields(&self) -> Vec<(&'static str, String)> {
        match &self.claim {
            None => vec![("Owner", "not looked at: no ledger is named".to_owned())],
            Some(None) => vec![("Owner", "none: not a fixed address".to_owned())],
            Some(Some(claim)) => {
                let owned = format!("{} since {}", claim.owner, output::time(claim.created));
                let holder = claim.holder.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
                vec![("Owner", owned), ("Holder", holder)]
            }
        }
    }
}

impl State {
    fn text(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::Cooling => "cooling after its release",
            Self::Free => "free",
            Self::OutsidePools => "outside of all pools",
            Self::Unreadable => "unknown: its block is malformed, see kube-ipam check",
        }
    }
}

impl User {
    fn of(attribute: &AllocationAttribute) -> Self {
        let secondary = |key| attribute.secondary(key).map(str::to_owned);
        Self {
            pod: secondary("namespace").zip(secondary("pod")).map(|(namespace, name)| Pod { namespace, name }),
            node: secondary("node"),
            handle: attribute.handle().map(str::to_owned),
            kind: secondary("type"),
        }
    }
}

/// Calico's time as RFC 3339, to the second; what is in no form of Calico's stays as it is.
fn time(text: &str) -> String {
    let plain = text.strip_suffix(" UTC").unwrap_or(text);
    Timestamp::strptime("%Y-%m-%d %H:%M:%S%.f %z", plain).map_or_else(|_| text.to_owned(), output::time)
}

#[cfg(test)]
mod tests {
    use calico::{Affinity, Holder, IPAMBlockSpec, IPReservation, IPReservationSpec};
    use serde_json::json;

    use super::*;

    const NOW: &str = "2026-11-24T02:01:28.25Z";

    fn shown(address: &str, claim: Option<Option<Claim>>) -> Shown {
        let now = NOW.parse().unwrap();
        let mut spec = IPAMBlockSpec::new("10.244.0.192/26".parse().unwrap(), &Affinity::host("n1"), now);
        let pod = Holder::pod("net.c1", "default", "web-1", "n2", now);
        spec.assign("10.244.0.216".parse().unwrap(), &pod, None).unwrap();
        let mut tunnel = Holder::node("ipip-tunnel-addr-n1", "n1", now);
        tunnel.secondary.insert("type".into(), "ipipTunnelAddress".into());
        spec.assign("10.244.0.217".parse().unwrap(), &tunnel, None).unwrap();
        let pool: IPPool = serde_json::from_value(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "default"},
            "spec": {"cidr": "10.244.0.0/16"},
        }))
        .unwrap();
        let reserved = IPReservationSpec { reserved_cidrs: vec!["10.244.0.216/32".into()], ..Default::default() };
        let reservations = Reservations::new(&[IPReservation::new("kube-ipam-10-244-0-192-26", reserved)]);
        Shown::of(address.parse().unwrap(), &[pool], &[spec.object()], &reservations, claim)
    }

    fn claim() -> Claim {
        serde_json::from_value(json!({
            "address": "10.244.0.216", "created": NOW, "generation": 1,
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
            "holder": {"podUid": "u", "pod": "web-1", "containerId": "c1", "interface": "eth0", "node": "n2", "since": NOW},
        }))
        .unwrap()
    }

    #[test]
    fn a_fixed_address_names_user_block_reservation_and_owner() {
        let expected = "\
Address:   10.244.0.216
State:     in use
Pod:       default/web-1
Node:      n2
Handle:    net.c1
Since:     2026-11-24T02:01:28Z
Block:     10.244.0.192/26 of node n1, borrowed
Pool:      default
Reserved:  by kube-ipam-10-244-0-192-26
Owner:     Deployment default/web since 2026-11-24T02:01:28Z
Holder:    pod web-1 on node n2 since 2026-11-24T02:01:28Z";
        assert_eq!(shown("10.244.0.216", Some(Some(claim()))).text(), expected);
    }

    #[test]
    fn machines_are_told_the_same() {
        let value = serde_json::to_value(shown("10.244.0.216", Some(Some(claim())))).unwrap();
        assert_eq!(value["pod"], json!({"namespace": "default", "name": "web-1"}));
        assert_eq!((&value["node"], &value["state"]), (&json!("n2"), &json!("inUse")));
        assert_eq!(value["claim"]["owner"]["name"], json!("web"));
        let value = serde_json::to_value(shown("10.244.0.218", None)).unwrap();
        assert_eq!((value.get("claim"), value.get("pod"), &value["state"]), (None, None, &json!("free")));
    }

    #[test]
    fn tunnels_free_addresses_and_foreign_ones_are_told_apart() {
        let tunnel = shown("10.244.0.217", Some(None)).text();
        assert!(tunnel.contains("\nPod:       -\nType:      ipipTunnelAddress\n"), "{tunnel}");
        assert!(tunnel.contains("\nBlock:     10.244.0.192/26 of node n1\n"), "{tunnel}");
        let free = shown("10.244.9.9", None).text();
        assert!(free.contains("State:     free") && free.contains("Block:     none yet"), "{free}");
        assert!(free.contains("Owner:     not looked at"), "{free}");
        assert!(shown("10.99.0.1", None).text().contains("State:     outside of all pools"));
    }

    #[test]
    fn calicos_times_become_ours_and_others_stay() {
        assert_eq!(time("2026-11-23 22:41:05.331081028 +0000 UTC"), "2026-11-23T22:41:05Z");
        assert_eq!(time("2026-11-23 22:41:05 +0000 UTC"), "2026-11-23T22:41:05Z");
        assert_eq!(time("yesterday"), "yesterday");
    }
}

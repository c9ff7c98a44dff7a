//! What is on record, read raw: JSON of the API server and of etcd, understood here and by no code of the program's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::GetOptions;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};
use serde_json::Value;

/// Objects in one answer.
const PAGE: u32 = 500;

/// Everything that is compared with the books.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Blocks.
    pub blocks: Vec<Block>,
    /// Handles.
    pub handles: Vec<Handle>,
    /// Affinities.
    pub affinities: Vec<Affinity>,
    /// The addresses in our reservations, with the reservation's name.
    pub reserved: Vec<(IpAddr, String)>,
    /// Claims.
    pub claims: Vec<Claim>,
}

/// A block.
#[derive(Debug, Clone)]
pub struct Block {
    /// `10.240.0.0/26`
    pub cidr: String,
    /// The node that it names.
    pub host: Option<String>,
    /// Marked deleted.
    pub deleted: bool,
    /// Its addresses in use: the handle and the node.
    pub entries: BTreeMap<IpAddr, (String, String)>,
}

/// A handle.
#[derive(Debug, Clone)]
pub struct Handle {
    /// `<network>.<container>`
    pub id: String,
    /// Marked deleted.
    pub deleted: bool,
    /// Addresses by block.
    pub counts: BTreeMap<String, i64>,
}

/// An affinity.
#[derive(Debug, Clone)]
pub struct Affinity {
    /// The block.
    pub cidr: String,
    /// The node.
    pub node: String,
    /// `confirmed`, `pending`, `pendingDeletion`
    pub state: String,
    /// Marked deleted.
    pub deleted: bool,
}

/// A claim.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The owner's name.
    pub owner: String,
    /// The container that holds it.
    pub holder: Option<String>,
}

// === impl Records ===

impl Records {
    /// Reads all of them; `prefix` is that of the claims' keys.
    pub(super) async fn read(client: &Client, etcd: &mut etcd_client::Client, prefix: &str) -> Result<Records> {
        let blocks = all(client, "IPAMBlock", "ipamblocks").await?;
        let handles = all(client, "IPAMHandle", "ipamhandles").await?;
        let affinities = all(client, "BlockAffinity", "blockaffinities").await?;
        let reservations = all(client, "IPReservation", "ipreservations").await?;
        let claims = etcd.get(prefix, Some(GetOptions::new().with_prefix())).await?;
        let mut reserved = Vec::new();
        for (name, spec) in &reservations {
            reserved.extend(of_reservation(name, spec)?);
        }
        Ok(Records {
            blocks: blocks.iter().map(|(_, spec)| Block::of(spec)).collect::<Result<_>>()?,
            handles: handles.iter().map(|(_, spec)| Handle::of(spec)).collect::<Result<_>>()?,
            affinities: affinities.iter().map(|(_, spec)| Affinity::of(spec)).collect::<Result<_>>()?,
            reserved,
            claims: claims
                .kvs()
                .iter()
                .map(|pair| Claim::of(&serde_json::from_slice(pair.value())?))
                .collect::<Result<_>>()?,
        })
    }
}

/// The names and specs of all objects of a kind.
async fn all(client: &Client, kind: &str, plural: &str) -> Result<Vec<(String, Value)>> {
    let kind = GroupVersionKind::gvk("crd.projectcalico.org", "v1", kind);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural));
    let mut page = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let list = api.list(&page).await.with_context(|| format!("listing {plural}"))?;
        let spec = |mut object: DynamicObject| (object.metadata.name.unwrap_or_default(), object.data["spec"].take());
        found.extend(list.items.into_iter().map(spec));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

/// The single addresses of a reservation of ours; none of another's.
fn of_reservation(name: &str, spec: &Value) -> Result<Vec<(IpAddr, String)>> {
    if !name.starts_with("kube-ipam-") {
        return Ok(Vec::new());
    }
    let cidrs = spec["reservedCIDRs"].as_array().with_context(|| format!("reservation {name} has no list"))?;
    let single = |cidr: &Value| {
        let text = cidr.as_str().unwrap_or_default();
        let address = text.strip_suffix("/32").unwrap_or(text).parse().with_context(|| format!("{name}: {cidr}"))?;
        Ok((address, name.to_owned()))
    };
    cidrs.iter().map(single).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

// === impl Block ===

impl Block {
    fn of(spec: &Value) -> Result<Block> {
        let cidr = text(&spec["cidr"]);
        let first: Ipv4Addr = cidr.split('/').next().unwrap_or_default().parse().context(cidr.clone())?;
        let attributes = spec["attributes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let allocations = spec["allocations"].as_array().with_context(|| format!("block {cidr} has no allocations"))?;
        let mut entries = BTreeMap::new();
        for (ordinal, index) in (0u32..).zip(allocations).filter(|(_, index)| !index.is_null()) {
            let attribute = index.as_u64().and_then(|index| attributes.get(usize::try_from(index).ok()?));
            let Some(attribute) = attribute else { bail!("block {cidr}: ordinal {ordinal} leads to no attribute") };
            let (handle, node) = (text(&attribute["handle_id"]), text(&attribute["secondary"]["node"]));
            entries.insert(Ipv4Addr::from(u32::from(first) + ordinal).into(), (handle, node));
        }
        let free = spec["unallocated"].as_array().map_or(0, Vec::len);
        ensure!(free + entries.len() == allocations.len(), "block {cidr}: {free} free, {} in use", entries.len());
        let host = spec["affinity"].as_str().and_then(|affinity| affinity.strip_prefix("host:")).map(str::to_owned);
        Ok(Block { cidr, host, deleted: spec["deleted"] == true, entries })
    }
}

// === impl Handle ===

impl Handle {
    fn of(spec: &Value) -> Result<Handle> {
        let id = text(&spec["handleID"]);
        ensure!(!id.is_empty(), "a handle without id: {spec}");
        let counts = spec["block"].as_object().into_iter().flatten();
        let counts = counts.map(|(cidr, count)| (cidr.clone(), count.as_i64().unwrap_or_default())).collect();
        Ok(Handle { id, deleted: spec["deleted"] == true, counts })
    }
}

// === impl Affinity ===

impl Affinity {
    fn of(spec: &Value) -> Result<Affinity> {
        let (cidr, node) = (text(&spec["cidr"]), text(&spec["node"]));
        ensure!(!cidr.is_empty() && !node.is_empty(), "an affinity of nothing: {spec}");
        Ok(Affinity { cidr, node, state: text(&spec["state"]), deleted: spec["deleted"] == "true" })
    }
}

// === impl Claim ===

impl Claim {
    fn of(claim: &Value) -> Result<Claim> {
        let address = text(&claim["address"]).parse().with_context(|| format!("a claim of no address: {claim}"))?;
        let holder = claim["holder"]["containerId"].as_str().map(str::to_owned);
        Ok(Claim { address, owner: text(&claim["owner"]["name"]), holder })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_blocks_entries_are_found_by_their_ordinals() {
        let spec = json!({
            "cidr": "10.0.0.64/30", "affinity": "host:n1", "unallocated": [0, 2, 3], "allocations": [null, 0, null, null],
            "attributes": [{"handle_id": "net.c1", "secondary": {"node": "n1", "pod": "p"}}],
        });
        let block = Block::of(&spec).unwrap();
        let entry = ("10.0.0.65".parse().unwrap(), ("net.c1".to_owned(), "n1".to_owned()));
        assert_eq!((block.host.as_deref(), block.entries), (Some("n1"), [entry].into()));
    }

    #[test]
    fn a_block_that_contradicts_itself_is_an_error() {
        let broken = |spec: Value| Block::of(&spec).unwrap_err().to_string();
        let nowhere = json!({"cidr": "10.0.0.64/31", "unallocated": [1], "allocations": [0, null], "attributes": []});
        assert_eq!(broken(nowhere), "block 10.0.0.64/31: ordinal 0 leads to no attribute");
        let both = json!({
            "cidr": "10.0.0.64/31", "unallocated": [0, 1], "allocations": [0, null], "attributes": [{"handle_id": "h"}],
        });
        assert_eq!(broken(both), "block 10.0.0.64/31: 2 free, 1 in use");
    }

    #[test]
    fn only_our_reservations_are_looked_at() {
        let spec = json!({"reservedCIDRs": ["10.0.0.7/32"]});
        let ours = of_reservation("kube-ipam-10-0-0-0-26", &spec).unwrap();
        assert_eq!(ours, [("10.0.0.7".parse().unwrap(), "kube-ipam-10-0-0-0-26".to_owned())]);
        assert_eq!(of_reservation("routers", &json!({"reservedCIDRs": ["10.0.0.0/24"]})).unwrap(), []);
    }
}

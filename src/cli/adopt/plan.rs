//! Which claims an adoption makes, or why it must not. Pure.

use std::net::IpAddr;

use calico::{AllowedUse, Family, covering};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt as _;
use serde::Serialize;
use serde_json::Map;

use super::template::Template;
use crate::audit::Snapshot;
use crate::audit::view::{PodView, Use, View};
use crate::claim::{Claim, Holder, PodState};
use crate::driver::{
    BY_HAND, CLAIM_KEY, INTERFACE_KEY, POD_UID_KEY, Wanted, host_cidr, is_holders, is_own_reservation,
};
use crate::netconf::NetConf;
use crate::pod::{self, FixedRequest, IP_ADDRS, IP_ADDRS_NO_IPAM, OWNER, Owner, check_namespace};
use crate::store::Versioned;

/// The interface of a pod whose allocation does not name it.
const INTERFACE: &str = "eth0";

/// What an adoption comes to.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub items: Vec<Item>,
    pub problems: Vec<Problem>,
    pub templates: Vec<Template>,
}

/// One address of one pod.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    pub address: IpAddr,
    pub namespace: String,
    pub pod: String,
    pub node: String,
    pub owner: String,
    /// Whether there is nothing to do.
    pub claimed_already: bool,
    #[serde(skip)]
    pub wanted: Wanted,
    #[serde(skip)]
    controller: Owner,
    /// Calico's annotations for addresses that the pod bears.
    #[serde(skip)]
    calicos: Vec<&'static str>,
}

/// What keeps a pod's address from being adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    pub pod: String,
    pub why: String,
}

impl Plan {
    /// For all pods of the snapshot, which has every claim of the network.
    pub(super) fn of(snapshot: &Snapshot, now: Timestamp) -> Self {
        let (view, mut plan) = (View::of(snapshot), Self::default());
        for pod in &snapshot.pods {
            match items(&view, pod, now) {
                Ok(items) => plan.items.extend(items),
                Err(why) => plan.problems.push(Problem { pod: name(pod), why }),
            }
        }
        plan.templates = templates(snapshot, &plan.items);
        plan
    }

    /// Those that something is written for.
    pub(super) fn due(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| !item.claimed_already)
    }
}

fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn items(view: &View<'_>, pod: &Pod, now: Timestamp) -> Result<Vec<Item>, String> {
    let meta = &pod.metadata;
    let key = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let Some(seen) = view.pods.get(&key) else {
        return Err("runs in its node's network: it has no address of its own".into());
    };
    if seen.state != PodState::Alive {
        return Err("is at its end: it gives its address back".into());
    }
    if seen.addresses.is_empty() {
        return Err("has no address yet".into());
    }
    let owner = Owner::of(pod).map_err(|error| error.to_string())?;
    let controller = controller(pod).unwrap_or_else(|| owner.clone());
    seen.addresses.iter().map(|address| item(view, seen, *address, &owner, &controller, now)).collect()
}

/// Who makes the pods, whoever owns their addresses by annotation.
fn controller(pod: &Pod) -> Option<Owner> {
    let mut bare = pod.clone();
    bare.metadata.annotations.as_mut()?.remove(OWNER)?;
    Owner::of(&bare).ok()
}

fn item(
    view: &View<'_>,
    pod: &PodView<'_>,
    address: IpAddr,
    owner: &Owner,
    controller: &Owner,
    now: Timestamp,
) -> Result<Item, String> {
    let cidr = permitted_block(view.snapshot, address)?;
    let used = view.used.get(&address).filter(|used| used.pod() == Some((pod.namespace, pod.name)));
    let used = used.ok_or_else(|| match view.used.get(&address) {
        Some(other) => format!("has {address}, which block {} records for {}", other.block.spec.cidr, other.user()),
        None => format!("has {address}, which no block records"),
    })?;
    let standing = view.snapshot.claims.iter().flatten().find(|claim| claim.value.address == address);
    let claim = claim(view, pod, used, owner, standing.map(|claim| &claim.value), now)?;
    let marked = used.attribute.secondary(CLAIM_KEY) == Some(claim.generation.to_string().as_str());
    let claimed_already =
        marked && standing.map(|claim| &claim.value) == Some(&claim) && is_reserved(view.snapshot, address);
    Ok(Item {
        address,
        namespace: pod.namespace.to_owned(),
        pod: pod.name.to_owned(),
        node: pod.node().unwrap_or_default().to_owned(),
        owner: owner.to_string(),
        claimed_already,
        wanted: wanted(claim, standing, cidr, used),
        controller: controller.clone(),
        calicos: [IP_ADDRS, IP_ADDRS_NO_IPAM]
            .into_iter()
            .filter(|key| pod.pod.annotations().contains_key(*key))
            .collect(),
    })
}

fn wanted(claim: Claim, standing: Option<&Versioned<Claim>>, cidr: IpNetwork, used: &Use<'_>) -> Wanted {
    Wanted { claim, standing: standing.cloned(), cidr, entry: Some((used.block.spec.cidr, used.expect())) }
}

/// The claim as it is to be: the standing one, if it says the same.
fn claim(
    view: &View<'_>,
    pod: &PodView<'_>,
    used: &Use<'_>,
    owner: &Owner,
    standing: Option<&Claim>,
    now: Timestamp,
) -> Result<Claim, String> {
    let address = used.address;
    let holder = holder(view, pod, used, now)?;
    let Some(standing) = standing else {
        return Ok(Claim {
            address,
            owner: owner.clone(),
            holder: Some(holder),
            created: now,
            generation: BY_HAND,
            contested: None,
            owner_gone: None,
            moved: None,
            origin: None,
            successor: None,
            unknown: Map::new(),
        });
    };
    if standing.moved.is_some() {
        return Err(format!("has {address}, whose claim was carried to another ledger; name that one by --ledger"));
    }
    if standing.owner != *owner {
        return Err(format!("has {address}, which {} has claimed", standing.owner));
    }
    match &standing.holder {
        Some(held) if held.pod_uid == holder.pod_uid => Ok(standing.clone()),
        Some(held) => Err(format!("has {address}, which is held by {held} of the same owner")),
        None => {
            let (holder, generation) = (Some(holder), standing.generation + 1);
            Ok(Claim { holder, generation, contested: None, owner_gone: None, ..standing.clone() })
        }
    }
}

/// The pod as the records name it. An allocation that was made ahead of a container is the pod's, whichever of its
/// containers has it.
fn holder(view: &View<'_>, pod: &PodView<'_>, used: &Use<'_>, now: Timestamp) -> Result<Holder, String> {
    let handle = used.attribute.handle().unwrap_or_default();
    let container = match (used.attribute.secondary(POD_UID_KEY), &view.snapshot.net) {
        (Some(_), _) => Some(""),
        (None, Some(net)) => handle.strip_prefix(&net.network).and_then(|rest| rest.strip_prefix('.')),
        (None, None) => handle.rsplit_once('.').map(|(_, container)| container),
    };
    let why = || format!("has {} under handle {handle}, which is none of this network", used.address);
    let container = container.ok_or_else(why)?;
    let node = pod.node().unwrap_or_default();
    let holder = Holder {
        pod_uid: pod::uid(pod.pod).unwrap_or_default().to_owned(),
        pod: pod.name.to_owned(),
        container_id: container.to_owned(),
        interface: match container.is_empty() {
            true => String::new(),
            false => used.attribute.secondary(INTERFACE_KEY).unwrap_or(INTERFACE).to_owned(),
        },
        node: node.to_owned(),
        node_uid: view.node(node).and_then(|node| node.uid()),
        since: now,
        unknown: Map::new(),
    };
    match &view.snapshot.net {
        Some(net) if !is_holders(used.attribute, &net.network, &holder) => Err(why()),
        _ => Ok(holder),
    }
}

/// The block that a fixed address lies in, if it may be one.
pub(in crate::cli) fn permitted_block(snapshot: &Snapshot, address: IpAddr) -> Result<IpNetwork, String> {
    if let Some(ipam) = snapshot.net.as_ref().map(|net| &net.ipam) {
        match ipam.ranges(Family::of(address)) {
            Some(ranges) => ranges.permits_fixed(address).map_err(|why| format!("{address} {why}"))?,
            None if ipam.goes_by_pools() || ipam.assigns(Family::of(address)) => {}
            None => return Err(format!("{address} is {}, which the network does not assign", Family::of(address))),
        }
    }
    let pool = covering(&snapshot.pools, address).ok_or_else(|| format!("{address} lies in no IPPool"))?;
    pool.spec.check_explicit(&pool.name_any(), AllowedUse::Workload).map_err(|error| format!("{address}: {error}"))?;
    Ok(pool.spec.block_of(address))
}

/// Why pods of a namespace may not have the address, if they may not.
pub(in crate::cli) fn refused_in(net: Option<&NetConf>, namespace: &Namespace, address: IpAddr) -> Option<String> {
    let unannotated = net.map_or_else(Default::default, |net| net.ipam.fixed);
    let annotations = namespace.metadata.annotations.as_ref();
    let checked = check_namespace(&FixedRequest::of(address), &namespace.name_any(), annotations, unannotated);
    checked.err().map(|error| error.to_string())
}

/// Whether one of our reservations lists the address.
pub(in crate::cli) fn is_reserved(snapshot: &Snapshot, address: IpAddr) -> bool {
    let entry = host_cidr(address).to_string();
    snapshot.reservations.iter().any(|r| is_own_reservation(&r.name_any()) && r.spec.reserved_cidrs.contains(&entry))
}

/// One for each controller whose pods are adopted, with what its other pods have claimed.
fn templates(snapshot: &Snapshot, items: &[Item]) -> Vec<Template> {
    let mut controllers: Vec<(Owner, Owner)> = items
        .iter()
        .map(|item| {
            let whole = |owner: &Owner| Owner { ordinal: None, ..owner.clone() };
            (whole(&item.controller), whole(&item.wanted.claim.owner))
        })
        .collect();
    controllers.sort();
    controllers.dedup();
    let standing = snapshot.claims.iter().flatten().map(|claim| &claim.value);
    let known = |address: &IpAddr| items.iter().any(|item| item.address == *address);
    let all: Vec<&Claim> =
        standing.filter(|claim| !known(&claim.address)).chain(items.iter().map(|item| &item.wanted.claim)).collect();
    let of = |(controller, owner): (Owner, Owner)| {
        let theirs: Vec<&Claim> =
            all.iter().filter(|claim| Owner { ordinal: None, ..claim.owner.clone() } == owner).copied().collect();
        let pods = items.iter().filter(|item| Owner { ordinal: None, ..item.controller.clone() } == controller);
        let bears = |key: &&'static str| pods.clone().any(|item| item.calicos.contains(key));
        Template::of(&controller, &theirs, &[IP_ADDRS, IP_ADDRS_NO_IPAM].into_iter().filter(bears).collect())
    };
    controllers.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests;

//! Allocations of this network that nobody uses: those whose pod does not use them any more, by the rules of Calico's
//! own collector, and fixed ones whose claim is not their container's. All addresses of a handle, or none.

use std::collections::BTreeSet;
use std::net::IpAddr;

use calico::{Expect, handle_name};
use ipnetwork::IpNetwork;

use super::{Allocation, Finding, Needs, Scene, Task};
use crate::audit::read::machine_owner;
use crate::claim::NodeState;
use crate::collector::census::Used;
use crate::collector::{Kind, PodName, Repair};

/// What belongs together: the addresses of one container, or those made ahead for one pod (then with its UID).
type Group = (String, Option<String>);

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let census = scene.census;
    // Tunnel addresses and those of other networks bear other handles.
    let ours = |used: &Used<'_>| {
        let party = &used.party;
        (party.pod().is_some() || party.machine().is_some()) && party.is_of_network(&scene.rules.network)
    };
    let used = census.blocks.all(&census.pods).filter(ours);
    let group = |used: &Used<'_>| Some((used.party.handle?.to_owned(), used.party.uid.map(str::to_owned)));
    let stale = used.filter(|used| census.staleness(used).is_some() || disowned(scene, used).is_some());
    let groups: BTreeSet<Group> = stale.filter_map(|used| group(&used)).collect();
    let members = |group: Group| {
        let bearers = census.blocks.under(handle_name(&group.0), &census.pods).filter(ours);
        let same = |used: &Used<'_>| used.party.handle == Some(&group.0) && used.party.uid == group.1.as_deref();
        let members: Vec<Used<'_>> = bearers.filter(same).collect();
        (group, members)
    };
    let groups: Vec<_> = groups.into_iter().map(members).collect();
    let addresses = groups.iter().flat_map(|(_, uses)| uses).map(|used| used.address).collect();
    let live = census.pods.live_among(&addresses);
    groups.iter().filter_map(|(group, uses)| leak(scene, group, uses, &live)).collect()
}

fn leak(scene: &Scene<'_>, (handle, uid): &Group, uses: &[Used<'_>], live: &BTreeSet<IpAddr>) -> Option<Finding> {
    let uid = uid.as_deref();
    // A container that was refused one address has none.
    let disowned = uses.iter().find_map(|used| disowned(scene, used));
    let mut reason = None;
    for used in uses {
        // An address that a live pod has is never freed, whatever the block says of it.
        if live.contains(&used.address) || is_left_to_claim(scene, used) {
            return None;
        }
        reason = Some(scene.census.staleness(used).or_else(|| disowned.clone())?);
    }
    let (reason, first) = (reason?, uses.first()?);
    let pod = first.party.pod();
    let node = first.party.node;
    let options = &scene.rules.options;
    let patience = match node {
        Some(node) if scene.is_out(node) => options.settle,
        _ => options.allocation_grace.max(options.settle),
    };
    let kind = Kind::AllocationFreed;
    let addresses: Vec<String> = uses.iter().map(|used| used.address.to_string()).collect();
    let versions: Vec<String> =
        uses.iter().map(|used| format!("{}@{}", used.address, used.sequence.unwrap_or_default())).collect();
    let blocks: BTreeSet<IpNetwork> = uses.iter().map(|used| used.block.cidr).collect();
    let allocation = |used: &Used<'_>| Allocation {
        address: used.address,
        cidr: used.block.cidr,
        expect: Expect { handle: Some(handle.clone()), sequence: used.sequence },
    };
    Some(Finding {
        key: (kind, format!("{handle} {} {}", uid.unwrap_or_default(), versions.join(" "))),
        patience: Some(patience),
        not_before: None,
        needs: Needs {
            pods: pod.iter().map(|(namespace, name)| ((*namespace).to_owned(), (*name).to_owned())).collect(),
            owners: first.party.machine().and_then(machine_owner).into_iter().collect(),
            nodes: node.map(str::to_owned).into_iter().collect(),
            claims: uses.iter().map(|used| used.address).collect(),
            blocks: blocks.into_iter().collect(),
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: first.object(),
            detail: format!("recorded {} for {}, but {reason}", addresses.join(" and "), first.party),
            pod: pod.map(|(namespace, name)| PodName {
                namespace: namespace.into(),
                name: name.into(),
                uid: uid.map(str::to_owned),
            }),
            node: node.map(str::to_owned),
        },
        task: Task::Free(uses.iter().map(allocation).collect()),
    })
}

/// Whether its claim decides about an allocation: it names this very container as its holder, or it is not known.
fn is_left_to_claim(scene: &Scene<'_>, used: &Used<'_>) -> bool {
    if scene.census.claims.is_none() || scene.census.is_unread(used.address) {
        return used.party.fixed.is_some();
    }
    let holder = scene.census.claim(used.address).and_then(|claim| claim.holder.as_ref());
    holder.is_some_and(|holder| used.party.is_holders(&scene.rules.network, holder))
}

/// Why a fixed address is not its container's, though the container's pod is there: its claim is not. An ADD that
/// finds it so at its last look takes back what it wrote, unless it dies of that; and no DEL comes for a container
/// whose DEL was before it.
///
/// The claims may have been lost, so a pod that may run keeps what it has: on a node that is Ready, one without any
/// address has no sandbox. An ADD that is called again for the container writes the entry anew, see
/// [`Driver::add`](crate::driver::Driver::add), which makes it another allocation.
fn disowned(scene: &Scene<'_>, used: &Used<'_>) -> Option<String> {
    let party = &used.party;
    let (namespace, name) = party.pod()?;
    let starting = scene.census.pods.get(namespace, name).is_some_and(|pod| pod.addresses.is_empty());
    // What was made ahead of containers is the pod's, not a container's.
    if party.fixed.is_none() || party.uid.is_some() || !starting || scene.node(party.node?) != NodeState::Ready {
        return None;
    }
    scene.census.claims.as_ref().filter(|_| !scene.census.is_unread(used.address))?;
    let of = match scene.census.claim(used.address) {
        Some(claim) if claim.moved.is_some() || is_left_to_claim(scene, used) => return None,
        Some(claim) => claim.holder.as_ref().map_or_else(|| "nobody".to_owned(), |holder| holder.to_string()),
        None => "nobody".to_owned(),
    };
    Some(format!("its claim is held by {of}, and pod {namespace}/{name} has no address"))
}

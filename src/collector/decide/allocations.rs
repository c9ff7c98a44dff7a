//! Allocations of this network whose pod does not use them any more, by the rules of Calico's own collector:
//! all addresses of a handle, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::Expect;
use ipnetwork::IpNetwork;

use super::{Allocation, Finding, Needs, Scene, Task};
use crate::audit::view::Use;
use crate::collector::{Kind, PodName, Repair};
use crate::driver::{POD_UID_KEY, is_holders};

/// What belongs together: the addresses of one container, or those made ahead for one pod (then with its UID).
type Group<'a> = (&'a str, Option<&'a str>);

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let mut groups: BTreeMap<Group<'_>, Vec<&Use<'_>>> = BTreeMap::new();
    // Tunnel addresses and those of other networks bear other handles.
    let ours = scene.view.used.values().filter(|used| used.pod().is_some());
    for used in ours.filter(|used| used.is_of_network(&scene.rules.network)) {
        if let Some(handle) = used.attribute.handle() {
            groups.entry((handle, used.attribute.secondary(POD_UID_KEY))).or_default().push(used);
        }
    }
    let live: BTreeSet<&IpAddr> = scene.view.live().flat_map(|pod| &pod.addresses).collect();
    groups.into_iter().filter_map(|(group, uses)| leak(scene, group, &uses, &live)).collect()
}

fn leak(scene: &Scene<'_>, (handle, uid): Group<'_>, uses: &[&Use<'_>], live: &BTreeSet<&IpAddr>) -> Option<Finding> {
    let mut reason = None;
    for used in uses {
        // An address that a live pod has is never freed, whatever the block says of it.
        if live.contains(&used.address) || is_left_to_claim(scene, used) {
            return None;
        }
        reason = Some(scene.view.staleness(used)?);
    }
    let (reason, first) = (reason?, uses.first()?);
    let (namespace, name) = first.pod()?;
    let node = first.attribute.secondary("node");
    let options = &scene.rules.options;
    let patience = match node {
        Some(node) if scene.is_out(node) => options.settle,
        _ => options.allocation_grace.max(options.settle),
    };
    let kind = Kind::AllocationFreed;
    let addresses: Vec<String> = uses.iter().map(|used| used.address.to_string()).collect();
    let versions: Vec<String> =
        uses.iter().map(|used| format!("{}@{}", used.address, used.sequence.unwrap_or_default())).collect();
    let blocks: BTreeSet<IpNetwork> = uses.iter().map(|used| used.block.spec.cidr).collect();
    let allocation = |used: &&Use<'_>| Allocation {
        address: used.address,
        cidr: used.block.spec.cidr,
        expect: Expect { handle: Some(handle.to_owned()), sequence: used.sequence },
    };
    Some(Finding {
        key: (kind, format!("{handle} {} {}", uid.unwrap_or_default(), versions.join(" "))),
        patience: Some(patience),
        needs: Needs {
            pods: vec![(namespace.to_owned(), name.to_owned())],
            nodes: node.map(str::to_owned).into_iter().collect(),
            claims: uses.iter().map(|used| used.address).collect(),
            blocks: blocks.into_iter().collect(),
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: first.object(),
            detail: format!("recorded {} for {}, but {reason}", addresses.join(" and "), first.user()),
            pod: Some(PodName { namespace: namespace.into(), name: name.into(), uid: uid.map(str::to_owned) }),
            node: node.map(str::to_owned),
        },
        task: Task::Free(uses.iter().map(allocation).collect()),
    })
}

/// Whether its claim decides about an allocation: it names this very container as its holder, or it is not known.
fn is_left_to_claim(scene: &Scene<'_>, used: &Use<'_>) -> bool {
    let Some(claims) = &scene.snapshot.claims else { return used.is_fixed() };
    let claim = claims.iter().find(|claim| claim.value.address == used.address);
    let holder = claim.and_then(|claim| claim.value.holder.as_ref());
    holder.is_some_and(|holder| is_holders(used.attribute, &scene.rules.network, holder))
}

//! Addresses that running pods have and no block records: a block was deleted or restored from a backup, or
//! `calicoctl ipam release` named an address in use. Nobody would keep such an address from the next pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use calico::Family;

use super::{Finding, Needs, Scene, Task};
use crate::audit::party::Seen;
use crate::claim::{NodeState, PodState};
use crate::collector::{Kind, PodName, Repair};
use crate::driver::Lost;

/// A pod has no address between two sandboxes, and its status still names the earlier one's. A runtime whose ADD fails
/// tries again every quarter of a minute.
const BETWEEN_SANDBOXES: Duration = Duration::from_secs(120);

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let mut users: BTreeMap<IpAddr, usize> = BTreeMap::new();
    let pods = scene.census.pods.all().filter(|(_, _, pod)| pod.state == PodState::Alive);
    let lost: Vec<_> = pods
        .flat_map(|(namespace, name, pod)| pod.addresses.iter().map(move |address| (namespace, name, pod, *address)))
        .filter(|(.., address)| scene.census.used(*address).is_none())
        .collect();
    lost.iter().for_each(|(.., address)| *users.entry(*address).or_default() += 1);
    // Which of two pods would have the right to it cannot be told.
    let sole = lost.into_iter().filter(|(.., address)| users[address] == 1);
    let has_another = |pod: &Seen<'_>, address: IpAddr| {
        let alike = pod.addresses.iter().filter(|other| Family::of(**other) == Family::of(address));
        alike.into_iter().any(|other| scene.census.used(*other).is_some())
    };
    sole.filter(|(_, _, pod, address)| !pod.is_foreign && !has_another(pod, *address))
        .filter_map(|(namespace, name, pod, address)| {
            let (uid, node) = (pod.uid?, pod.node?);
            // A pod's status is of now only while its node works.
            (scene.node(node) == NodeState::Ready).then_some(())?;
            let cidr = scene.block_of(address).filter(|cidr| !scene.census.blocks.malformed.contains(cidr))?;
            let generation = generation(scene, address, uid)?;
            let (namespace, pod) = (namespace.to_owned(), name.to_owned());
            let node = node.to_owned();
            Some(finding(scene, Lost { address, cidr, namespace, pod, uid: uid.to_owned(), node, generation }))
        })
        .collect()
}

/// Of a fixed address its claim's generation, if the claim is this pod's. `None` where the address is or may be
/// somebody else's.
fn generation(scene: &Scene<'_>, address: IpAddr, uid: &str) -> Option<Option<u64>> {
    if scene.census.is_unread(address) || scene.claimed_elsewhere(address).is_some() {
        return None;
    }
    match (&scene.census.claims, scene.census.claim(address)) {
        (None, _) if scene.rules.ledger.is_some() => None,
        (_, None) => Some(None),
        (_, Some(claim)) => {
            let holder = claim.holder.as_ref().filter(|holder| holder.pod_uid == uid && claim.moved.is_none())?;
            Some(Some(claim.generation)).filter(|_| !holder.node.is_empty())
        }
    }
}

fn finding(scene: &Scene<'_>, lost: Lost) -> Finding {
    let kind = Kind::AllocationRestored;
    Finding {
        key: (kind, format!("{} {}", lost.address, lost.uid)),
        patience: Some(BETWEEN_SANDBOXES.max(scene.rules.options.settle)),
        not_before: None,
        needs: Needs {
            pods: vec![(lost.namespace.clone(), lost.pod.clone())],
            nodes: vec![lost.node.clone()],
            claims: vec![lost.address],
            blocks: vec![lost.cidr],
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: format!("Pod/{}/{}", lost.namespace, lost.pod),
            detail: format!("has {}, which no block recorded; it is recorded for the pod again", lost.address),
            pod: Some(PodName {
                namespace: lost.namespace.clone(),
                name: lost.pod.clone(),
                uid: Some(lost.uid.clone()),
            }),
            node: Some(lost.node.clone()),
        },
        task: Task::Record(lost),
    }
}

//! Claims whose holder has lost the address by the rules, claims whose owner is gone, and claims that say something else
//! than the entry of a living pod.

use std::collections::BTreeSet;

use calico::machine::is_machine_id;
use calico::{Expect, Family};
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};

use super::{Finding, Key, Needs, Scene, Task};
use crate::audit::read::machine_owner;
use crate::claim::{Claim, Evidence, Holder, NodeState, PodState, Standing, standing};
use crate::collector::census::Used;
use crate::collector::{Kind, PodName, Repair};
use crate::driver::{Shown, reservation_name};
use crate::pod::Owner;
use crate::store::Versioned;

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let claims: Vec<&Versioned<Claim>> = scene.census.claims.iter().flatten().collect();
    let mut found: Vec<Finding> = claims.iter().filter_map(|claim| lost(scene, claim)).collect();
    found.extend(claims.into_iter().filter_map(|claim| match is_orphan(scene, &claim.value) {
        true => Some(orphan(scene, claim)),
        false => found_again(scene, claim),
    }));
    if scene.census.claims.is_some() {
        found.extend(scene.census.blocks.all(&scene.census.pods).filter_map(|used| mend(scene, &used)));
    }
    found
}

/// A fixed address that a living pod has, by its block's entry and by its own status, while the claim is missing, is older
/// than the entry, does not name the pod as its holder, or belongs to a controller that the pod had before. A holder that
/// the claim names instead is judged first, as [`lost`] does.
fn mend(scene: &Scene<'_>, used: &Used<'_>) -> Option<Finding> {
    let (network, (namespace, name)) = (&scene.rules.network, used.party.pod()?);
    let generation = used.party.fixed.filter(|_| used.party.is_of_network(network))?;
    let pod = scene.census.pods.get(namespace, name)?;
    let alive = matches!(pod.state, PodState::Alive | PodState::Terminating) && pod.addresses.contains(&used.address);
    if !alive || scene.census.staleness(used).is_some() || scene.census.is_unread(used.address) {
        return None;
    }
    let claim = scene.census.claim(used.address);
    let says = match claim {
        None if scene.claimed_elsewhere(used.address).is_some() => return None,
        None => "its claim was lost".to_owned(),
        Some(claim) if claim.moved.is_some() => return None,
        Some(claim) => match &claim.holder {
            Some(holder) if used.party.is_holders(network, holder) => {
                let owner = scene.census.pods.owner(namespace, name).filter(|owner| **owner != claim.owner);
                match owner {
                    _ if claim.generation < generation => {
                        format!("its claim was of generation {}, and the entry is of {generation}", claim.generation)
                    }
                    Some(owner) => format!("its claim belonged to {}, and its pod belongs to {owner}", claim.owner),
                    None => return None,
                }
            }
            Some(holder) => format!("its claim said that {holder} held it"),
            None => "its claim said that nobody held it".to_owned(),
        },
    };
    let kind = Kind::ClaimMended;
    Some(Finding {
        key: (kind, format!("{} {}", used.address, used.party.handle.unwrap_or_default())),
        patience: Some(scene.rules.options.settle),
        not_before: None,
        needs: Needs {
            pods: vec![(namespace.to_owned(), name.to_owned())],
            claims: vec![used.address],
            blocks: vec![used.block.cidr],
            reservations: vec![reservation_name(&used.block.cidr)],
            nodes: used.party.node.map(str::to_owned).into_iter().collect(),
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: format!("Claim/{}", used.address),
            detail: format!("{says}, but {} has it on node {}", used.party, used.party.node.unwrap_or("?")),
            pod: Some(PodName { namespace: namespace.into(), name: name.into(), uid: pod.uid.map(str::to_owned) }),
            node: used.party.node.map(str::to_owned),
        },
        task: Task::Mend(used.address, used.block.cidr),
    })
}

/// A holder that loses the address, or whose node's grace is to begin.
fn lost(scene: &Scene<'_>, claim: &Versioned<Claim>) -> Option<Finding> {
    let value = &claim.value;
    let holder = value.holder.as_ref()?;
    let machine = machine_owner(&holder.container_id);
    if is_machine_id(&holder.container_id) && !is_left(scene, value, machine.as_ref()) {
        return None;
    }
    let network = &scene.rules.network;
    let entry = scene.census.used(value.address).filter(|used| used.party.is_holders(network, holder));
    let instead = has_instead(scene, value, holder);
    let evidence = Evidence {
        pod: scene.census.pods.state(&value.owner.namespace, &holder.pod, &holder.pod_uid),
        node: scene.census.nodes.state(&holder.node, holder.node_uid.as_deref()),
        in_block: entry.is_some(),
        elsewhere: instead.is_some(),
    };
    let cidr = entry.map(|used| used.block.cidr).or_else(|| scene.block_of(value.address));
    let (kind, patience, so, task) = match standing(value, &evidence, &scene.rules.policy, scene.now) {
        Standing::Keeps(_) => return None,
        Standing::Contest(contested) => {
            // What a pod has instead may be what it had until a moment ago.
            let patience = instead.map(|_| scene.rules.options.settle);
            let so = match instead {
                Some(_) => "no ADD answers for it any more",
                None => "that node's time to release it begins",
            };
            (Kind::HolderContested, patience, so, Task::Grace(claim.clone(), contested))
        }
        Standing::Lost => {
            let entry = entry.map(|used| {
                let handle = used.party.handle.map(str::to_owned);
                (used.block.cidr, Expect { handle, sequence: used.sequence })
            });
            let shown = Shown { address: value.address, entry, claim: Some(claim.clone()), cidr };
            let so = "the address is its owner's to use again";
            (Kind::HolderCleared, Some(scene.rules.options.settle), so, Task::ClearHolder(shown))
        }
    };
    let has = instead.map(|used| format!(" with {}", used.address)).unwrap_or_default();
    let detail = format!("was held by {holder}, which is {}{has}, its node {}; {so}", evidence.pod, evidence.node);
    let blocks: BTreeSet<IpNetwork> = cidr.into_iter().chain(instead.map(|used| used.block.cidr)).collect();
    Some(Finding {
        key: key(kind, value, &format!("{} {}", value.generation, holder.container_id)),
        patience,
        not_before: None,
        needs: Needs {
            pods: vec![(value.owner.namespace.clone(), holder.pod.clone())],
            nodes: vec![holder.node.clone()],
            owners: machine.into_iter().collect(),
            claims: vec![value.address],
            blocks: blocks.into_iter().collect(),
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: object(value),
            detail,
            pod: Some(pod_of(value, holder)),
            node: Some(holder.node.clone()),
        },
        task,
    })
}

/// Whether a machine that holds an address does not exist any more, nor a pod that has the address.
fn is_left(scene: &Scene<'_>, claim: &Claim, machine: Option<&Owner>) -> bool {
    let gone = machine.is_some_and(|machine| scene.census.owners.get(machine) == Some(&false));
    gone && scene.census.pods.live_among(&[claim.address].into()).is_empty()
}

/// The address that the holder's pod runs with instead of the claimed one: by its status, which is of now only while
/// its node is Ready, and by a block.
fn has_instead<'a>(scene: &Scene<'a>, claim: &Claim, holder: &Holder) -> Option<Used<'a>> {
    let namespace = claim.owner.namespace.as_str();
    let pod = scene.census.pods.get(namespace, &holder.pod).filter(|pod| pod.has_uid(&holder.pod_uid))?;
    let ready = scene.census.nodes.state(&holder.node, holder.node_uid.as_deref()) == NodeState::Ready;
    if !ready || pod.state != PodState::Alive || pod.addresses.contains(&claim.address) {
        return None;
    }
    let alike = pod.addresses.iter().filter(|address| Family::of(**address) == Family::of(claim.address));
    let mut recorded = alike.filter_map(|address| scene.census.used(*address));
    recorded.find(|used| used.party.pod() == Some((namespace, &holder.pod)) && used.party.node == pod.node)
}

/// Whether nobody has the address and nothing asks for it: its owner is gone, or its annotation names others now.
fn is_orphan(scene: &Scene<'_>, claim: &Claim) -> bool {
    // Pods outlive what made them: an owner that was deleted with `--cascade=orphan`, and a template that was changed.
    // They may be between two containers.
    let is_gone = scene.census.owners.get(&claim.owner) == Some(&false) && !scene.census.pods.outlive(&claim.owner);
    let has_others = is_given_up(scene, claim) && !scene.census.pods.ask_for(claim.address);
    claim.holder.is_none()
        && !claim.owner.is_named()
        && (is_gone || has_others)
        && scene.census.used(claim.address).is_none()
}

fn is_given_up(scene: &Scene<'_>, claim: &Claim) -> bool {
    scene.census.given_up.contains(&claim.address)
}

/// The claim of an owner that is gone, or gave the address up: dropped once its grace is over, which begins with a note in the claim. So it is
/// the same grace for every leader, and for every configuration.
fn orphan(scene: &Scene<'_>, claim: &Versioned<Claim>) -> Finding {
    let (value, options) = (&claim.value, &scene.rules.options);
    let grace = SignedDuration::try_from(options.owner_grace.max(options.settle)).unwrap_or(SignedDuration::MAX);
    let end = |since: Timestamp| since.saturating_add(grace).unwrap_or(Timestamp::MAX);
    let why = if is_given_up(scene, value) { "does not ask for it" } else { "does not exist" };
    // A clock that was set back since, or went ahead then, does not make the grace longer.
    match value.owner_gone.filter(|since| *since <= scene.now) {
        None if options.owner_grace > options.settle => {
            let noted = Claim { owner_gone: Some(scene.now), ..value.clone() };
            let detail = format!("belongs to {}, which {why} any more; its grace begins", value.owner);
            of_owner(scene, claim, Kind::OwnerMissed, detail, Task::Grace(claim.clone(), Box::new(noted)))
        }
        since => {
            let cidr = scene.block_of(value.address);
            let shown = Shown { address: value.address, entry: None, claim: Some(claim.clone()), cidr };
            let detail = format!("belonged to {}, which {why} any more; nobody held it", value.owner);
            let dropped = of_owner(scene, claim, Kind::ClaimDropped, detail, Task::DropClaim(shown));
            Finding { not_before: since.map(end), ..dropped }
        }
    }
}

/// A grace that is on record though the owner is there, or a pod holds the address: nodes of older releases keep the note.
fn found_again(scene: &Scene<'_>, claim: &Versioned<Claim>) -> Option<Finding> {
    let value = &claim.value;
    value.owner_gone?;
    let found = value.holder.is_some() || scene.census.owners.get(&value.owner) == Some(&true);
    found.then(|| {
        let noted = Claim { owner_gone: None, ..value.clone() };
        let detail = format!("was to be dropped, and {} is there, or asks for it, again", value.owner);
        of_owner(scene, claim, Kind::OwnerFound, detail, Task::Grace(claim.clone(), Box::new(noted)))
    })
}

fn of_owner(scene: &Scene<'_>, claim: &Versioned<Claim>, kind: Kind, detail: String, task: Task) -> Finding {
    let value = &claim.value;
    Finding {
        key: key(kind, value, &format!("{} {}", value.owner, value.created)),
        patience: Some(scene.rules.options.settle),
        not_before: None,
        needs: Needs {
            owners: vec![value.owner.clone()],
            claims: vec![value.address],
            blocks: scene.block_of(value.address).into_iter().collect(),
            ..Needs::default()
        },
        repair: Repair { kind, object: object(value), detail, pod: None, node: None },
        task,
    }
}

fn key(kind: Kind, claim: &Claim, version: &str) -> Key {
    (kind, format!("{} {version}", claim.address))
}

fn object(claim: &Claim) -> String {
    format!("Claim/{}", claim.address)
}

fn pod_of(claim: &Claim, holder: &Holder) -> PodName {
    PodName { namespace: claim.owner.namespace.clone(), name: holder.pod.clone(), uid: Some(holder.pod_uid.clone()) }
}

//! Claims whose holder has lost the address by the rules, and claims whose owner is gone.

use std::collections::BTreeSet;

use calico::Expect;

use super::{Finding, Key, Needs, Scene, Task};
use crate::claim::{Claim, Evidence, Holder, PodState, Standing, standing};
use crate::collector::{Kind, PodName, Repair};
use crate::driver::{Shown, is_holders, node_state};
use crate::pod::Owner;
use crate::store::Versioned;

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let claims: Vec<&Versioned<Claim>> = scene.snapshot.claims.iter().flatten().collect();
    let mut found: Vec<Finding> = claims.iter().filter_map(|claim| lost(scene, claim)).collect();
    let mut orphans = claims.into_iter().filter(|claim| is_orphan(scene, &claim.value)).peekable();
    if orphans.peek().is_some() {
        // A pod outlives its owner that was deleted with `--cascade=orphan`, and may be between two containers.
        let running: BTreeSet<Owner> = scene.snapshot.pods.iter().filter_map(|pod| Owner::of(pod).ok()).collect();
        found.extend(orphans.filter(|c| !running.contains(&c.value.owner)).map(|claim| orphan(scene, claim)));
    }
    found
}

/// A holder that loses the address, or whose node's grace is to begin.
fn lost(scene: &Scene<'_>, claim: &Versioned<Claim>) -> Option<Finding> {
    let value = &claim.value;
    let holder = value.holder.as_ref()?;
    let network = &scene.rules.network;
    let entry = scene.view.used.get(&value.address).filter(|used| is_holders(used.attribute, network, holder));
    let pod = scene.view.by_uid(&value.owner.namespace, &holder.pod, &holder.pod_uid);
    let evidence = Evidence {
        pod: pod.map_or(PodState::Gone, |pod| pod.state),
        node: node_state(scene.view.node(&holder.node), holder.node_uid.as_deref()),
        in_block: entry.is_some(),
    };
    let cidr = entry.map(|used| used.block.spec.cidr).or_else(|| scene.block_of(value.address));
    let (kind, patience, so, task) = match standing(value, &evidence, &scene.rules.policy, scene.now) {
        Standing::Keeps(_) => return None,
        Standing::Contest(contested) => {
            let so = "that node's time to release it begins";
            (Kind::HolderContested, None, so, Task::Contest(claim.clone(), contested))
        }
        Standing::Lost => {
            let entry = entry.map(|used| {
                let handle = used.attribute.handle().map(str::to_owned);
                (used.block.spec.cidr, Expect { handle, sequence: used.sequence })
            });
            let shown = Shown { address: value.address, entry, claim: Some(claim.clone()), cidr };
            let so = "the address is its owner's to use again";
            (Kind::HolderCleared, Some(scene.rules.options.settle), so, Task::ClearHolder(shown))
        }
    };
    let detail = format!("was held by {holder}, which is {}, its node {}; {so}", evidence.pod, evidence.node);
    Some(Finding {
        key: key(kind, value, &format!("{} {}", value.generation, holder.container_id)),
        patience,
        needs: Needs {
            pods: vec![(value.owner.namespace.clone(), holder.pod.clone())],
            nodes: vec![holder.node.clone()],
            claims: vec![value.address],
            blocks: cidr.into_iter().collect(),
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

/// Whether nothing but the claim itself is left of its owner.
fn is_orphan(scene: &Scene<'_>, claim: &Claim) -> bool {
    claim.holder.is_none()
        && !claim.owner.is_named()
        && scene.snapshot.owners.get(&claim.owner) == Some(&false)
        && !scene.view.used.contains_key(&claim.address)
}

fn orphan(scene: &Scene<'_>, claim: &Versioned<Claim>) -> Finding {
    let (value, options) = (&claim.value, &scene.rules.options);
    let cidr = scene.block_of(value.address);
    let kind = Kind::ClaimDropped;
    let detail = format!("belonged to {}, which does not exist any more; nobody held it", value.owner);
    Finding {
        key: key(kind, value, &format!("{} {}", value.owner, value.created)),
        patience: Some(options.owner_grace.max(options.settle)),
        needs: Needs {
            owners: vec![value.owner.clone()],
            claims: vec![value.address],
            blocks: cidr.into_iter().collect(),
            ..Needs::default()
        },
        repair: Repair { kind, object: object(value), detail, pod: None, node: None },
        task: Task::DropClaim(Shown { address: value.address, entry: None, claim: Some(claim.clone()), cidr }),
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

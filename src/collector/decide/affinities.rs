//! Affinities that stayed on their way in or out, and those of nodes that are gone. Only those of hosts: a
//! virtual owner's are its own affair.

use calico::{Affinity, AffinityState, BlockAffinity, affinity_name};
use kube::ResourceExt as _;

use super::{Finding, Needs, Scene, Task};
use crate::claim::NodeState;
use crate::collector::census::Block;
use crate::collector::{Kind, Repair};

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    let of_hosts = scene.census.affinities.kept.iter().filter(|affinity| is_of_host(affinity));
    of_hosts.filter_map(|affinity| judge(scene, affinity, scene.census.blocks.get(&affinity.spec.cidr))).collect()
}

/// Blocks of nodes that have no affinity for them: their nodes would not find them, nor anybody free them.
pub(super) fn missing(scene: &Scene<'_>) -> Vec<Finding> {
    scene.census.blocks.present().filter_map(|block| judge_block(scene, block)).collect()
}

fn judge_block(scene: &Scene<'_>, block: &Block) -> Option<Finding> {
    let node = block.host()?;
    let affinity = affinity_name(node, &block.cidr);
    // A node that is gone gets none: its block goes once it is empty.
    let is_gone = || scene.node(node) == NodeState::Deleted;
    if scene.census.affinities.has(&affinity) || scene.census.blocks.malformed.contains(&block.cidr) || is_gone() {
        return None;
    }
    let (kind, options) = (Kind::AffinityRestored, &scene.rules.options);
    Some(Finding {
        key: (kind, affinity.clone()),
        patience: Some(options.half_done_grace.max(options.settle)),
        not_before: None,
        needs: Needs {
            nodes: vec![node.to_owned()],
            affinities: vec![affinity.clone()],
            blocks: vec![block.cidr],
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: format!("BlockAffinity/{affinity}"),
            detail: format!("did not exist, though block {} belongs to {node}", block.cidr),
            pod: None,
            node: Some(node.to_owned()),
        },
        task: Task::RestoreAffinity(block.cidr, node.to_owned()),
    })
}

/// A host's, under the name that every writer looks for.
fn is_of_host(affinity: &BlockAffinity) -> bool {
    let spec = &affinity.spec;
    matches!(spec.owner(), Ok(Affinity::Host(_))) && affinity.name_any() == affinity_name(&spec.node, &spec.cidr)
}

fn judge(scene: &Scene<'_>, affinity: &BlockAffinity, block: Option<&Block>) -> Option<Finding> {
    let (spec, options) = (&affinity.spec, &scene.rules.options);
    let node_is_gone = scene.node(&spec.node) == NodeState::Deleted;
    let leads_to_block = block.is_some_and(|block| block.host() == Some(spec.node.as_str()));
    let half_done = [AffinityState::Pending, AffinityState::PendingDeletion].iter().any(|s| spec.state == s.as_str());
    let (kind, patience, why) = if affinity.is_deleted() {
        let why = "was marked deleted and had not been deleted".to_owned();
        (Kind::AffinityRemoved, options.settle, why)
    } else if !half_done && !affinity.is_confirmed() {
        // A state of a newer version.
        return None;
    } else {
        match (node_is_gone, leads_to_block) {
            (true, false) => {
                (Kind::AffinityRemoved, options.settle, without_block("was of a node that does not exist", block))
            }
            (false, false) if half_done => {
                let why = without_block(&format!("stayed {}", spec.state), block);
                // On its way in, its block may still come. On its way out, and its block is gone: whoever took the block
                // over has nothing left to do but this, and died before it.
                let on_its_way_out = spec.state == AffinityState::PendingDeletion.as_str();
                let patience = if on_its_way_out { options.longest_add() } else { options.half_done_grace };
                (Kind::AffinityRemoved, patience, why)
            }
            // A block in use keeps its owner, even one that is gone, until it is empty.
            (_, true) if half_done && (!node_is_gone || block.is_some_and(|block| !block.empty)) => {
                let why = format!("stayed {}, and its block says the same host", spec.state);
                (Kind::AffinityConfirmed, options.half_done_grace, why)
            }
            // Its node makes no block while another has it.
            (false, false) if block.is_some_and(|block| block.host().is_some()) => {
                (Kind::AffinityRemoved, options.half_done_grace, without_block("was confirmed", block))
            }
            // It goes with its block, once that is empty.
            (true, true) => return None,
            (false, true) if !affinity.is_labelled() => {
                let why = "had no labels, by which its node looks for it".to_owned();
                (Kind::AffinityLabelled, options.settle, why)
            }
            // The node's own to complete.
            (false, _) => return None,
        }
    };
    let object = Box::new(affinity.clone());
    let (uid, version) = (affinity.uid().unwrap_or_default(), affinity.resource_version().unwrap_or_default());
    Some(Finding {
        key: (kind, format!("{} {uid} {version}", affinity.name_any())),
        patience: Some(patience.max(options.settle)),
        not_before: None,
        needs: Needs {
            nodes: vec![spec.node.clone()],
            affinities: vec![affinity.name_any()],
            blocks: vec![spec.cidr],
            ..Needs::default()
        },
        repair: Repair {
            kind,
            object: format!("BlockAffinity/{}", affinity.name_any()),
            detail: why,
            pod: None,
            node: Some(spec.node.clone()),
        },
        task: match kind {
            Kind::AffinityConfirmed => Task::ConfirmAffinity(object),
            Kind::AffinityLabelled => Task::LabelAffinity(object),
            _ => Task::RemoveAffinity(object),
        },
    })
}

/// "stayed pending, and its block belongs to host:n2"
fn without_block(what: &str, block: Option<&Block>) -> String {
    match block.map(|block| block.affinity.as_deref()) {
        None => format!("{what}, and its block does not exist"),
        Some(None) => format!("{what}, and its block belongs to nobody"),
        Some(Some(other)) => format!("{what}, and its block belongs to {other}"),
    }
}

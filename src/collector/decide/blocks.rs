//! Blocks whose deletion stopped half way, and empty ones of nodes that are gone.

use calico::IPAMBlock;
use kube::ResourceExt as _;

use super::{Finding, Needs, Scene, Task};
use crate::claim::NodeState;
use crate::collector::{Kind, Repair};

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    scene.census.blocks.kept.iter().filter_map(|block| judge(scene, block)).collect()
}

fn judge(scene: &Scene<'_>, block: &IPAMBlock) -> Option<Finding> {
    let spec = &block.spec;
    let node = spec.host().map(str::to_owned);
    let (kind, version, why, task) = if spec.is_deleted() {
        let version = format!("{} {}", block.uid().unwrap_or_default(), block.resource_version().unwrap_or_default());
        let why = "was marked deleted and had not been deleted".to_owned();
        (Kind::BlockRemoved, version, why, Task::RemoveBlock(Box::new(block.clone())))
    } else {
        let gone = node.as_ref().filter(|node| scene.node(node) == NodeState::Deleted)?;
        let cooldown = scene.census.config.as_ref().map_or(0, |config| config.spec.cooldown_seconds());
        let mut collected = block.clone();
        collected.spec.collect(cooldown, scene.now);
        if !collected.spec.is_empty() || collected.spec.validate().is_err() {
            return None;
        }
        let why = format!("was empty, and its node {gone} does not exist");
        (Kind::BlockReleased, spec.sequence_number.to_string(), why, Task::ReleaseBlock(Box::new(collected)))
    };
    Some(Finding {
        key: (kind, format!("{} {version}", block.name_any())),
        patience: Some(scene.rules.options.settle),
        not_before: None,
        needs: Needs { nodes: node.clone().into_iter().collect(), blocks: vec![spec.cidr], ..Needs::default() },
        repair: Repair { kind, object: format!("IPAMBlock/{}", block.name_any()), detail: why, pod: None, node },
        task,
    })
}

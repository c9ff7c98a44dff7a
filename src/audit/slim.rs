//! What is not kept of objects that are only judged. A snapshot holds all pods and all blocks of a cluster.

use std::collections::BTreeMap;

use calico::{BlockAffinity, IPAMBlock, IPAMHandle};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The part of an object's metadata that judges look at: which object it is, in which version, and whose.
fn metadata(meta: &mut ObjectMeta) {
    let all = std::mem::take(meta);
    *meta = ObjectMeta {
        name: all.name,
        namespace: all.namespace,
        uid: all.uid,
        resource_version: all.resource_version,
        creation_timestamp: all.creation_timestamp,
        deletion_timestamp: all.deletion_timestamp,
        ..ObjectMeta::default()
    };
}

/// Where it runs, whose it is, what it asks for, and how it is.
pub(super) fn pod(pod: &mut Pod) {
    let (annotations, labels) = (pod.metadata.annotations.take(), pod.metadata.labels.take());
    let (owners, base_name) = (pod.metadata.owner_references.take(), pod.metadata.generate_name.take());
    metadata(&mut pod.metadata);
    pod.metadata.annotations = kept(annotations, |key| key.starts_with("kube-ipam."));
    pod.metadata.labels = labels;
    pod.metadata.owner_references = owners;
    pod.metadata.generate_name = base_name;
    pod.spec = pod.spec.take().map(|all| PodSpec {
        node_name: all.node_name,
        host_network: all.host_network,
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|all| PodStatus {
        phase: all.phase,
        pod_ip: all.pod_ip,
        pod_ips: all.pod_ips,
        ..PodStatus::default()
    });
}

/// Whether it works.
pub(super) fn node(node: &mut Node) {
    metadata(&mut node.metadata);
    node.spec = node.spec.take().map(|all| NodeSpec { taints: all.taints, ..NodeSpec::default() });
    node.status = node.status.take().map(|all| {
        let ready = all.conditions.map(|conditions| conditions.into_iter().filter(|c| c.type_ == "Ready").collect());
        NodeStatus { conditions: ready, ..NodeStatus::default() }
    });
}

pub(super) fn block(block: &mut IPAMBlock) {
    metadata(&mut block.metadata);
    block.spec.allocations.shrink_to_fit();
    block.spec.unallocated.shrink_to_fit();
}

pub(super) fn affinity(affinity: &mut BlockAffinity) {
    metadata(&mut affinity.metadata);
}

/// Its annotations say for which pod it was made ahead.
pub(super) fn handle(handle: &mut IPAMHandle) {
    let annotations = handle.metadata.annotations.take();
    metadata(&mut handle.metadata);
    handle.metadata.annotations = annotations;
}

fn kept(all: Option<BTreeMap<String, String>>, keep: impl Fn(&str) -> bool) -> Option<BTreeMap<String, String>> {
    let kept: BTreeMap<_, _> = all?.into_iter().filter(|(key, _)| keep(key)).collect();
    (!kept.is_empty()).then_some(kept)
}

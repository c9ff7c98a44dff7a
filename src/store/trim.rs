//! What is not kept of objects that are only read. An agent remembers all pods of its node, and a snapshot of the
//! cluster holds all pods and nodes.

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus};

/// Of a pod: who it is, whose, where, and whether it lives.
pub(crate) fn pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        host_network: spec.host_network,
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        ..PodStatus::default()
    });
}

/// Of a node: who it is, and whether it works.
pub(crate) fn node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.spec = node.spec.take().map(|spec| NodeSpec { taints: spec.taints, ..NodeSpec::default() });
    node.status =
        node.status.take().map(|status| NodeStatus { conditions: status.conditions, ..NodeStatus::default() });
}

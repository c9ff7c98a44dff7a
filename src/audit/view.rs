//! A snapshot made ready for questions: who has this address, which pod is this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::{AllocationAttribute, Entry, IPAMBlock};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::Snapshot;
use crate::claim::PodState;
use crate::driver::{CLAIM_KEY, POD_UID_KEY, pod_state};

/// The snapshot, indexed.
pub(crate) struct View<'a> {
    pub snapshot: &'a Snapshot,
    /// Every address in use, with its block and who has it.
    pub used: BTreeMap<IpAddr, Use<'a>>,
    /// Pods with addresses of their own, by (namespace, name).
    pub pods: BTreeMap<(&'a str, &'a str), PodView<'a>>,
    nodes: BTreeMap<&'a str, &'a Node>,
    claimed: BTreeSet<IpAddr>,
}

/// An allocation.
#[derive(Clone, Copy)]
pub(crate) struct Use<'a> {
    pub address: IpAddr,
    pub block: &'a IPAMBlock,
    pub attribute: &'a AllocationAttribute,
    /// Sequence number of the block at the assignment.
    pub sequence: Option<i64>,
}

/// A pod that does not share its node's network.
pub(crate) struct PodView<'a> {
    pub pod: &'a Pod,
    pub namespace: &'a str,
    pub name: &'a str,
    pub state: PodState,
    /// What its status says; empty while it has none.
    pub addresses: Vec<IpAddr>,
}

impl<'a> View<'a> {
    pub(crate) fn of(snapshot: &'a Snapshot) -> Self {
        let present = snapshot.blocks.iter().filter(|block| !block.spec.is_deleted());
        let used = present.flat_map(|block| {
            block.spec.entries().filter_map(move |(address, entry)| match entry {
                Entry::Used { attribute, sequence } => Some((address, Use { address, block, attribute, sequence })),
                _ => None,
            })
        });
        let pods = snapshot.pods.iter().filter_map(PodView::of).map(|pod| ((pod.namespace, pod.name), pod));
        Self {
            snapshot,
            used: used.collect(),
            pods: pods.collect(),
            nodes: snapshot.nodes.iter().filter_map(|node| Some((node.metadata.name.as_deref()?, node))).collect(),
            claimed: snapshot.claims.iter().flatten().map(|claim| claim.value.address).collect(),
        }
    }

    /// Live pods only: neither finished nor on their way out.
    pub(crate) fn live(&self) -> impl Iterator<Item = &PodView<'a>> {
        self.pods.values().filter(|pod| pod.state == PodState::Alive)
    }

    /// The pod of that UID in a namespace.
    pub(crate) fn by_uid<'v>(&'v self, namespace: &'v str, name: &'v str, uid: &str) -> Option<&'v PodView<'a>> {
        self.pods.get(&(namespace, name)).filter(|pod| pod.pod.metadata.uid.as_deref() == Some(uid))
    }

    /// Whether an allocation is on a fixed address, by its own word or by a claim's.
    pub(crate) fn is_fixed(&self, used: &Use<'_>) -> bool {
        used.is_fixed() || self.claimed.contains(&used.address)
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> Option<&'a Node> {
        self.nodes.get(name).copied()
    }

    pub(crate) fn in_a_pool(&self, address: IpAddr) -> bool {
        calico::covering(&self.snapshot.pools, address).is_some()
    }

    /// Whether an allocation is of the network that is judged; any pod's, while the network is not known.
    pub(crate) fn is_ours(&self, used: &Use<'_>) -> bool {
        match &self.snapshot.net {
            Some(net) => used.is_of_network(&net.network),
            None => used.is_fixed() || used.pod().is_some(),
        }
    }

    /// Why nobody uses an allocation any more; `None` while somebody does or may. The rules by which Calico's
    /// own collector believes in one: its pod exists on that node and has the address, or has none yet.
    pub(crate) fn staleness(&self, used: &Use<'_>) -> Option<String> {
        let node = used.attribute.secondary("node");
        let Some((namespace, name)) = used.pod() else {
            let gone = node.filter(|node| !self.nodes.contains_key(*node))?;
            return Some(format!("node {gone} does not exist"));
        };
        let Some(pod) = self.pods.get(&(namespace, name)) else {
            return Some(format!("pod {namespace}/{name} does not exist"));
        };
        if let (Some(recorded), Some(uid)) = (used.attribute.secondary(POD_UID_KEY), pod.pod.metadata.uid.as_deref())
            && recorded != uid
        {
            return Some(format!("pod {namespace}/{name} is another by now: its UID is {uid}, not {recorded}"));
        }
        if pod.state == PodState::Finished {
            return Some(format!("pod {namespace}/{name} has finished"));
        }
        match (pod.node(), node) {
            (Some(runs), Some(recorded)) if runs != recorded => {
                return Some(format!("pod {namespace}/{name} is on node {runs}, the allocation is of node {recorded}"));
            }
            _ => {}
        }
        if pod.addresses.is_empty() || pod.addresses.contains(&used.address) {
            return None;
        }
        let has: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
        Some(format!("pod {namespace}/{name} has {}", has.join(", ")))
    }
}

/// Whether a handle id has the form `<network>.<containerID>`.
pub(crate) fn is_handle_of(network: &str, handle: &str) -> bool {
    handle.strip_prefix(network).and_then(|rest| rest.strip_prefix('.')).is_some_and(|container| !container.is_empty())
}

impl<'a> Use<'a> {
    /// Namespace and name of the pod, if it is a pod's.
    pub(crate) fn pod(&self) -> Option<(&'a str, &'a str)> {
        Some((self.attribute.secondary("namespace")?, self.attribute.secondary("pod")?))
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.attribute.secondary(CLAIM_KEY).is_some()
    }

    /// Whether the allocation is of `network`: by its handle, or because it was made ahead for a pod.
    pub(crate) fn is_of_network(&self, network: &str) -> bool {
        self.attribute.secondary(POD_UID_KEY).is_some()
            || self.attribute.handle().is_some_and(|handle| is_handle_of(network, handle))
    }

    pub(crate) fn object(&self) -> String {
        format!("IPAMBlock/{}", self.block.name_any())
    }

    /// "pod default/web (handle net.c1)"
    pub(crate) fn user(&self) -> String {
        let handle = self.attribute.handle().unwrap_or("none");
        match (self.pod(), self.attribute.secondary("node")) {
            (Some((namespace, name)), _) => format!("pod {namespace}/{name} (handle {handle})"),
            (None, Some(node)) => format!("node {node} (handle {handle})"),
            (None, None) => format!("handle {handle}"),
        }
    }

    /// Whether the handle is that of `container`, in any network.
    pub(crate) fn is_of(&self, container: &str) -> bool {
        let prefix = self.attribute.handle().and_then(|handle| handle.strip_suffix(container));
        prefix.is_some_and(|network| network.ends_with('.'))
    }
}

impl<'a> PodView<'a> {
    fn of(pod: &'a Pod) -> Option<Self> {
        if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            return None;
        }
        let status = pod.status.as_ref();
        let one = status.and_then(|s| s.pod_ip.as_deref()).into_iter();
        let several = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
        let addresses: BTreeSet<IpAddr> = one.chain(several).filter_map(|text| text.parse().ok()).collect();
        Some(Self {
            pod,
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            name: pod.metadata.name.as_deref().unwrap_or_default(),
            state: pod_state(Some(pod), pod.metadata.uid.as_deref().unwrap_or_default()),
            addresses: addresses.into_iter().collect(),
        })
    }

    pub(crate) fn node(&self) -> Option<&'a str> {
        self.pod.spec.as_ref()?.node_name.as_deref()
    }

    pub(crate) fn object(&self) -> String {
        format!("Pod/{}/{}", self.namespace, self.name)
    }
}

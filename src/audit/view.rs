//! A snapshot made ready for questions: who has this address, which pod is this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::machine::machine_of_id;
use calico::{AllocationAttribute, Entry, Expect, IPAMBlock};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::Snapshot;
use super::party::{Party, Seen, staleness};
use super::read::is_machine_gone;
use crate::claim::PodState;
use crate::driver::{CLAIM_KEY, CONTAINERS_POD_KEY, INTERFACE_KEY, POD_UID_KEY, state_of};
use crate::pod::{self, Launcher};

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
        self.pods.get(&(namespace, name)).filter(|pod| pod::has_uid(pod.pod, uid))
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

    /// A remedy that ends a pod or gives an address away: only for whoever knows network and ledger.
    pub(crate) fn destroying(&self, remedy: impl Into<String>) -> String {
        if self.snapshot.claims.is_some() {
            return remedy.into();
        }
        "what to do is said once the claims are known: name network and ledger (--conflist, or --network and --ledger or \
         --etcd-url)"
            .to_owned()
    }

    /// Why nobody uses an allocation any more, see [`staleness`].
    pub(crate) fn staleness(&self, used: &Use<'_>) -> Option<String> {
        let party = used.party();
        let pod = party.pod().and_then(|key| self.pods.get(&key)).map(PodView::seen);
        let is_machine_gone = |namespace: &str, name: &str| is_machine_gone(&self.snapshot.owners, namespace, name);
        staleness(used.address, &party, pod.as_ref(), |node| self.nodes.contains_key(node), is_machine_gone)
    }
}

impl<'a> Use<'a> {
    pub(crate) fn party(&self) -> Party<'a> {
        Party::of(self.attribute)
    }

    /// Namespace and name of the pod, if it is a pod's.
    pub(crate) fn pod(&self) -> Option<(&'a str, &'a str)> {
        self.party().pod()
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.party().fixed.is_some()
    }

    /// Whether the allocation is of `network`: by its handle, or because it was made ahead for a pod.
    pub(crate) fn is_of_network(&self, network: &str) -> bool {
        self.party().is_of_network(network)
    }

    /// Whether kube-ipam made it, whose entries say more of a pod than calico-ipam's.
    pub(crate) fn is_kube_ipams(&self) -> bool {
        [INTERFACE_KEY, POD_UID_KEY, CONTAINERS_POD_KEY, CLAIM_KEY]
            .iter()
            .any(|key| self.attribute.secondary(key).is_some())
    }

    pub(crate) fn object(&self) -> String {
        format!("IPAMBlock/{}", self.block.name_any())
    }

    /// What must still be so for the allocation to be this one.
    pub(crate) fn expect(&self) -> Expect {
        Expect { handle: self.attribute.handle().map(str::to_owned), sequence: self.sequence }
    }

    /// "pod default/web (handle net.c1)"
    pub(crate) fn user(&self) -> String {
        self.party().to_string()
    }

    /// Whether the handle is that of `container`, in any network.
    pub(crate) fn is_of(&self, container: &str) -> bool {
        let prefix = self.attribute.handle().and_then(|handle| handle.strip_suffix(container));
        prefix.is_some_and(|network| network.ends_with('.'))
    }
}

impl<'a> PodView<'a> {
    fn of(pod: &'a Pod) -> Option<Self> {
        Some(Self {
            pod,
            namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
            name: pod.metadata.name.as_deref().unwrap_or_default(),
            state: state_of(pod),
            addresses: pod::own_addresses(pod)?,
        })
    }

    fn seen(&self) -> Seen<'_> {
        let mirror = self.pod.metadata.uid.as_deref().filter(|_| pod::is_static(self.pod));
        let is_foreign = pod::is_foreign(self.pod);
        Seen {
            uid: pod::uid(self.pod),
            mirror,
            node: self.node(),
            state: self.state,
            addresses: &self.addresses,
            is_foreign,
        }
    }

    pub(crate) fn node(&self) -> Option<&'a str> {
        self.pod.spec.as_ref()?.node_name.as_deref()
    }

    /// Whether it is a pod of the virtual machine that has the address.
    pub(crate) fn runs_machine_of(&self, used: &Use<'_>) -> bool {
        let named = used.party().machine().and_then(machine_of_id);
        Launcher::of(self.pod).is_some_and(|launcher| named == Some((self.namespace, launcher.machine)))
    }

    pub(crate) fn object(&self) -> String {
        format!("Pod/{}/{}", self.namespace, self.name)
    }
}

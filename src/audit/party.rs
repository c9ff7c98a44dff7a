//! Whose an allocation is, and whether anybody still uses it: the same answer for whoever holds whole objects and
//! for whoever kept only a few words of them.

use std::fmt;
use std::net::IpAddr;

use calico::AllocationAttribute;
use calico::machine::{machine_of_handle, machine_of_id};

use crate::claim::{Holder, PodState};
use crate::driver::{CLAIM_KEY, POD_UID_KEY, is_held_by};

/// Whose an allocation is, by what its block records.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Party<'a> {
    pub handle: Option<&'a str>,
    pub namespace: Option<&'a str>,
    pub pod: Option<&'a str>,
    pub node: Option<&'a str>,
    /// The pod's UID, where the allocation was made ahead of a container.
    pub uid: Option<&'a str>,
    /// The generation of the claim under which it was made, if the allocation says that its address is fixed.
    pub fixed: Option<u64>,
}

/// What was seen of a pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub uid: Option<&'a str>,
    /// The UID of a static pod's mirror, which records of earlier releases bear.
    pub mirror: Option<&'a str>,
    pub node: Option<&'a str>,
    pub state: PodState,
    /// What its status says; empty while it has none.
    pub addresses: &'a [IpAddr],
    /// Whether its addresses are none of any IPAM plugin's, or of another network.
    pub is_foreign: bool,
}

// === impl Seen ===

impl Seen<'_> {
    /// Whether `recorded` is the pod's UID.
    pub(crate) fn has_uid(&self, recorded: &str) -> bool {
        [self.uid, self.mirror].contains(&Some(recorded))
    }
}

/// Why nobody uses an allocation any more; `None` while somebody does or may. The rules by which Calico's own
/// collector believes in one: its pod exists on that node and has the address, or has none yet. A virtual machine's is judged
/// by the machine.
pub(crate) fn staleness(
    address: IpAddr,
    party: &Party<'_>,
    pod: Option<&Seen<'_>>,
    node_exists: impl Fn(&str) -> bool,
    is_machine_gone: impl Fn(&str, &str) -> bool,
) -> Option<String> {
    if let Some(id) = party.machine() {
        // A machine has its address whether it runs or not.
        let (namespace, name) = machine_of_id(id)?;
        let is_used = pod.is_some_and(|pod| pod.state != PodState::Finished);
        let gone = !is_used && is_machine_gone(namespace, name);
        return gone.then(|| format!("VirtualMachine {namespace}/{name} does not exist"));
    }
    let Some((namespace, name)) = party.pod() else {
        let gone = party.node.filter(|node| !node_exists(node))?;
        return Some(format!("node {gone} does not exist"));
    };
    let Some(pod) = pod else {
        return Some(format!("pod {namespace}/{name} does not exist"));
    };
    if let (Some(recorded), Some(uid)) = (party.uid, pod.uid)
        && !pod.has_uid(recorded)
    {
        return Some(format!("pod {namespace}/{name} is another by now: its UID is {uid}, not {recorded}"));
    }
    if pod.state == PodState::Finished {
        return Some(format!("pod {namespace}/{name} has finished"));
    }
    match (pod.node, party.node) {
        (Some(runs), Some(recorded)) if runs != recorded => {
            return Some(format!("pod {namespace}/{name} is on node {runs}, the allocation is of node {recorded}"));
        }
        _ => {}
    }
    if pod.addresses.is_empty() || pod.addresses.contains(&address) {
        return None;
    }
    let has: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
    Some(format!("pod {namespace}/{name} has {}", has.join(", ")))
}

/// Whether a handle id has the form `<network>.<containerID>`.
pub(crate) fn is_handle_of(network: &str, handle: &str) -> bool {
    handle.strip_prefix(network).and_then(|rest| rest.strip_prefix('.')).is_some_and(|container| !container.is_empty())
}

// === impl Party ===

impl<'a> Party<'a> {
    pub(crate) fn of(attribute: &'a AllocationAttribute) -> Self {
        Self {
            handle: attribute.handle(),
            namespace: attribute.secondary("namespace"),
            pod: attribute.secondary("pod"),
            node: attribute.secondary("node"),
            uid: attribute.secondary(POD_UID_KEY),
            fixed: attribute.secondary(CLAIM_KEY).map(|generation| generation.parse().unwrap_or_default()),
        }
    }

    /// Namespace and name of the pod, if it is a pod's.
    pub(crate) fn pod(&self) -> Option<(&'a str, &'a str)> {
        Some((self.namespace?, self.pod?))
    }

    /// The id of the virtual machine whose address it is.
    pub(crate) fn machine(&self) -> Option<&'a str> {
        machine_of_handle(self.handle?)
    }

    /// Whether the allocation is of `network`: by its handle, or because it was made ahead for a pod.
    pub(crate) fn is_of_network(&self, network: &str) -> bool {
        self.uid.is_some() || self.handle.is_some_and(|handle| is_handle_of(network, handle))
    }

    /// Whether the allocation is the holder's.
    pub(crate) fn is_holders(&self, network: &str, holder: &Holder) -> bool {
        is_held_by(self.handle, self.uid, network, holder)
    }
}

impl fmt::Display for Party<'_> {
    /// "pod default/web (handle net.c1)"
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handle = self.handle.unwrap_or("none");
        match (self.pod(), self.node) {
            (Some((namespace, name)), _) => write!(f, "pod {namespace}/{name} (handle {handle})"),
            (None, Some(node)) => write!(f, "node {node} (handle {handle})"),
            (None, None) => write!(f, "handle {handle}"),
        }
    }
}

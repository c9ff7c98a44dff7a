//! Everything that can keep the driver from doing what it was asked, with the facts that a person needs.

use std::net::IpAddr;

use calico::{AllocationAttribute, Corrupt, PoolError};
use ipnetwork::IpNetwork;

use super::claims::Impasse;
use super::place::{Apart, Exhaustion};
use super::snapshot::UnmetPool;
use crate::claim::ClaimedElsewhere;
use crate::cni::CniError;
use crate::store::StoreError;

/// Why an ADD, DEL, CHECK, GC or STATUS did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A store failed or refused.
    #[error(transparent)]
    Store(StoreError),
    /// The config or an annotation is wrong.
    #[error("{}", .0.msg)]
    Cni(#[from] CniError),
    /// The runtime names a pod that the API server does not have.
    #[error("pod {namespace}/{name} does not exist")]
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A pod of that name exists, but it is another one.
    #[error("pod {namespace}/{name} was replaced: the runtime asks for UID {asked}, the API server has {found}")]
    OtherPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// UID in CNI_ARGS.
        asked: String,
        /// UID of the pod of that name.
        found: String,
    },
    /// The container is attached to this network already, by another interface.
    #[error("container {container} is attached to this network already, by interface {interface}")]
    OtherInterface {
        /// The container.
        container: String,
        /// The interface that has its address.
        interface: String,
    },
    /// This node has no Node object.
    #[error("node {0} does not exist in the cluster")]
    NoNode(String),
    /// Calico's datastore is locked for a migration.
    #[error(
        "Calico's datastore is locked (ClusterInformation default has datastoreReady false), as it is during a migration \
         or an upgrade: nothing is written until it is unlocked"
    )]
    Locked,
    /// No pool covers a configured subnet or an address.
    #[error(transparent)]
    UnmetPool(#[from] UnmetPool),
    /// Calico's pools do not allow the assignment.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The pools and the range that are named exclude each other.
    #[error(transparent)]
    Apart(#[from] Apart),
    /// A fixed address is wanted, and this driver has no ledger.
    #[error("pod asks for the fixed address {0}, but no ledger of claims is configured")]
    NoLedger(String),
    /// The claim on the address lies in another ledger than the configuration names.
    #[error(transparent)]
    ClaimedElsewhere(#[from] ClaimedElsewhere),
    /// None of the wanted fixed addresses can be had.
    #[error(transparent)]
    Impasse(Box<Impasse>),
    /// The block says that somebody else uses the address.
    #[error("{address} is in use by {}", user(.by.as_deref()))]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it, as the block tells.
        by: Option<Box<AllocationAttribute>>,
    },
    /// The block's rules do not allow the assignment: it cools down, or strictAffinity keeps it to its node.
    #[error(transparent)]
    Assign(calico::AssignError),
    /// No address is left.
    #[error(transparent)]
    Exhausted(Box<Exhaustion>),
    /// Another writer left a block that contradicts itself.
    #[error("block {block} is damaged: {reason}")]
    Damaged {
        /// The block.
        block: IpNetwork,
        /// What is wrong with it.
        reason: Corrupt,
    },
    /// The claim is another pod's, gone, or contested since this ADD has taken it.
    #[error("the claim on {0} passed on, or came into doubt, while this address was being set up")]
    Superseded(IpAddr),
    /// DEL came for this container while ADD was under way.
    #[error("the runtime deleted this container while its address was being set up")]
    Cancelled,
    /// The pod's name is still on record for an earlier pod, so nothing can be taken ahead under it.
    #[error("handle {0} is of an earlier pod")]
    NotAhead(String),
    /// The agent has put the address on record for the pod itself, while this ADD was under way without the agent.
    #[error("{0} is on record for this pod itself, ahead of its containers")]
    Ahead(IpAddr),
    /// There was no time left.
    #[error("no time left: {0}")]
    Late(&'static str),
    /// Other writers were faster, again and again, or took away what this call had made.
    #[error("others changed the records meanwhile: {0}")]
    Overtaken(&'static str),
}

/// A lock is no failure of a store: whichever call meets it, it is told in the same words.
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        if error.is_locked() { Self::Locked } else { Self::Store(error) }
    }
}

/// "pod default/web on node n1 (handle k8s-pod-network.a1)", from a block's attribute.
fn user(attribute: Option<&AllocationAttribute>) -> String {
    let Some(attribute) = attribute else { return "an allocation without attributes".into() };
    let field = |key: &str| attribute.secondary.as_ref().and_then(|s| s.get(key)).map(String::as_str);
    let handle = attribute.handle_id.as_deref().unwrap_or("none");
    match (field("namespace"), field("pod"), field("node")) {
        (Some(namespace), Some(pod), Some(node)) => format!("pod {namespace}/{pod} on node {node} (handle {handle})"),
        (_, _, Some(node)) => format!("{} of node {node} (handle {handle})", field("type").unwrap_or("an allocation")),
        _ => format!("handle {handle}"),
    }
}

//! The first round of reads, side by side, and what can be told from it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use calico::block_affinity::{label_selector, unlabelled_selector};
use calico::{Affinity, BlockAffinity, IPAMConfig, IPAMConfigSpec, IPPool, IPReservation};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use tokio::time::Instant;

use super::machine::Machine;
use super::{Attachment, Driver, Error, PodRef};
use crate::claim::{NodeState, PodState};
use crate::cni::{CniError, code};
use crate::pod;
use crate::range::RangeSet;
use crate::store::{Failure, Ledger, Object, Objects, StoreError};

/// What one ADD knows about the cluster. Reads alone never authorise a write.
pub(super) struct Snapshot {
    pub pod: Option<Pod>,
    pub namespace: Option<Namespace>,
    pub pools: Vec<IPPool>,
    pub config: IPAMConfigSpec,
    pub reservations: Vec<IPReservation>,
    pub affinities: Vec<BlockAffinity>,
    /// The virtual machine that the pod runs, if its addresses outlive the pod.
    pub machine: Option<Machine>,
}

/// Something configured or asked for that Calico has no pool for.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not covered by any Calico IPPool (IPPools: {pools})")]
pub struct UnmetPool {
    /// "subnet 10.244.0.0/16 of the CNI config", or "address 10.244.0.216".
    pub what: String,
    /// Names and CIDRs of the pools that exist, or "none".
    pub pools: String,
}

impl UnmetPool {
    pub(super) fn of_address(address: IpAddr, pools: &[IPPool]) -> Self {
        Self { what: format!("address {address}"), pools: name_pools(pools) }
    }
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Reads everything that does not depend on an earlier answer. Lists may lag behind: a pool or reservation of
    /// this very moment could have come after a read as well, and a block that an affinity does not name yet is
    /// found when it is claimed. What decides, the block and the claim, is read for itself and written by compare-and-swap.
    pub(super) async fn snapshot(&self, attachment: &Attachment<'_>) -> Result<Snapshot, Error> {
        let mine = label_selector(&host(attachment.node));
        let pod = attachment.pod;
        let (pod, namespace, pools, config, reservations, affinities, ()) = tokio::try_join!(
            async {
                match pod {
                    Some(p) => self.pod(p).await,
                    None => Ok(None),
                }
            },
            async {
                match pod {
                    Some(p) => self.objects.get::<Namespace>(None, p.namespace).await,
                    None => Ok(None),
                }
            },
            self.objects.list_cached::<IPPool>(""),
            self.objects.get::<IPAMConfig>(None, "default"),
            async { if_served(self.objects.list_cached::<IPReservation>("").await) },
            self.objects.list_cached::<BlockAffinity>(&mine),
            // Whatever comes of the reads, nothing could be written: this is known in the same round.
            self.may_assign(),
        )?;
        check_pod(attachment, pod.as_ref())?;
        let config = config.map_or_else(IPAMConfigSpec::default, |c| c.spec);
        Ok(Snapshot { pod, namespace, pools, config, reservations, affinities, machine: None })
    }

    /// What is remembered of a pod will do, if it is the pod that is meant.
    async fn pod(&self, pod: PodRef<'_>) -> Result<Option<Pod>, StoreError> {
        let found = self.objects.get::<Pod>(Some(pod.namespace), pod.name).await?;
        let right = found.as_ref().is_some_and(|f| pod.uid.is_some_and(|uid| pod::has_uid(f, uid)));
        if right || !self.objects.is_cache() {
            return Ok(found);
        }
        self.objects.fresh::<Pod>(Some(pod.namespace), pod.name).await
    }

    /// This node's affinities, as they are now.
    pub(super) async fn affinities(&self, node: &str) -> Result<Vec<BlockAffinity>, StoreError> {
        self.objects.list::<BlockAffinity>(&label_selector(&host(node))).await
    }

    /// This node's affinities that have no labels, as Calico before v3.31 left them. They get theirs, so that every later call
    /// finds them among [`Driver::affinities`].
    pub(super) async fn unlabelled_affinities(
        &self,
        node: &str,
        deadline: Instant,
    ) -> Result<Vec<BlockAffinity>, Error> {
        let mut found: Vec<BlockAffinity> = self.objects.list(&unlabelled_selector()).await?;
        found.retain(|a| a.spec.owner().is_ok_and(|owner| owner == host(node)) && !a.is_labelled() && !a.is_deleted());
        for affinity in &found {
            self.label_as_seen(affinity, deadline).await?;
        }
        Ok(found)
    }

    /// A list of a kind that old versions of Calico do not have.
    pub(super) async fn optional<K: Object>(&self) -> Result<Vec<K>, StoreError> {
        if_served(self.objects.list::<K>("").await)
    }
}

/// What a list gave; nothing if the cluster does not serve the kind.
fn if_served<K>(listed: Result<Vec<K>, StoreError>) -> Result<Vec<K>, StoreError> {
    match listed {
        Err(StoreError { failure: Failure::NoKind, .. }) => Ok(Vec::new()),
        other => other,
    }
}

/// The pod must exist and be the one that the runtime means.
fn check_pod(attachment: &Attachment<'_>, found: Option<&Pod>) -> Result<(), Error> {
    let Some(asked) = attachment.pod else { return Ok(()) };
    let (namespace, name) = (asked.namespace.to_owned(), asked.name.to_owned());
    let Some(found) = found else { return Err(Error::NoPod { namespace, name }) };
    match (asked.uid, found.uid()) {
        (Some(uid), Some(has)) if !pod::has_uid(found, uid) => {
            Err(Error::OtherPod { namespace, name, asked: uid.to_owned(), found: has })
        }
        _ => check_node(attachment, found),
    }
}

/// A pod's addresses are routed to the node that they are recorded for: it must be the one that the pod is bound to.
fn check_node(attachment: &Attachment<'_>, pod: &Pod) -> Result<(), Error> {
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    match bound.filter(|bound| *bound != attachment.node) {
        None => Ok(()),
        Some(bound) => {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let (node, source) = (attachment.node, attachment.net.nodename.source());
            Err(Error::Cni(CniError::new(
                code::INVALID_CONFIG,
                format!(
                    "pod {namespace}/{name} is bound to node {bound}, and the configuration says {node} ({source})"
                ),
                format!("write \"nodename\": {bound:?} on that node: its pods' addresses would be routed to {node}"),
            )))
        }
    }
}

/// Every subnet must lie in one pool, or be made up of pools: without that no ADD gives an address of the family.
pub(crate) fn check_coverage(ranges: &RangeSet, pools: &[IPPool]) -> Result<(), UnmetPool> {
    let cidrs: Vec<IpNetwork> = pools.iter().map(|p| p.spec.cidr).collect();
    for subnet in ranges.subnets() {
        let network = subnet.network;
        let inside_one = cidrs.iter().any(|c| contains(c, &network));
        // Calico's pools do not overlap, so their sizes add up.
        let of_pools: f64 =
            cidrs.iter().filter(|c| contains(&network, c)).map(|c| 2f64.powi(-i32::from(c.prefix()))).sum();
        if !inside_one && of_pools < 2f64.powi(-i32::from(network.prefix())) {
            return Err(UnmetPool { what: format!("subnet {network} of the CNI config"), pools: name_pools(pools) });
        }
    }
    Ok(())
}

fn name_pools(pools: &[IPPool]) -> String {
    let names: Vec<String> = pools.iter().map(|p| format!("{} {}", p.name_any(), p.spec.cidr)).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// Whether `outer` contains all of `inner`.
pub(super) fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// An object's labels; empty if there is no object.
pub(super) fn labels<K: ResourceExt>(object: Option<&K>) -> BTreeMap<String, String> {
    object.map(|o| o.labels().clone()).unwrap_or_default()
}

/// The affinity under which this node claims blocks.
pub(super) fn host(node: &str) -> Affinity {
    Affinity::Host(node.to_owned())
}

// === evidence ===

/// A holder's pod, compared by UID.
pub(crate) fn pod_state(pod: Option<&Pod>, uid: &str) -> PodState {
    pod.filter(|pod| pod::has_uid(pod, uid)).map_or(PodState::Gone, state_of)
}

/// How far a pod is in its life.
pub(crate) fn state_of(pod: &Pod) -> PodState {
    if pod::has_finished(pod) {
        PodState::Finished
    } else if pod.metadata.deletion_timestamp.is_some() {
        PodState::Terminating
    } else {
        PodState::Alive
    }
}

/// Since when a node has not been Ready, if it is not and says so.
pub(crate) fn not_ready_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready").filter(|ready| ready.status != "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// A holder's node, compared by UID where one was recorded.
pub(crate) fn node_state(node: Option<&Node>, uid: Option<&str>) -> NodeState {
    let same = |n: &&Node| uid.is_none_or(|uid| n.metadata.uid.as_deref() == Some(uid));
    let Some(node) = node.filter(same) else { return NodeState::Deleted };
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    if taints.iter().any(|t| t.key == "node.kubernetes.io/out-of-service") {
        return NodeState::OutOfService;
    }
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|c| c.type_ == "Ready") {
        Some(ready) if ready.status == "True" => NodeState::Ready,
        _ => NodeState::NotReady,
    }
}

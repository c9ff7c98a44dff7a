//! What a release would do, or why it must not. Pure.

use std::net::IpAddr;

use calico::Entry;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::audit::Snapshot;
use crate::audit::view::{PodView, Use, View};
use crate::claim::{Claim, NodeState, PodState};
use crate::cli::output;
use crate::driver::{ClaimFate, Shown, host_cidr, is_own_reservation, node_state};
use crate::pod;

/// What would be written, in the order in which it would be.
#[derive(Debug)]
pub(super) struct Plan {
    /// What the writes take for granted.
    pub shown: Shown,
    /// One for each record; none if there is nothing to do.
    pub steps: Vec<Step>,
    fate: ClaimFate,
}

/// One record that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    /// The record, as `<kind>/<name>`.
    pub record: String,
    /// What it says.
    pub now: String,
    /// What it will say.
    pub after: String,
}

/// Why an address is not to be released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// A pod that runs or will run.
    #[error(
        "{address} is used by pod {namespace}/{name}{}, which is alive; to release it: kubectl delete pod -n {namespace} {name}",
        on(.node)
    )]
    Live { address: IpAddr, namespace: String, name: String, node: Option<String> },
    /// A pod on its way out, on a node that may still run it.
    #[error(
        "{address} is used by pod {namespace}/{name}{}, which is terminating; it is released when the node has stopped \
         it; if the node is down for good, delete it or taint it node.kubernetes.io/out-of-service, and ask again",
        on(.node)
    )]
    Terminating { address: IpAddr, namespace: String, name: String, node: Option<String> },
    /// A node's own address.
    #[error("{address} is the {kind} of node {node}, which exists; only calico-node changes it")]
    Nodes { address: IpAddr, kind: String, node: String },
    /// An allocation that says neither pod nor node.
    #[error("{address} is allocated under handle {handle}, for no pod and no node; whoever made it must release it")]
    Strange { address: IpAddr, handle: String },
    /// A fixed address, and no ledger.
    #[error("{address} is a fixed address, whose claim must be cleared with it; {}", crate::cli::ledger::LEDGER)]
    NoLedger { address: IpAddr },
    /// The block does not say who has it.
    #[error("{address} lies in block {block}, which is malformed; see kube-ipam check")]
    Malformed { address: IpAddr, block: String },
}

fn on(node: &Option<String>) -> String {
    node.as_ref().map_or_else(String::new, |node| format!(" on node {node}"))
}

// === impl Plan ===

impl Plan {
    /// What releasing `address` would do; the snapshot holds what bears on it.
    pub(super) fn of(snapshot: &Snapshot, address: IpAddr, fate: ClaimFate) -> Result<Self, Refusal> {
        let view = View::of(snapshot);
        let malformed = |block: &&calico::IPAMBlock| block.spec.entry(address) == Entry::Unreadable;
        if let Some(block) = snapshot.blocks.iter().find(malformed) {
            return Err(Refusal::Malformed { address, block: block.name_any() });
        }
        let claim = snapshot.claims.iter().flatten().find(|claim| claim.value.address == address);
        let used = view.used.get(&address);
        no_pod_uses(&view, address, used, claim.map(|claim| &claim.value))?;
        if let Some(used) = used {
            may_be_released(&view, used)?;
        }
        let reserved = reserved_by_us(snapshot, address);
        if snapshot.claims.is_none() && (!reserved.is_empty() || used.is_some_and(Use::is_fixed)) {
            return Err(Refusal::NoLedger { address });
        }
        let shown = Shown {
            address,
            entry: used.map(|used| (used.block.spec.cidr, used.expect())),
            claim: claim.cloned(),
            cidr: calico::covering(&snapshot.pools, address).map(|pool| pool.spec.block_of(address)),
        };
        let mut steps: Vec<Step> = used.map(of_entry).into_iter().collect();
        steps.extend(claim.and_then(|claim| of_claim(&claim.value, fate)));
        steps.extend(used.and_then(of_handle));
        if fate == ClaimFate::Drop {
            steps.extend(reserved.into_iter().map(|name| of_reservation(&name, address)));
        }
        Ok(Self { shown, steps, fate })
    }

    pub(super) fn table(&self) -> String {
        let cells = |step: &Step| [step.record.clone(), step.now.clone(), step.after.clone()];
        output::table(["RECORD", "NOW", "AFTER"], self.steps.iter().map(cells))
    }

    /// Why there is nothing to do.
    pub(super) fn nothing(&self) -> String {
        let address = self.shown.address;
        match &self.shown.claim {
            None => format!("{address} is not in use and not claimed: nothing to release"),
            Some(claim) => format!(
                "{address} belongs to {}, and nobody holds it: nothing to release; to drop the claim: kube-ipam release \
                 --claim {address}",
                claim.value.owner
            ),
        }
    }

    /// What was done.
    pub(super) fn done(&self) -> String {
        let address = self.shown.address;
        match (&self.shown.claim, self.fate) {
            (None, _) => format!("{address} is released"),
            (Some(claim), ClaimFate::Keep) => format!("{address} is released; it stays {}'s", claim.value.owner),
            (Some(claim), ClaimFate::Drop) => {
                format!("{address} is released, and not {}'s any more", claim.value.owner)
            }
        }
    }
}

// === may it be released ===

/// By its own status, by the claim or by the block: whichever names a pod that may still run.
fn no_pod_uses<'a>(
    view: &View<'a>,
    address: IpAddr,
    used: Option<&Use<'a>>,
    claim: Option<&Claim>,
) -> Result<(), Refusal> {
    let by_status = view.pods.values().filter(|pod| pod.addresses.contains(&address));
    let holder = claim.and_then(|claim| {
        let holder = claim.holder.as_ref()?;
        view.by_uid(&claim.owner.namespace, &holder.pod, &holder.pod_uid)
    });
    // Without a status yet it may be about to use the address.
    let holder = holder.filter(|pod| pod.addresses.is_empty());
    let recorded = used.and_then(|used| recorded_pod(view, used, claim));
    for pod in by_status.chain(holder).chain(recorded) {
        pod_is_over(view, address, pod)?;
    }
    Ok(())
}

/// The pod that the block names, unless the entry is that of an earlier pod of the same name.
fn recorded_pod<'v, 'a>(view: &'v View<'a>, used: &Use<'a>, claim: Option<&Claim>) -> Option<&'v PodView<'a>> {
    let pod = view.pods.get(&used.pod()?)?;
    let holder = claim.and_then(|claim| claim.holder.as_ref()).filter(|holder| used.is_of(&holder.container_id));
    // A virtual machine holds its address itself, whichever of its pods the claim names.
    let of_container = used.party().machine().is_none();
    let is_earlier = of_container && holder.is_some_and(|holder| !pod::has_uid(pod.pod, &holder.pod_uid));
    (!is_earlier && view.staleness(used).is_none()).then_some(pod)
}

/// A pod that has finished is over, and one that is terminating on a node that is fenced or gone.
fn pod_is_over(view: &View<'_>, address: IpAddr, pod: &PodView<'_>) -> Result<(), Refusal> {
    let (namespace, name) = (pod.namespace.to_owned(), pod.name.to_owned());
    let node = pod.node().map(str::to_owned);
    match pod.state {
        PodState::Finished | PodState::Gone => Ok(()),
        PodState::Alive => Err(Refusal::Live { address, namespace, name, node }),
        PodState::Terminating => {
            let object = view.snapshot.nodes.iter().find(|object| Some(object.name_any()) == node);
            match node_state(object, None) {
                NodeState::Deleted | NodeState::OutOfService => Ok(()),
                NodeState::Ready | NodeState::NotReady => Err(Refusal::Terminating { address, namespace, name, node }),
            }
        }
    }
}

/// What is no pod's is released only if it was a node's that is gone.
fn may_be_released(view: &View<'_>, used: &Use<'_>) -> Result<(), Refusal> {
    if used.pod().is_some() || view.staleness(used).is_some() {
        return Ok(());
    }
    let (address, attribute) = (used.address, used.attribute);
    Err(match attribute.secondary("node") {
        Some(node) => Refusal::Nodes {
            address,
            kind: attribute.secondary("type").unwrap_or("address").to_owned(),
            node: node.to_owned(),
        },
        None => Refusal::Strange { address, handle: attribute.handle().unwrap_or("(none)").to_owned() },
    })
}

// === what would be written ===

fn of_entry(used: &Use<'_>) -> Step {
    Step { record: used.object(), now: format!("{} has {}", used.user(), used.address), after: "released".into() }
}

fn of_handle(used: &Use<'_>) -> Option<Step> {
    let handle = used.attribute.handle()?;
    Some(Step { record: format!("IPAMHandle/{handle}"), now: "counts it".into(), after: "does not".into() })
}

fn of_claim(claim: &Claim, fate: ClaimFate) -> Option<Step> {
    let holder = claim.holder.as_ref().map_or_else(|| "held by nobody".to_owned(), |h| format!("held by {h}"));
    let after = match fate {
        ClaimFate::Keep if claim.holder.is_none() => return None,
        ClaimFate::Keep => format!("{}'s, held by nobody", claim.owner),
        ClaimFate::Drop => "gone".to_owned(),
    };
    Some(Step { record: format!("Claim/{}", claim.address), now: format!("{}'s, {holder}", claim.owner), after })
}

fn of_reservation(name: &str, address: IpAddr) -> Step {
    let now = format!("keeps {address} from automatic assignment");
    Step { record: format!("IPReservation/{name}"), now, after: "does not".into() }
}

fn reserved_by_us(snapshot: &Snapshot, address: IpAddr) -> Vec<String> {
    let entry = host_cidr(address).to_string();
    let ours = snapshot.reservations.iter().filter(|r| is_own_reservation(&r.name_any()));
    ours.filter(|r| r.spec.reserved_cidrs.contains(&entry)).map(|r| r.name_any()).collect()
}

#[cfg(test)]
mod tests {
    use calico::{Affinity, Holder, IPAMBlockSpec, IPPool, IPReservation, IPReservationSpec};
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::*;
    use crate::store::Versioned;

    const FIXED: &str = "10.244.0.216";
    const TUNNEL: &str = "10.244.0.217";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn pod(uid: &str, status: Value) -> Pod {
        object(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "web-1", "uid": uid},
            "spec": {"nodeName": "n1", "containers": []}, "status": status,
        }))
    }

    fn terminating(mut pod: Pod) -> Pod {
        pod.metadata.deletion_timestamp = Some(object(json!("2026-11-24T02:01:28Z")));
        pod
    }

    /// n1 is Ready. Pod web-1 of uid `u` had FIXED there, and is gone; n1 has a tunnel address too.
    fn leaked() -> Snapshot {
        let now = Timestamp::UNIX_EPOCH;
        let mut block = IPAMBlockSpec::new("10.244.0.192/26".parse().unwrap(), &Affinity::host("n1"), now);
        let mut fixed = Holder::pod("net.c1", "default", "web-1", "n1", now);
        fixed.secondary.insert(crate::driver::CLAIM_KEY.into(), "1".into());
        block.assign(ip(FIXED), &fixed, None).unwrap();
        let mut tunnel = Holder::node("vxlan-tunnel-addr-n1", "n1", now);
        tunnel.secondary.insert("type".into(), "vxlanTunnelAddress".into());
        block.assign(ip(TUNNEL), &tunnel, None).unwrap();
        let claim = object(json!({
            "address": FIXED, "created": "2026-11-24T02:01:28Z", "generation": 1,
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
            "holder": {
                "podUid": "u", "pod": "web-1", "containerId": "c1", "interface": "eth0", "node": "n1",
                "since": "2026-11-24T02:01:28Z",
            },
        }));
        let reserved = IPReservationSpec { reserved_cidrs: vec![format!("{FIXED}/32")], ..Default::default() };
        Snapshot {
            blocks: vec![block.object()],
            pools: vec![object::<IPPool>(json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "p"},
                "spec": {"cidr": "10.244.0.0/16"},
            }))],
            nodes: vec![object::<Node>(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }))],
            reservations: vec![IPReservation::new("kube-ipam-10-244-0-192-26", reserved)],
            claims: Some(vec![Versioned { value: claim, revision: 7 }]),
            ..Snapshot::default()
        }
    }

    fn with(pod: Pod) -> Snapshot {
        Snapshot { pods: vec![pod], ..leaked() }
    }

    fn records(plan: &Plan) -> Vec<&str> {
        plan.steps.iter().map(|step| step.record.as_str()).collect()
    }

    fn refusal(snapshot: &Snapshot, address: &str) -> String {
        Plan::of(snapshot, ip(address), ClaimFate::Drop).unwrap_err().to_string()
    }

    #[test]
    fn what_a_pod_left_behind_is_released_and_its_claim_kept_or_dropped() {
        let plan = Plan::of(&leaked(), ip(FIXED), ClaimFate::Keep).unwrap();
        assert_eq!(records(&plan), ["IPAMBlock/10-244-0-192-26", "Claim/10.244.0.216", "IPAMHandle/net.c1"]);
        assert_eq!(plan.steps[1].after, "Deployment default/web's, held by nobody");
        assert_eq!(plan.shown.claim.as_ref().map(|claim| claim.revision), Some(7));
        let (cidr, expect) = plan.shown.entry.clone().unwrap();
        assert_eq!((cidr.to_string().as_str(), expect.handle.as_deref()), ("10.244.0.192/26", Some("net.c1")));
        assert!(expect.sequence.is_some());
        assert!(plan.done().ends_with("it stays Deployment default/web's"));

        let plan = Plan::of(&leaked(), ip(FIXED), ClaimFate::Drop).unwrap();
        assert_eq!(records(&plan)[3], "IPReservation/kube-ipam-10-244-0-192-26");
        assert_eq!(plan.steps[1].after, "gone");
    }

    #[test]
    fn a_live_pod_keeps_its_address_whoever_names_it() {
        let live = "is used by pod default/web-1 on node n1, which is alive; to release it: kubectl delete pod -n default web-1";
        // By its status, even if another UID than the claim's; by the claim's UID before it has a status.
        for pod in [pod("other", json!({"phase": "Running", "podIP": FIXED})), pod("u", json!({"phase": "Pending"}))] {
            let said = refusal(&with(pod), FIXED);
            assert!(said.contains(live), "{said}");
        }
        // By the block alone.
        let mut snapshot = with(pod("new", json!({"phase": "Pending"})));
        snapshot.claims = Some(Vec::new());
        assert!(refusal(&snapshot, FIXED).contains(live));
        // By its status alone.
        let mut snapshot = with(pod("new", json!({"phase": "Running", "podIP": "10.244.0.218"})));
        snapshot.blocks.clear();
        assert!(refusal(&snapshot, "10.244.0.218").contains(live));
    }

    #[test]
    fn a_pod_of_the_same_name_that_came_later_is_no_obstacle() {
        let later = with(pod("new", json!({"phase": "Pending"})));
        assert!(Plan::of(&later, ip(FIXED), ClaimFate::Keep).is_ok());
        let elsewhere = with(pod("u", json!({"phase": "Running", "podIP": "10.244.0.9"})));
        assert!(Plan::of(&elsewhere, ip(FIXED), ClaimFate::Keep).is_ok());
        let finished = with(pod("u", json!({"phase": "Succeeded", "podIP": FIXED})));
        assert!(Plan::of(&finished, ip(FIXED), ClaimFate::Keep).is_ok());
    }

    #[test]
    fn a_terminating_pod_is_over_only_where_its_node_is_fenced_or_gone() {
        let mut snapshot = with(terminating(pod("u", json!({"phase": "Running", "podIP": FIXED}))));
        assert!(refusal(&snapshot, FIXED).contains("which is terminating"));
        snapshot.nodes[0].status = None;
        assert!(refusal(&snapshot, FIXED).contains("node.kubernetes.io/out-of-service"), "not Ready proves nothing");
        let mut fenced = snapshot.clone();
        fenced.nodes[0].spec = Some(object(json!({
            "taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}],
        })));
        assert!(Plan::of(&fenced, ip(FIXED), ClaimFate::Keep).is_ok());
        snapshot.nodes.clear();
        assert!(Plan::of(&snapshot, ip(FIXED), ClaimFate::Keep).is_ok());
    }

    #[test]
    fn a_nodes_own_address_is_released_only_when_the_node_is_gone() {
        let mut snapshot = leaked();
        let said = refusal(&snapshot, TUNNEL);
        assert!(said.contains("10.244.0.217 is the vxlanTunnelAddress of node n1, which exists"), "{said}");
        snapshot.nodes.clear();
        assert_eq!(records(&Plan::of(&snapshot, ip(TUNNEL), ClaimFate::Keep).unwrap()).len(), 2);
    }

    #[test]
    fn a_fixed_address_is_not_released_without_its_ledger() {
        let snapshot = Snapshot { claims: None, ..leaked() };
        let said = refusal(&snapshot, FIXED);
        assert!(said.contains("is a fixed address") && said.contains("--etcd-url"), "{said}");
    }

    #[test]
    fn where_there_is_nothing_to_do_it_is_said_why() {
        let plan = Plan::of(&leaked(), ip("10.244.0.230"), ClaimFate::Drop).unwrap();
        assert_eq!((plan.steps.len(), plan.nothing().contains("not in use and not claimed")), (0, true));
        let mut snapshot = leaked();
        snapshot.blocks.clear();
        snapshot.claims.as_mut().unwrap()[0].value.holder = None;
        let plan = Plan::of(&snapshot, ip(FIXED), ClaimFate::Keep).unwrap();
        assert_eq!(plan.steps, []);
        assert!(plan.nothing().ends_with("kube-ipam release --claim 10.244.0.216"), "{}", plan.nothing());
    }
}

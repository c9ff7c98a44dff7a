use calico::{Affinity, IPAMBlockSpec, IPPool, IPReservation, IPReservationSpec};
use serde_json::{Value, json};

use super::*;
use crate::driver::CONTAINER_KEY;

const HAS: &str = "10.244.0.20";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "default", "name": "web-h1-1", "uid": "u", "annotations": {},
            "labels": {"pod-template-hash": "h1"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-h1", "uid": "rs", "controller": true,
            }],
        },
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running", "podIP": HAS, "podIPs": [{"ip": HAS}]},
    });
    change(&mut pod);
    object(pod)
}

/// The pod's address on record for it, as an ADD leaves it.
fn snapshot(pod: Pod, change: impl FnOnce(&mut calico::Holder)) -> Snapshot {
    let now = Timestamp::UNIX_EPOCH;
    let mut block = IPAMBlockSpec::new("10.244.0.0/26".parse().unwrap(), &Affinity::host("n1"), now);
    let mut holder = calico::Holder::pod("k8s-pod-network.c1", "default", "web-h1-1", "n1", now);
    holder.secondary.insert(INTERFACE_KEY.into(), "eth1".into());
    change(&mut holder);
    block.assign(ip(HAS), &holder, None).unwrap();
    let pool = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "p"},
        "spec": {"cidr": "10.244.0.0/16"},
    });
    Snapshot {
        pods: vec![pod],
        blocks: vec![block.object()],
        pools: vec![object::<IPPool>(pool)],
        claims: Some(Vec::new()),
        ..Snapshot::default()
    }
}

fn plan(snapshot: &Snapshot) -> Plan {
    Plan::of(snapshot, Timestamp::UNIX_EPOCH)
}

fn problem(snapshot: &Snapshot) -> String {
    let plan = plan(snapshot);
    assert_eq!((plan.items.len(), plan.problems.len()), (0, 1), "{plan:?}");
    assert_eq!(plan.problems[0].pod, "default/web-h1-1");
    plan.problems[0].why.clone()
}

#[test]
fn the_claim_names_the_controller_the_pod_and_its_container() {
    let plan = plan(&snapshot(pod(|_| {}), |_| {}));
    let Wanted { claim, standing, cidr, entry } = &plan.items[0].wanted;
    assert_eq!((claim.owner.to_string().as_str(), claim.generation), ("Deployment default/web", BY_HAND));
    let holder = claim.holder.as_ref().unwrap();
    assert_eq!((holder.pod_uid.as_str(), holder.container_id.as_str()), ("u", "c1"));
    assert_eq!((holder.interface.as_str(), holder.node.as_str()), ("eth1", "n1"));
    assert_eq!((standing, cidr.to_string().as_str()), (&None, "10.244.0.0/26"));
    assert_eq!(entry.as_ref().unwrap().1.handle.as_deref(), Some("k8s-pod-network.c1"));
}

#[test]
fn an_address_that_was_taken_ahead_is_the_pods_whichever_container_has_it() {
    let ahead = snapshot(pod(|_| {}), |holder| {
        holder.handle = "default.web-h1-1".into();
        holder.secondary.insert(POD_UID_KEY.into(), "u".into());
        holder.secondary.insert(CONTAINER_KEY.into(), "c1".into());
    });
    let holder = plan(&ahead).items[0].wanted.claim.holder.clone().unwrap();
    assert_eq!((holder.pod_uid.as_str(), holder.container_id.as_str()), ("u", ""));
}

#[test]
fn calicos_annotation_for_addresses_goes_where_ours_comes() {
    let asks =
        |pod: &mut Value| pod["metadata"]["annotations"]["cni.projectcalico.org/ipAddrs"] = json!("[\"10.244.0.9\"]");
    let text = plan(&snapshot(pod(asks), |_| {})).templates[0].text();
    assert!(text.contains("\"cni.projectcalico.org/ipAddrs\":null"), "{text}");
    let text = plan(&snapshot(pod(|_| {}), |_| {})).templates[0].text();
    assert!(text.contains("kubectl patch") && !text.contains("null"), "{text}");
}

#[test]
fn what_keeps_an_address_from_being_adopted_is_said() {
    let said = problem(&snapshot(pod(|pod| pod["spec"]["hostNetwork"] = json!(true)), |_| {}));
    assert!(said.contains("its node's network"), "{said}");
    let ending = pod(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-11-24T02:01:28Z"));
    assert!(problem(&snapshot(ending, |_| {})).contains("at its end"));
    let waiting = pod(|pod| pod["status"] = json!({"phase": "Pending"}));
    assert!(problem(&snapshot(waiting, |_| {})).contains("has no address yet"));
    let said = problem(&snapshot(pod(|_| {}), |holder| drop(holder.secondary.insert("pod".into(), "other".into()))));
    assert!(said.contains("records for pod default/other"), "{said}");
    let mut unrecorded = snapshot(pod(|_| {}), |_| {});
    unrecorded.blocks.clear();
    assert!(problem(&unrecorded).contains("which no block records"));
    let mut outside = snapshot(pod(|_| {}), |_| {});
    outside.pools.clear();
    assert!(problem(&outside).contains("lies in no IPPool"));
}

fn claimed(snapshot: &mut Snapshot, change: impl FnOnce(&mut Value)) {
    let mut claim = json!({
        "address": HAS, "created": "2026-11-24T02:01:28Z", "generation": 4,
        "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
    });
    change(&mut claim);
    snapshot.claims = Some(vec![Versioned { value: object(claim), revision: 7 }]);
}

#[test]
fn the_owners_own_claim_is_used_and_anybody_elses_is_in_the_way() {
    let mut imported = snapshot(pod(|_| {}), |_| {});
    claimed(&mut imported, |_| {});
    let found = plan(&imported);
    assert_eq!(found.items[0].wanted.claim.generation, 5);
    assert_eq!(found.items[0].wanted.standing.as_ref().map(|standing| standing.revision), Some(7));
    claimed(&mut imported, |claim| claim["owner"]["name"] = json!("shop"));
    assert!(problem(&imported).contains("which Deployment default/shop has claimed"));
    claimed(&mut imported, |claim| claim["moved"] = json!("etcd"));
    assert!(problem(&imported).contains("carried to another ledger"));
    let held = json!({
        "podUid": "v", "pod": "web-h1-2", "containerId": "c2", "interface": "eth0", "node": "n1",
        "since": "2026-11-24T02:01:28Z",
    });
    claimed(&mut imported, |claim| claim["holder"] = held);
    assert!(problem(&imported).contains("held by pod web-h1-2"));
}

#[test]
fn what_is_complete_is_left_alone_and_what_broke_off_is_completed() {
    let fixed = |generation: &'static str| {
        move |holder: &mut calico::Holder| drop(holder.secondary.insert(CLAIM_KEY.into(), generation.into()))
    };
    let held = |claim: &mut Value| {
        claim["holder"] = json!({
            "podUid": "u", "pod": "web-h1-1", "containerId": "c1", "interface": "eth1", "node": "n1",
            "since": "2026-11-24T02:01:28Z",
        });
    };
    let reserved = IPReservationSpec { reserved_cidrs: vec![format!("{HAS}/32")], ..Default::default() };
    let mut complete = snapshot(pod(|_| {}), fixed("4"));
    claimed(&mut complete, held);
    complete.reservations = vec![IPReservation::new("kube-ipam-10-244-0-0-26", reserved.clone())];
    assert_eq!(plan(&complete).due().count(), 0);
    let unreserved = Snapshot { reservations: Vec::new(), ..complete };
    assert_eq!(plan(&unreserved).due().count(), 1);
    let mut unmarked = snapshot(pod(|_| {}), |_| {});
    claimed(&mut unmarked, held);
    unmarked.reservations = vec![IPReservation::new("kube-ipam-10-244-0-0-26", reserved)];
    assert_eq!(plan(&unmarked).due().count(), 1);
}

//! Every class of violation is found where it was planted, alone; and what the driver does leaves none.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use calico::invariants::Invariant;
use calico::{AffinityState, IPAMBlock};
use common::{World, ip, object};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube_ipam::audit::{self, Class, Snapshot, Violation, audit};
use kube_ipam::driver::CLAIM_KEY;
use proptest::prelude::*;
use serde_json::json;

const FIXED: &str = "10.244.0.216";

/// What a kubelet writes once a pod's sandbox is up.
fn report(world: &World, pod: Pod, node: &str, addresses: &[IpAddr]) {
    let mut value = serde_json::to_value(pod).unwrap();
    value["apiVersion"] = json!("v1");
    value["kind"] = json!("Pod");
    value["spec"]["nodeName"] = json!(node);
    let ips: Vec<_> = addresses.iter().map(|a| json!({"ip": a})).collect();
    value["status"] = json!({"phase": "Running", "podIP": addresses.first(), "podIPs": ips});
    world.objects.put::<Pod>(&object(value));
}

async fn run(world: &World, pod: Pod, node: &str) -> IpAddr {
    let name = pod.name_any();
    let assigned = world.add(node, &name, &format!("c-{name}")).await.unwrap();
    let addresses: Vec<IpAddr> = assigned.iter().map(|a| a.address).collect();
    report(world, pod, node, &addresses);
    addresses[0]
}

/// A fixed pod and a random one on n1, a random one on n2, a fixed address that nobody holds.
async fn busy() -> World {
    let world = World::new();
    run(&world, world.fixed("web-1", "web", FIXED), "n1").await;
    run(&world, world.random("r-1"), "n1").await;
    run(&world, world.random("r-2"), "n2").await;
    run(&world, world.fixed("db-1", "db", "10.244.0.217"), "n2").await;
    world.del("n2", "db-1", "c-db-1").await.unwrap();
    world.remove_pod("db-1");
    world
}

async fn snapshot(world: &World) -> Snapshot {
    let reading = audit::read(&world.objects, Some(&world.ledger), &|_| {}).await;
    assert!(reading.unread.is_empty(), "{:?}", reading.unread);
    Snapshot { net: Some(world.net()), ..reading.snapshot.unwrap() }
}

async fn clean() -> Snapshot {
    let snapshot = snapshot(&busy().await).await;
    assert_eq!(audit(&snapshot), []);
    assert_eq!(audit::notes(&snapshot), []);
    snapshot
}

/// The one violation in the snapshot, of the expected class.
fn only(snapshot: &Snapshot, class: Class, invariant: Invariant) -> Violation {
    let found = audit(snapshot);
    let [one] = found.as_slice() else { panic!("expected one violation, found {found:#?}") };
    assert_eq!((one.class, one.invariant), (class, invariant), "{one}");
    assert!(!one.remedy.is_empty() && !one.to_string().contains('\n'), "{one}");
    one.clone()
}

fn block_of<'a>(snapshot: &'a mut Snapshot, address: &str) -> &'a mut IPAMBlock {
    snapshot.blocks.iter_mut().find(|b| b.spec.cidr.contains(ip(address))).unwrap()
}

fn pod<'a>(snapshot: &'a mut Snapshot, name: &str) -> &'a mut Pod {
    snapshot.pods.iter_mut().find(|p| p.name_any() == name).unwrap()
}

fn address_of(snapshot: &Snapshot, name: &str) -> IpAddr {
    let pod = snapshot.pods.iter().find(|p| p.name_any() == name).unwrap();
    pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap().parse().unwrap()
}

fn set_address(pod: &mut Pod, address: &str) {
    let status = pod.status.as_mut().unwrap();
    status.pod_ip = Some(address.to_owned());
    status.pod_ips = serde_json::from_value(json!([{"ip": address}])).unwrap();
}

/// The attribute that a block has for an address.
fn secondary(block: &mut IPAMBlock, address: IpAddr) -> &mut std::collections::BTreeMap<String, String> {
    let ordinal = block.spec.ordinal(address).unwrap();
    let index = block.spec.allocations[ordinal].unwrap();
    block.spec.attributes[index].secondary.as_mut().unwrap()
}

/// Frees an address and counts its handle off, as a release by somebody else does.
fn release(snapshot: &mut Snapshot, address: IpAddr) {
    let block = block_of(snapshot, &address.to_string());
    let calico::Entry::Used { attribute, .. } = block.spec.entry(address) else { panic!("not in use") };
    let handle = attribute.handle().unwrap().to_owned();
    block.spec.vacate(address);
    snapshot.handles.retain(|h| h.spec.handle_id != handle);
}

#[tokio::test]
async fn a_second_block_over_the_same_addresses_is_found() {
    let mut snapshot = clean().await;
    let mut second = block_of(&mut snapshot, FIXED).clone();
    second.spec = calico::IPAMBlockSpec::new(
        "10.244.0.192/27".parse().unwrap(),
        &calico::Affinity::host("n1"),
        jiff::Timestamp::UNIX_EPOCH,
    );
    second.spec.disown();
    second.metadata.name = Some("10-244-0-192-27".into());
    snapshot.blocks.push(second);
    only(&snapshot, Class::BlocksOverlap, Invariant::I1);
}

#[tokio::test]
async fn two_live_pods_with_one_address_are_found_and_both_are_named() {
    let mut snapshot = clean().await;
    let mut twin = pod(&mut snapshot, "r-1").clone();
    (twin.metadata.name, twin.metadata.uid) = (Some("twin".into()), Some("uid-of-twin".into()));
    twin.spec.as_mut().unwrap().node_name = Some("n2".into());
    snapshot.pods.push(twin);
    let found = only(&snapshot, Class::SharedAddress, Invariant::I1);
    assert!(found.detail.contains("default/r-1 on node n1") && found.detail.contains("default/twin on node n2"));
}

#[tokio::test]
async fn a_pod_whose_address_is_recorded_for_another_is_found() {
    let mut snapshot = clean().await;
    let address = address_of(&snapshot, "r-1");
    let block = block_of(&mut snapshot, &address.to_string());
    secondary(block, address).insert("pod".into(), "somebody".into());
    let found = only(&snapshot, Class::OthersAddress, Invariant::I1);
    assert_eq!(found.object, "Pod/default/r-1");
    assert!(found.detail.contains("pod default/somebody"), "{found}");
}

#[tokio::test]
async fn a_pod_with_an_address_that_no_block_records_is_found() {
    let mut snapshot = clean().await;
    let address = address_of(&snapshot, "r-2");
    release(&mut snapshot, address);
    let found = only(&snapshot, Class::Unrecorded, Invariant::I3);
    assert_eq!(found.object, "Pod/default/r-2");
}

#[tokio::test]
async fn a_pod_on_its_way_out_may_have_lost_its_record_already() {
    let mut snapshot = clean().await;
    let address = address_of(&snapshot, "r-2");
    release(&mut snapshot, address);
    pod(&mut snapshot, "r-2").metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-11-23T22:40:56Z")).unwrap();
    assert_eq!(audit(&snapshot), []);
}

#[tokio::test]
async fn a_pod_in_its_nodes_network_or_in_another_network_is_not_judged() {
    let mut snapshot = clean().await;
    let address = address_of(&snapshot, "r-2");
    release(&mut snapshot, address);
    pod(&mut snapshot, "r-2").spec.as_mut().unwrap().host_network = Some(true);
    assert_eq!(audit(&snapshot), []);
    let mut elsewhere = pod(&mut snapshot, "r-1").clone();
    elsewhere.metadata.name = Some("elsewhere".into());
    set_address(&mut elsewhere, "172.17.0.2");
    snapshot.pods.push(elsewhere);
    assert_eq!(audit(&snapshot), []);
}

#[tokio::test]
async fn an_allocation_without_pod_is_a_leak() {
    let mut snapshot = clean().await;
    snapshot.pods.retain(|p| p.name_any() != "r-1");
    let found = only(&snapshot, Class::Leak, Invariant::I8);
    assert!(found.detail.contains("pod default/r-1 does not exist"), "{found}");
}

#[tokio::test]
async fn a_finished_pod_a_pod_elsewhere_and_a_pod_with_another_address_leave_a_leak() {
    for (plant, why) in [
        ("finished", "has finished"),
        ("elsewhere", "is on node n2, the allocation is of node n1"),
        ("other address", "has 10.244.9.9"),
    ] {
        let mut snapshot = clean().await;
        let pod = pod(&mut snapshot, "r-1");
        match plant {
            "finished" => pod.status.as_mut().unwrap().phase = Some("Succeeded".into()),
            "elsewhere" => pod.spec.as_mut().unwrap().node_name = Some("n2".into()),
            _ => {
                set_address(pod, "10.244.9.9");
                // That the other address is not recorded either is another violation; it is of another network here.
                snapshot.pools[0].spec.cidr = "10.244.0.0/21".parse().unwrap();
                snapshot.net = None;
            }
        }
        let found = only(&snapshot, Class::Leak, Invariant::I8);
        assert!(found.detail.contains(why), "{found}");
    }
}

#[tokio::test]
async fn a_pod_without_addresses_yet_keeps_its_allocation() {
    let mut snapshot = clean().await;
    pod(&mut snapshot, "r-1").status = None;
    assert_eq!(audit(&snapshot), []);
}

#[tokio::test]
async fn an_address_of_a_node_that_is_gone_is_a_leak() {
    let mut snapshot = clean().await;
    let address = address_of(&snapshot, "r-1");
    let block = block_of(&mut snapshot, &address.to_string());
    let tunnel = block.spec.address(63);
    let holder = calico::Holder::node("ipip-tunnel-addr-n9", "n9", jiff::Timestamp::UNIX_EPOCH);
    block.spec.assign(tunnel, &holder, None).unwrap();
    let mut handle = calico::IPAMHandleSpec::new("ipip-tunnel-addr-n9");
    let cidr = block.spec.cidr;
    handle.increment(&cidr, 1);
    snapshot.handles.push(handle.object());
    let found = only(&snapshot, Class::Leak, Invariant::I8);
    assert!(found.detail.contains("node n9 does not exist"), "{found}");
    let mut node = snapshot.nodes[0].clone();
    node.metadata.name = Some("n9".into());
    snapshot.nodes.push(node);
    assert_eq!(audit(&snapshot), []);
}

#[tokio::test]
async fn a_handle_that_counts_wrongly_or_nothing_is_found() {
    let mut snapshot = clean().await;
    *snapshot.handles[0].spec.block.values_mut().next().unwrap() += 1;
    only(&snapshot, Class::HandleCount, Invariant::I4);

    let mut snapshot = clean().await;
    snapshot.handles.remove(0);
    only(&snapshot, Class::HandleCount, Invariant::I4);

    let mut snapshot = clean().await;
    let mut orphan = calico::IPAMHandleSpec::new("k8s-pod-network.orphan");
    orphan.increment(&snapshot.blocks[0].spec.cidr, 1);
    snapshot.handles.push(orphan.object());
    only(&snapshot, Class::HandleCount, Invariant::I4);
}

#[tokio::test]
async fn a_block_that_lost_an_ordinal_is_found() {
    let mut snapshot = clean().await;
    snapshot.blocks[0].spec.unallocated.pop();
    only(&snapshot, Class::BlockShape, Invariant::I5);
}

#[tokio::test]
async fn an_affinity_without_block_and_a_block_without_affinity_are_found() {
    let mut snapshot = clean().await;
    let cidr = "10.244.7.0/26".parse().unwrap();
    let affinity = calico::BlockAffinity::pending(&calico::Affinity::host("n1"), &cidr);
    snapshot.affinities.push(affinity.with_state(AffinityState::Confirmed));
    only(&snapshot, Class::AffinityMismatch, Invariant::I6);

    let mut snapshot = clean().await;
    snapshot.affinities.remove(0);
    only(&snapshot, Class::AffinityMismatch, Invariant::I6);
}

#[tokio::test]
async fn an_affinity_that_stays_half_done_is_found() {
    for state in [AffinityState::Pending, AffinityState::PendingDeletion] {
        let mut snapshot = clean().await;
        let affinity = snapshot.affinities.remove(0);
        snapshot.affinities.push(affinity.with_state(state));
        let found = only(&snapshot, Class::HalfDoneAffinity, Invariant::I6);
        assert!(found.detail.ends_with(state.as_str()), "{found}");
    }
}

#[tokio::test]
async fn an_object_that_stayed_marked_deleted_is_found() {
    let mut snapshot = clean().await;
    let mut handle = calico::IPAMHandleSpec::new("k8s-pod-network.gone").object();
    handle.spec.deleted = true;
    snapshot.handles.push(handle);
    let found = only(&snapshot, Class::DeletedLeftover, Invariant::I8);
    assert_eq!(found.object, "IPAMHandle/k8s-pod-network.gone");

    let mut snapshot = clean().await;
    let cidr = "10.244.7.0/26".parse().unwrap();
    snapshot.affinities.push(calico::BlockAffinity::pending(&calico::Affinity::host("n1"), &cidr).marked_deleted());
    let found = only(&snapshot, Class::DeletedLeftover, Invariant::I8);
    assert!(found.remedy.contains("kubectl delete blockaffinities.crd.projectcalico.org n1-10-244-7-0-26"));
    snapshot.group = calico::ApiGroup::V3;
    let remedies: Vec<String> = audit(&snapshot).into_iter().map(|violation| violation.remedy).collect();
    assert!(remedies.iter().any(|remedy| remedy.contains("blockaffinities.projectcalico.org n1-10-244-7-0-26")));
}

#[tokio::test]
async fn an_allocation_outside_of_every_pool_is_found() {
    let mut snapshot = clean().await;
    let claimed = |c: &kube_ipam::store::Versioned<kube_ipam::claim::Claim>| c.value.address == ip(FIXED);
    snapshot.claims.as_mut().unwrap().retain(|c| !claimed(c));
    snapshot.claims.as_mut().unwrap().clear();
    snapshot.reservations.clear();
    let keep: Vec<IpAddr> = ["r-1", "r-2"].map(|p| address_of(&snapshot, p)).into();
    release(&mut snapshot, ip(FIXED));
    snapshot.pods.retain(|p| p.name_any() != "web-1");
    assert_eq!(audit(&snapshot), []);
    // A pool that covers the one random pod's block and not the other's.
    let pool = block_of(&mut snapshot, &keep[0].to_string()).spec.cidr;
    snapshot.pools[0].spec.cidr = pool;
    snapshot.net = None;
    let found = only(&snapshot, Class::OutsidePools, Invariant::I7);
    assert!(found.detail.contains(&keep[1].to_string()), "{found}");
}

#[tokio::test]
async fn a_claim_outside_of_every_pool_is_found() {
    let mut snapshot = clean().await;
    let mut stray = snapshot.claims.as_ref().unwrap()[1].clone();
    stray.value.address = ip("10.99.0.1");
    snapshot.reservations[0].spec.reserved_cidrs.push("10.99.0.1/32".into());
    snapshot.claims.as_mut().unwrap().push(stray);
    let found = only(&snapshot, Class::OutsidePools, Invariant::I7);
    assert_eq!(found.object, "Claim/10.99.0.1");
}

#[tokio::test]
async fn a_random_address_outside_of_the_range_or_on_the_gateway_is_found() {
    for (range, why) in [
        (json!({"rangeStart": "10.244.0.150", "rangeEnd": "10.244.0.200"}), "outside of the range"),
        (json!({"gateway": "GATEWAY", "rangeStart": "10.244.0.1"}), "is the gateway of 10.244.0.0/16"),
    ] {
        let mut world = World::new();
        let address = run(&world, world.random("r-1"), "n1").await;
        for (key, value) in range.as_object().unwrap() {
            world.conf["ipam"][key] = json!(value.as_str().unwrap().replace("GATEWAY", &address.to_string()));
        }
        let found = only(&snapshot(&world).await, Class::OutsideRange, Invariant::I7);
        assert!(found.detail.contains(why), "{found}");
        let unknown = Snapshot { net: None, ..snapshot(&world).await };
        assert_eq!(audit(&unknown), [], "without a configuration there is no range to be outside of");
    }
}

#[tokio::test]
async fn a_fixed_pod_with_another_address_is_found() {
    let mut snapshot = clean().await;
    let annotations = pod(&mut snapshot, "r-1").metadata.annotations.get_or_insert_default();
    annotations.insert("kube-ipam.ip".into(), "10.244.0.230, fd00::1".into());
    let found = only(&snapshot, Class::WrongFixed, Invariant::I9);
    assert!(
        found.detail.starts_with("asks for 10.244.0.230, fd00::1") && !found.detail.contains("calico-ipam"),
        "{found}"
    );
    // As calico-ipam writes it.
    let address = address_of(&snapshot, "r-1");
    secondary(block_of(&mut snapshot, &address.to_string()), address).retain(|key, _| !key.starts_with("kube-ipam."));
    let found = only(&snapshot, Class::WrongFixed, Invariant::I9);
    assert!(found.detail.ends_with("which calico-ipam gave it"), "{found}");
}

#[tokio::test]
async fn a_claim_and_a_block_that_disagree_are_found() {
    type Plant = fn(&mut Snapshot);
    fn fixed(s: &mut Snapshot) -> &mut kube_ipam::claim::Claim {
        &mut s.claims.as_mut().unwrap().iter_mut().find(|c| c.value.address == ip(FIXED)).unwrap().value
    }
    let plants: [(Plant, &str); 5] = [
        (|s| fixed(s).holder = None, "names no holder, but the block records it for pod default/web-1"),
        (|s| fixed(s).holder.as_mut().unwrap().container_id = "other".into(), "but the block records it for pod"),
        (|s| fixed(s).holder.as_mut().unwrap().node = "n2".into(), "is held by pod web-1 on node n2"),
        (|s| fixed(s).generation = 7, "is of generation 7, but the block's entry says 1"),
        (
            |s| {
                secondary(block_of(s, FIXED), ip(FIXED)).remove(CLAIM_KEY);
            },
            "but the block's entry says none",
        ),
    ];
    for (plant, why) in plants {
        let mut snapshot = clean().await;
        plant(&mut snapshot);
        let found = only(&snapshot, Class::ClaimDisagrees, Invariant::I2);
        assert!(found.detail.contains(why), "{found}");
    }
}

#[tokio::test]
async fn a_claim_that_is_held_but_not_in_its_block_is_found() {
    let mut snapshot = clean().await;
    release(&mut snapshot, ip(FIXED));
    snapshot.pods.retain(|p| p.name_any() != "web-1");
    let found = only(&snapshot, Class::ClaimDisagrees, Invariant::I2);
    assert!(found.detail.contains("but no block records it"), "{found}");
}

#[tokio::test]
async fn a_fixed_address_held_by_a_pod_of_another_owner_is_found() {
    let mut snapshot = clean().await;
    pod(&mut snapshot, "web-1").metadata.owner_references.as_mut().unwrap()[0].name = "shop-h1".into();
    let found = only(&snapshot, Class::ForeignHolder, Invariant::I2);
    assert!(found.detail.contains("belongs to Deployment default/web"), "{found}");
    assert!(found.detail.contains("a pod of Deployment default/shop"), "{found}");
}

#[tokio::test]
async fn a_holder_whose_name_another_pod_took_over_is_found_by_its_uid() {
    let mut snapshot = clean().await;
    pod(&mut snapshot, "web-1").metadata.uid = Some("another".into());
    let found = only(&snapshot, Class::HolderGone, Invariant::I2);
    assert!(found.detail.contains("whose UID uid-of-web-1 no pod has"), "{found}");
}

#[tokio::test]
async fn a_held_fixed_address_without_pod_is_told_once() {
    let mut snapshot = clean().await;
    snapshot.pods.retain(|p| p.name_any() != "web-1");
    let found = only(&snapshot, Class::Leak, Invariant::I8);
    assert!(found.detail.contains("the fixed address 10.244.0.216"), "{found}");
}

#[tokio::test]
async fn a_fixed_entry_without_claim_is_found() {
    let mut snapshot = clean().await;
    snapshot.claims.as_mut().unwrap().retain(|c| c.value.address != ip(FIXED));
    for reservation in &mut snapshot.reservations {
        reservation.spec.reserved_cidrs.retain(|c| c != "10.244.0.216/32");
    }
    only(&snapshot, Class::FixedWithoutClaim, Invariant::I2);
}

#[tokio::test]
async fn a_claim_without_reservation_and_a_reservation_without_claim_are_found() {
    let mut snapshot = clean().await;
    for reservation in &mut snapshot.reservations {
        reservation.spec.reserved_cidrs.retain(|c| c != "10.244.0.217/32");
    }
    let found = only(&snapshot, Class::ClaimNotReserved, Invariant::I2);
    assert_eq!(found.object, "Claim/10.244.0.217");

    let mut snapshot = clean().await;
    snapshot.claims.as_mut().unwrap().retain(|c| c.value.address != ip("10.244.0.217"));
    let found = only(&snapshot, Class::ReservationWithoutClaim, Invariant::I8);
    assert!(found.remedy.starts_with("mends itself") && found.object.starts_with("IPReservation/"), "{found}");
    // Another network may have claimed it: the collector leaves it alone.
    snapshot.reservations[0].spec.reserved_cidrs.push("10.245.0.1/32".into());
    snapshot.pools[0].spec.cidr = "10.244.0.0/15".parse().unwrap();
    let foreign = audit(&snapshot).into_iter().find(|v| v.detail.contains("10.245.0.1")).unwrap();
    assert!(foreign.remedy.starts_with("kube-ipam release --claim, if no other network"), "{foreign}");
}

#[tokio::test]
async fn lost_claims_are_no_reason_to_restart_a_pod_or_to_drop_a_reservation() {
    let mut snapshot = clean().await;
    snapshot.claims.as_mut().unwrap().clear();
    let found = audit(&snapshot);
    let classes: Vec<Class> = found.iter().map(|v| v.class).collect();
    // Of the address in use only the claim is missing; what is reserved for nobody is another matter.
    assert_eq!(classes, [Class::FixedWithoutClaim, Class::ReservationWithoutClaim], "{found:#?}");
    assert!(found[0].remedy.contains("kube-ipam adopt") && found[1].detail.contains("10.244.0.217"), "{found:#?}");
    assert!(found.iter().all(|v| v.remedy.starts_with("mends itself") && !v.remedy.contains("delete")), "{found:#?}");
}

#[tokio::test]
async fn a_subnet_that_no_pool_covers_is_the_one_cause_and_no_pod_is_to_be_deleted() {
    let mut world = World::new();
    for (name, node) in [("r-1", "n1"), ("r-2", "n2"), ("r-3", "n1")] {
        run(&world, world.random(name), node).await;
    }
    for (key, value) in [("subnet", "10.99.0.0/16"), ("rangeStart", "10.99.0.10"), ("rangeEnd", "10.99.0.20")] {
        world.conf["ipam"][key] = json!(value);
    }
    world.conf["ipam"].as_object_mut().unwrap().remove("gateway");
    let mut snapshot = snapshot(&world).await;
    let found = only(&snapshot, Class::SubnetWithoutPool, Invariant::I7);
    assert!(found.detail.starts_with("subnet 10.99.0.0/16 of the CNI config is not covered"), "{found}");
    assert!(found.detail.contains("3 addresses in use are not of it"), "{found}");
    assert!(found.remedy.contains("pods that run need nothing") && !found.remedy.contains("delete the pod"), "{found}");
    // It comes before whatever else there is.
    snapshot.blocks[0].spec.unallocated.pop();
    let classes: Vec<Class> = audit(&snapshot).iter().map(|v| v.class).collect();
    assert_eq!(classes, [Class::SubnetWithoutPool, Class::BlockShape]);
}

#[tokio::test]
async fn nothing_that_destroys_is_advised_while_the_claims_are_not_known() {
    type Plant = fn(&mut Snapshot);
    let plants: [(Plant, Class); 4] = [
        (
            |s| {
                let annotations = pod(s, "r-1").metadata.annotations.get_or_insert_default();
                annotations.insert("kube-ipam.ip".into(), "10.244.0.230".into());
            },
            Class::WrongFixed,
        ),
        (|s| s.pods.retain(|p| p.name_any() != "r-1"), Class::Leak),
        (
            |s| {
                let address = address_of(s, "r-2");
                release(s, address);
            },
            Class::Unrecorded,
        ),
        (
            |s| {
                let address = address_of(s, "r-1");
                secondary(block_of(s, &address.to_string()), address).insert("pod".into(), "somebody".into());
            },
            Class::OthersAddress,
        ),
    ];
    for (plant, class) in plants {
        let mut snapshot = clean().await;
        plant(&mut snapshot);
        let known = only(&snapshot, class, class.invariant());
        assert!(known.remedy.contains("delete") || known.remedy.contains("release"), "{known}");
        snapshot.claims = None;
        let unknown = only(&snapshot, class, class.invariant());
        assert!(!unknown.remedy.contains("delete") && !unknown.remedy.contains("release"), "{unknown}");
        assert!(unknown.remedy.contains("--network"), "{unknown}");
    }
}

#[tokio::test]
async fn reservations_of_others_and_claims_not_looked_at_are_no_matter() {
    let mut snapshot = clean().await;
    let mut others = snapshot.reservations[0].clone();
    others.metadata.name = Some("printers".into());
    others.spec.reserved_cidrs = vec!["10.244.5.0/24".into()];
    snapshot.reservations.push(others);
    assert_eq!(audit(&snapshot), []);
    snapshot.claims = None;
    snapshot.reservations.clear();
    assert_eq!(audit(&snapshot), []);
}

#[tokio::test]
async fn a_claim_whose_owner_is_gone_is_a_note_and_no_violation() {
    let world = busy().await;
    assert!(world.objects.remove::<k8s_openapi::api::apps::v1::Deployment>(Some("default"), "db"));
    let snapshot = snapshot(&world).await;
    assert_eq!(audit(&snapshot), []);
    let notes = audit::notes(&snapshot);
    assert_eq!(notes.len(), 1);
    assert_eq!((notes[0].class, notes[0].object.as_str()), (Class::OwnerGone, "Claim/10.244.0.217"));
}

#[tokio::test]
async fn what_two_sightings_do_not_share_is_not_believed() {
    let mut first = clean().await;
    let mut second = first.clone();
    first.handles.remove(0);
    second.blocks[0].spec.unallocated.pop();
    let (earlier, later) = (audit(&first), audit(&second));
    assert_eq!((earlier.len(), later.len()), (1, 1));
    assert_eq!(audit::persisting(&earlier, &later), []);
    assert_eq!(audit::persisting(&earlier, &earlier), earlier);
}

// === what the driver leaves ===

#[derive(Debug, Clone)]
enum Operation {
    Random { pod: u8, node: bool },
    Fixed { app: u8, address: u8, node: bool },
    Delete { pod: u8 },
    Sandbox { pod: u8 },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0..6u8, any::<bool>()).prop_map(|(pod, node)| Operation::Random { pod, node }),
        (0..3u8, 210..214u8, any::<bool>()).prop_map(|(app, address, node)| Operation::Fixed { app, address, node }),
        (0..12u8).prop_map(|pod| Operation::Delete { pod }),
        (0..12u8).prop_map(|pod| Operation::Sandbox { pod }),
    ]
}

/// A pod that runs: name, node, container.
type Running = (String, &'static str, String);

async fn step(world: &World, running: &mut Vec<Running>, serial: usize, operation: &Operation) {
    let node = |second: bool| if second { "n2" } else { "n1" };
    match operation {
        Operation::Random { pod, node: second } => {
            start(world, running, world.random(&format!("r-{pod}-{serial}")), node(*second), serial).await;
        }
        Operation::Fixed { app, address, node: second } => {
            let (name, app) = (format!("f-{app}-{serial}"), format!("app-{app}"));
            let pod = world.fixed(&name, &app, &format!("10.244.0.{address}"));
            start(world, running, pod, node(*second), serial).await;
        }
        Operation::Delete { pod } => {
            let Some(index) = usize::from(*pod).checked_rem(running.len()) else { return };
            let (name, node, container) = running.remove(index);
            world.del(node, &name, &container).await.unwrap();
            world.remove_pod(&name);
        }
        Operation::Sandbox { pod } => {
            let Some(index) = usize::from(*pod).checked_rem(running.len()) else { return };
            let (name, node, container) = running[index].clone();
            let fresh = format!("c-again-{serial}");
            let pod: Pod =
                kube_ipam::store::Objects::get(&world.objects, Some("default"), &name).await.unwrap().unwrap();
            let assigned = world.add(node, &name, &fresh).await.unwrap();
            report(world, pod, node, &assigned.iter().map(|a| a.address).collect::<Vec<_>>());
            world.del(node, &name, &container).await.unwrap();
            running[index].2 = fresh;
        }
    }
}

/// Starts a pod; one that is refused its address is deleted again.
async fn start(world: &World, running: &mut Vec<Running>, pod: Pod, node: &'static str, serial: usize) {
    let (name, container) = (pod.name_any(), format!("c-{serial}"));
    match world.add(node, &name, &container).await {
        Ok(assigned) => {
            report(world, pod, node, &assigned.iter().map(|a| a.address).collect::<Vec<_>>());
            running.push((name, node, container));
        }
        Err(_) => {
            world.del(node, &name, &container).await.unwrap();
            world.remove_pod(&name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_the_driver_does_leaves_a_clean_audit(operations in prop::collection::vec(operation(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (world, mut running) = (World::new(), Vec::new());
            for (serial, operation) in operations.iter().enumerate() {
                step(&world, &mut running, serial, operation).await;
                let found = audit(&snapshot(&world).await);
                assert_eq!(found, [], "after {operation:?}");
            }
        });
    }
}

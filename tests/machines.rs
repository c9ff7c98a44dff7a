//! Virtual machines of KubeVirt: their addresses outlive their pods, move with them, and go with the machine. In Calico's
//! dialect and in kube-ipam's own, with automatic addresses and fixed ones.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use calico::machine::Side;
use calico::{Entry, IPAMBlock, IPAMHandle};
use common::kubevirt::{VirtualMachine, VirtualMachineInstance};
use common::town::Town;
use common::{World, attachment, ip};
use kube_ipam::driver::{Driver, Unrecorded};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::faulty::{Call, Faults};
use serde_json::json;

const FIXED: &str = "10.244.0.216";
const A: &str = "virt-launcher-vm1-aaaaa";
const B: &str = "virt-launcher-vm1-bbbbb";
const C: &str = "virt-launcher-vm1-ccccc";

/// The ways in which a machine may be given its address.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    CalicoIpam,
    Range,
    Fixed,
}

const WAYS: [Way; 3] = [Way::CalicoIpam, Way::Range, Way::Fixed];

fn world(way: Way) -> World {
    let mut world = World::new();
    if way == Way::CalicoIpam {
        world.conf["ipam"] = json!({"type": "calico-ipam"});
    }
    world.machine("vm1", if way == Way::Fixed { json!({"kube-ipam.ip": FIXED}) } else { json!({}) });
    world
}

/// Which pod is on each side of the only address, with the node that is recorded for it.
async fn sides(world: &World) -> [Option<(String, String)>; 2] {
    let blocks = world.list::<IPAMBlock>().await;
    let mut entries = blocks.iter().flat_map(|block| block.spec.entries());
    let Some((_, Entry::Used { attribute, .. })) = entries.next() else { panic!("no entry") };
    assert_eq!(attribute.handle(), Some("k8s-pod-network.vmi.default.vm1"));
    assert!(entries.next().is_none());
    Side::BOTH.map(|side| attribute.side(side).map(|party| (party["pod"].clone(), party["node"].clone())))
}

fn on(pod: &str, node: &str) -> Option<(String, String)> {
    Some((pod.to_owned(), node.to_owned()))
}

/// What felix does when the machine has moved.
async fn exchange(world: &World) {
    for mut block in world.list::<IPAMBlock>().await {
        for attribute in &mut block.spec.attributes {
            std::mem::swap(&mut attribute.secondary, &mut attribute.alternate_owner_attrs);
        }
        block.spec.advance();
        world.objects.put(&block);
    }
}

async fn assert_held(world: &World, way: Way, held: bool) {
    if way != Way::Fixed {
        return;
    }
    let claim = world.claim(FIXED).await.unwrap().value;
    assert_eq!(claim.owner.to_string(), "VirtualMachine default/vm1");
    assert_eq!(claim.holder.is_some(), held, "{claim:?}");
}

#[tokio::test]
async fn a_machine_keeps_its_address_over_sandboxes_pods_and_nodes_until_it_is_deleted() {
    for way in WAYS {
        let world = world(way);
        world.launcher("vm1", "aaaaa", "i1", None);
        let first = world.add("n1", A, "s1").await.unwrap();
        let address = first[0].address;
        assert_eq!(sides(&world).await, [on(A, "n1"), None]);
        let again = world.add("n1", A, "s2").await.unwrap();
        assert_eq!((again[0].address, again.len()), (address, 1));
        let full = (way == Way::CalicoIpam).then_some(32);
        assert_eq!((first[0].netmask, again[0].netmask), (None, full), "{way:?}");
        world.del("n1", A, "s1").await.unwrap();
        assert_eq!(sides(&world).await, [on(A, "n1"), None], "an earlier sandbox's DEL");
        world.del("n1", A, "s2").await.unwrap();
        assert_eq!(sides(&world).await, [None, None]);
        assert_held(&world, way, true).await;
        world.remove_pod(A);
        world.launcher("vm1", "bbbbb", "i1", None);
        assert_eq!(world.address("n2", B, "s3").await, address);
        assert_eq!(sides(&world).await, [on(B, "n2"), None]);
        world.instance("vm1", "i2", true);
        world.launcher("vm1", "ccccc", "i2", None);
        assert_eq!(world.address("n1", C, "s4").await, address, "a new instance, and the old pod not down yet");
        assert_eq!(sides(&world).await, [on(C, "n1"), None]);
        world.del("n2", B, "s3").await.unwrap();
        assert_eq!(sides(&world).await, [on(C, "n1"), None], "another pod's DEL");
        world.assert_sound().await;
        world.delete_machine("vm1");
        world.del("n1", C, "s4").await.unwrap();
        assert!(world.allocated().await.is_empty());
        assert!(world.list::<IPAMHandle>().await.is_empty());
        assert_held(&world, way, false).await;
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn both_sides_of_a_live_migration_have_the_address_and_each_leaves_its_own() {
    for (way, source_first) in WAYS.into_iter().flat_map(|way| [(way, true), (way, false)]) {
        let world = world(way);
        world.launcher("vm1", "aaaaa", "i1", None);
        let address = world.address("n1", A, "s1").await;
        world.launcher("vm1", "bbbbb", "i1", Some("m1"));
        let given = world.add("n2", B, "t1").await.unwrap();
        assert_eq!((given.len(), given[0].address, given[0].target), (1, address, true));
        assert_eq!(sides(&world).await, [on(A, "n1"), on(B, "n2")]);
        world.assert_sound().await;
        if source_first {
            exchange(&world).await;
            world.del("n1", A, "s1").await.unwrap();
            assert_eq!(sides(&world).await, [on(B, "n2"), None]);
            world.del("n2", B, "t1").await.unwrap();
        } else {
            world.del("n2", B, "t1").await.unwrap();
            assert_eq!(sides(&world).await, [on(A, "n1"), None], "the migration failed");
            world.launcher("vm1", "ccccc", "i1", Some("m2"));
            assert_eq!(world.address("n2", C, "t2").await, address);
            world.del("n1", A, "s1").await.unwrap();
            assert_eq!(sides(&world).await, [None, on(C, "n2")]);
            world.delete_machine("vm1");
            world.del("n1", A, "s1").await.unwrap();
            assert_held(&world, way, true).await;
            world.del("n2", C, "t2").await.unwrap();
            assert!(world.allocated().await.is_empty());
            assert_held(&world, way, false).await;
            continue;
        }
        assert_eq!(sides(&world).await, [None, None]);
        assert_held(&world, way, true).await;
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn a_target_without_a_source_is_refused_and_so_is_a_pod_without_its_instance() {
    let world = world(Way::CalicoIpam);
    world.launcher("vm1", "bbbbb", "i1", Some("m1"));
    let error = world.add("n2", B, "t1").await.unwrap_err().to_string();
    assert!(error.contains("default/vm1"), "{error}");
    world.launcher("vm1", "aaaaa", "i9", None);
    let error = world.add("n1", A, "s1").await.unwrap_err().to_string();
    assert!(error.contains("i1") && error.contains("i9"), "{error}");
    assert!(world.objects.remove::<VirtualMachineInstance>(Some("default"), "vm1"));
    let error = world.add("n1", A, "s1").await.unwrap_err().to_string();
    assert!(error.contains("VirtualMachineInstance default/vm1"), "{error}");
    assert!(world.allocated().await.is_empty());
    assert!(world.list::<IPAMHandle>().await.is_empty());
}

#[tokio::test]
async fn where_machines_do_not_keep_addresses_a_pod_is_a_pod_and_no_target_starts() {
    for way in WAYS {
        let world = world(way);
        world.config(
            json!({"strictAffinity": false, "autoAllocateBlocks": true, "kubeVirtVMAddressPersistence": "Disabled"}),
        );
        world.launcher("vm1", "aaaaa", "i1", None);
        world.add("n1", A, "s1").await.unwrap();
        assert_eq!(world.allocated().await[0].1, "k8s-pod-network.s1");
        world.launcher("vm1", "bbbbb", "i1", Some("m1"));
        let error = world.add("n2", B, "t1").await.unwrap_err().to_string();
        assert!(error.contains("kubeVirtVMAddressPersistence"), "{error}");
        world.del("n1", A, "s1").await.unwrap();
        assert!(world.allocated().await.is_empty());
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn an_instance_without_a_machine_takes_its_address_along_and_the_del_of_a_pod_that_is_gone_succeeds() {
    let world = World::new();
    world.instance("vm1", "i1", false);
    world.launcher("vm1", "aaaaa", "i1", None);
    world.add("n1", A, "s1").await.unwrap();
    world.delete_instance("vm1", "i1");
    world.remove_pod(A);
    world.del("n1", A, "s1").await.unwrap();
    assert!(world.allocated().await.is_empty(), "by the pod's name");
    world.del("n1", A, "s1").await.unwrap();
    world.assert_sound().await;
}

#[tokio::test]
async fn two_pods_of_a_machine_that_start_at_once_have_one_address() {
    for way in WAYS {
        let world = world(way);
        world.launcher("vm1", "aaaaa", "i1", None);
        world.launcher("vm1", "bbbbb", "i1", None);
        let (a, b) = tokio::join!(world.add("n1", A, "s1"), world.add("n2", B, "s2"));
        assert_eq!(a.unwrap()[0].address, b.unwrap()[0].address);
        assert_eq!(world.allocated().await.len(), 1);
        world.assert_sound().await;
    }
}

/// The pod that made the handle stands still before its block's write; the other one records in the block that the handle
/// names, and what comes late finds it there.
#[tokio::test(start_paused = true)]
async fn a_pod_that_records_late_finds_what_the_other_one_recorded() {
    let world = world(Way::Range);
    world.launcher("vm1", "aaaaa", "i1", None);
    world.launcher("vm1", "bbbbb", "i1", None);
    let writes = std::sync::atomic::AtomicUsize::new(0);
    let faults = Faults::new(move |call: &Call| {
        let is_write = call.verb == "update" && call.object.starts_with("ipamblocks");
        let is_first = is_write && writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        is_first.then_some(kube_ipam::store::faulty::Fault::Pause(std::time::Duration::from_secs(4)))
    });
    let (slow, net) = (world.faulty(&faults), world.net());
    let (a, b) = tokio::join!(common::add(&slow, &net, "n1", A, "s1"), async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        world.add("n2", B, "s2").await
    });
    assert_eq!(a.unwrap()[0].address, b.unwrap()[0].address);
    assert_eq!(world.allocated().await.len(), 1);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_machine_whose_template_names_another_address_gets_it_once_its_old_pod_is_down() {
    let world = world(Way::Fixed);
    world.launcher("vm1", "aaaaa", "i1", None);
    world.add("n1", A, "s1").await.unwrap();
    world.machine("vm1", json!({"kube-ipam.ip": "10.244.0.217"}));
    world.launcher("vm1", "bbbbb", "i1", None);
    let error = world.add("n2", B, "s2").await.unwrap_err().to_string();
    assert!(error.contains(FIXED) && error.contains(A), "{error}");
    assert_eq!(sides(&world).await, [on(A, "n1"), None]);
    world.del("n1", A, "s1").await.unwrap();
    world.remove_pod(A);
    assert_eq!(world.address("n2", B, "s2").await, ip("10.244.0.217"));
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
    world.assert_sound().await;
}

#[tokio::test]
async fn a_fixed_address_of_a_stopped_machine_is_nobody_elses() {
    let world = world(Way::Fixed);
    world.launcher("vm1", "aaaaa", "i1", None);
    world.add("n1", A, "s1").await.unwrap();
    world.del("n1", A, "s1").await.unwrap();
    world.remove_pod(A);
    world.node("n1", "Unknown");
    world.fixed("web", "app", FIXED);
    let error = world.add("n2", "web", "c1").await.unwrap_err().to_string();
    assert!(error.contains("VirtualMachine default/vm1"), "{error}");
    assert_eq!(sides(&world).await, [None, None]);
    assert_held(&world, Way::Fixed, true).await;
}

#[tokio::test]
async fn an_add_that_is_given_up_leaves_the_machine_what_it_had() {
    for way in WAYS {
        let world = world(way);
        world.launcher("vm1", "aaaaa", "i1", None);
        let net = world.net();
        let given_up = kube_ipam::driver::Attachment { cancelled: &|| true, ..attachment(&net, "n1", A, "s1") };
        world.driver().add(&given_up).await.unwrap_err();
        assert!(world.allocated().await.is_empty() && world.list::<IPAMHandle>().await.is_empty());
        let address = world.address("n1", A, "s1").await;
        world.del("n1", A, "s1").await.unwrap();
        world.driver().add(&given_up).await.unwrap_err();
        assert_eq!(world.allocated().await[0].0, address);
        assert_eq!(sides(&world).await, [None, None]);
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn check_and_gc_know_the_pods_of_a_machine() {
    let world = world(Way::Fixed);
    world.launcher("vm1", "aaaaa", "i1", None);
    let address = world.address("n1", A, "s1").await;
    let net: NetConf = world.net();
    let of = |container| attachment(&net, "n1", A, container);
    assert_eq!(world.driver().check(&of("s1"), &[address]).await.unwrap(), []);
    assert_eq!(world.driver().check(&of("s0"), &[address]).await.unwrap(), [Unrecorded::NotInBlock(address)]);
    world.driver().gc(&of(""), &[]).await.unwrap();
    assert_eq!(sides(&world).await, [on(A, "n1"), None]);
    assert_held(&world, Way::Fixed, true).await;
}

/// Requests by verb and kind.
async fn requests(world: &World, pod: &str) -> BTreeMap<String, usize> {
    let counted = std::sync::Arc::new(std::sync::Mutex::new(BTreeMap::new()));
    let shared = counted.clone();
    let faults = Faults::new(move |call: &Call| {
        let kind = call.object.split(' ').next().unwrap_or_default();
        *shared.lock().unwrap().entry(format!("{} {kind}", call.verb)).or_default() += 1;
        None
    });
    let (driver, net) = (
        Driver::new(faults.wrap(world.objects.clone()), Some(world.ledger.clone()), jiff::Timestamp::now),
        world.net(),
    );
    common::add(&driver, &net, "n1", pod, "c1").await.unwrap();
    common::del(&driver, &net, "n1", pod, "c1").await.unwrap();
    common::del(&driver, &net, "n1", pod, "c1").await.unwrap();
    let counted = counted.lock().unwrap();
    counted.clone()
}

#[tokio::test]
async fn a_pod_that_runs_no_machine_costs_no_request_for_one() {
    let world = world(Way::Range);
    world.random("web");
    world.launcher("vm1", "aaaaa", "i1", None);
    let (web, machine) = (requests(&world, "web").await, requests(&world, A).await);
    assert!(web.keys().all(|call| !call.contains("owner") && !call.contains("Virtual")), "{web:?}");
    assert_eq!(web.get("get pods"), Some(&1), "ADD's: {web:?}");
    assert!(machine.values().sum::<usize>() > web.values().sum(), "{machine:?}");
}

// === the collector and `check` ===

#[tokio::test(start_paused = true)]
async fn a_collector_judges_an_address_by_its_machine_and_never_by_a_pod_alone() {
    for way in WAYS {
        let mut town = Town::with(world(way));
        let pod = town.world.launcher("vm1", "aaaaa", "i1", None);
        town.run(pod, "n1").await;
        town.assert_clean().await;
        town.world.remove_pod(A);
        town.stays_for(3600).await;
        town.assert_clean().await;
        town.del("n1", A, &format!("c-{A}")).await;
        town.stays_for(3600).await;
        town.assert_clean().await;
        town.world.remove_machine("vm1");
        let repairs = town.rounds_for(3600).await;
        assert!(town.world.allocated().await.is_empty(), "{way:?}: {repairs:#?}");
        assert!(town.world.list::<IPAMHandle>().await.is_empty());
        town.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_migration_and_their_exchange_are_no_damage() {
    for way in WAYS {
        let mut town = Town::with(world(way));
        let pod = town.world.launcher("vm1", "aaaaa", "i1", None);
        let address = town.run(pod, "n1").await;
        let target = town.world.launcher("vm1", "bbbbb", "i1", Some("m1"));
        assert_eq!(town.run(target, "n2").await, address);
        for exchanged in [false, true] {
            if exchanged {
                exchange(&town.world).await;
            }
            town.stays_for(3600).await;
            town.assert_clean().await;
        }
        town.del("n1", A, &format!("c-{A}")).await;
        town.world.remove_pod(A);
        town.stays_for(3600).await;
        town.assert_clean().await;
        assert_eq!(sides(&town.world).await, [on(B, "n2"), None]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_gone_while_a_pod_of_it_lives_keeps_its_address() {
    let mut town = Town::with(world(Way::Range));
    let pod = town.world.launcher("vm1", "aaaaa", "i1", None);
    let address = town.run(pod, "n1").await;
    town.world.remove_machine("vm1");
    town.stays_for(3600).await;
    assert_eq!(town.world.allocated().await[0].0, address);
}

/// An instance may be without a machine of its name: then it is the machine.
#[tokio::test(start_paused = true)]
async fn an_instance_alone_keeps_its_address_and_its_claim_while_it_exists() {
    for way in WAYS {
        let mut town = Town::with(world(way));
        let pod = town.world.launcher("vm1", "aaaaa", "i1", None);
        let address = town.run(pod, "n1").await;
        assert!(town.world.objects.remove::<VirtualMachine>(Some("default"), "vm1"));
        town.world.instance("vm1", "i1", false);
        town.world.remove_pod(A);
        town.stays_for(3600).await;
        assert_eq!(town.world.allocated().await[0].0, address, "{way:?}");
        town.assert_clean().await;
    }
}

//! The driver over a cluster in memory: what pods get, keep and lose.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use calico::{Affinity, AffinityState, BlockAffinity, IPAMBlock, IPAMBlockSpec, IPAMHandle, IPPool, IPReservation};
use common::{World, attachment, ip, object};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube_ipam::claim::Claim;
use kube_ipam::driver::{Attachment, Driver, Error, PodRef, Unrecorded};
use kube_ipam::store::cached::{Cached, Shelves};
use kube_ipam::store::faulty::{Call, Fault, Faults};
use kube_ipam::store::{Failure, Ledger as _};
use serde_json::json;

#[tokio::test]
async fn a_random_pod_gets_an_address_from_the_range_and_gives_it_back() {
    let world = World::new();
    world.random("a");
    let address = world.address("n1", "a", "c1").await;
    assert!(world.net().ipam.v4.unwrap().permits_random(address), "{address}");
    world.assert_sound().await;
    assert_eq!(world.allocated().await, [(address, "k8s-pod-network.c1".to_owned())]);
    world.del("n1", "a", "c1").await.unwrap();
    assert!(world.allocated().await.is_empty());
    assert!(world.list::<IPAMHandle>().await.is_empty());
    world.assert_sound().await;
}

/// Whichever of the range's blocks the node has from a Calico before v3.31, that is the one that it uses.
#[tokio::test]
async fn a_block_whose_affinity_has_no_labels_is_used_before_another_is_claimed() {
    for third in [0, 64, 128, 192] {
        let world = World::new();
        let (owner, cidr) = (Affinity::host("n1"), format!("10.244.0.{third}/26").parse().unwrap());
        let mut old = BlockAffinity::pending(&owner, &cidr).with_state(AffinityState::Confirmed);
        (old.metadata.labels, old.metadata.annotations, old.spec.type_) = (None, None, None);
        world.objects.put(&old);
        world.objects.put(&IPAMBlockSpec::new(cidr, &owner, Timestamp::UNIX_EPOCH).object());
        for pod in ["a", "b"] {
            world.random(pod);
            assert!(cidr.contains(world.address("n1", pod, pod).await), "{cidr}");
        }
        let affinities = world.list::<BlockAffinity>().await;
        assert_eq!((affinities.len(), affinities[0].is_labelled()), (1, true), "{cidr}");
        // Another node's are left alone, and not taken for its own.
        world.random("c");
        assert!(!cidr.contains(world.address("n2", "c", "c").await), "{cidr}");
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn a_del_without_an_add_and_a_second_del_write_nothing() {
    let world = World::new();
    world.random("a");
    let before = world.objects.dump();
    world.del("n1", "a", "never").await.unwrap();
    assert_eq!(world.objects.dump(), before);
    world.add("n1", "a", "c1").await.unwrap();
    world.del("n1", "a", "c1").await.unwrap();
    let before = world.objects.dump();
    world.del("n1", "a", "c1").await.unwrap();
    assert_eq!(world.objects.dump(), before);
}

#[tokio::test]
async fn an_add_repeated_for_the_same_container_gives_the_same_answer_and_one_allocation() {
    let world = World::new();
    world.random("a");
    world.fixed("f", "app", "10.244.0.216");
    for pod in ["a", "f"] {
        let first = world.add("n1", pod, &format!("c-{pod}")).await.unwrap();
        let second = world.add("n1", pod, &format!("c-{pod}")).await.unwrap();
        assert_eq!(first, second);
    }
    assert_eq!(world.allocated().await.len(), 2);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_fixed_pod_gets_its_address_and_the_records_say_so() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    let assigned = world.add("n1", "f-1", "c1").await.unwrap();
    assert_eq!((assigned[0].address, assigned[0].fixed), (ip("10.244.0.216"), true));
    let claim = world.claim("10.244.0.216").await.unwrap().value;
    assert_eq!(claim.owner.to_string(), "Deployment default/app");
    let holder = claim.holder.unwrap();
    assert_eq!(
        (holder.pod_uid.as_str(), holder.container_id.as_str(), holder.node.as_str()),
        ("uid-of-f-1", "c1", "n1")
    );
    assert_eq!(holder.node_uid.as_deref(), Some("uid-of-n1"));
    assert_eq!(world.reserved().await, ["10.244.0.216/32"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn after_deletion_the_next_pod_of_the_owner_has_the_address_on_another_node() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.del("n1", "f-1", "c1").await.unwrap();
    world.remove_pod("f-1");
    let claim = world.claim("10.244.0.216").await.unwrap().value;
    assert!(claim.holder.is_none());
    world.fixed("f-2", "app", "10.244.0.216");
    assert_eq!(world.address("n2", "f-2", "c2").await, ip("10.244.0.216"));
    // The block stays n1's; n2 borrows, and says so where felix looks.
    let blocks = world.list::<IPAMBlock>().await;
    assert_eq!(blocks[0].spec.host(), Some("n1"));
    assert_eq!(blocks[0].spec.attributes[0].secondary("node"), Some("n2"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_new_sandbox_of_the_same_pod_replaces_the_old_one_whose_del_is_then_a_no_op() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    assert_eq!(world.address("n1", "f-1", "c2").await, ip("10.244.0.216"));
    world.assert_sound().await;
    let before = (world.objects.dump(), world.claim("10.244.0.216").await);
    world.del("n1", "f-1", "c1").await.unwrap();
    assert_eq!((world.objects.dump(), world.claim("10.244.0.216").await), before);
    assert_eq!(before.1.unwrap().value.generation, 2);
}

#[tokio::test]
async fn a_stale_del_after_the_address_moved_on_changes_nothing() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.remove_pod("f-1");
    world.node("n1", "Unknown");
    world.fixed("f-2", "app", "10.244.0.216");
    world.add("n2", "f-2", "c2").await.unwrap();
    let before = (world.objects.dump(), world.claim("10.244.0.216").await);
    world.del("n1", "f-1", "c1").await.unwrap();
    assert_eq!((world.objects.dump(), world.claim("10.244.0.216").await), before);
    world.assert_sound().await;
}

#[tokio::test]
async fn another_owner_is_refused_by_name_until_the_first_is_gone() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.fixed("g-1", "other", "10.244.0.216");
    let before = world.objects.dump();
    let error = world.add("n2", "g-1", "c2").await.unwrap_err().to_string();
    for part in ["10.244.0.216", "Deployment default/app", "f-1", "n1"] {
        assert!(error.contains(part), "{error:?} does not name {part}");
    }
    assert_eq!(world.objects.dump(), before);

    world.del("n1", "f-1", "c1").await.unwrap();
    world.remove_pod("f-1");
    let error = world.add("n2", "g-1", "c2").await.unwrap_err().to_string();
    assert!(error.contains("nobody"), "{error}");
    assert!(world.objects.remove::<k8s_openapi::api::apps::v1::Deployment>(Some("default"), "app"));
    assert_eq!(world.address("n2", "g-1", "c2").await, ip("10.244.0.216"));
    assert_eq!(world.claim("10.244.0.216").await.unwrap().value.owner.name, "other");
    world.assert_sound().await;
}

#[tokio::test]
async fn a_namespace_has_only_the_addresses_that_it_is_allowed() {
    let mut world = World::new();
    let namespace = |annotations: serde_json::Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "annotations": annotations}});
    world.put::<Namespace>(namespace(json!({"kube-ipam.allowed": "10.244.0.192/27"})));
    world.fixed("f-1", "app", "10.244.0.216");
    assert_eq!(world.address("n1", "f-1", "c1").await, ip("10.244.0.216"));
    world.fixed("g-1", "other", "10.244.0.217,10.244.0.230");
    let before = world.objects.dump();
    let error = world.add("n1", "g-1", "c2").await.unwrap_err().to_string();
    assert!(error.contains("10.244.0.230 is not allowed in namespace default"), "{error}");
    assert_eq!(world.objects.dump(), before);
    // Random addresses are nobody's in particular.
    world.random("r-1");
    world.add("n1", "r-1", "c3").await.unwrap();
    // Without an annotation it depends on the configuration.
    world.put::<Namespace>(namespace(json!({})));
    world.add("n1", "g-1", "c2").await.unwrap();
    world.del("n1", "g-1", "c2").await.unwrap();
    world.conf["ipam"]["fixedAddresses"] = "allowedNamespaces".into();
    let error = world.add("n1", "g-1", "c2").await.unwrap_err().to_string();
    assert!(error.contains("namespace default, which has no annotation kube-ipam.allowed"), "{error}");
    // What runs is not taken away: DEL asks nobody.
    world.del("n1", "f-1", "c1").await.unwrap();
    world.assert_sound().await;
}

#[tokio::test]
async fn an_owner_that_is_only_a_name_is_never_believed_gone() {
    let world = World::new();
    world.pod("m-1", "app", "h1", json!({"kube-ipam.ip": "10.244.0.216", "kube-ipam.owner": "mail"}));
    world.add("n1", "m-1", "c1").await.unwrap();
    world.del("n1", "m-1", "c1").await.unwrap();
    world.remove_pod("m-1");
    world.fixed("g-1", "other", "10.244.0.216");
    let Err(Error::Impasse(impasse)) = world.add("n2", "g-1", "c2").await else { panic!("expected an impasse") };
    let remedies = impasse.remedies();
    assert!(remedies.contains("kube-ipam release 10.244.0.216 --claim"), "{remedies}");
    assert_eq!(world.claim("10.244.0.216").await.unwrap().value.owner.name, "mail");
    world.pod("m-2", "another", "h1", json!({"kube-ipam.ip": "10.244.0.216", "kube-ipam.owner": "mail"}));
    assert_eq!(world.address("n2", "m-2", "c3").await, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_surge_pod_that_waits_for_the_pod_that_waits_for_it_is_told_the_remedy() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.pod("f-2", "app", "h2", json!({"kube-ipam.ip": "10.244.0.216"}));
    let Err(Error::Impasse(impasse)) = world.add("n2", "f-2", "c2").await else { panic!("expected an impasse") };
    assert!(impasse.remedies().contains("maxSurge to 0"), "{}", impasse.remedies());
    world.pod("f-3", "app", "h1", json!({"kube-ipam.ip": "10.244.0.216"}));
    let Err(Error::Impasse(impasse)) = world.add("n2", "f-3", "c3").await else { panic!("expected an impasse") };
    assert!(impasse.remedies().contains("more replicas than addresses"), "{}", impasse.remedies());
    world.assert_sound().await;
}

#[tokio::test]
async fn an_add_waits_for_the_release_of_a_pod_that_is_going_away() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    let mut leaving = world.fixed("f-1", "app", "10.244.0.216");
    leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    world.objects.put(&leaving);
    world.fixed("f-2", "app", "10.244.0.216");
    let waiting = world.address("n2", "f-2", "c2");
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.del("n1", "f-1", "c1").await.unwrap();
    };
    let (address, ()) = tokio::join!(waiting, release);
    assert_eq!(address, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_holder_that_does_not_let_go_is_named_with_node_and_state() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    let mut leaving = world.fixed("f-1", "app", "10.244.0.216");
    leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    world.objects.put(&leaving);
    world.fixed("f-2", "app", "10.244.0.216");
    let error = world.add("n2", "f-2", "c2").await.unwrap_err().to_string();
    for part in ["pod f-1", "node n1", "terminating", "Ready"] {
        assert!(error.contains(part), "{error:?} does not name {part}");
    }
}

#[tokio::test]
async fn the_address_of_a_dead_node_is_kept_until_there_is_proof_and_then_moves_once() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.node("n1", "Unknown");
    world.fixed("f-2", "app", "10.244.0.216");
    // Its pod object exists: nothing proves that the pod is dead.
    assert!(matches!(world.add("n2", "f-2", "c2").await, Err(Error::Impasse(_))));
    world.remove_pod("f-1");
    assert_eq!(world.address("n2", "f-2", "c2").await, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn under_the_policy_node_fenced_a_forced_deletion_is_no_proof() {
    let mut world = World::new();
    world.conf["ipam"]["takeover"] = json!({"proof": "nodeFenced", "graceSeconds": 0});
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.node("n1", "Unknown");
    world.remove_pod("f-1");
    world.fixed("f-2", "app", "10.244.0.216");
    let error = world.add("n2", "f-2", "c2").await.unwrap_err().to_string();
    assert!(error.contains("not fenced"), "{error}");
    world.put::<Node>(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "uid-of-n1"},
        "spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]},
    }));
    assert_eq!(world.address("n2", "f-2", "c2").await, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_node_made_again_under_the_same_name_is_another_node() {
    let mut world = World::new();
    // No time for a grace to run out in.
    world.conf["ipam"]["waitSeconds"] = json!(0);
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.remove_pod("f-1");
    world.put::<Node>(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "uid-of-the-new-n1"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }));
    world.fixed("f-2", "app", "10.244.0.216");
    assert_eq!(world.address("n2", "f-2", "c2").await, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_ready_node_has_a_grace_to_release_the_address_of_a_force_deleted_pod() {
    let mut world = World::new();
    world.conf["ipam"]["waitSeconds"] = json!(0);
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    world.remove_pod("f-1");
    world.fixed("f-2", "app", "10.244.0.216");
    let error = world.add("n2", "f-2", "c2").await.unwrap_err().to_string();
    assert!(error.contains("has until"), "{error}");
    assert!(world.claim("10.244.0.216").await.unwrap().value.contested.is_some());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(world.address("n2", "f-2", "c2").await, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_list_means_one_of_these_and_a_statefulset_takes_the_nth() {
    let world = World::new();
    let list = "10.244.0.220,10.244.0.221";
    for (pod, node) in [("f-1", "n1"), ("f-2", "n2")] {
        world.fixed(pod, "app", list);
        world.add(node, pod, &format!("c-{pod}")).await.unwrap();
    }
    let addresses: Vec<_> = world.allocated().await.into_iter().map(|(a, _)| a.to_string()).collect();
    assert_eq!(addresses, ["10.244.0.220", "10.244.0.221"]);
    for ordinal in [1, 0] {
        world.put::<Pod>(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("db-{ordinal}"), "namespace": "default", "uid": format!("uid-of-db-{ordinal}"),
                "labels": {"apps.kubernetes.io/pod-index": ordinal.to_string()},
                "annotations": {"kube-ipam.ip": "10.244.0.230,10.244.0.231"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true}],
            },
        }));
        let address = world.address("n1", &format!("db-{ordinal}"), &format!("db{ordinal}")).await;
        assert_eq!(address.to_string(), format!("10.244.0.23{ordinal}"));
    }
    world.assert_sound().await;
}

#[tokio::test]
async fn random_pods_never_get_a_reserved_or_a_fixed_address_even_while_nobody_holds_it() {
    let mut world = World::new();
    world.conf["ipam"]["rangeStart"] = json!("10.244.0.10");
    world.conf["ipam"]["rangeEnd"] = json!("10.244.0.13");
    world.fixed("f", "app", "10.244.0.12");
    world.add("n1", "f", "cf").await.unwrap();
    world.del("n1", "f", "cf").await.unwrap();
    world.put::<IPReservation>(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPReservation", "metadata": {"name": "admin"},
        "spec": {"reservedCIDRs": ["10.244.0.13"]},
    }));
    for (pod, expected) in [("a", "10.244.0.10"), ("b", "10.244.0.11")] {
        world.random(pod);
        assert_eq!(world.address("n1", pod, pod).await, ip(expected));
    }
    world.random("c");
    let before = world.objects.dump();
    let error = world.add("n1", "c", "c").await.unwrap_err().to_string();
    for part in ["10.244.0.10 to 10.244.0.13", "4 in all", "2 in use", "2 reserved"] {
        assert!(error.contains(part), "{error:?} does not say {part}");
    }
    assert_eq!(world.objects.dump(), before);
    assert!(world.driver().status(&world.net()).await.is_err());
    world.assert_sound().await;
}

#[tokio::test]
async fn when_its_blocks_are_used_up_a_node_borrows_unless_strict_affinity_forbids_it() {
    let mut world = World::new();
    world.conf["ipam"]["rangeStart"] = json!("10.244.0.64");
    world.conf["ipam"]["rangeEnd"] = json!("10.244.0.127");
    world.random("a");
    world.random("b");
    world.random("c");
    world.add("n1", "a", "a").await.unwrap();
    let borrowed = world.address("n2", "b", "b").await;
    let blocks = world.list::<IPAMBlock>().await;
    assert_eq!((blocks.len(), blocks[0].spec.host()), (1, Some("n1")));
    assert!(blocks[0].spec.ordinal(borrowed).is_some());
    world.config(json!({"strictAffinity": true, "autoAllocateBlocks": true}));
    let error = world.add("n2", "c", "c").await.unwrap_err().to_string();
    assert!(error.contains("strictAffinity") && error.contains("62 free in blocks of other nodes"), "{error}");
    world.assert_sound().await;
}

#[tokio::test]
async fn under_strict_affinity_a_fixed_address_in_another_nodes_block_is_refused_with_the_owner() {
    let world = World::new();
    world.config(json!({"strictAffinity": true, "autoAllocateBlocks": true}));
    world.fixed("f-1", "app", "10.244.0.216");
    world.fixed("g-1", "other", "10.244.0.217");
    world.add("n1", "f-1", "c1").await.unwrap();
    let error = world.add("n2", "g-1", "c2").await.unwrap_err().to_string();
    assert!(error.contains("host:n1") && error.contains("10.244.0.192/26"), "{error}");
    assert!(world.claim("10.244.0.217").await.is_none(), "a failed ADD left its claim");
    assert_eq!(world.reserved().await, ["10.244.0.216/32"]);
    world.assert_sound().await;
}

#[tokio::test]
async fn claiming_stops_at_max_blocks_per_host() {
    let mut world = World::new();
    world.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/16", "blockSize": 30}));
    world.conf["ipam"]["rangeEnd"] = json!("10.244.0.100");
    world.config(json!({"strictAffinity": true, "autoAllocateBlocks": true, "maxBlocksPerHost": 1}));
    let mut refused = None;
    for n in 0..5 {
        let pod = format!("p{n}");
        world.random(&pod);
        if let Err(error) = world.add("n1", &pod, &pod).await {
            refused = Some(error.to_string());
            break;
        }
    }
    assert!(refused.unwrap().contains("maxBlocksPerHost is 1"));
    assert_eq!(world.list::<BlockAffinity>().await.len(), 1);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_disabled_pool_keeps_its_pods_and_takes_no_new_ones() {
    let world = World::new();
    world.random("a");
    world.fixed("f", "app", "10.244.0.216");
    world.add("n1", "a", "a").await.unwrap();
    world.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/16", "blockSize": 26, "disabled": true}));
    world.random("b");
    for pod in ["b", "f"] {
        let error = world.add("n1", pod, pod).await.unwrap_err().to_string();
        assert!(error.contains("disabled"), "{error}");
    }
    world.del("n1", "a", "a").await.unwrap();
    assert!(world.allocated().await.is_empty());
    assert!(world.objects.remove::<IPPool>(None, "default-ipv4-ippool"));
    let error = world.add("n1", "b", "b").await.unwrap_err().to_string();
    assert!(error.contains("10.244.0.0/16") && error.contains("none"), "{error}");
}

#[tokio::test]
async fn a_subnet_without_a_pool_is_an_error_that_names_both() {
    let world = World::new();
    world.pool("default-ipv4-ippool", json!({"cidr": "10.245.0.0/16", "blockSize": 26}));
    world.random("a");
    let error = world.add("n1", "a", "a").await.unwrap_err().to_string();
    assert!(error.contains("subnet 10.244.0.0/16") && error.contains("10.245.0.0/16"), "{error}");
}

#[tokio::test]
async fn dual_stack_is_all_or_nothing() {
    let mut world = World::new();
    world.pool("v6", json!({"cidr": "fd00:10::/112", "blockSize": 122}));
    world.conf["ipam"] = json!({
        "type": "kube-ipam", "name": "kube-subnet", "etcdConfig": {"etcdURL": "http://127.0.0.1:2379"},
        "ranges": [
            [{"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200"}],
            [{"subnet": "fd00:10::/112", "rangeStart": "fd00:10::10", "rangeEnd": "fd00:10::10"}],
        ],
    });
    world.random("a");
    world.random("b");
    let both = world.add("n1", "a", "a").await.unwrap();
    assert!(both[0].address.is_ipv4() && both[1].address == ip("fd00:10::10"));
    assert_eq!(world.list::<IPAMHandle>().await[0].spec.block.len(), 2);
    world.assert_sound().await;
    let error = world.add("n1", "b", "b").await.unwrap_err().to_string();
    assert!(error.contains("IPv6"), "{error}");
    assert_eq!(world.allocated().await.len(), 2);
    world.assert_sound().await;
    // A fixed address in one family leaves the other to chance, and takes both or none.
    world.fixed("f", "app", "10.244.0.216");
    assert!(world.add("n1", "f", "f").await.is_err());
    assert!(world.claim("10.244.0.216").await.is_none());
    world.del("n1", "a", "a").await.unwrap();
    let both = world.add("n1", "f", "f").await.unwrap();
    assert_eq!((both[0].fixed, both[1].fixed), (true, false));
    world.assert_sound().await;
}

#[tokio::test]
async fn pools_follow_the_annotations_of_pod_and_namespace_and_the_nodes_labels() {
    let mut world = World::new();
    world.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/24", "blockSize": 26, "nodeSelector": "zone == 'a'"}));
    world.pool("second", json!({"cidr": "10.244.1.0/24", "blockSize": 26, "nodeSelector": "zone == 'b'"}));
    world.conf["ipam"] = json!({"type": "kube-ipam", "subnet": "10.244.0.0/23"});
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        world.put::<Node>(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "uid": node, "labels": {"zone": zone}},
        }));
    }
    world.random("a");
    world.random("b");
    assert!(world.address("n1", "a", "a").await.to_string().starts_with("10.244.0."));
    assert!(world.address("n2", "b", "b").await.to_string().starts_with("10.244.1."));
    world.pod("c", "app", "h", json!({"cni.projectcalico.org/ipv4pools": "[\"second\"]"}));
    assert!(world.address("n1", "c", "c").await.to_string().starts_with("10.244.1."));
    world.put::<Namespace>(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "default", "annotations": {"cni.projectcalico.org/ipv4pools": "[\"nowhere\"]"}}}));
    world.random("d");
    let error = world.add("n1", "d", "d").await.unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    world.assert_sound().await;
}

#[tokio::test]
async fn a_cooldown_keeps_an_address_from_others_but_not_from_its_owner() {
    let mut world = World::new();
    world.conf["ipam"]["rangeStart"] = json!("10.244.0.70");
    world.conf["ipam"]["rangeEnd"] = json!("10.244.0.70");
    world.config(json!({"strictAffinity": false, "autoAllocateBlocks": true, "ipCooldownSeconds": 60}));
    world.random("a");
    world.add("n1", "a", "a").await.unwrap();
    world.del("n1", "a", "a").await.unwrap();
    world.random("b");
    assert!(matches!(world.add("n1", "b", "b").await, Err(Error::Exhausted(_))));
    world.fixed("f", "app", "10.244.0.216");
    world.add("n1", "f", "f1").await.unwrap();
    world.del("n1", "f", "f1").await.unwrap();
    assert_eq!(world.address("n1", "f", "f2").await, ip("10.244.0.216"));
    world.assert_sound().await;
}

#[tokio::test]
async fn an_address_that_another_writer_took_is_refused_with_its_user_and_the_claim_is_not_kept() {
    let world = World::new();
    world.fixed("f", "app", "10.244.0.216");
    let mut calico_ipam = world.clone();
    calico_ipam.conf["ipam"] = json!({"type": "calico-ipam"});
    world.random("intruder");
    let net = calico_ipam.net();
    let driver = world.driver();
    let mut taking = attachment(&net, "n1", "intruder", "x");
    let wanted = [ip("10.244.0.216")];
    taking.explicit = &wanted;
    driver.add(&taking).await.unwrap();
    let error = world.add("n2", "f", "c").await.unwrap_err().to_string();
    assert!(error.contains("default/intruder") && error.contains("n1"), "{error}");
    assert!(world.claim("10.244.0.216").await.is_none());
    world.assert_sound().await;
}

#[tokio::test]
async fn a_block_marked_deleted_is_as_absent_and_its_deletion_is_finished() {
    let world = World::new();
    world.random("a");
    let first = world.address("n1", "a", "a").await;
    world.del("n1", "a", "a").await.unwrap();
    let mut block = world.list::<IPAMBlock>().await.remove(0);
    let old_uid = block.metadata.uid.clone();
    block.spec.deleted = true;
    world.objects.put(&block);
    world.random("b");
    let second = world.address("n1", "b", "b").await;
    assert_eq!(first, second);
    let block = world.list::<IPAMBlock>().await.remove(0);
    assert!(!block.spec.deleted && block.metadata.uid != old_uid);
    world.assert_sound().await;
}

#[tokio::test]
async fn an_empty_block_of_another_node_is_taken_back_after_a_minute() {
    let mut world = World::new();
    world.config(json!({"strictAffinity": true, "autoAllocateBlocks": true}));
    world.conf["ipam"]["rangeStart"] = json!("10.244.0.64");
    world.conf["ipam"]["rangeEnd"] = json!("10.244.0.127");
    world.random("a");
    world.add("n1", "a", "a").await.unwrap();
    world.del("n1", "a", "a").await.unwrap();
    world.random("b");
    assert!(world.add("n2", "b", "b").await.is_err(), "a young block was taken");
    let mut block = world.list::<IPAMBlock>().await.remove(0);
    block.spec.affinity_claim_time = Some("2026-01-01T00:00:00Z".into());
    world.objects.put(&block);
    world.add("n2", "b", "b").await.unwrap();
    let block = world.list::<IPAMBlock>().await.remove(0);
    assert_eq!(block.spec.host(), Some("n2"));
    assert_eq!(world.list::<BlockAffinity>().await.len(), 1);
    world.assert_sound().await;
}

#[tokio::test]
async fn a_warm_node_reads_at_most_nine_objects_and_writes_two() {
    let world = World::new();
    world.random("warm-up");
    world.fixed("f-0", "app", "10.244.0.216");
    world.add("n1", "warm-up", "w").await.unwrap();
    world.add("n1", "f-0", "f0").await.unwrap();
    world.del("n1", "f-0", "f0").await.unwrap();
    world.random("a");
    for (pod, transactions) in [("a", 0), ("f-0", 1)] {
        let faults = Faults::none();
        common::add(&world.faulty(&faults), &world.net(), "n1", pod, &format!("c-{pod}")).await.unwrap();
        let calls = faults.calls();
        let kubernetes = || calls.iter().filter(|c| !c.object.starts_with("claim"));
        let reads = kubernetes().filter(|c| !c.is_write()).count();
        let writes = kubernetes().filter(|c| c.is_write()).count();
        let txns = calls.iter().filter(|c| c.verb == "txn").count();
        assert!(reads <= 9, "{reads} reads: {calls:#?}");
        assert_eq!((writes, txns), (2, transactions), "{calls:#?}");
        assert!(!calls.iter().any(|c| c.verb == "list" && c.object == "ipamblocks"), "{calls:#?}");
    }
}

fn valid(container: &str, interface: &str) -> kube_ipam::netconf::Attachment {
    kube_ipam::netconf::Attachment { container_id: container.into(), ifname: interface.into() }
}

#[tokio::test]
async fn gc_compares_the_interface_where_it_is_recorded() {
    let world = World::new();
    for pod in ["a", "b", "calicos"] {
        world.random(pod);
    }
    world.add("n1", "a", "a").await.unwrap();
    let kept = world.address("n1", "b", "b").await;
    let calicos = world.address("n1", "calicos", "calicos").await;
    // An entry as calico-ipam writes it names no interface.
    let mut block = world.list::<IPAMBlock>().await.remove(0);
    let of_calico = |a: &&mut calico::AllocationAttribute| a.handle() == Some("k8s-pod-network.calicos");
    let attribute = block.spec.attributes.iter_mut().find(of_calico).unwrap();
    attribute.secondary.as_mut().unwrap().remove(kube_ipam::driver::INTERFACE_KEY).unwrap();
    world.objects.put(&block);
    let net = world.net();
    let valid = [valid("a", "net1"), valid("b", "eth0"), valid("calicos", "net1")];
    let collected = world.driver().gc(&attachment(&net, "n1", "", "gc"), &valid).await.unwrap();
    assert_eq!(collected.iter().map(|c| c.container_id.as_str()).collect::<Vec<_>>(), ["a"]);
    let left: std::collections::BTreeSet<_> = world.allocated().await.into_iter().map(|(a, _)| a).collect();
    assert_eq!(left, [kept, calicos].into());
    world.assert_sound().await;
}

#[tokio::test]
async fn a_second_interface_of_a_container_is_refused_and_its_del_leaves_the_first_one_alone() {
    let world = World::new();
    world.fixed("f", "app", "10.244.0.216");
    world.random("r");
    let net = world.net();
    for pod in ["f", "r"] {
        world.add("n1", pod, pod).await.unwrap();
        let (allocated, claim) = (world.allocated().await, world.claim("10.244.0.216").await);
        let second = kube_ipam::driver::Attachment { interface: "net1", ..attachment(&net, "n1", pod, pod) };
        let refused = world.driver().add(&second).await.unwrap_err().to_string();
        assert!(
            refused.contains("eth0") && refused.contains("already") || refused.contains("very container"),
            "{refused}"
        );
        assert!(world.driver().del(&second).await.unwrap().is_empty());
        assert_eq!((world.allocated().await, world.claim("10.244.0.216").await), (allocated, claim));
        world.assert_sound().await;
    }
}

#[tokio::test]
async fn a_family_that_is_asked_for_and_not_configured_is_refused() {
    let world = World::new();
    let asks = |families: &str| json!({"cni.projectcalico.org/ipFamilies": families});
    world.pod("both", "app", "h1", asks(r#"["IPv4", "IPv6"]"#));
    world.pod("six", "app", "h1", asks(r#"["IPv6"]"#));
    world.pod("four", "app", "h1", asks(r#"["IPv4"]"#));
    for pod in ["both", "six"] {
        let before = world.objects.dump();
        let Err(Error::Cni(error)) = world.add("n1", pod, pod).await else { panic!("{pod} was given an address") };
        assert_eq!(error.code, 7);
        assert!(error.msg.contains("ipFamilies") && error.msg.contains("asks for IPv6"), "{error}");
        assert!(error.details.contains("IPv6 subnet"), "{error}");
        assert_eq!(world.objects.dump(), before);
    }
    world.add("n1", "four", "four").await.unwrap();
}

#[tokio::test]
async fn gc_releases_what_the_runtime_does_not_know_and_nothing_else() {
    let world = World::new();
    for pod in ["a", "b", "other"] {
        world.random(pod);
    }
    world.fixed("f", "app", "10.244.0.216");
    world.add("n1", "a", "a").await.unwrap();
    let kept = world.address("n1", "b", "b").await;
    world.add("n1", "f", "f").await.unwrap();
    let elsewhere = world.address("n2", "other", "o").await;
    let net = world.net();
    let valid = [valid("b", "eth0")];
    let collected = world.driver().gc(&attachment(&net, "n1", "", "gc"), &valid).await.unwrap();
    assert_eq!(collected.iter().map(|c| c.container_id.as_str()).collect::<Vec<_>>(), ["a", "f"]);
    let mut left: Vec<_> = world.allocated().await.into_iter().map(|(a, _)| a).collect();
    left.sort();
    let mut expected = vec![kept, elsewhere];
    expected.sort();
    assert_eq!(left, expected);
    assert!(world.claim("10.244.0.216").await.unwrap().value.holder.is_none());
    world.assert_sound().await;
}

#[tokio::test]
async fn check_finds_what_is_no_longer_on_record() {
    let world = World::new();
    world.fixed("f", "app", "10.244.0.216");
    world.add("n1", "f", "f").await.unwrap();
    let net = world.net();
    let driver = world.driver();
    let attachment = attachment(&net, "n1", "f", "f");
    let address = [ip("10.244.0.216")];
    assert!(driver.check(&attachment, &address).await.unwrap().is_empty());
    assert_eq!(driver.check(&attachment, &[ip("10.244.0.217")]).await.unwrap().len(), 1);
    world.fixed("f2", "app", "10.244.0.216");
    world.add("n1", "f", "f-again").await.unwrap();
    assert_eq!(driver.check(&attachment, &address).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_del_that_arrives_while_the_add_still_runs_leaves_nothing() {
    let world = World::new();
    world.fixed("f", "app", "10.244.0.216");
    let net = world.net();
    let mut overtaken = attachment(&net, "n1", "f", "f");
    overtaken.cancelled = &|| true;
    assert!(matches!(world.driver().add(&overtaken).await, Err(Error::Cancelled)));
    assert!(world.allocated().await.is_empty() && world.list::<IPAMHandle>().await.is_empty());
    assert!(world.claim("10.244.0.216").await.is_none());
    assert!(world.reserved().await.is_empty());
    world.assert_sound().await;
}

#[tokio::test]
async fn many_adds_at_once_on_both_nodes_never_share_an_address() {
    let world = World::new();
    let mut tasks = Vec::new();
    for n in 0..100 {
        let pod = format!("p{n}");
        world.random(&pod);
        let world = world.clone();
        let node = if n % 2 == 0 { "n1" } else { "n2" };
        tasks.push(tokio::spawn(async move { world.address(node, &pod, &pod).await }));
    }
    let mut addresses = Vec::new();
    for task in tasks {
        addresses.push(task.await.unwrap());
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 100);
    world.assert_sound().await;
}

#[tokio::test]
async fn of_two_racing_owners_exactly_one_gets_the_address() {
    for _ in 0..20 {
        let world = World::new();
        world.fixed("a", "one", "10.244.0.216");
        world.fixed("b", "two", "10.244.0.216");
        let (a, b) = tokio::join!(world.add("n1", "a", "a"), world.add("n2", "b", "b"));
        assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1);
        world.assert_sound().await;
    }
}

/// Like a network without etcdConfig on a cluster that does not serve IPClaims.
#[tokio::test]
async fn where_there_is_no_ledger_only_fixed_addresses_are_refused() {
    let world = World::new();
    world.random("a");
    world.fixed("f", "app", "10.244.0.216");
    let no_ledger = |call: &Call| matches!(call.verb, "range" | "txn").then_some(Fault::Fail(Failure::NoLedger));
    let faults = Faults::new(no_ledger);
    let (driver, net) = (world.faulty(&faults), world.net());
    let claims = || faults.calls().iter().filter(|call| call.object.starts_with("claim")).count();
    common::add(&driver, &net, "n1", "a", "c1").await.unwrap();
    assert_eq!(claims(), 0, "a random address needs no ledger");
    let error = kube_ipam::cni::CniError::from(common::add(&driver, &net, "n1", "f", "c2").await.unwrap_err());
    assert_eq!(error.code, 103, "{error}");
    assert!(error.msg.contains("IPClaim") && error.details.contains("yaml/ipclaims.yaml"), "{error}");
    driver.status(&net).await.unwrap();
    // A DEL that finds a handle with nothing in its blocks searches the ledger; here there is none to search.
    let handle = calico::IPAMHandleSpec {
        block: [("10.244.0.0/26".to_owned(), 1)].into(),
        ..calico::IPAMHandleSpec::new("k8s-pod-network.c3")
    };
    world.objects.put(&handle.object());
    common::del(&driver, &net, "n1", "a", "c3").await.unwrap();
    driver.gc(&attachment(&net, "n1", "", ""), &[]).await.unwrap();
    common::del(&driver, &net, "n1", "a", "c1").await.unwrap();
    assert!(world.allocated().await.is_empty() && world.list::<IPAMHandle>().await.is_empty());
    world.assert_sound().await;
}

/// The nodes have been told of another ledger since.
#[tokio::test]
async fn nobody_takes_an_address_by_a_claim_that_was_carried_elsewhere() {
    let world = World::new();
    world.fixed("f-1", "app", "10.244.0.216");
    world.add("n1", "f-1", "c1").await.unwrap();
    let standing = world.claim("10.244.0.216").await.unwrap();
    let closed = Claim { moved: Some("IPClaims".into()), ..standing.value };
    world.ledger.swap(closed.address, Some(standing.revision), Some(&closed)).await.unwrap();
    // A new sandbox of the holder itself, and then another pod of the owner.
    let refused = |error: Error| {
        let error = kube_ipam::cni::CniError::from(error);
        assert_eq!(error.code, 11, "{error}");
        assert!(error.msg.contains("was carried to IPClaims"), "{error}");
    };
    refused(world.add("n1", "f-1", "c2").await.unwrap_err());
    world.del("n1", "f-1", "c1").await.unwrap();
    let left = world.claim("10.244.0.216").await.unwrap().value;
    assert_eq!((left.holder, left.moved.as_deref()), (None, Some("IPClaims")));
    world.fixed("f-2", "app", "10.244.0.216");
    refused(world.add("n2", "f-2", "c3").await.unwrap_err());
    assert!(world.allocated().await.is_empty());
    world.assert_sound().await;
}

#[tokio::test]
async fn the_claim_of_a_name_is_taken_over_by_nobody() {
    let world = World::new();
    let pod = world.pod("f-1", "app", "h1", json!({"kube-ipam.ip": "10.244.0.216", "kube-ipam.owner": "licence"}));
    assert!(pod.metadata.uid.is_some());
    world.add("n1", "f-1", "c1").await.unwrap();
    world.del("n1", "f-1", "c1").await.unwrap();
    world.fixed("g-1", "other", "10.244.0.216");
    let error = world.add("n1", "g-1", "c2").await.unwrap_err();
    assert!(error.to_string().contains("belongs to Owner default/licence"), "{error}");
}

/// An agent's memory lags behind the collector, which has dropped a claim and its reservation a moment ago.
#[tokio::test]
async fn a_new_claim_does_not_believe_a_reservation_that_an_agent_remembers() {
    let w = World::new();
    w.fixed("web-1", "web", "10.244.0.77");
    let shelves = Arc::new(Shelves::new("n1"));
    let remembered: IPReservation = object(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPReservation",
        "metadata": {
            "name": "kube-ipam-10-244-0-64-26", "resourceVersion": "1", "uid": "before",
            "annotations": {"kube-ipam.ledgers": "{\"ipclaims:in-memory\":[\"10.244.0.77\"]}"},
        },
        "spec": {"reservedCIDRs": ["10.244.0.77/32"]},
    }));
    shelves.reservations.reset(shelves.reservations.begin_list(), vec![remembered]);
    let agent = Driver::new(Cached::new(w.objects.clone(), shelves), Some(w.ledger.clone()), Timestamp::now);
    common::add(&agent, &w.net(), "n1", "web-1", "c1").await.unwrap();
    assert_eq!(w.reserved().await, ["10.244.0.77/32"]);
    w.assert_sound().await;
}

/// A block was deleted by hand, or an entry released: nothing records what a pod on this node has.
#[tokio::test]
async fn an_agent_gives_nobody_an_address_that_a_pod_of_its_node_has() {
    let mut w = World::new();
    w.conf["ipam"]["rangeStart"] = json!("10.244.0.11");
    w.conf["ipam"]["rangeEnd"] = json!("10.244.0.13");
    let with_status = |name: &str, phase: &str, ip: &str, on_host: bool| -> Pod {
        object(json!({
            "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
            "spec": {"nodeName": "n1", "hostNetwork": on_host, "containers": []},
            "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]},
        }))
    };
    let remembered = vec![
        with_status("running", "Running", "10.244.0.11", false),
        with_status("finished", "Succeeded", "10.244.0.12", false),
        with_status("on-host", "Running", "10.244.0.13", true),
    ];
    let shelves = Arc::new(Shelves::new("n1"));
    shelves.pods.reset(shelves.pods.begin_list(), remembered);
    let agent = Driver::new(Cached::new(w.objects.clone(), shelves), Some(w.ledger.clone()), Timestamp::now);
    for (name, expected) in [("a", "10.244.0.12"), ("b", "10.244.0.13")] {
        w.random(name);
        assert_eq!(common::add(&agent, &w.net(), "n1", name, name).await.unwrap()[0].address, ip(expected));
    }
    w.random("c");
    let error = common::add(&agent, &w.net(), "n1", "c", "c").await.unwrap_err();
    assert!(error.to_string().contains("3 in all, 2 in use, 1 reserved"), "{error}");
    w.random("running");
    assert_eq!(common::add(&agent, &w.net(), "n1", "running", "d").await.unwrap()[0].address, ip("10.244.0.11"));
}

#[tokio::test]
async fn check_finds_what_was_put_on_record_ahead_of_the_container() {
    let w = World::new();
    w.fixed("f", "app", "10.244.0.77");
    w.random("r");
    let (net, driver) = (w.net(), w.driver());
    for pod in ["f", "r"] {
        let uid = format!("uid-of-{pod}");
        let of = |uid| Attachment {
            pod: Some(PodRef { namespace: "default", name: pod, uid: Some(uid) }),
            ..attachment(&net, "n1", pod, "c1")
        };
        let taken = driver.add(&of(&uid).ahead()).await.unwrap();
        let has: Vec<_> = taken.iter().map(|taken| taken.address).collect();
        assert_eq!(driver.check(&of(&uid), &has).await.unwrap(), [], "{pod}");
        let missing = driver.check(&of("another"), &has).await.unwrap();
        assert_eq!(missing, [Unrecorded::NotInBlock(has[0])], "{pod}");
        driver.del(&of(&uid)).await.unwrap();
        assert_eq!(driver.check(&of(&uid), &has).await.unwrap(), [Unrecorded::NoHandle("c1".into())], "{pod}");
    }
}

/// The block of one family fills up after the other family's address is on record: that one is kept, not given again.
#[tokio::test]
async fn a_pod_of_two_families_keeps_one_address_while_another_block_is_looked_for() {
    let mut w = World::new();
    // Five addresses in each block of the one, four of the other.
    let v4 = json!([{"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.11", "rangeEnd": "10.244.0.20"}]);
    let v6 = json!([{"subnet": "fd00::/120", "rangeStart": "fd00::4", "rangeEnd": "fd00::f"}]);
    w.conf["ipam"] = json!({
        "type": "kube-ipam", "etcdConfig": {"etcdURL": "http://127.0.0.1:2379"}, "ranges": [v4, v6],
    });
    w.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/16", "blockSize": 29}));
    w.pool("default-ipv6-ippool", json!({"cidr": "fd00::/120", "blockSize": 126}));
    for pod in ["a", "b", "c", "d", "e"] {
        w.random(pod);
    }
    for pod in ["a", "b", "c"] {
        w.add("n1", pod, pod).await.unwrap();
    }
    // The last address of the block goes to another pod between the reads and the writes.
    let (other, taken) = (w.clone(), AtomicBool::new(false));
    let faults = Faults::new(move |call| {
        if call.verb == "create" && call.object.starts_with("ipamhandles") && !taken.swap(true, Ordering::Relaxed) {
            other.add("n1", "e", "e").now_or_never().unwrap().unwrap();
        }
        None
    });
    let given = common::add(&w.faulty(&faults), &w.net(), "n1", "d", "d").await.unwrap();
    let mut given: Vec<_> = given.iter().map(|given| given.address).collect();
    assert!(given.len() == 2 && given[0].is_ipv4() && given[1].is_ipv6(), "{given:?}");
    let recorded = w.allocated().await.into_iter().filter(|(_, handle)| handle == "k8s-pod-network.d");
    let mut recorded: Vec<_> = recorded.map(|(address, _)| address).collect();
    given.sort();
    recorded.sort();
    assert_eq!(recorded, given);
    w.assert_sound().await;
    w.del("n1", "d", "d").await.unwrap();
    assert_eq!(w.allocated().await.len(), 8);
    w.assert_sound().await;
}

#[test]
fn a_daemonset_that_waits_for_itself_is_told_to_do_without_surge() {
    let owner = |kind: &str| json!({"namespace": "default", "group": "apps", "kind": kind, "name": "web"});
    let remedies = |kind: &str| {
        let claim = json!({
            "address": "10.244.0.216", "created": "2026-11-24T02:01:28Z", "generation": 1, "owner": owner(kind),
        });
        let blocked = kube_ipam::driver::Blocked {
            claim: serde_json::from_value(claim).unwrap(),
            obstacle: kube_ipam::claim::Obstacle::InUse,
            evidence: None,
            handover: kube_ipam::driver::Handover::None,
            same_template: None,
        };
        let (asker, pod) = (serde_json::from_value(owner(kind)).unwrap(), "web-1".into());
        kube_ipam::driver::Impasse { asker, pod, blocked: vec![blocked], waited: Duration::ZERO }.remedies()
    };
    assert!(remedies("DaemonSet").contains("updateStrategy.rollingUpdate.maxSurge to 0"), "{}", remedies("DaemonSet"));
    assert!(remedies("Job").contains("Delete the pod that holds it"), "{}", remedies("Job"));
}

const FIXED: &str = "10.244.0.216";

// === an address that is moved from one workload to another by their annotations ===

/// Deployment `app` whose template asks for `asked`.
fn deployment(world: &World, app: &str, asked: &str) {
    world.put::<k8s_openapi::api::apps::v1::Deployment>(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "template": {"metadata": {"labels": {"app": app}, "annotations": {"kube-ipam.ip": asked}}},
        },
    }));
}

/// A pod of Deployment `app`.
fn pod_of(world: &World, name: &str, app: &str, asked: &str) {
    let mut pod = world.pod(name, app, "h1", json!({"kube-ipam.ip": asked}));
    pod.metadata.labels.get_or_insert_default().insert("app".into(), app.into());
    world.objects.put(&pod);
}

#[tokio::test(start_paused = true)]
async fn an_address_passes_to_another_workload_once_its_owner_asks_for_it_no_more() {
    let world = World::new();
    let (moved, other) = (FIXED, "10.244.0.217");
    deployment(&world, "a", moved);
    pod_of(&world, "a-1", "a", moved);
    world.address("n1", "a-1", "c-a-1").await;
    // Its template is edited. As long as a pod of the one before exists, or has the address, nobody else gets it.
    deployment(&world, "a", other);
    deployment(&world, "b", moved);
    pod_of(&world, "b-1", "b", moved);
    let refused = world.add("n1", "b-1", "c-b-1").await.unwrap_err();
    assert!(refused.to_string().contains("belongs to Deployment default/a"), "{refused}");
    world.del("n1", "a-1", "c-a-1").await.unwrap();
    let refused = world.add("n1", "b-1", "c-b-1").await.unwrap_err();
    assert!(refused.to_string().contains("held by nobody"), "{refused}");
    world.remove_pod("a-1");
    assert_eq!(world.address("n1", "b-1", "c-b-1").await, ip(moved));
    assert_eq!(world.claim(moved).await.unwrap().value.owner.name, "b");
    // Back again it goes in the same way only.
    deployment(&world, "a", moved);
    pod_of(&world, "a-2", "a", moved);
    assert!(world.add("n1", "a-2", "c-a-2").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_a_person_made_stays_whatever_the_template_says() {
    let world = World::new();
    deployment(&world, "a", FIXED);
    pod_of(&world, "a-1", "a", FIXED);
    world.address("n1", "a-1", "c-a-1").await;
    world.del("n1", "a-1", "c-a-1").await.unwrap();
    world.remove_pod("a-1");
    // As `import` makes it, and as releases up to 0.3 made all.
    let mut claim = world.claim(FIXED).await.unwrap();
    assert_eq!(claim.value.origin.take().as_deref(), Some("annotation"));
    world.ledger.swap(ip(FIXED), Some(claim.revision), Some(&claim.value)).await.unwrap();
    deployment(&world, "a", "10.244.0.217");
    deployment(&world, "b", FIXED);
    pod_of(&world, "b-1", "b", FIXED);
    assert!(world.add("n1", "b-1", "c-b-1").await.is_err());
}

/// As releases of Calico before 3.0 recorded it; its DEL names no pod.
#[tokio::test]
async fn in_calicos_dialect_a_container_that_is_no_pods_gives_back_what_bears_its_id_alone() {
    let mut world = World::new();
    world.conf["ipam"] = json!({"type": "calico-ipam"});
    world.address("n1", "", "c1").await;
    for mut block in world.list::<IPAMBlock>().await {
        block.spec.attributes[0].handle_id = Some("c2".to_owned());
        world.objects.put(&block);
    }
    for mut handle in world.list::<IPAMHandle>().await {
        assert!(world.objects.remove::<IPAMHandle>(None, "k8s-pod-network.c1"));
        handle.metadata.name = Some("c2".to_owned());
        handle.spec.handle_id = "c2".to_owned();
        world.objects.put(&handle);
    }
    world.del("n1", "", "c1").await.unwrap();
    assert_eq!(world.allocated().await.len(), 1, "another container's");
    assert_eq!(world.del("n1", "", "c2").await.unwrap().len(), 1);
    assert!(world.allocated().await.is_empty() && world.list::<IPAMHandle>().await.is_empty());
    world.del("n1", "", "c2").await.unwrap();
    world.assert_sound().await;
}

//! Records that disagree: claims restored from a backup, lost, or edited by hand. Whatever they say, the entry of a pod
//! that lives is never displaced, and the claim is rewritten from that entry.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use common::town::Town;
use common::{World, attachment, ip};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube_ipam::claim::{Claim, Obstacle};
use kube_ipam::collector::Kind;
use kube_ipam::driver::{CONTAINERS_POD_KEY, Driver, Error, Impasse};
use kube_ipam::store::cached::{Cached, Shelves};
use kube_ipam::store::faulty::{Fault, Faults};
use kube_ipam::store::{Failure, Ledger as _, Swap};
use serde_json::json;

const FIXED: &str = "10.244.0.216";

/// Puts a claim in the place of what stands, as a restore from a backup does; `None` loses it.
async fn restore(world: &World, address: &str, claim: Option<&Claim>) {
    let standing = world.claim(address).await.map(|standing| standing.revision);
    let done = world.ledger.swap(ip(address), standing, claim).await.unwrap();
    assert!(matches!(done, Swap::Done(_)));
}

async fn claim(world: &World, address: &str) -> Claim {
    world.claim(address).await.unwrap().value
}

/// Pod `old` had the address and released it; pod `live` has it now. Gives the claim of the time in between.
async fn moved_on(world: &World) -> Claim {
    world.fixed("old", "app", FIXED);
    world.add("n1", "old", "c1").await.unwrap();
    world.del("n1", "old", "c1").await.unwrap();
    world.remove_pod("old");
    let backup = claim(world, FIXED).await;
    world.fixed("live", "app", FIXED);
    world.add("n1", "live", "c2").await.unwrap();
    backup
}

fn impasse(outcome: Result<Vec<kube_ipam::driver::Assigned>, Error>) -> Box<Impasse> {
    match outcome {
        Err(Error::Impasse(impasse)) => impasse,
        other => panic!("{other:?}"),
    }
}

async fn assert_live_has_it(world: &World) {
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c2".to_owned())]);
    let claim = claim(world, FIXED).await;
    assert!(claim.is_held_by("c2", "eth0"), "{claim:?}");
    assert_eq!(claim.owner.to_string(), "Deployment default/app");
    world.assert_sound().await;
}

// === an older backup ===

#[tokio::test(start_paused = true)]
async fn a_surge_pod_never_gets_past_a_restored_claim_however_often_it_asks() {
    let world = World::new();
    let backup = moved_on(&world).await;
    restore(&world, FIXED, Some(&backup)).await;
    world.fixed("surge", "app", FIXED);
    for attempt in 0..6 {
        let impasse = impasse(world.add("n2", "surge", &format!("s{attempt}")).await);
        assert_eq!(impasse.blocked[0].obstacle, Obstacle::InUse, "{impasse}");
    }
    assert_live_has_it(&world).await;
    // What follows is as if nothing had happened.
    world.del("n1", "live", "c2").await.unwrap();
    world.add("n2", "surge", "s9").await.unwrap();
    assert!(claim(&world, FIXED).await.is_held_by("s9", "eth0"));
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn the_pod_itself_takes_its_address_on_by_a_new_sandbox_after_a_restore() {
    let world = World::new();
    let backup = moved_on(&world).await;
    restore(&world, FIXED, Some(&backup)).await;
    world.add("n1", "live", "c3").await.unwrap();
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c3".to_owned())]);
    assert!(claim(&world, FIXED).await.is_held_by("c3", "eth0"));
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_remembers_the_block_displaces_nobody_either() {
    let world = World::new();
    let backup = moved_on(&world).await;
    restore(&world, FIXED, Some(&backup)).await;
    world.fixed("surge", "app", FIXED);
    let shelves = Arc::new(Shelves::new("n1"));
    let driver = Driver::new(Cached::new(world.objects.clone(), shelves), Some(world.ledger.clone()), Timestamp::now);
    for attempt in 0..4 {
        let container = format!("s{attempt}");
        impasse(common::add(&driver, &world.net(), "n1", "surge", &container).await);
    }
    assert_live_has_it(&world).await;
}

#[tokio::test(start_paused = true)]
async fn of_several_addresses_restored_claims_give_each_back_to_the_pod_that_has_it() {
    let world = World::new();
    let list = "10.244.0.216,10.244.0.217";
    for (pod, container) in [("a", "c1"), ("b", "c2")] {
        world.fixed(pod, "app", list);
        world.add("n1", pod, container).await.unwrap();
    }
    let (first, second) = (claim(&world, FIXED).await, claim(&world, "10.244.0.217").await);
    // Crosswise, and nobody's.
    let crossed = Claim { holder: second.holder.clone(), ..first.clone() };
    restore(&world, FIXED, Some(&crossed)).await;
    restore(&world, "10.244.0.217", Some(&second.released())).await;
    world.fixed("surge", "app", list);
    for attempt in 0..4 {
        impasse(world.add("n2", "surge", &format!("s{attempt}")).await);
    }
    assert!(claim(&world, FIXED).await.is_held_by("c1", "eth0"));
    assert!(claim(&world, "10.244.0.217").await.is_held_by("c2", "eth0"));
    assert_eq!(world.allocated().await.len(), 2);
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn an_add_that_stood_still_during_a_restore_displaces_no_later_sandbox_of_its_pod() {
    let world = World::new();
    let backup = moved_on(&world).await;
    // So that the ADD that stands still has the later generation.
    let ahead = Claim { generation: 50, ..claim(&world, FIXED).await };
    restore(&world, FIXED, Some(&ahead)).await;
    let (other, stood) = (world.clone(), AtomicBool::new(false));
    let faults = Faults::new(move |call| {
        if call.verb == "create" && call.object.starts_with("ipamhandles") && !stood.swap(true, Relaxed) {
            restore(&other, FIXED, Some(&backup)).now_or_never().unwrap();
            other.add("n1", "live", "c4").now_or_never().unwrap().unwrap();
        }
        None
    });
    common::add(&world.faulty(&faults), &world.net(), "n1", "live", "c3").await.unwrap_err();
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c4".to_owned())]);
    assert!(claim(&world, FIXED).await.is_held_by("c4", "eth0"));
    world.assert_sound().await;
}

// === lost, or edited by hand ===

#[tokio::test(start_paused = true)]
async fn a_lost_claim_is_rebuilt_by_whoever_asks_for_its_address() {
    for rival in ["app", "other"] {
        let world = World::new();
        moved_on(&world).await;
        restore(&world, FIXED, None).await;
        world.fixed("rival", rival, FIXED);
        for attempt in 0..4 {
            impasse(world.add("n2", "rival", &format!("r{attempt}")).await);
        }
        assert_live_has_it(&world).await;
    }
}

#[tokio::test]
async fn a_container_that_asks_again_keeps_its_address_of_several_though_the_claim_was_lost() {
    let world = World::new();
    let both = format!("{FIXED},10.244.0.217");
    world.fixed("first", "app", &both);
    world.fixed("live", "app", &both);
    world.add("n1", "first", "c1").await.unwrap();
    let given = world.add("n1", "live", "c2").await.unwrap();
    assert_eq!(given[0].address, ip("10.244.0.217"));
    world.del("n1", "first", "c1").await.unwrap();
    restore(&world, "10.244.0.217", None).await;
    assert_eq!(world.add("n1", "live", "c2").await.unwrap(), given);
    assert!(claim(&world, "10.244.0.217").await.is_held_by("c2", "eth0"));
    assert!(claim(&world, FIXED).await.holder.is_none());
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_somebody_raised_by_hand_displaces_nobody() {
    let world = World::new();
    moved_on(&world).await;
    let edited = Claim { generation: 99, holder: None, ..claim(&world, FIXED).await };
    restore(&world, FIXED, Some(&edited)).await;
    world.fixed("surge", "app", FIXED);
    for attempt in 0..4 {
        impasse(world.add("n2", "surge", &format!("s{attempt}")).await);
    }
    assert_live_has_it(&world).await;
    world.add("n1", "live", "c3").await.unwrap();
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c3".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_somebody_wrote_by_hand_has_nothing_by_it() {
    let world = World::new();
    moved_on(&world).await;
    world.fixed("forged", "app", FIXED);
    let mut edited = Claim { generation: 99, ..claim(&world, FIXED).await };
    edited.holder.as_mut().unwrap().pod_uid = "uid-of-forged".into();
    edited.holder.as_mut().unwrap().container_id = "f0".into();
    restore(&world, FIXED, Some(&edited)).await;
    for attempt in 0..4 {
        impasse(world.add("n2", "forged", &format!("f{attempt}")).await);
    }
    assert_live_has_it(&world).await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_an_older_release_is_judged_by_the_pod_of_its_name_and_node() {
    let world = World::new();
    moved_on(&world).await;
    // The pod as the API server has it, and its entry without the UID that older releases do not write.
    let mut live = world.fixed("live", "app", FIXED);
    live.spec.get_or_insert_default().node_name = Some("n1".into());
    world.objects.put::<Pod>(&live);
    let mut block = world.list::<calico::IPAMBlock>().await.into_iter().find(|b| !b.spec.is_empty()).unwrap();
    for attribute in &mut block.spec.attributes {
        attribute.secondary.as_mut().unwrap().remove(CONTAINERS_POD_KEY).unwrap();
    }
    world.objects.put(&block);
    restore(&world, FIXED, None).await;
    world.fixed("surge", "app", FIXED);
    impasse(world.add("n2", "surge", "s1").await);
    assert_live_has_it(&world).await;
    assert_eq!(claim(&world, FIXED).await.holder.unwrap().pod_uid, "uid-of-live");
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_that_is_gone_has_left_passes_on_by_the_rules_after_its_claim_was_lost() {
    // Its node is not Ready: at once.
    let world = World::new();
    moved_on(&world).await;
    restore(&world, FIXED, None).await;
    world.remove_pod("live");
    world.node("n1", "Unknown");
    world.fixed("next", "app", FIXED);
    world.add("n2", "next", "c9").await.unwrap();
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c9".to_owned())]);
    world.assert_sound().await;
    // It is Ready: after its grace, which is recorded.
    let mut world = World::new();
    world.conf["ipam"]["takeover"]["graceSeconds"] = json!(3600);
    moved_on(&world).await;
    restore(&world, FIXED, None).await;
    world.remove_pod("live");
    world.fixed("next", "app", FIXED);
    let impasse = impasse(world.add("n2", "next", "c9").await);
    assert!(matches!(impasse.blocked[0].obstacle, Obstacle::Grace(_)), "{impasse}");
    let claim = claim(&world, FIXED).await;
    assert!(claim.is_held_by("c2", "eth0") && claim.contested.is_some());
}

// === the collector ===

/// A pod that runs on n1 and says so.
async fn running(town: &Town, name: &str, container: &str) -> Pod {
    let mut pod = town.world.fixed(name, "app", FIXED);
    town.world.add("n1", name, container).await.unwrap();
    pod.spec.get_or_insert_default().node_name = Some("n1".into());
    pod.status = serde_json::from_value(json!({"phase": "Running", "podIP": FIXED, "podIPs": [{"ip": FIXED}]})).ok();
    town.world.objects.put::<Pod>(&pod);
    pod
}

#[tokio::test(start_paused = true)]
async fn the_collector_rebuilds_a_lost_claim_from_the_entry_the_pod_and_its_owner() {
    let mut town = Town::new();
    running(&town, "live", "c2").await;
    let before = claim(&town.world, FIXED).await;
    restore(&town.world, FIXED, None).await;
    let repairs = town.rounds_for(120).await;
    let mended: Vec<_> = repairs.iter().filter(|repair| repair.kind == Kind::ClaimMended).collect();
    assert_eq!(mended.len(), 1, "{repairs:#?}");
    assert!(mended[0].detail.contains("lost") && mended[0].detail.contains("default/live"), "{}", mended[0].detail);
    let after = claim(&town.world, FIXED).await;
    assert_eq!((after.owner, after.generation), (before.owner, before.generation));
    assert_eq!(after.holder.unwrap().container_id, before.holder.unwrap().container_id);
    town.stays_for(600).await;
}

#[tokio::test(start_paused = true)]
async fn the_collector_mends_what_a_restored_or_edited_claim_says() {
    for (generation, keeps_holder) in [(1, false), (1, true), (7, false)] {
        let mut town = Town::new();
        running(&town, "live", "c2").await;
        let mut wrong = Claim { generation, ..claim(&town.world, FIXED).await };
        match keeps_holder {
            true => wrong.holder.as_mut().unwrap().container_id = "an-older-one".into(),
            false => wrong.holder = None,
        }
        restore(&town.world, FIXED, Some(&wrong)).await;
        let repairs = town.rounds_for(120).await;
        assert!(repairs.iter().any(|repair| repair.kind == Kind::ClaimMended), "{repairs:#?}");
        let claim = claim(&town.world, FIXED).await;
        assert!(claim.is_held_by("c2", "eth0") && claim.generation == generation, "{claim:?}");
        town.assert_clean().await;
        assert_eq!(town.world.allocated().await, [(ip(FIXED), "k8s-pod-network.c2".to_owned())]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_only_lost_its_generation_gets_that_of_its_entry_back() {
    let mut town = Town::new();
    running(&town, "live", "c1").await;
    town.world.add("n1", "live", "c2").await.unwrap();
    let before = claim(&town.world, FIXED).await;
    assert_eq!(before.generation, 2);
    restore(&town.world, FIXED, Some(&Claim { generation: 1, ..before.clone() })).await;
    let repairs = town.rounds_for(120).await;
    assert!(repairs.iter().any(|repair| repair.kind == Kind::ClaimMended), "{repairs:#?}");
    let after = claim(&town.world, FIXED).await;
    assert!(after.generation == 2 && after.is_held_by("c2", "eth0"), "{after:?}");
    town.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn the_collector_lets_a_claim_follow_its_running_pod_to_another_controller() {
    let mut town = Town::new();
    let mut pod = running(&town, "live", "c2").await;
    let before = claim(&town.world, FIXED).await;
    pod.metadata.owner_references.as_mut().unwrap()[0].name = "other-h1".into();
    town.world.objects.put::<Pod>(&pod);
    let repairs = town.rounds_for(120).await;
    assert_eq!(repairs.len(), 1, "{repairs:#?}");
    assert!(repairs[0].detail.contains("Deployment default/other"), "{}", repairs[0].detail);
    let after = claim(&town.world, FIXED).await;
    assert_eq!(after.owner.to_string(), "Deployment default/other");
    assert_eq!(Claim { owner: before.owner.clone(), ..after }, before);
    town.assert_clean().await;
    // Its next sandbox has the address still, though that of before has given it back.
    town.world.del("n1", "live", "c2").await.unwrap();
    town.world.add("n1", "live", "c3").await.unwrap();
    assert!(claim(&town.world, FIXED).await.is_held_by("c3", "eth0"));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_a_backup_brought_back_is_cleared_without_the_address_passing_on() {
    let mut town = Town::new();
    running(&town, "live", "c2").await;
    let mut old = claim(&town.world, FIXED).await;
    let holder = old.holder.as_mut().unwrap();
    (holder.pod, holder.pod_uid, holder.container_id) = ("old".into(), "uid-of-old".into(), "c1".into());
    restore(&town.world, FIXED, Some(&old)).await;
    town.world.fixed("surge", "app", FIXED);
    for attempt in 0..4 {
        impasse(town.world.add("n2", "surge", &format!("s{attempt}")).await);
        town.rounds_for(60).await;
    }
    assert_eq!(town.world.allocated().await, [(ip(FIXED), "k8s-pod-network.c2".to_owned())]);
    assert!(claim(&town.world, FIXED).await.is_held_by("c2", "eth0"));
}

// === a pod whose controller changes ===

/// The pod `web-0`, of a StatefulSet or by itself.
fn web_0(world: &World, uid: &str, set: Option<&str>) {
    let owners: Vec<_> = set
        .map(|name| json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name, "uid": "s", "controller": true}))
        .into_iter()
        .collect();
    if let Some(name) = set {
        world.put::<k8s_openapi::api::apps::v1::StatefulSet>(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": "default"},
        }));
    }
    world.put::<Pod>(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-0", "namespace": "default", "uid": uid, "annotations": {"kube-ipam.ip": FIXED},
            "ownerReferences": owners,
        },
        "spec": {"containers": []}, "status": {"phase": "Pending"},
    }));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_a_statefulset_adopts_keeps_its_address_and_the_claim_follows() {
    let world = World::new();
    web_0(&world, "u1", None);
    world.add("n1", "web-0", "c1").await.unwrap();
    assert_eq!(claim(&world, FIXED).await.owner.to_string(), "Pod default/web-0");
    web_0(&world, "u1", Some("web"));
    world.add("n1", "web-0", "c2").await.unwrap();
    assert_eq!(claim(&world, FIXED).await.owner.to_string(), "StatefulSet default/web #0");
    // The set's next pod of that name has it as ever.
    world.del("n1", "web-0", "c2").await.unwrap();
    web_0(&world, "u2", Some("web"));
    world.add("n2", "web-0", "c3").await.unwrap();
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c3".to_owned())]);
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_follows_its_pod_though_the_same_container_asks_again() {
    let world = World::new();
    web_0(&world, "u1", None);
    world.add("n1", "web-0", "c1").await.unwrap();
    web_0(&world, "u1", Some("web"));
    world.add("n1", "web-0", "c1").await.unwrap();
    let claim = claim(&world, FIXED).await;
    assert_eq!((claim.owner.to_string().as_str(), claim.generation), ("StatefulSet default/web #0", 1));
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_followed_its_running_pod_stays_held_though_the_add_fails() {
    let world = World::new();
    web_0(&world, "u1", None);
    world.add("n1", "web-0", "c1").await.unwrap();
    web_0(&world, "u1", Some("web"));
    // The second ADD of the container gets no further than the handle.
    let faults = Faults::new(|call| {
        let refused = || Fault::Fail(Failure::Refused("no".into()));
        (call.object.starts_with("ipamhandles") && call.verb == "get").then(refused)
    });
    common::add(&world.faulty(&faults), &world.net(), "n1", "web-0", "c1").await.unwrap_err();
    let claim = claim(&world, FIXED).await;
    assert!(claim.is_held_by("c1", "eth0") && claim.owner.to_string() == "StatefulSet default/web #0", "{claim:?}");
}

#[tokio::test(start_paused = true)]
async fn an_orphaned_pod_keeps_its_address() {
    let world = World::new();
    web_0(&world, "u1", Some("web"));
    world.add("n1", "web-0", "c1").await.unwrap();
    web_0(&world, "u1", None);
    world.add("n1", "web-0", "c2").await.unwrap();
    assert_eq!(claim(&world, FIXED).await.owner.to_string(), "Pod default/web-0");
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_the_bare_pod_that_bore_the_name_before_passes_to_the_statefulsets_pod() {
    let world = World::new();
    web_0(&world, "u1", None);
    world.add("n1", "web-0", "c1").await.unwrap();
    world.del("n1", "web-0", "c1").await.unwrap();
    web_0(&world, "u2", Some("web"));
    world.add("n1", "web-0", "c2").await.unwrap();
    assert_eq!(claim(&world, FIXED).await.owner.to_string(), "StatefulSet default/web #0");
    // Not to anybody else's pod: that name is in use.
    let world = World::new();
    web_0(&world, "u1", None);
    world.add("n1", "web-0", "c1").await.unwrap();
    world.del("n1", "web-0", "c1").await.unwrap();
    world.fixed("other", "other", FIXED);
    let impasse = impasse(world.add("n1", "other", "c2").await);
    assert_eq!(impasse.blocked[0].obstacle, Obstacle::OtherOwner);
}

// === sandboxes without a DEL ===

#[tokio::test(start_paused = true)]
async fn what_earlier_sandboxes_left_without_a_del_is_given_up_by_the_pods_next_add() {
    let world = World::new();
    world.random("r");
    world.random("bystander");
    world.add("n1", "bystander", "b").await.unwrap();
    for attempt in 0..5 {
        world.add("n1", "r", &format!("c{attempt}")).await.unwrap();
        tokio::time::advance(Duration::from_secs(15)).await;
    }
    let handles: Vec<String> = world.allocated().await.into_iter().map(|(_, handle)| handle).collect();
    assert_eq!(handles.len(), 2, "{handles:?}");
    assert!(handles.contains(&"k8s-pod-network.c4".to_owned()) && handles.contains(&"k8s-pod-network.b".to_owned()));
    assert_eq!(world.list::<calico::IPAMHandle>().await.len(), 2);
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn another_interface_or_network_of_the_pod_is_no_earlier_sandbox() {
    let world = World::new();
    world.random("r");
    let net = world.net();
    let mut second = attachment(&net, "n1", "r", "other-sandbox");
    second.interface = "net1";
    world.driver().add(&second).await.unwrap();
    let mut conf = world.conf.clone();
    conf["name"] = json!("another-network");
    let another = kube_ipam::netconf::NetConf::parse(&conf, "kube-ipam").unwrap();
    common::add(&world.driver(), &another, "n1", "r", "c1").await.unwrap();
    world.add("n1", "r", "c1").await.unwrap();
    assert_eq!(world.allocated().await.len(), 3);
}

//! What other projects had to learn: one test for each lesson that no other test here teaches. The bugs of
//! `tests/bugs` say where each was seen.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use calico::{BlockAffinity, IPAMBlock, IPReservation, affinity_name};
use common::town::Town;
use common::{World, attachment, ip};
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube_ipam::driver::{Assigned, Driver, Error, Gate, GatedDriver, PodRef, Trace};
use kube_ipam::service::state::State;
use kube_ipam::store::faulty::{Call, Fault, Faults, Faulty};
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::memory::{MemoryLedger, MemoryObjects};
use kube_ipam::store::{Failure, Ledger as _, Object};
use serde_json::json;
use tokio::time::Instant;

const FIXED: &str = "10.244.0.216";

fn once(verb: &'static str, object: &'static str, fault: Fault) -> Faults {
    let struck = std::sync::atomic::AtomicBool::new(false);
    Faults::new(move |call| {
        let strikes = call.verb == verb && call.object.starts_with(object);
        (strikes && !struck.swap(true, Relaxed)).then(|| fault.clone())
    })
}

// === whose it is ===

#[tokio::test]
async fn a_late_del_of_an_earlier_pod_of_the_name_changes_nothing() {
    let world = World::new();
    world.random("web-0");
    let net = world.net();
    let mut now = attachment(&net, "n1", "web-0", "");
    now.pod = Some(PodRef { namespace: "default", name: "web-0", uid: Some("uid-of-web-0") });
    world.driver().add(&now.ahead()).await.unwrap();
    assert_eq!(world.allocated().await.len(), 1);
    let before = world.objects.dump();
    let mut earlier = attachment(&net, "n1", "web-0", "of-the-earlier-pod");
    earlier.pod = Some(PodRef { namespace: "default", name: "web-0", uid: Some("uid-of-an-earlier-one") });
    world.driver().del(&earlier).await.unwrap();
    assert_eq!(world.objects.dump(), before);
}

#[tokio::test]
async fn a_late_del_of_an_earlier_pod_leaves_a_handle_whose_block_is_not_written_yet() {
    let world = World::new();
    world.random("web-0");
    let net = world.net();
    let mut now = attachment(&net, "n1", "web-0", "");
    now.pod = Some(PodRef { namespace: "default", name: "web-0", uid: Some("uid-of-web-0") });
    let other = world.clone();
    let faults = Faults::new(move |call| {
        if call.verb == "update" && call.object.starts_with("ipamblocks") {
            let net = other.net();
            let mut earlier = attachment(&net, "n1", "web-0", "of-the-earlier-pod");
            earlier.pod = Some(PodRef { namespace: "default", name: "web-0", uid: Some("uid-of-an-earlier-one") });
            other.driver().del(&earlier).now_or_never().unwrap().unwrap();
        }
        None
    });
    world.faulty(&faults).add(&now.ahead()).await.unwrap();
    assert_eq!((world.allocated().await.len(), world.list::<calico::IPAMHandle>().await.len()), (1, 1));
    world.assert_sound().await;
    world.driver().del(&now.ahead()).await.unwrap();
    assert!(world.list::<calico::IPAMHandle>().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_name_a_later_pod_has_is_cleared_all_the_same() {
    let mut town = Town::new();
    let mut pod = town.world.fixed("web-0", "app", FIXED);
    town.run(pod.clone(), "n1").await;
    town.world.node("n1", "Unknown");
    // The StatefulSet made it again elsewhere, where it still waits.
    pod.metadata.uid = Some("uid-of-the-next".into());
    town.world.objects.put::<Pod>(&pod);
    town.rounds_for(60).await;
    assert!(town.claim(FIXED).await.unwrap().holder.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_only_a_list_misses_keeps_its_address() {
    let mut town = Town::new();
    town.run(town.world.random("r"), "n1").await;
    town.list_nothing_of::<Pod>();
    town.stays_for(3600).await;
}

#[tokio::test]
async fn a_claim_that_passed_on_while_a_del_was_at_work_is_left_alone() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    world.add("n1", "f", "c1").await.unwrap();
    // Between the block and the claim of the first sandbox's DEL, the second one has the address.
    let other = world.clone();
    let faults = Faults::new(move |call| {
        if call.verb == "range" {
            other.add("n1", "f", "c2").now_or_never().unwrap().unwrap();
        }
        None
    });
    common::del(&world.faulty(&faults), &world.net(), "n1", "f", "c1").await.unwrap();
    assert!(world.claim(FIXED).await.unwrap().value.is_held_by("c2", "eth0"));
    world.assert_sound().await;
}

#[tokio::test]
async fn a_release_that_lost_to_another_sandbox_clears_no_claim() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    let net = world.net();
    let mut ahead = attachment(&net, "n1", "f", "").ahead();
    ahead.pod = Some(PodRef { namespace: "default", name: "f", uid: Some("uid-of-f") });
    world.driver().add(&ahead).await.unwrap();
    // Between the look at the block and the write, the plugin gives the address to the pod's container by itself.
    let (other, given) = (world.clone(), std::sync::atomic::AtomicBool::new(false));
    let faults = Faults::new(move |call| {
        if call.verb == "update" && call.object.starts_with("ipamblocks") && !given.swap(true, Relaxed) {
            other.add("n1", "f", "c1").now_or_never().unwrap().unwrap();
        }
        None
    });
    world.faulty(&faults).del(&ahead).await.unwrap();
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c1".to_owned())]);
    assert!(world.claim(FIXED).await.unwrap().value.is_held_by("c1", "eth0"));
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_passes_on_between_block_and_answer_is_not_answered() {
    let world = World::new();
    world.fixed("f-1", "app", FIXED);
    world.fixed("f-2", "app", FIXED);
    // The node was believed dead just when the ADD had written the block.
    let (other, written) = (world.clone(), std::sync::atomic::AtomicBool::new(false));
    let faults = Faults::new(move |call| {
        if call.verb == "range" && written.swap(false, Relaxed) {
            other.remove_pod("f-1");
            other.node("n1", "Unknown");
            other.add("n2", "f-2", "c2").now_or_never().unwrap().unwrap();
        }
        written.fetch_or(call.verb == "update" && call.object.starts_with("ipamblocks"), Relaxed);
        None
    });
    let outcome = common::add(&world.faulty(&faults), &world.net(), "n1", "f-1", "c1").await;
    assert!(matches!(outcome, Err(Error::Superseded(_))), "{outcome:?}");
    assert!(world.claim(FIXED).await.unwrap().value.is_held_by("c2", "eth0"));
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c2".to_owned())]);
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_came_since_the_block_was_read_is_not_taken_for_one_that_a_del_removed() {
    let mut world = World::new();
    world.conf["ipam"]["takeover"] = json!({"graceSeconds": 600});
    world.fixed("f-1", "app", FIXED);
    world.fixed("f-2", "app", FIXED);
    // f-1's ADD took the claim a while ago, and stands still before the block.
    world.add("n1", "f-1", "c1").await.unwrap();
    let mut claim = world.claim(FIXED).await.unwrap();
    let holder = claim.value.holder.as_mut().unwrap();
    holder.since = Timestamp::now() - SignedDuration::from_secs(60);
    world.ledger.swap(ip(FIXED), Some(claim.revision), Some(&claim.value)).await.unwrap();
    let with_entry = world.list::<IPAMBlock>().await.remove(0);
    let mut without = with_entry.clone();
    without.spec.release_handle("k8s-pod-network.c1", 0, Timestamp::now());
    world.objects.put(&without);
    // It goes on, and the pod is deleted by force, when f-2's ADD has read claim and block.
    let (other, reads) = (world.clone(), std::sync::atomic::AtomicUsize::new(0));
    let faults = Faults::new(move |call| {
        if call.verb == "get" && call.object == "pods f-1" && reads.fetch_add(1, Relaxed) == 0 {
            other.objects.put(&with_entry);
            other.remove_pod("f-1");
        }
        None
    });
    let outcome = common::add(&world.faulty(&faults), &world.net(), "n2", "f-2", "c2").await;
    assert!(matches!(outcome, Err(Error::Impasse(_))), "{outcome:?}");
    assert_eq!(world.allocated().await, [(ip(FIXED), "k8s-pod-network.c1".to_owned())]);
    assert!(world.claim(FIXED).await.unwrap().value.is_held_by("c1", "eth0"));
}

// === time ===

thread_local! {
    static AHEAD: Cell<i64> = const { Cell::new(0) };
}

/// A clock that a test puts forward.
fn clock() -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(AHEAD.get())
}

fn clocked(world: &World, faults: &Faults) -> GatedDriver<Faulty<MemoryObjects>, Faulty<MemoryLedger>> {
    Driver::new(faults.wrap(world.objects.clone()), Some(faults.wrap(world.ledger.clone())), clock)
}

#[tokio::test(start_paused = true)]
async fn an_add_that_stood_still_for_too_long_behind_its_claim_is_not_answered() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    let faults = Faults::new(|call| {
        if call.verb == "update" && call.object.starts_with("ipamblocks") && AHEAD.get() == 0 {
            AHEAD.set(60);
        }
        None
    });
    let outcome = common::add(&clocked(&world, &faults), &world.net(), "n1", "f", "c").await;
    assert!(matches!(outcome, Err(Error::Late(_))), "{outcome:?}");
    assert!(world.allocated().await.is_empty() && world.claim(FIXED).await.is_none());
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_that_an_add_has_does_not_run_while_it_waits_for_the_claim() {
    let world = World::new();
    world.fixed("f-1", "app", FIXED);
    world.fixed("f-2", "app", FIXED);
    world.add("n1", "f-1", "c1").await.unwrap();
    // While f-2 looks at its holder, a minute goes by, and the holder lets go.
    let other = world.clone();
    let faults = Faults::new(move |call| {
        if call.verb == "get" && call.object == "pods f-1" && AHEAD.get() == 0 {
            AHEAD.set(60);
            other.del("n1", "f-1", "c1").now_or_never().unwrap().unwrap();
        }
        None
    });
    common::add(&clocked(&world, &faults), &world.net(), "n2", "f-2", "c2").await.unwrap();
    let since = world.claim(FIXED).await.unwrap().value.holder.unwrap().since;
    assert!(clock().duration_since(since) < SignedDuration::from_secs(30), "{since}");
}

// === replies ===

/// ADD and DEL; in between the records are as exact as afterwards.
async fn come_and_go(world: &World, faults: &Faults, pod: &str) -> Result<Vec<Assigned>, Error> {
    let (driver, net) = (world.faulty(faults), world.net());
    let given = common::add(&driver, &net, "n1", pod, "c").await?;
    world.assert_sound().await;
    common::del(&driver, &net, "n1", pod, "c").await?;
    Ok(given)
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_alone_fails_no_call() {
    let prepare = || {
        let world = World::new();
        world.random("r");
        world.fixed("f", "app", FIXED);
        world
    };
    for pod in ["r", "f"] {
        let dry = Faults::none();
        let expected = come_and_go(&prepare(), &dry, pod).await.unwrap();
        let calls = dry.calls();
        assert!(calls.iter().filter(|call| call.is_write()).count() >= 6, "{calls:#?}");
        for at in calls.iter().filter(|call| call.is_write()).map(|call| call.number) {
            let world = prepare();
            let faults = Faults::new(move |call: &Call| (call.number == at).then_some(Fault::LoseReply));
            let given = come_and_go(&world, &faults, pod).await;
            assert_eq!(given.unwrap(), expected, "{:?}", calls[at]);
            assert!(world.allocated().await.is_empty() && world.list::<calico::IPAMHandle>().await.is_empty());
            world.assert_sound().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_a_server_asks_for_is_kept_or_the_call_gives_up() {
    let world = World::new();
    world.random("r");
    let busy = |seconds| once("create", "ipamhandles", Fault::Fail(Failure::Busy(Duration::from_secs(seconds))));
    let begun = Instant::now();
    common::add(&world.faulty(&busy(3)), &world.net(), "n1", "r", "c").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    world.del("n1", "r", "c").await.unwrap();
    // Longer than the runtime waits: not a request more, and no time wasted.
    let (begun, faults) = (Instant::now(), busy(600));
    let error = common::add(&world.faulty(&faults), &world.net(), "n1", "r", "c").await.unwrap_err();
    assert!(matches!(&error, Error::Store(e) if matches!(e.failure, Failure::Busy(_))), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(faults.calls().last().unwrap().object.starts_with("ipamhandles"));
    world.assert_sound().await;
}

// === what others wrote ===

fn marked<K: Object>(mut object: K) -> K {
    object.meta_mut().labels.get_or_insert_default().insert("somebody/else".into(), "label".into());
    object.meta_mut().annotations.get_or_insert_default().insert("somebody/else".into(), "annotation".into());
    object
}

async fn are_marked<K: Object>(world: &World) -> bool {
    let all = world.list::<K>().await;
    let kept = |object: &K| {
        object.labels().contains_key("somebody/else") && object.annotations().contains_key("somebody/else")
    };
    !all.is_empty() && all.iter().all(kept)
}

#[tokio::test]
async fn what_others_put_on_an_object_survives_our_writes() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    world.add("n1", "f", "c").await.unwrap();
    world.list::<IPAMBlock>().await.into_iter().for_each(|object| world.objects.put(&marked(object)));
    world.list::<IPReservation>().await.into_iter().for_each(|object| world.objects.put(&marked(object)));
    world.list::<BlockAffinity>().await.into_iter().for_each(|object| world.objects.put(&marked(object)));
    world.fixed("g", "other", "10.244.0.217");
    world.add("n1", "g", "d").await.unwrap();
    world.del("n1", "f", "c").await.unwrap();
    assert!(are_marked::<IPAMBlock>(&world).await, "{:#?}", world.list::<IPAMBlock>().await);
    assert!(are_marked::<IPReservation>(&world).await, "{:#?}", world.list::<IPReservation>().await);
    assert!(are_marked::<BlockAffinity>(&world).await, "{:#?}", world.list::<BlockAffinity>().await);
}

#[tokio::test]
async fn who_loses_the_race_for_a_block_takes_its_affinity_back() {
    let world = World::new();
    world.random("a");
    world.random("b");
    // Just as n1 creates its block, n2 has created it.
    let other = world.clone();
    let raced = std::sync::atomic::AtomicBool::new(false);
    let faults = Faults::new(move |call| {
        let block = call.verb == "create" && call.object.starts_with("ipamblocks");
        if block && !raced.swap(true, Relaxed) {
            let cidr = call.object.rsplit(' ').next().unwrap().replacen("-26", "/26", 1).replace('-', ".");
            let spec = calico::IPAMBlockSpec::new(
                cidr.parse().unwrap(),
                &calico::Affinity::Host("n2".into()),
                Timestamp::now(),
            );
            let affinity = BlockAffinity::pending(&calico::Affinity::Host("n2".into()), &spec.cidr);
            other.objects.put(&affinity.with_state(calico::AffinityState::Confirmed));
            other.objects.put(&spec.object());
        }
        None
    });
    let address = common::add(&world.faulty(&faults), &world.net(), "n1", "a", "c").await.unwrap()[0].address;
    let blocks = world.list::<IPAMBlock>().await;
    let lost = blocks.iter().find(|block| block.spec.host() == Some("n2")).unwrap();
    assert!(!lost.spec.cidr.contains(address), "{address} lies in the block of n2");
    let affinities: BTreeSet<String> = world.list::<BlockAffinity>().await.iter().map(|a| a.name_any()).collect();
    assert!(!affinities.contains(&affinity_name("n1", &lost.spec.cidr)), "{affinities:?}");
    world.assert_sound().await;
}

/// An ADD stands still between its block and its affinity. Meanwhile another node begins to take the block over, and gets
/// it or dies before that.
#[tokio::test]
async fn who_stood_still_while_its_block_was_taken_over_leaves_no_affinity_for_it() {
    for gone in [true, false] {
        let world = World::new();
        world.random("a");
        let (other, raced) = (world.clone(), std::sync::atomic::AtomicBool::new(false));
        let faults = Faults::new(move |call| {
            if call.verb == "update" && call.object.starts_with("blockaffinities") && !raced.swap(true, Relaxed) {
                let affinity = other.list::<BlockAffinity>().now_or_never().unwrap().remove(0);
                let block = other.list::<IPAMBlock>().now_or_never().unwrap().remove(0);
                if gone {
                    other.objects.remove::<BlockAffinity>(None, &affinity.name_any());
                    other.objects.remove::<IPAMBlock>(None, &block.name_any());
                    let ours = calico::Affinity::Host("n2".into());
                    let affinity = BlockAffinity::pending(&ours, &block.spec.cidr);
                    other.objects.put(&affinity.with_state(calico::AffinityState::Confirmed));
                    other.objects.put(&calico::IPAMBlockSpec::new(block.spec.cidr, &ours, Timestamp::now()).object());
                } else {
                    other.objects.put(&affinity.with_state(calico::AffinityState::PendingDeletion));
                }
            }
            None
        });
        let address = common::add(&world.faulty(&faults), &world.net(), "n1", "a", "c").await.unwrap()[0].address;
        let (blocks, affinities) = (world.list::<IPAMBlock>().await, world.list::<BlockAffinity>().await);
        let used = blocks.iter().find(|block| block.spec.cidr.contains(address)).unwrap();
        assert_eq!((used.spec.host(), blocks.len()), (Some("n1"), if gone { 2 } else { 1 }), "gone {gone}");
        assert!(affinities.len() == blocks.len() && affinities.iter().all(BlockAffinity::is_confirmed), "gone {gone}");
        world.assert_sound().await;
    }
}

// === what is given ===

#[tokio::test]
async fn what_cannot_be_read_of_a_pod_never_gives_it_a_random_address() {
    let world = World::new();
    for wrong in ["10.244.0.999", "10.9.0.1", "10.244.0.1", "", "10.244.0.216,,"] {
        world.pod("p", "app", "h1", json!({"kube-ipam.ip": wrong}));
        let error = world.add("n1", "p", "c").await.unwrap_err().to_string();
        assert!(error.contains("kube-ipam.ip"), "{wrong:?}: {error}");
    }
    world.fixed("f", "app", FIXED);
    for failure in [Failure::Unknown("HTTP 500".into()), Failure::Denied("no".into()), Failure::Corrupt("x".into())] {
        let faults = once("get", "pods", Fault::Fail(failure));
        common::add(&world.faulty(&faults), &world.net(), "n1", "f", "c").await.unwrap_err();
    }
    assert!(world.allocated().await.is_empty());
}

#[tokio::test]
async fn no_pod_gets_the_network_the_broadcast_or_the_gateway_address() {
    let mut world = World::new();
    world.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/28", "blockSize": 29}));
    world.conf["ipam"] = json!({
        "type": "kube-ipam", "name": "kube-subnet", "etcdConfig": {"etcdURL": "http://127.0.0.1:2379"},
        "subnet": "10.244.0.0/28", "rangeStart": "10.244.0.0", "rangeEnd": "10.244.0.15", "gateway": "10.244.0.9",
    });
    let mut given = BTreeSet::new();
    for n in 0..13 {
        let name = format!("p{n}");
        world.random(&name);
        given.insert(world.address("n1", &name, &name).await);
    }
    for never in ["10.244.0.0", "10.244.0.15", "10.244.0.9"] {
        assert!(!given.contains(&ip(never)), "{never} was given out");
    }
    world.random("one-too-many");
    world.add("n1", "one-too-many", "x").await.unwrap_err();
}

#[tokio::test]
async fn what_one_family_got_goes_when_the_other_fails() {
    let mut world = World::new();
    world.pool("v6", json!({"cidr": "fd00:10::/112", "blockSize": 122}));
    world.conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10::/112"}]]);
    world.random("warm");
    world.add("n1", "warm", "w").await.unwrap();
    world.random("r");
    let before = world.allocated().await;
    let faults = Faults::new(|call| {
        let second = call.verb == "update" && call.object.starts_with("ipamblocks fd00");
        second.then(|| Fault::Fail(Failure::Refused("no".into())))
    });
    common::add(&world.faulty(&faults), &world.net(), "n1", "r", "c").await.unwrap_err();
    assert_eq!(world.allocated().await, before);
    world.assert_sound().await;
}

// === the node's files, and secrets ===

#[tokio::test]
async fn no_file_is_written_through_a_symlink() {
    let directory = tempfile::tempdir().unwrap();
    let (state, outside) = (directory.path().join("state"), directory.path().join("outside"));
    let node = State::open(&state);
    let link = |name: &str| std::os::unix::fs::symlink(&outside, state.join(name)).unwrap();
    for name in ["net.c.lock", "net.c.deleted", "net.c.claims", "net.c.block", "uid.part", "uid.pod"] {
        link(name);
    }
    Gate::note(&node, "net.c", Trace::Claims);
    Gate::note(&node, "net.c", Trace::Block);
    drop(node.container("net.c", "eth0").begin_del().await);
    node.put_note("uid", &serde_json::from_value(json!({"containerId": "c", "interface": "eth0"})).unwrap());
    assert!(!outside.exists());
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_parsed_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let planted = "eyJhbGciOiJSUzI1NiIsImtpZCI6InBsYW50ZWQifQ";
    for text in [
        format!("users:\n- name: a\n  user:\n    token: {planted}\n  token: [\n"),
        format!("users: {planted}\n"),
        format!("users:\n- name: a\n  user: {planted}\n"),
        format!("{planted}\n"),
        format!("users:\n- name: a\n  user:\n    token: {planted}\n    : {planted}\n\t- {planted}"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let told = told(&path).await;
        assert!(!told.contains("planted") && !told.contains(planted), "{told}");
    }
}

async fn told(path: &Path) -> String {
    let error = KubeStore::from_kubeconfig(path, None).await.err().map(anyhow::Error::from);
    error.map(|error| format!("{error:#} {error:?}")).unwrap_or_default()
}

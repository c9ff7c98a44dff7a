//! While Calico's datastore is locked (ClusterInformation `default`, datastoreReady false) nobody writes Calico's
//! objects or claims; what was under way gives up soon, and what is owed is done once the lock is gone.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use calico::{BlockAffinity, ClusterInformation, IPAMHandle};
use common::town::Town;
use common::{World, attachment, ip};
use futures::future::{BoxFuture, FutureExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use kube_ipam::claim::Claim;
use kube_ipam::collector::Kind;
use kube_ipam::driver::{Attachment, ClaimFate, Error, Gate, NotClaimed, NotWithdrawn, Pass, PodRef, Shown, Wanted};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::faulty::{Call, Fault, Faults};
use kube_ipam::store::{Failure, Ledger as _, TRUSTED, Versioned};
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

const FIXED: &str = "10.244.0.216";
/// What began before the lock has ended or given up by then.
const DRAINED: Duration = Duration::from_secs(10);

fn set_ready(world: &World, ready: bool) {
    world.put::<ClusterInformation>(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
        "spec": {"datastoreReady": ready},
    }));
}

/// Everything that is stored, but the lock itself.
async fn stored(world: &World) -> (Vec<Value>, Vec<Versioned<Claim>>) {
    let objects = world.objects.dump().into_iter().filter(|object| object["kind"] != "ClusterInformation");
    (objects.collect(), world.ledger.all().await.unwrap())
}

fn of_pod<'a>(net: &'a NetConf, pod: &'a str, uid: &'a str, container: &'a str) -> Attachment<'a> {
    let mut attachment = attachment(net, "n1", pod, container);
    attachment.pod = Some(PodRef { namespace: "default", name: pod, uid: Some(uid) });
    attachment
}

/// Locked, `writer` changes nothing and says why; unlocked, it does its work.
async fn waits<T, E: std::fmt::Debug>(
    world: &World,
    writer: impl AsyncFn() -> Result<T, E>,
    is_locked: impl Fn(&E) -> bool,
) -> T {
    set_ready(world, false);
    let before = stored(world).await;
    let Err(error) = writer().await else { panic!("it was not refused") };
    assert!(is_locked(&error), "{error:?}");
    // Not shown: it is all that is stored.
    assert!(stored(world).await == before, "something was written");
    set_ready(world, true);
    let done = writer().await.unwrap();
    assert!(stored(world).await != before, "unlocked, nothing was written either");
    done
}

fn locked(error: &Error) -> bool {
    matches!(error, Error::Locked)
}

async fn wait_for(world: &World, writer: impl AsyncFn() -> Result<(), Error>) {
    waits(world, writer, locked).await;
}

/// Such a cluster was never promised anything; what it has all the same can be given back.
#[tokio::test]
async fn a_calico_older_than_any_that_is_supported_is_refused_by_its_version() {
    let world = World::new();
    world.random("r");
    world.fixed("f", "app", FIXED);
    world.add("n1", "r", "c").await.unwrap();
    world.put::<ClusterInformation>(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
        "spec": {"calicoVersion": "v3.23.5"},
    }));
    let before = stored(&world).await;
    for (pod, container) in [("f", "c-f"), ("r", "c-2")] {
        let Err(Error::Store(refused)) = world.add("n1", pod, container).await else { panic!("it was not refused") };
        assert_eq!(refused.failure, Failure::TooOld("v3.23.5".into()));
    }
    let said = world.driver().status(&world.net()).await.unwrap_err().to_string();
    assert!(said.contains("Calico v3.23.5 is older than v3.24"), "{said}");
    assert!(stored(&world).await == before, "something was written");
    world.del("n1", "r", "c").await.unwrap();
    assert!(world.allocated().await.is_empty());
}

// === every writer ===

#[tokio::test]
async fn an_add_of_any_address_waits() {
    let world = World::new();
    world.random("r");
    wait_for(&world, async || world.add("n1", "r", "c").await.map(drop)).await;
    world.assert_sound().await;
}

#[tokio::test]
async fn an_add_of_a_fixed_address_waits_with_its_claim() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    wait_for(&world, async || world.add("n1", "f", "c").await.map(drop)).await;
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_some());
}

#[tokio::test]
async fn an_address_ahead_of_the_containers_waits() {
    let world = World::new();
    world.random("r");
    let net = world.net();
    let ahead = of_pod(&net, "r", "uid-of-r", "").ahead();
    wait_for(&world, async || world.driver().add(&ahead).await.map(drop)).await;
    wait_for(&world, async || world.driver().del(&ahead).await.map(drop)).await;
    assert!(world.allocated().await.is_empty());
}

#[tokio::test]
async fn a_del_waits_and_leaves_nothing_then() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    world.add("n1", "f", "c").await.unwrap();
    wait_for(&world, async || world.del("n1", "f", "c").await.map(drop)).await;
    assert!(world.allocated().await.is_empty() && world.list::<IPAMHandle>().await.is_empty());
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
    // What has nothing to release needs no write.
    set_ready(&world, false);
    world.del("n1", "f", "c").await.unwrap();
}

#[tokio::test]
async fn the_deletion_of_a_released_handle_waits() {
    let world = World::new();
    world.random("r");
    world.add("n1", "r", "c").await.unwrap();
    let handle = world.list::<IPAMHandle>().await.remove(0);
    wait_for(&world, async || world.driver().finish_handle(handle.clone()).await).await;
}

/// A node whose notes say that container `c` has what is on record for any pod.
struct Noted;

impl Gate for Noted {
    fn pass(&self) -> BoxFuture<'_, Pass> {
        std::future::ready(Pass::new(false, None)).boxed()
    }

    fn container_of(&self, _pod_uid: &str) -> Option<String> {
        Some("c".to_owned())
    }
}

#[tokio::test]
async fn the_naming_of_a_claims_container_waits() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    let net = world.net();
    world.driver().add(&of_pod(&net, "f", "uid-of-f", "").ahead()).await.unwrap();
    let named = || world.driver().gated(std::sync::Arc::new(Noted));
    let name = async || named().name_container(ip(FIXED), "uid-of-f", "c", "eth0").await;
    wait_for(&world, name).await;
}

#[tokio::test]
async fn gc_waits() {
    let world = World::new();
    world.random("r");
    world.add("n1", "r", "c").await.unwrap();
    let net = world.net();
    let gc = async || world.driver().gc(&of_pod(&net, "", "", ""), &[]).await.map(drop);
    wait_for(&world, gc).await;
    assert!(world.allocated().await.is_empty());
}

#[tokio::test]
async fn a_half_claimed_block_waits() {
    let world = World::new();
    world.random("r");
    world.add("n1", "r", "c").await.unwrap();
    let mut affinity = world.list::<BlockAffinity>().await.remove(0);
    affinity.spec.state = "pending".into();
    world.objects.put(&affinity);
    let settle = async || world.driver().settle_affinities("n1", Instant::now() + DRAINED).await;
    wait_for(&world, settle).await;
}

#[tokio::test]
async fn a_claim_by_hand_waits() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    world.add("n1", "f", "c").await.unwrap();
    world.del("n1", "f", "c").await.unwrap();
    let mut claim = world.claim(FIXED).await.unwrap().value;
    claim.address = "10.244.0.217".parse().unwrap();
    let wanted = Wanted { claim, standing: None, cidr: "10.244.0.192/26".parse().unwrap(), entry: None };
    let by_hand = async || world.driver().claim_by_hand(&wanted, Instant::now() + DRAINED).await;
    waits(&world, by_hand, |error| matches!(error, NotClaimed::Driver(Error::Locked))).await;
}

#[tokio::test]
async fn a_release_by_hand_waits() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    world.add("n1", "f", "c").await.unwrap();
    world.del("n1", "f", "c").await.unwrap();
    let shown = Shown {
        address: ip(FIXED),
        entry: None,
        claim: world.claim(FIXED).await,
        cidr: Some("10.244.0.192/26".parse().unwrap()),
    };
    let release = async || world.driver().withdraw(&shown, ClaimFate::Drop, Instant::now() + DRAINED).await;
    waits(&world, release, |error| matches!(error, NotWithdrawn::Driver(Error::Locked))).await;
}

/// Its rounds pause while the lock is set, and repair afterwards what was to be repaired.
#[tokio::test(start_paused = true)]
async fn the_collector_waits() {
    let mut town = Town::new();
    town.run(town.world.random("r"), "n1").await;
    town.run(town.world.fixed("f", "app", FIXED), "n1").await;
    town.world.remove_pod("r");
    town.world.remove_pod("f");
    assert!(town.world.objects.remove::<Deployment>(Some("default"), "app"));
    town.remove_node("n1");
    town.round().await;
    set_ready(&town.world, false);
    let before = stored(&town.world).await;
    for _ in 0..30 {
        town.pass(60).await;
        let unread = town.try_round().await.unwrap_err();
        assert!(unread.to_string().contains("datastoreReady is false"), "{unread}");
    }
    assert_eq!(stored(&town.world).await, before);
    set_ready(&town.world, true);
    town.pass(30).await;
    let repairs = town.rounds_for(3600).await;
    assert!(repairs.iter().any(|repair| repair.kind == Kind::HolderCleared), "{repairs:#?}");
    assert!(town.world.allocated().await.is_empty());
    town.assert_clean().await;
}

/// A round that was under way begins no further repair.
#[tokio::test(start_paused = true)]
async fn a_round_that_was_under_way_stops() {
    let mut town = Town::new();
    for n in 0..5 {
        town.run(town.world.random(&format!("r-{n}")), "n1").await;
        town.world.remove_pod(&format!("r-{n}"));
    }
    town.remove_node("n1");
    town.round().await;
    town.pass(60).await;
    let world = town.world.clone();
    // Each call takes a while, so the repairs go on for longer than a look at the lock is believed.
    let mut begun = None;
    town.on_call(move |call: &Call| {
        if call.is_write() && begun.is_none() {
            begun = Some(Instant::now());
            set_ready(&world, false);
        }
        let since = begun.map(|begun| begun.elapsed());
        assert!(!call.is_write() || since.unwrap() < TRUSTED, "{call:?} {since:?} after the lock");
        Some(Fault::Pause(Duration::from_millis(900)))
    });
    let report = town.try_round().await.unwrap();
    assert!(report.interrupted, "{report:#?}");
    town.undisturbed();
    set_ready(&town.world, true);
    town.pass(30).await;
    town.rounds_for(3600).await;
    assert!(town.world.allocated().await.is_empty());
    town.assert_clean().await;
}

// === what is under way ===

/// The lock comes between two writes of an ADD that stands still: it undoes nothing, and its DEL does that later.
#[tokio::test(start_paused = true)]
async fn an_add_that_was_under_way_leaves_what_it_wrote_to_its_del() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    let other = world.clone();
    let faults = Faults::new(move |call| {
        let at_handle = call.verb == "create" && call.object.starts_with("ipamhandles");
        at_handle.then(|| {
            set_ready(&other, false);
            Fault::Pause(TRUSTED)
        })
    });
    let error = common::add(&world.faulty(&faults), &world.net(), "n1", "f", "c").await.unwrap_err();
    assert!(locked(&error), "{error:?}");
    assert!(world.allocated().await.is_empty());
    assert_eq!(world.list::<IPAMHandle>().await.len(), 1, "it was undone");
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_some());
    set_ready(&world, true);
    world.del("n1", "f", "c").await.unwrap();
    assert!(world.list::<IPAMHandle>().await.is_empty());
    assert!(world.claim(FIXED).await.is_none_or(|claim| claim.value.holder.is_none()));
    world.assert_sound().await;
}

/// Conflicts without end are tried again and again; the lock ends that.
#[tokio::test(start_paused = true)]
async fn a_retry_loop_stops_with_the_lock() {
    for verb in ["update", "create"] {
        let world = World::new();
        world.random("r");
        world.random("warm-up");
        world.add("n1", "warm-up", "w").await.unwrap();
        let (other, set) = (world.clone(), AtomicBool::new(false));
        let faults = Faults::new(move |call| {
            let object = if verb == "update" { "ipamblocks" } else { "ipamhandles" };
            (call.verb == verb && call.object.starts_with(object)).then(|| {
                if !set.swap(true, Ordering::Relaxed) {
                    set_ready(&other, false);
                }
                Fault::Fail(Failure::Busy(Duration::from_millis(700)))
            })
        });
        let begun = Instant::now();
        let error = common::add(&world.faulty(&faults), &world.net(), "n1", "r", "c").await.unwrap_err();
        assert!(locked(&error), "{error:?}");
        assert!(begun.elapsed() < DRAINED, "{:?}", begun.elapsed());
        let last = faults.calls().into_iter().rfind(Call::is_write).unwrap();
        assert!(last.object.starts_with("ipam"), "{last:?}");
    }
}

/// An ADD that waits for the holder of its address takes the claim over only if the datastore is not locked.
#[tokio::test(start_paused = true)]
async fn an_add_that_waited_for_its_address_looks_again() {
    let mut world = World::new();
    world.conf["ipam"]["waitSeconds"] = json!(30);
    world.fixed("f-1", "app", FIXED);
    world.fixed("f-2", "app", FIXED);
    world.add("n1", "f-1", "c1").await.unwrap();
    let other = world.clone();
    let waiting = world.add("n2", "f-2", "c2");
    let release = async {
        tokio::time::sleep(Duration::from_millis(2500)).await;
        other.del("n1", "f-1", "c1").await.unwrap();
        set_ready(&other, false);
    };
    let (outcome, ()) = futures::future::join(waiting, release).await;
    assert!(matches!(outcome, Err(Error::Locked)), "{outcome:?}");
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none());
    set_ready(&world, true);
    assert_eq!(world.address("n2", "f-2", "c2").await, FIXED.parse::<IpAddr>().unwrap());
}

// === the look ===

/// What cannot be read is not unlocked.
#[tokio::test(start_paused = true)]
async fn a_look_that_fails_writes_nothing() {
    let world = World::new();
    world.random("r");
    world.random("s");
    world.add("n1", "r", "c").await.unwrap();
    let before = stored(&world).await;
    for failure in [Failure::Unknown("no answer".into()), Failure::Denied("no right".into())] {
        let fails = failure.clone();
        let faults =
            Faults::new(move |call| call.object.starts_with("clusterinformations").then(|| Fault::Fail(fails.clone())));
        let (driver, net) = (world.faulty(&faults), world.net());
        for outcome in [
            common::add(&driver, &net, "n1", "s", "d").await.map(drop),
            common::del(&driver, &net, "n1", "r", "c").await.map(drop),
        ] {
            assert!(matches!(&outcome, Err(Error::Store(error)) if error.failure == failure), "{outcome:?}");
        }
        assert_eq!(stored(&world).await, before);
        assert!(!faults.calls().iter().any(Call::is_write));
    }
}

#[tokio::test]
async fn without_cluster_information_nothing_is_locked() {
    let world = World::new();
    world.random("r");
    world.add("n1", "r", "c").await.unwrap();
    world.del("n1", "r", "c").await.unwrap();
}

/// Whatever the main plugin is, one look is enough for a call that does not take long.
#[tokio::test(start_paused = true)]
async fn a_call_looks_once_and_again_after_two_seconds() {
    let world = World::new();
    world.random("r");
    let looks =
        |faults: &Faults| faults.calls().iter().filter(|call| call.object.starts_with("clusterinformations")).count();
    for (pause, expected) in [(Duration::ZERO, 1), (TRUSTED, 2)] {
        for verb in ["ADD", "DEL"] {
            let slow = AtomicBool::new(!pause.is_zero());
            let faults = Faults::new(move |call| {
                let block = call.object.starts_with("ipamblocks") && call.verb == "get";
                (block && slow.swap(false, Ordering::Relaxed)).then_some(Fault::Pause(pause))
            });
            let (driver, net) = (world.faulty(&faults), world.net());
            match verb {
                "ADD" => drop(common::add(&driver, &net, "n1", "r", "c").await.unwrap()),
                _ => drop(common::del(&driver, &net, "n1", "r", "c").await.unwrap()),
            }
            assert_eq!(looks(&faults), expected, "{verb}: {:#?}", faults.calls());
        }
    }
    advance(TRUSTED).await;
}

#[tokio::test]
async fn a_warm_nodes_del_reads_at_most_five_objects() {
    let world = World::new();
    world.random("r");
    world.add("n1", "r", "c").await.unwrap();
    let (faults, net) = (Faults::none(), world.net());
    world.faulty(&faults).del(&of_pod(&net, "r", "uid-of-r", "c")).await.unwrap();
    let calls = faults.calls();
    assert!(calls.iter().filter(|call| !call.is_write()).count() <= 5, "{calls:#?}");
    assert_eq!(calls.iter().filter(|call| call.is_write()).count(), 2, "{calls:#?}");
}

#[tokio::test]
async fn status_says_so() {
    let world = World::new();
    set_ready(&world, false);
    let error = world.driver().status(&world.net()).await.unwrap_err();
    assert!(locked(&error), "{error:?}");
    let told = kube_ipam::service::answer::unavailable(&error);
    assert_eq!(told.code, kube_ipam::cni::code::NOT_AVAILABLE);
    assert!(told.msg.contains("datastoreReady false") && told.msg.contains("ClusterInformation default"), "{told:?}");
    let told = kube_ipam::service::answer::error(&error);
    assert_eq!(told.code, kube_ipam::cni::code::TRY_AGAIN);
    assert!(told.details.contains("tried again by itself"), "{told:?}");
}

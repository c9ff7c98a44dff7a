//! A pod's fixed address is put on record ahead of its containers while an ADD of one of them is under way, in another
//! process: whatever becomes of that ADD, the pod keeps the address, and nobody else gets it.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use calico::IPAMBlock;
use common::{World, attachment, ip};
use futures::FutureExt as _;
use kube_ipam::cni::{CniArgs, Invocation, Verb};
use kube_ipam::driver::{Attachment, Error, PodRef};
use kube_ipam::netconf::NetConf;
use kube_ipam::service::Call;
use kube_ipam::service::state::{Note, State};
use kube_ipam::store::faulty::{Fault, Faults};
use kube_ipam::store::{Failure, Ledger as _, Objects as _, Swap};

const FIXED: &str = "10.244.0.216";

fn of_pod<'a>(net: &'a NetConf, container: &'a str) -> Attachment<'a> {
    let mut attachment = attachment(net, "n1", "f", container);
    attachment.pod = Some(PodRef { namespace: "default", name: "f", uid: Some("uid-of-f") });
    attachment
}

async fn take_ahead(world: &World) {
    let net = world.net();
    world.driver().add(&of_pod(&net, "").ahead()).await.unwrap();
}

/// The pod has the address, and a later pod of its owner does not get it; until its last sandbox is gone.
async fn assert_kept(world: &World) {
    let net = world.net();
    let holder = world.claim(FIXED).await.unwrap().value.holder.expect("the pod's claim was given back");
    assert_eq!(holder.pod_uid, "uid-of-f");
    assert_eq!(world.allocated().await, [(ip(FIXED), "default.f".to_owned())]);
    world.fixed("next", "app", FIXED);
    world.add("n2", "next", "n").await.unwrap_err();
    // The late DEL of the container whose ADD failed: the pod has another sandbox by now.
    let mut late = of_pod(&net, "c");
    late.last_sandbox = false;
    world.driver().del(&late).await.unwrap();
    world.add("n2", "next", "n").await.unwrap_err();
    world.driver().del(&of_pod(&net, "c2")).await.unwrap();
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none() && world.allocated().await.is_empty());
    world.add("n2", "next", "n").await.unwrap();
    world.assert_sound().await;
}

#[tokio::test]
async fn an_add_that_finds_the_address_on_record_ahead_does_not_give_the_pods_claim_back() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    // The agent takes it between the claim and the block of the plugin's own ADD.
    let (other, taken) = (world.clone(), AtomicBool::new(false));
    let faults = Faults::new(move |call| {
        if call.verb == "create" && call.object.starts_with("ipamhandles") && !taken.swap(true, Ordering::Relaxed) {
            take_ahead(&other).now_or_never().unwrap();
        }
        None
    });
    let net = world.net();
    let refused = world.faulty(&faults).add(&of_pod(&net, "c")).await.unwrap_err();
    assert!(matches!(refused, Error::Ahead(_)), "to be tried again, as the pod itself has it: {refused}");
    assert_kept(&world).await;
}

#[tokio::test]
async fn an_add_that_took_the_claim_over_from_its_own_pod_and_failed_leaves_it_with_the_pod() {
    let world = World::new();
    world.fixed("f", "app", FIXED);
    take_ahead(&world).await;
    let faults = Faults::new(|call| {
        let block = call.verb == "update" && call.object.starts_with("ipamblocks");
        block.then(|| Fault::Fail(Failure::Refused("no".into())))
    });
    let net = world.net();
    world.faulty(&faults).add(&of_pod(&net, "c")).await.unwrap_err();
    assert_kept(&world).await;
}

/// A release whose write nobody has heard of may take effect at any time: an ADD that is told of it leaves no block and no
/// claim as that release has read them.
#[tokio::test]
async fn an_add_after_a_release_that_may_still_take_effect_leaves_nothing_for_it_to_find() {
    for (name, ahead) in [("f", false), ("f", true), ("r", false), ("r", true)] {
        let world = World::new();
        if name == "f" {
            world.fixed(name, "app", FIXED)
        } else {
            world.random(name)
        };
        let (net, uid) = (world.net(), format!("uid-of-{name}"));
        let mut attachment = attachment(&net, "n1", name, "c");
        attachment.pod = Some(PodRef { namespace: "default", name, uid: Some(&uid) });
        let attachment = if ahead { attachment.ahead() } else { attachment };
        let given = world.driver().add(&attachment).await.unwrap();
        let stale = world.list::<IPAMBlock>().await.remove(0);
        let claim = world.claim(FIXED).await;
        if ahead || name == "r" {
            world.driver().add(&attachment).await.unwrap();
            let version = &world.list::<IPAMBlock>().await[0].metadata.resource_version;
            assert_eq!(version, &stale.metadata.resource_version, "without such a release nothing is written");
        }
        let anew = Attachment { anew: true, ..attachment };
        assert_eq!(world.driver().add(&anew).await.unwrap(), given, "{name}");
        let refused = world.objects.replace(&stale).await.unwrap_err();
        assert!(matches!(refused.failure, Failure::Conflict), "{name}, ahead {ahead}: {refused}");
        if let Some(claim) = claim {
            let cleared = claim.value.released();
            let swapped = world.ledger.swap(ip(FIXED), Some(claim.revision), Some(&cleared)).await.unwrap();
            assert!(matches!(swapped, Swap::Lost(_)), "ahead {ahead}");
        }
        world.assert_sound().await;
    }
}

fn add_of(container: &str) -> Invocation {
    let args = CniArgs {
        pod_namespace: Some("default".into()),
        pod_name: Some("f".into()),
        pod_uid: Some("uid-of-f".into()),
        ..CniArgs::default()
    };
    let (container_id, ifname) = (container.to_owned(), "eth0".to_owned());
    Invocation { verb: Verb::Add, container_id, ifname, args }
}

fn state(directory: &tempfile::TempDir) -> Arc<State> {
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    Arc::new(State::open(directory.path()))
}

#[tokio::test]
async fn a_claim_names_the_sandbox_that_has_the_address_by_now_and_none_before_it() {
    let (world, directory) = (World::new(), tempfile::tempdir().unwrap());
    let state = state(&directory);
    world.fixed("f", "app", FIXED);
    take_ahead(&world).await;
    let driver = world.driver().gated(state.clone());
    let named = async || world.claim(FIXED).await.unwrap().value.holder.unwrap().container_id;
    state.put_note("uid-of-f", &Note::of(&add_of("c1")));
    driver.name_container(ip(FIXED), "uid-of-f", "c1", "eth0").await.unwrap();
    assert_eq!(named().await, "c1");
    // The next sandbox has it, and the last one's ADD comes round to this so late.
    state.put_note("uid-of-f", &Note::of(&add_of("c2")));
    driver.name_container(ip(FIXED), "uid-of-f", "c2", "eth0").await.unwrap();
    driver.name_container(ip(FIXED), "uid-of-f", "c1", "eth0").await.unwrap();
    assert_eq!(named().await, "c2");
    state.drop_note("uid-of-f");
    driver.name_container(ip(FIXED), "uid-of-f", "c1", "eth0").await.unwrap();
    assert_eq!(named().await, "c2");
}

#[tokio::test]
async fn a_second_add_of_a_container_gets_what_was_taken_ahead_or_an_error() {
    let (world, directory) = (World::new(), tempfile::tempdir().unwrap());
    let state = state(&directory);
    world.random("f");
    let net = world.net();
    let taken = world.driver().add(&of_pod(&net, "").ahead()).await.unwrap();
    let (invocation, again) = (add_of("c"), add_of("c"));
    let call =
        Call { invocation: &invocation, net: &net, node: "n1", state: &state, gone: &|| false, taken: Some(&taken) };
    let first = call.run(&world.driver().gated(state.clone())).await.unwrap().given.unwrap();
    assert_eq!(first.addresses, taken);
    // Another agent, which remembers nothing, and a server that fails once, at whichever read.
    let call = Call { invocation: &again, taken: None, ..call };
    let mut refused = 0;
    for at in 0..4 {
        let reads = AtomicUsize::new(0);
        let faults = Faults::new(move |call| {
            let read = call.verb == "get" && call.object.starts_with("ipamblocks");
            (read && reads.fetch_add(1, Ordering::Relaxed) == at)
                .then(|| Fault::Fail(Failure::Unknown("HTTP 500".into())))
        });
        match call.run(&world.faulty(&faults).gated(state.clone())).await {
            Ok(served) => assert_eq!(served.given.unwrap().addresses, taken, "read {at} failed"),
            Err(_) => refused += 1,
        }
        assert_eq!(world.allocated().await, [(taken[0].address, "default.f".to_owned())], "read {at} failed");
    }
    assert!(refused > 0);
    let second = call.run(&world.driver().gated(state.clone())).await.unwrap().given.unwrap();
    assert_eq!(second.addresses, taken);
    world.assert_sound().await;
}

/// Another writer, which never pauses.
fn contended(world: &World) -> Faults {
    let other = world.clone();
    Faults::new(move |call| {
        assert!(call.number < 2000, "the claim is tried without end");
        if call.verb == "txn" && call.object == format!("claim {FIXED}") {
            let found = other.ledger.read(ip(FIXED)).now_or_never().unwrap().unwrap().unwrap();
            let mut claim = found.value;
            claim.holder.iter_mut().for_each(|holder| holder.since += jiff::SignedDuration::from_nanos(1));
            other.ledger.swap(ip(FIXED), Some(found.revision), Some(&claim)).now_or_never().unwrap().unwrap();
        }
        None
    })
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_somebody_writes_without_pause_is_given_up_in_time() {
    let (world, directory) = (World::new(), tempfile::tempdir().unwrap());
    let state = state(&directory);
    world.fixed("f", "app", FIXED);
    take_ahead(&world).await;
    let faults = contended(&world);
    state.put_note("uid-of-f", &Note::of(&add_of("c1")));
    let naming = world.faulty(&faults).gated(state.clone());
    let refused = naming.name_container(ip(FIXED), "uid-of-f", "c1", "eth0").await.unwrap_err();
    assert!(refused.to_string().contains("changed by somebody else"), "{refused}");
    let net = world.net();
    let begun = tokio::time::Instant::now();
    let refused = world.faulty(&contended(&world)).del(&of_pod(&net, "")).await.unwrap_err();
    assert!(refused.to_string().contains("changed by somebody else"), "{refused}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
    // What is left of it is found by the next one.
    world.driver().del(&of_pod(&net, "")).await.unwrap();
    assert!(world.claim(FIXED).await.unwrap().value.holder.is_none() && world.allocated().await.is_empty());
}

/// An ADD by the plugin itself, or by an agent that is stopping, gives the container an address of its own, which the next
/// agent knows nothing of when it takes one ahead for the pod.
#[tokio::test]
async fn a_second_add_of_a_container_that_has_its_own_address_gets_none_of_its_pods() {
    for noted in [false, true] {
        let (world, directory) = (World::new(), tempfile::tempdir().unwrap());
        let state = state(&directory);
        world.random("f");
        let (net, invocation, other) = (world.net(), add_of("c"), add_of("c2"));
        let alone =
            Call { invocation: &invocation, net: &net, node: "n1", state: &state, gone: &|| false, taken: None };
        let first = alone.run(&world.driver().gated(state.clone())).await.unwrap().given.unwrap();
        let taken = world.driver().add(&of_pod(&net, "").ahead()).await.unwrap();
        assert_ne!(taken, first.addresses);
        if noted {
            state.put_note("uid-of-f", &Note::of(&other));
        }
        let by_agent = Call { taken: Some(&taken), ..alone };
        let second = by_agent.run(&world.driver().gated(state.clone())).await.unwrap().given.unwrap();
        assert_eq!(second.addresses, first.addresses, "noted {noted}");
        // The first ADD of another sandbox gets what is ahead, and reads nothing for that.
        let next =
            Call { invocation: &other, net: &net, node: "n1", state: &state, gone: &|| false, taken: Some(&taken) };
        let silent = world.faulty(&Faults::new(|call| panic!("{call:?}")));
        let given = next.run(&silent.gated(state.clone())).await.unwrap().given.unwrap();
        assert_eq!(given.addresses, taken);
    }
}

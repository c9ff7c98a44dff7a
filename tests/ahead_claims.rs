//! A pod's fixed address is put on record ahead of its containers while an ADD of one of them is under way, in another
//! process: whatever becomes of that ADD, the pod keeps the address, and nobody else gets it.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use calico::IPAMBlock;
use common::{World, attachment, ip};
use futures::FutureExt as _;
use kube_ipam::driver::{Attachment, Error, PodRef};
use kube_ipam::netconf::NetConf;
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

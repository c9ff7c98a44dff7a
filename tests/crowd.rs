//! Many ADDs at once on a node whose blocks are full: one of them looks for the next block, for all.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use calico::IPAMBlock;
use common::World;
use futures::future::join_all;
use kube_ipam::driver::Error;
use kube_ipam::service::state::State;
use kube_ipam::store::faulty::{Fault, Faults};
use serde_json::json;

const CROWD: usize = 100;

/// Every call takes a while, so that all ADDs are under way at the same time.
fn slow() -> Faults {
    Faults::new(|_| Some(Fault::Pause(Duration::from_millis(2))))
}

fn calls(faults: &Faults, verb: &str, object: &str) -> usize {
    faults.calls().iter().filter(|call| call.verb == verb && call.object.starts_with(object)).count()
}

async fn all_at_once(world: &World, faults: &Faults) -> Vec<Result<std::net::IpAddr, Error>> {
    let (driver, net) = (world.faulty(faults), world.net());
    let names: Vec<String> = (0..CROWD).map(|n| format!("p{n}")).collect();
    names.iter().for_each(|name| drop(world.random(name)));
    let adds = names.iter().map(|name| common::add(&driver, &net, "n1", name, name));
    join_all(adds).await.into_iter().map(|answer| answer.map(|assigned| assigned[0].address)).collect()
}

/// A network with the whole pool as its range.
fn wide() -> World {
    let mut world = World::new();
    world.conf["ipam"]["rangeStart"] = json!("10.244.0.2");
    world.conf["ipam"]["rangeEnd"] = json!("10.244.255.254");
    world
}

#[tokio::test(start_paused = true)]
async fn a_crowd_claims_no_more_blocks_than_it_needs() {
    let (world, faults) = (wide(), slow());
    let answers = all_at_once(&world, &faults).await;
    let mut addresses: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), CROWD);
    assert_eq!(world.list::<IPAMBlock>().await.len(), 2, "100 addresses fit into two blocks of 64");
    for object in ["ipamblocks", "blockaffinities"] {
        assert_eq!(calls(&faults, "create", object), 2, "{object}");
    }
    world.assert_sound().await;
}

/// Without an agent every ADD is a process of its own; what they share is the node's state directory.
#[tokio::test(start_paused = true)]
async fn a_crowd_of_processes_claims_each_block_once() {
    let (world, faults) = (wide(), slow());
    let directory = tempfile::tempdir().unwrap();
    let net = world.net();
    let adds = (0..CROWD).map(|number| {
        let (name, state) = (format!("p{number}"), State::open(directory.path()));
        world.random(&name);
        let (driver, net) = (world.faulty(&faults).gated(Arc::new(state)), &net);
        async move { common::add(&driver, net, "n1", &name, &name).await.unwrap()[0].address }
    });
    let addresses: BTreeSet<_> = join_all(adds.collect::<Vec<_>>()).await.into_iter().collect();
    assert_eq!(addresses.len(), CROWD);
    assert_eq!(world.list::<IPAMBlock>().await.len(), 2, "100 addresses fit into two blocks of 64");
    for object in ["ipamblocks", "blockaffinities"] {
        assert_eq!(calls(&faults, "create", object), 2, "{object}");
    }
    world.assert_sound().await;
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_has_to_borrow_lists_the_blocks_a_few_times_only() {
    let world = wide();
    world.config(json!({"strictAffinity": false, "autoAllocateBlocks": false, "maxBlocksPerHost": 1}));
    // Blocks of another node, all of which are looked at only in a list.
    let claimed = World { conf: world.conf.clone(), ..world.clone() };
    claimed.config(json!({"strictAffinity": false, "autoAllocateBlocks": true, "maxBlocksPerHost": 20}));
    claimed.random("other");
    claimed.add("n2", "other", "other").await.unwrap();
    world.config(json!({"strictAffinity": false, "autoAllocateBlocks": false, "maxBlocksPerHost": 1}));
    let faults = slow();
    let answers = all_at_once(&world, &faults).await;
    let (given, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((given.len(), refused.len()), (63, CROWD - 63), "one block of 64, of which one is in use");
    for error in refused {
        assert!(matches!(error.unwrap_err(), Error::Exhausted(_)));
    }
    let lists = calls(&faults, "list", "ipamblocks");
    assert!((1..=12).contains(&lists), "{lists} lists of all blocks for {CROWD} ADDs");
    world.assert_sound().await;
}

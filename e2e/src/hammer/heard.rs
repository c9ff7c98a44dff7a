//! What all nodes hear of the cluster, by one watch for each kind instead of one for each kind and node.
//!
//! Keeps: a node's shelves get what its own watches would bring, in the same order, and nothing else. An agent
//! watches a block once its affinity is confirmed; here a block is put down when it names the node.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use calico::{BlockAffinity, IPAMBlock};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use kube_ipam::store::Object;
use kube_ipam::store::cached::{Listing, Shelf, Shelves};
use tokio::task::JoinSet;

/// Longest wait for the first lists.
const LISTED: Duration = Duration::from_secs(60);

/// Every node's shelves, by the node's name.
pub(super) type Town = HashMap<String, Arc<Shelves>>;

/// Starts the watches; returns when every shelf is filled. They end when what is returned is dropped.
pub(super) async fn listen(client: &Client, town: Arc<Town>) -> Result<JoinSet<()>> {
    let mut watches = JoinSet::new();
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.namespaces, |_| To::All));
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.pools, |_| To::All));
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.reservations, |_| To::All));
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.config, |_| To::All));
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.information, |_| To::All));
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.nodes, |node: &Node| To::One(node.name_any())));
    watches.spawn(follow(
        client.clone(),
        town.clone(),
        |s| &s.affinities,
        |a: &BlockAffinity| To::One(a.spec.node.clone()),
    ));
    watches.spawn(follow(client.clone(), town.clone(), |s| &s.pods, of_pod));
    watches.spawn(follow_blocks(client.clone(), town.clone()));
    let started = Instant::now();
    while let Some(late) = town.values().find_map(|shelves| shelves.unsynced().into_iter().next()) {
        if started.elapsed() > LISTED {
            bail!("{late} are not listed after {LISTED:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(watches)
}

/// Whom an object concerns.
enum To {
    All,
    One(String),
}

fn of_pod(pod: &Pod) -> To {
    To::One(pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default())
}

impl To {
    fn shelves<'t>(&self, town: &'t Town) -> Vec<&'t Shelves> {
        match self {
            To::All => town.values().map(Arc::as_ref).collect(),
            To::One(node) => town.get(node).map(Arc::as_ref).into_iter().collect(),
        }
    }
}

async fn follow<K>(client: Client, town: Arc<Town>, shelf: fn(&Shelves) -> &Shelf<K>, to: fn(&K) -> To)
where
    K: Object + Debug,
{
    let mut events = watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff().boxed();
    let (mut began, mut listed) = (begin(&town, shelf), Vec::<K>::new());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => (began, listed) = (begin(&town, shelf), Vec::new()),
            Ok(watcher::Event::InitApply(object)) => listed.push(object),
            Ok(watcher::Event::InitDone) => fill(&town, shelf, to, &began, std::mem::take(&mut listed)),
            Ok(watcher::Event::Apply(object)) => {
                to(&object).shelves(&town).into_iter().for_each(|s| shelf(s).put(object.clone()));
            }
            Ok(watcher::Event::Delete(object)) => {
                to(&object).shelves(&town).into_iter().for_each(|s| shelf(s).deleted(&object));
            }
            Err(error) => eprintln!("a watch of {} broke off and begins anew: {error}", K::plural(&())),
        }
    }
}

/// Every node's list begins.
fn begin<K: Object>(town: &Town, shelf: fn(&Shelves) -> &Shelf<K>) -> HashMap<String, Listing> {
    town.iter().map(|(node, shelves)| (node.clone(), shelf(shelves).begin_list())).collect()
}

/// Gives every node its part of a list, be it empty.
fn fill<K: Object>(
    town: &Town,
    shelf: fn(&Shelves) -> &Shelf<K>,
    to: fn(&K) -> To,
    began: &HashMap<String, Listing>,
    listed: Vec<K>,
) {
    let mut of_all = Vec::new();
    let mut of_one: HashMap<String, Vec<K>> = HashMap::new();
    for object in listed {
        match to(&object) {
            To::All => of_all.push(object),
            To::One(node) => of_one.entry(node).or_default().push(object),
        }
    }
    for (node, shelves) in town {
        let mut objects = of_all.clone();
        objects.extend(of_one.remove(node).unwrap_or_default());
        shelf(shelves).reset(began[node], objects);
    }
}

/// Blocks are never listed by an agent, and may pass from one node to another.
async fn follow_blocks(client: Client, town: Arc<Town>) {
    let mut hosts: HashMap<String, String> = HashMap::new();
    let mut events = watcher(Api::<IPAMBlock>::all(client), watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::InitApply(block) | watcher::Event::Apply(block)) => {
                let (name, host) = (block.name_any(), block.spec.host().unwrap_or_default().to_owned());
                let before = hosts.insert(name.clone(), host.clone()).filter(|before| *before != host);
                if let Some(shelves) = before.and_then(|before| town.get(&before)) {
                    shelves.blocks.evict(&name);
                }
                if let Some(shelves) = town.get(&host) {
                    shelves.blocks.put(block);
                }
            }
            Ok(watcher::Event::Delete(block)) => {
                let host = hosts.remove(&block.name_any());
                if let Some(shelves) = host.and_then(|host| town.get(&host)) {
                    shelves.blocks.deleted(&block);
                }
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => eprintln!("the watch of blocks broke off and begins anew: {error}"),
        }
    }
}

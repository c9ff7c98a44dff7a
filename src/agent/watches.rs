//! What is heard of the cluster: one watch for each kind, and one for each block of this node.
//!
//! A watch that breaks begins anew with a list; until then what was heard last stays, which costs retries at most.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use calico::{BlockAffinity, IPAMBlock, cidr_name};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, JoinSet};

use super::datastore::AgentGate;
use super::health::Health;
use super::metrics::Metrics;
use crate::store::Object;
use crate::store::cached::{Shelf, Shelves};

/// What became of a pod of this node.
#[derive(Debug)]
pub(super) enum PodEvent {
    /// It is there, new or changed; also once for each pod at the start.
    Seen(Box<Pod>),
    /// It is gone.
    Gone(Box<Pod>),
}

/// The running watches; they end when this is dropped.
pub(super) struct Watches {
    _tasks: JoinSet<()>,
}

/// What the watches are seen by.
#[derive(Clone)]
pub(super) struct Seen {
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
}

/// The ways to the API server.
pub(super) struct Clients {
    /// For watches: a connection for each.
    pub watching: Client,
    /// On which the calls read and write, too.
    pub writing: Client,
}

/// Starts all watches; `listed` is told when the node's affinities are known.
pub(super) fn start(
    clients: Clients,
    datastore: Arc<AgentGate>,
    shelves: Arc<Shelves>,
    pods: UnboundedSender<PodEvent>,
    listed: Arc<Notify>,
    seen: &Seen,
) -> Watches {
    let mut tasks = JoinSet::new();
    let Clients { watching: client, writing } = clients;
    let node = shelves.node().to_owned();
    let all = watcher::Config::default;
    let of_node = format!("spec.nodeName={node}");
    let named = format!("metadata.name={node}");
    tasks.spawn(watch(client.clone(), all().fields(&named), shelves.clone(), |s| &s.nodes, seen.clone(), |_| ()));
    tasks.spawn(watch(client.clone(), all(), shelves.clone(), |s| &s.namespaces, seen.clone(), |_| ()));
    tasks.spawn(watch(client.clone(), all(), shelves.clone(), |s| &s.pools, seen.clone(), |_| ()));
    tasks.spawn(watch(client.clone(), all(), shelves.clone(), |s| &s.reservations, seen.clone(), |_| ()));
    tasks.spawn(watch(client.clone(), all(), shelves.clone(), |s| &s.config, seen.clone(), |_| ()));
    tasks.spawn(follow_datastore(datastore, writing, client.clone(), shelves.clone(), seen.clone()));
    let told = move |heard: Heard<'_, Pod>| match heard {
        Heard::Seen(pod) => drop(pods.send(PodEvent::Seen(Box::new(pod.clone())))),
        Heard::Gone(pod) => drop(pods.send(PodEvent::Gone(Box::new(pod.clone())))),
        Heard::Listed => {}
    };
    tasks.spawn(watch(client.clone(), all().fields(&of_node), shelves.clone(), |s| &s.pods, seen.clone(), told));
    let (metrics, running) = (seen.metrics.clone(), BTreeMap::new());
    let mut blocks = BlockWatches { client: client.clone(), shelves: shelves.clone(), metrics, running };
    let selector = shelves.selector().to_owned();
    let follow = move |heard: Heard<'_, BlockAffinity>| {
        blocks.follow();
        if matches!(heard, Heard::Listed) {
            listed.notify_one();
        }
    };
    tasks.spawn(watch(client, all().labels(&selector), shelves, |s| &s.affinities, seen.clone(), follow));
    Watches { _tasks: tasks }
}

/// What a watch tells, after the shelf has it.
enum Heard<'a, K> {
    Seen(&'a K),
    Gone(&'a K),
    Listed,
}

/// Keeps a shelf up to date, for ever.
async fn watch<K>(
    client: Client,
    config: watcher::Config,
    shelves: Arc<Shelves>,
    shelf: fn(&Shelves) -> &Shelf<K>,
    seen: Seen,
    mut told: impl FnMut(Heard<'_, K>) + Send,
) where
    K: Object + Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let shelf = shelf(&shelves);
    let mut events = watcher(Api::<K>::all(client), config).default_backoff().boxed();
    let (mut began, mut listed) = (shelf.begin_list(), Vec::<K>::new());
    let pulse = seen.health.pulse(format!("watch of {}", K::plural(&())));
    while let Some(event) = pulse.while_waiting(events.next()).await {
        match event {
            // Before the list is asked for.
            Ok(watcher::Event::Init) => (began, listed) = (shelf.begin_list(), Vec::new()),
            Ok(watcher::Event::InitApply(object)) => listed.push(object),
            Ok(watcher::Event::InitDone) => {
                let objects = std::mem::take(&mut listed);
                shelf.reset(began, objects.clone()).iter().for_each(|gone| told(Heard::Gone(gone)));
                objects.iter().for_each(|o| told(Heard::Seen(o)));
                told(Heard::Listed);
                tell_filled(&shelves, &K::plural(&()));
            }
            Ok(watcher::Event::Apply(object)) => {
                shelf.put(object.clone());
                told(Heard::Seen(&object));
            }
            Ok(watcher::Event::Delete(object)) => {
                shelf.deleted(&object);
                told(Heard::Gone(&object));
            }
            Err(error) => {
                seen.metrics.watch_restart(&K::plural(&()));
                tracing::warn!(kind = %K::plural(&()), %error, "a watch broke off and begins anew");
            }
        }
    }
}

/// Logs that the list of this kind was the last that was waited for.
pub(super) fn tell_filled(shelves: &Shelves, kind: &str) {
    if shelves.unsynced().is_empty() {
        tracing::info!(kind, "listed; every cache is filled");
    }
}

/// ClusterInformation is followed by the gate of the writes; over HTTP/1.1 like any other kind, and no write is allowed
/// on the strength of that.
async fn follow_datastore(gate: Arc<AgentGate>, writing: Client, watching: Client, shelves: Arc<Shelves>, seen: Seen) {
    let pulse = seen.health.pulse("gate of the datastore");
    let work = async {
        gate.follow(writing, shelves.clone(), seen.clone()).await;
        watch(watching, watcher::Config::default(), shelves, |s| &s.information, seen, |_| ()).await;
    };
    pulse.while_waiting(work).await;
}

/// One watch for each block that this node has an affinity for.
struct BlockWatches {
    client: Client,
    shelves: Arc<Shelves>,
    metrics: Arc<Metrics>,
    running: BTreeMap<String, AbortHandle>,
}

impl BlockWatches {
    fn follow(&mut self) {
        let affinities = self.shelves.affinities.snapshot();
        let wanted: Vec<String> = affinities
            .iter()
            .filter(|a| a.is_confirmed() && !a.is_deleted())
            .map(|a| cidr_name(&a.spec.cidr))
            .collect();
        let shelves = self.shelves.clone();
        self.running.retain(|name, task| {
            let keep = wanted.contains(name);
            if !keep {
                task.abort();
                shelves.blocks.evict(name);
            }
            keep
        });
        for name in wanted {
            let (client, shelves, metrics) = (self.client.clone(), self.shelves.clone(), self.metrics.clone());
            self.running.entry(name).or_insert_with_key(|name| {
                tokio::spawn(follow_block(client, shelves, metrics, name.clone())).abort_handle()
            });
        }
    }
}

impl Drop for BlockWatches {
    fn drop(&mut self) {
        self.running.values().for_each(AbortHandle::abort);
    }
}

/// A single block. Its list is no list of all blocks, so it does not reset the shelf; one that lacks the block says
/// that it is gone.
async fn follow_block(client: Client, shelves: Arc<Shelves>, metrics: Arc<Metrics>, name: String) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(Api::<IPAMBlock>::all(client), config).default_backoff().boxed();
    let (mut newest, mut listed) = (shelves.blocks.newest(), false);
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => (newest, listed) = (shelves.blocks.newest(), false),
            Ok(watcher::Event::InitApply(block)) => {
                listed = true;
                shelves.blocks.put(block);
            }
            Ok(watcher::Event::InitDone) if !listed => shelves.blocks.absent(&name, newest),
            Ok(watcher::Event::InitDone) => {}
            Ok(watcher::Event::Apply(block)) => shelves.blocks.put(block),
            Ok(watcher::Event::Delete(block)) => shelves.blocks.deleted(&block),
            Err(error) => {
                metrics.watch_restart(&IPAMBlock::plural(&()));
                tracing::warn!(block = name, %error, "a watch broke off and begins anew");
            }
        }
    }
}

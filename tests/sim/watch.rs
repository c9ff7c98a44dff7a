//! The watches of a node's agent, as `src/agent/watches.rs` has them: they lag, break off, go on from the version of
//! the last event or bookmark, or are told that it is too old (410), and begin again with a list. What was deleted in
//! such a gap is told by no event.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use calico::{BlockAffinity, IPAMBlock, cidr_name};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube_ipam::store::cached::{Shelf, Shelves};
use kube_ipam::store::{Object, Objects as _};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::rng::{Rng, hash, mix};
use super::signal::Signal;
use super::sim::Sim;
use super::truth::Changed;
use super::wire::{Caller, Wire};

/// How many versions the server remembers: a watch that begins further back is refused with 410.
const REMEMBERED: u64 = 150;

/// What a watch tells, after the shelf has it.
pub enum Heard<'a, K> {
    Seen(&'a K),
    Gone(&'a K),
    Listed,
}

/// One agent's watch of one kind.
struct Watch {
    sim: Arc<Sim>,
    wire: Wire,
    node: usize,
    rng: Rng,
    shelves: Arc<Shelves>,
}

/// Starts all watches of an agent. `pods` hears of the node's pods, `listed` is called when its affinities are known.
pub fn start(
    sim: &Arc<Sim>,
    agent: &str,
    node: usize,
    shelves: &Arc<Shelves>,
    pods: impl Fn(Heard<'_, Pod>) + Send + 'static,
    listed: impl Fn() + Send + 'static,
) -> Vec<JoinHandle<()>> {
    let caller = Caller::immortal(format!("watches {agent}"), Some(node));
    let new = |kind: &str| Watch {
        sim: sim.clone(),
        wire: Wire::new(sim, &caller),
        node,
        rng: Rng::new(mix(&[sim.plan.seed, caller.id(), hash(kind)])),
        shelves: shelves.clone(),
    };
    let name = sim.hosts[node].name.clone();
    let (of_pod, of_node, of_affinity) = (name.clone(), name.clone(), name);
    let affinities = Arc::new(Signal::new(0_u64));
    let changed = affinities.clone();
    let told = move |heard: Heard<'_, BlockAffinity>| {
        changed.set(changed.value() + 1);
        if matches!(heard, Heard::Listed) {
            listed();
        }
    };
    vec![
        tokio::spawn(new("nodes").follow(
            |s| &s.nodes,
            move |n: &Node| n.metadata.name.as_ref() == Some(&of_node),
            |_| (),
        )),
        tokio::spawn(new("namespaces").follow(|s| &s.namespaces, |_| true, |_| ())),
        tokio::spawn(new("pools").follow(|s| &s.pools, |_| true, |_| ())),
        tokio::spawn(new("reservations").follow(|s| &s.reservations, |_| true, |_| ())),
        tokio::spawn(new("config").follow(|s| &s.config, |_| true, |_| ())),
        tokio::spawn(new("information").follow(|s| &s.information, |_| true, |_| ())),
        tokio::spawn(new("pods").follow(
            |s| &s.pods,
            move |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&of_pod),
            pods,
        )),
        tokio::spawn(new("affinities").follow(
            |s| &s.affinities,
            move |a: &BlockAffinity| a.spec.node == of_affinity,
            told,
        )),
        tokio::spawn(new("blocks").follow_blocks(affinities)),
    ]
}

// === impl Watch ===

impl Watch {
    /// Keeps a shelf up to date, for ever.
    async fn follow<K: Object>(
        mut self,
        shelf: fn(&Shelves) -> &Shelf<K>,
        selects: impl Fn(&K) -> bool + Send,
        told: impl Fn(Heard<'_, K>) + Send,
    ) {
        let shelves = self.shelves.clone();
        let (shelf, changes) = (shelf(&shelves), self.sim.truth().changes_of::<K>());
        loop {
            let began = shelf.begin_list();
            let Ok((mut since, mut listed)) = self.wire.list_at::<K>().await else {
                self.pause(1500).await;
                continue;
            };
            listed.retain(&selects);
            let gone = shelf.reset(began, listed.clone());
            if !gone.is_empty() {
                self.sim.seen("deletions that only a list told of");
            }
            gone.iter().for_each(|gone| told(Heard::Gone(gone)));
            listed.iter().for_each(|object| told(Heard::Seen(object)));
            told(Heard::Listed);
            loop {
                changes.until(|newest| newest > since).await;
                self.lag().await;
                if self.breaks() {
                    if self.is_too_old(since).await {
                        break;
                    }
                    continue;
                }
                let (last, changed) = self.sim.truth().changed_since::<K>(since, &selects);
                since = last;
                for Changed { object, deleted } in changed {
                    if deleted {
                        shelf.deleted(&object);
                        told(Heard::Gone(&object));
                    } else {
                        shelf.put(object.clone());
                        told(Heard::Seen(&object));
                    }
                }
            }
        }
    }

    /// One watch for each block that the node has an affinity for; they break off together.
    async fn follow_blocks(mut self, affinities: Arc<Signal<u64>>) {
        let changes = self.sim.truth().changes_of::<IPAMBlock>();
        let shelves = self.shelves.clone();
        let (mut followed, mut wanted) = (BTreeSet::<String>::new(), BTreeSet::<String>::new());
        let (mut known, mut looked, mut since) = (0, 0, self.sim.truth().revision());
        loop {
            tokio::select! {
                biased;
                () = affinities.until(|now| now != known) => known = affinities.value(),
                () = changes.until(|newest| newest > since) => self.lag().await,
            }
            if known != looked {
                looked = known;
                let affinities = shelves.affinities.snapshot();
                let confirmed = affinities.iter().filter(|a| a.is_confirmed() && !a.is_deleted());
                wanted = confirmed.map(|a| cidr_name(&a.spec.cidr)).collect();
                followed.difference(&wanted).for_each(|name| shelves.blocks.evict(name));
                followed.retain(|name| wanted.contains(name));
            }
            if self.breaks() {
                if self.is_too_old(since).await {
                    followed.clear();
                    since = self.sim.truth().revision();
                }
                continue;
            }
            for name in wanted.difference(&followed.clone()) {
                let newest = shelves.blocks.newest();
                match self.wire.get::<IPAMBlock>(None, name).await {
                    Ok(Some(block)) => shelves.blocks.put(block),
                    Ok(None) => shelves.blocks.absent(name, newest),
                    Err(_) => {
                        self.pause(1500).await;
                        // It is looked for again.
                        known = 0;
                        continue;
                    }
                }
                followed.insert(name.clone());
            }
            let is_followed = |block: &IPAMBlock| followed.contains(&cidr_name(&block.spec.cidr));
            let (last, changed) = self.sim.truth().changed_since::<IPAMBlock>(since, is_followed);
            since = last;
            for Changed { object, deleted } in changed {
                if deleted {
                    shelves.blocks.deleted(&object);
                } else {
                    shelves.blocks.put(object);
                }
            }
        }
    }

    /// How long an event is on its way.
    async fn lag(&mut self) {
        let (class, long) = (self.rng.below(100), self.rng.next());
        let lag = match class {
            _ if self.sim.is_calm() => 0,
            0..=59 => long % 20,
            60..=94 => long % 400,
            _ => long % 5000,
        };
        self.sleep(lag).await;
    }

    /// Whether the connection breaks instead of bringing the event.
    fn breaks(&mut self) -> bool {
        let breaks = self.rng.chance(self.sim.plan.breaks) && !self.sim.is_calm();
        breaks || self.sim.is_cut(self.node)
    }

    /// Connects again; whether that version is too old by now. A bookmark may have said that nothing has happened since.
    async fn is_too_old(&mut self, since: u64) -> bool {
        while self.sim.is_cut(self.node) {
            self.sleep(700).await;
        }
        self.pause(3000).await;
        let bookmarked = self.rng.chance(500);
        let compacted = self.rng.chance(400);
        self.sim.seen("watches that broke");
        compacted || (!bookmarked && self.sim.truth().revision() > since + REMEMBERED)
    }

    async fn pause(&mut self, at_most: u64) {
        let pause = 1 + self.rng.below(at_most);
        self.sleep(pause).await;
    }

    async fn sleep(&self, milliseconds: u64) {
        if milliseconds > 0 {
            sleep(Duration::from_millis(milliseconds)).await;
        }
    }
}

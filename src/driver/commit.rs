//! One write for everything that waits for the same block.
//!
//! Whoever gets the turn of a block makes the edits of all who queued for it meanwhile, on one reading, and
//! writes once; the others find their outcomes there. A process that serves a single container is the case of
//! a queue of one. Edits are independent: the refusal of one is no refusal of the rest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use calico::{Corrupt, IPAMBlock, cidr_name};
use ipnetwork::IpNetwork;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::converge::{Known, Step};
use super::edit::{Edit, Outcome};
use super::searches::Searches;
use super::{CONTAINER_KEY, Driver, Error, POD_UID_KEY};
use crate::store::{Ledger, Objects, StoreError};

/// The blocks that somebody is about to write, and the turn to look for another one.
#[derive(Default)]
pub(super) struct Queues {
    pub(super) searches: Searches,
    blocks: Mutex<HashMap<IpNetwork, Arc<Queue>>>,
}

/// Who waits for one block.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by the one who writes. Who waits for it is woken by its release, and looks first whether the
    /// outcome is there already.
    turn: tokio::sync::Mutex<()>,
}

struct Waiting {
    edit: Edit,
    known: Known<IPAMBlock>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Outcome, Error>>,
}

/// Why no edit of a batch was made.
#[derive(Debug, Clone)]
enum Failed {
    Store(StoreError),
    Damaged(Corrupt),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

// === impl Queues ===

impl Queues {
    fn join(&self, block: IpNetwork) -> Arc<Queue> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).entry(block).or_default().clone()
    }

    /// Forgets a block that nobody waits for any more.
    fn leave(&self, block: IpNetwork, queue: Arc<Queue>) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        drop(queue);
        if blocks.get(&block).is_some_and(|q| Arc::strong_count(q) == 1) {
            blocks.remove(&block);
        }
    }
}

impl Queue {
    fn push(&self, waiting: Waiting) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
    }

    fn take(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Makes `edit` on the block `cidr`, together with whatever else waits for it. `known` saves a read.
    pub(super) async fn commit(
        &self,
        cidr: IpNetwork,
        edit: Edit,
        known: Known<IPAMBlock>,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        let queue = self.queues.join(cidr);
        let (answer, mut outcome) = oneshot::channel();
        queue.push(Waiting { edit, known, deadline, answer });
        let turn = queue.turn.lock().await;
        let found = match outcome.try_recv() {
            Ok(found) => found,
            Err(_) => {
                self.write_batch(cidr, queue.take()).await;
                // Gone only if somebody who wrote for us was stopped half way.
                outcome
                    .try_recv()
                    .unwrap_or(Err(Error::Overtaken("the call that wrote this block for others was given up")))
            }
        };
        drop(turn);
        self.queues.leave(cidr, queue);
        found
    }

    async fn write_batch(&self, cidr: IpNetwork, mut batch: Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        let pass = self.gate.pass().await;
        // What the last one in the queue read is the newest.
        let newest = batch.iter_mut().map(|w| std::mem::replace(&mut w.known, Known::Unread)).next_back();
        let unsure = pass.waited() || self.objects.is_cache();
        let known = newest.filter(|_| !unsure).unwrap_or(Known::Unread);
        self.write_edits(cidr, known, batch, self.objects.is_cache()).await;
    }

    /// `stale`: what is read at first may be out of date, so that a refusal needs a second look.
    async fn write_edits(&self, cidr: IpNetwork, known: Known<IPAMBlock>, mut batch: Vec<Waiting>, stale: bool) {
        let now = self.now();
        let deadline = batch.iter().map(|w| w.deadline).max().unwrap_or_else(Instant::now);
        let cooldown = batch.iter().map(|w| w.edit.cooldown()).max().unwrap_or_default();
        let mut outcomes: Vec<Result<Outcome, Error>> = Vec::new();
        let (mut looks, mut proven) = (0, false);
        let settled = self
            .converge_told::<IPAMBlock, (), Failed>(&cidr_name(&cidr), known, deadline, |current, refused| {
                looks += 1;
                batch.iter_mut().for_each(|waiting| waiting.edit.heard(refused));
                let Some(mut block) = current else {
                    outcomes = batch.iter().map(|w| Ok(w.edit.without_block())).collect();
                    return Ok(Step::Done(()));
                };
                if block.spec.is_deleted() {
                    return Ok(Step::Finish(block));
                }
                block.spec.validate().map_err(Failed::Damaged)?;
                block.spec.collect(cooldown, now);
                self.name_containers(&mut block, &batch);
                let made: Vec<_> = batch.iter_mut().map(|w| w.edit.apply(&mut block.spec, now)).collect();
                let changed = made.iter().any(|(changed, _)| *changed);
                proven = changed;
                outcomes = made.into_iter().map(|(_, outcome)| outcome).collect();
                if !changed {
                    return Ok(Step::Done(()));
                }
                if block.spec.is_empty() && block.spec.affinity().is_none() {
                    return Ok(Step::Delete(block, ()));
                }
                block.spec.advance();
                Ok(Step::Replace(block, ()))
            })
            .await;
        let failed = settled.err();
        let mut doubted = Vec::new();
        for waiting in batch {
            let outcome = match &failed {
                Some(Failed::Store(error)) => Err(error.clone().into()),
                Some(Failed::Damaged(reason)) => Err(Error::Damaged { block: cidr, reason: reason.clone() }),
                None => outcomes.remove(0),
            };
            let refused = matches!(&outcome, Err(Error::Taken { .. } | Error::Assign(_) | Error::Damaged { .. }));
            // Without a write there is no precondition that would have failed: nothing to give back, or everything on
            // record already, may be what was so before others wrote.
            let unproven = !proven && outcome.as_ref().is_ok_and(says_what_stands);
            if (refused || unproven) && stale && looks == 1 {
                doubted.push(waiting);
                continue;
            }
            // Who does not wait any more does not want to know.
            let _ = waiting.answer.send(outcome);
        }
        if !doubted.is_empty() {
            let fresh = self.objects.fresh::<IPAMBlock>(None, &cidr_name(&cidr)).await;
            match fresh {
                Ok(found) => {
                    let known = found.map_or(Known::Absent, Known::Present);
                    Box::pin(self.write_edits(cidr, known, doubted, false)).await;
                }
                Err(error) => {
                    for waiting in doubted {
                        let _ = waiting.answer.send(Err(error.clone().into()));
                    }
                }
            }
        }
    }

    /// Lets what is on record for pods name the containers that have it by now: with the next write, as none is made
    /// for this. Who has lost the node's notes still knows then whose DEL is a stale one.
    fn name_containers(&self, block: &mut IPAMBlock, batch: &[Waiting]) {
        for attribute in &mut block.spec.attributes {
            let Some(uid) = attribute.secondary(POD_UID_KEY) else { continue };
            // What a later sandbox took on is only looked up where it matters.
            if attribute.secondary(CONTAINER_KEY).is_some() && !batch.iter().any(|w| w.edit.releases_pod(uid)) {
                continue;
            }
            if let (Some(container), Some(secondary)) = (self.gate.container_of(uid), &mut attribute.secondary) {
                secondary.insert(CONTAINER_KEY.to_owned(), container);
            }
        }
    }
}

/// Whether an outcome that came without a write says something of what is on record.
fn says_what_stands(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Assigned { .. } | Outcome::Sides { .. } => true,
        Outcome::Released { freed, .. } => freed.is_empty(),
        // Another block is looked for, which is right in any case.
        Outcome::Full => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::time::Duration;

    use calico::{Affinity, IPAMBlockSpec, Reservations};
    use jiff::Timestamp;

    use super::*;
    use crate::driver::GatedDriver;
    use crate::driver::edit::{Assign, Release, Which, Whose};
    use crate::store::cached::{Cached, Shelves};
    use crate::store::memory::{MemoryLedger, MemoryObjects};

    const ADDRESS: &str = "10.0.0.9";

    type Remembering = GatedDriver<Cached<MemoryObjects>, MemoryLedger>;

    fn allocation() -> calico::Holder {
        calico::Holder { handle: "h".into(), secondary: BTreeMap::new() }
    }

    /// An agent that remembers the block with the allocation or without, where it stands the other way round.
    async fn remembering(allocated: bool) -> (MemoryObjects, Remembering, IpNetwork) {
        let (objects, shelves) = (MemoryObjects::default(), Arc::new(Shelves::new("n1")));
        let cidr: IpNetwork = "10.0.0.0/26".parse().unwrap();
        let empty = IPAMBlockSpec::new(cidr, &Affinity::host("n1"), Timestamp::now()).object();
        let mut full = empty.clone();
        full.spec.assign(ADDRESS.parse().unwrap(), &allocation(), None).unwrap();
        let (before, after) = if allocated { (full, empty) } else { (empty, full) };
        objects.put(&before);
        shelves.blocks.put(objects.get(None, &cidr_name(&cidr)).await.unwrap().unwrap());
        objects.put(&after);
        let driver = Driver::new(Cached::new(objects.clone(), shelves), None, Timestamp::now);
        (objects, driver, cidr)
    }

    async fn in_use(objects: &MemoryObjects, cidr: &IpNetwork) -> bool {
        !objects.get::<IPAMBlock>(None, &cidr_name(cidr)).await.unwrap().unwrap().spec.is_empty()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// The plugin had written the entry by itself, and the agent had not heard of it when DEL came.
    #[tokio::test]
    async fn a_release_that_finds_nothing_in_memory_looks_at_what_stands() {
        let (objects, driver, cidr) = remembering(false).await;
        let edit = Edit::Release(Release::new("h", Whose::Container { interface: None }, 0));
        let outcome = driver.commit(cidr, edit, Known::Unread, soon()).await.unwrap();
        assert!(matches!(outcome, Outcome::Released { ref freed, .. } if freed.len() == 1), "{outcome:?}");
        assert!(!in_use(&objects, &cidr).await);
    }

    /// The plugin had given the address back by itself, and the agent had not heard of it when ADD came again.
    #[tokio::test]
    async fn an_address_that_is_on_record_in_memory_only_is_put_on_record() {
        let (objects, driver, cidr) = remembering(true).await;
        let address: IpAddr = ADDRESS.parse().unwrap();
        let edit = Edit::Assign(Box::new(Assign {
            which: Which::Exactly(address, None),
            allocation: allocation(),
            renews: false,
            displaces: None,
            ours: Affinity::host("n1"),
            strict: false,
            cooldown: 0,
            ranges: None,
            reservations: Reservations::new(&[]),
        }));
        let outcome = driver.commit(cidr, edit, Known::Unread, soon()).await.unwrap();
        assert!(matches!(outcome, Outcome::Assigned { address: given, .. } if given == address), "{outcome:?}");
        assert!(in_use(&objects, &cidr).await);
    }
}

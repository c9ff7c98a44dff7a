//! calico-ipam as a second writer, by the rules of Calico: handle before block, blocks claimed in two phases,
//! reservations skipped, conflicts retried. Where upstream undoes a count after an answer that it did not hear,
//! so does this.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calico::block_affinity::label_selector;
use calico::{
    Affinity, AffinityState, BlockAffinity, Holder, IPAMBlock, IPAMBlockSpec, IPAMHandle, IPAMHandleSpec, IPPool,
    IPReservation, Reservations, affinity_name, cidr_name, handle_name,
};
use ipnetwork::IpNetwork;
use kube_ipam::store::{Failure, Objects as _, StoreError};
use tokio::time::timeout;

use super::node::Answer;
use super::pods::PodCell;
use super::sim::Sim;
use super::time;
use super::wire::{Caller, Wire};

const TRIES: usize = 12;
/// Longest time for a call; the runtime kills it then.
const PATIENCE: Duration = Duration::from_secs(20);

struct Writer {
    wire: Wire,
    node: usize,
    host: String,
    strict: bool,
    cooldown: i64,
}

pub async fn add(sim: &Arc<Sim>, node: usize, pod: &Arc<PodCell>, id: &str) -> Answer {
    let handle = format!("{}.{id}", sim.net.network);
    let holder = {
        let now = time::clock(node)();
        Holder::pod(handle, "default", &pod.name, &sim.hosts[node].name, now)
    };
    run(sim, node, &format!("calico ADD {id}"), async move |writer| writer.assign(&holder).await.map(|a| vec![a])).await
}

pub async fn del(sim: &Arc<Sim>, node: usize, id: &str) -> Answer {
    let handle = format!("{}.{id}", sim.net.network);
    run(sim, node, &format!("calico DEL {id}"), async move |writer| writer.release(&handle).await.map(|()| Vec::new()))
        .await
}

async fn run(
    sim: &Arc<Sim>,
    node: usize,
    name: &str,
    work: impl AsyncFnOnce(&Writer) -> Result<Vec<IpAddr>, StoreError>,
) -> Answer {
    let caller = Caller::mortal(format!("{name} #{}", sim.nth(name)), Some(node));
    let host = sim.hosts[node].name.clone();
    let (strict, cooldown) = (sim.plan.strict_affinity, sim.plan.cooldown);
    let writer = Writer { wire: Wire::new(sim, &caller), node, host, strict, cooldown };
    match timeout(PATIENCE, caller.run(work(&writer))).await {
        Ok(Some(Ok(addresses))) => Answer::Given(addresses),
        Ok(Some(Err(error))) => Answer::Refused(error.to_string()),
        Ok(None) | Err(_) => Answer::Nothing,
    }
}

fn gone(what: &str) -> StoreError {
    StoreError::new("assign", what, Failure::Refused("no address is left".into()))
}

fn is_conflict(error: &StoreError) -> bool {
    matches!(error.failure, Failure::Conflict | Failure::Exists | Failure::Absent)
}

impl Writer {
    async fn block(&self, cidr: &IpNetwork) -> Result<Option<IPAMBlock>, StoreError> {
        Ok(self.wire.get::<IPAMBlock>(None, &cidr_name(cidr)).await?.filter(|block| !block.spec.is_deleted()))
    }

    async fn assign(&self, holder: &Holder) -> Result<IpAddr, StoreError> {
        for _ in 0..TRIES {
            let reservations = Reservations::new(&self.wire.list::<IPReservation>("").await?);
            let Some(block) = self.find_block(&reservations).await? else { return Err(gone(&holder.handle)) };
            if let Some(address) = self.assign_from(block, holder, &reservations).await? {
                return Ok(address);
            }
        }
        Err(gone(&holder.handle))
    }

    /// An own block with room, a new one, or another's.
    async fn find_block(&self, reservations: &Reservations) -> Result<Option<IPAMBlock>, StoreError> {
        let ours = Affinity::host(&self.host);
        let has_room = |block: &IPAMBlock| {
            let mut spec = block.spec.clone();
            spec.collect(self.cooldown, time::clock(self.node)());
            spec.free(|a| !reservations.covers(a)) > 0
        };
        for affinity in self.wire.list::<BlockAffinity>(&label_selector(&ours)).await? {
            if !affinity.spec.cidr.is_ipv4() || !affinity.is_confirmed() || affinity.is_deleted() {
                continue;
            }
            let block = self.block(&affinity.spec.cidr).await?;
            if let Some(block) = block.filter(|b| b.spec.belongs_to(&ours) && has_room(b)) {
                return Ok(Some(block));
            }
        }
        let all = self.wire.list::<IPAMBlock>("").await?;
        for pool in self.wire.list::<IPPool>("").await?.into_iter().filter(|pool| pool.spec.cidr.is_ipv4()) {
            for cidr in pool.spec.blocks(pool.spec.start_for(&self.host)) {
                if all.iter().any(|block| block.spec.cidr == cidr) {
                    continue;
                }
                if let Some(block) = self.claim(&ours, cidr).await?.filter(has_room) {
                    return Ok(Some(block));
                }
            }
        }
        let mut all = all.into_iter().filter(|block| block.spec.cidr.is_ipv4());
        Ok(all.find(|block| !self.strict && !block.spec.is_deleted() && has_room(block)))
    }

    async fn claim(&self, ours: &Affinity, cidr: IpNetwork) -> Result<Option<IPAMBlock>, StoreError> {
        let pending = match self.wire.create(&BlockAffinity::pending(ours, &cidr)).await {
            Ok(pending) => pending,
            Err(error) if error.failure == Failure::Exists => {
                let name = affinity_name(&self.host, &cidr);
                let Some(found) = self.wire.get::<BlockAffinity>(None, &name).await? else { return Ok(None) };
                self.wire.replace(&found.with_state(AffinityState::Pending)).await?
            }
            Err(error) => return Err(error),
        };
        let fresh = IPAMBlockSpec::new(cidr, ours, time::clock(self.node)()).object();
        let block = match self.wire.create(&fresh).await {
            Ok(block) => block,
            Err(error) if error.failure == Failure::Exists => match self.block(&cidr).await? {
                Some(block) if block.spec.belongs_to(ours) => block,
                _ => {
                    self.wire.delete(&pending).await?;
                    return Ok(None);
                }
            },
            Err(error) => return Err(error),
        };
        self.wire.replace(&pending.with_state(AffinityState::Confirmed)).await?;
        Ok(Some(block))
    }

    async fn assign_from(
        &self,
        mut block: IPAMBlock,
        holder: &Holder,
        reservations: &Reservations,
    ) -> Result<Option<IpAddr>, StoreError> {
        block.spec.collect(self.cooldown, time::clock(self.node)());
        let ours = Affinity::host(&self.host);
        let strict = self.strict.then_some(&ours);
        let given = block.spec.assign_first(|a| !reservations.covers(a), holder, strict).ok().flatten();
        let Some(address) = given else { return Ok(None) };
        let cidr = block.spec.cidr;
        self.count(&holder.handle, &cidr, 1).await?;
        block.spec.advance();
        match self.wire.replace(&block).await {
            Ok(_) => Ok(Some(address)),
            Err(error) => {
                self.count(&holder.handle, &cidr, -1).await?;
                if is_conflict(&error) { Ok(None) } else { Err(error) }
            }
        }
    }

    /// Counts a handle up, making it, or down, deleting it at none.
    async fn count(&self, handle: &str, cidr: &IpNetwork, by: i64) -> Result<(), StoreError> {
        let mut last = gone(handle);
        for _ in 0..TRIES {
            let found = self.wire.get::<IPAMHandle>(None, &handle_name(handle)).await?;
            let outcome = match found {
                None if by < 0 => return Ok(()),
                None => {
                    let mut spec = IPAMHandleSpec::new(handle);
                    spec.increment(cidr, by);
                    self.wire.create(&spec.object()).await.map(drop)
                }
                Some(mut found) if by > 0 => {
                    found.spec.increment(cidr, by);
                    self.wire.replace(&found).await.map(drop)
                }
                Some(mut found) => {
                    if found.spec.decrement(cidr, -by).is_err() {
                        return Ok(());
                    }
                    if found.spec.is_empty() {
                        self.wire.delete(&found).await
                    } else {
                        self.wire.replace(&found).await.map(drop)
                    }
                }
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(error) if is_conflict(&error) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn release(&self, handle: &str) -> Result<(), StoreError> {
        let Some(found) = self.wire.get::<IPAMHandle>(None, &handle_name(handle)).await? else { return Ok(()) };
        for cidr in found.spec.blocks() {
            let mut released = 0;
            for _ in 0..TRIES {
                let Some(mut block) = self.block(&cidr).await? else { break };
                released = block.spec.release_handle(handle, self.cooldown, time::clock(self.node)()).len();
                if released == 0 {
                    break;
                }
                block.spec.advance();
                match self.wire.replace(&block).await {
                    Ok(_) => break,
                    Err(error) if is_conflict(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            let count = i64::try_from(released).unwrap_or_default().max(found.spec.count(&cidr));
            self.count(handle, &cidr, -count).await?;
        }
        Ok(())
    }
}

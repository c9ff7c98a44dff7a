//! The confirming reads, and the writes through the driver.

use std::time::Duration;

use calico::{BlockAffinity, IPAMBlock, IPAMHandle, IPReservation, ReleaseError, cidr_name};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, timeout_at};

use super::census::{Census, Judged, by_address};
use super::decide::{Allocation, Finding, Needs, Task};
use super::{Collector, Failed, Report};
use crate::driver::{ClaimFate, Error, NotWithdrawn};
use crate::store::{Ledger, Object, Objects, StoreError, if_any};

/// No repair lasts longer: a mandate is asked for at least this much. One that is cut off by it is left as a
/// crash would leave it, which a later round finishes.
pub const REPAIR_TIME: Duration = Duration::from_secs(8);

impl<O: Objects, L: Ledger> Collector<O, L> {
    /// Carries out what was found, if live reads come to the same finding.
    pub(super) async fn execute(&self, finding: &Finding, listed: &Census, report: &mut Report) {
        let deadline = Instant::now() + REPAIR_TIME;
        let outcome = timeout_at(deadline, self.confirm_and_write(finding, listed, deadline)).await;
        let repair = finding.repair.clone();
        let (kind, object, detail) = (repair.kind.label(), &repair.object, &repair.detail);
        let error = match outcome {
            Ok(Ok(true)) => {
                tracing::info!(kind, %object, %detail, "repaired");
                return report.repairs.push(repair);
            }
            Ok(Ok(false)) => {
                tracing::debug!(kind, %object, %detail, "needs no repair any more");
                return report.moot.push(repair);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {REPAIR_TIME:?}"),
        };
        tracing::warn!(kind, %object, %detail, %error, "could not be repaired");
        report.failed.push(Failed { repair, error });
    }

    /// Whether it was done; false if it needs no doing any more.
    async fn confirm_and_write(&self, finding: &Finding, listed: &Census, deadline: Instant) -> Result<bool, Error> {
        let begun = self.driver.now();
        let live = self.look(&finding.needs, listed).await?;
        // A node that is there after all has a longer grace than the one that was waited for.
        let same =
            |again: &Finding| again.key == finding.key && again.patience <= finding.patience && again.is_ripe(begun);
        match self.findings(&live, begun).into_iter().find(same) {
            Some(confirmed) => self.write(confirmed.task, deadline).await,
            None => Ok(false),
        }
    }

    /// Reads what a finding is about, object by object. Pools and configuration, which nothing is removed for,
    /// are as they were listed.
    async fn look(&self, needs: &Needs, listed: &Census) -> Result<Census, StoreError> {
        let mut live = Census { pools: listed.pools.clone(), config: listed.config.clone(), ..Census::default() };
        for (namespace, name) in &needs.pods {
            let pod = self.driver.objects().get::<Pod>(Some(namespace), name).await?;
            pod.into_iter().for_each(|pod| live.pods.add(pod));
        }
        live.pods.sort();
        self.each(&needs.nodes).await?.into_iter().for_each(|node| live.nodes.add(node));
        let mut owners = Vec::new();
        for owner in &needs.owners {
            let object = self.driver.objects().living_owner(owner).await?;
            live.owners.insert(owner.clone(), object.is_some());
            owners.extend(object.map(|object| (owner, object)));
        }
        if let Some(ledger) = self.driver.ledger() {
            let mut claims = Some(Vec::new());
            for address in &needs.claims {
                match if_any(ledger.read(*address).await)? {
                    Some(claim) => claims.get_or_insert_default().extend(claim),
                    None => {
                        claims = None;
                        break;
                    }
                }
            }
            live.claims = claims.map(by_address);
            for claim in live.claims.iter().flatten().map(|claim| &claim.value) {
                let mut of = owners.iter().filter(|(owner, _)| **owner == claim.owner);
                live.given_up.extend(of.any(|(_, object)| claim.is_given_up_by(object)).then_some(claim.address));
            }
        }
        // Handles before blocks: an ADD writes them in this order.
        let handles = self.each::<IPAMHandle>(&needs.handles).await?;
        let affinities = self.each::<BlockAffinity>(&needs.affinities).await?;
        live.reservations = self.each::<IPReservation>(&needs.reservations).await?;
        let blocks: Vec<String> = needs.blocks.iter().map(cidr_name).collect();
        let judged = Judged { pods: &live.pods, nodes: &live.nodes };
        self.each::<IPAMBlock>(&blocks).await?.into_iter().for_each(|block| live.blocks.add(block, &judged));
        live.blocks.sort();
        handles.into_iter().for_each(|handle| live.handles.add(handle, &live.blocks));
        live.handles.sort();
        affinities.into_iter().for_each(|affinity| live.affinities.add(affinity, &live.blocks));
        live.affinities.sort();
        Ok(live)
    }

    async fn each<K: Object>(&self, names: &[String]) -> Result<Vec<K>, StoreError> {
        let mut found = Vec::new();
        for name in names {
            found.extend(self.driver.objects().get::<K>(None, name).await?);
        }
        Ok(found)
    }

    async fn write(&self, task: Task, deadline: Instant) -> Result<bool, Error> {
        let driver = &self.driver;
        match task {
            Task::DropClaim(shown) => unless_changed(driver.withdraw(&shown, ClaimFate::Drop, deadline).await),
            Task::ClearHolder(shown) => unless_changed(driver.withdraw(&shown, ClaimFate::Keep, deadline).await),
            Task::Grace(seen, noted) => driver.note_grace(&seen, &noted, deadline).await,
            Task::Mend(address, cidr) => driver.mend_claim(address, &cidr, &self.rules.network).await,
            Task::Free(allocations) => self.free(&allocations, deadline).await,
            Task::Record(lost) => Box::pin(driver.record_again(&lost, deadline)).await,
            Task::Reserve(address, cidr) => driver.mirror(address, &cidr, deadline).await.map(|()| true),
            Task::Mark(name, addresses) => driver.mark(&name, &addresses, deadline).await.map(|()| true),
            Task::Unreserve(name, address) => driver.unmirror(&name, address, deadline).await,
            Task::RemoveHandle(handle) => driver.remove_as_seen(&*handle, deadline).await,
            Task::Recount(id, seen, among) => driver.recount(&id, seen.as_deref(), &among, deadline).await,
            Task::RemoveAffinity(affinity) => driver.remove_as_seen(&*affinity, deadline).await,
            Task::ConfirmAffinity(affinity) => driver.confirm_as_seen(&affinity, deadline).await,
            Task::LabelAffinity(affinity) => driver.label_as_seen(&affinity, deadline).await,
            Task::RestoreAffinity(cidr, node) => driver.restore_affinity(cidr, &node, deadline).await,
            Task::RemoveBlock(block) => driver.remove_as_seen(&*block, deadline).await,
            Task::ReleaseBlock(block) => driver.reclaim_block(&block, deadline).await,
        }
    }

    async fn free(&self, allocations: &[Allocation], deadline: Instant) -> Result<bool, Error> {
        let mut freed = false;
        for Allocation { address, cidr, expect } in allocations {
            match self.driver.free_as_seen(*address, cidr, expect, deadline).await {
                Ok(released) => freed |= released,
                Err(NotWithdrawn::Changed(ReleaseError::OtherHandle { .. } | ReleaseError::OtherSequence { .. })) => {}
                Err(error) => unless_changed(Err(error)).map(drop)?,
            }
        }
        Ok(freed)
    }
}

/// What has changed since it was read is somebody else's by now, and no failure.
fn unless_changed(outcome: Result<(), NotWithdrawn>) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(NotWithdrawn::Changed(_) | NotWithdrawn::ClaimChanged { .. }) => Ok(false),
        Err(NotWithdrawn::Driver(error)) => Err(error),
    }
}

//! `release`: an address is taken back by hand. What a person is shown is what is done, or nothing is.

mod plan;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use calico::IPPool;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use self::plan::{Plan, Refusal, Step};
use super::Outcome;
use super::confirm::Consent;
use super::connect::{Connection, blocks_around, optional};
use super::output::{self, Format, Progress};
use crate::audit::Snapshot;
use crate::driver::{ClaimFate, Driver};
use crate::store::kube::KubeStore;
use crate::store::{AnyLedger, Ledger as _, Objects as _};

/// Time for the writes.
const WORK_TIME: Duration = Duration::from_secs(9);

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The allocation is released; a claim on the address stays with its owner, and nobody holds it. With --claim
it is dropped too, with the reservation: the address goes back to random assignment.

Refused while a live pod uses the address: delete the pod, and its address is released with it.")]
pub(super) struct Release {
    /// The address.
    #[arg(value_parser = output::address)]
    address: IpAddr,
    /// Drop the claim and the reservation too.
    #[arg(long)]
    claim: bool,
    #[command(flatten)]
    consent: Consent,
}

/// What was to be done, and whether it was.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    address: IpAddr,
    claim_dropped: bool,
    steps: &'a [Step],
    done: bool,
}

impl Release {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let (site, store) = connection.open().await?;
        let ledger = match self.claim {
            true => Some(site.needed_ledger(&store).await.context("release --claim")?),
            false => site.ledger(&store).await?.ok(),
        };
        let snapshot = self.read(&store, ledger.as_ref()).await.context("could not be read, so nothing was done")?;
        let plan = match Plan::of(&snapshot, self.address, self.fate()) {
            Ok(plan) => plan,
            Err(refusal) => return Ok(refused(&refusal)),
        };
        if plan.steps.is_empty() {
            return self.report(&plan, false, format, plan.nothing());
        }
        if self.consent.dry_run {
            return self.report(&plan, false, format, plan.table());
        }
        let driver = Driver::new(store, ledger, Timestamp::now);
        // Before anybody is asked for a yes.
        driver.may_write().await.with_context(|| format!("release {}: nothing was written", self.address))?;
        let (what, ask) = (format!("release {}", self.address), format!("Release {}?", self.address));
        if !self.consent.given(&what, &plan.table(), &ask)? {
            eprintln!("kube-ipam: {} is left as it is", self.address);
            return Ok(Outcome::NotWell);
        }
        // Nobody has been shown it who was not asked.
        let said = if self.consent.yes { format!("{}\n\n", plan.table()) } else { String::new() };
        let withdrawn = driver.withdraw(&plan.shown, self.fate(), Instant::now() + WORK_TIME).await;
        withdrawn.with_context(|| format!("release {}: look again with kube-ipam show --ip {0}", self.address))?;
        self.report(&plan, true, format, said + &plan.done())
    }

    fn fate(&self) -> ClaimFate {
        if self.claim { ClaimFate::Drop } else { ClaimFate::Keep }
    }

    /// Everything that bears on one address.
    async fn read(&self, store: &KubeStore, ledger: Option<&AnyLedger>) -> Result<Snapshot> {
        let progress = Progress::new();
        progress.reading("pools and blocks");
        let pools: Vec<IPPool> = store.list("").await?;
        let blocks = blocks_around(store, &pools, &[self.address]).await?;
        let reservations = optional(store.list("").await)?;
        let claims = match ledger {
            Some(ledger) => Some(ledger.read(self.address).await?.into_iter().collect()),
            None => None,
        };
        // Last: a pod that came in between is seen.
        progress.reading("nodes and pods");
        let (nodes, pods) = (store.list("").await?, store.list("").await?);
        Ok(Snapshot { pools, blocks, reservations, claims, nodes, pods, ..Snapshot::default() })
    }

    fn report(&self, plan: &Plan, done: bool, format: Format, text: String) -> Result<Outcome> {
        let report = Report { address: self.address, claim_dropped: self.claim && done, steps: &plan.steps, done };
        output::print(format, &report, || text)
    }
}

fn refused(refusal: &Refusal) -> Outcome {
    eprintln!("kube-ipam: refused: {refusal}");
    Outcome::NotWell
}

//! `claims move`: all claims of the network from one ledger to the other.
//!
//! Every round reads both ledgers, says what remains, and does it, each write under the revision that was read.
//! It ends when a round finds nothing left, so the last reading is the verification, and a run that broke off
//! is completed by another.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::transfer::{Action, Both, Conflict, Plan, Step};
use crate::cli::Outcome;
use crate::cli::confirm::confirm;
use crate::cli::connect::{Connection, Site};
use crate::cli::ledger::LedgerKind;
use crate::cli::output::{self, Format, NONE};
use crate::store::kube::KubeStore;
use crate::store::{AnyLedger, DatastoreGate, Gated, Ledger as _, LiveGate, StoreError, Swap, Versioned};

/// Rounds before it is said that the claims do not come to rest.
const ROUNDS: usize = 20;
/// Writes side by side.
const SIDE_BY_SIDE: usize = 8;

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The etcd is the one that --etcd-url or the conflist's etcdConfig names; IPClaims are on the API server, whose
definition (yaml/ipclaims.yaml) must have been applied. The nodes' conflists decide which ledger is in use: with
etcdConfig it is etcd, without it is IPClaims. In this order nothing is lost and no address is given twice:

  1. kube-ipam claims move --to objects            copies; may be repeated at any time, disturbs nobody
  2. kube-ipam claims move --to objects --close    closes the claims in the source, and copies what has changed
  3. change every node's conflist (for --to objects take etcdConfig out, for --to etcd put it in)
  4. kube-ipam claims move --to objects --drop-source

Between 2 and 3 a pod with a fixed address that starts on a node with the old conflist is refused and tried again
by its kubelet until that node's conflist is changed; running pods, deletions and random addresses are not
concerned. What must be true: every node runs a kube-ipam that knows this command before step 2, since an older
one does not heed a closed claim; and nobody copies claims by other means. Before step 3 everything can be taken
back: move in the other direction opens the claims again. A run that broke off is repeated.

Nothing is written if the two ledgers contradict each other: another owner, or two holders of one generation.
Claims that only the target has are named and left alone; kube-ipam release --claim --ledger KIND drops one.")]
pub(in crate::cli) struct Move {
    /// The ledger that the claims are to be in.
    #[arg(long, value_enum, value_name = "KIND")]
    to: LedgerKind,
    /// Close the claims in the source: from then on nobody takes an address by them.
    #[arg(long)]
    close: bool,
    /// Remove the claims from the source, once they are closed there and all in the target.
    #[arg(long, conflicts_with = "close")]
    drop_source: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Only show what would be done.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// What was to be done, and whether it was.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    network: &'a str,
    from: &'static str,
    to: &'static str,
    /// Claims in the source when it began.
    claims: usize,
    steps: &'a [Step],
    conflicts: &'a [Conflict],
    /// Addresses that only the target has.
    only_in_target: Vec<std::net::IpAddr>,
    done: bool,
}

/// Both ledgers, and the gate that both ask.
struct Ledgers {
    source: Gated<AnyLedger>,
    target: Gated<AnyLedger>,
    gate: Arc<dyn DatastoreGate>,
}

/// Both ledgers' claims, as they were read.
struct Read {
    source: Vec<Versioned<crate::claim::Claim>>,
    target: Vec<Versioned<crate::claim::Claim>>,
}

impl Move {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let (site, store) = connection.open().await?;
        let network = site.needed_network()?;
        let ledgers = self.ledgers(&site, store).await?;
        let read = ledgers.read().await.context("could not be read, so nothing was done")?;
        let plan = Plan::of(&self.both(&read));
        let mut steps = plan.steps.clone();
        if self.drop_source {
            steps.extend(Plan::drops(&self.both(&read)));
        }
        let report = |done| Report {
            network,
            from: name(self.from()),
            to: name(self.to),
            claims: read.source.len(),
            steps: &steps,
            conflicts: &plan.conflicts,
            only_in_target: plan.others.iter().map(|claim| claim.address).collect(),
            done,
        };
        if !plan.conflicts.is_empty() {
            output::print(format, &report(false), || conflicts(&plan.conflicts))?;
            eprintln!("kube-ipam: the ledgers contradict each other; nothing was written");
            return Ok(Outcome::NotWell);
        }
        let shown = self.shown(&steps, &plan);
        if self.dry_run || steps.is_empty() {
            return output::print(format, &report(steps.is_empty()), || format!("{shown}\n{}", self.next(&read)));
        }
        let what = format!("claims move --to {}", name(self.to));
        ledgers.gate.may_write().await.with_context(|| format!("{what}: nothing was written"))?;
        if !self.yes && !confirm(&what, &shown, &format!("Write this to network {network}?"))? {
            eprintln!("kube-ipam: the claims are left as they are");
            return Ok(Outcome::NotWell);
        }
        ledgers.work(self).await.with_context(|| format!("{what}: repeat it to complete it"))?;
        output::print(format, &report(true), || format!("{shown}\n{}", self.next(&read)))
    }

    async fn ledgers(&self, site: &Site, store: KubeStore) -> Result<Ledgers> {
        let source = site.ledger_of(self.from(), &store).await.context("the source")?;
        let target = site.ledger_of(self.to, &store).await.context("the target")?;
        let gate: Arc<dyn DatastoreGate> = Arc::new(LiveGate::new(store));
        Ok(Ledgers { source: Gated::new(source, gate.clone()), target: Gated::new(target, gate.clone()), gate })
    }

    fn from(&self) -> LedgerKind {
        match self.to {
            LedgerKind::Etcd => LedgerKind::Objects,
            LedgerKind::Objects => LedgerKind::Etcd,
        }
    }

    fn both<'a>(&self, read: &'a Read) -> Both<'a> {
        let Read { source, target } = read;
        Both { source, target, close: self.close, drop: self.drop_source }
    }

    fn shown(&self, steps: &[Step], plan: &Plan) -> String {
        let mut text = String::new();
        if !steps.is_empty() {
            let rows = steps.iter().map(|step| {
                let holder = step.source.value.holder.as_ref();
                let holder = holder.map_or_else(|| NONE.to_owned(), |holder| holder.pod.clone());
                let (from, to) = (name(self.from()), name(self.to));
                [step.address.to_string(), step.owner.clone(), holder, step.action.describe(from, to)]
            });
            text = output::table(["ADDRESS", "OWNER", "HOLDER", "ACTION"], rows) + "\n";
        }
        for claim in &plan.others {
            let (to, from) = (name(self.to), name(self.from()));
            text +=
                &format!("only in {to}: {} of {}; it stays ({from} does not have it)\n", claim.address, claim.owner);
        }
        if plan.ahead > 0 {
            text += &format!("{} have gone on in {}\n", plan.ahead, name(self.to));
        }
        text
    }

    /// What is to be done after this.
    fn next(&self, read: &Read) -> String {
        let (from, to, kind) = (name(self.from()), name(self.to), word(self.to));
        if self.drop_source || read.source.is_empty() {
            return format!("{from} has no claims of the network any more once this is done: {to} is the ledger");
        }
        if self.close || read.source.iter().all(|claim| claim.value.moved.is_some()) {
            let change = match self.to {
                LedgerKind::Objects => "take etcdConfig out of every node's conflist",
                LedgerKind::Etcd => "put etcdConfig into every node's conflist",
            };
            return format!(
                "with the claims in {from} closed, {change} now; after that: kube-ipam claims move --to {kind} --drop-source"
            );
        }
        format!("the nodes go on with {from}; to change over: kube-ipam claims move --to {kind} --close")
    }
}

impl Ledgers {
    async fn read(&self) -> Result<Read, StoreError> {
        // The target last: what is written there meanwhile is seen rather than overwritten.
        let source = self.source.all().await?;
        Ok(Read { source, target: self.target.all().await? })
    }

    /// Rounds until there is nothing left to do.
    async fn work(&self, wanted: &Move) -> Result<()> {
        for _ in 0..ROUNDS {
            let read = self.read().await?;
            let both = wanted.both(&read);
            let plan = Plan::of(&both);
            if !plan.conflicts.is_empty() {
                bail!("the ledgers contradict each other by now:\n{}", conflicts(&plan.conflicts));
            }
            let steps = match plan.steps.is_empty() {
                true if wanted.drop_source && !read.source.is_empty() => Plan::drops(&both),
                true => return Ok(()),
                false => plan.steps,
            };
            self.write(&steps, name(wanted.to)).await?;
        }
        bail!("the claims still changed after {ROUNDS} rounds; nothing is lost")
    }

    async fn write(&self, steps: &[Step], to: &str) -> Result<(), StoreError> {
        let writes = stream::iter(steps).map(|step| self.step(step, to));
        writes.buffer_unordered(SIDE_BY_SIDE).try_collect::<()>().await
    }

    /// One write. One that was lost to somebody else's, or whose answer was, is left to the next round.
    async fn step(&self, step: &Step, to: &str) -> Result<(), StoreError> {
        let written = match step.to_source(to) {
            Some(claim) => self.source.swap(step.address, Some(step.source.revision), claim.as_ref()).await,
            None => {
                let expected = step.target.as_ref().map(|target| target.revision);
                self.target.swap(step.address, expected, Some(&step.to_target())).await
            }
        };
        match written {
            Ok(Swap::Done(_) | Swap::Lost(_)) => Ok(()),
            Err(error) if error.is_transient() => {
                tracing::info!(address = %step.address, %error, "is looked at again");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Action {
    fn describe(self, from: &str, to: &str) -> String {
        match self {
            Self::Close => format!("close in {from}, copy to {to}"),
            Self::Copy => format!("copy to {to}"),
            Self::Renew => format!("renew in {to}"),
            Self::Drop => format!("remove from {from}"),
        }
    }
}

fn name(kind: LedgerKind) -> &'static str {
    match kind {
        LedgerKind::Etcd => "etcd",
        LedgerKind::Objects => "IPClaims",
    }
}

/// As a flag has it.
fn word(kind: LedgerKind) -> &'static str {
    match kind {
        LedgerKind::Etcd => "etcd",
        LedgerKind::Objects => "objects",
    }
}

fn conflicts(conflicts: &[Conflict]) -> String {
    let rows = conflicts.iter().map(|conflict| [conflict.address.to_string(), conflict.why.clone()]);
    output::table(["ADDRESS", "CONFLICT"], rows)
}

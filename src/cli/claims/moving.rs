//! `claims move`: all claims of the network from one ledger to the other.
//!
//! Every round reads both ledgers, says what remains, and does it, each write under the revision that was read.
//! It ends when a round finds nothing left, so the last reading is the verification, and a run that broke off
//! is completed by another.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use calico::IPReservation;
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;
use tokio::time::Instant;

use super::transfer::{Action, Both, Conflict, Plan, Step};
use crate::claim::Claim;
use crate::cli::Outcome;
use crate::cli::confirm::Consent;
use crate::cli::connect::{Connection, Site};
use crate::cli::ledger::LedgerKind;
use crate::cli::output::{self, Format, NONE};
use crate::driver::{Driver, unmarked};
use crate::store::kube::KubeStore;
use crate::store::{
    AnyLedger, DatastoreGate, Failure, Gated, Ledger as _, Listed, LiveGate, Objects as _, StoreError, Swap,
    Unreadable, Versioned,
};

/// Rounds before it is said that the claims do not come to rest.
const ROUNDS: usize = 20;
/// Longest time for writing one reservation.
const MARK_TIME: Duration = Duration::from_secs(10);
/// Writes side by side.
const SIDE_BY_SIDE: usize = 8;

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The etcd is the one that --etcd-url or the conflist's etcdConfig names. IPClaims are on the API server; their
definition must exist (agents apply it; without agents apply yaml/ipclaims.yaml). The nodes' conflists decide
which ledger is in use: with etcdConfig it is etcd, without it is IPClaims. In this order nothing is lost and no
address is given twice:

  1. kube-ipam claims move --to objects            copies; may be repeated at any time, disturbs nobody
  2. kube-ipam claims move --to objects --close    closes the claims in the source, and copies what has changed
  3. change every node's conflist (for --to objects take etcdConfig out, for --to etcd put it in)
  4. kube-ipam claims move --to objects --drop-source

Between 2 and 3 a pod with a fixed address that starts on a node with the old conflist is refused and tried again
by its kubelet until that node's conflist is changed; running pods, deletions and random addresses go on. Before
step 2 every node must run a kube-ipam that knows this command, since an older one ignores that a claim is
closed. Do not copy claims by other means. Before step 3 you can go back: move in the other direction opens the
claims again. Repeat a run that broke off.

If ipam.name or etcdPrefix of the conflist was changed, name the old place of the claims by --from,
--from-network and --from-prefix. A pod that is refused its address for that reason is told the command.

Nothing is written if the two ledgers contradict each other: another owner, or two holders of one generation.
Claims that only the target has are named and left alone; kube-ipam release --claim --ledger KIND drops one.")]
pub(in crate::cli) struct Move {
    /// The ledger that the claims are to be in.
    #[arg(long, value_enum, value_name = "KIND")]
    to: LedgerKind,
    /// The ledger that they are in; the other one, if not given.
    #[arg(long, value_enum, value_name = "KIND")]
    from: Option<LedgerKind>,
    /// The conflist's ipam.name under which they were made, if that was changed.
    #[arg(long, value_name = "NAME")]
    from_network: Option<String>,
    /// The conflist's etcdPrefix under which they were made, if that was changed.
    #[arg(long, value_name = "PREFIX")]
    from_prefix: Option<String>,
    /// Close the claims in the source: from then on nobody takes an address by them.
    #[arg(long)]
    close: bool,
    /// Remove the claims from the source, once they are closed there and all in the target.
    #[arg(long, conflicts_with = "close")]
    drop_source: bool,
    #[command(flatten)]
    consent: Consent,
}

/// What was to be done, and whether it was.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    network: &'a str,
    from: &'a str,
    to: &'a str,
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
    /// What they are called in messages.
    names: Names,
    source: Gated<AnyLedger>,
    target: Gated<AnyLedger>,
    gate: Arc<dyn DatastoreGate>,
    store: KubeStore,
}

struct Names {
    from: String,
    to: String,
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
            from: &ledgers.names.from,
            to: &ledgers.names.to,
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
        let shown = ledgers.names.shown(&steps, &plan);
        if self.consent.dry_run || steps.is_empty() {
            return output::print(format, &report(steps.is_empty()), || {
                format!("{shown}\n{}", self.next(&ledgers.names, &read))
            });
        }
        let what = format!("claims move --to {}", word(self.to));
        ledgers.gate.may_write().await.with_context(|| format!("{what}: nothing was written"))?;
        if !self.consent.given(&what, &shown, &format!("Write this to network {network}?"))? {
            eprintln!("kube-ipam: the claims are left as they are");
            return Ok(Outcome::NotWell);
        }
        let repeat = || format!("{what}: repeat it to complete it");
        ledgers.work(self).await.with_context(repeat)?;
        if self.close || self.drop_source {
            ledgers.mark().await.with_context(repeat)?;
        }
        output::print(format, &report(true), || format!("{shown}\n{}", self.next(&ledgers.names, &read)))
    }

    async fn ledgers(&self, site: &Site, store: KubeStore) -> Result<Ledgers> {
        let source = self.source(site)?.ledger_of(self.from(), &store).await.context("the source")?;
        let target = site.ledger_of(self.to, &store).await.context("the target")?;
        let names = match self.from() == self.to {
            true if source.name() == target.name() => bail!(
                "--from and --to name one ledger, {}; give --from-network or --from-prefix for the claims of before",
                target.name()
            ),
            true => Names { from: source.name().to_string(), to: target.name().to_string() },
            false => Names { from: name(self.from()).to_owned(), to: name(self.to).to_owned() },
        };
        let gate: Arc<dyn DatastoreGate> = Arc::new(LiveGate::new(store.clone()));
        Ok(Ledgers {
            names,
            source: Gated::new(source, gate.clone()),
            target: Gated::new(target, gate.clone()),
            gate,
            store,
        })
    }

    /// Where the claims of before are, by the flags that say so.
    fn source(&self, site: &Site) -> Result<Site> {
        let mut source = site.clone();
        if let Some(network) = &self.from_network {
            source.network = Some(network.clone());
        }
        match (&self.from_prefix, &mut source.etcd) {
            (None, _) => {}
            (Some(prefix), Some(etcd)) if self.from() == LedgerKind::Etcd => etcd.prefix.clone_from(prefix),
            (Some(prefix), _) => {
                bail!("--from-prefix {prefix:?} is for claims in etcd; add --from etcd and --etcd-url")
            }
        }
        Ok(source)
    }

    fn from(&self) -> LedgerKind {
        self.from.unwrap_or(match self.to {
            LedgerKind::Etcd => LedgerKind::Objects,
            LedgerKind::Objects => LedgerKind::Etcd,
        })
    }

    fn both<'a>(&self, read: &'a Read) -> Both<'a> {
        let Read { source, target } = read;
        Both { source, target, close: self.close, drop: self.drop_source }
    }

    /// The flags that say from where to where, for the next command.
    fn flags(&self) -> String {
        let mut flags = format!("--to {}", word(self.to));
        flags.extend(self.from.map(|from| format!(" --from {}", word(from))));
        flags.extend(self.from_network.as_ref().map(|network| format!(" --from-network {network}")));
        flags.extend(self.from_prefix.as_ref().map(|prefix| format!(" --from-prefix {prefix}")));
        flags
    }

    /// What is to be done after this.
    fn next(&self, names: &Names, read: &Read) -> String {
        let (Names { from, to }, flags) = (names, self.flags());
        if self.drop_source || read.source.is_empty() {
            return format!("{from} has no claims of the network any more once this is done: {to} is the ledger");
        }
        if self.close || read.source.iter().all(|claim| claim.value.moved.is_some()) {
            let change = match (self.from() == self.to, self.to) {
                (true, _) => "change every node's conflist",
                (false, LedgerKind::Objects) => "take etcdConfig out of every node's conflist",
                (false, LedgerKind::Etcd) => "put etcdConfig into every node's conflist",
            };
            return format!(
                "with the claims in {from} closed, {change} now; after that: kube-ipam claims move {flags} --drop-source"
            );
        }
        format!("the nodes go on with {from}; to change over: kube-ipam claims move {flags} --close")
    }
}

impl Names {
    fn shown(&self, steps: &[Step], plan: &Plan) -> String {
        let Self { from, to } = self;
        let mut text = String::new();
        if !steps.is_empty() {
            let rows = steps.iter().map(|step| {
                let holder = step.source.value.holder.as_ref();
                let holder = holder.map_or_else(|| NONE.to_owned(), |holder| holder.pod.clone());
                [step.address.to_string(), step.owner.clone(), holder, step.action.describe(from, to)]
            });
            text = output::table(["ADDRESS", "OWNER", "HOLDER", "ACTION"], rows) + "\n";
        }
        for claim in &plan.others {
            text +=
                &format!("only in {to}: {} of {}; it stays ({from} does not have it)\n", claim.address, claim.owner);
        }
        if plan.ahead > 0 {
            text += &format!("{} have gone on in {to}\n", plan.ahead);
        }
        text
    }
}

/// A record that cannot be read would be left behind.
fn whole(listed: Listed) -> Result<Vec<Versioned<Claim>>, StoreError> {
    match listed.unreadable.first() {
        None => Ok(listed.claims),
        Some(Unreadable { record, why, remedy, .. }) => {
            Err(StoreError::new("list", record, Failure::Corrupt(format!("{why}; {remedy}"))))
        }
    }
}

impl Ledgers {
    async fn read(&self) -> Result<Read, StoreError> {
        // The target last: what is written there meanwhile is seen rather than overwritten.
        let source = whole(self.source.listed().await?)?;
        Ok(Read { source, target: whole(self.target.listed().await?)? })
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
            self.write(&steps, &self.names.to).await?;
        }
        bail!("the claims still changed after {ROUNDS} rounds; nothing is lost")
    }

    /// Says in the reservations that the claims are in the target.
    async fn mark(&self) -> Result<()> {
        let claimed = self.target.all().await?.into_iter().map(|claim| claim.value.address).collect();
        let driver = Driver::behind(self.gate.clone(), self.store.clone(), Some(self.target.clone()), Timestamp::now);
        for reservation in self.store.list::<IPReservation>("").await? {
            let addresses = unmarked(&reservation, &claimed, &self.target.name());
            if !addresses.is_empty() {
                driver.mark(&reservation.name_any(), &addresses, Instant::now() + MARK_TIME).await?;
            }
        }
        Ok(())
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

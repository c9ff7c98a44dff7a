//! `import`: wanted addresses become claims that nobody holds, all of the list or none.

mod file;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use serde::Serialize;
use serde_json::Map;
use tokio::time::Instant;

use self::file::{Problem, Wish};
use super::Outcome;
use super::adopt::{is_reserved, permitted_block, refused_in};
use super::confirm::Consent;
use super::connect::{Connection, Site, blocks_around, optional};
use super::output::{self, Format};
use crate::audit::Snapshot;
use crate::audit::view::View;
use crate::claim::Claim;
use crate::driver::{BY_HAND, Driver, NotClaimed, Wanted};
use crate::pod::Owner;
use crate::store::kube::KubeStore;
use crate::store::{AnyLedger, Ledger as _, Objects as _};

/// Time for the writes of one address.
const WORK_TIME: Duration = Duration::from_secs(9);

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The list is CSV with a header, or YAML with the same fields in a list (by the file's name, .yaml or .yml):

  address,namespace,kind,name,ordinal
  10.244.0.216,default,Deployment,licence-server,
  10.244.0.220,default,StatefulSet,db,0

kind is Deployment, StatefulSet (with the pod's number as ordinal), DaemonSet, ReplicaSet, Job, CronJob, Rollout, Pod,
ReplicationController, Owner (a name as in the annotation kube-ipam.owner), or another kind with its group, like
CloneSet.apps.kruise.io. Lines that begin with # are left out.

Each address is claimed for its owner and reserved; its pods get it as soon as their template asks for it by
kube-ipam.ip. An address that a pod has now is not for import but for kube-ipam adopt. Nothing is written if there is
a problem with one of the lines; all problems are named. Which addresses may be fixed is judged by the IPPools, and
with --conflist by the network's subnets too. Repeated, it completes what broke off, and what is there already stays.

An owner that does not exist yet is noted: the collector drops a claim whose owner is gone for ten minutes, and another
owner may take the address over, so create the workload soon after.")]
pub(super) struct Import {
    /// The list; - for stdin (CSV).
    file: PathBuf,
    #[command(flatten)]
    consent: Consent,
}

/// One line that can be done, or is done already.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    place: usize,
    address: IpAddr,
    owner: String,
    claimed_already: bool,
    owner_exists: bool,
    #[serde(skip)]
    wanted: Wanted,
}

/// What was to be done, and whether it was.
#[derive(Debug, Serialize)]
struct Report<'a> {
    addresses: &'a [Item],
    problems: &'a [Problem],
    done: bool,
}

impl Import {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let named = || self.file.display().to_string();
        let (wishes, mut problems) = file::wishes(&file::lines(&self.text()?, self.is_yaml()).with_context(named)?);
        let (site, store) = connection.open().await?;
        let ledger = site.needed_ledger(&store).await?;
        let snapshot = read(&site, &store, &ledger, &wishes).await.context("could not be read, so nothing was done")?;
        let (items, found) = judge(&snapshot, &wishes, Timestamp::now());
        problems.extend(found);
        problems.extend(refused(&site, &store, &wishes).await?);
        problems.sort_by_key(|problem| problem.place);
        let report = |done| Report { addresses: &items, problems: &problems, done };
        if !problems.is_empty() {
            output::print(format, &report(false), || table_of(&problems))?;
            eprintln!("kube-ipam: nothing was imported: {} of the lines cannot be", problems.len());
            return Ok(Outcome::NotWell);
        }
        let shown = table(&items);
        let due: Vec<&Item> = items.iter().filter(|item| !item.claimed_already).collect();
        if self.consent.dry_run || due.is_empty() {
            return output::print(format, &report(!self.consent.dry_run), || shown);
        }
        let (what, ask) = (format!("import {}", named()), format!("Claim {} addresses?", due.len()));
        let driver = Driver::new(store, Some(ledger), Timestamp::now);
        driver.may_write().await.with_context(|| format!("{what}: nothing was written"))?;
        if !self.consent.given(&what, &shown, &ask)? {
            eprintln!("kube-ipam: nothing is claimed");
            return Ok(Outcome::NotWell);
        }
        let mut lost = false;
        for item in due {
            match driver.claim_by_hand(&item.wanted, Instant::now() + WORK_TIME).await {
                Ok(()) => {}
                Err(NotClaimed::Driver(error)) => {
                    return Err(error).with_context(|| format!("{what}: {}: repeat it to complete it", item.address));
                }
                Err(error) => {
                    eprintln!("kube-ipam: {error}");
                    lost = true;
                }
            }
        }
        output::print(format, &report(!lost), || shown)?;
        Ok(if lost { Outcome::NotWell } else { Outcome::Well })
    }

    fn text(&self) -> Result<String> {
        if self.file.as_os_str() == "-" {
            return std::io::read_to_string(std::io::stdin()).context("stdin");
        }
        std::fs::read_to_string(&self.file).with_context(|| self.file.display().to_string())
    }

    fn is_yaml(&self) -> bool {
        self.file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
    }
}

async fn read(site: &Site, store: &KubeStore, ledger: &AnyLedger, wishes: &[Wish]) -> Result<Snapshot> {
    let addresses: Vec<IpAddr> = wishes.iter().map(|wish| wish.address).collect();
    let pools = store.list("").await?;
    let reservations = optional(store.list("").await)?;
    let claims = Some(ledger.all().await?);
    let mut owners = BTreeMap::new();
    for owner in wishes.iter().map(|wish| &wish.owner).filter(|owner| !owner.is_named()) {
        if !owners.contains_key(owner) {
            owners.insert(owner.clone(), store.owner_exists(owner).await?);
        }
    }
    // Last: whatever got an address in between is seen.
    let blocks = blocks_around(store, &pools, &addresses).await?;
    let net = site.net.clone();
    Ok(Snapshot { pools, reservations, claims, owners, blocks, net, ..Snapshot::default() })
}

/// The lines whose pods may not ask for the address. A namespace that does not exist yet refuses nothing.
async fn refused(site: &Site, store: &KubeStore, wishes: &[Wish]) -> Result<Vec<Problem>> {
    let mut namespaces: BTreeMap<&str, Option<Namespace>> = BTreeMap::new();
    let mut problems = Vec::new();
    for wish in wishes {
        let name = wish.owner.namespace.as_str();
        if !namespaces.contains_key(name) {
            namespaces.insert(name, store.get(None, name).await?);
        }
        let Some(Some(namespace)) = namespaces.get(name) else { continue };
        let why = refused_in(site.net.as_ref(), namespace, wish.address);
        problems.extend(why.map(|why| Problem { place: wish.place, why }));
    }
    Ok(problems)
}

/// What each line comes to.
fn judge(snapshot: &Snapshot, wishes: &[Wish], now: Timestamp) -> (Vec<Item>, Vec<Problem>) {
    let view = View::of(snapshot);
    let (mut items, mut problems) = (Vec::new(), Vec::new());
    for wish in wishes {
        match item(&view, wish, now) {
            Ok(item) => items.push(item),
            Err(why) => problems.push(Problem { place: wish.place, why }),
        }
    }
    (items, problems)
}

fn item(view: &View<'_>, wish: &Wish, now: Timestamp) -> Result<Item, String> {
    let Wish { place, address, owner } = wish;
    let cidr = permitted_block(view.snapshot, *address)?;
    let standing = view.snapshot.claims.iter().flatten().find(|claim| claim.value.address == *address);
    if let Some(other) = standing.filter(|claim| claim.value.owner != *owner) {
        return Err(format!("{address} is claimed by {}", other.value.owner));
    }
    if standing.is_some_and(|claim| claim.value.moved.is_some()) {
        return Err(format!("the claim on {address} was carried to another ledger; name that one by --ledger"));
    }
    // The claim that stands decides who may have it; without one nobody may.
    if let Some(used) = view.used.get(address).filter(|_| standing.is_none()) {
        let adopt = used.pod().map_or_else(String::new, |(namespace, pod)| {
            format!("; if it is the owner's: kube-ipam adopt -n {namespace} {pod}")
        });
        return Err(format!("{address} is used by {}{adopt}", used.user()));
    }
    let claim = standing.map_or_else(|| unheld(*address, owner, now), |claim| claim.value.clone());
    Ok(Item {
        place: *place,
        address: *address,
        owner: owner.to_string(),
        claimed_already: standing.is_some() && is_reserved(view.snapshot, *address),
        owner_exists: owner.is_named() || view.snapshot.owners.get(owner) != Some(&false),
        wanted: Wanted { claim, standing: standing.cloned(), cidr, entry: None },
    })
}

fn unheld(address: IpAddr, owner: &Owner, now: Timestamp) -> Claim {
    Claim {
        address,
        owner: owner.clone(),
        holder: None,
        created: now,
        generation: BY_HAND,
        contested: None,
        owner_gone: None,
        moved: None,
        origin: None,
        successor: None,
        unknown: Map::new(),
    }
}

fn table(items: &[Item]) -> String {
    let rows = items.iter().map(|item| {
        let action = if item.claimed_already { "is claimed already" } else { "is claimed" };
        let note = if item.owner_exists { "" } else { "the owner does not exist yet" };
        [item.place.to_string(), item.address.to_string(), item.owner.clone(), action.to_owned(), note.to_owned()]
    });
    output::table(["LINE", "ADDRESS", "OWNER", "ACTION", "NOTE"], rows)
}

fn table_of(problems: &[Problem]) -> String {
    output::table(["LINE", "PROBLEM"], problems.iter().map(|p| [p.place.to_string(), p.why.clone()]))
}

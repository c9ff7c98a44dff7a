//! `adopt`: the address that a running pod has becomes a fixed one, without a restart.

mod plan;
mod template;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde::Serialize;
use tokio::time::Instant;

use self::plan::{Item, Plan, Problem};
pub(super) use self::plan::{is_reserved, permitted_block, refused_in};
use self::template::Template;
use super::Outcome;
use super::confirm::Consent;
use super::connect::{Connection, Site, blocks_around, optional};
use super::output::{self, Format};
use crate::audit::Snapshot;
use crate::driver::{Driver, NotClaimed};
use crate::pod::own_addresses;
use crate::store::kube::KubeStore;
use crate::store::{AnyLedger, Ledger as _, Objects as _};

/// Time for the writes of one address.
const WORK_TIME: Duration = Duration::from_secs(9);

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
For each address of the chosen pods a claim is written, whose owner is the one that the plugin would find (the pod's
controller, or the name in kube-ipam.owner) and whose holder is the pod; the address is reserved, and marked as a
fixed one in Calico's block. The pod goes on as it is.

Then change each owner's template by the command that is printed: the owner's next pod has the address only if its
template asks for it by kube-ipam.ip. The change makes the controller replace its pods, so it is left to you. Until
then the address is kept: nobody else gets it.

A pod's deletion gives the address back to its owner, as it does for every fixed address; a claim whose owner is
deleted is dropped by the collector. To undo an adoption: delete the pod, then kube-ipam release --claim ADDRESS.

Nothing is written if there is a problem with one of the pods. Repeated, it completes what broke off.")]
pub(super) struct Adopt {
    /// The pods.
    #[arg(value_name = "POD", required_unless_present = "selector")]
    pods: Vec<String>,
    /// The pods' namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Pods whose labels match, as in kubectl.
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "pods")]
    selector: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

/// What was to be done, and whether it was.
#[derive(Debug, Serialize)]
struct Report<'a> {
    addresses: &'a [Item],
    problems: &'a [Problem],
    templates: &'a [Template],
    done: bool,
}

impl Adopt {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let (site, store) = connection.open().await?;
        let ledger = site.needed_ledger(&store).await?;
        let snapshot = self.read(&site, &store, &ledger).await.context("could not be read, so nothing was done")?;
        let mut plan = Plan::of(&snapshot, Timestamp::now());
        self.ask_namespace(&site, &store, &mut plan).await?;
        let report =
            |done| Report { addresses: &plan.items, problems: &plan.problems, templates: &plan.templates, done };
        if !plan.problems.is_empty() {
            output::print(format, &report(false), || problems(&plan.problems))?;
            eprintln!("kube-ipam: nothing was adopted");
            return Ok(Outcome::NotWell);
        }
        let shown = table(&plan.items);
        let whole = || format!("{shown}\n\n{}", templates(&plan.templates));
        if self.consent.dry_run || plan.due().next().is_none() {
            return output::print(format, &report(!self.consent.dry_run), whole);
        }
        let driver = Driver::new(store, Some(ledger), Timestamp::now);
        driver.may_write().await.context("adopt: nothing was written")?;
        if !self.consent.given("adopt", &shown, "Make these addresses fixed?")? {
            eprintln!("kube-ipam: the addresses are left as they are");
            return Ok(Outcome::NotWell);
        }
        let mut gone = false;
        for item in plan.due() {
            match driver.claim_by_hand(&item.wanted, Instant::now() + WORK_TIME).await {
                Ok(()) => {}
                Err(error @ (NotClaimed::Changed(_) | NotClaimed::Gone(_))) => {
                    eprintln!("kube-ipam: pod {}/{}: {error}", item.namespace, item.pod);
                    gone = true;
                }
                Err(NotClaimed::Driver(error)) => {
                    return Err(error).with_context(|| format!("adopt {}: repeat it to complete it", item.address));
                }
            }
        }
        output::print(format, &report(!gone), whole)?;
        Ok(if gone { Outcome::NotWell } else { Outcome::Well })
    }

    async fn read(&self, site: &Site, store: &KubeStore, ledger: &AnyLedger) -> Result<Snapshot> {
        let pods = self.chosen(store).await?;
        let pools = store.list("").await?;
        let addresses: Vec<IpAddr> = pods.iter().filter_map(own_addresses).flatten().collect();
        // After the pods: what a listed pod has is on record.
        let blocks = blocks_around(store, &pools, &addresses).await?;
        let (nodes, reservations) = (store.list("").await?, optional(store.list("").await)?);
        let (claims, net) = (Some(ledger.all().await?), site.net.clone());
        Ok(Snapshot { pods, pools, blocks, nodes, reservations, claims, net, ..Snapshot::default() })
    }

    /// What the namespace's pods may not ask for is of no use to them.
    async fn ask_namespace(&self, site: &Site, store: &KubeStore, plan: &mut Plan) -> Result<()> {
        let namespace = store.get::<Namespace>(None, &self.namespace).await?;
        let namespace = namespace.with_context(|| format!("namespace {} does not exist", self.namespace))?;
        for item in plan.items.iter().filter(|item| !item.claimed_already) {
            let why = refused_in(site.net.as_ref(), &namespace, item.address);
            let pod = format!("{}/{}", item.namespace, item.pod);
            plan.problems.extend(why.map(|why| Problem { pod, why }));
        }
        Ok(())
    }

    async fn chosen(&self, store: &KubeStore) -> Result<Vec<Pod>> {
        let Some(selector) = &self.selector else {
            let mut found = Vec::new();
            for name in &self.pods {
                let pod = store.get::<Pod>(Some(&self.namespace), name).await?;
                found.push(pod.with_context(|| format!("pod {}/{name} does not exist", self.namespace))?);
            }
            found.sort_by_key(kube::ResourceExt::name_any);
            found.dedup_by_key(|pod| pod.metadata.name.clone());
            return Ok(found);
        };
        let mut pods: Vec<Pod> = store.list(selector).await?;
        pods.retain(|pod| pod.metadata.namespace.as_ref() == Some(&self.namespace));
        if pods.is_empty() {
            bail!("no pod of namespace {} has labels that match {selector:?}", self.namespace);
        }
        Ok(pods)
    }
}

fn table(items: &[Item]) -> String {
    let rows = items.iter().map(|item| {
        let action = if item.claimed_already { "is claimed already" } else { "becomes fixed" };
        let pod = format!("{}/{}", item.namespace, item.pod);
        [item.address.to_string(), pod, item.node.clone(), item.owner.clone(), action.to_owned()]
    });
    output::table(["ADDRESS", "POD", "NODE", "OWNER", "ACTION"], rows)
}

fn problems(problems: &[Problem]) -> String {
    let rows = problems.iter().map(|problem| [problem.pod.clone(), problem.why.clone()]);
    output::table(["POD", "PROBLEM"], rows)
}

fn templates(templates: &[Template]) -> String {
    templates.iter().map(Template::text).collect::<Vec<_>>().join("\n")
}

//! `handover`: what the elected agent does for an update, by hand for one pod.

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::Outcome;
use super::confirm::Consent;
use super::connect::Connection;
use super::output::{self, Format};
use crate::driver::Driver;
use crate::handover::{self, Case, Decision, Handover};
use crate::pod::HandoverMode;

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
For a pod that waits for the address of a pod of an old revision of its workload: the address is kept for it, and the
old pod is evicted. Disruption budgets are kept. The rules are those of \"handover\": \"evict\", which does this by itself;
by hand it is done whatever ipam.handover and the pod's annotation say.

Refused where the rules do not allow it, with the reason.")]
pub(super) struct HandoverByHand {
    /// The pod that waits.
    pod: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    consent: Consent,
}

/// What was to be done, and what came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    namespace: &'a str,
    pod: &'a str,
    /// The pod that has the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<&'a str>,
    said: String,
    done: bool,
}

impl HandoverByHand {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let (site, store) = connection.open().await?;
        let ledger = site.needed_ledger(&store).await?;
        let driver = Driver::new(store.clone(), Some(ledger), Timestamp::now);
        let handover = Handover::new(driver, store, HandoverMode::Evict);
        let Some(case) = handover.examine(&self.namespace, &self.pod).await? else {
            bail!("pod {}/{} does not exist", self.namespace, self.pod);
        };
        let (holder, plan) = match &case.decision {
            Decision::Evict { holder, addresses, images_known } => {
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let mut plan = format!(
                    "Keep {} for pod {}/{}, and evict pod {} on node {}, which has it.",
                    list.join(","),
                    self.namespace,
                    self.pod,
                    holder.name,
                    holder.node
                );
                if !images_known {
                    plan += "\nWhether the node of the pod that waits can have its image is not known.";
                }
                (holder, plan)
            }
            Decision::Keep { holder, addresses } => {
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let (list, of) = (list.join(","), &holder.name);
                (holder, format!("Keep {list} for pod {}/{}: pod {of} is ending.", self.namespace, self.pod))
            }
            Decision::Wait(why) => {
                return self.report(&case, format!("nothing to do now: {why}"), format, Outcome::NotWell);
            }
            Decision::Refuse(why) => return self.report(&case, format!("refused: {why}"), format, Outcome::NotWell),
        };
        if self.consent.dry_run {
            return self.report(&case, plan, format, Outcome::Well);
        }
        let what = format!("handover {}", self.pod);
        if !self.consent.given(&what, &plan, &format!("Evict {}?", holder.name))? {
            eprintln!("kube-ipam: pod {} is left as it is", holder.name);
            return Ok(Outcome::NotWell);
        }
        let (said, outcome) = match handover.carry_out(&case).await? {
            Some(handover::Outcome::Evicted) => {
                (format!("{plan}\nEvicted; the address passes on as it ends."), Outcome::Well)
            }
            Some(handover::Outcome::Kept) => (plan, Outcome::Well),
            Some(handover::Outcome::Blocked(why)) => {
                (format!("pod {} may not be evicted now: {why}", holder.name), Outcome::NotWell)
            }
            Some(handover::Outcome::Changed) | None => {
                ("somebody changed the claim or the pod meanwhile; look again".to_owned(), Outcome::NotWell)
            }
        };
        self.report(&case, said, format, outcome)
    }

    fn report(&self, case: &Case, said: String, format: Format, outcome: Outcome) -> Result<Outcome> {
        let holder = match &case.decision {
            Decision::Evict { holder, .. } | Decision::Keep { holder, .. } => Some(holder.name.as_str()),
            Decision::Wait(_) | Decision::Refuse(_) => None,
        };
        let done = outcome == Outcome::Well && !self.consent.dry_run;
        let report = Report { namespace: &self.namespace, pod: &self.pod, holder, said: said.clone(), done };
        output::print(format, &report, || said)?;
        Ok(outcome)
    }
}

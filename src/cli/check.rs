//! `check`: everything that is recorded against the invariants.

use std::time::Duration;

use anyhow::Result;
use calico::ApiGroup;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Outcome;
use super::connect::{Connection, Site};
use super::output::{self, Format, Progress};
use crate::audit::{self, Reading, Snapshot, Violation};
use crate::store::AnyLedger;
use crate::store::group::not_copied;
use crate::store::kube::KubeStore;

/// What is asked for.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
The exit code is 2 if no ledger of claims is known or can be read, or if no configuration says which addresses may be
given: what was not checked is no success. Use --skip to leave such a part out.")]
pub(super) struct Check {
    /// Seconds after which a violation is looked at again before it counts: in a running cluster each step of a
    /// writer shows for a moment.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    settle: u64,
    /// Parts that are left out, and whose absence is no failure.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    skip: Vec<Part>,
}

/// A part of the judgement that needs more than the cluster's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    /// Claims on fixed addresses, which need their ledger.
    Claims,
    /// The ranges of addresses, which need the network's configuration.
    Ranges,
}

/// What was found, and what was not looked at.
#[derive(Debug, Serialize)]
struct Report {
    violations: Vec<Violation>,
    /// Lawful, but worth a look.
    notes: Vec<Violation>,
    /// What could not be read, and why.
    unread: Vec<String>,
    judged: Judged,
    /// What was not looked at, and why: nothing is known of it.
    missing: Vec<Missing>,
    skipped: Vec<Part>,
    used: Used,
}

/// Which of the judgements that need to be asked for were made.
#[derive(Debug, Clone, Copy, Serialize)]
struct Judged {
    /// With a ledger.
    claims: bool,
    /// With the network's configuration.
    ranges: bool,
}

/// A part that was not judged.
#[derive(Debug, Clone, Serialize)]
struct Missing {
    part: Part,
    why: String,
}

/// By what was judged.
#[derive(Debug, Clone, Default, Serialize)]
struct Used {
    /// The ledger's network.
    network: Option<String>,
    /// Where its claims are.
    ledger: &'static str,
    /// Where network, ledger and ranges were found, unless flags say them.
    found: Option<String>,
}

const NO_RANGES: &str = "no configuration of the network is known; give --conflist";

impl Check {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let (site, store) = connection.open().await?;
        let mut missing = Vec::new();
        let ledger = match self.skip.contains(&Part::Claims) {
            true => None,
            false => match site.ledger(&store).await? {
                Ok(ledger) => Some(ledger),
                Err(why) => {
                    missing.push(Missing { part: Part::Claims, why });
                    None
                }
            },
        };
        if site.net.is_none() && !self.skip.contains(&Part::Ranges) {
            missing.push(Missing { part: Part::Ranges, why: NO_RANGES.to_owned() });
        }
        let mut reading = read(&site, &store, ledger.as_ref()).await;
        let mut violations = reading.snapshot.as_ref().map(audit::audit).unwrap_or_default();
        if !violations.is_empty() {
            tokio::time::sleep(Duration::from_secs(self.settle)).await;
            let later = read(&site, &store, ledger.as_ref()).await;
            let still = later.snapshot.as_ref().map(audit::audit).unwrap_or_default();
            violations = audit::persisting(&violations, &still);
            reading = later;
        }
        let report = Report {
            violations,
            notes: reading.snapshot.as_ref().map(audit::notes).unwrap_or_default(),
            unread: reading.unread.iter().map(ToString::to_string).collect(),
            judged: Judged {
                claims: reading.snapshot.as_ref().is_some_and(|s| s.claims.is_some()),
                ranges: site.net.is_some(),
            },
            missing,
            skipped: self.skip.clone(),
            used: Used { network: site.network.clone(), ledger: site.place(), found: site.found.clone() },
        };
        output::print(format, &report, || report.text())?;
        for unread in &report.unread {
            eprintln!("kube-ipam: could not be read: {unread}");
        }
        Ok(report.outcome())
    }
}

async fn read(site: &Site, store: &KubeStore, ledger: Option<&AnyLedger>) -> Reading {
    let progress = Progress::new();
    let reading = audit::read(store, ledger, &|what| progress.reading(what)).await;
    let group = store.group().known().unwrap_or_default();
    let (mut early, mut unread) = (Vec::new(), reading.unread);
    if group == ApiGroup::Crd && reading.snapshot.is_some() {
        progress.reading("the newer API group");
        match not_copied(store).await {
            Ok(found) => early = found,
            Err(error) => unread.push(error),
        }
    }
    let snapshot = reading.snapshot.map(|snapshot| Snapshot { net: site.net.clone(), group, early, ..snapshot });
    Reading { snapshot, unread }
}

// === impl Report ===

impl Report {
    fn outcome(&self) -> Outcome {
        match (self.is_whole(), self.violations.is_empty()) {
            (false, _) => Outcome::Unread,
            (true, false) => Outcome::NotWell,
            (true, true) => Outcome::Well,
        }
    }

    /// Whether everything was looked at that was to be.
    fn is_whole(&self) -> bool {
        self.unread.is_empty() && self.missing.is_empty()
    }

    /// A line for each cause, and one that counts them.
    fn text(&self) -> String {
        let red = anstyle::AnsiColor::Red.on_default();
        let yellow = anstyle::AnsiColor::Yellow.on_default();
        let bad = causes(&self.violations).into_iter().map(|of| (red, of[0].invariant.to_string(), of));
        let notes = causes(&self.notes).into_iter().map(|of| (yellow, "note".to_owned(), of));
        let lines = bad.chain(notes).map(|(style, mark, of)| {
            let Violation { detail, remedy, .. } = of[0];
            format!("{style}{mark}{style:#} {}: {detail}{} -- {remedy}\n", of[0].object, others(&of[1..]))
        });
        lines.collect::<String>() + &self.summary()
    }

    fn summary(&self) -> String {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut summary = match (self.violations.len(), self.is_whole()) {
            // Nothing is said of what nobody looked at, not even a number.
            (0, false) => "nothing is wrong".to_owned(),
            (found, _) => {
                let causes = causes(&self.violations).len();
                let objects = if causes < found { format!(" in {found} places") } else { String::new() };
                count(causes, "violation") + &objects
            }
        };
        if !self.notes.is_empty() {
            summary += &format!(", {}", count(causes(&self.notes).len(), "note"));
        }
        if !self.is_whole() {
            summary += " in what could be read";
        }
        for part in &self.skipped {
            summary += match part {
                Part::Claims => "; claims were skipped",
                Part::Ranges => "; ranges were skipped",
            };
        }
        for Missing { part, why } in &self.missing {
            summary += match part {
                Part::Claims => "\nnot looked at: claims: ",
                Part::Ranges => "\nnot looked at: ranges: ",
            };
            summary += why;
        }
        summary
    }
}

/// What has one cause: of one class, and with one remedy for all.
fn causes(violations: &[Violation]) -> Vec<Vec<&Violation>> {
    let mut causes: Vec<Vec<&Violation>> = Vec::new();
    for violation in violations {
        match causes.iter_mut().find(|of| (of[0].class, &of[0].remedy) == (violation.class, &violation.remedy)) {
            Some(cause) => cause.push(violation),
            None => causes.push(vec![violation]),
        }
    }
    causes
}

/// The first few of the others that have the same cause.
fn others(others: &[&Violation]) -> String {
    const SHOWN: usize = 4;
    let mut objects: Vec<&str> = others.iter().take(SHOWN).map(|v| v.object.as_str()).collect();
    if others.len() > SHOWN {
        objects.push("...");
    }
    match others.len() {
        0 => String::new(),
        more => format!("; and {more} more like it ({})", objects.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use calico::invariants::Invariant;

    use super::*;
    use crate::audit::Class;

    fn report(violations: usize, unread: &[&str]) -> Report {
        let one = Violation {
            invariant: Invariant::I2,
            class: Class::ClaimDisagrees,
            object: "Claim/10.244.0.216".into(),
            detail: "names no holder".into(),
            remedy: "release it".into(),
        };
        Report {
            violations: vec![one; violations],
            notes: Vec::new(),
            unread: unread.iter().map(ToString::to_string).collect(),
            judged: Judged { claims: true, ranges: true },
            missing: Vec::new(),
            skipped: Vec::new(),
            used: Used::default(),
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn every_cause_is_a_line_and_they_are_counted() {
        let text = plain(&report(1, &[]).text());
        assert_eq!(text, "I2 Claim/10.244.0.216: names no holder -- release it\n1 violation");
        let mut several = report(7, &[]);
        several.violations[6].remedy = "another one".into();
        let text = plain(&several.text());
        let object = "Claim/10.244.0.216";
        let first = format!(
            "I2 {object}: names no holder; and 5 more like it ({object}, {object}, {object}, {object}, ...) -- release it"
        );
        assert_eq!(text, format!("{first}\nI2 {object}: names no holder -- another one\n2 violations in 7 places"));
        assert_eq!(plain(&report(0, &[]).text()), "0 violations");
    }

    #[test]
    fn what_was_not_looked_at_is_said_and_does_not_count_as_good() {
        let mut report = report(0, &[]);
        report.missing = vec![Missing { part: Part::Claims, why: "nobody knows".into() }];
        let text = plain(&report.text());
        assert_eq!(text, "nothing is wrong in what could be read\nnot looked at: claims: nobody knows");
        assert_eq!(report.outcome(), Outcome::Unread);
        report.missing.clear();
        report.skipped = vec![Part::Ranges];
        assert_eq!(
            (plain(&report.text()).as_str(), report.outcome()),
            ("0 violations; ranges were skipped", Outcome::Well)
        );
    }

    #[test]
    fn notes_are_counted_beside_violations() {
        let mut report = report(1, &[]);
        report.notes = report.violations.clone();
        let text = plain(&report.text());
        assert!(text.contains("\nnote Claim/10.244.0.216: ") && text.ends_with("1 violation, 1 note"), "{text}");
    }

    #[test]
    fn what_could_not_be_read_outweighs_what_was_found() {
        assert_eq!(report(0, &[]).outcome(), Outcome::Well);
        assert_eq!(report(1, &[]).outcome(), Outcome::NotWell);
        assert_eq!(report(1, &["list pods: not allowed"]).outcome(), Outcome::Unread);
        assert!(report(0, &["list pods: not allowed"]).text().ends_with("nothing is wrong in what could be read"));
    }
}

//! `check`: everything that is recorded against the invariants.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::Outcome;
use super::connect::{Connection, Site};
use super::output::{self, Format, Progress};
use crate::audit::{self, Reading, Snapshot, Violation};
use crate::store::AnyLedger;
use crate::store::kube::KubeStore;

/// What is asked for.
#[derive(Args, Debug, Clone)]
pub(super) struct Check {
    /// Seconds after which a violation is looked at again before it counts: a cluster that lives shows each
    /// step of a writer for a moment.
    #[arg(long, default_value_t = 2, value_name = "SECONDS")]
    settle: u64,
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
}

/// Which of the judgements that need to be asked for were made.
#[derive(Debug, Clone, Copy, Serialize)]
struct Judged {
    /// With a ledger.
    claims: bool,
    /// With the network's configuration.
    ranges: bool,
}

impl Check {
    pub(super) async fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let (site, store) = connection.open().await?;
        let ledger = site.ledger(&store).await?;
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
    let snapshot = reading.snapshot.map(|snapshot| Snapshot { net: site.net.clone(), ..snapshot });
    Reading { snapshot, ..reading }
}

// === impl Report ===

impl Report {
    fn outcome(&self) -> Outcome {
        match (self.unread.is_empty(), self.violations.is_empty()) {
            (false, _) => Outcome::Unread,
            (true, false) => Outcome::NotWell,
            (true, true) => Outcome::Well,
        }
    }

    /// A line for each finding, and one that counts them.
    fn text(&self) -> String {
        let red = anstyle::AnsiColor::Red.on_default();
        let yellow = anstyle::AnsiColor::Yellow.on_default();
        let bad = self.violations.iter().map(|v| (red, v.invariant.to_string(), v));
        let notes = self.notes.iter().map(|v| (yellow, "note".to_owned(), v));
        let lines = bad
            .chain(notes)
            .map(|(style, mark, v)| format!("{style}{mark}{style:#} {}: {} -- {}\n", v.object, v.detail, v.remedy));
        lines.collect::<String>() + &self.summary()
    }

    fn summary(&self) -> String {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut summary = count(self.violations.len(), "violation");
        if !self.notes.is_empty() {
            summary += &format!(", {}", count(self.notes.len(), "note"));
        }
        let missing: Vec<&str> = [
            (self.judged.claims, "claims were not looked at: no ledger is named"),
            (self.judged.ranges, "ranges were not judged: no --conflist"),
        ]
        .into_iter()
        .filter_map(|(judged, why)| (!judged).then_some(why))
        .collect();
        if !self.unread.is_empty() {
            summary += " in what could be read";
        } else if !missing.is_empty() {
            summary += &format!(" ({})", missing.join("; "));
        }
        summary
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
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn every_violation_is_a_line_and_they_are_counted() {
        let text = plain(&report(2, &[]).text());
        let line = "I2 Claim/10.244.0.216: names no holder -- release it";
        assert_eq!(text, format!("{line}\n{line}\n2 violations"));
        assert_eq!(plain(&report(0, &[]).text()), "0 violations");
    }

    #[test]
    fn what_was_not_judged_is_said() {
        let mut report = report(1, &[]);
        report.judged = Judged { claims: true, ranges: false };
        report.notes = report.violations.clone();
        let text = plain(&report.text());
        assert!(text.contains("\nnote Claim/10.244.0.216: "), "{text}");
        assert!(text.ends_with("1 violation, 1 note (ranges were not judged: no --conflist)"), "{text}");
    }

    #[test]
    fn what_could_not_be_read_outweighs_what_was_found() {
        assert_eq!(report(0, &[]).outcome(), Outcome::Well);
        assert_eq!(report(1, &[]).outcome(), Outcome::NotWell);
        assert_eq!(report(1, &["list pods: not allowed"]).outcome(), Outcome::Unread);
        assert!(report(0, &["list pods: not allowed"]).text().ends_with("0 violations in what could be read"));
    }
}

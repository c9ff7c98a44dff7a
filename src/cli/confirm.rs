//! Asking before something is written.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Result, bail};
use clap::Args;

/// Whether a command may write.
#[derive(Args, Debug, Clone)]
pub(super) struct Consent {
    /// Do not ask.
    #[arg(short, long)]
    pub(super) yes: bool,
    /// Only show what would be done.
    #[arg(long, conflicts_with = "yes")]
    pub(super) dry_run: bool,
}

impl Consent {
    /// Whether it is given, with `--yes` or by an answer to the question below what would be done. `what` names the command
    /// in the error of a run without a terminal.
    pub(super) fn given(&self, what: &str, shown: &str, question: &str) -> Result<bool> {
        Ok(self.yes || confirm(what, shown, question)?)
    }
}

fn confirm(what: &str, shown: &str, question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{what}: stdin is no terminal to ask on; add --yes to do it, or --dry-run to see what it would do");
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{shown}\n\n{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        assert!(["y\n", "Yes\n", " y "].into_iter().all(is_yes));
        assert!(["", "\n", "n\n", "yo\n"].into_iter().all(|answer| !is_yes(answer)));
    }
}

//! Asking before something is written.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Result, bail};

/// Shows what would be done, and asks. `what` names the command in the error of a run without a terminal.
pub(super) fn confirm(what: &str, shown: &str, question: &str) -> Result<bool> {
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

//! What the command lines of several tools here have in common.

use clap::ValueEnum;

/// How a report is printed.
#[derive(Clone, Copy, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For machines.
    Json,
}

/// A number of things of which there must be some.
///
/// # Errors
/// What would be right, in the words of a command line's error.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "a whole number from 1 on".to_owned())
}

//! What comes out: plain tables in kubectl's style, JSON, YAML; progress on a terminal.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::Outcome;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// Text for people.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Stands for what is not there.
pub(super) const NONE: &str = "-";

/// Prints `value` for machines, or what `people` makes of it.
pub(super) fn print<T: Serialize>(format: Format, value: &T, people: impl FnOnce() -> String) -> Result<Outcome> {
    say(&match format {
        Format::Table => people(),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_yaml_ng::to_string(value)?,
    })
}

/// Prints lines. Colours are left out where stdout is no terminal or NO_COLOR is set; a reader who has seen
/// enough (`| head`) is no error.
pub(super) fn say(text: &str) -> Result<Outcome> {
    let mut out = anstream::stdout().lock();
    let text = text.trim_end();
    let written = if text.is_empty() { Ok(()) } else { writeln!(out, "{text}").and_then(|()| out.flush()) };
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("stdout"),
        _ => Ok(Outcome::Well),
    }
}

/// Columns three spaces apart, without borders.
pub(super) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = plain();
    table.set_header(header);
    table.add_rows(rows);
    laid_out(table, 3)
}

/// `Name:  value` in two columns.
pub(super) fn description(fields: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = plain();
    table.add_rows(fields.into_iter().map(|(name, value)| [format!("{name}:"), value]));
    laid_out(table, 2)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn laid_out(mut table: Table, gap: u16) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, gap));
    }
    table.trim_fmt()
}

/// A time of our own records, to the second.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The value, or what stands for none.
pub(super) fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Reads an address of the command line.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| "it is not an address; write it like 10.244.0.216 or fd00::216".to_owned())
}

/// Says on a terminal what is being read; silent elsewhere. What it said is wiped away in the end.
pub(super) struct Progress {
    on: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { on: std::io::stderr().is_terminal() }
    }

    pub(super) fn reading(&self, what: &str) {
        if self.on {
            eprint!("\r\x1b[Kreading {what} ...");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.on {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_blanks_at_line_ends() {
        let rows = [["10.244.0.0/16", "3"], ["fd00::/112", "12"]].map(|row| row.map(str::to_owned));
        let expected = "CIDR            IN USE\n10.244.0.0/16   3\nfd00::/112      12";
        assert_eq!(table(["CIDR", "IN USE"], rows), expected);
    }

    #[test]
    fn a_description_lines_its_values_up() {
        let fields = [("Address", "10.0.0.1".to_owned()), ("Pod", "default/web".to_owned())];
        assert_eq!(description(fields), "Address:  10.0.0.1\nPod:      default/web");
    }
}

//! What was measured: figures for machines, tables for people.

use std::fmt::{self, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::section::FLOOR;
use super::spread::Spread;
use crate::calls::Counts;

/// Everything one run measured. Times are milliseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// Calls of each kind, one at a time.
    pub operations: usize,
    /// One for each state of the cluster.
    pub sections: Vec<Section>,
}

/// What the figures depend on.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Processors.
    pub cores: usize,
    /// As the kernel names the first of them.
    pub processor: String,
}

/// One state of the cluster.
#[derive(Debug, Serialize)]
pub struct Section {
    /// Blocks of other nodes.
    pub blocks: usize,
    /// Pods that had addresses on the node already.
    pub pods: usize,
    /// Times.
    pub rows: Vec<Row>,
    /// Calls.
    pub calls: Vec<CallRow>,
    /// The agents at rest.
    pub agents: Vec<AgentRow>,
}

/// What one way's agent takes at the end of a section.
#[derive(Debug, Serialize)]
pub struct AgentRow {
    /// The way's name.
    pub way: &'static str,
    /// Resident memory in MB.
    pub resident: f64,
    /// Share of one processor while nobody asks anything.
    pub idle_processor: f64,
}

/// How long one way took for one operation.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The way's name.
    pub way: &'static str,
    /// "ADD random", "100 DELs at once".
    pub operation: String,
    /// Times of single calls.
    pub spread: Spread,
    /// Of calls at once: until the last had ended.
    pub all: Option<f64>,
}

/// How often one operation of one way asked for something, on average.
#[derive(Debug, Serialize)]
pub struct CallRow {
    /// The way's name.
    pub way: &'static str,
    /// As in [`Row`].
    pub operation: String,
    /// The verb, or `txn`.
    pub verb: String,
    /// The plural, or `etcd`.
    pub resource: String,
    /// Calls for one operation.
    pub calls: f64,
}

// === impl Machine ===

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = known.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine { cores, processor: name.map_or("unknown", |(_, name)| name).to_owned() }
    }
}

// === impl CallRow ===

impl CallRow {
    /// The calls of `operations` operations.
    pub(super) fn of(way: &'static str, operation: &str, counts: &Counts, operations: usize) -> Vec<CallRow> {
        let row = |(verb, resource, count): (&str, &str, usize)| CallRow {
            way,
            operation: operation.to_owned(),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            calls: count as f64 / operations as f64,
        };
        counts.iter().map(row).collect()
    }

    /// The requests to etcd of `operations` operations; `None` if there were none.
    pub(super) fn of_etcd(way: &'static str, operation: &str, count: u64, operations: usize) -> Option<CallRow> {
        (count > 0).then(|| CallRow {
            way,
            operation: operation.to_owned(),
            verb: "request".to_owned(),
            resource: "etcd".to_owned(),
            calls: count as f64 / operations as f64,
        })
    }
}

// === impl Section ===

impl Section {
    /// The ways in the order of the table's columns: the floor first.
    fn ways(&self) -> Vec<&'static str> {
        let mut ways = vec![FLOOR];
        for row in &self.rows {
            if !ways.contains(&row.way) {
                ways.push(row.way);
            }
        }
        ways
    }

    fn operations(&self) -> Vec<&str> {
        let mut operations: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !operations.contains(&row.operation.as_str()) {
                operations.push(&row.operation);
            }
        }
        operations
    }

    fn row(&self, way: &str, operation: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.way == way && row.operation == operation)
    }

    /// How many times longer `slower` takes than `faster`: of the medians, or of the whole if calls were made at once.
    pub fn ratio(&self, operation: &str, slower: &str, faster: &str) -> Option<f64> {
        let (slower, faster) = (self.row(slower, operation)?, self.row(faster, operation)?);
        Some(slower.all.unwrap_or(slower.spread.p50) / faster.all.unwrap_or(faster.spread.p50))
    }

    fn times(&self) -> Table {
        let (ways, versus) = (self.ways(), self.versus());
        let header = ways.iter().map(|way| way.to_string());
        let ratios = versus.iter().map(|(slower, faster)| format!("{slower} / {faster}"));
        let mut table = table(["ms".to_owned()].into_iter().chain(header).chain(ratios));
        for operation in self.operations() {
            let cell = |way: &&str| self.row(way, operation).map_or("-".to_owned(), Row::to_string);
            let ratio = |(slower, faster): &(&str, &str)| {
                self.ratio(operation, slower, faster).map_or("-".to_owned(), |ratio| format!("{ratio:.1}"))
            };
            let cells = ways.iter().map(cell).chain(versus.iter().map(ratio));
            table.add_row([operation.to_owned()].into_iter().chain(cells));
        }
        table
    }

    /// The ways whose ratio is told: Calico's plugin against each of ours, or the first against the others.
    fn versus(&self) -> Vec<(&'static str, &'static str)> {
        let plugins: Vec<&str> = self.ways().into_iter().filter(|way| *way != FLOOR).collect();
        let calicos = plugins.iter().find(|way| **way == "calico-ipam").or(plugins.first());
        let Some(slower) = calicos else { return Vec::new() };
        plugins.iter().filter(|way| *way != slower).map(|faster| (*slower, *faster)).collect()
    }

    fn counts(&self) -> Table {
        let mut columns: Vec<(&str, &str)> = Vec::new();
        for row in &self.calls {
            if !columns.contains(&(row.way, &row.operation)) {
                columns.push((row.way, &row.operation));
            }
        }
        let mut kinds: Vec<(&str, &str)> =
            self.calls.iter().map(|row| (row.verb.as_str(), row.resource.as_str())).collect();
        kinds.sort_by_key(|(verb, resource)| (order(verb), *verb, *resource));
        kinds.dedup();
        let header = columns.iter().map(|(way, operation)| format!("{way} {operation}"));
        let mut table = table(["calls".to_owned()].into_iter().chain(header));
        for (verb, resource) in kinds {
            let calls = |(way, operation): &(&str, &str)| {
                let wanted = |row: &&CallRow| {
                    (row.way, row.operation.as_str(), row.verb.as_str(), row.resource.as_str())
                        == (*way, *operation, verb, resource)
                };
                self.calls.iter().find(wanted).map_or("-".to_owned(), |row| row.calls.to_string())
            };
            table.add_row([format!("{verb} {resource}")].into_iter().chain(columns.iter().map(calls)));
        }
        table
    }
}

/// Reads, then writes, then etcd.
fn order(verb: &str) -> usize {
    ["get", "list", "watch", "create", "update", "patch", "delete", "request"]
        .iter()
        .position(|known| *known == verb)
        .unwrap_or(usize::MAX)
}

/// An empty table: what is below its header stands to the right, but for the first column.
pub(crate) fn table(header: impl Iterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.all {
            Some(all) => write!(f, "{all:.0} in all"),
            None => write!(f, "{:.1} / {:.1}", self.spread.p50, self.spread.p99),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor } = &self.machine;
        writeln!(
            f,
            "{cores} cores, {processor}; p50 / p99 of {} calls, ratios of p50 or of the whole",
            self.operations
        )?;
        for section in &self.sections {
            let mut text = String::new();
            writeln!(text, "\n{} blocks of other nodes, {} pods on the node\n", section.blocks, section.pods)?;
            writeln!(text, "{}\n\n{}", section.times(), section.counts())?;
            for agent in &section.agents {
                let (resident, idle) = (agent.resident, agent.idle_processor * 100.0);
                writeln!(text, "\n{}: {resident:.1} MB resident, {idle:.2} % of a processor at rest", agent.way)?;
            }
            let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
            writeln!(f, "{}", trimmed.join("\n"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(way: &'static str, operation: &str, p50: f64, all: Option<f64>) -> Row {
        Row { way, operation: operation.into(), spread: Spread { count: 2, p50, p99: p50 * 2.0 }, all }
    }

    fn section() -> Section {
        let counts: Counts = [("update", "ipamblocks"), ("get", "pods"), ("get", "pods")]
            .map(|(verb, resource)| (verb.to_owned(), resource.to_owned()))
            .into_iter()
            .collect();
        Section {
            blocks: 10,
            pods: 1,
            rows: vec![
                row("kube-ipam", "ADD random", 20.0, None),
                row(FLOOR, "ADD random", 10.0, None),
                row("calico-ipam", "ADD random", 100.0, None),
                row("kube-ipam", "100 ADDs at once", 900.0, Some(1000.0)),
                row("calico-ipam", "100 ADDs at once", 900.0, Some(12_500.0)),
            ],
            calls: CallRow::of("kube-ipam", "ADD random", &counts, 2)
                .into_iter()
                .chain(CallRow::of_etcd("kube-ipam", "ADD fixed", 2, 2))
                .collect(),
            agents: vec![AgentRow { way: "agent", resident: 12.5, idle_processor: 0.001 }],
        }
    }

    #[test]
    fn ways_are_compared_by_the_median_of_single_calls_and_by_the_whole_of_calls_at_once() {
        let section = section();
        assert_eq!(section.ratio("ADD random", "calico-ipam", "kube-ipam"), Some(5.0));
        assert_eq!(section.ratio("100 ADDs at once", "calico-ipam", "kube-ipam"), Some(12.5));
        assert_eq!(section.ratio("ADD fixed", "calico-ipam", "kube-ipam"), None);
    }

    #[test]
    fn the_table_has_a_column_for_each_way_and_one_for_the_ratio() {
        let machine = Machine { cores: 2, processor: "any".into() };
        let text = Report { machine, operations: 2, sections: vec![section()] }.to_string();
        let line = |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap().to_owned();
        let words = |start: &str| line(start).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(words("ADD random"), "ADD random 10.0 / 20.0 20.0 / 40.0 100.0 / 200.0 5.0");
        assert_eq!(words("100 ADDs"), "100 ADDs at once - 1000 in all 12500 in all 12.5");
        assert_eq!(words("get pods"), "get pods 1 -");
        assert_eq!(words("request etcd"), "request etcd - 1");
        assert!(text.contains("agent: 12.5 MB resident, 0.10 % of a processor at rest"), "{text}");
        assert!(text.find("get pods") < text.find("update ipamblocks"), "{text}");
    }
}

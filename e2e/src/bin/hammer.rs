//! `make hammer`: many nodes whose pods all come and go, on a real control plane, with an account of every address.

use anyhow::{Result, bail};
use clap::Parser;
use e2e::arguments::{Output, at_least_one};
use e2e::hammer::{self, Options};
use e2e::tools::Tools;

/// Churns the pods of many nodes against a real API server and a real etcd, and looks for duplicates, leaks and orphans.
#[derive(Parser)]
struct Arguments {
    /// Nodes.
    #[arg(long, default_value_t = 1500, value_parser = at_least_one)]
    nodes: usize,
    /// Pods on each node.
    #[arg(long, default_value_t = 10, value_parser = at_least_one)]
    pods: usize,
    /// How often every pod is replaced, after the cluster was filled and before it is emptied.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Share of pods with fixed addresses, in percent; they move to another node every time.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    fixed: u8,
    /// Share of calls that the plugin itself serves, without an agent, in percent.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    direct: u8,
    /// Nodes, or pods that move, at the same time.
    #[arg(long, default_value_t = 16, value_parser = at_least_one)]
    at_once: usize,
    /// For the order in which nodes come and pods move.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tables for people, or JSON for machines, with the tables on stderr.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

fn main() -> Result<()> {
    let Arguments { nodes, pods, rounds, fixed, direct, at_once, seed, output } = Arguments::parse();
    let Some(tools) = Tools::or_skip()? else { return Ok(()) };
    let (fixed, direct) = (fixed.into(), direct.into());
    let options = Options { nodes, pods, rounds, fixed, direct, at_once, seed };
    let report = hammer::runtime()?.block_on(hammer::run(tools, &options))?;
    match output {
        Output::Table => print!("{report}"),
        Output::Json => {
            eprintln!("{report}");
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
    }
    if !report.is_clean() {
        bail!("something is wrong: {}", report.total.account);
    }
    Ok(())
}

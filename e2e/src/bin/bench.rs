//! `make bench`: kube-ipam beside the floor and, with CALICO_BIN, beside calico-ipam, on a real control plane.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use e2e::arguments::{Output, at_least_one};
use e2e::bench::{self, Options, Way, When};
use e2e::tools::{self, Tools};

/// Measures ADD and DEL of kube-ipam on a real API server and a real etcd.
///
/// Environment: CALICO_BIN, a directory with calico-ipam, measures that beside it; CALICO_CRDS, a file, uses
/// Calico's own definitions; KUBE_IPAM_BIN measures another binary than the one that lies beside this one.
#[derive(Parser)]
struct Arguments {
    /// Calls of each kind, one at a time.
    #[arg(long, default_value_t = 100, value_parser = at_least_one)]
    operations: usize,
    /// Calls at once on a node; 0 measures none.
    #[arg(long, default_value_t = 100)]
    at_once: usize,
    /// Pods on the node, several by comma.
    #[arg(long, default_value = "1,110", value_delimiter = ',', value_parser = at_least_one)]
    pods: Vec<usize>,
    /// Blocks of other nodes, several by comma in ascending order, at most 12000.
    #[arg(long, default_value = "10", value_delimiter = ',', value_parser = seedable)]
    blocks: Vec<usize>,
    /// A table for people, or JSON for machines.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

fn seedable(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number <= 12_000).ok_or_else(|| "a whole number up to 12000".to_owned())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    arguments.blocks.sort_unstable();
    let Some(tools) = Tools::or_skip()? else { return Ok(()) };
    let binary = tools::kube_ipam()?;
    let mut ways =
        vec![Way::direct(binary.clone()), Way::agent(binary.clone(), When::Asked), Way::agent(binary, When::Ahead)];
    if let Some(directory) = std::env::var_os("CALICO_BIN").filter(|directory| !directory.is_empty()) {
        ways.push(Way::calico(&PathBuf::from(directory))?);
    }
    let options = Options {
        operations: arguments.operations,
        at_once: arguments.at_once,
        pods: arguments.pods,
        blocks: arguments.blocks,
        crds: std::env::var_os("CALICO_CRDS").filter(|file| !file.is_empty()).map(PathBuf::from),
    };
    let report = bench::run(tools, &ways, &options).await?;
    match arguments.output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

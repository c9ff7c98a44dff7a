//! `make chaos`: the real parts killed and harmed in an order that a seed gives, until so many were killed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use e2e::chaos::{self, Options};
use e2e::tools::Tools;

/// Kills plugins, agents, an API server and three etcd members under load, and says what came of it.
///
/// Environment: CALICO_BIN, a directory with calicoctl, has that judge, too; CALICO_CRDS, a file, uses Calico's own
/// definitions; KUBE_IPAM_BIN harms another binary than the one that lies beside this one.
#[derive(Parser)]
struct Arguments {
    /// Gives the sequence of harms; by default a new one.
    #[arg(long)]
    seed: Option<u64>,
    /// How many kills.
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// Keep the logs, even if all is well.
    #[arg(long)]
    keep_logs: bool,
}

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let Some(tools) = Tools::or_skip()? else { return Ok(ExitCode::SUCCESS) };
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let options = Options {
        seed,
        kills: arguments.kills,
        crds: path("CALICO_CRDS"),
        calico_bin: path("CALICO_BIN"),
        clean_within: Duration::from_secs(60),
        keep_logs: arguments.keep_logs,
        plant: None,
    };
    let report = chaos::run(tools, &options).await?;
    println!("seed {seed}\n{}", report.table);
    if report.wrongs.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nseed {seed} FAILED; logs: {}\n{}", report.logs.display(), report.wrongs.join("\n"));
    Ok(ExitCode::FAILURE)
}

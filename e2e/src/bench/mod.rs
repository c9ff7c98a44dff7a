//! The benchmark: ways of giving a pod its address, side by side on a real API server and a real etcd.
//!
//! Layout: [`Way`] is a plugin and its configuration, `ground` the control plane, `seat` a node on which one way
//! is called, `floor` the same writes without a plugin, `section` one measurement, [`Report`] what came of it.
//!
//! Keeps: whatever is compared ran in the same section, turn by turn, each way on a node of its own. This
//! machine's speed of the moment is in every figure, so only ratios within a section mean something.

mod agent;
mod floor;
pub(crate) mod ground;
mod handoff;
mod report;
mod seat;
mod section;
mod spread;
mod way;

use std::path::PathBuf;

use anyhow::Result;

pub(crate) use report::table;
pub use report::{CallRow, Machine, Report, Row, Section};
pub use spread::Spread;
pub use way::{Way, When};

use crate::real::Crds;
use crate::tools::Tools;
use ground::Ground;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Calls of each kind, one at a time.
    pub operations: usize,
    /// How many calls at once; 0 leaves these measurements out.
    pub at_once: usize,
    /// Pods on the node, one section for each number.
    pub pods: Vec<usize>,
    /// Blocks of other nodes, one section for each number, in ascending order.
    pub blocks: Vec<usize>,
    /// Calico's definitions instead of ours.
    pub crds: Option<PathBuf>,
}

/// Measures all ways in every section. Progress goes to stderr.
pub async fn run(tools: Tools, ways: &[Way], options: &Options) -> Result<Report> {
    let crds = options.crds.clone().map_or_else(|| Crds::Definitions(crate::crds()), Crds::File);
    eprintln!("starting etcd and the API server ...");
    let mut ground = Ground::start(tools, crds).await?;
    let mut sections = Vec::new();
    for blocks in &options.blocks {
        ground.seed(*blocks).await?;
        for pods in &options.pods {
            eprintln!("blocks {blocks}, pods on the node {pods}:");
            sections.push(section::measure(&ground, ways, options, sections.len(), *blocks, *pods).await?);
        }
    }
    Ok(Report { machine: report::Machine::here(), operations: options.operations, sections })
}

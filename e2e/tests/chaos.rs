//! A short run of what `make chaos` does at length, and runs whose judges must find what was planted.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use e2e::chaos::{self, Options, Plant, Report};
use e2e::tools::Tools;
use tokio::sync::Mutex;

/// One more than the harms of one deck: each of them comes.
const KILLS: u64 = 55;
/// One at a time: each takes the whole machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// `None` if this machine cannot do it, which was said.
async fn run(kills: u64, plant: Option<Plant>) -> Option<Report> {
    let _turn = TURN.lock().await;
    let tools = Tools::or_skip().unwrap()?;
    let given = std::env::var("SEED").ok().filter(|seed| !seed.is_empty());
    let seed = given.map_or_else(|| u64::from(rand::random::<u32>()), |seed| seed.parse().unwrap());
    let clean_within = Duration::from_secs(if plant.is_some() { 5 } else { 60 });
    let options = Options { seed, kills, crds: None, calico_bin: None, clean_within, keep_logs: false, plant };
    let report = chaos::run(tools, &options).await.unwrap();
    eprintln!("seed {seed}\n{}", report.table);
    Some(report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_killed_piece_by_piece_gives_no_address_twice_and_keeps_none() {
    let Some(report) = run(KILLS, None).await else { return };
    assert!(report.wrongs.is_empty(), "logs: {}\n{}", report.logs.display(), report.wrongs.join("\n"));
    assert!(report.kills >= KILLS && report.lost.iter().all(|lost| *lost > 0), "too little was harmed");
    assert!(report.starved.iter().all(|times| *times > 0), "etcd never lacked room: {:?}", report.starved);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_a_block_forgot_is_found_to_be_had_by_two() {
    let Some(report) = run(0, Some(Plant::Duplicate)).await else { return };
    assert!(report.duplicates > 0, "{report:?}");
    let said = report.wrongs.join("\n");
    assert!(said.contains("was told to") && said.contains("history of"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allocation_of_nobody_is_found_to_be_left_over() {
    let Some(report) = run(0, Some(Plant::Leak)).await else { return };
    assert_eq!((report.duplicates, report.left.len()), (0, 1), "{report:?}");
    let said = report.wrongs.join("\n");
    assert!(said.contains("left over") && said.contains("kube-ipam check"), "{said}");
}

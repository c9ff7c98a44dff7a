//! Many nodes whose pods all come and go, on a real API server and a real etcd: a small run of `make hammer`.
#![allow(clippy::unwrap_used, missing_docs)]

use e2e::hammer::{self, Options};
use e2e::tools::Tools;

#[test]
fn pods_of_forty_nodes_come_and_go_without_duplicates_leaks_or_orphans() {
    let Some(tools) = Tools::or_skip().unwrap() else { return };
    let options = Options { nodes: 40, pods: 10, rounds: 3, fixed: 5, ..Options::default() };
    let report = hammer::runtime().unwrap().block_on(hammer::run(tools, &options)).unwrap();
    eprintln!("{report}");
    assert!(report.is_clean(), "{}", report.total.account);
    // Filled once, replaced three times; and every ADD that was answered had its DEL.
    assert_eq!(report.total.adds, 4 * 400);
    assert!(report.total.dels >= report.total.adds, "{} DELs", report.total.dels);
    let kinds = ["ADD random", "ADD fixed", "ADD waiting", "ADD direct", "DEL random", "DEL fixed", "DEL direct"];
    let unseen: Vec<&str> = kinds.into_iter().filter(|kind| report.total.operation(kind).is_none()).collect();
    assert!(unseen.is_empty(), "never called: {unseen:?}");
    assert!(report.total.account.blocks >= 40 && report.collector.rounds > 0, "{report}");
}

//! Every captured step is counted as calicoctl counted it.

mod common;

use std::collections::BTreeMap;

use calico::utilization::{Counts, borrowed};
use calico::{IPAMBlock, IPPool, IPReservation, Reservations, Utilization};
use serde_json::Value;

/// The rows of calicoctl's table, by grouping and CIDR: total, in use, reserved, free, without percentages.
fn table(text: &str) -> BTreeMap<(String, String), [String; 4]> {
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect() };
    let rows = text.lines().filter(|line| line.starts_with('|')).map(cells).filter(|row| row[0] != "GROUPING");
    let number = |cell: &String| cell.split(' ').next().unwrap_or_default().to_owned();
    rows.map(|row| ((row[0].clone(), row[1].clone()), [2, 3, 4, 5].map(|column| number(&row[column])))).collect()
}

fn counted(counts: &Counts) -> [String; 4] {
    [counts.total, counts.in_use, counts.reserved, counts.free].map(|n| n.to_string())
}

fn shown(step: &Value, command: &str) -> String {
    step["calicoctl"][command].as_str().unwrap_or_default().to_owned()
}

#[test]
fn pools_and_blocks_are_counted_as_calicoctl_counts_them() {
    let mut rows = 0;
    // Older releases show no reserved ones.
    for (name, step) in common::steps().into_iter().filter(|(name, _)| name.starts_with("Newest")) {
        let expected = table(&shown(&step, "ipam show --show-blocks"));
        if expected.is_empty() {
            continue;
        }
        let (pools, blocks) =
            (common::objects::<IPPool>(&step, "ippools"), common::objects::<IPAMBlock>(&step, "ipamblocks"));
        let reservations = Reservations::new(&common::objects::<IPReservation>(&step, "ipreservations"));
        let used = Utilization::of(&pools, &blocks, &reservations);
        let of_pools = used.pools.iter().map(|p| (("IP Pool".to_owned(), p.pool.spec.cidr.to_string()), p.counts));
        let in_pools = used.pools.iter().flat_map(|p| &p.blocks).chain(&used.orphans);
        let of_blocks = in_pools.map(|b| (("Block".to_owned(), b.block.spec.cidr.to_string()), b.counts));
        let found: BTreeMap<_, _> = of_pools.chain(of_blocks).collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (key, counts) in found {
            let expected = &expected[&key];
            // The captured calicoctl lets a number of more than 63 bits overflow.
            if i64::try_from(counts.total).is_ok() {
                assert_eq!(&counted(&counts), expected, "{name} {key:?}");
            } else {
                assert_eq!(counted(&counts)[1..3], expected[1..3], "{name} {key:?}");
            }
            rows += 1;
        }
    }
    assert!(rows > 40, "{rows} rows compared");
}

#[test]
fn borrowed_addresses_are_those_that_calicoctl_lists() {
    let mut addresses = 0;
    for (name, step) in common::steps() {
        let text = shown(&step, "ipam show --show-borrowed");
        let listed = text.lines().filter(|line| line.starts_with('|') && !line.contains("BORROWING-NODE"));
        let expected: Vec<String> =
            listed.map(|line| line.split('|').skip(1).take(4).map(str::trim).collect::<Vec<_>>().join(" ")).collect();
        let blocks = common::objects::<IPAMBlock>(&step, "ipamblocks");
        let found: Vec<String> = blocks
            .iter()
            .flat_map(borrowed)
            .map(|b| {
                format!("{} {} {} {}", b.address, b.node, b.block.spec.cidr, b.block.spec.host().unwrap_or_default())
            })
            .collect();
        assert_eq!(found, expected, "{name}");
        addresses += found.len();
    }
    assert!(addresses > 5, "{addresses} addresses compared");
}

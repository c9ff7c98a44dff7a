//! Addresses that are used on another node than their block's: felix routes each of them by itself.

use std::net::IpAddr;

use calico::IPAMBlock;
use calico::utilization::{Borrowed, borrowed};
use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::cli::output;

/// A borrowed address.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    address: IpAddr,
    node: String,
    block: IpNetwork,
    /// Null: the block is nobody's.
    block_node: Option<String>,
    /// "default/web-1"; null: no pod's.
    pod: Option<String>,
}

pub(super) fn rows(blocks: &[IPAMBlock]) -> Vec<Row> {
    let present = blocks.iter().filter(|block| !block.spec.is_deleted());
    let mut rows: Vec<Row> = present.flat_map(borrowed).map(Row::of).collect();
    rows.sort_by_key(|row| row.address);
    rows
}

pub(super) fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let (owner, pod) = (output::or_none(row.block_node.as_ref()), output::or_none(row.pod.as_ref()));
        [row.address.to_string(), row.node.clone(), row.block.to_string(), owner, pod]
    };
    output::table(["ADDRESS", "NODE", "BLOCK", "BLOCK'S NODE", "POD"], rows.iter().map(cells))
}

impl Row {
    fn of(borrowed: Borrowed<'_>) -> Self {
        let secondary = |key| borrowed.attribute.secondary(key);
        Self {
            address: borrowed.address,
            node: borrowed.node.to_owned(),
            block: borrowed.block.spec.cidr,
            block_node: borrowed.block.spec.host().map(str::to_owned),
            pod: secondary("namespace").zip(secondary("pod")).map(|(namespace, name)| format!("{namespace}/{name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use calico::{Affinity, Holder, IPAMBlockSpec};
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_borrowed_address_names_both_nodes_and_the_pod() {
        let now = Timestamp::UNIX_EPOCH;
        let mut spec = IPAMBlockSpec::new("10.244.0.0/26".parse().unwrap(), &Affinity::host("n1"), now);
        spec.assign(spec.address(1), &Holder::pod("net.a", "default", "own", "n1", now), None).unwrap();
        spec.assign(spec.address(2), &Holder::pod("net.b", "default", "guest", "n2", now), None).unwrap();
        let expected = "\
ADDRESS      NODE   BLOCK           BLOCK'S NODE   POD
10.244.0.2   n2     10.244.0.0/26   n1             default/guest";
        assert_eq!(table(&rows(&[spec.object()])), expected);
    }
}

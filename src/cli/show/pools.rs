//! How full pools and blocks are, in the columns of `calicoctl ipam show`.

use calico::utilization::{BlockUse, Counts, PoolUse};
use calico::{IPPool, Utilization};
use ipnetwork::IpNetwork;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::cli::output;

/// Numbers of addresses.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Numbers {
    total: u128,
    in_use: u128,
    reserved: u128,
    free: u128,
}

/// A pool.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PoolRow {
    name: String,
    cidr: IpNetwork,
    block_size: u8,
    blocks: usize,
    #[serde(flatten)]
    numbers: Numbers,
    disabled: bool,
    assignment_mode: String,
}

/// A block.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlockRow {
    cidr: IpNetwork,
    /// Null: nobody's.
    node: Option<String>,
    /// Null: its pool is gone.
    pool: Option<String>,
    #[serde(flatten)]
    numbers: Numbers,
    borrowed: u128,
}

pub(super) fn rows(used: &Utilization<'_>) -> Vec<PoolRow> {
    used.pools.iter().map(PoolRow::of).collect()
}

pub(super) fn table(rows: &[PoolRow], used: &Utilization<'_>) -> String {
    let header = ["POOL", "CIDR", "BLOCKS", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE", "STATE"];
    let table = output::table(header, rows.iter().map(PoolRow::cells));
    let strays: u128 = used.orphans.iter().map(|block| block.counts.in_use).sum();
    match used.orphans.len() {
        0 => table,
        blocks => format!("{table}\n\nIn no pool: blocks {blocks}, addresses in use {strays}; see show --blocks"),
    }
}

pub(super) fn block_rows(used: &Utilization<'_>) -> Vec<BlockRow> {
    let in_pools = used.pools.iter().flat_map(|of| of.blocks.iter().map(move |block| (Some(of.pool), block)));
    let strays = used.orphans.iter().map(|block| (None, block));
    in_pools.chain(strays).map(|(pool, block)| BlockRow::of(pool, block)).collect()
}

pub(super) fn block_table(rows: &[BlockRow]) -> String {
    let header = ["BLOCK", "NODE", "POOL", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE", "BORROWED"];
    output::table(header, rows.iter().map(BlockRow::cells))
}

// === impl rows ===

impl PoolRow {
    fn of(used: &PoolUse<'_>) -> Self {
        let spec = &used.pool.spec;
        Self {
            name: used.pool.name_any(),
            cidr: spec.cidr,
            block_size: spec.block_size(),
            blocks: used.blocks.len(),
            numbers: used.counts.into(),
            disabled: spec.disabled == Some(true),
            assignment_mode: spec.assignment_mode.clone().unwrap_or_else(|| "Automatic".to_owned()),
        }
    }

    fn cells(&self) -> [String; 8] {
        let [total, in_use, reserved, free] = self.numbers.cells();
        let blocks = format!("{} of /{}", self.blocks, self.block_size);
        let state = match (self.disabled, self.assignment_mode.as_str()) {
            (true, _) => "disabled".to_owned(),
            (false, "Automatic") => "enabled".to_owned(),
            (false, other) => other.to_lowercase(),
        };
        [self.name.clone(), self.cidr.to_string(), blocks, total, in_use, reserved, free, state]
    }
}

impl BlockRow {
    fn of(pool: Option<&IPPool>, used: &BlockUse<'_>) -> Self {
        Self {
            cidr: used.block.spec.cidr,
            node: used.block.spec.affinity.as_deref().map(|a| a.strip_prefix("host:").unwrap_or(a).to_owned()),
            pool: pool.map(|pool| pool.name_any()),
            numbers: used.counts.into(),
            borrowed: used.borrowed,
        }
    }

    fn cells(&self) -> [String; 8] {
        let [total, in_use, reserved, free] = self.numbers.cells();
        let (node, pool) = (output::or_none(self.node.as_ref()), output::or_none(self.pool.as_ref()));
        [self.cidr.to_string(), node, pool, total, in_use, reserved, free, self.borrowed.to_string()]
    }
}

impl From<Counts> for Numbers {
    fn from(Counts { total, in_use, reserved, free }: Counts) -> Self {
        Self { total, in_use, reserved, free }
    }
}

impl Numbers {
    fn cells(&self) -> [String; 4] {
        [self.total, self.in_use, self.reserved, self.free].map(|number| number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use calico::{Affinity, Holder, IPAMBlock, IPAMBlockSpec, IPPool, IPReservation, Reservations};
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn pool(name: &str, spec: serde_json::Value) -> IPPool {
        serde_json::from_value(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap()
    }

    /// n1's block, with an address that it uses itself and one that n2 borrows.
    fn block(cidr: &str) -> IPAMBlock {
        let now = Timestamp::UNIX_EPOCH;
        let mut spec = IPAMBlockSpec::new(cidr.parse().unwrap(), &Affinity::host("n1"), now);
        for (ordinal, node) in [(1, "n1"), (2, "n2")] {
            let holder = Holder::pod(format!("net.{ordinal}"), "default", &format!("p{ordinal}"), node, now);
            spec.assign(spec.address(ordinal), &holder, None).unwrap();
        }
        spec.object()
    }

    fn reserved(cidrs: &[&str]) -> Reservations {
        let reserved_cidrs = cidrs.iter().map(ToString::to_string).collect();
        let spec = calico::IPReservationSpec { reserved_cidrs, ..Default::default() };
        Reservations::new(&[IPReservation::new("r", spec)])
    }

    #[test]
    fn pools_are_listed_with_their_numbers_and_their_state() {
        let pools = [
            pool("default", json!({"cidr": "10.244.0.0/16"})),
            pool("old", json!({"cidr": "10.9.0.0/24", "blockSize": 28, "disabled": true})),
            pool("manual", json!({"cidr": "fd00::/112", "assignmentMode": "Manual"})),
        ];
        let blocks = [block("10.244.0.0/26")];
        let reservations = reserved(&["10.244.0.2/32", "10.244.9.0/24"]);
        let used = Utilization::of(&pools, &blocks, &reservations);
        let expected = "\
POOL      CIDR            BLOCKS      IPS TOTAL   IPS IN USE   IPS RESERVED   IPS FREE   STATE
default   10.244.0.0/16   1 of /26    65536       2            257            65278      enabled
old       10.9.0.0/24     0 of /28    256         0            0              256        disabled
manual    fd00::/112      0 of /122   65536       0            0              65536      manual";
        assert_eq!(table(&rows(&used), &used), expected);
    }

    #[test]
    fn blocks_are_listed_with_what_is_borrowed_and_those_without_pool_last() {
        let pools = [pool("default", json!({"cidr": "10.244.0.0/16"}))];
        let mut nobodys = block("10.99.0.0/30");
        nobodys.spec.disown();
        let blocks = [nobodys, block("10.244.0.0/26")];
        let none = reserved(&[]);
        let used = Utilization::of(&pools, &blocks, &none);
        let expected = "\
BLOCK           NODE   POOL      IPS TOTAL   IPS IN USE   IPS RESERVED   IPS FREE   BORROWED
10.244.0.0/26   n1     default   64          2            0              62         1
10.99.0.0/30    -      -         4           2            0              2          2";
        assert_eq!(block_table(&block_rows(&used)), expected);
        let shown = table(&rows(&used), &used);
        assert!(shown.ends_with("\n\nIn no pool: blocks 1, addresses in use 2; see show --blocks"), "{shown}");
    }

    #[test]
    fn a_pool_of_more_addresses_than_64_bits_hold_is_counted_exactly() {
        let pools = [pool("six", json!({"cidr": "fd00:10:244::/48"}))];
        let none = reserved(&[]);
        let rows = rows(&Utilization::of(&pools, &[], &none));
        let text = serde_json::to_string(&rows).unwrap();
        assert!(text.contains("\"total\":1208925819614629174706176,"), "{text}");
        serde_yaml_ng::to_string(&rows).unwrap();
    }
}

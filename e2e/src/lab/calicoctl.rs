//! What `calicoctl ipam show` prints, read.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// A pool's numbers of addresses: total, in use, reserved, free.
pub type Row = [u64; 4];

/// The pools of the table by their CIDR, without the percentages.
pub fn pool_rows(table: &str) -> Result<BTreeMap<String, Row>> {
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let mut rows = rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>());
    let header = rows.next().context("calicoctl printed no table")?;
    let column = |name: &str| header.iter().position(|cell| *cell == name).with_context(|| format!("no column {name}"));
    let columns = ["CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"].map(column);
    let [cidr, total, in_use, reserved, free] = columns;
    let (cidr, numbers) = (cidr?, [total?, in_use?, reserved?, free?]);
    let number = |row: &[&str], at: usize| -> Result<u64> {
        let cell = row.get(at).and_then(|cell| cell.split(' ').next()).unwrap_or_default();
        cell.parse().with_context(|| format!("{cell:?} is not a number"))
    };
    let pools = rows.filter(|row| row[0] == "IP Pool");
    pools
        .map(|row| {
            let [total, in_use, reserved, free] = numbers.map(|at| number(&row, at));
            Ok((row[cidr].to_owned(), [total?, in_use?, reserved?, free?]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_captured_table_is_read() {
        let step: serde_json::Value =
            serde_json::from_str(include_str!("../../../calico/tests/fixtures/10-reserved.json")).unwrap();
        let table = step["calicoctl"]["ipam show --show-blocks"].as_str().unwrap();
        let expected = [("10.244.0.0/16".to_owned(), [65536, 5, 1, 65531])];
        assert_eq!(pool_rows(table).unwrap(), expected.into());
        assert!(pool_rows("nothing").is_err());
    }
}

//! The blocks of a pool that lie in a span of addresses, and what may be asked of a pool by address.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{AllowedUse, IPPoolSpec, PoolError, Rejected, Unfit};
use crate::net;

impl IPPoolSpec {
    /// The blocks that hold an address of `first..=last`, as a full circle from the `start`-th of them
    /// (any number; taken modulo how many there are). None if the span is in another family or outside.
    pub fn blocks_within(&self, first: IpAddr, last: IpAddr, start: u128) -> impl Iterator<Item = IpNetwork> + use<> {
        let (size, base) = (self.block_size(), self.cidr.network());
        let shift = u32::from(net::width(&self.cidr) - size);
        let span = self.offsets_within(first, last).map(|(low, high)| (low >> shift.min(127), high >> shift.min(127)));
        let (low, count) = span.map_or((0, 0), |(low, high)| (low, high - low + 1));
        let start = start.checked_rem(count).unwrap_or(0);
        (start..count)
            .chain(0..start)
            .filter_map(move |index| IpNetwork::new(net::above(base, (low + index) << shift), size).ok())
    }

    /// How far the first and the last address of the span lie above the pool's first one, cut to the pool.
    fn offsets_within(&self, first: IpAddr, last: IpAddr) -> Option<(u128, u128)> {
        if first.is_ipv4() != self.cidr.is_ipv4() || last.is_ipv4() != first.is_ipv4() {
            return None;
        }
        let base = net::number(self.cidr.network());
        let low = net::number(first).saturating_sub(base);
        let high = net::number(last).checked_sub(base)?.min(net::count(&self.cidr) - 1);
        (low <= high).then_some((low, high))
    }

    /// Whether the pool's `nodeSelector` takes every node, so that a node's labels do not matter.
    pub fn selects_every_node(&self) -> bool {
        self.node_selector.as_deref().is_none_or(|s| matches!(s.trim(), "" | "all()"))
    }

    /// Whether an address of this pool (named `name` in the error) may be asked for explicitly. Calico's
    /// selectors and assignment mode govern automatic assignment only.
    ///
    /// # Errors
    /// The pool is disabled, or not for this use.
    pub fn check_explicit(&self, name: &str, wanted: AllowedUse) -> Result<(), PoolError> {
        let refuse = |why| Err(PoolError::Requested(Rejected { pool: name.to_owned(), cidr: self.cidr, why }));
        if self.disabled == Some(true) {
            return refuse(Unfit::Disabled);
        }
        if !self.allows(wanted) {
            let allowed = self.allowed_uses.as_deref().unwrap_or_default().join(", ");
            return refuse(Unfit::Use { wanted: wanted.as_str(), allowed });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;

    use crate::IPPool;

    fn pool(cidr: &str, block_size: i64) -> IPPool {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "p"},
            "spec": {"cidr": cidr, "blockSize": block_size},
        }))
        .unwrap()
    }

    fn blocks(pool: &IPPool, first: &str, last: &str, start: u128) -> Vec<String> {
        let found = pool.spec.blocks_within(first.parse().unwrap(), last.parse().unwrap(), start);
        found.take(8).map(|b: IpNetwork| b.to_string()).collect()
    }

    #[test]
    fn a_span_touches_just_its_blocks_in_a_full_circle() {
        let pool = pool("10.244.0.0/16", 26);
        let expected = ["10.244.0.128/26", "10.244.0.192/26", "10.244.0.0/26", "10.244.0.64/26"];
        assert_eq!(blocks(&pool, "10.244.0.10", "10.244.0.200", 2), expected);
        assert_eq!(blocks(&pool, "10.243.0.0", "10.244.0.1", 7), ["10.244.0.0/26"]);
        assert!(blocks(&pool, "10.245.0.0", "10.245.0.9", 0).is_empty());
        assert!(blocks(&pool, "fd00::", "fd00::9", 0).is_empty());
    }

    #[test]
    fn a_span_deep_in_a_huge_pool_is_found_without_walking_there() {
        let pool = pool("fd00::/16", 122);
        assert_eq!(blocks(&pool, "fd00:ffff::40", "fd00:ffff::7f", 5), ["fd00:ffff::40/122"]);
    }
}

//! I7: no allocation outside of every pool, nor where the network's configuration does not permit it.

use calico::Family;

use super::view::{Use, View};
use super::{Class, Violation};
use crate::netconf::NetConf;

pub(super) fn violations(view: &View<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for used in view.used.values().filter(|used| view.is_ours(used)) {
        if !view.in_a_pool(used.address) {
            let detail = format!("gives {} to {}, and no IPPool covers it", used.address, used.user());
            let remedy = "nothing routes it reliably: restore the pool, or delete the pod so that it moves";
            found.push(Violation::new(Class::OutsidePools, used.object(), detail, remedy));
        } else if let Some(why) = view.snapshot.net.as_ref().and_then(|net| forbidden(net, used, view.is_fixed(used))) {
            let detail = format!("gives {} to {}, though it {why}", used.address, used.user());
            let remedy = "delete the pod, so that it gets an address of the range";
            found.push(Violation::new(Class::OutsideRange, used.object(), detail, remedy));
        }
    }
    found
}

/// Why the configuration does not permit an address; `None` also where it has no say: without a subnet in
/// calico-ipam's dialect.
fn forbidden(net: &NetConf, used: &Use<'_>, fixed: bool) -> Option<String> {
    let ranges = net.ipam.ranges(Family::of(used.address))?;
    if let Err(why) = ranges.permits_fixed(used.address) {
        return Some(why.to_string());
    }
    let outside = !fixed && !ranges.permits_random(used.address);
    outside.then(|| format!("is outside of the range {ranges}"))
}

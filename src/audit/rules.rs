//! I7: no allocation outside of every pool, nor where the network's configuration does not permit it; and pools for what
//! the configuration names.

use std::net::IpAddr;

use calico::Family;

use super::view::{Use, View};
use super::{Class, Snapshot, Violation};
use crate::driver::{UnmetPool, check_coverage, reserved_addresses};
use crate::netconf::NetConf;
use crate::range::{Usage, WIDEN, Why};

pub(super) fn violations(view: &View<'_>) -> Vec<Violation> {
    let uncovered = uncovered(view);
    let mut found: Vec<Violation> =
        uncovered.iter().map(|(family, unmet)| without_pool(view, *family, unmet)).collect();
    for used in view.used.values().filter(|used| view.is_ours(used)) {
        if !view.in_a_pool(used.address) {
            let detail = format!("gives {} to {}, and no IPPool covers it", used.address, used.user());
            let remedy = "nothing routes it reliably: restore the pool, or delete the pods so that they move";
            found.push(Violation::new(Class::OutsidePools, used.object(), detail, view.destroying(remedy)));
        } else if !uncovered.iter().any(|(family, _)| *family == Family::of(used.address)) {
            found.extend(view.snapshot.net.as_ref().and_then(|net| forbidden(view, net, used)));
        }
    }
    found
}

/// The families whose subnets no pool covers, judged as an ADD judges them.
fn uncovered(view: &View<'_>) -> Vec<(Family, UnmetPool)> {
    let Some(net) = &view.snapshot.net else { return Vec::new() };
    let judged = net.ipam.range_sets().map(|r| (r.family(), check_coverage(r, &view.snapshot.pools)));
    judged.filter_map(|(family, covered)| Some((family, covered.err()?))).collect()
}

/// The cause, and how many pods show it: what they have is as good as it was.
fn without_pool(view: &View<'_>, family: Family, unmet: &UnmetPool) -> Violation {
    let net = view.snapshot.net.as_ref();
    let ranges = net.and_then(|net| net.ipam.ranges(family));
    let outside = |address: IpAddr| ranges.is_some_and(|ranges| ranges.permits_fixed(address).is_err());
    let ours = view.used.values().filter(|used| Family::of(used.address) == family && view.is_ours(used));
    let outside = ours.filter(|used| outside(used.address)).count();
    let mut detail = format!("{unmet}: no pod that starts gets an {family} address");
    if outside > 0 {
        detail += &format!("; {outside} addresses in use are not of it, and their pods keep them");
    }
    let remedy = "make subnet in the configuration and Calico's IPPool the same; pods that run need nothing, and a pod \
                  that is deleted before does not start again";
    let network = net.map(|net| net.ipam.network.as_str()).unwrap_or_default();
    Violation::new(Class::SubnetWithoutPool, format!("Network/{network}"), detail, remedy)
}

/// Why the configuration does not permit an address; `None` also where it has no say: without a subnet in
/// calico-ipam's dialect.
fn forbidden(view: &View<'_>, net: &NetConf, used: &Use<'_>) -> Option<Violation> {
    const CHANGED: &str = "if the configuration was changed since, nothing: the pods keep their addresses, and pods that \
                           are made again get others";
    let ranges = net.ipam.ranges(Family::of(used.address))?;
    let (why, remedy) = match ranges.permits_fixed(used.address) {
        Err(why @ Why::Outside { .. }) => (why.to_string(), CHANGED.to_owned()),
        Err(why) => {
            let remedy = "delete the pod, so that it gets an address of the range";
            (why.to_string(), view.destroying(remedy))
        }
        Ok(()) if !view.is_fixed(used) && !ranges.permits_random(used.address) => {
            (format!("is outside of the range {ranges}"), CHANGED.to_owned())
        }
        Ok(()) => return None,
    };
    let detail = format!("gives {} to {}, though it {why}", used.address, used.user());
    Some(Violation::new(Class::OutsideRange, used.object(), detail, remedy))
}

/// Ranges in which few addresses are left.
pub(super) fn notes(snapshot: &Snapshot) -> Vec<Violation> {
    let Some(net) = &snapshot.net else { return Vec::new() };
    let view = View::of(snapshot);
    let reserved = || snapshot.reservations.iter().flat_map(reserved_addresses);
    let usages = net.ipam.range_sets().map(|ranges| Usage::of(ranges, view.used.keys().copied(), reserved()));
    let note = |usage: Usage| Violation::new(Class::RangeNearlyFull, "Range", usage.to_string(), WIDEN);
    usages.filter(Usage::is_nearly_full).map(note).collect()
}

//! Pods against blocks: I1 (one live pod per address), I3 (what a pod has is on record), leaks, I9.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::Family;
use calico::block::WINDOWS_RESERVED_HANDLE;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::view::{PodView, View};
use super::{Class, Violation, by_itself};
use crate::pod::{FixedRequest, IP};

pub(super) fn violations(view: &View<'_>) -> Vec<Violation> {
    let mut found = shared(view);
    found.extend(view.live().flat_map(|pod| unrecorded(view, pod)));
    found.extend(leaks(view));
    found.extend(view.live().filter_map(|pod| wrong_fixed(view, pod)));
    found
}

fn shared(view: &View<'_>) -> Vec<Violation> {
    let mut by_address: BTreeMap<IpAddr, Vec<&PodView<'_>>> = BTreeMap::new();
    for pod in view.live() {
        for address in &pod.addresses {
            by_address.entry(*address).or_default().push(pod);
        }
    }
    // Both sides of a live migration have the machine's.
    let migrates = |address: &IpAddr, pods: &[&PodView<'_>]| {
        view.used.get(address).is_some_and(|used| pods.iter().all(|pod| pod.runs_machine_of(used)))
    };
    let several = by_address.into_iter().filter(|(address, pods)| pods.len() > 1 && !migrates(address, pods));
    let violation = |(address, pods): (IpAddr, Vec<&PodView<'_>>)| {
        let names: Vec<String> = pods
            .iter()
            .map(|p| format!("{}/{} on node {}", p.namespace, p.name, p.node().unwrap_or("(none)")))
            .collect();
        let detail = format!("is the address of {} live pods: {}", pods.len(), names.join(", "));
        let remedy = view.destroying("delete all but the one that the block names");
        Violation::new(Class::SharedAddress, format!("Address/{address}"), detail, remedy)
    };
    several.map(violation).collect()
}

/// What a live pod has must be on record for it. Addresses outside of all pools are another network's.
fn unrecorded(view: &View<'_>, pod: &PodView<'_>) -> Vec<Violation> {
    let judge = |address: &IpAddr| {
        let Some(used) = view.used.get(address) else {
            let detail = format!("has {address}, which no IPAMBlock records");
            // What is no pod's alone, or not surely the pod's, is not recorded by itself.
            let by_hand = "delete the pod, so that it gets an address again";
            let remedy = match &view.snapshot.net {
                Some(_) if !crate::pod::is_foreign(pod.pod) => by_itself(by_hand),
                _ => by_hand.to_owned(),
            };
            let remedy = view.destroying(remedy);
            return view.in_a_pool(*address).then(|| Violation::new(Class::Unrecorded, pod.object(), detail, remedy));
        };
        if used.pod() == Some((pod.namespace, pod.name)) || pod.runs_machine_of(used) {
            return None;
        }
        // A live pod with the address that the block names is the shared address; this one need not be said twice.
        let rightful = used.pod().and_then(|key| view.pods.get(&key)).filter(|p| view.live().any(|l| l.pod == p.pod));
        if rightful.is_some_and(|p| p.addresses.contains(address)) {
            return None;
        }
        let detail = format!("has {address}, which block {} records for {}", used.block.spec.cidr, used.user());
        let remedy = view.destroying("delete the pod, so that it gets an address of its own");
        Some(Violation::new(Class::OthersAddress, pod.object(), detail, remedy))
    };
    pod.addresses.iter().filter_map(judge).collect()
}

/// Allocations without a user. One whose address a live pod has is a matter of [`unrecorded`].
fn leaks(view: &View<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    let taken: BTreeSet<&IpAddr> = view.live().flat_map(|pod| &pod.addresses).collect();
    for used in view.used.values() {
        let keeps_from_windows =
            used.attribute.handle().is_some_and(|h| h.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE));
        let named = used.pod().and_then(|key| view.pods.get(&key)).is_some_and(|p| p.addresses.contains(&used.address));
        if keeps_from_windows || (!named && taken.contains(&used.address)) {
            continue;
        }
        let Some(why) = view.staleness(used) else { continue };
        let fixed = if used.is_fixed() { "fixed " } else { "" };
        let detail = format!("records the {fixed}address {} for {}, but {why}", used.address, used.user());
        let by_hand = format!("if no DEL is to come any more: kube-ipam release {}", used.address);
        // The collector waits for a quarter of an hour, for this network's pods.
        let remedy = match &view.snapshot.net {
            Some(net) if used.pod().is_some() && used.is_of_network(&net.network) => by_itself(&by_hand),
            _ => by_hand,
        };
        let remedy = view.destroying(remedy);
        found.push(Violation::new(Class::Leak, used.object(), detail, remedy));
    }
    found
}

/// A pod that asks for a fixed address and runs with another one: calico-ipam started it, while the conflist named that,
/// or the annotation came later.
fn wrong_fixed(view: &View<'_>, pod: &PodView<'_>) -> Option<Violation> {
    let (asked, has) = not_as_asked(pod.pod, &pod.addresses)?;
    let by = match view.used.get(&has) {
        Some(used) if used.pod() == Some((pod.namespace, pod.name)) && !used.is_kube_ipams() => {
            ", which calico-ipam gave it"
        }
        _ => "",
    };
    let detail = format!("asks for {asked} by {IP}, and has {has}{by}");
    let remedy = "delete the pod, so that it is made again with its address (an annotation counts at creation only)";
    Some(Violation::new(Class::WrongFixed, pod.object(), detail, view.destroying(remedy)))
}

/// What a pod asks for by annotation, and the address that it has instead. An annotation that cannot be read was refused
/// by ADD: such a pod has no address.
pub(crate) fn not_as_asked<'a>(pod: &'a Pod, addresses: &[IpAddr]) -> Option<(&'a str, IpAddr)> {
    let asked = pod.annotations().get(IP)?;
    let choices = FixedRequest::listed(asked);
    let wrong = addresses.iter().find(|address| {
        let mut of_family = choices.iter().filter(|c| Family::of(**c) == Family::of(**address)).peekable();
        of_family.peek().is_some() && !of_family.any(|c| c == *address)
    })?;
    Some((asked, *wrong))
}

//! An IPAMBlock as any writer may have left it. Where a block is read at all, no edit panics, each touches only what it
//! names, one that was sound stays sound, and what this version does not know stays in it.

use std::net::IpAddr;

use calico::invariants::{self, Snapshot};
use calico::{Affinity, AllocationAttribute, Entry, Expect, Holder, IPAMBlock, IPAMBlockSpec, IPAMHandleSpec};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::json;

/// The fields of a block and of its attributes that are read.
const KNOWN: [&str; 10] = [
    "cidr",
    "affinity",
    "affinityClaimTime",
    "allocations",
    "unallocated",
    "attributes",
    "sequenceNumber",
    "sequenceNumberForAllocation",
    "deleted",
    "strictAffinity",
];
const KNOWN_OF_ATTRIBUTE: [&str; 4] = ["handle_id", "secondary", "alternateOwnerAttrs", "releasedAt"];

pub fn run(data: &[u8]) {
    let Some(object) = json(data) else { return };
    let Ok(block) = serde_json::from_value::<IPAMBlock>(object.clone()) else { return };
    round_trip(&object, &block);
    questions(&block);
    let now = Timestamp::UNIX_EPOCH.checked_add(jiff::SignedDuration::from_hours(500_000)).unwrap();
    let mut addresses: Vec<IpAddr> = [0, 1, 5, block.spec.allocations.len()].map(|n| block.spec.address(n)).into();
    addresses.extend(block.spec.entries().map(|(address, _)| address).take(3));
    for address in addresses {
        edits(&block.spec, address, now);
    }
    let handles: Vec<&str> = block.spec.attributes.iter().filter_map(AllocationAttribute::handle).take(3).collect();
    for handle in handles.into_iter().chain(["net.none"]) {
        for cooldown in [0, 30, i64::MAX] {
            changed(&block.spec, |after| {
                after.release_handle(handle, cooldown, now).into_iter().map(|r| r.address).collect()
            });
        }
    }
    collect(&block.spec, now);
}

fn round_trip(object: &Value, block: &IPAMBlock) {
    let written = serde_json::to_value(block).unwrap();
    let again: IPAMBlock = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(&again, block);
    assert_eq!(serde_json::to_value(&again).unwrap(), written);
    let nothing = Map::new();
    let of = |value: &Value, known: &[&str]| {
        let fields = value.as_object().unwrap_or(&nothing).iter();
        fields
            .filter(|(key, _)| !known.contains(&key.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&object["spec"], &KNOWN), of(&written["spec"], &KNOWN), "a field was lost");
    let attributes = |value: &Value| value["spec"]["attributes"].as_array().cloned().unwrap_or_default();
    for (before, after) in attributes(object).iter().zip(attributes(&written)) {
        assert_eq!(of(before, &KNOWN_OF_ATTRIBUTE), of(&after, &KNOWN_OF_ATTRIBUTE), "a field was lost");
    }
}

fn questions(block: &IPAMBlock) {
    let spec = &block.spec;
    let _ = (spec.affinity(), spec.host(), spec.claimed_at(), spec.is_empty(), spec.is_deleted(), spec.free(|_| true));
    let sound = spec.validate();
    let found = invariants::all(&Snapshot { blocks: std::slice::from_ref(block), ..Snapshot::default() });
    let shape = found.iter().any(|violation| violation.invariant == invariants::Invariant::I5);
    assert_eq!(shape, sound.is_err() && !spec.is_deleted(), "{sound:?} {found:?}");
    let mut handle = IPAMHandleSpec::new("net.h");
    handle.increment(&spec.cidr, i64::MAX);
    handle.increment(&spec.cidr, 1);
    assert_eq!(handle.decrement(&spec.cidr, i64::MAX), Ok(0));
}

fn edits(block: &IPAMBlockSpec, address: IpAddr, now: Timestamp) {
    let holder = Holder::pod("net.new", "default", "web", "n1", now);
    let owner = Affinity::host("n1");
    for strict in [None, Some(&owner)] {
        let given =
            changed(block, |after| after.assign(address, &holder, strict).map(|()| address).into_iter().collect());
        assert!(given.is_empty() || block.entry(address) == Entry::Free, "{address} was not free");
        changed(block, |after| {
            after.assign_first(|a| a != address, &holder, strict).ok().flatten().into_iter().collect()
        });
    }
    for expect in [Expect::default(), Expect { handle: Some("net.new".into()), sequence: Some(1) }] {
        let release = |after: &mut IPAMBlockSpec| after.release_address(address, &expect, 30, now).ok().flatten();
        changed(block, |after| release(after).into_iter().map(|released| released.address).collect());
    }
    changed(block, |after| after.amend(address, "key", "value").then_some(address).into_iter().collect());
    changed(block, |after| after.vacate(address).then_some(address).into_iter().collect());
    let mut after = block.clone();
    after.advance();
    after.disown();
}

/// Makes an edit, which tells what it changed. Everybody else has what they had, and a sound block stays sound.
fn changed(block: &IPAMBlockSpec, edit: impl FnOnce(&mut IPAMBlockSpec) -> Vec<IpAddr>) -> Vec<IpAddr> {
    let mut after = block.clone();
    let addresses = edit(&mut after);
    if addresses.is_empty() {
        assert_eq!(&after, block, "an edit that did nothing changed something");
        return addresses;
    }
    let named: Vec<usize> = addresses.iter().filter_map(|address| block.ordinal(*address)).collect();
    assert_eq!(after.allocations.len(), block.allocations.len());
    for ordinal in (0..block.allocations.len()).filter(|ordinal| !named.contains(ordinal)) {
        let address = block.address(ordinal);
        match (block.entry(address), after.entry(address)) {
            // Whose cooldown was over is free, and a time that cannot be read counts as over.
            (Entry::Cooling { .. }, Entry::Free) => {}
            (Entry::Used { attribute: before, .. }, Entry::Free) if before.is_nobodys() => {}
            (Entry::Used { attribute: before, .. }, Entry::Used { attribute: after, .. }) => {
                assert_eq!(before, after, "{address} changed")
            }
            (before, after) => assert_eq!(before, after, "{address} changed"),
        }
    }
    if block.validate().is_ok() {
        after.validate().unwrap_or_else(|corrupt| panic!("an edit broke a sound block: {corrupt}"));
    }
    addresses
}

fn collect(block: &IPAMBlockSpec, now: Timestamp) {
    for cooldown in [0, 30, -1, i64::MIN, i64::MAX] {
        let mut after = block.clone();
        assert_eq!(after.collect(cooldown, now), after != *block);
        let settled = after.clone();
        assert!(!after.collect(cooldown, now));
        assert_eq!(after, settled, "a collection does not settle");
    }
}

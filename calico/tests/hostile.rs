//! Whatever another writer left, no operation panics, and none touches what it was not asked to.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use calico::invariants::{self, Snapshot};
use calico::{
    Affinity, AllocationAttribute, AllowedUse, BlockAffinity, ClusterInformation, Entry, Expect, Family, Holder,
    IPAMBlock, IPAMBlockSpec, IPAMConfig, IPAMHandle, IPPool, IPReservation, PoolRef, PoolRequest, Reservations,
};
use common::time;
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any_text(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec![
            "",
            "host:n1",
            "host:",
            "virtual:lb",
            "rack:7",
            "10.0.0.0/29",
            "10.0.0.5/29",
            "::/0",
            "0.0.0.0/0",
            "10.0.0.1",
            "2026-11-23T22:40:56Z",
            "-009999-01-02T01:59:59Z",
            "9999-12-30T22:00:00.999999999Z",
            "tomorrow",
            "confirmed",
            "true",
            "net.c1",
            "NET.C1\r\nx",
            "windows-reserved-ipam-handle",
            "all()",
            "has(",
            "Allocatable",
            "False",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

fn any_network() -> impl Strategy<Value = IpNetwork> {
    prop_oneof![
        4 => select(vec![
            "10.0.0.0/29", "10.0.0.5/29", "10.0.0.0/32", "255.255.255.248/29", "fd00::/125", "::/0", "0.0.0.0/0", "::/64",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125", "10.0.0.0/15",
        ]).prop_map(|text| text.parse().unwrap()),
        1 => (any::<IpAddr>(), 0..=128u8).prop_filter_map("too long a prefix", |(ip, n)| IpNetwork::new(ip, n).ok()),
    ]
}

fn small_or_huge() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..9usize, 1 => any::<usize>(), 1 => Just(usize::MAX)]
}

fn any_attribute() -> impl Strategy<Value = AllocationAttribute> {
    let secondary = prop::option::of(prop::collection::btree_map(any_text(), any_text(), 0..3));
    (prop::option::of(any_text()), secondary, prop::option::weighted(0.3, any_text())).prop_map(
        |(handle_id, secondary, released_at)| AllocationAttribute {
            handle_id,
            secondary,
            released_at,
            ..Default::default()
        },
    )
}

fn any_block() -> impl Strategy<Value = IPAMBlockSpec> {
    let length = prop_oneof![6 => Just(8usize), 2 => 0..20usize];
    let allocations = length.prop_flat_map(|n| prop::collection::vec(prop::option::of(small_or_huge()), n));
    let fields = (
        any_network(),
        prop::option::of(any_text()),
        allocations,
        prop::collection::vec(small_or_huge(), 0..12),
        prop::collection::vec(any_attribute(), 0..9),
        any::<i64>(),
        prop::collection::btree_map(any_text(), any::<i64>(), 0..4),
        prop::bool::weighted(0.1),
        any::<bool>(),
    );
    fields.prop_map(|(cidr, affinity, allocations, unallocated, attributes, sequence, sequences, deleted, repair)| {
        let now = time("2026-11-23T22:40:56Z");
        let mut block = IPAMBlockSpec::new("10.0.0.0/29".parse().unwrap(), &Affinity::host("n1"), now);
        block.cidr = cidr;
        block.affinity = affinity;
        block.affinity_claim_time = Some("whenever".to_owned());
        block.unallocated = unallocated;
        block.attributes = attributes;
        block.allocations = allocations;
        block.sequence_number = sequence;
        block.sequence_number_for_allocation = sequences;
        block.deleted = deleted;
        if repair {
            make_ordinals_right(&mut block);
        }
        block
    })
}

/// Half of the blocks are right in everything but their texts, else few operations would get far.
fn make_ordinals_right(block: &mut IPAMBlockSpec) {
    block.cidr = "10.0.0.0/29".parse().unwrap();
    block.allocations.resize(8, None);
    let attributes = block.attributes.len();
    for allocation in &mut block.allocations {
        *allocation = allocation.filter(|index| *index < attributes);
    }
    let free = |ordinal: &usize| block.allocations[*ordinal].is_none();
    block.unallocated = (0..8).filter(free).collect();
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0..9u8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        1 => any::<IpAddr>(),
    ]
}

/// Who has each ordinal, as far as the block says.
fn holders(block: &IPAMBlockSpec) -> Vec<Option<Option<AllocationAttribute>>> {
    block.allocations.iter().map(|index| index.map(|index| block.attributes.get(index).cloned())).collect()
}

/// Puts a value in place of a field, or of an element of the list that the field holds.
fn change(spec: &mut Value, field: prop::sample::Index, value: Value, deep: bool) {
    let fields = spec.as_object_mut().unwrap();
    let name = fields.keys().nth(field.index(fields.len())).unwrap().clone();
    let place = &mut fields[&name];
    match place.as_array_mut().filter(|list| deep && !list.is_empty()) {
        Some(list) => {
            let element = field.index(list.len());
            list[element] = value;
        }
        None => *place = value,
    }
}

#[test]
fn a_release_does_not_make_a_dangling_allocation_cool() {
    let now = time("2026-11-23T22:40:56Z");
    let mut block = IPAMBlockSpec::new("10.0.0.0/29".parse().unwrap(), &Affinity::host("n1"), now);
    let holder = Holder { handle: "net.c1".to_owned(), secondary: BTreeMap::new() };
    block.assign_first(|_| true, &holder, None).unwrap();
    // One more than there are attributes: the index of the next one.
    block.allocations[6] = Some(1);
    block.unallocated.retain(|ordinal| *ordinal != 6);
    assert_eq!(block.release_handle("net.c1", 0, now).len(), 1);
    assert_eq!(block.entry("10.0.0.6".parse().unwrap()), Entry::Unreadable);
    assert_eq!(block.entry("10.0.0.0".parse().unwrap()), Entry::Free);
}

proptest! {
    #[test]
    fn no_json_makes_a_type_panic(spec in any_json(), status in any_json()) {
        let object = json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec, "status": status,
        });
        let _ = serde_json::from_value::<IPAMBlock>(object.clone());
        let _ = serde_json::from_value::<BlockAffinity>(object.clone());
        let _ = serde_json::from_value::<IPAMHandle>(object.clone());
        let _ = serde_json::from_value::<IPAMConfig>(object.clone());
        let _ = serde_json::from_value::<IPPool>(object.clone());
        let _ = serde_json::from_value::<IPReservation>(object.clone());
        let _ = serde_json::from_value::<ClusterInformation>(object);
    }

    #[test]
    fn a_captured_block_with_a_field_changed_panics_nowhere(
        which in any::<prop::sample::Index>(), field in any::<prop::sample::Index>(), value in any_json(),
        deep in any::<bool>(), address in any_address(),
    ) {
        let step = common::step("19");
        let blocks = step["ipamblocks"].as_array().unwrap();
        let mut block = which.get(blocks).clone();
        change(&mut block["spec"], field, value, deep);
        let Ok(block) = serde_json::from_value::<IPAMBlock>(block) else { return Ok(()) };
        let mut spec = block.spec.clone();
        let now = time("2026-11-23T23:00:00Z");
        let holder = Holder { handle: "net.new".to_owned(), secondary: BTreeMap::new() };
        spec.collect(30, now);
        let _ = (spec.assign(address, &holder, None), spec.assign_first(|_| true, &holder, None));
        let _ = spec.release_address(address, &Expect::default(), 0, now);
        spec.release_handle("k8s-pod-network.e0", 30, now);
        let blocks = [block];
        invariants::all(&Snapshot { blocks: &blocks, ..Default::default() });
    }

    #[test]
    fn an_assignment_gives_a_free_address_or_changes_nothing(
        block in any_block(), address in any_address(), strict in any::<bool>(), first in any::<bool>(),
    ) {
        let holder = Holder { handle: "net.new".to_owned(), secondary: BTreeMap::new() };
        let owner = Affinity::host("n1");
        let strict_for = strict.then_some(&owner);
        let mut after = block.clone();
        let given = if first {
            after.assign_first(|candidate| candidate != address, &holder, strict_for)
        } else {
            after.assign(address, &holder, strict_for).map(|()| Some(address))
        };
        let Ok(Some(given)) = given else {
            prop_assert_eq!(after, block);
            return Ok(());
        };
        let ordinal = block.ordinal(given).unwrap();
        prop_assert_eq!(block.entry(given), Entry::Free);
        prop_assert!(!block.deleted && (!strict || block.host() == Some("n1")));
        prop_assert!(first == (given != address));
        let (mut before, after_holders) = (holders(&block), holders(&after));
        before[ordinal] = after_holders[ordinal].clone();
        prop_assert_eq!(before, after_holders, "somebody else's address changed");
        let Entry::Used { attribute, sequence } = after.entry(given) else { panic!() };
        prop_assert_eq!(attribute.handle(), Some("net.new"));
        prop_assert_eq!(sequence, Some(block.sequence_number));
        after.collect(0, time("2026-11-23T22:40:56Z"));
        prop_assert_eq!(after.validate(), Ok(()));
    }

    #[test]
    fn a_release_touches_only_what_it_names(
        block in any_block(), address in any_address(), handle in any_text(), by_handle in any::<bool>(),
        expect in any::<(bool, Option<i64>)>(), cooldown in select(vec![0, 30, -1, i64::MAX, i64::MIN]),
    ) {
        let now = time("2026-11-23T22:40:56Z");
        let mut after = block.clone();
        let released = if by_handle {
            after.release_handle(&handle, cooldown, now)
        } else {
            let expect = Expect { handle: expect.0.then(|| handle.clone()), sequence: expect.1 };
            after.release_address(address, &expect, cooldown, now).ok().flatten().into_iter().collect()
        };
        if released.is_empty() {
            prop_assert_eq!(&after, &block);
        }
        for (ordinal, (before, after)) in holders(&block).into_iter().zip(holders(&after)).enumerate() {
            let named = released.iter().find(|one| one.address == block.address(ordinal));
            match (named, before, after) {
                (Some(named), Some(Some(before)), after) => {
                    prop_assert_eq!(&named.attribute, &before);
                    prop_assert!(after.is_none_or(|after| after.unwrap().is_cooling()));
                }
                (None, Some(Some(before)), None) => prop_assert!(before.is_cooling() || before.is_nobodys()),
                (None, before, after) => prop_assert_eq!(before, after),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_collection_frees_only_what_cools_and_settles_at_once(block in any_block(), cooldown in any::<i64>()) {
        let now = time("2026-11-23T22:40:56Z");
        let mut after = block.clone();
        let changed = after.collect(cooldown, now);
        prop_assert_eq!(changed, after != block);
        for (before, after) in holders(&block).into_iter().zip(holders(&after)) {
            let is_over = |before: &AllocationAttribute| before.is_cooling() || before.is_nobodys();
            prop_assert!(before == after || (after.is_none() && is_over(&before.unwrap().unwrap())));
        }
        let settled = after.clone();
        prop_assert!(!after.collect(cooldown, now));
        prop_assert_eq!(after, settled);
    }

    #[test]
    fn no_question_about_a_block_panics(block in any_block(), address in any_address(), ordinal in small_or_huge()) {
        let _ = (block.entry(address), block.ordinal(address), block.address(ordinal), block.is_empty());
        let _ = (block.affinity(), block.host(), block.claimed_at(), block.free(|_| true), block.entries().count());
        let _ = block.validate().map_err(|corrupt| corrupt.to_string());
        let mut block = block;
        block.advance();
        block.disown();
        let name = block.clone().object().metadata.name.unwrap();
        prop_assert_eq!(name, calico::cidr_name(&block.cidr));
    }

    #[test]
    fn a_new_block_of_any_network_is_right_or_gives_nothing(cidr in any_network()) {
        let mut block = IPAMBlockSpec::new(cidr, &Affinity::host("n1"), time("2026-11-23T22:40:56Z"));
        let holder = Holder { handle: "net.new".to_owned(), secondary: BTreeMap::new() };
        match block.validate() {
            Ok(()) => prop_assert_eq!(block.assign_first(|_| true, &holder, None).unwrap(), Some(cidr.network())),
            Err(_) => prop_assert!(block.assign_first(|_| true, &holder, None).is_err()),
        }
    }

    #[test]
    fn no_snapshot_makes_a_check_panic(
        blocks in prop::collection::vec(any_block(), 0..4),
        counts in prop::collection::vec((any_text(), prop::collection::btree_map(any_text(), any::<i64>(), 0..3)), 0..4),
        claims in prop::collection::vec((any_text(), any_network(), any_text(), prop::option::of(any_text())), 0..4),
    ) {
        let blocks: Vec<IPAMBlock> = blocks.into_iter().map(IPAMBlockSpec::object).collect();
        let handles: Vec<IPAMHandle> = counts
            .into_iter()
            .map(|(id, block)| serde_json::from_value(json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMHandle", "metadata": {"name": id},
                "spec": {"handleID": id, "block": block},
            })).unwrap())
            .collect();
        let affinities: Vec<BlockAffinity> = claims
            .into_iter()
            .map(|(node, cidr, state, kind)| {
                let mut affinity = BlockAffinity::pending(&Affinity::host(node), &cidr);
                affinity.spec.state = state;
                affinity.spec.type_ = kind;
                affinity
            })
            .collect();
        let found = invariants::all(&Snapshot { blocks: &blocks, handles: &handles, affinities: &affinities });
        for violation in &found {
            prop_assert!(!violation.to_string().is_empty());
        }
        prop_assert_eq!(invariants::persisting(&found, &found), found);
    }

    #[test]
    fn no_pool_makes_a_choice_panic(
        cidr in any_network(), size in prop::option::of(any::<i64>()), text in any_text(), address in any_address(),
        host in any_text(), start in any::<u128>(), wanted in any_text(), named in any::<bool>(),
    ) {
        let pool: IPPool = serde_json::from_value(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "p"},
            "spec": {"cidr": cidr, "blockSize": size, "nodeSelector": text, "namespaceSelector": text},
        })).unwrap();
        prop_assert!(pool.spec.start_for(&host) < pool.spec.block_count());
        prop_assert_eq!(pool.spec.block_of(address).is_ipv4(), address.is_ipv4());
        for block in pool.spec.blocks(start).take(3) {
            prop_assert!(pool.spec.contains(block.network()));
            prop_assert_eq!(pool.spec.block_of(block.network()), block);
        }
        let requested: Vec<PoolRef> = named.then(|| wanted.parse().unwrap()).into_iter().collect();
        let labels = BTreeMap::new();
        let request = PoolRequest {
            family: Family::of(address), requested: &requested, use_: AllowedUse::Workload, node_labels: &labels,
            namespace_labels: &labels, automatic: true,
        };
        let pools = [pool];
        let _ = calico::eligible(&pools, &request).map_err(|error| error.to_string());
        let reservation = IPReservation::new("r", serde_json::from_value(json!({"reservedCIDRs": [text, wanted]})).unwrap());
        let reserved = Reservations::new(&[reservation]);
        prop_assert!(!reserved.covers_all(&IpNetwork::from(address)) || reserved.covers(address));
        let _ = (reserved.covers_all(&cidr), reserved.touches(&cidr));
    }
}

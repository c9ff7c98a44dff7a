//! Each class of violation is planted into captured objects, and found as that and nothing else.
#![allow(clippy::unwrap_used)]

mod common;

use calico::invariants::{self, Invariant};
use calico::{Affinity, AffinityState, BlockAffinity, IPAMBlockSpec, IPAMHandleSpec};
use common::{Cluster, network, step, time};
use kube::ResourceExt as _;

/// What the checks find after the captured cluster was tampered with.
fn after(tamper: impl FnOnce(&mut Cluster)) -> Vec<String> {
    let mut cluster = Cluster::load(&step("21"));
    assert_eq!(cluster.violations(), []);
    tamper(&mut cluster);
    cluster.violations().iter().map(ToString::to_string).collect()
}

fn web(cluster: &mut Cluster) -> &mut IPAMBlockSpec {
    cluster.block(&network("10.244.40.128/26"))
}

#[test]
fn i1_a_block_within_another_could_give_an_address_twice() {
    let found = after(|cluster| {
        let cidr = network("10.244.40.160/27");
        cluster.claim(&cidr, &Affinity::host("n2"), time("2026-11-23T23:00:00Z"));
    });
    assert_eq!(
        found,
        ["I1 IPAMBlock/10-244-40-160-27: lies in 10.244.40.128/26 of IPAMBlock/10-244-40-128-26: \
          their addresses could be given twice"]
    );
}

#[test]
fn i1_a_block_under_another_name_is_a_second_block() {
    let found = after(|cluster| {
        let mut twin = cluster.blocks["10-244-40-128-26"].clone();
        twin.metadata.name = Some("copy".to_owned());
        twin.spec.allocations = vec![None; 64];
        twin.spec.unallocated = (0..64).collect();
        twin.spec.attributes.clear();
        cluster.blocks.insert("copy".to_owned(), twin);
    });
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|line| line.starts_with("I1 IPAMBlock/")), "{found:?}");
    assert!(
        found.contains(
            &"I1 IPAMBlock/copy: is the block 10.244.40.128/26, which every writer looks for as 10-244-40-128-26"
                .to_owned()
        )
    );
}

#[test]
fn i4_a_count_that_differs_from_the_allocations() {
    let found = after(|cluster| {
        let handle = cluster.handles.get_mut("k8s-pod-network.a2").unwrap();
        handle.spec.increment(&network("10.244.40.128/26"), 1);
    });
    assert_eq!(
        found,
        ["I4 IPAMHandle/k8s-pod-network.a2: counts 2 in block 10.244.40.128/26, where 1 allocations bear it"]
    );
}

#[test]
fn i4_a_handle_without_allocations() {
    let found = after(|cluster| {
        let mut leaked = IPAMHandleSpec::new("k8s-pod-network.gone");
        leaked.increment(&network("10.244.40.128/26"), 1);
        cluster.handles.insert("x".to_owned(), leaked.object());
        cluster.handles.insert("y".to_owned(), IPAMHandleSpec::new("k8s-pod-network.none").object());
    });
    assert_eq!(
        found,
        [
            "I4 IPAMHandle/k8s-pod-network.gone: counts 1 in block 10.244.40.128/26, where 0 allocations bear it",
            "I4 IPAMHandle/k8s-pod-network.none: has no address: it should not exist",
        ]
    );
}

#[test]
fn i4_an_allocation_whose_handle_does_not_exist_or_is_being_deleted() {
    let expected = ["I4 IPAMHandle/k8s-pod-network.a2: does not exist, but allocations in 10.244.40.128/26 bear it"];
    assert_eq!(after(|cluster| drop(cluster.handles.remove("k8s-pod-network.a2"))), expected);
    assert_eq!(after(|cluster| cluster.handles.get_mut("k8s-pod-network.a2").unwrap().spec.deleted = true), expected);
}

#[test]
fn i4_a_handle_under_another_name_is_not_found_by_writers() {
    let found = after(|cluster| {
        cluster.handles.get_mut("k8s-pod-network.a2").unwrap().metadata.name = Some("a2".to_owned());
    });
    assert_eq!(
        found,
        ["I4 IPAMHandle/a2: is the handle k8s-pod-network.a2, which every writer looks for as k8s-pod-network.a2"]
    );
}

#[test]
fn i5_every_fault_in_the_shape_of_a_block() {
    let fault = |tamper: fn(&mut IPAMBlockSpec)| {
        let found = after(|cluster| tamper(web(cluster)));
        let shape: Vec<_> = found.into_iter().filter(|line| line.starts_with("I5 ")).collect();
        assert_eq!(shape.len(), 1, "{shape:?}");
        shape[0].trim_start_matches("I5 IPAMBlock/10-244-40-128-26: block 10.244.40.128/26 ").to_owned()
    };
    assert_eq!(fault(|block| block.allocations.truncate(63)), "has 63 allocations for 64 addresses");
    assert_eq!(fault(|block| block.unallocated.push(64)), "lists ordinal 64 as free, but has no such address");
    assert_eq!(fault(|block| block.unallocated.push(5)), "lists ordinal 5 as free more than once");
    assert_eq!(fault(|block| block.unallocated.push(1)), "lists ordinal 1 as free and as allocated");
    assert_eq!(
        fault(|block| block.unallocated.retain(|ordinal| *ordinal != 0)),
        "has lost ordinal 0: neither free nor allocated"
    );
    assert_eq!(fault(|block| block.attributes.clear()), "gives ordinal 1 attribute 0, but has 0");
    assert_eq!(fault(|block| block.attributes.push(Default::default())), "has attribute 1 without any allocation");
    let large = |block: &mut IPAMBlockSpec| block.cidr = network("10.0.0.0/8");
    assert!(after(|cluster| large(web(cluster))).iter().any(|line| line.contains("is too large")));
}

#[test]
fn i6_a_confirmed_affinity_without_its_block() {
    let found = after(|cluster| drop(cluster.blocks.remove("10-244-0-0-26")));
    assert_eq!(found, ["I6 BlockAffinity/n2-10-244-0-0-26: is confirmed, but block 10.244.0.0/26 does not exist"]);
    let deleted = after(|cluster| cluster.block(&network("10.244.0.0/26")).deleted = true);
    assert_eq!(deleted, found);
    let pending = after(|cluster| {
        cluster.blocks.remove("10-244-0-0-26");
        let affinity = cluster.affinities.get_mut("n2-10-244-0-0-26").unwrap();
        *affinity = affinity.clone().with_state(AffinityState::Pending);
    });
    assert!(pending.is_empty(), "a pending affinity is as if absent: {pending:?}");
}

#[test]
fn i6_a_confirmed_affinity_to_another_nodes_block() {
    let found = after(|cluster| {
        let stale = BlockAffinity::pending(&Affinity::host("n2"), &network("10.244.40.128/26"));
        cluster.affinities.insert(stale.name_any(), stale.with_state(AffinityState::Confirmed));
    });
    assert_eq!(
        found,
        [
            "I6 BlockAffinity/n2-10-244-40-128-26: is confirmed for host:n2, but block 10.244.40.128/26 belongs to host:n1"
        ]
    );
}

#[test]
fn i6_a_block_whose_owner_has_no_affinity() {
    let expected = ["I6 IPAMBlock/10-244-40-128-26: belongs to host:n1, which has no BlockAffinity for it"];
    assert_eq!(after(|cluster| drop(cluster.affinities.remove("n1-10-244-40-128-26"))), expected);
    let deleted = after(|cluster| {
        let affinity = cluster.affinities.get_mut("n1-10-244-40-128-26").unwrap();
        *affinity = affinity.clone().marked_deleted();
    });
    assert_eq!(deleted, expected);
}

#[test]
fn what_only_one_of_two_snapshots_shows_was_a_writer_at_work() {
    let violation = |name: &str| invariants::Violation::new(Invariant::I4, "IPAMHandle", name, "counts 1");
    let (stays, passes, comes) = (violation("stays"), violation("passes"), violation("comes"));
    let persisting = invariants::persisting(&[passes, stays.clone()], &[comes, stays]);
    assert_eq!(persisting.len(), 1);
    let json = serde_json::to_value(&persisting[0]).unwrap();
    assert_eq!(json, serde_json::json!({"invariant": "I4", "object": "IPAMHandle/stays", "detail": "counts 1"}));
}

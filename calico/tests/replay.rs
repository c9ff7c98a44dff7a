//! Step by step and in both groups: from the objects before a step and its input, this crate's operations produce exactly
//! what the real calico-ipam wrote, sequence numbers and times included. Clock readings and the choice of a new block are
//! inputs. In clusters of older releases they produce the same, but for what [`Capture::compared`] names.
#![allow(clippy::unwrap_used)]

mod common;

use calico::holder::parse_timestamp;
use calico::{Affinity, AssignError, Entry, Holder, IPAMBlock, Reservations};
use common::{Capture, Cluster, address, network, objects, written};
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Every step in each capture.
macro_rules! replayed {
    ($($name:ident)*) => {
        mod crd { $(#[test] fn $name() { super::$name(crate::Capture::Newest(calico::ApiGroup::Crd)); })* }
        mod v3 { $(#[test] fn $name() { super::$name(crate::Capture::Newest(calico::ApiGroup::V3)); })* }
        mod calico_v3_28 { $(#[test] fn $name() { super::$name(crate::Capture::V3_28); })* }
        mod calico_v3_30 { $(#[test] fn $name() { super::$name(crate::Capture::V3_30); })* }
    };
}

replayed! {
    step_02_the_first_automatic_address_claims_a_block
    step_03_the_second_comes_from_the_same_block
    step_04_a_named_address_without_a_block_claims_its_block
    step_05_a_taken_address_is_refused_with_its_holder
    step_06_a_named_address_is_borrowed_from_another_nodes_block
    steps_07_and_08_a_release_frees_the_address_and_a_second_one_changes_nothing
    step_09_the_address_moves_to_another_node
    step_10_a_reserved_address_may_be_named_but_is_never_drawn
    step_11_an_address_in_no_pool_has_no_block
    step_12_calico_gives_the_first_address_of_a_pool_if_named
    step_13_a_block_that_is_emptied_keeps_its_affinity
    step_14_strict_affinity_refuses_another_nodes_block
    steps_15_to_17_a_released_address_cools_and_is_refused_meanwhile
    step_18_a_dual_stack_pod_has_one_handle_in_two_blocks
    step_19_the_ninth_pod_finds_a_pool_of_eight_exhausted
    step_20_a_node_with_a_very_long_name_has_a_shortened_affinity
    step_21_the_last_release_before_calicoctls_check
}

fn host(name: &str) -> Affinity {
    Affinity::host(name)
}

/// The pod that the step gave an address, with the clock reading that its entry bears.
fn pod(step: &Value, handle: &str, name: &str, node: &str) -> Holder {
    let handle = format!("k8s-pod-network.{handle}");
    let blocks = objects::<IPAMBlock>(step, "ipamblocks");
    let written =
        blocks.iter().flat_map(|block| &block.spec.attributes).find(|one| one.handle() == Some(handle.as_str()));
    let clock = parse_timestamp(written.unwrap().secondary("timestamp").unwrap()).unwrap();
    Holder::pod(handle, "default", name, node, clock)
}

/// A pod that is refused, at any time after the step.
fn refused(step: &Value, handle: &str, name: &str, node: &str) -> (Holder, Timestamp) {
    let now = after(step);
    (Holder::pod(format!("k8s-pod-network.{handle}"), "default", name, node, now), now)
}

/// The clock reading at which the step's writer made the block: its first sequence number.
fn made(step: &Value, block: &IpNetwork) -> Timestamp {
    let blocks = objects::<IPAMBlock>(step, "ipamblocks");
    let found = blocks.iter().find(|found| found.spec.cidr == *block).unwrap();
    let first = found.spec.sequence_number_for_allocation.values().min().unwrap();
    Timestamp::from_nanosecond(i128::from(*first)).unwrap()
}

/// When the only address that cools in the step was released.
fn released_at(step: &Value) -> Timestamp {
    let blocks = objects::<IPAMBlock>(step, "ipamblocks");
    blocks.iter().flat_map(|block| &block.spec.attributes).find_map(|one| one.released()).unwrap()
}

/// A moment at which everything in the step has been written.
fn after(step: &Value) -> Timestamp {
    let blocks = objects::<IPAMBlock>(step, "ipamblocks");
    let written = blocks.iter().map(|block| block.spec.sequence_number).max().unwrap();
    Timestamp::from_nanosecond(i128::from(written)).unwrap() + SignedDuration::from_secs(20)
}

/// The cluster before step `after`: what writers had written by step `before`, what people had written by
/// then.
fn between(capture: Capture, before: &str, after: &str) -> (Cluster, Value) {
    let next = capture.step(after);
    let people = Cluster::load(&next);
    let cluster = Cluster {
        pools: people.pools,
        config: people.config,
        reservations: people.reservations,
        ..Cluster::load(&capture.step(before))
    };
    (cluster, next)
}

/// Checks our objects against the step's, and the address in the step's CNI answer.
#[track_caller]
fn agrees(capture: Capture, cluster: &Cluster, step: &Value, answer: Option<&str>) {
    assert_eq!(capture.compared(cluster.written(capture.group())), capture.compared(written(step)));
    assert_eq!(cluster.violations(), []);
    if let Some(answer) = answer {
        let given = step["cni"]["stdout"]["ips"][0]["address"].as_str().unwrap();
        assert_eq!(given.split('/').next(), Some(answer));
    }
}

fn step_02_the_first_automatic_address_claims_a_block(capture: Capture) {
    let (mut cluster, step) = between(capture, "01", "02");
    let block = network("10.244.40.128/26");
    cluster.claim(&block, &host("n1"), made(&step, &block));
    let holder = pod(&step, "a1", "web-1", "n1");
    let given = cluster.assign_first(&block, &host("n1"), &holder, after(&step)).unwrap();
    assert_eq!(given, Some(address("10.244.40.128")));
    agrees(capture, &cluster, &step, Some("10.244.40.128"));
}

fn step_03_the_second_comes_from_the_same_block(capture: Capture) {
    let (mut cluster, step) = between(capture, "02", "03");
    let holder = pod(&step, "a2", "web-2", "n1");
    let block = network("10.244.40.128/26");
    cluster.assign_first(&block, &host("n1"), &holder, after(&step)).unwrap().unwrap();
    agrees(capture, &cluster, &step, Some("10.244.40.129"));
}

fn step_04_a_named_address_without_a_block_claims_its_block(capture: Capture) {
    let (mut cluster, step) = between(capture, "03", "04");
    let wanted = address("10.244.0.216");
    let block = cluster.block_for(wanted).unwrap();
    assert_eq!(block, network("10.244.0.192/26"));
    cluster.claim(&block, &host("n1"), made(&step, &block));
    let holder = pod(&step, "a3", "fixed-1", "n1");
    cluster.assign(wanted, &host("n1"), &holder, after(&step)).unwrap();
    agrees(capture, &cluster, &step, Some("10.244.0.216"));
}

fn step_05_a_taken_address_is_refused_with_its_holder(capture: Capture) {
    let (mut cluster, step) = between(capture, "04", "05");
    let (holder, now) = refused(&step, "b1", "fixed-2", "n2");
    let error = cluster.assign(address("10.244.0.216"), &host("n2"), &holder, now).unwrap_err();
    let AssignError::Taken { address: taken, by: Some(by) } = &error else { panic!("{error:?}") };
    assert_eq!(*taken, address("10.244.0.216"));
    assert_eq!(by.handle(), Some("k8s-pod-network.a3"));
    assert_eq!(
        error.to_string(),
        "address 10.244.0.216 is in use by pod default/fixed-1 on node n1 (handle k8s-pod-network.a3)"
    );
    assert_eq!(step["cni"]["exit"], 1);
    agrees(capture, &cluster, &step, None);
}

fn step_06_a_named_address_is_borrowed_from_another_nodes_block(capture: Capture) {
    let (mut cluster, step) = between(capture, "05", "06");
    let holder = pod(&step, "b2", "fixed-3", "n2");
    let before = cluster.block(&network("10.244.0.192/26")).sequence_number;
    cluster.assign(address("10.244.0.217"), &host("n2"), &holder, after(&step)).unwrap();
    let block = cluster.block(&network("10.244.0.192/26"));
    assert_eq!(block.host(), Some("n1"));
    let Entry::Used { attribute, sequence } = block.entry(address("10.244.0.217")) else { panic!() };
    assert_eq!(attribute.secondary("node"), Some("n2"));
    assert_eq!(sequence, Some(before));
    agrees(capture, &cluster, &step, Some("10.244.0.217"));
}

fn steps_07_and_08_a_release_frees_the_address_and_a_second_one_changes_nothing(capture: Capture) {
    let (mut cluster, seventh) = between(capture, "06", "07");
    let released = cluster.release("k8s-pod-network.a3", after(&seventh));
    assert_eq!(released.len(), 1);
    assert_eq!(released[0].address, address("10.244.0.216"));
    agrees(capture, &cluster, &seventh, None);

    let (mut cluster, eighth) = between(capture, "07", "08");
    assert_eq!(cluster.release("k8s-pod-network.a3", after(&eighth)), []);
    agrees(capture, &cluster, &eighth, None);
}

fn step_09_the_address_moves_to_another_node(capture: Capture) {
    let (mut cluster, step) = between(capture, "08", "09");
    let holder = pod(&step, "b3", "fixed-1b", "n2");
    cluster.assign(address("10.244.0.216"), &host("n2"), &holder, after(&step)).unwrap();
    agrees(capture, &cluster, &step, Some("10.244.0.216"));
}

fn step_10_a_reserved_address_may_be_named_but_is_never_drawn(capture: Capture) {
    let (mut cluster, step) = between(capture, "09", "10");
    let reserved = Reservations::new(&cluster.reservations);
    assert_eq!(reserved.holder(address("10.244.0.218")), Some("held"));
    let block = network("10.244.0.192/26");
    let before = cluster.block(&block).free(|_| true);
    assert_eq!(cluster.block(&block).free(|address| !reserved.covers(address)), before - 1);

    let holder = pod(&step, "b4", "fixed-4", "n2");
    cluster.assign(address("10.244.0.218"), &host("n2"), &holder, after(&step)).unwrap();
    agrees(capture, &cluster, &step, Some("10.244.0.218"));
}

fn step_11_an_address_in_no_pool_has_no_block(capture: Capture) {
    let (cluster, step) = between(capture, "10", "11");
    assert_eq!(cluster.block_for(address("10.99.0.1")), None);
    assert_eq!(step["cni"]["exit"], 1);
    agrees(capture, &cluster, &step, None);
}

fn step_12_calico_gives_the_first_address_of_a_pool_if_named(capture: Capture) {
    let (mut cluster, step) = between(capture, "11", "12");
    let wanted = address("10.244.0.0");
    let block = cluster.block_for(wanted).unwrap();
    cluster.claim(&block, &host("n2"), made(&step, &block));
    let holder = pod(&step, "b6", "fixed-6", "n2");
    cluster.assign(wanted, &host("n2"), &holder, after(&step)).unwrap();
    agrees(capture, &cluster, &step, Some("10.244.0.0"));
}

fn step_13_a_block_that_is_emptied_keeps_its_affinity(capture: Capture) {
    let (mut cluster, step) = between(capture, "12", "13");
    for handle in ["b2", "b3", "b4", "b6"] {
        assert_eq!(cluster.release(&format!("k8s-pod-network.{handle}"), after(&step)).len(), 1);
    }
    assert!(cluster.block(&network("10.244.0.0/26")).is_empty());
    agrees(capture, &cluster, &step, None);
}

fn step_14_strict_affinity_refuses_another_nodes_block(capture: Capture) {
    let (mut cluster, step) = between(capture, "13", "14");
    assert!(cluster.config.strict_affinity);
    let (holder, now) = refused(&step, "c1", "fixed-7", "n2");
    let error = cluster.assign(address("10.244.0.216"), &host("n2"), &holder, now).unwrap_err();
    assert_eq!(
        error,
        AssignError::ForeignBlock { cidr: network("10.244.0.192/26"), owner: Some("host:n1".to_owned()) }
    );
    assert_eq!(step["cni"]["exit"], 1);
    agrees(capture, &cluster, &step, None);
}

fn steps_15_to_17_a_released_address_cools_and_is_refused_meanwhile(capture: Capture) {
    let (mut cluster, fifteenth) = between(capture, "14", "15");
    let holder = pod(&fifteenth, "c2", "fixed-8", "n1");
    cluster.assign(address("10.244.0.216"), &host("n1"), &holder, after(&fifteenth)).unwrap();
    agrees(capture, &cluster, &fifteenth, Some("10.244.0.216"));

    if !capture.is_newest() {
        return without_cooldown(capture);
    }
    let (mut cluster, sixteenth) = between(capture, "15", "16");
    assert_eq!(cluster.config.cooldown_seconds(), 30);
    let released = released_at(&sixteenth);
    assert_eq!(cluster.release("k8s-pod-network.c2", released + SignedDuration::from_millis(300)).len(), 1);
    agrees(capture, &cluster, &sixteenth, None);

    let (mut cluster, seventeenth) = between(capture, "16", "17");
    let (again, _) = refused(&seventeenth, "c3", "fixed-8", "n1");
    let mut asked = |after: i64| {
        let now = released + SignedDuration::from_millis(after);
        cluster.assign(address("10.244.0.216"), &host("n1"), &again, now)
    };
    let refused = asked(1200).unwrap_err();
    assert_eq!(refused, AssignError::Cooling { address: address("10.244.0.216"), released_at: released.to_string() });
    assert!(asked(30_000).is_err());
    assert_eq!(seventeenth["cni"]["exit"], 1);
    agrees(capture, &cluster, &seventeenth, None);
    let now = released + SignedDuration::from_millis(30_001);
    assert!(cluster.assign(address("10.244.0.216"), &host("n1"), &again, now).is_ok());
}

/// A Calico whose definitions keep no cooldown has none, and its blocks get none.
fn without_cooldown(capture: Capture) {
    let (mut cluster, sixteenth) = between(capture, "15", "16");
    assert_eq!(cluster.config.cooldown_seconds(), 0);
    assert_eq!(cluster.release("k8s-pod-network.c2", after(&sixteenth)).len(), 1);
    assert!(!cluster.written(capture.group())["ipamblocks"].to_string().contains("releasedAt"));
    agrees(capture, &cluster, &sixteenth, None);

    let (mut cluster, seventeenth) = between(capture, "16", "17");
    let again = pod(&seventeenth, "c3", "fixed-9", "n1");
    cluster.assign(address("10.244.0.216"), &host("n1"), &again, after(&seventeenth)).unwrap();
    agrees(capture, &cluster, &seventeenth, Some("10.244.0.216"));
}

fn step_18_a_dual_stack_pod_has_one_handle_in_two_blocks(capture: Capture) {
    let (mut cluster, step) = between(capture, "17", "18");
    let holder = pod(&step, "d1", "dual-1", "n1");
    // No configuration any more, so no cooldown: the address that cooled is freed by this write.
    let v4 = cluster.assign_first(&network("10.244.0.192/26"), &host("n1"), &holder, after(&step)).unwrap();
    let block = network("fd00:10:244:2893:e83c:c9a6:7f8b:bb80/122");
    cluster.claim(&block, &host("n1"), made(&step, &block));
    let v6 = cluster.assign_first(&block, &host("n1"), &holder, after(&step)).unwrap();
    assert_eq!(v4, Some(address("10.244.0.192")));
    assert_eq!(v6, Some(address("fd00:10:244:2893:e83c:c9a6:7f8b:bb80")));
    agrees(capture, &cluster, &step, Some("10.244.0.192"));
}

fn step_19_the_ninth_pod_finds_a_pool_of_eight_exhausted(capture: Capture) {
    let (mut cluster, step) = between(capture, "18", "19");
    let pool = cluster.pools.iter().find(|pool| pool.spec.cidr == network("10.50.0.0/29")).unwrap();
    let blocks: Vec<_> = pool.spec.blocks(pool.spec.start_for("n1")).collect();
    assert_eq!(blocks, [network("10.50.0.0/29")]);
    cluster.claim(&blocks[0], &host("n1"), made(&step, &blocks[0]));
    for n in 0..8 {
        let holder = pod(&step, &format!("e{n}"), &format!("small-{n}"), "n1");
        let given = cluster.assign_first(&blocks[0], &host("n1"), &holder, after(&step)).unwrap();
        assert_eq!(given, Some(address(&format!("10.50.0.{n}"))));
    }
    let (ninth, now) = refused(&step, "e8", "small-8", "n1");
    assert_eq!(cluster.assign_first(&blocks[0], &host("n1"), &ninth, now), Ok(None));
    assert_eq!(cluster.block(&blocks[0]).free(|_| true), 0);
    assert_eq!(step["cni"][8]["exit"], 1);
    agrees(capture, &cluster, &step, None);
}

fn step_20_a_node_with_a_very_long_name_has_a_shortened_affinity(capture: Capture) {
    let (mut cluster, step) = between(capture, "19", "20");
    let affinities = step["blockaffinities"].as_array().unwrap();
    let node = affinities.iter().map(|affinity| affinity["spec"]["node"].as_str().unwrap()).max_by_key(|n| n.len());
    let node = node.unwrap();
    assert!(node.len() > 230, "{}", node.len());
    let block = network("10.244.180.192/26");
    cluster.claim(&block, &host(node), made(&step, &block));
    let holder = pod(&step, "f1", "long-1", node);
    cluster.assign_first(&block, &host(node), &holder, after(&step)).unwrap().unwrap();
    agrees(capture, &cluster, &step, Some("10.244.180.192"));
}

fn step_21_the_last_release_before_calicoctls_check(capture: Capture) {
    let (mut cluster, step) = between(capture, "20", "21");
    assert_eq!(cluster.release("k8s-pod-network.a1", after(&step)).len(), 1);
    agrees(capture, &cluster, &step, None);
}

#[test]
fn no_captured_step_violates_an_invariant() {
    for (name, step) in common::steps() {
        assert_eq!(Cluster::load(&step).violations(), [], "{name}");
    }
}

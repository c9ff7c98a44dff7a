//! Step by step: from the objects before a step and its input, this crate's operations produce exactly what
//! the real calico-ipam wrote, sequence numbers and times included. Clock readings and the choice of a new
//! block are inputs.
#![allow(clippy::unwrap_used)]

mod common;

use calico::{Affinity, AssignError, Entry, Holder, Reservations};
use common::{Cluster, address, network, step, time, written};
use jiff::Timestamp;
use serde_json::Value;

/// The captured day; all clock readings are of it.
fn at(clock: &str) -> Timestamp {
    time(&format!("2026-11-23T{clock}Z"))
}

fn nanoseconds(clock: i128) -> Timestamp {
    Timestamp::from_nanosecond(clock).unwrap()
}

fn host(name: &str) -> Affinity {
    Affinity::host(name)
}

fn pod(handle: &str, name: &str, node: &str, clock: &str) -> Holder {
    Holder::pod(format!("k8s-pod-network.{handle}"), "default", name, node, at(clock))
}

/// The cluster before step `after`: what writers had written by step `before`, what people had written by
/// then.
fn between(before: &str, after: &str) -> (Cluster, Value) {
    let next = step(after);
    let people = Cluster::load(&next);
    let cluster = Cluster {
        pools: people.pools,
        config: people.config,
        reservations: people.reservations,
        ..Cluster::load(&step(before))
    };
    (cluster, next)
}

/// Checks our objects against the step's, and the address in the step's CNI answer.
#[track_caller]
fn agrees(cluster: &Cluster, step: &Value, answer: Option<&str>) {
    assert_eq!(cluster.written(), written(step));
    assert_eq!(cluster.violations(), []);
    if let Some(answer) = answer {
        let given = step["cni"]["stdout"]["ips"][0]["address"].as_str().unwrap();
        assert_eq!(given.split('/').next(), Some(answer));
    }
}

#[test]
fn step_02_the_first_automatic_address_claims_a_block() {
    let (mut cluster, step) = between("01", "02");
    let block = network("10.244.40.128/26");
    cluster.claim(&block, &host("n1"), nanoseconds(1_795_473_656_730_623_412));
    let holder = pod("a1", "web-1", "n1", "22:40:56.68604405");
    let given = cluster.assign_first(&block, &host("n1"), &holder, at("22:40:56.8")).unwrap();
    assert_eq!(given, Some(address("10.244.40.128")));
    agrees(&cluster, &step, Some("10.244.40.128"));
}

#[test]
fn step_03_the_second_comes_from_the_same_block() {
    let (mut cluster, step) = between("02", "03");
    let holder = pod("a2", "web-2", "n1", "22:40:57.61466882");
    let block = network("10.244.40.128/26");
    cluster.assign_first(&block, &host("n1"), &holder, at("22:40:57.7")).unwrap().unwrap();
    agrees(&cluster, &step, Some("10.244.40.129"));
}

#[test]
fn step_04_a_named_address_without_a_block_claims_its_block() {
    let (mut cluster, step) = between("03", "04");
    let wanted = address("10.244.0.216");
    let block = cluster.block_for(wanted).unwrap();
    assert_eq!(block, network("10.244.0.192/26"));
    cluster.claim(&block, &host("n1"), nanoseconds(1_795_473_658_608_342_117));
    let holder = pod("a3", "fixed-1", "n1", "22:40:58.592079658");
    cluster.assign(wanted, &host("n1"), &holder, at("22:40:58.7")).unwrap();
    agrees(&cluster, &step, Some("10.244.0.216"));
}

#[test]
fn step_05_a_taken_address_is_refused_with_its_holder() {
    let (mut cluster, step) = between("04", "05");
    let holder = pod("b1", "fixed-2", "n2", "22:40:59.7");
    let error = cluster.assign(address("10.244.0.216"), &host("n2"), &holder, at("22:40:59.8")).unwrap_err();
    let AssignError::Taken { address: taken, by: Some(by) } = &error else { panic!("{error:?}") };
    assert_eq!(*taken, address("10.244.0.216"));
    assert_eq!(by.handle(), Some("k8s-pod-network.a3"));
    assert_eq!(
        error.to_string(),
        "address 10.244.0.216 is in use by pod default/fixed-1 on node n1 (handle k8s-pod-network.a3)"
    );
    assert_eq!(step["cni"]["exit"], 1);
    agrees(&cluster, &step, None);
}

#[test]
fn step_06_a_named_address_is_borrowed_from_another_nodes_block() {
    let (mut cluster, step) = between("05", "06");
    let holder = pod("b2", "fixed-3", "n2", "22:41:00.762720605");
    cluster.assign(address("10.244.0.217"), &host("n2"), &holder, at("22:41:00.8")).unwrap();
    let block = cluster.block(&network("10.244.0.192/26"));
    assert_eq!(block.host(), Some("n1"));
    let Entry::Used { attribute, sequence } = block.entry(address("10.244.0.217")) else { panic!() };
    assert_eq!(attribute.secondary("node"), Some("n2"));
    assert_eq!(sequence, Some(1_795_473_658_608_342_118));
    agrees(&cluster, &step, Some("10.244.0.217"));
}

#[test]
fn steps_07_and_08_a_release_frees_the_address_and_a_second_one_changes_nothing() {
    let (mut cluster, seventh) = between("06", "07");
    let released = cluster.release("k8s-pod-network.a3", at("22:41:01.9"));
    assert_eq!(released.len(), 1);
    assert_eq!(released[0].address, address("10.244.0.216"));
    agrees(&cluster, &seventh, None);

    let (mut cluster, eighth) = between("07", "08");
    assert_eq!(cluster.release("k8s-pod-network.a3", at("22:41:02.9")), []);
    agrees(&cluster, &eighth, None);
}

#[test]
fn step_09_the_address_moves_to_another_node() {
    let (mut cluster, step) = between("08", "09");
    let holder = pod("b3", "fixed-1b", "n2", "22:41:04.088883434");
    cluster.assign(address("10.244.0.216"), &host("n2"), &holder, at("22:41:04.1")).unwrap();
    agrees(&cluster, &step, Some("10.244.0.216"));
}

#[test]
fn step_10_a_reserved_address_may_be_named_but_is_never_drawn() {
    let (mut cluster, step) = between("09", "10");
    let reserved = Reservations::new(&cluster.reservations);
    assert_eq!(reserved.holder(address("10.244.0.218")), Some("held"));
    let block = network("10.244.0.192/26");
    let before = cluster.block(&block).free(|_| true);
    assert_eq!(cluster.block(&block).free(|address| !reserved.covers(address)), before - 1);

    let holder = pod("b4", "fixed-4", "n2", "22:41:05.331081028");
    cluster.assign(address("10.244.0.218"), &host("n2"), &holder, at("22:41:05.4")).unwrap();
    agrees(&cluster, &step, Some("10.244.0.218"));
}

#[test]
fn step_11_an_address_in_no_pool_has_no_block() {
    let (cluster, step) = between("10", "11");
    assert_eq!(cluster.block_for(address("10.99.0.1")), None);
    assert_eq!(step["cni"]["exit"], 1);
    agrees(&cluster, &step, None);
}

#[test]
fn step_12_calico_gives_the_first_address_of_a_pool_if_named() {
    let (mut cluster, step) = between("11", "12");
    let wanted = address("10.244.0.0");
    let block = cluster.block_for(wanted).unwrap();
    cluster.claim(&block, &host("n2"), nanoseconds(1_795_473_667_496_660_314));
    let holder = pod("b6", "fixed-6", "n2", "22:41:07.485284863");
    cluster.assign(wanted, &host("n2"), &holder, at("22:41:07.6")).unwrap();
    agrees(&cluster, &step, Some("10.244.0.0"));
}

#[test]
fn step_13_a_block_that_is_emptied_keeps_its_affinity() {
    let (mut cluster, step) = between("12", "13");
    for handle in ["b2", "b3", "b4", "b6"] {
        assert_eq!(cluster.release(&format!("k8s-pod-network.{handle}"), at("22:41:08.9")).len(), 1);
    }
    assert!(cluster.block(&network("10.244.0.0/26")).is_empty());
    agrees(&cluster, &step, None);
}

#[test]
fn step_14_strict_affinity_refuses_another_nodes_block() {
    let (mut cluster, step) = between("13", "14");
    assert!(cluster.config.strict_affinity);
    let holder = pod("c1", "fixed-7", "n2", "22:41:10.1");
    let error = cluster.assign(address("10.244.0.216"), &host("n2"), &holder, at("22:41:10.2")).unwrap_err();
    assert_eq!(
        error,
        AssignError::ForeignBlock { cidr: network("10.244.0.192/26"), owner: Some("host:n1".to_owned()) }
    );
    assert_eq!(step["cni"]["exit"], 1);
    agrees(&cluster, &step, None);
}

#[test]
fn steps_15_to_17_a_released_address_cools_and_is_refused_meanwhile() {
    let (mut cluster, fifteenth) = between("14", "15");
    let holder = pod("c2", "fixed-8", "n1", "22:41:11.120718807");
    cluster.assign(address("10.244.0.216"), &host("n1"), &holder, at("22:41:11.2")).unwrap();
    agrees(&cluster, &fifteenth, Some("10.244.0.216"));

    let (mut cluster, sixteenth) = between("15", "16");
    assert_eq!(cluster.config.cooldown_seconds(), 30);
    assert_eq!(cluster.release("k8s-pod-network.c2", at("22:41:12.3")).len(), 1);
    agrees(&cluster, &sixteenth, None);

    let (mut cluster, seventeenth) = between("16", "17");
    let again = pod("c3", "fixed-8", "n1", "22:41:13.1");
    let refused = cluster.assign(address("10.244.0.216"), &host("n1"), &again, at("22:41:13.2")).unwrap_err();
    assert_eq!(
        refused,
        AssignError::Cooling { address: address("10.244.0.216"), released_at: "2026-11-23T22:41:12Z".to_owned() }
    );
    assert_eq!(seventeenth["cni"]["exit"], 1);
    agrees(&cluster, &seventeenth, None);
    assert!(cluster.assign(address("10.244.0.216"), &host("n1"), &again, at("22:41:42")).is_err());
    assert!(cluster.assign(address("10.244.0.216"), &host("n1"), &again, at("22:41:42.001")).is_ok());
}

#[test]
fn step_18_a_dual_stack_pod_has_one_handle_in_two_blocks() {
    let (mut cluster, step) = between("17", "18");
    let holder = pod("d1", "dual-1", "n1", "22:41:14.767069043");
    // No configuration any more, so no cooldown: the address that cooled is freed by this write.
    let v4 = cluster.assign_first(&network("10.244.0.192/26"), &host("n1"), &holder, at("22:41:14.8")).unwrap();
    let block = network("fd00:10:244:2893:e83c:c9a6:7f8b:bb80/122");
    cluster.claim(&block, &host("n1"), nanoseconds(1_795_473_674_909_036_859));
    let v6 = cluster.assign_first(&block, &host("n1"), &holder, at("22:41:14.95")).unwrap();
    assert_eq!(v4, Some(address("10.244.0.192")));
    assert_eq!(v6, Some(address("fd00:10:244:2893:e83c:c9a6:7f8b:bb80")));
    agrees(&cluster, &step, Some("10.244.0.192"));
}

#[test]
fn step_19_the_ninth_pod_finds_a_pool_of_eight_exhausted() {
    let (mut cluster, step) = between("18", "19");
    let pool = cluster.pools.iter().find(|pool| pool.spec.cidr == network("10.50.0.0/29")).unwrap();
    let blocks: Vec<_> = pool.spec.blocks(pool.spec.start_for("n1")).collect();
    assert_eq!(blocks, [network("10.50.0.0/29")]);
    cluster.claim(&blocks[0], &host("n1"), nanoseconds(1_795_473_676_290_715_155));
    let clocks = [
        "22:41:16.236840455",
        "22:41:16.415208277",
        "22:41:16.569054713",
        "22:41:16.708043467",
        "22:41:16.828283702",
        "22:41:16.950220938",
        "22:41:17.087525154",
        "22:41:17.332502962",
    ];
    for (n, clock) in clocks.into_iter().enumerate() {
        let holder = pod(&format!("e{n}"), &format!("small-{n}"), "n1", clock);
        let given = cluster.assign_first(&blocks[0], &host("n1"), &holder, at(clock)).unwrap();
        assert_eq!(given, Some(address(&format!("10.50.0.{n}"))));
    }
    let ninth = pod("e8", "small-8", "n1", "22:41:17.5");
    assert_eq!(cluster.assign_first(&blocks[0], &host("n1"), &ninth, at("22:41:17.6")), Ok(None));
    assert_eq!(cluster.block(&blocks[0]).free(|_| true), 0);
    assert_eq!(step["cni"][8]["exit"], 1);
    agrees(&cluster, &step, None);
}

#[test]
fn step_20_a_node_with_a_very_long_name_has_a_shortened_affinity() {
    let (mut cluster, step) = between("19", "20");
    let affinities = step["blockaffinities"].as_array().unwrap();
    let node = affinities.iter().map(|affinity| affinity["spec"]["node"].as_str().unwrap()).max_by_key(|n| n.len());
    let node = node.unwrap();
    assert!(node.len() > 230, "{}", node.len());
    let block = network("10.244.180.192/26");
    cluster.claim(&block, &host(node), nanoseconds(1_795_473_678_711_641_249));
    let holder = pod("f1", "long-1", node, "22:41:18.670856065");
    cluster.assign_first(&block, &host(node), &holder, at("22:41:18.8")).unwrap().unwrap();
    agrees(&cluster, &step, Some("10.244.180.192"));
}

#[test]
fn step_21_the_last_release_before_calicoctls_check() {
    let (mut cluster, step) = between("20", "21");
    assert_eq!(cluster.release("k8s-pod-network.a1", at("22:41:20")).len(), 1);
    agrees(&cluster, &step, None);
}

#[test]
fn no_captured_step_violates_an_invariant() {
    for (name, step) in common::steps() {
        assert_eq!(Cluster::load(&step).violations(), [], "{name}");
    }
}

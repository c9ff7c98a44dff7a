//! Random operations on a cluster of three blocks against a model that is a table of addresses: the
//! invariants hold after every step, and a refusal changes nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use calico::{Affinity, AssignError, Entry, Expect, Holder, IPAMBlockSpec, IPPool, ReleaseError};
use common::{Cluster, network, time};
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

const BLOCKS: [(&str, &str); 3] = [("10.0.0.0/29", "n0"), ("10.0.0.8/29", "n1"), ("fd00::8/125", "n2")];
const ADDRESSES: usize = 8;

#[derive(Debug, Clone)]
enum Op {
    Assign { block: usize, ordinal: usize, handle: u8, node: u8 },
    AssignFirst { block: usize, handle: u8, node: u8 },
    ReleaseHandle { handle: u8 },
    ReleaseAddress { block: usize, ordinal: usize, handle: Option<u8>, sequence: Option<bool> },
    Disown { block: usize },
    Wait { seconds: i64 },
}

fn op() -> impl Strategy<Value = Op> {
    let (block, ordinal, handle, node) = (0..3usize, 0..ADDRESSES, 0..5u8, 0..3u8);
    prop_oneof![
        4 => (block.clone(), ordinal.clone(), handle.clone(), node.clone())
            .prop_map(|(block, ordinal, handle, node)| Op::Assign { block, ordinal, handle, node }),
        4 => (block.clone(), handle.clone(), node)
            .prop_map(|(block, handle, node)| Op::AssignFirst { block, handle, node }),
        3 => handle.clone().prop_map(|handle| Op::ReleaseHandle { handle }),
        3 => (block.clone(), ordinal, prop::option::of(handle), any::<Option<bool>>())
            .prop_map(|(block, ordinal, handle, sequence)| Op::ReleaseAddress { block, ordinal, handle, sequence }),
        1 => block.prop_map(|block| Op::Disown { block }),
        2 => (1..40i64).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

/// What an address is, as the model has it.
#[derive(Debug, Clone, PartialEq)]
enum State {
    Used(u8),
    Cooling(Timestamp),
}

#[derive(Debug, Clone, Default)]
struct ModelBlock {
    taken: BTreeMap<usize, State>,
    free: VecDeque<usize>,
    gone: bool,
}

struct World {
    cluster: Cluster,
    model: Vec<ModelBlock>,
    cooldown: i64,
    now: Timestamp,
}

fn cidr(block: usize) -> IpNetwork {
    network(BLOCKS[block].0)
}

fn handle_id(handle: u8) -> String {
    format!("net.C{handle}")
}

fn holder(handle: u8, node: u8) -> Holder {
    let secondary = [("node".to_owned(), format!("n{node}")), ("pod".to_owned(), format!("p{handle}"))];
    Holder { handle: handle_id(handle), secondary: secondary.into() }
}

fn pool(name: &str, cidr: &str, size: i64) -> IPPool {
    IPPool::new(name, serde_json::from_value(json!({"cidr": cidr, "blockSize": size})).unwrap())
}

impl World {
    fn new(cooldown: i64, strict: bool) -> Self {
        let mut cluster = Cluster {
            pools: vec![pool("four", "10.0.0.0/24", 29), pool("six", "fd00::/64", 125)],
            config: Default::default(),
            reservations: Vec::new(),
            blocks: BTreeMap::new(),
            affinities: BTreeMap::new(),
            handles: BTreeMap::new(),
        };
        cluster.config.strict_affinity = strict;
        cluster.config.ip_cooldown_seconds = Some(cooldown);
        let now = time("2026-11-23T22:00:00Z");
        for (block, (_, owner)) in BLOCKS.iter().enumerate() {
            cluster.claim(&cidr(block), &Affinity::host(*owner), now);
        }
        let block = ModelBlock { free: (0..ADDRESSES).collect(), ..Default::default() };
        Self { cluster, model: vec![block; BLOCKS.len()], cooldown, now }
    }

    fn spec(&self, block: usize) -> Option<&IPAMBlockSpec> {
        self.cluster.blocks.get(&calico::cidr_name(&cidr(block))).map(|block| &block.spec)
    }

    /// The model of a block after a collection.
    fn collected(&self, block: usize) -> ModelBlock {
        let mut model = self.model[block].clone();
        for ordinal in 0..ADDRESSES {
            let Some(State::Cooling(since)) = model.taken.get(&ordinal) else {
                continue;
            };
            if self.cooldown <= 0 || self.now.duration_since(*since) > SignedDuration::from_secs(self.cooldown) {
                model.taken.remove(&ordinal);
                model.free.push_back(ordinal);
            }
        }
        model
    }

    fn may_assign(&self, block: usize, node: u8) -> bool {
        let owner = self.spec(block).unwrap().host().map(str::to_owned);
        !self.cluster.config.strict_affinity || owner == Some(format!("n{node}"))
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Assign { block, ordinal, handle, node } if !self.model[block].gone => {
                self.assign(block, ordinal, handle, node);
            }
            Op::AssignFirst { block, handle, node } if !self.model[block].gone => {
                self.assign_first(block, handle, node);
            }
            Op::ReleaseHandle { handle } => self.release_handle(handle),
            Op::ReleaseAddress { block, ordinal, handle, sequence } if !self.model[block].gone => {
                self.release_address(block, ordinal, handle, sequence);
            }
            Op::Disown { block } if !self.model[block].gone => self.disown(block),
            Op::Wait { seconds } => self.now += SignedDuration::from_secs(seconds),
            _ => {}
        }
    }

    fn address(&self, block: usize, ordinal: usize) -> IpAddr {
        let address = self.spec(block).unwrap().address(ordinal);
        assert_eq!(self.spec(block).unwrap().ordinal(address), Some(ordinal));
        address
    }

    fn assign(&mut self, block: usize, ordinal: usize, handle: u8, node: u8) {
        let address = self.address(block, ordinal);
        let allowed = self.may_assign(block, node);
        let mut model = self.collected(block);
        let owner = Affinity::host(format!("n{node}"));
        let result = self.cluster.assign(address, &owner, &holder(handle, node), self.now);
        match (result, allowed, model.taken.get(&ordinal)) {
            (Ok(()), true, None) => {
                model.free.retain(|&free| free != ordinal);
                model.taken.insert(ordinal, State::Used(handle));
                self.model[block] = model;
            }
            (Err(AssignError::ForeignBlock { .. }), false, _) => {}
            (Err(AssignError::Taken { by: Some(by), .. }), true, Some(State::Used(holder))) => {
                assert_eq!(by.handle(), Some(handle_id(*holder).as_str()));
            }
            (Err(AssignError::Cooling { .. }), true, Some(State::Cooling(_))) => {}
            other => panic!("{other:?}"),
        }
    }

    fn assign_first(&mut self, block: usize, handle: u8, node: u8) {
        let allowed = self.may_assign(block, node);
        let mut model = self.collected(block);
        let owner = Affinity::host(format!("n{node}"));
        let result = self.cluster.assign_first(&cidr(block), &owner, &holder(handle, node), self.now);
        match (result, allowed) {
            (Ok(given), true) => {
                let oldest = model.free.pop_front();
                assert_eq!(given, oldest.map(|ordinal| self.address(block, ordinal)));
                if let Some(ordinal) = oldest {
                    model.taken.insert(ordinal, State::Used(handle));
                    self.model[block] = model;
                }
            }
            (Err(AssignError::ForeignBlock { .. }), false) => {}
            other => panic!("{other:?}"),
        }
    }

    fn release_handle(&mut self, handle: u8) {
        let mut expected = Vec::new();
        for block in (0..BLOCKS.len()).filter(|&block| !self.model[block].gone).collect::<Vec<_>>() {
            let model = self.collected(block);
            let mine: Vec<_> = model.taken.iter().filter(|(_, state)| **state == State::Used(handle)).collect();
            let mine: Vec<usize> = mine.into_iter().map(|(ordinal, _)| *ordinal).collect();
            expected.extend(mine.iter().map(|&ordinal| self.address(block, ordinal)));
            if !mine.is_empty() {
                self.model[block] = model;
                self.cool(block, &mine);
            }
        }
        let released = self.cluster.release(&handle_id(handle), self.now);
        let addresses: Vec<_> = released.iter().map(|released| released.address).collect();
        assert_eq!(addresses, expected);
        assert!(released.iter().all(|released| released.attribute.handle() == Some(handle_id(handle).as_str())));
    }

    fn cool(&mut self, block: usize, ordinals: &[usize]) {
        for &ordinal in ordinals {
            self.model[block].taken.insert(ordinal, State::Cooling(self.now));
        }
        self.model[block] = self.collected(block);
        self.model[block].gone = self.model[block].taken.is_empty() && self.spec(block).unwrap().affinity.is_none();
    }

    fn release_address(&mut self, block: usize, ordinal: usize, handle: Option<u8>, sequence: Option<bool>) {
        let address = self.address(block, ordinal);
        let model = self.collected(block);
        let mut spec = self.spec(block).unwrap().clone();
        spec.collect(self.cooldown, self.now);
        let current = match spec.entry(address) {
            Entry::Used { sequence, .. } => sequence.unwrap(),
            _ => 0,
        };
        let right_sequence = sequence.is_none_or(|right| right);
        let expect = Expect {
            handle: handle.map(handle_id),
            sequence: sequence.map(|right| if right { current } else { current + 1 }),
        };
        let before = spec.clone();
        let result = spec.release_address(address, &expect, self.cooldown, self.now);
        match (result, model.taken.get(&ordinal)) {
            (Ok(Some(released)), Some(State::Used(holder))) => {
                assert!(right_sequence && handle.is_none_or(|handle| handle == *holder));
                assert_eq!(released.address, address);
                spec.advance();
                *self.cluster.block(&cidr(block)) = spec;
                self.model[block] = model;
                self.cool(block, &[ordinal]);
                self.cluster.count_down(&cidr(block), &[released]);
                return;
            }
            (Ok(None), None | Some(State::Cooling(_))) => {}
            (Err(ReleaseError::OtherSequence { .. }), Some(State::Used(_))) => {
                assert!(!right_sequence)
            }
            (Err(ReleaseError::OtherHandle { .. }), Some(State::Used(holder))) => {
                assert_ne!(handle, Some(*holder))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(spec, before);
    }

    /// Releases the affinity as Calico does: an empty block goes, another stays without an owner.
    fn disown(&mut self, block: usize) {
        let model = self.collected(block);
        let (now, cooldown) = (self.now, self.cooldown);
        let Some(owner) = self.spec(block).unwrap().affinity() else {
            return;
        };
        let spec = self.cluster.block(&cidr(block));
        spec.collect(cooldown, now);
        assert_eq!(spec.is_empty(), model.taken.is_empty());
        spec.disown();
        spec.advance();
        if spec.is_empty() {
            self.cluster.blocks.remove(&calico::cidr_name(&cidr(block)));
        }
        self.cluster.affinities.remove(&calico::affinity_name(owner.name(), &cidr(block)));
        self.model[block] = ModelBlock { gone: model.taken.is_empty(), ..model };
    }

    fn check(&self) {
        assert_eq!(self.cluster.violations(), []);
        for (block, model) in self.model.iter().enumerate() {
            let Some(spec) = self.spec(block) else {
                assert!(model.gone);
                continue;
            };
            assert!(!model.gone);
            assert!(spec.unallocated.iter().eq(&model.free), "{:?} {:?}", spec.unallocated, model.free);
            for ordinal in 0..ADDRESSES {
                match (spec.entry(spec.address(ordinal)), model.taken.get(&ordinal)) {
                    (Entry::Free, None) => {}
                    (Entry::Cooling { released_at }, Some(State::Cooling(since))) => {
                        assert_eq!(released_at, since.to_string());
                    }
                    (Entry::Used { attribute, sequence }, Some(State::Used(handle))) => {
                        assert_eq!(attribute.handle(), Some(handle_id(*handle).as_str()));
                        assert!(sequence.unwrap() < spec.sequence_number);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn the_objects_say_what_the_model_says_after_every_step(
        cooldown in prop::sample::select(vec![0, 30, -1]),
        strict in any::<bool>(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut world = World::new(cooldown, strict);
        for op in &ops {
            let before: BTreeMap<_, _> =
                world.cluster.blocks.iter().map(|(name, block)| (name.clone(), block.spec.clone())).collect();
            world.apply(op);
            world.check();
            for (name, block) in &world.cluster.blocks {
                let before = &before[name];
                let steps = block.spec.sequence_number - before.sequence_number;
                let changed = block.spec != *before;
                prop_assert_eq!(steps, i64::from(changed), "one write, one step of the sequence: {:?}", op);
            }
        }
    }

    #[test]
    fn objects_survive_json_after_every_step(ops in prop::collection::vec(op(), 1..40)) {
        let mut world = World::new(30, false);
        for op in &ops {
            world.apply(op);
        }
        for block in world.cluster.blocks.values() {
            let json = serde_json::to_string(block).unwrap();
            prop_assert_eq!(&serde_json::from_str::<calico::IPAMBlock>(&json).unwrap(), block);
        }
    }
}

#[test]
fn a_block_is_filled_in_order_and_reused_in_the_order_of_release() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.0/30"), &Affinity::host("n0"), now);
    let draw = |block: &mut IPAMBlockSpec, handle| {
        block.assign_first(|_| true, &holder(handle, 0), None).unwrap().map(|address| address.to_string())
    };
    for n in 0..4 {
        assert_eq!(draw(&mut block, n), Some(format!("10.0.0.{n}")));
    }
    assert_eq!(draw(&mut block, 9), None);
    block.release_handle(&handle_id(2), 0, now);
    block.release_handle(&handle_id(0), 0, now);
    assert_eq!(draw(&mut block, 5).as_deref(), Some("10.0.0.2"));
    assert_eq!(draw(&mut block, 6).as_deref(), Some("10.0.0.0"));
}

#[test]
fn one_handle_with_equal_attributes_shares_an_attribute() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.0/29"), &Affinity::host("n0"), now);
    for _ in 0..3 {
        block.assign_first(|_| true, &holder(1, 0), None).unwrap();
    }
    assert_eq!((block.attributes.len(), block.validate()), (1, Ok(())));
    assert_eq!(block.release_handle(&handle_id(1), 0, now).len(), 3);
    assert!(block.is_empty() && block.attributes.is_empty());
}

#[test]
fn a_handle_of_an_old_migration_is_found_without_its_remnant() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.0/29"), &Affinity::host("n0"), now);
    let old = Holder { handle: "net.C1\r\neth0".to_owned(), secondary: BTreeMap::new() };
    block.assign_first(|_| true, &old, None).unwrap();
    assert_eq!(block.release_handle("net.C1", 0, now).len(), 1);
}

#[test]
fn addresses_kept_from_windows_pods_do_not_count_as_use() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.0/29"), &Affinity::host("n0"), now);
    let reserved = Holder { handle: "windows-reserved-IPAM-handle".to_owned(), secondary: BTreeMap::new() };
    block.assign_first(|_| true, &reserved, None).unwrap();
    assert!(block.is_empty());
    block.assign_first(|_| true, &holder(1, 0), None).unwrap();
    assert!(!block.is_empty());
}

/// What is left of an address that cooled once a Calico that does not know `releasedAt` has rewritten the block.
#[test]
fn an_address_whose_attribute_says_nothing_is_given_back_whatever_the_cooldown_is() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.0/30"), &Affinity::host("n0"), now);
    for _ in 0..3 {
        block.assign_first(|_| true, &holder(1, 0), None).unwrap();
    }
    assert_eq!(block.release_handle(&holder(1, 0).handle, 1200, now).len(), 3);
    let mut value = serde_json::to_value(&block).unwrap();
    value["attributes"][0].as_object_mut().unwrap().remove("releasedAt");
    assert_eq!(value["attributes"], serde_json::json!([{}]));
    let mut block: IPAMBlockSpec = serde_json::from_value(value).unwrap();
    assert!(block.is_empty() && block.free(|_| true) == 1);
    assert!(block.collect(1200, now));
    assert_eq!((block.free(|_| true), block.validate()), (4, Ok(())));
    assert!(block.attributes.is_empty() && block.sequence_number_for_allocation.is_empty());

    // One that somebody is named in is somebody's.
    block.assign_first(|_| true, &holder(1, 0), None).unwrap();
    block.attributes[0].handle_id = None;
    assert!(!block.collect(1200, now) && !block.is_empty());
}

#[test]
fn a_block_that_is_being_deleted_gives_nothing() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.0/29"), &Affinity::host("n0"), now);
    block.deleted = true;
    let error = block.assign_first(|_| true, &holder(1, 0), None).unwrap_err();
    assert_eq!(error, AssignError::Deleted { cidr: network("10.0.0.0/29") });
}

#[test]
fn an_address_of_another_block_or_family_is_refused() {
    let now = time("2026-11-23T22:00:00Z");
    let mut block = IPAMBlockSpec::new(network("10.0.0.8/29"), &Affinity::host("n0"), now);
    for address in ["10.0.0.7", "10.0.0.16", "fd00::9", "::ffff:10.0.0.9"] {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(block.entry(address), Entry::NotInBlock);
        let error = block.assign(address, &holder(1, 0), None).unwrap_err();
        assert_eq!(error, AssignError::NotInBlock { address, cidr: block.cidr });
        let error = block.release_address(address, &Expect::default(), 0, now).unwrap_err();
        assert_eq!(error, ReleaseError::NotInBlock { address, cidr: block.cidr });
    }
}

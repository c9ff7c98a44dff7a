//! States in 121 bits, exactly: two are the same number if and only if they are the same.
//!
//! Pods that are alike make states that are alike, so a state also has a second number: that of the state in which two
//! pods have changed their names, with all that is recorded of them. The smaller one stands for both.

use std::cell::RefCell;

use super::quick::Map;
use super::records::Records;
use super::state::{At, CONTAINERS, Call, Id, Node, PODS, Pod, Repair, SANDBOXES, Sandbox, State};

/// A state without the number of faults that are left.
pub type Packed = u128;

/// Bits of the number of a call or a repair, of which there are no more than some thousands.
const NUMBER: u32 = 14;
/// Calls under way, at most: one for each sandbox that there may be in any of the models.
const SLOTS: usize = 3;

/// Calls and repairs by number, and the numbers of the same with two pods' names changed.
pub struct Packing<'a> {
    records: &'a Records,
    twins: Option<(u8, u8)>,
    calls: RefCell<Numbers<Call>>,
    repairs: RefCell<Numbers<Repair>>,
}

struct Numbers<T> {
    of: Map<T, u16>,
    all: Vec<(T, Option<u16>)>,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self { of: Map::default(), all: Vec::new() }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Numbers<T> {
    fn number(&mut self, value: T) -> u16 {
        *self.of.entry(value).or_insert_with(|| {
            self.all.push((value, None));
            u16::try_from(self.all.len() - 1).unwrap()
        })
    }

    /// The number of what `change` makes of a numbered one.
    fn changed(&mut self, number: u16, change: impl Fn(T) -> T) -> u16 {
        let (value, known) = self.all[usize::from(number)];
        known.unwrap_or_else(|| {
            let changed = self.number(change(value));
            self.all[usize::from(number)].1 = Some(changed);
            changed
        })
    }
}

/// Writes numbers of few bits one after another.
#[derive(Default)]
struct Writer(Packed);

impl Writer {
    fn put(&mut self, value: u16, bits: u32) {
        assert!(u32::from(value) < 1 << bits);
        self.0 = self.0 << bits | Packed::from(value);
    }
}

/// Reads them in the opposite order.
struct Reader(Packed);

impl Reader {
    fn take(&mut self, bits: u32) -> u16 {
        let value = self.0 & ((1 << bits) - 1);
        self.skip(bits);
        value as u16
    }

    fn skip(&mut self, bits: u32) {
        self.0 >>= bits;
    }
}

impl<'a> Packing<'a> {
    /// `twins` are two pods that are alike, if there are.
    pub fn new(records: &'a Records, twins: Option<(u8, u8)>) -> Self {
        Self { records, twins, calls: RefCell::default(), repairs: RefCell::default() }
    }

    /// The number that stands for a state, and whether it is the one with the names changed.
    pub fn pack(&self, state: &State) -> (Packed, bool) {
        let numbers = self.numbers(state);
        let as_it_is = self.write(state, &numbers, None);
        let Some(twins) = self.twins else { return (as_it_is, false) };
        let changed = self.write(state, &numbers, Some(twins));
        (as_it_is.min(changed), changed < as_it_is)
    }

    /// The state with the names changed.
    pub fn twin(&self, state: &State) -> State {
        self.unpack(self.write(state, &self.numbers(state), self.twins), state.faults)
    }

    fn numbers(&self, state: &State) -> [u16; CONTAINERS] {
        let mut calls = self.calls.borrow_mut();
        state.calls.map(|call| if call.at == At::Idle { 0 } else { calls.number(call) })
    }

    fn write(&self, state: &State, calls: &[u16; CONTAINERS], twins: Option<(u8, u8)>) -> Packed {
        let names = Names { records: self.records, twins };
        let mut bits = Writer::default();
        let mut under_way = 0;
        for container in Records::containers().map(|container| usize::from(names.container(container))) {
            let (number, call) = (calls[container], state.calls[container]);
            let sandbox = state.sandboxes[container];
            debug_assert_eq!(call.at != At::Idle, matches!(sandbox, Sandbox::Adding | Sandbox::Deleting));
            if call.at != At::Idle {
                under_way += 1;
                let number = match twins {
                    Some(_) => self.calls.borrow_mut().changed(number, |call| names.call(call)),
                    None => number,
                };
                bits.put(number, NUMBER);
            }
        }
        (under_way..SLOTS).for_each(|_| bits.put(0, NUMBER));
        let repair = self.repairs.borrow_mut().number(state.repair);
        let repair = match twins {
            Some(_) => self.repairs.borrow_mut().changed(repair, |repair| names.repair(repair)),
            None => repair,
        };
        bits.put(repair, NUMBER);
        for pod in (0..PODS as u8).map(|pod| usize::from(names.pod(pod))) {
            bits.put(pod_number(state.pods[pod]), 2);
            bits.put(u16::from(state.nodes[pod].ready) << 1 | u16::from(state.nodes[pod].runs), 2);
        }
        for container in Records::containers().map(|container| usize::from(names.container(container))) {
            bits.put(sandbox_number(state.sandboxes[container]), 3);
            bits.put(state.handles[container].map_or(0, |count| u16::from(count) + 1), 2);
            bits.put(u16::from(state.noted[container]), 1);
        }
        bits.put(names.block(state.block), 8);
        bits.put(names.claim(state.claim), 8);
        bits.put(u16::from(state.reserved), 1);
        bits.0
    }

    /// The state of a number, with so many faults left.
    pub fn unpack(&self, packed: Packed, faults: u8) -> State {
        let mut bits = Reader(packed);
        let reserved = bits.take(1) == 1;
        let (claim, block) = (bits.take(8), bits.take(8));
        let (mut sandboxes, mut handles) = ([Sandbox::Unborn; CONTAINERS], [None; CONTAINERS]);
        let mut noted = [false; CONTAINERS];
        for container in (0..CONTAINERS).rev() {
            noted[container] = bits.take(1) == 1;
            handles[container] = (bits.take(2) as u8).checked_sub(1);
            sandboxes[container] = sandbox_of(bits.take(3));
        }
        let (mut pods, mut nodes) = ([Pod::Alive; PODS], [Node { ready: true, runs: true }; PODS]);
        for pod in (0..PODS).rev() {
            let node = bits.take(2);
            nodes[pod] = Node { ready: node & 2 != 0, runs: node & 1 != 0 };
            pods[pod] = pod_of(bits.take(2));
        }
        let repair = self.repairs.borrow().all[usize::from(bits.take(NUMBER))].0;
        let mut calls = [Call::IDLE; CONTAINERS];
        let is_under_way = |container: &usize| matches!(sandboxes[*container], Sandbox::Adding | Sandbox::Deleting);
        let under_way = (0..CONTAINERS).filter(is_under_way).count();
        (under_way..SLOTS).for_each(|_| bits.skip(NUMBER));
        for container in (0..CONTAINERS).rev().filter(is_under_way) {
            calls[container] = self.calls.borrow().all[usize::from(bits.take(NUMBER))].0;
        }
        State { faults, block, claim, reserved, handles, noted, pods, nodes, sandboxes, calls, repair }
    }
}

fn pod_number(pod: Pod) -> u16 {
    match pod {
        Pod::Alive => 0,
        Pod::Terminating => 1,
        Pod::Gone { long } => 2 + u16::from(long),
    }
}

fn pod_of(number: u16) -> Pod {
    [Pod::Alive, Pod::Terminating, Pod::Gone { long: false }, Pod::Gone { long: true }][usize::from(number)]
}

const SANDBOX: [Sandbox; 8] = [
    Sandbox::Unborn,
    Sandbox::Adding,
    Sandbox::Given(0),
    Sandbox::Given(1),
    Sandbox::Ended,
    Sandbox::Left,
    Sandbox::Deleting,
    Sandbox::Deleted,
];

fn sandbox_number(sandbox: Sandbox) -> u16 {
    match sandbox {
        Sandbox::Unborn => 0,
        Sandbox::Adding => 1,
        Sandbox::Given(address) => 2 + u16::from(address),
        Sandbox::Ended => 4,
        Sandbox::Left => 5,
        Sandbox::Deleting => 6,
        Sandbox::Deleted => 7,
    }
}

fn sandbox_of(number: u16) -> Sandbox {
    SANDBOX[usize::from(number)]
}

/// What everything is called once two pods have changed their names.
#[derive(Clone, Copy)]
struct Names<'a> {
    records: &'a Records,
    twins: Option<(u8, u8)>,
}

impl Names<'_> {
    fn pod(&self, pod: u8) -> u8 {
        match self.twins {
            Some((one, other)) if pod == one => other,
            Some((one, other)) if pod == other => one,
            _ => pod,
        }
    }

    fn container(&self, container: u8) -> u8 {
        let sandboxes = SANDBOXES as u8;
        self.pod(container / sandboxes) * sandboxes + container % sandboxes
    }

    fn claim(&self, claim: Id) -> Id {
        self.twins.map_or(claim, |twins| self.records.twin_claim(claim, twins))
    }

    fn block(&self, block: Id) -> Id {
        self.twins.map_or(block, |twins| self.records.twin_block(block, twins))
    }

    fn call(&self, call: Call) -> Call {
        let container = |container: Option<u8>| container.map(|container| self.container(container));
        let (claim, next) = (self.claim(call.claim), self.claim(call.next));
        Call { claim, next, entry: container(call.entry), displaced: container(call.displaced), ..call }
    }

    fn repair(&self, repair: Repair) -> Repair {
        let container = |container: u8| self.container(container);
        match repair {
            Repair::FreeHolders(claim, of) => Repair::FreeHolders(self.claim(claim), of.map(container)),
            Repair::SettleClaim(claim, of) => Repair::SettleClaim(self.claim(claim), of.map(container)),
            Repair::Contest(claim, next) => Repair::Contest(self.claim(claim), self.claim(next)),
            Repair::Free(address, of) => Repair::Free(address, container(of)),
            Repair::CountOff(of) => Repair::CountOff(container(of)),
            Repair::Recount(of, seen, bears) => Repair::Recount(container(of), seen, bears),
            Repair::Raise(of) => Repair::Raise(container(of)),
            other => other,
        }
    }
}

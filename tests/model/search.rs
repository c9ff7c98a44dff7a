//! Visits every state that can come about, those with fewer faults first.
//!
//! A state with fewer faults left adds nothing to the same state with more: whatever can happen from it can happen from
//! the other, and what must hold does not depend on their number. So states are visited in the order of faults that have
//! happened, and each of them once.

use std::collections::VecDeque;
use std::time::Instant;

use super::check;
use super::packed::{Packed, Packing};
use super::records::Records;
use super::state::{Action, At, Fault, State};

/// A search through the states of one model.
pub struct Search<'a> {
    name: &'a str,
    records: &'a Records,
    packing: Packing<'a>,
    known: Known,
    /// What waits to be visited, by the number of faults that are left.
    waiting: Vec<Waiting>,
    /// How each state came about: the number of the one before it, and which of the actions there.
    came: Vec<(u32, u8)>,
    first: State,
}

/// What there was to visit.
#[derive(Debug, Default, Clone, Copy)]
pub struct Visited {
    pub states: usize,
    pub transitions: usize,
    /// States without a call.
    pub rests: usize,
}

#[derive(Default)]
struct Waiting {
    states: VecDeque<[u64; 2]>,
    numbers: VecDeque<u32>,
}

impl Waiting {
    fn push(&mut self, state: Packed, number: u32) {
        self.states.push_back([state as u64, (state >> 64) as u64]);
        self.numbers.push_back(number);
    }

    fn pop(&mut self) -> Option<(Packed, u32)> {
        let [low, high] = self.states.pop_front()?;
        Some((Packed::from(high) << 64 | Packed::from(low), self.numbers.pop_front()?))
    }
}

impl<'a> Search<'a> {
    pub fn new(name: &'a str, records: &'a Records, twins: Option<(u8, u8)>, first: State) -> Self {
        let packing = Packing::new(records, twins);
        let waiting = (0..=first.faults).map(|_| Waiting::default()).collect();
        let mut search = Self { name, records, packing, known: Known::default(), waiting, came: Vec::new(), first };
        search.add(&first, 0, 0);
        search
    }

    fn add(&mut self, state: &State, from: u32, by: u8) {
        let (packed, _) = self.packing.pack(state);
        if self.known.add(packed, state.faults) {
            self.waiting[usize::from(state.faults)].push(packed, u32::try_from(self.came.len()).unwrap());
            self.came.push((from, by));
        }
    }

    /// Visits everything, and shows each state; an error is the way to the first state that is wrong, with as few faults
    /// as can be, and then the shortest.
    pub fn run(&mut self, mut show: impl FnMut(&State)) -> Result<Visited, String> {
        let begun = Instant::now();
        let mut visited = Visited::default();
        let mut actions = Vec::new();
        for faults in (0..=self.first.faults).rev() {
            while let Some((packed, number)) = self.waiting[usize::from(faults)].pop() {
                if self.known.faults(packed) != faults {
                    continue;
                }
                let state = self.packing.unpack(packed, faults);
                self.check(&state, number, &mut visited)?;
                show(&state);
                actions.clear();
                check::actions(self.records, &state, &mut actions);
                visited.transitions += actions.len();
                self.go_on(&state, number, &actions);
                visited.states += 1;
                if visited.states.is_multiple_of(10_000_000) {
                    self.tell(&visited, begun, faults);
                }
            }
        }
        Ok(visited)
    }

    fn go_on(&mut self, state: &State, number: u32, actions: &[Action]) {
        let mut goes_on = false;
        for (which, action) in (0..).zip(actions) {
            // A call that dies after a request which is not its last dies before the next one.
            if matches!(action, Action::Step(_, Fault::DieAfter)) && goes_on && self.records.reduces {
                continue;
            }
            let next = check::apply(self.records, state, *action);
            if let Action::Step(container, Fault::None) = action {
                goes_on = next.calls[usize::from(*container)].at != At::Idle;
            }
            self.add(&next, number, which);
        }
    }

    fn tell(&self, visited: &Visited, begun: Instant, faults: u8) {
        let seconds = begun.elapsed().as_secs_f64();
        println!("{}: {visited:?}, {} known, {faults} faults left, {seconds:.1} s", self.name, self.known.count);
    }

    fn check(&self, state: &State, number: u32, visited: &mut Visited) -> Result<(), String> {
        let mut checked = check::invariants(self.records, state);
        if checked.is_ok() && state.is_idle() {
            visited.rests += 1;
            checked = check::nothing_stays(self.records, state);
        }
        checked.map_err(|wrong| format!("{}: {wrong}\nin {state:?}\nafter\n  {}", self.name, self.story(number)))
    }

    /// How a state came about, from the beginning.
    fn story(&self, mut number: u32) -> String {
        let mut numbers = Vec::new();
        while number != 0 {
            let (from, by) = self.came[number as usize];
            numbers.push(by);
            number = from;
        }
        let (mut state, mut steps, mut actions) = (self.first, Vec::new(), Vec::new());
        for which in numbers.into_iter().rev() {
            actions.clear();
            check::actions(self.records, &state, &mut actions);
            let action = actions[usize::from(which)];
            state = check::apply(self.records, &state, action);
            let (packed, renamed) = self.packing.pack(&state);
            state = self.packing.unpack(packed, state.faults);
            steps.push(format!("{action:?}{}", if renamed { ", and the twins change names" } else { "" }));
        }
        steps.join("\n  ")
    }
}

/// States that are known, each with the most faults that were left: a hash table with open addressing.
#[derive(Default)]
struct Known {
    /// Zero is none; else the state, above a one and two bits for the faults.
    slots: Vec<Packed>,
    count: usize,
}

const FAULTS: u32 = 2;

impl Known {
    /// Whether the state was not known with so many faults left.
    fn add(&mut self, state: Packed, faults: u8) -> bool {
        if self.count * 8 >= self.slots.len() * 7 {
            self.grow();
        }
        let entry = (state << 1 | 1) << FAULTS | Packed::from(faults);
        let slot = self.slot(entry);
        let known = self.slots[slot];
        if known == 0 {
            self.count += 1;
        } else if known >= entry {
            return false;
        }
        self.slots[slot] = entry;
        true
    }

    fn faults(&self, state: Packed) -> u8 {
        (self.slots[self.slot((state << 1 | 1) << FAULTS)] & ((1 << FAULTS) - 1)) as u8
    }

    /// Where an entry of a state is, or belongs.
    fn slot(&self, entry: Packed) -> usize {
        let state = entry >> FAULTS;
        let mask = self.slots.len() - 1;
        let mut slot = super::quick::hash(state) as usize & mask;
        while self.slots[slot] != 0 && self.slots[slot] >> FAULTS != state {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![0; (old.len() * 2).max(1 << 16)];
        for entry in old.into_iter().filter(|entry| *entry != 0) {
            let slot = self.slot(entry);
            self.slots[slot] = entry;
        }
    }
}

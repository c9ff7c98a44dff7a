//! The protocol of claims and blocks, exhausted: every order of the requests of ADD, DEL and the collector, with every
//! fault at each of them.
//!
//! Three nodes with a pod each, two addresses, and a budget of faults. What a call decides and what becomes of a record
//! is computed by the program's own functions (`claim::decide`, `claim::take_over`, `claim::standing`, the edits of
//! `driver::edit` on Calico's block, its handle); what is modelled is the order of requests, of which docs/design.md
//! tells, the kubelets, and the cluster.
//!
//! Left out: claiming and giving back of blocks (there is one, of the first node, from which the others borrow),
//! addresses taken ahead, and several families. A node that was lost does not come back.
//!
//! The search is our own and not a model checker's of the shelf: crate stateright (0.31) asks serde for `rc`, which
//! the program does not, so everything that uses serde would be compiled a second time for the tests.
#![allow(clippy::unwrap_used)]

#[path = "model/calls.rs"]
mod calls;
#[path = "model/check.rs"]
mod check;
#[path = "model/collector.rs"]
mod collector;
#[path = "model/quick.rs"]
mod quick;
#[path = "model/records.rs"]
mod records;
#[path = "model/state.rs"]
mod state;

use std::collections::hash_map::Entry;
use std::time::Instant;

use quick::Map;
use records::Records;
use state::{Action, CONTAINERS, Call, Node, PODS, Pod, Repair, Sandbox, State};

/// What was seen: a state's number, and for each number how it came about.
#[derive(Default)]
struct Seen {
    numbers: Map<State, u32>,
    states: Vec<State>,
    came: Vec<(u32, Option<Action>)>,
}

impl Seen {
    fn add(&mut self, state: State, from: u32, by: Option<Action>) {
        let number = u32::try_from(self.states.len()).unwrap();
        if let Entry::Vacant(place) = self.numbers.entry(state) {
            place.insert(number);
            self.states.push(state);
            self.came.push((from, by));
        }
    }

    /// How a state came about, from the beginning.
    fn story(&self, mut number: u32) -> String {
        let mut steps = Vec::new();
        while let (from, Some(action)) = self.came[number as usize] {
            steps.push(format!("{action:?}"));
            number = from;
        }
        steps.reverse();
        steps.join("\n  ")
    }
}

fn beginning(records: &Records, pods: [Pod; PODS], faults: u8) -> State {
    State {
        faults,
        block: records.empty_block(),
        claim: 0,
        reserved: false,
        handles: [None; CONTAINERS],
        noted: [false; CONTAINERS],
        owner_exists: true,
        pods,
        nodes: [Node { ready: true, runs: true }; PODS],
        sandboxes: [Sandbox::Unborn; CONTAINERS],
        calls: [Call::IDLE; CONTAINERS],
        repair: Repair::Nothing,
    }
}

/// Visits every state that can come about. Panics with the shortest way to the first one that is wrong.
fn exhaust(name: &str, records: &Records, first: State) -> usize {
    let begun = Instant::now();
    let (mut seen, mut transitions, mut rests) = (Seen::default(), 0usize, 0usize);
    seen.add(first, 0, None);
    let mut actions = Vec::new();
    let mut number = 0;
    while let Some(state) = seen.states.get(number as usize).copied() {
        let mut checked = check::invariants(records, &state);
        if checked.is_ok() && state.is_idle() {
            rests += 1;
            checked = check::nothing_stays(records, &state);
        }
        if let Err(wrong) = checked {
            panic!("{name}: {wrong}\n{state:#?}\nafter\n  {}", seen.story(number));
        }
        actions.clear();
        check::actions(records, &state, &mut actions);
        for action in &actions {
            transitions += 1;
            seen.add(check::apply(records, &state, *action), number, Some(*action));
        }
        number += 1;
    }
    let (blocks, claims) = records.versions();
    println!(
        "{name}: {} states, {transitions} transitions, {rests} of the states without a call; {blocks} versions of the \
         block and {claims} of the claim; {:.1} s",
        seen.states.len(),
        begun.elapsed().as_secs_f64(),
    );
    seen.states.len()
}

const ALIVE: Pod = Pod::Alive;
const ABSENT: Pod = Pod::Gone { long: true };

/// Two pods of one owner, of which the second takes over from the first.
#[test]
fn two_pods_of_one_owner() {
    let records = Records::new([Some(0), Some(0), None]);
    let faults = std::env::var("FAULTS").map_or(1, |text| text.parse().unwrap());
    exhaust("successor", &records, beginning(&records, [ALIVE, ALIVE, ABSENT], faults));
}

//! The protocol of claims and blocks, exhausted: every order of the requests of ADD, DEL and the collector, with every
//! fault at each of them.
//!
//! Three nodes with a pod each, two addresses, and a budget of faults. What a call decides and what becomes of a record
//! is computed by the program's own functions (`claim::decide`, `claim::take_over`, `claim::standing`, the edits of
//! `driver::edit` on Calico's block, its handle); what is modelled is the order of requests, of which docs/design.md
//! tells, the kubelets, and the cluster. A loop of reads and compare-and-swaps on one object is one request, as only its
//! last round has an effect; so conflicts need no step of their own.
//!
//! Faults: a caller dies before or after a request, a request fails with or without effect (a lost reply, a time-out, 429,
//! 500), a pod is deleted by force, a sandbox dies, a node dies or is cut off, a call stands still for longer than every
//! lease. At every moment I1, I2 and I3 hold; from every moment without a call all pods are let go, and nothing stays.
//!
//! All of it at once (three pods, three faults) is more than a test can visit. Each test below says what it exhausts:
//! fewer faults with more pods, or the reverse. Never more than two calls are under way beside a repair of the collector.
//! Left out: claiming and giving back of blocks (there is one, of the first node, from which the others borrow),
//! addresses taken ahead, several families, and nodes that come back.
//!
//! The search is our own: crate stateright (0.31) asks serde for its feature `rc`, which nothing here needs, so
//! everything that uses serde would be compiled a second time for the tests.
#![allow(clippy::unwrap_used)]

#[path = "model/calls.rs"]
mod calls;
#[path = "model/check.rs"]
mod check;
#[path = "model/claims.rs"]
mod claims;
#[path = "model/collector.rs"]
mod collector;
#[path = "model/quick.rs"]
mod quick;
#[path = "model/records.rs"]
mod records;
#[path = "model/state.rs"]
mod state;

use std::collections::VecDeque;
use std::time::Instant;

use quick::Fingerprints;
use records::Records;
use state::{Action, CONTAINERS, Call, Node, PODS, Pod, Repair, SANDBOXES, Sandbox, State};

/// What was seen, and for each state, in the order of their numbers, how it came about.
#[derive(Default)]
struct Seen {
    known: Fingerprints,
    came: Vec<(u32, Option<Action>)>,
    /// States that are still to be visited, in the order of their numbers.
    next: VecDeque<State>,
}

impl Seen {
    fn add(&mut self, state: State, from: u32, by: Option<Action>) {
        if self.known.add(&state) {
            self.next.push_back(state);
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

/// Visits every state that can come about; an error is the shortest way to the first one that is wrong.
fn exhaust(name: &str, records: &Records, first: State) -> Result<(), String> {
    let begun = Instant::now();
    let (mut seen, mut transitions, mut rests) = (Seen::default(), 0usize, 0usize);
    seen.add(first, 0, None);
    let mut actions = Vec::new();
    let mut number = 0u32;
    while let Some(state) = seen.next.pop_front() {
        let mut checked = check::invariants(records, &state);
        if checked.is_ok() && state.is_idle() {
            rests += 1;
            checked = check::nothing_stays(records, &state);
        }
        if let Err(wrong) = checked {
            return Err(format!("{name}: {wrong}\nin {state:?}\nafter\n  {}", seen.story(number)));
        }
        actions.clear();
        check::actions(records, &state, &mut actions);
        for action in &actions {
            transitions += 1;
            seen.add(check::apply(records, &state, *action), number, Some(*action));
        }
        number += 1;
        if number.is_multiple_of(10_000_000) {
            let (waiting, spent) = (seen.next.len(), begun.elapsed().as_secs());
            println!("{name}: {number} states visited, {waiting} more known, {spent} s");
        }
    }
    let (blocks, claims) = records.versions();
    println!(
        "{name}: {} states, {transitions} transitions, {rests} of the states without a call; {blocks} versions of the \
         block and {claims} of the claim; {:.1} s",
        seen.came.len(),
        begun.elapsed().as_secs_f64(),
    );
    Ok(())
}

const ALIVE: Pod = Pod::Alive;
const ABSENT: Pod = Pod::Gone { long: true };

/// What pods there are, by owner of the fixed address, how many sandboxes each may have, and how much goes wrong.
fn model(name: &str, records: &Records, sandboxes: [usize; PODS], faults: u8) -> Result<(), String> {
    let mut first = beginning(records, sandboxes.map(|n| if n == 0 { ABSENT } else { ALIVE }), faults);
    for container in Records::containers().map(usize::from) {
        if container % SANDBOXES >= sandboxes[container / SANDBOXES] {
            first.sandboxes[container] = Sandbox::Deleted;
        }
    }
    exhaust(name, records, first)
}

/// A model of the protocol as it is.
fn holds(name: &str, owners: [Option<u8>; PODS], sandboxes: [usize; PODS], faults: u8) {
    if let Err(wrong) = model(name, &Records::new(owners), sandboxes, faults) {
        panic!("{wrong}");
    }
}

const SUCCESSORS: [Option<u8>; PODS] = [Some(0), Some(0), None];
const RIVALS: [Option<u8>; PODS] = [Some(0), Some(1), None];

#[test]
fn three_pods_of_two_owners_come_and_go() {
    holds("three pods, no fault", SUCCESSORS, [1, 1, 1], 0);
}

#[test]
fn a_pod_takes_over_from_another_whatever_goes_wrong_once() {
    holds("a pod and its successor, 1 fault", SUCCESSORS, [1, 1, 0], 1);
}

#[test]
#[ignore = "takes a minute"]
fn a_pod_takes_over_from_another_whatever_two_things_go_wrong() {
    holds("a pod and its successor, 2 faults", SUCCESSORS, [1, 1, 0], 2);
}

#[test]
fn two_owners_want_the_same_address_whatever_goes_wrong_once() {
    holds("two owners, 1 fault", RIVALS, [1, 1, 0], 1);
}

#[test]
#[ignore = "takes a minute"]
fn two_owners_want_the_same_address_whatever_two_things_go_wrong() {
    holds("two owners, 2 faults", RIVALS, [1, 1, 0], 2);
}

#[test]
fn a_pod_has_two_sandboxes_whatever_three_things_go_wrong() {
    holds("a pod with two sandboxes, 3 faults", SUCCESSORS, [2, 0, 0], 3);
}

#[test]
fn a_pod_has_two_sandboxes_beside_its_successor_whatever_goes_wrong_once() {
    holds("two sandboxes and a successor, 1 fault", SUCCESSORS, [2, 1, 0], 1);
}

#[test]
fn a_fixed_and_a_random_pod_whatever_goes_wrong_once() {
    holds("a fixed and a random pod, 1 fault", [Some(0), None, None], [1, 1, 0], 1);
}

#[test]
#[ignore = "takes very long: make model"]
fn three_pods_whatever_three_things_go_wrong() {
    holds("three pods, 3 faults", SUCCESSORS, [1, 1, 1], 3);
}

#[test]
#[ignore = "takes minutes: make model"]
fn three_pods_whatever_two_things_go_wrong() {
    holds("three pods, 2 faults", SUCCESSORS, [1, 1, 1], 2);
}

#[test]
#[ignore = "takes a minute"]
fn three_pods_whatever_goes_wrong_once() {
    holds("three pods, 1 fault", SUCCESSORS, [1, 1, 1], 1);
}

/// That the model can fail: so it did before an ADD read the block anew for its look at the holder.
#[test]
fn the_model_finds_that_an_entry_read_before_the_claim_proves_nothing() {
    let records = Records { looks_once: true, ..Records::new(SUCCESSORS) };
    let found = model("a single look at the block", &records, [1, 1, 0], 2).unwrap_err();
    assert!(found.contains("I1") || found.contains("I2"), "{found}");
}

/// So it would if an ADD answered for a claim that the collector has contested.
#[test]
fn the_model_finds_that_an_add_must_not_answer_for_a_contested_claim() {
    let records = Records { answers_contested: true, ..Records::new(SUCCESSORS) };
    let found = model("an answer for a contested claim", &records, [1, 0, 0], 3).unwrap_err();
    assert!(found.contains("I2"), "{found}");
}

/// And before an ADD looked at the time that had passed since it took the claim.
#[test]
fn the_model_finds_that_an_add_must_not_answer_after_its_time() {
    let records = Records { answers_late: true, ..Records::new(SUCCESSORS) };
    let found = model("an answer after its time", &records, [1, 1, 0], 2).unwrap_err();
    assert!(found.contains("I1") || found.contains("I2"), "{found}");
}

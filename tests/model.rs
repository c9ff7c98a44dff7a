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
//! The calls of all pods may be under way at once, beside one repair of the collector. Left out: claiming and giving back
//! of blocks (there is one, of the first node, from which the others borrow), addresses taken ahead, several families,
//! owners that are deleted, and nodes that come back.
//!
//! The search leaves out what makes no difference, or three pods with three faults would have some thousand million
//! states. A state is visited with as many faults left as can be, and not again with fewer (`search`). Pods that are
//! alike change their names (`packed`). What no later step reads is forgotten, and steps that nobody can notice are taken
//! at once (`settle`). `compare` holds it against a search that does nothing of this: both see the same.
//!
//! Three pods are 11,251 states without a fault, 742,487 with one, 10,195,134 with two (40 s and 0.6 GiB in an optimized
//! build) and 68,594,340 with three (406 s of one core and 4.6 GiB).
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
#[path = "model/compare.rs"]
mod compare;
#[path = "model/packed.rs"]
mod packed;
#[path = "model/quick.rs"]
mod quick;
#[path = "model/records.rs"]
mod records;
#[path = "model/search.rs"]
mod search;
#[path = "model/settle.rs"]
mod settle;
#[path = "model/state.rs"]
mod state;
#[path = "model/twins.rs"]
mod twins;

use std::time::Instant;

use compare::compare;
use records::Records;
use search::{Search, Visited};
use state::{CONTAINERS, Call, Node, PODS, Pod, Repair, SANDBOXES, Sandbox, State};

fn beginning(records: &Records, pods: [Pod; PODS], faults: u8) -> State {
    State {
        faults,
        block: records.empty_block(),
        claim: 0,
        reserved: false,
        handles: [None; CONTAINERS],
        noted: [false; CONTAINERS],
        pods,
        nodes: [Node { ready: true, runs: true }; PODS],
        sandboxes: [Sandbox::Unborn; CONTAINERS],
        calls: [Call::IDLE; CONTAINERS],
        repair: Repair::Nothing,
    }
}

const ALIVE: Pod = Pod::Alive;
const ABSENT: Pod = Pod::Gone { long: true };

/// What pods there are, by owner of the fixed address, how many sandboxes each may have, and how much goes wrong.
struct Model<'a> {
    name: &'a str,
    records: &'a Records,
    sandboxes: [usize; PODS],
    faults: u8,
}

impl Model<'_> {
    fn first(&self) -> State {
        let pods = self.sandboxes.map(|n| if n == 0 { ABSENT } else { ALIVE });
        let mut first = beginning(self.records, pods, self.faults);
        for container in Records::containers().map(usize::from) {
            if container % SANDBOXES >= self.sandboxes[container / SANDBOXES] {
                first.sandboxes[container] = Sandbox::Deleted;
            }
        }
        first
    }

    /// Two pods that are alike, if there are: whatever may happen to one may happen to the other. So are pods of two
    /// owners, if nobody else is of either.
    fn twins(&self) -> Option<(u8, u8)> {
        let owners = self.records.owners;
        let alike = |one: usize, other: usize| {
            let (ones, others) = (owners[one], owners[other]);
            let third = owners[PODS - one - other];
            let by_owner = ones == others || ones.is_some() && others.is_some() && third != ones && third != others;
            by_owner && self.sandboxes[one] > 0 && self.sandboxes[one] == self.sandboxes[other]
        };
        let twins = [(0, 1), (1, 2), (0, 2)].into_iter().find(|(one, other)| alike(*one, *other));
        twins.map(|(one, other)| (one as u8, other as u8))
    }

    /// Visits every state that can come about; an error is a way to one that is wrong.
    fn exhaust(&self) -> Result<(), String> {
        let begun = Instant::now();
        let twins = self.twins().filter(|_| self.records.reduces);
        let visited = Search::new(self.name, self.records, twins, self.first()).run(|_| ())?;
        let Visited { states, transitions, rests } = visited;
        let (blocks, claims) = self.records.versions();
        println!(
            "{}: {states} states, {transitions} transitions, {rests} of the states without a call; {blocks} versions \
             of the block and {claims} of the claim; {:.1} s",
            self.name,
            begun.elapsed().as_secs_f64(),
        );
        Ok(())
    }
}

/// A model of the protocol as it is.
fn holds(name: &str, owners: [Option<u8>; PODS], sandboxes: [usize; PODS], faults: u8) {
    if let Err(wrong) = (Model { name, records: &Records::new(owners), sandboxes, faults }).exhaust() {
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
#[ignore = "takes a minute"]
fn three_pods_whatever_goes_wrong_once() {
    holds("three pods, 1 fault", SUCCESSORS, [1, 1, 1], 1);
}

#[test]
#[ignore = "takes minutes: make model"]
fn three_pods_whatever_two_things_go_wrong() {
    holds("three pods, 2 faults", SUCCESSORS, [1, 1, 1], 2);
}

#[test]
#[ignore = "takes minutes: make model"]
fn three_pods_whatever_three_things_go_wrong() {
    holds("three pods, 3 faults", SUCCESSORS, [1, 1, 1], 3);
}

#[test]
fn a_search_that_leaves_out_what_makes_no_difference_sees_the_same() {
    compare(&mut Records::new(SUCCESSORS), [1, 1, 0], 1);
    compare(&mut Records::new(SUCCESSORS), [2, 0, 0], 2);
}

#[test]
#[ignore = "takes minutes: make model"]
fn a_search_that_leaves_out_what_makes_no_difference_sees_the_same_of_larger_models() {
    compare(&mut Records::new(SUCCESSORS), [1, 1, 1], 0);
    compare(&mut Records::new(SUCCESSORS), [1, 1, 0], 2);
    compare(&mut Records::new(SUCCESSORS), [2, 1, 0], 1);
    compare(&mut Records::new(RIVALS), [1, 1, 0], 2);
    compare(&mut Records::new([Some(0), None, None]), [1, 1, 0], 2);
    compare(&mut Records::new([None, None, None]), [1, 1, 1], 1);
}

/// That the model can fail.
fn finds(name: &str, records: &Records, sandboxes: [usize; PODS], faults: u8) {
    let found = Model { name, records, sandboxes, faults }.exhaust().unwrap_err();
    assert!(["I1:", "I2:", "I3:"].iter().any(|invariant| found.contains(invariant)), "{found}");
}

fn a_single_look(reduces: bool) {
    let records = Records { looks_once: true, reduces, ..Records::new(SUCCESSORS) };
    finds("a single look at the block", &records, [1, 1, 0], 2);
}

fn an_answer_for_a_contested_claim(reduces: bool) {
    let records = Records { answers_contested: true, reduces, ..Records::new(SUCCESSORS) };
    finds("an answer for a contested claim", &records, [1, 0, 0], 3);
}

fn an_answer_after_its_time(reduces: bool) {
    let records = Records { answers_late: true, reduces, ..Records::new(SUCCESSORS) };
    finds("an answer after its time", &records, [1, 1, 0], 2);
}

/// So it did before an ADD read the block anew for its look at the holder.
#[test]
fn the_model_finds_that_an_entry_read_before_the_claim_proves_nothing() {
    a_single_look(true);
}

/// So it would if an ADD answered for a claim that the collector has contested.
#[test]
fn the_model_finds_that_an_add_must_not_answer_for_a_contested_claim() {
    an_answer_for_a_contested_claim(true);
}

/// And before an ADD looked at the time that had passed since it took the claim.
#[test]
fn the_model_finds_that_an_add_must_not_answer_after_its_time() {
    an_answer_after_its_time(true);
}

#[test]
#[ignore = "takes minutes: make model"]
fn a_search_that_leaves_out_nothing_finds_the_same() {
    a_single_look(false);
    an_answer_for_a_contested_claim(false);
    an_answer_after_its_time(false);
}

//! Whether the calls to the ledger can be put in an order, each somewhere between its beginning and its end,
//! in which they are the calls of one register with compare-and-swap for each address (Wing and Gong's search).
//!
//! A call whose outcome nobody heard may have taken effect at any time since it began, or never.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

/// What a finished call did or saw; the register's value is told by its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read(Option<i64>),
    Swap { expected: Option<i64>, sets: bool, did: Did },
}

/// What came of a compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// It won; the revision that it made, 0 for a deletion.
    Write(i64),
    /// It lost to what stands there.
    Lose(Option<i64>),
    Unknown,
}

/// A call with its interval, in the order of the events of the run.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    begin: u64,
    /// `None`: nobody heard an answer.
    end: Option<u64>,
    operation: Operation,
}

/// All calls of a run, by address.
#[derive(Default)]
pub struct History {
    tick: u64,
    calls: BTreeMap<IpAddr, Vec<Call>>,
}

/// The register: absent, or at a revision, which is not known yet if only a silent call can have written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Register {
    Absent,
    At(i64),
    Untold,
}

// === impl History ===

impl History {
    pub fn begin(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    pub fn end(&mut self, address: IpAddr, begin: u64, operation: Operation) {
        let end = Some(self.begin());
        self.calls.entry(address).or_default().push(Call { begin, end, operation });
    }

    /// Recorded from its beginning: a caller that dies leaves a call without an end.
    pub fn begin_swap(&mut self, address: IpAddr, expected: Option<i64>, sets: bool) -> (IpAddr, usize) {
        let begin = self.begin();
        let calls = self.calls.entry(address).or_default();
        calls.push(Call { begin, end: None, operation: Operation::Swap { expected, sets, did: Did::Unknown } });
        (address, calls.len() - 1)
    }

    pub fn end_swap(&mut self, (address, index): (IpAddr, usize), outcome: Did) {
        let end = self.begin();
        let Some(call) = self.calls.get_mut(&address).and_then(|calls| calls.get_mut(index)) else { return };
        if let Operation::Swap { did, .. } = &mut call.operation {
            *did = outcome;
        }
        call.end = (outcome != Did::Unknown).then_some(end);
    }

    pub fn len(&self) -> usize {
        self.calls.values().map(Vec::len).sum()
    }

    /// The address whose calls no order explains.
    pub fn fault(&self) -> Option<(IpAddr, String)> {
        let broken = self.calls.iter().find(|(_, calls)| !linearizable(calls));
        broken.map(|(address, calls)| (*address, format!("no order explains these {} calls: {calls:?}", calls.len())))
    }
}

/// Whether some order explains the calls to one register that begins absent.
pub fn linearizable(calls: &[Call]) -> bool {
    let mut seen = HashSet::new();
    let mut open = vec![(vec![false; calls.len()], Register::Absent)];
    while let Some((mut placed, register)) = open.pop() {
        place_what_changes_nothing(calls, &mut placed, register);
        if calls.iter().zip(&placed).all(|(call, placed)| *placed || call.end.is_none()) {
            return true;
        }
        if !seen.insert((placed.clone(), register)) {
            continue;
        }
        for next in candidates(calls, &placed) {
            if let Some(after) = step(calls[next].operation, register) {
                let mut placed = placed.clone();
                placed[next] = true;
                open.push((placed, after));
            }
        }
    }
    false
}

/// The calls that may come next: those that began before any call that is not placed has ended.
fn candidates(calls: &[Call], placed: &[bool]) -> Vec<usize> {
    let waiting = || calls.iter().enumerate().filter(|(index, _)| !placed[*index]);
    let first_end = waiting().filter_map(|(_, call)| call.end).min().unwrap_or(u64::MAX);
    waiting().filter(|(_, call)| call.begin < first_end).map(|(index, _)| index).collect()
}

/// A call that sees the register as it is can always come at once.
fn place_what_changes_nothing(calls: &[Call], placed: &mut [bool], register: Register) {
    if register == Register::Untold {
        return;
    }
    loop {
        let now = candidates(calls, placed).into_iter().filter(|index| {
            let heard = calls[*index].end.is_some();
            heard && !wins(calls[*index].operation) && step(calls[*index].operation, register) == Some(register)
        });
        let now: Vec<usize> = now.collect();
        if now.is_empty() {
            return;
        }
        now.into_iter().for_each(|index| placed[index] = true);
    }
}

fn wins(operation: Operation) -> bool {
    matches!(operation, Operation::Swap { did: Did::Write(_), .. })
}

/// The register after a call; `None` if the call cannot come now.
fn step(operation: Operation, register: Register) -> Option<Register> {
    let seen = |revision: Option<i64>| match (register, revision) {
        (Register::Absent, None) => Some(register),
        (Register::At(now), Some(seen)) if now == seen => Some(register),
        (Register::Untold, Some(seen)) => Some(Register::At(seen)),
        _ => None,
    };
    match operation {
        Operation::Read(revision) => seen(revision),
        Operation::Swap { expected, did: Did::Lose(standing), .. } => {
            if standing == expected {
                None
            } else {
                seen(standing)
            }
        }
        Operation::Swap { expected, sets, did: Did::Write(made) } => {
            seen(expected)?;
            Some(if sets { Register::At(made) } else { Register::Absent })
        }
        Operation::Swap { expected, sets, did: Did::Unknown } => {
            seen(expected)?;
            Some(if sets { Register::Untold } else { Register::Absent })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(begin: u64, end: u64, operation: Operation) -> Call {
        Call { begin, end: (end > 0).then_some(end), operation }
    }

    fn swap(expected: Option<i64>, did: Did) -> Operation {
        Operation::Swap { expected, sets: true, did }
    }

    #[test]
    fn calls_one_after_the_other_are_explained() {
        let calls = [
            call(1, 2, Operation::Read(None)),
            call(3, 4, swap(None, Did::Write(1))),
            call(5, 6, Operation::Read(Some(1))),
            call(7, 8, swap(None, Did::Lose(Some(1)))),
        ];
        assert!(linearizable(&calls));
    }

    #[test]
    fn a_read_of_what_was_overwritten_before_it_began_is_not_explained() {
        let calls = [
            call(1, 2, swap(None, Did::Write(1))),
            call(3, 4, swap(Some(1), Did::Write(2))),
            call(5, 6, Operation::Read(Some(1))),
        ];
        assert!(!linearizable(&calls));
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        for seen in [Some(1), Some(2)] {
            let calls = [
                call(1, 2, swap(None, Did::Write(1))),
                call(3, 6, swap(Some(1), Did::Write(2))),
                call(4, 5, Operation::Read(seen)),
            ];
            assert!(linearizable(&calls));
        }
    }

    #[test]
    fn two_winners_on_one_revision_are_not_explained() {
        let calls = [call(1, 4, swap(None, Did::Write(1))), call(2, 3, swap(None, Did::Write(2)))];
        assert!(!linearizable(&calls));
    }

    #[test]
    fn a_call_without_an_answer_may_take_effect_late_or_never() {
        let silent = call(1, 0, swap(None, Did::Unknown));
        let never = [silent, call(2, 3, Operation::Read(None)), call(4, 5, Operation::Read(None))];
        assert!(linearizable(&never));
        let late = [silent, call(2, 3, Operation::Read(None)), call(4, 5, Operation::Read(Some(7)))];
        assert!(linearizable(&late));
        let back = [silent, call(2, 3, Operation::Read(Some(7))), call(4, 5, Operation::Read(None))];
        assert!(!linearizable(&back));
    }
}

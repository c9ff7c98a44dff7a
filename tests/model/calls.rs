//! ADD and DEL, one request at a time, in the order of docs/design.md. A loop of reads and compare-and-swaps on one
//! object is one request here: only its last round has an effect, and that decides on what it has just read.

use super::claims::{Facts, Verdict};
use super::records::{Records, Written};
use super::state::{At, Call, FIXED, Fault, Found, Id, Sandbox, State};

/// Carries out a call's next request.
pub fn step(records: &Records, state: &State, container: u8, fault: Fault) -> State {
    let mut next = *state;
    let call = state.calls[usize::from(container)];
    match fault {
        Fault::None => request(records, &mut next, container),
        Fault::DieBefore => end(&mut next, container, Sandbox::Left),
        Fault::DieAfter => {
            request(records, &mut next, container);
            end(&mut next, container, Sandbox::Left);
        }
        Fault::FailBefore => failed(&mut next, container, call),
        Fault::FailAfter => {
            request(records, &mut next, container);
            failed(&mut next, container, call);
        }
    }
    next
}

/// An ADD that has waited for long enough gives up.
pub fn give_up(state: &State, container: u8) -> State {
    let mut next = *state;
    undo(&mut next, container, state.calls[usize::from(container)]);
    next
}

/// The request was answered by an error; `call` is as it was before.
fn failed(state: &mut State, container: u8, call: Call) {
    if state.sandboxes[usize::from(container)] != Sandbox::Deleting {
        // Whatever was written, nothing was answered.
        state.sandboxes[usize::from(container)] = Sandbox::Adding;
    }
    match call.at {
        // What stands there now decides.
        At::SwapClaim => set(state, container, Call { at: At::ReadAfterNoAnswer, ..call }),
        // What cannot be taken back is left; the claim is tried all the same.
        At::UndoBlock | At::UndoHolder | At::UndoHandle => undo_claim(state, container, call),
        At::UndoClaim => after_claim_undone(state, container, call),
        _ if dies_by_failure(&call) => end(state, container, Sandbox::Left),
        _ => undo(state, container, call),
    }
}

fn is_undoing(at: At) -> bool {
    matches!(at, At::ReadForReservation | At::Unreserve)
}

/// Whether a failure ends the call as its death does.
pub fn dies_by_failure(call: &Call) -> bool {
    !call.is_add() || is_undoing(call.at)
}

fn set(state: &mut State, container: u8, call: Call) {
    state.calls[usize::from(container)] = call;
}

fn end(state: &mut State, container: u8, sandbox: Sandbox) {
    set(state, container, Call::IDLE);
    state.sandboxes[usize::from(container)] = sandbox;
    if sandbox == Sandbox::Deleted {
        state.noted[usize::from(container)] = false;
    }
}

fn request(records: &Records, state: &mut State, container: u8) {
    let call = state.calls[usize::from(container)];
    match call.at {
        At::Idle => unreachable!(),
        At::Cluster => read_cluster(records, state, container, call),
        At::ReadClaim | At::Wait => {
            let entry = if call.at == At::Wait { fixed_entry(records, state) } else { call.entry };
            judge(records, state, container, Call { claim: state.claim, found: None, entry, ..call });
        }
        At::SwapClaim => swap_claim(records, state, container, call),
        At::ReadAfterNoAnswer if state.claim == call.next && !call.contests => took(records, state, container, call),
        At::ReadAfterNoAnswer => judge(records, state, container, Call { claim: state.claim, found: None, ..call }),
        At::Examine => {
            // The holder of the claim that was read, which need not be the one that stands.
            let holder = records.holder(call.claim).unwrap();
            let found = Found { pod: state.pods[State::pod_of(holder)], node: state.node_of(holder) };
            let entry = if records.looks_once { call.entry } else { fixed_entry(records, state) };
            judge(records, state, container, Call { found: Some(found), entry, ..call });
        }
        At::ExamineOwner => {
            let verdict = records.take_over(call.claim, container);
            obey(records, state, container, call, verdict);
        }
        At::Reserve => {
            state.reserved = true;
            set(state, container, Call { at: At::MakeHandle, ..call });
        }
        At::MakeHandle => {
            state.handles[usize::from(container)] = Some(1);
            set(state, container, Call { at: At::WriteBlock, handle: true, ..call });
        }
        At::WriteBlock => write_block(records, state, container, call),
        At::CountOff => {
            let of = usize::from(call.displaced.unwrap());
            state.handles[of] = records.count_off(state.handles[of]);
            set(state, container, Call { at: At::LastLook, displaced: None, ..call });
        }
        // A claim of this call's that was taken too long ago is not answered, nor one that is contested.
        At::LastLook => {
            let late = call.paused && call.first.is_some() && !records.answers_late;
            let holds =
                |facts: Facts| facts.holder == Some(container) && (!facts.contested || records.answers_contested);
            let holds = records.facts(state.claim).is_some_and(holds);
            if holds && !late { answer(state, container, call) } else { undo(state, container, call) }
        }
        At::UndoBlock if state.handles[usize::from(container)].is_none() => undo_claim(state, container, call),
        At::UndoBlock | At::FreeBlock => {
            let (block, address) = records.release(state.block, container);
            state.block = block;
            let at = if call.at == At::UndoBlock { At::UndoHolder } else { At::ClearHolder };
            set(state, container, Call { at, address, ..call });
        }
        At::UndoHolder | At::ClearHolder => {
            // Without anything in the block the ledger is searched for the container.
            if call.address.is_none_or(|address| address == FIXED) {
                clear_holder(records, state, container);
            }
            let at = if call.at == At::UndoHolder { At::UndoHandle } else { At::DropHandle };
            set(state, container, Call { at, address: None, ..call });
        }
        At::UndoHandle => {
            state.handles[usize::from(container)] = None;
            undo_claim(state, container, call);
        }
        At::UndoClaim => {
            if call.first == Some(true) {
                drop_claim(records, state, container)
            } else {
                clear_holder(records, state, container)
            }
            after_claim_undone(state, container, call);
        }
        At::ReadForReservation if state.claim == 0 => set(state, container, Call { at: At::Unreserve, ..call }),
        At::ReadForReservation => finish(state, container),
        At::Unreserve => {
            state.reserved = false;
            finish(state, container);
        }
        At::ReadHandle => match (state.handles[usize::from(container)], state.noted[usize::from(container)]) {
            (Some(_), _) => set(state, container, Call::at(At::FreeBlock)),
            (None, true) => set(state, container, Call::at(At::GiveUpClaim)),
            (None, false) => end(state, container, Sandbox::Deleted),
        },
        At::DropHandle => {
            state.handles[usize::from(container)] = None;
            end(state, container, Sandbox::Deleted);
        }
        At::GiveUpClaim => give_up_claim(records, state, container),
    }
}

// === ADD ===

fn fixed_entry(records: &Records, state: &State) -> Option<u8> {
    records.entries(state.block)[usize::from(FIXED)].map(|(container, _)| container)
}

/// Pod, reservations and block. The claim is read after the block, which then may be the older of the two.
fn read_cluster(records: &Records, state: &mut State, container: u8, call: Call) {
    // To have stood still before makes no difference.
    let read = Call { reserved: state.reserved, paused: false, ..call };
    if !state.exists(State::pod_of(container)) {
        return end(state, container, Sandbox::Ended);
    }
    if records.owner_of(container).is_some() {
        return set(state, container, Call { at: At::ReadClaim, entry: fixed_entry(records, state), ..read });
    }
    match records.assign(state.block, container, state.reserved, None).1 {
        Written::Address(..) => set(state, container, Call { at: At::MakeHandle, ..read }),
        _ => end(state, container, Sandbox::Ended),
    }
}

/// Decides about the claim as it was read, by what was found out about its holder so far.
fn judge(records: &Records, state: &mut State, container: u8, call: Call) {
    let in_block = call.entry.is_some() && call.entry == records.holder(call.claim);
    let verdict = records.decide(call.claim, container, call.found.map(|found| (found, in_block)));
    obey(records, state, container, call, verdict);
}

fn obey(records: &Records, state: &mut State, container: u8, call: Call, verdict: Verdict) {
    let go = |at| Call { at, ..call };
    let next = match verdict {
        Verdict::Take(next) => Call { next, contests: false, paused: false, ..go(At::SwapClaim) },
        Verdict::Contest(next) => Call { next, contests: true, ..go(At::SwapClaim) },
        Verdict::Examine => go(At::Examine),
        Verdict::ExamineOwner => go(At::ExamineOwner),
        Verdict::Wait => Call { claim: 0, found: None, entry: None, ..go(At::Wait) },
        Verdict::Refuse => return undo(state, container, call),
        // Ours, but by no write of this call that is known to have been the last.
        Verdict::Held => return proceed(records, state, container, call.claim, Call { first: None, ..call }),
    };
    let at = if matches!(verdict, Verdict::Take(_) | Verdict::Contest(_)) {
        next
    } else {
        Call { next: 0, contests: false, ..next }
    };
    // Before that write, so that DEL finds what an ADD leaves that is killed now.
    state.noted[usize::from(container)] = true;
    set(state, container, at);
}

fn swap_claim(records: &Records, state: &mut State, container: u8, call: Call) {
    if state.claim != call.claim {
        return judge(records, state, container, Call { claim: state.claim, found: None, ..call });
    }
    state.claim = call.next;
    if call.contests {
        judge(records, state, container, Call { claim: call.next, ..call });
    } else {
        took(records, state, container, call);
    }
}

fn took(records: &Records, state: &mut State, container: u8, call: Call) {
    proceed(records, state, container, call.next, Call { first: Some(call.claim == 0), ..call });
}

/// The claim is ours: the reservation is written unless it was seen, which is not believed of a first claim.
fn proceed(records: &Records, state: &mut State, container: u8, by: Id, call: Call) {
    let generation = records.facts(by).unwrap().generation as u8;
    let at = if call.first != Some(true) && call.reserved { At::MakeHandle } else { At::Reserve };
    set(state, container, Call { at, generation, first: call.first, paused: call.paused, ..Call::IDLE });
}

fn write_block(records: &Records, state: &mut State, container: u8, call: Call) {
    let generation = (call.generation > 0).then_some(u64::from(call.generation));
    let (block, written) = records.assign(state.block, container, call.reserved, generation);
    let Written::Address(address, displaced) = written else { return undo(state, container, call) };
    state.block = block;
    let call = Call { address: Some(address), displaced, generation: 0, ..call };
    match (displaced, generation) {
        (Some(_), _) => set(state, container, Call { at: At::CountOff, ..call }),
        (None, Some(_)) => set(state, container, Call { at: At::LastLook, ..call }),
        (None, None) => answer(state, container, call),
    }
}

fn answer(state: &mut State, container: u8, call: Call) {
    end(state, container, Sandbox::Given(call.address.unwrap()));
}

// === what a failed ADD takes back ===

fn undo(state: &mut State, container: u8, call: Call) {
    let (first, paused) = (call.first, call.paused);
    if call.handle {
        set(state, container, Call { at: At::UndoBlock, first, paused, ..Call::IDLE });
    } else {
        undo_claim(state, container, call);
    }
}

fn undo_claim(state: &mut State, container: u8, call: Call) {
    if call.first.is_none() {
        return end(state, container, Sandbox::Ended);
    }
    set(state, container, Call { at: At::UndoClaim, first: call.first, paused: call.paused, ..Call::IDLE });
}

fn after_claim_undone(state: &mut State, container: u8, call: Call) {
    match call.first {
        Some(true) => set(state, container, Call { at: At::ReadForReservation, paused: call.paused, ..Call::IDLE }),
        _ => end(state, container, Sandbox::Ended),
    }
}

fn finish(state: &mut State, container: u8) {
    let deleting = state.sandboxes[usize::from(container)] == Sandbox::Deleting;
    end(state, container, if deleting { Sandbox::Deleted } else { Sandbox::Ended });
}

fn clear_holder(records: &Records, state: &mut State, container: u8) {
    if records.holder(state.claim) == Some(container) {
        state.claim = records.released(state.claim);
    }
}

/// Of a claim that this container's ADD made, unless another has it by now.
fn drop_claim(records: &Records, state: &mut State, container: u8) {
    if let Some(facts) = records.facts(state.claim)
        && Some(facts.owner) == records.owner_of(container)
        && facts.holder.is_none_or(|holder| holder == container)
    {
        state.claim = 0;
    }
}

// === DEL ===

/// A claim that no handle leads to: of the first generation it goes with its reservation, else it loses its holder.
fn give_up_claim(records: &Records, state: &mut State, container: u8) {
    match records.facts(state.claim).filter(|facts| facts.holder == Some(container)) {
        Some(facts) if facts.generation == 1 => {
            drop_claim(records, state, container);
            set(state, container, Call::at(At::ReadForReservation));
        }
        Some(_) => {
            clear_holder(records, state, container);
            end(state, container, Sandbox::Deleted);
        }
        None => end(state, container, Sandbox::Deleted),
    }
}

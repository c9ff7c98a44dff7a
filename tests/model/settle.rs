//! What can make no difference any more is made equal, and what nobody can notice is done at once.
//!
//! [`settle`] is applied to every state. Its first part belongs to the model: what was read before somebody else's write
//! is outdated for ever, as every record has a revision. The rest only makes states fewer, and is left out of a plain
//! search: `compare` holds the two against each other.

use super::calls;
use super::records::{Entries, Records};
use super::state::{At, Call, FIXED, Fault, Node, PODS, Pod, Repair, SANDBOXES, Sandbox, State};

const READY: Node = Node { ready: true, runs: true };

/// Brings a state into its normal form.
pub fn settle(records: &Records, state: &mut State) {
    outdated(state);
    let recorded = Recorded { entries: records.entries(state.block), holder: records.holder(state.claim) };
    if records.reduces {
        for container in Records::containers() {
            if !is_absent(state, container) {
                while goes_on(records, &recorded, state, container) {}
                forget(records, &recorded, state, container);
            }
        }
    }
    (0..PODS).for_each(|pod| settle_pod(records, &recorded, state, pod));
}

/// A compare-and-swap whose record was written since it was read will fail. Of a claim that was not there this is not
/// known: it may be gone again.
fn outdated(state: &mut State) {
    for call in &mut state.calls {
        if call.at == At::SwapClaim && call.claim != 0 && call.claim != state.claim {
            *call = Call { at: At::ReadClaim, claim: 0, next: 0, contests: false, found: None, ..*call };
        }
    }
    state.repair = match state.repair {
        Repair::FreeHolders(claim, entry) if claim != state.claim => Repair::FreeHolders(0, entry),
        Repair::SettleClaim(0, _) => Repair::Nothing,
        Repair::SettleClaim(claim, _) | Repair::Contest(claim, _) if claim != state.claim => Repair::Nothing,
        other => other,
    };
}

/// Block and claim, which nothing here changes.
struct Recorded {
    entries: Entries,
    holder: Option<u8>,
}

impl Recorded {
    fn bears(&self, container: u8) -> bool {
        self.entries.iter().flatten().any(|(of, _)| *of == container)
    }

    fn holds(&self, container: u8) -> bool {
        self.holder == Some(container)
    }

    /// Whether the claim, as it is or as a call has read it, names a pod.
    fn holds_pod(&self, records: &Records, state: &State, pod: usize) -> bool {
        let is_of_pod = |holder: Option<u8>| holder.is_some_and(|container| State::pod_of(container) == pod);
        is_of_pod(self.holder) || state.calls.iter().any(|call| is_of_pod(records.holder(call.claim)))
    }

    /// Whether that or the block does.
    fn names_pod(&self, records: &Records, state: &State, pod: usize) -> bool {
        self.entries.iter().flatten().any(|(container, _)| State::pod_of(*container) == pod)
            || self.holds_pod(records, state, pod)
    }
}

fn is_absent(state: &State, container: u8) -> bool {
    let index = usize::from(container);
    state.sandboxes[index] == Sandbox::Deleted && !state.noted[index]
}

// === steps that nobody can notice ===

/// Takes a call's next step if nothing else that may happen can change what it does, and nothing that happens meanwhile
/// can tell whether it was taken: it may as well be taken at once. Whether it did. None of these steps leads back to
/// where the call was, so it stops. What may go wrong with such a step may go wrong with the one before it or after it.
fn goes_on(records: &Records, recorded: &Recorded, state: &mut State, container: u8) -> bool {
    let index = usize::from(container);
    let call = state.calls[index];
    let (holds, bears) = (recorded.holds(container), recorded.bears(container));
    let is_fixed = call.address.is_none_or(|address| address == FIXED);
    let handle_is_its_own = !call.paused && !is_repaired(state, container);
    let skip_to = match call.at {
        // A container gets no address and no claim again: where there is none, none is to be given back.
        At::FreeBlock if !bears => Some(At::ClearHolder),
        At::ClearHolder if !is_fixed || !holds => Some(At::DropHandle),
        At::UndoBlock if state.handles[index].is_some() && !bears => Some(At::UndoHolder),
        At::UndoHolder if !is_fixed || !holds => Some(At::UndoHandle),
        _ => None,
    };
    if let Some(at) = skip_to {
        state.calls[index] = Call { at, address: None, ..call };
        return true;
    }
    let pod = State::pod_of(container);
    let goes_on = match call.at {
        // The kubelet may as well have called a moment later. Where something may end its reason to call, which is the
        // deletion of the pod, or a late DEL of the sandbox before, it has called.
        At::Cluster => state.pods[pod] == Pod::Alive && is_first(state, container),
        At::ReadHandle => true,
        At::UndoBlock => state.handles[index].is_none() && !is_repaired(state, container),
        At::UndoClaim => call.first != Some(true) && !holds,
        At::GiveUpClaim => !holds,
        // Once nothing goes wrong any more nobody looks at the handle of a container that is at work, unless it stood
        // still before.
        At::MakeHandle => state.faults == 0,
        At::UndoHandle => state.faults == 0 && handle_is_its_own,
        // And nobody looks at a pod that no record leads to.
        At::DropHandle => state.faults == 0 && handle_is_its_own && !recorded.names_pod(records, state, pod),
        _ => false,
    };
    if goes_on {
        *state = calls::step(records, state, container, Fault::None);
    }
    goes_on
}

/// Whether nothing of an earlier sandbox of the pod is left, whose DEL may come late.
fn is_first(state: &State, container: u8) -> bool {
    let first = State::pod_of(container) * SANDBOXES;
    state.sandboxes[first..usize::from(container)].iter().all(|sandbox| *sandbox == Sandbox::Deleted)
}

/// Whether the collector is about to write something of a container's.
fn is_repaired(state: &State, container: u8) -> bool {
    match state.repair {
        Repair::Free(_, of) | Repair::CountOff(of) | Repair::Recount(of, ..) | Repair::Raise(of) => of == container,
        Repair::FreeHolders(_, of) | Repair::SettleClaim(_, of) => of == Some(container),
        _ => false,
    }
}

// === what is not needed any more ===

/// Forgets what no later step of a container's reads.
fn forget(records: &Records, recorded: &Recorded, state: &mut State, container: u8) {
    let index = usize::from(container);
    let (holds, bears) = (recorded.holds(container), recorded.bears(container));
    let mut call = state.calls[index];
    if call.at != At::Idle {
        // The claim is not as this call wrote it: it was not carried out, or is overwritten. To be read, either way.
        if call.at == At::ReadAfterNoAnswer && (call.contests || state.claim != call.next) {
            call = Call { at: At::ReadClaim, claim: 0, ..call };
        }
        forget_what_was_read(records, &mut call);
        if !minds_a_pause(&call, holds) && state.handles[index].is_none() && !bears {
            call.paused = false;
        }
        state.calls[index] = call;
    }
    // The note is for a DEL that finds no handle, to find the claim.
    state.noted[index] &= holds || call.at == At::SwapClaim;
    let is_over = matches!(state.sandboxes[index], Sandbox::Ended | Sandbox::Left);
    let has_left = holds || bears || state.handles[index].is_some() || is_repaired(state, container);
    // Its DEL has nothing to do. What may be to notice is that its pod ends by it.
    if is_over && !has_left && !ends_its_pod(records, recorded, state, container) {
        state.sandboxes[index] = Sandbox::Deleted;
    }
}

fn ends_its_pod(records: &Records, recorded: &Recorded, state: &State, container: u8) -> bool {
    let pod = State::pod_of(container);
    let others = (pod * SANDBOXES..(pod + 1) * SANDBOXES).filter(|other| *other != usize::from(container));
    state.pods[pod] == Pod::Terminating
        && others.into_iter().all(|other| state.sandboxes[other] == Sandbox::Deleted)
        && recorded.names_pod(records, state, pod)
}

fn forget_what_was_read(records: &Records, call: &mut Call) {
    if call.at != At::SwapClaim {
        call.contests = false;
    }
    if !matches!(call.at, At::SwapClaim | At::ReadAfterNoAnswer) {
        call.next = 0;
    }
    match call.at {
        At::SwapClaim | At::Examine | At::ExamineOwner => {}
        // Only whether it was a first claim, which needs a reservation whatever was seen.
        At::ReadAfterNoAnswer if call.claim != 0 => call.claim = call.next,
        At::ReadAfterNoAnswer => call.reserved = false,
        _ => call.claim = 0,
    }
    if !call.contests {
        call.found = None;
    }
    if !records.looks_once {
        let in_block = call.contests && call.entry.is_some() && call.entry == records.holder(call.claim);
        call.entry = call.entry.filter(|_| in_block);
    }
}

/// Whether it will make a difference to a call that it stood still. If it has a handle it always does: see
/// `collector::findings`.
fn minds_a_pause(call: &Call, holds: bool) -> bool {
    match call.at {
        At::Reserve | At::MakeHandle | At::WriteBlock | At::CountOff | At::LastLook | At::ReadAfterNoAnswer => true,
        At::SwapClaim => !call.contests,
        At::ReadClaim => holds,
        _ => false,
    }
}

// === pods ===

fn settle_pod(records: &Records, recorded: &Recorded, state: &mut State, pod: usize) {
    let containers = pod * SANDBOXES..(pod + 1) * SANDBOXES;
    let sandboxes = &mut state.sandboxes[containers.clone()];
    // Once nothing goes wrong any more, a container that has its address has it until its pod is deleted, which may be
    // at any time, and is noticed by nobody but its kubelet.
    let stays = records.reduces && state.faults == 0 && sandboxes.iter().any(|s| matches!(s, Sandbox::Given(_)));
    if stays && state.pods[pod] == Pod::Alive {
        state.pods[pod] = Pod::Terminating;
    }
    if state.pods[pod] != Pod::Alive {
        sandboxes.iter_mut().filter(|s| **s == Sandbox::Unborn).for_each(|s| *s = Sandbox::Deleted);
    }
    if sandboxes.iter().any(|sandbox| *sandbox != Sandbox::Deleted) {
        return;
    }
    if state.pods[pod] == Pod::Terminating && state.nodes[pod].runs {
        state.pods[pod] = Pod::Gone { long: false };
    }
    let is_gone = matches!(state.pods[pod], Pod::Gone { .. });
    let is_counted = containers.clone().any(|container| state.handles[container].is_some());
    if (records.reduces || is_gone && !is_counted) && !recorded.names_pod(records, state, pod) {
        state.pods[pod] = Pod::Gone { long: true };
        state.nodes[pod] = READY;
    }
    // A node is looked at for the holder of a claim alone.
    if records.reduces && is_gone && !recorded.holds_pod(records, state, pod) {
        state.nodes[pod] = READY;
    }
}

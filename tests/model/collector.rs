//! The collector's repairs, one request at a time. It acts on one live look, without the sightings before it that
//! the program waits for, so it is more in a hurry here; what its rules leave to a node for a while, they leave here.

use super::claims::Stands;
use super::records::Records;
use super::state::{At, CONTAINERS, Call, FIXED, Fault, Found, Pod, Repair, State};

/// What ought to be repaired, and whether it is time to.
pub fn findings(records: &Records, state: &State) -> Vec<(Repair, bool)> {
    let mut found = Vec::new();
    let entries = records.entries(state.block);
    let fixed = entries[usize::from(FIXED)];
    let holder = records.holder(state.claim);
    if let Some(holder) = holder {
        let evidence = Found { pod: state.pods[State::pod_of(holder)], node: state.node_of(holder) };
        let entry = fixed.map(|(container, _)| container).filter(|container| *container == holder);
        match records.standing(state.claim, evidence, entry.is_some()) {
            Stands::Lost if entry.is_some() => found.push((Repair::FreeHolders(state.claim, entry), true)),
            Stands::Lost => found.push((Repair::SettleClaim(state.claim, None), true)),
            Stands::Contest(next) => found.push((Repair::Contest(state.claim, next), true)),
            Stands::Keeps => {}
        }
    }
    for (address, entry) in (0..).zip(entries) {
        let Some((container, _)) = entry else { continue };
        let gone = state.pods[State::pod_of(container)];
        let left_to_claim = address == FIXED && holder == Some(container);
        if let (Pod::Gone { long }, false) = (gone, left_to_claim) {
            found.push((Repair::Free(address, container), long));
        }
    }
    for container in 0..CONTAINERS as u8 {
        let (counts, bears) = (state.handles[usize::from(container)], records.borne(state.block, container));
        if counts.unwrap_or(0) != bears || counts == Some(0) {
            let call = state.calls[usize::from(container)];
            found.push((Repair::Recount(container, counts, bears), call.at == At::Idle || call.paused));
        }
    }
    let ours_in_block = fixed.is_some_and(|(_, by_claim)| by_claim);
    match (state.claim == 0, state.reserved) {
        (false, false) => found.push((Repair::Mirror, true)),
        (true, true) if !ours_in_block => found.push((Repair::Unmirror, true)),
        _ => {}
    }
    found
}

/// The next request of the repair under way.
pub fn step(records: &Records, state: &State, fault: Fault) -> State {
    let mut next = *state;
    match fault {
        Fault::None => next.repair = request(records, &mut next),
        Fault::DieBefore | Fault::FailBefore => next.repair = Repair::Nothing,
        Fault::DieAfter | Fault::FailAfter => {
            request(records, &mut next);
            next.repair = Repair::Nothing;
        }
    }
    next
}

/// Carries out one request; gives what remains to be done.
fn request(records: &Records, state: &mut State) -> Repair {
    match state.repair {
        Repair::Nothing => Repair::Nothing,
        Repair::Contest(claim, next) => {
            if state.claim == claim {
                state.claim = next;
            }
            Repair::Nothing
        }
        Repair::FreeHolders(claim, entry) => match entry {
            Some(container) => {
                let (block, freed) = records.free(state.block, FIXED, container);
                state.block = block;
                Repair::SettleClaim(claim, freed.then_some(container))
            }
            None => Repair::SettleClaim(claim, None),
        },
        Repair::SettleClaim(claim, freed) => {
            if state.claim != claim {
                // Somebody else wrote it; the handle is left to another round.
                return Repair::Nothing;
            }
            state.claim = records.released(claim);
            freed.map_or(Repair::Nothing, Repair::CountOff)
        }
        Repair::Free(address, container) => {
            let (block, freed) = records.free(state.block, address, container);
            state.block = block;
            if freed { Repair::CountOff(container) } else { Repair::Nothing }
        }
        Repair::CountOff(container) => {
            let handle = &mut state.handles[usize::from(container)];
            *handle = records.count_off(*handle);
            Repair::Nothing
        }
        Repair::Recount(container, seen, bears) => {
            let handle = &mut state.handles[usize::from(container)];
            if *handle != seen {
                return Repair::Nothing;
            }
            *handle = (bears > 0).then_some(bears);
            Repair::Raise(container)
        }
        Repair::Raise(container) => {
            let bears = records.borne(state.block, container);
            let handle = &mut state.handles[usize::from(container)];
            if bears > handle.unwrap_or(0) {
                *handle = Some(bears);
            }
            Repair::Nothing
        }
        Repair::Mirror => {
            state.reserved = true;
            Repair::LookAfterMirror
        }
        Repair::LookAfterMirror if state.claim != 0 => Repair::Nothing,
        Repair::LookAfterMirror => Repair::Unmirror,
        Repair::Unmirror => {
            state.reserved = false;
            Repair::LookAfterUnmirror
        }
        Repair::LookAfterUnmirror if state.claim == 0 => Repair::Nothing,
        Repair::LookAfterUnmirror => Repair::MirrorAgain,
        Repair::MirrorAgain => {
            state.reserved = true;
            Repair::Nothing
        }
    }
}

/// Everything was long ago, and whoever is at work stood still.
pub fn pause(records: &Records, state: &State) -> State {
    let mut next = *state;
    next.claim = records.aged(state.claim);
    for call in next.calls.iter_mut().filter(|call| call.at != At::Idle) {
        let claim = records.aged(call.claim);
        // What it is about to write bears the time at which it was decided.
        *call = Call { claim, next: records.aged(call.next), paused: true, ..*call };
    }
    next.repair = match state.repair {
        Repair::FreeHolders(claim, entry) => Repair::FreeHolders(records.aged(claim), entry),
        Repair::SettleClaim(claim, freed) => Repair::SettleClaim(records.aged(claim), freed),
        Repair::Contest(claim, next) => Repair::Contest(records.aged(claim), records.aged(next)),
        other => other,
    };
    for pod in &mut next.pods {
        if let Pod::Gone { long } = pod {
            *long = true;
        }
    }
    next
}

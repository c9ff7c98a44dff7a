//! What must hold: at every moment, and once everything has come to rest.

use super::records::Records;
use super::state::{Action, At, CONTAINERS, Call, FIXED, Fault, Node, PODS, Pod, Repair, SANDBOXES, Sandbox, State};
use super::{calls, collector};

/// So many calls are under way at the same time, at most, beside a repair of the collector.
pub const AT_ONCE: usize = 2;
/// More steps than any way to rest has.
const MOST_STEPS: usize = 2000;

/// Whether a container may run, and so has its address: by what everybody knows, not only its kubelet. A pod that is
/// gone counts as ended once its node is not Ready (the administrator's word), or has had its grace.
fn may_run(state: &State, container: u8) -> Option<u8> {
    let (pod, node) = (State::pod_of(container), state.node_of(container));
    let Sandbox::Given(address) = state.sandboxes[usize::from(container)] else { return None };
    let believed = match state.pods[pod] {
        Pod::Alive | Pod::Terminating => true,
        Pod::Gone { long } => node.ready && !long,
    };
    (node.runs && believed).then_some(address)
}

/// I1, I2 and I3 in one moment.
pub fn invariants(records: &Records, state: &State) -> Result<(), String> {
    let entries = records.entries(state.block);
    let mut users = [None; super::state::ADDRESSES];
    for container in Records::containers() {
        let Some(address) = may_run(state, container) else { continue };
        if let Some(other) = users[usize::from(address)].replace(container) {
            return Err(format!("I1: containers {other} and {container} both have address {address}"));
        }
        let owner = records.owner_of(container);
        if entries[usize::from(address)] != Some((container, owner.is_some())) {
            return Err(format!("I3: container {container} was given {address}, and the block says {entries:?}"));
        }
        let Some(owner) = owner else { continue };
        let facts = records.facts(state.claim);
        if address != FIXED || facts.is_none_or(|f| f.holder != Some(container) || f.owner != owner) {
            return Err(format!("I2: container {container} was given {address} by claim, and the claim is {facts:?}"));
        }
    }
    Ok(())
}

/// From a moment without any call under way: all pods go, the kubelets that run call DEL, the collector works for as
/// long as it finds something, and nothing fails any more. Then nothing may be left but the claim, which is its
/// owner's, and its reservation.
pub fn nothing_stays(records: &Records, state: &State) -> Result<(), String> {
    let mut state = *state;
    state.pods = [Pod::Gone { long: true }; PODS];
    for container in Records::containers() {
        let known = !matches!(state.sandboxes[usize::from(container)], Sandbox::Unborn | Sandbox::Deleted);
        if known && state.node_of(container).runs {
            state.sandboxes[usize::from(container)] = Sandbox::Deleting;
            state.calls[usize::from(container)] = Call::at(At::ReadHandle);
        }
    }
    for _ in 0..MOST_STEPS {
        let working = (0..CONTAINERS as u8).find(|c| state.calls[usize::from(*c)].at != At::Idle);
        if let Some(container) = working {
            state = calls::step(records, &state, container, Fault::None);
        } else if state.repair != Repair::Nothing {
            state = collector::step(records, &state, Fault::None);
        } else if let Some((repair, _)) = collector::findings(records, &state).into_iter().find(|(_, due)| *due) {
            state.repair = repair;
        } else {
            let aged = collector::pause(records, &state);
            if aged == state {
                return at_rest(records, &state);
            }
            state = aged;
        }
    }
    Err(format!("it never comes to rest: {state:?}"))
}

fn at_rest(records: &Records, state: &State) -> Result<(), String> {
    let left = |what: &str| Err(format!("{what} is left over at {state:?}"));
    if records.entries(state.block).iter().any(Option::is_some) {
        return left("an allocation");
    }
    if state.handles.iter().any(Option::is_some) {
        return left("a handle");
    }
    if records.holder(state.claim).is_some() {
        return left("a holder");
    }
    if state.reserved != (state.claim != 0) {
        return left("a reservation without claim, or a claim without");
    }
    Ok(())
}

/// Everything that may happen in a state.
pub fn actions(records: &Records, state: &State, actions: &mut Vec<Action>) {
    let broken = state.faults > 0;
    let faults = |writes: bool| -> &[Fault] {
        match (broken, writes) {
            (true, true) => &[Fault::None, Fault::DieBefore, Fault::DieAfter, Fault::FailBefore, Fault::FailAfter],
            (true, false) => &[Fault::None, Fault::DieBefore, Fault::FailBefore],
            (false, _) => &[Fault::None],
        }
    };
    let crowded = state.calls.iter().filter(|call| call.at != At::Idle).count() >= AT_ONCE;
    for container in Records::containers() {
        let call = state.calls[usize::from(container)];
        if call.at != At::Idle {
            actions.extend(faults(call.writes()).iter().map(|fault| Action::Step(container, *fault)));
        }
        if state.calls[usize::from(container)].at == At::Wait {
            actions.push(Action::GiveUp(container));
        }
        if !crowded && calls::may_add(state, container) {
            actions.push(Action::Add(container));
        }
        if !crowded && calls::may_delete(state, container) {
            actions.push(Action::Del(container));
        }
        if broken
            && matches!(state.sandboxes[usize::from(container)], Sandbox::Given(_))
            && state.node_of(container).runs
        {
            actions.push(Action::SandboxDies(container));
        }
    }
    if state.repair == Repair::Nothing {
        let due = collector::findings(records, state).into_iter().filter(|(_, due)| *due);
        actions.extend(due.map(|(repair, _)| Action::Begin(repair)));
    } else {
        // It makes no difference to the collector whether it dies or gives a repair up.
        let faults: &[Fault] = if broken { &[Fault::None, Fault::DieBefore, Fault::DieAfter] } else { &[Fault::None] };
        actions.extend(faults.iter().map(|fault| Action::Repair(*fault)));
    }
    for pod in 0..PODS as u8 {
        cluster_actions(state, pod, broken, actions);
    }
    if broken || state.is_idle() {
        actions.push(Action::Pause);
    }
}

fn cluster_actions(state: &State, pod: u8, broken: bool, actions: &mut Vec<Action>) {
    let (object, node) = (state.pods[usize::from(pod)], state.nodes[usize::from(pod)]);
    if object == Pod::Alive {
        actions.push(Action::Delete(pod));
    }
    if broken {
        if state.exists(usize::from(pod)) {
            actions.push(Action::DeleteByForce(pod));
        }
        if node.ready {
            actions.push(Action::NodeDies(pod));
            actions.push(Action::NodeIsCutOff(pod));
        }
    }
}

/// What an action makes of a state.
pub fn apply(records: &Records, state: &State, action: Action) -> State {
    let mut next = *state;
    match action {
        Action::Add(container) => {
            next.sandboxes[usize::from(container)] = Sandbox::Adding;
            next.calls[usize::from(container)] = Call::at(At::Cluster);
        }
        Action::Del(container) => {
            next.sandboxes[usize::from(container)] = Sandbox::Deleting;
            next.calls[usize::from(container)] = Call::at(At::ReadHandle);
        }
        Action::Step(container, fault) => next = calls::step(records, state, container, fault),
        Action::GiveUp(container) => next = calls::give_up(state, container),
        Action::Begin(repair) => next.repair = repair,
        Action::Repair(fault) => next = collector::step(records, state, fault),
        Action::Delete(pod) => next.pods[usize::from(pod)] = Pod::Terminating,
        Action::DeleteByForce(pod) => next.pods[usize::from(pod)] = Pod::Gone { long: false },
        Action::SandboxDies(container) => next.sandboxes[usize::from(container)] = Sandbox::Left,
        Action::NodeDies(pod) => die(&mut next, pod),
        Action::NodeIsCutOff(pod) => next.nodes[usize::from(pod)].ready = false,
        Action::Pause => next = collector::pause(records, state),
    }
    if is_fault(state, action) {
        next.faults = state.faults - 1;
    }
    (0..PODS).for_each(|pod| settle(records, &mut next, pod));
    next
}

/// What can make no difference any more is made equal.
fn settle(records: &Records, state: &mut State, pod: usize) {
    let containers = pod * SANDBOXES..(pod + 1) * SANDBOXES;
    let sandboxes = &mut state.sandboxes[containers.clone()];
    if state.pods[pod] != Pod::Alive {
        sandboxes.iter_mut().filter(|s| **s == Sandbox::Unborn).for_each(|s| *s = Sandbox::Deleted);
    }
    let over = sandboxes.iter().all(|sandbox| *sandbox == Sandbox::Deleted);
    if over && state.pods[pod] == Pod::Terminating && state.nodes[pod].runs {
        state.pods[pod] = Pod::Gone { long: false };
    }
    let of_pod = |container: u8| State::pod_of(container) == pod;
    let recorded = records.holder(state.claim).is_some_and(of_pod)
        || records.entries(state.block).into_iter().flatten().any(|(container, _)| of_pod(container))
        || containers.clone().any(|container| state.handles[container].is_some())
        || state.calls.iter().any(|call| records.holder(call.claim).is_some_and(of_pod));
    if over && !recorded && matches!(state.pods[pod], Pod::Gone { .. }) {
        state.pods[pod] = Pod::Gone { long: true };
        state.nodes[pod] = Node { ready: true, runs: true };
    }
}

/// Whatever ran on a node is no more, and nobody there will ever call DEL.
fn die(state: &mut State, pod: u8) {
    state.nodes[usize::from(pod)] = Node { ready: false, runs: false };
    for container in Records::containers().filter(|container| State::pod_of(*container) == usize::from(pod)) {
        state.calls[usize::from(container)] = Call::IDLE;
        state.sandboxes[usize::from(container)] = Sandbox::Deleted;
        state.noted[usize::from(container)] = false;
    }
}

/// Whether an action is one of the faults that are counted. A pause is none while nobody is at work.
fn is_fault(state: &State, action: Action) -> bool {
    match action {
        Action::Step(_, fault) | Action::Repair(fault) => fault != Fault::None,
        Action::SandboxDies(_) | Action::NodeDies(_) | Action::NodeIsCutOff(_) | Action::DeleteByForce(_) => true,
        Action::Pause => !state.is_idle(),
        _ => false,
    }
}

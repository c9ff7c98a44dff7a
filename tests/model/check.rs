//! What must hold: at every moment, and once everything has come to rest.

use super::records::Records;
use super::settle::settle;
use super::state::{Action, At, CONTAINERS, Call, FIXED, Fault, Node, PODS, Pod, Repair, SANDBOXES, Sandbox, State};
use super::{calls, collector};

/// More steps than any way to rest has.
const MOST_STEPS: usize = 2000;

/// Whether a container may run, and so has its address: by what everybody knows, not only its kubelet. A pod that is
/// gone counts as ended once its node is not Ready (the administrator's word), or has had its grace.
pub fn may_run(state: &State, container: u8) -> Option<u8> {
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
    for container in Records::containers() {
        container_actions(records, state, container, broken, actions);
    }
    if state.repair == Repair::Nothing {
        let due = collector::findings(records, state).into_iter().filter(|(_, due)| *due);
        actions.extend(due.map(|(repair, _)| Action::Begin(repair)));
    } else {
        // It makes no difference to the collector whether it dies or gives a repair up, nor whether it dies after a
        // request or before the next one.
        let faults: &[Fault] = match (broken, records.reduces) {
            (true, false) => &[Fault::None, Fault::DieBefore, Fault::DieAfter],
            (true, true) => &[Fault::None, Fault::DieBefore],
            (false, _) => &[Fault::None],
        };
        actions.extend(faults.iter().map(|fault| Action::Repair(*fault)));
    }
    for pod in 0..PODS as u8 {
        cluster_actions(records, state, pod, broken, actions);
    }
    if broken || state.is_idle() {
        actions.push(Action::Pause);
    }
}

fn container_actions(records: &Records, state: &State, container: u8, broken: bool, actions: &mut Vec<Action>) {
    let call = state.calls[usize::from(container)];
    if call.at != At::Idle {
        let faults = if broken { faults(records, &call) } else { &[Fault::None] };
        actions.extend(faults.iter().map(|fault| Action::Step(container, *fault)));
    }
    if call.at == At::Wait {
        actions.push(Action::GiveUp(container));
    }
    if may_add(state, container) {
        actions.push(Action::Add(container));
        if records.reduces {
            actions.push(Action::DeleteMeanwhile(container));
        }
    }
    if may_delete(state, container) {
        actions.push(Action::Del(container));
    }
    let is_given = matches!(state.sandboxes[usize::from(container)], Sandbox::Given(_));
    if broken && is_given && state.node_of(container).runs {
        actions.push(Action::SandboxDies(container));
    }
}

/// When the kubelet may call ADD.
fn may_add(state: &State, container: u8) -> bool {
    let pod = State::pod_of(container);
    let first = pod * SANDBOXES;
    let earlier = &state.sandboxes[first..usize::from(container)];
    state.sandboxes[usize::from(container)] == Sandbox::Unborn
        && state.nodes[pod].runs
        && state.pods[pod] == Pod::Alive
        && earlier.iter().all(|sandbox| matches!(sandbox, Sandbox::Left | Sandbox::Deleted))
}

/// And DEL: for a container that has ended, or whose pod is to go.
fn may_delete(state: &State, container: u8) -> bool {
    let pod = State::pod_of(container);
    let wanted = state.pods[pod] == Pod::Alive;
    let ended = match state.sandboxes[usize::from(container)] {
        Sandbox::Ended | Sandbox::Left => true,
        Sandbox::Given(_) => !wanted,
        _ => false,
    };
    ended && state.nodes[pod].runs
}

/// What may go wrong with a call's next request, each of it once.
fn faults(records: &Records, call: &Call) -> &'static [Fault] {
    match (call.writes(), records.reduces && calls::dies_by_failure(call)) {
        (true, false) => &[Fault::None, Fault::DieBefore, Fault::DieAfter, Fault::FailBefore, Fault::FailAfter],
        (true, true) => &[Fault::None, Fault::DieBefore, Fault::DieAfter],
        (false, false) => &[Fault::None, Fault::DieBefore, Fault::FailBefore],
        (false, true) => &[Fault::None, Fault::DieBefore],
    }
}

fn cluster_actions(records: &Records, state: &State, pod: u8, broken: bool, actions: &mut Vec<Action>) {
    let (object, node) = (state.pods[usize::from(pod)], state.nodes[usize::from(pod)]);
    if object == Pod::Alive && (!records.reduces || tells(state, pod)) {
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

/// Whether it makes a difference that a pod is deleted now, and not later: it gets no sandbox, its container may be
/// ended, or its object goes. A call of its that is under way does not ask.
fn tells(state: &State, pod: u8) -> bool {
    let first = usize::from(pod) * SANDBOXES;
    let sandboxes = &state.sandboxes[first..first + SANDBOXES];
    let waits = |sandbox: &Sandbox| matches!(sandbox, Sandbox::Unborn | Sandbox::Given(_));
    sandboxes.iter().any(waits) || sandboxes.iter().all(|sandbox| *sandbox == Sandbox::Deleted)
}

/// What an action makes of a state.
pub fn apply(records: &Records, state: &State, action: Action) -> State {
    let mut next = *state;
    match action {
        Action::Add(container) => add(&mut next, container),
        Action::DeleteMeanwhile(container) => {
            add(&mut next, container);
            next.pods[State::pod_of(container)] = Pod::Terminating;
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
    settle(records, &mut next);
    next
}

fn add(state: &mut State, container: u8) {
    state.sandboxes[usize::from(container)] = Sandbox::Adding;
    state.calls[usize::from(container)] = Call::at(At::Cluster);
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

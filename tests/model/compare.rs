//! That a search with less to visit sees the same: the same states without a call, and in all states the same of what
//! the invariants are about, each with as few faults. What is the same by `settle` or by names that are changed is taken
//! for one, on both sides.

use std::collections::{BTreeMap, HashSet};

use super::packed::{Packed, Packing};
use super::records::{Entries, Records};
use super::search::Search;
use super::settle::settle;
use super::state::{CONTAINERS, PODS, Pod, SANDBOXES, Sandbox, State};
use super::{Model, check};

/// What the invariants look at: who may run with which address, the block, and the claim.
type View = ([Option<u8>; CONTAINERS], Entries, Option<(u8, Option<u8>)>);

/// What was seen, and with how many faults left, at most.
#[derive(Default)]
struct Sights {
    rests: BTreeMap<Packed, u8>,
    views: BTreeMap<View, u8>,
}

/// Compares a search that leaves out what it can with a plain one.
pub fn compare(records: &mut Records, sandboxes: [usize; PODS], faults: u8) {
    records.reduces = false;
    let plain = states(&Model { name: "plain", records: &*records, sandboxes, faults }, false);
    records.reduces = true;
    let records = &*records;
    let model = Model { name: "reduced", records, sandboxes, faults };
    let reduced = states(&model, true);
    let packing = Packing::new(model.records, model.twins());
    are_closed_under_names(&packing, &plain);
    let (seen, by_less) = (sights(records, &packing, &plain), sights(records, &packing, &reduced));
    let differ = |(state, faults): (&Packed, &u8), in_other: &Sights| in_other.rests.get(state) != Some(faults);
    let tell = |state: &Packed| format!("{:?}", packing.unpack(*state, 0));
    let lost: Vec<_> = seen.rests.iter().filter(|seen| differ(*seen, &by_less)).map(|(state, _)| tell(state)).collect();
    let more: Vec<_> = by_less.rests.iter().filter(|less| differ(*less, &seen)).map(|(state, _)| tell(state)).collect();
    println!(
        "{} states without a call, {} views of {} states are those of {}",
        seen.rests.len(),
        seen.views.len(),
        plain.len(),
        reduced.len()
    );
    assert!(lost.is_empty() && more.is_empty(), "lost: {lost:#?}\nmore: {more:#?}");
    assert!(seen.views == by_less.views, "the invariants see something else");
    assert!(reduced.len() * 2 < plain.len(), "{} states are not less than {}", reduced.len(), plain.len());
}

fn states(model: &Model<'_>, with_twins: bool) -> Vec<State> {
    let mut states = Vec::new();
    let twins = model.twins().filter(|_| with_twins);
    Search::new(model.name, model.records, twins, model.first()).run(|state| states.push(*state)).unwrap();
    states
}

/// Whatever comes about, comes about with two pods' names changed.
fn are_closed_under_names(packing: &Packing<'_>, states: &[State]) {
    let known: HashSet<&State> = states.iter().collect();
    for state in states {
        let twin = packing.twin(state);
        assert!(known.contains(&twin), "there is {state:?}, and not {twin:?}");
    }
}

fn sights(records: &Records, packing: &Packing<'_>, states: &[State]) -> Sights {
    let mut sights = Sights::default();
    let most = |known: &mut u8, faults: u8| *known = (*known).max(faults);
    for state in states {
        if state.is_idle() {
            most(sights.rests.entry(packing.pack(&normal(records, state)).0).or_default(), state.faults);
        }
        let view = view(records, state).min(view(records, &packing.twin(state)));
        most(sights.views.entry(view).or_default(), state.faults);
    }
    sights
}

/// As the search would have it once no fault is left. The deletion of a pod whose container is not told of it comes later
/// in one search than in the other.
fn normal(records: &Records, state: &State) -> State {
    let mut normal = State { faults: 0, ..*state };
    for pod in 0..PODS {
        let sandboxes = &normal.sandboxes[pod * SANDBOXES..(pod + 1) * SANDBOXES];
        let is_over = sandboxes.iter().all(|sandbox| *sandbox == Sandbox::Deleted);
        let is_told = sandboxes.iter().any(|sandbox| matches!(sandbox, Sandbox::Given(_)));
        if normal.pods[pod] == Pod::Terminating && !is_over && !is_told {
            normal.pods[pod] = Pod::Alive;
        }
    }
    settle(records, &mut normal);
    normal
}

fn view(records: &Records, state: &State) -> View {
    let run = std::array::from_fn(|container| check::may_run(state, container as u8));
    let claim = records.facts(state.claim).map(|facts| (facts.owner, facts.holder));
    (run, records.entries(state.block), claim)
}

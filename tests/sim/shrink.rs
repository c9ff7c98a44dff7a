//! From a failing run to the little that it needs: actions, workloads and faults are left out one by one as
//! long as the same invariant breaks, within a bound.

use std::collections::BTreeSet;

use super::plan::{Plan, Skip};
use super::run::{Outcome, run};

/// Runs at most.
const EFFORT: usize = 250;

struct Shrinker {
    seed: u64,
    invariant: &'static str,
    best: Skip,
    runs: usize,
}

/// What can be left out of a seed's run so that it still fails as it did; and how many runs that took.
pub fn shrink(seed: u64, failed: &Outcome) -> (Skip, usize) {
    let Some(violation) = &failed.violation else { return (Skip::default(), 0) };
    let mut shrinker = Shrinker { seed, invariant: violation.invariant, best: Skip::default(), runs: 0 };
    shrinker.attempt(Skip { all_faults: true, ..shrinker.best.clone() });
    shrinker.attempt(Skip { slowness: true, ..shrinker.best.clone() });
    let plan = Plan::of(seed);
    loop {
        let before = shrinker.best.clone();
        for index in 0..plan.workloads.len() {
            shrinker.without(index, |skip| &mut skip.workloads);
        }
        for index in (0..plan.actions.len()).rev() {
            shrinker.without(index, |skip| &mut skip.actions);
        }
        if !shrinker.best.all_faults {
            let left: Vec<(u64, u64)> = run(seed, shrinker.best.clone(), false).struck;
            shrinker.halves(&left);
        }
        if shrinker.best == before || shrinker.runs >= EFFORT {
            return (shrinker.best, shrinker.runs);
        }
    }
}

impl Shrinker {
    fn attempt(&mut self, skip: Skip) -> bool {
        if self.runs >= EFFORT {
            return false;
        }
        self.runs += 1;
        let outcome = run(self.seed, skip.clone(), false);
        let same = outcome.violation.is_some_and(|violation| violation.invariant == self.invariant);
        if same {
            self.best = skip;
        }
        same
    }

    fn without(&mut self, index: usize, of: impl Fn(&mut Skip) -> &mut BTreeSet<usize>) {
        let mut skip = self.best.clone();
        if of(&mut skip).insert(index) {
            self.attempt(skip);
        }
    }

    /// Many faults at once, then fewer.
    fn halves(&mut self, faults: &[(u64, u64)]) {
        let mut skip = self.best.clone();
        skip.faults.extend(faults);
        if faults.is_empty() || self.attempt(skip) || faults.len() == 1 {
            return;
        }
        let (first, second) = faults.split_at(faults.len() / 2);
        self.halves(first);
        self.halves(second);
    }
}

//! How far a claim's copy in another ledger is, and what remains to be done. Pure.
//!
//! A claim of one owner grows in one direction only: each new holder raises its generation, and within a
//! generation it is first held, then perhaps contested, then released. So of two versions the later one is known
//! without asking when they were written, as long as nobody takes the address in both ledgers: that is what
//! closing the source is for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::claim::Claim;
use crate::store::Versioned;

/// Both ledgers, as they were read, and what is wanted.
pub(super) struct Both<'a> {
    pub source: &'a [Versioned<Claim>],
    pub target: &'a [Versioned<Claim>],
    /// Whether the source's claims are to be closed.
    pub close: bool,
    /// Whether the source's claims are to be removed.
    pub drop: bool,
}

/// What is to be done about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Action {
    /// From now on nobody takes it by the source.
    Close,
    /// It is not in the target.
    Copy,
    /// The target has an earlier version.
    Renew,
    /// It is to go from the source.
    Drop,
}

/// One write.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Step {
    pub address: IpAddr,
    pub owner: String,
    pub action: Action,
    /// What it is decided on.
    #[serde(skip)]
    pub source: Versioned<Claim>,
    #[serde(skip)]
    pub target: Option<Versioned<Claim>>,
}

/// Everything that remains to be done, or why nothing may be.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    pub conflicts: Vec<Conflict>,
    /// Claims that only the target has.
    pub others: Vec<Claim>,
    /// Claims that have been in the target for a while, and have gone on there.
    pub ahead: usize,
}

/// An address that the two ledgers tell different stories of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Conflict {
    pub address: IpAddr,
    pub why: String,
}

/// How the copy stands to the original.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Missing,
    Behind,
    Same,
    Ahead,
    Conflict(String),
}

impl Plan {
    pub(super) fn of(both: &Both<'_>) -> Self {
        let mut copies: BTreeMap<IpAddr, &Versioned<Claim>> =
            both.target.iter().map(|copy| (copy.value.address, copy)).collect();
        let mut plan = Self::default();
        for source in both.source {
            let target = copies.remove(&source.value.address);
            plan.judge(both, source, target);
        }
        plan.others = copies.into_values().map(|copy| copy.value.clone()).collect();
        plan
    }

    fn judge(&mut self, both: &Both<'_>, source: &Versioned<Claim>, target: Option<&Versioned<Claim>>) {
        let claim = &source.value;
        let step = |action| Step {
            address: claim.address,
            owner: claim.owner.to_string(),
            action,
            source: source.clone(),
            target: target.cloned(),
        };
        let conflict = |why| Conflict { address: claim.address, why };
        let closed = claim.moved.is_some();
        match standing(claim, target.map(|target| &target.value)) {
            Standing::Conflict(why) => return self.conflicts.push(conflict(why)),
            // Where it goes on in the target while the source is open, two ledgers are in use.
            Standing::Ahead if !closed => {
                let why = "has gone on in the target while the source is not closed: nodes use both ledgers".to_owned();
                return self.conflicts.push(conflict(why));
            }
            // Closed before it is copied: what is copied then does not change by an ADD any more.
            _ if both.close && !closed => self.steps.push(step(Action::Close)),
            Standing::Missing => self.steps.push(step(Action::Copy)),
            Standing::Behind => self.steps.push(step(Action::Renew)),
            Standing::Ahead => self.ahead += 1,
            Standing::Same => {}
        }
        if both.drop && !closed {
            self.conflicts.push(conflict("is not closed in the source; repeat with --close first".to_owned()));
        }
    }

    /// The source's claims that may go, once there is nothing else to do.
    pub(super) fn drops(both: &Both<'_>) -> Vec<Step> {
        let step = |source: &Versioned<Claim>| Step {
            address: source.value.address,
            owner: source.value.owner.to_string(),
            action: Action::Drop,
            source: source.clone(),
            target: None,
        };
        both.source.iter().map(step).collect()
    }
}

impl Step {
    /// What is written to the source for it, if anything is; `None` removes the claim.
    pub(super) fn to_source(&self, to: &str) -> Option<Option<Claim>> {
        match self.action {
            Action::Close => Some(Some(Claim { moved: Some(to.to_owned()), ..self.source.value.clone() })),
            Action::Drop => Some(None),
            Action::Copy | Action::Renew => None,
        }
    }

    /// The claim as the target is to have it.
    pub(super) fn to_target(&self) -> Claim {
        open(&self.source.value)
    }
}

fn open(claim: &Claim) -> Claim {
    Claim { moved: None, ..claim.clone() }
}

fn standing(source: &Claim, target: Option<&Claim>) -> Standing {
    let Some(target) = target else { return Standing::Missing };
    if open(source) == *target {
        return Standing::Same;
    }
    // Left over from an earlier move in the other direction: closed there, so nobody has written it since.
    if target.moved.is_some() && age(source) >= age(target) {
        return Standing::Behind;
    }
    if target.owner != source.owner || target.created != source.created {
        // A closed claim that passed to another owner in the target has gone on there.
        return match source.moved.is_some() && target.generation > source.generation {
            true => Standing::Ahead,
            false => Standing::Conflict(format!(
                "belongs to {} since {} in the source and to {} since {} in the target",
                source.owner, source.created, target.owner, target.created
            )),
        };
    }
    match age(source).cmp(&age(target)) {
        std::cmp::Ordering::Greater => Standing::Behind,
        std::cmp::Ordering::Less => Standing::Ahead,
        // Of one age, and still not alike: fields of a newer version, or a hand that wrote it.
        std::cmp::Ordering::Equal if source.holder == target.holder => Standing::Behind,
        std::cmp::Ordering::Equal => {
            Standing::Conflict(format!("is of generation {} in both ledgers, with other holders", source.generation))
        }
    }
}

/// Generation, and how far the claim is within it: taken ahead of a container, held, contested, released.
fn age(claim: &Claim) -> (u64, u8) {
    let stage = match (&claim.holder, claim.contested) {
        (None, _) => 3,
        (Some(_), Some(_)) => 2,
        (Some(holder), None) if !holder.container_id.is_empty() => 1,
        (Some(_), None) => 0,
    };
    (claim.generation, stage)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(generation: u64, holder: Option<&str>) -> Claim {
        let holder = holder.map(|container| {
            json!({
                "podUid": "u", "pod": "web-1", "containerId": container, "interface": "eth0", "node": "n1",
                "since": "2026-11-24T02:01:28Z",
            })
        });
        serde_json::from_value(json!({
            "address": "10.244.0.216", "generation": generation, "created": "2026-11-24T02:01:28Z", "holder": holder,
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
        }))
        .unwrap()
    }

    fn with(claim: &Claim, change: impl FnOnce(&mut Value)) -> Claim {
        let mut value = serde_json::to_value(claim).unwrap();
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    fn closed(claim: &Claim) -> Claim {
        Claim { moved: Some("IPClaims".into()), ..claim.clone() }
    }

    fn plan(source: &Claim, target: Option<&Claim>, close: bool, drop: bool) -> Plan {
        let version = |claim: &Claim| vec![Versioned { value: claim.clone(), revision: 1 }];
        let (source, target) = (version(source), target.map(version).unwrap_or_default());
        Plan::of(&Both { source: &source, target: &target, close, drop })
    }

    fn actions(plan: &Plan) -> Vec<Action> {
        assert_eq!(plan.conflicts, []);
        plan.steps.iter().map(|step| step.action).collect()
    }

    #[test]
    fn what_is_missing_is_copied_and_what_has_changed_since_is_renewed() {
        let held = claim(3, Some("c"));
        assert_eq!(actions(&plan(&held, None, false, false)), [Action::Copy]);
        assert_eq!(actions(&plan(&held, Some(&held), false, false)), []);
        for earlier in [claim(2, Some("b")), claim(2, None), claim(3, Some(""))] {
            assert_eq!(actions(&plan(&held, Some(&earlier), false, false)), [Action::Renew]);
        }
        assert_eq!(actions(&plan(&held.released(), Some(&held), false, false)), [Action::Renew]);
    }

    #[test]
    fn a_claim_is_closed_before_it_is_copied_for_good_and_the_copy_is_open() {
        let held = claim(3, Some("c"));
        assert_eq!(actions(&plan(&held, None, true, false)), [Action::Close]);
        let plan_of_closed = plan(&closed(&held), None, true, false);
        assert_eq!(actions(&plan_of_closed), [Action::Copy]);
        assert_eq!(plan_of_closed.steps[0].to_target(), held);
        assert_eq!(actions(&plan(&closed(&held), Some(&held), true, true)), []);
    }

    #[test]
    fn what_has_gone_on_in_the_target_is_left_there_if_the_source_is_closed() {
        let (source, target) = (claim(3, Some("c")), claim(4, Some("d")));
        let found = plan(&closed(&source), Some(&target), true, true);
        assert_eq!((actions(&found), found.ahead), (vec![], 1));
        let found = plan(&source, Some(&target), false, false);
        assert!(found.conflicts[0].why.contains("nodes use both ledgers"), "{found:?}");
    }

    #[test]
    fn two_owners_or_two_holders_of_one_generation_are_a_conflict() {
        let held = claim(3, Some("c"));
        let other = with(&held, |claim| claim["owner"]["name"] = json!("shop"));
        assert!(plan(&held, Some(&other), false, false).conflicts[0].why.contains("Deployment default/shop"));
        let later = with(&held, |claim| claim["created"] = json!("2026-11-24T05:00:00Z"));
        assert_eq!(plan(&held, Some(&later), false, false).conflicts.len(), 1);
        let twin = with(&held, |claim| claim["holder"]["podUid"] = json!("v"));
        assert!(plan(&held, Some(&twin), false, false).conflicts[0].why.contains("other holders"));
    }

    #[test]
    fn nothing_that_is_open_is_dropped() {
        let held = claim(3, Some("c"));
        assert!(plan(&held, Some(&held), false, true).conflicts[0].why.contains("--close"));
    }

    #[test]
    fn on_the_way_back_what_was_closed_is_opened_again() {
        let (now, left) = (claim(5, None), closed(&claim(3, Some("c"))));
        assert_eq!(actions(&plan(&now, Some(&left), false, false)), [Action::Renew]);
        assert_eq!(actions(&plan(&claim(3, Some("c")), Some(&left), false, false)), [Action::Renew]);
    }

    #[test]
    fn claims_that_only_the_target_has_are_named() {
        let stray = vec![Versioned { value: claim(1, None), revision: 1 }];
        let both = Both { source: &[], target: &stray, close: true, drop: false };
        assert_eq!(Plan::of(&both).others.len(), 1);
    }
}

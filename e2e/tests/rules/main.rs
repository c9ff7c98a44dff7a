//! The rights of `yaml/kube-ipam.yaml`: everything works with them, none of them is left unused, and what is taken
//! away is missed.
//!
//! Two labs one after the other, without and with agents, on the real API server with stand-in nodes, their claims
//! Kubernetes objects. What nodes and people asked for is read from the audit log.

mod errands;
mod missed;
mod outpost;
mod token;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use calico::ApiGroup;
use e2e::lab::{Lab, Ledger, User};
use e2e::manifests::{self, ADMIN_ROLE, NODE_ROLE, Right, TOKEN_ROLE};
use e2e::real::audit::Call;
use e2e::run::{Errand, Tier};

/// What was asked for on the labs so far, by users.
static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

fn main() -> std::process::ExitCode {
    let direct = Tier::new("rules", || Lab::restricted(false, Ledger::Objects)).then(&[
        Errand { name: "status_and_gc_work", run: |lab| Box::pin(errands::status_and_gc(lab)) },
        Errand { name: "what_crashes_leave_is_finished", run: |lab| Box::pin(errands::leftovers(lab)) },
        Errand { name: "a_node_finds_out_which_group_to_name", run: |lab| Box::pin(errands::group(lab)) },
        Errand { name: "people_see_check_and_release", run: |lab| Box::pin(errands::people(lab)) },
        Errand { name: "an_agent_follows_its_account", run: |lab| Box::pin(token::is_followed(lab)) },
        Errand { name: "the_plugins_token_outlives_the_pod", run: |lab| Box::pin(token::outlives_the_pod(lab)) },
        Errand { name: "nobody_was_forbidden_anything", run: |lab| Box::pin(nobody_was_forbidden(lab)) },
        Errand { name: "what_is_taken_away_is_missed", run: |lab| Box::pin(missed::each_in_turn(lab)) },
    ]);
    let agents = Tier::new("rules_agents", || Lab::restricted(true, Ledger::Objects)).then(&[
        Errand { name: "nobody_was_forbidden_anything", run: |lab| Box::pin(nobody_was_forbidden(lab)) },
        Errand { name: "no_right_was_left_unused", run: |_| Box::pin(async { none_is_unused() }) },
    ]);
    e2e::run::tiers(vec![direct, agents])
}

/// The rules allow everything that was asked for. Keeps what was asked for [`none_is_unused`].
async fn nobody_was_forbidden(lab: &Lab) -> Result<()> {
    let calls = lab.rights()?.calls(&User::ALL)?;
    ensure!(!calls.is_empty(), "the audit log knows no calls of ours");
    let forbidden: BTreeSet<String> = calls
        .iter()
        .filter(|call| call.forbidden)
        .map(|call| format!("{} may not {} {}", call.user, right(call), call.object))
        .collect();
    ensure!(forbidden.is_empty(), "{forbidden:#?}");
    CALLS.lock().unwrap_or_else(PoisonError::into_inner).extend(calls);
    Ok(())
}

/// Both labs together have used every right that the manifest grants.
fn none_is_unused() -> Result<()> {
    let documents = manifests::documents("kube-ipam.yaml")?;
    let calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let used = |users: &[User]| -> BTreeSet<Right> {
        let names: Vec<String> = users.iter().map(|user| user.name()).collect();
        let allowed = || calls.iter().filter(|call| names.contains(&call.user) && !call.forbidden);
        // An apply that finds nothing creates, and needs the right to that, too.
        let creations = allowed().filter(|call| call.verb == "patch" && call.code == 201);
        let creations = creations.map(|call| Right { verb: "create".into(), ..right(call) });
        allowed().map(right).chain(creations).map(in_either_group).collect()
    };
    let rights_of = |kind, name| -> Result<BTreeSet<Right>> {
        Ok(manifests::rights_of(&documents, kind, name)?.into_iter().map(in_either_group).collect())
    };
    let mut granted = rights_of("ClusterRole", NODE_ROLE)?;
    granted.extend(rights_of("Role", NODE_ROLE)?);
    granted.extend(rights_of("Role", TOKEN_ROLE)?);
    let unused: Vec<String> =
        granted.difference(&used(&[User::Node, User::Counted])).map(|right| format!("nodes: {right}")).collect();
    let granted = rights_of("ClusterRole", ADMIN_ROLE)?;
    let more = granted.difference(&used(&[User::Admin])).map(|right| format!("people: {right}")).collect::<Vec<_>>();
    let unused = [unused, more].concat();
    ensure!(unused.is_empty(), "granted, and used by no test here (run them all): {unused:#?}");
    Ok(())
}

/// A cluster has Calico's objects in one group, and the rights to both.
fn in_either_group(right: Right) -> Right {
    let resource = right.resource.replace("ipamconfigurations", "ipamconfigs");
    match ApiGroup::BOTH.into_iter().any(|group| group.group() == right.group) {
        true => Right { group: "calico".into(), resource, ..right },
        false => right,
    }
}

fn right(call: &Call) -> Right {
    Right { group: call.group.clone(), resource: call.resource.clone(), verb: call.verb.clone() }
}

//! Each right that the plugin's calls use is taken away, alone: then some call fails, and says what it lacks.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::lab::{Lab, User};
use e2e::manifests::{self, NODE_ROLE, Right};
use e2e::standin::{Attachment, CniOutcome};
use serde_json::{Value, json};

use crate::outpost::{Outpost, attachment};
use crate::right;

/// Numbers of the outposts' blocks, behind those of the errands.
const FIRST: u8 = 10;

pub async fn each_in_turn(lab: &Lab) -> Result<()> {
    let role = manifests::rights_of(&manifests::documents("kube-ipam.yaml")?, "ClusterRole", NODE_ROLE)?;
    let before = lab.rights()?.calls(&[User::Node])?.len();
    every_call(lab, FIRST).await?.context("all rights are there")?;
    let calls = lab.rights()?.calls(&[User::Node])?;
    let used: BTreeSet<Right> = calls.iter().skip(before).map(right).collect();
    ensure!(used.len() > 15, "only {used:?} were used");
    let mut not_missed = Vec::new();
    for (number, taken) in (FIRST + 1..).zip(&used) {
        grant(lab, role.iter().filter(|right| *right != taken)).await?;
        lab.rights()?.effect(taken, false).await?;
        let outcome = every_call(lab, number).await;
        grant(lab, role.iter()).await?;
        lab.rights()?.effect(taken, true).await?;
        match outcome? {
            Err(error) if error.to_string().contains(&taken.resource) => {}
            Err(error) => bail!("without {taken} a call fails, and does not name it: {error}"),
            Ok(()) => not_missed.push(taken.to_string()),
        }
    }
    ensure!(not_missed.is_empty(), "every call goes well without {not_missed:?}");
    Ok(())
}

/// Whether STATUS, ADD, DEL and GC go well in a block that is new. What a failure leaves stays: the lab ends after this.
async fn every_call(lab: &Lab, number: u8) -> Result<Result<()>> {
    let outpost = Outpost::new(lab, number).await?;
    let random = outpost.pod(json!({})).await?;
    let fixed = outpost.pod(json!({"kube-ipam.ip": outpost.address(60)})).await?;
    let attachments = [attachment(&random), attachment(&fixed)];
    let outcome = calls(&outpost, &attachments).await;
    for pod in [&random, &fixed] {
        outpost.forget(pod).await?;
    }
    Ok(outcome)
}

async fn calls(outpost: &Outpost<'_>, attachments: &[Attachment; 2]) -> Result<()> {
    let [random, fixed] = attachments;
    well("STATUS", outpost.call("STATUS", random).await?)?;
    well("ADD", outpost.call("ADD", random).await?)?;
    well("ADD", outpost.call("ADD", fixed).await?)?;
    well("DEL", outpost.call("DEL", random).await?)?;
    let nothing = Attachment { extra: json!({"cni.dev/valid-attachments": []}), ..fixed.clone() };
    well("GC", outpost.call("GC", &nothing).await?)?;
    well("DEL", outpost.call("DEL", fixed).await?)
}

fn well(verb: &str, outcome: CniOutcome) -> Result<()> {
    ensure!(outcome.is_ok(), "{verb}: {}", outcome.error_text());
    Ok(())
}

/// Lets the nodes' role allow exactly these.
async fn grant<'a>(lab: &Lab, rights: impl Iterator<Item = &'a Right>) -> Result<()> {
    let rule = |r: &Right| json!({"apiGroups": [r.group], "resources": [r.resource], "verbs": [r.verb]});
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": NODE_ROLE},
        "rules": rights.map(rule).collect::<Vec<Value>>(),
    });
    manifests::apply(&lab.client(), &role).await
}

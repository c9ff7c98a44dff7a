//! The scenarios on clusters whose definitions are those of older releases of Calico: an API server keeps no field that
//! they do not name. With agents, and for the oldest and the newest of them with the plugin alone, too.

use anyhow::{Context as _, Result, ensure};
use calico::{AllocationAttribute, Entry, IPAMBlock};
use e2e::lab::{Lab, address};
use e2e::releases::Release;
use e2e::run::{Errand, Tier, tiers};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;

fn main() -> std::process::ExitCode {
    let tier = |name, release, agents| {
        Tier::new(name, move || async move { Lab::embedded_of(release, agents).await.map(Some) }).then(&[
            Errand { name: "no_address_cools_where_nobody_keeps_that", run: |lab| Box::pin(nothing_cools(lab)) },
            Errand { name: "what_says_nothing_is_given_back", run: |lab| Box::pin(nothing_is_left(lab)) },
        ])
    };
    tiers(vec![
        tier("v3_24", Release::V3_24, false),
        tier("v3_24_agents", Release::V3_24, true),
        tier("v3_30_agents", Release::V3_30, true),
        tier("v3_31_agents", Release::V3_31, true),
        tier("v3_32_agents", Release::V3_32, true),
        tier("v3_32_in_v3", Release::V3_32_IN_V3, false),
        tier("v3_32_in_v3_agents", Release::V3_32_IN_V3, true),
    ])
}

async fn blocks(lab: &Lab) -> Result<Vec<IPAMBlock>> {
    Ok(Api::<IPAMBlock>::all(lab.client()).list(&Default::default()).await?.items)
}

fn deployment(namespace: &str, name: &str) -> serde_json::Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "nginx", "image": "nginx:latest"}]}},
        },
    })
}

/// None of these releases keeps `ipCooldownSeconds`, nor `releasedAt`: neither is written, and the addresses are free.
async fn nothing_cools(lab: &Lab) -> Result<()> {
    let config = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMConfig", "metadata": {"name": "default"},
        "spec": {"autoAllocateBlocks": true, "strictAffinity": false, "ipCooldownSeconds": 600},
    });
    // It appears after the nodes have begun to work.
    lab.create(config.clone()).await?;
    let namespace = &lab.namespace("cooldown").await?;
    lab.create(deployment(namespace, "cooled")).await?;
    let had = address(&lab.running(namespace, "cooled", 1).await?[0])?;
    lab.drop_namespace(namespace).await?;
    lab.until("the address is free", || async {
        let blocks = blocks(lab).await?;
        let wrong = blocks.iter().flat_map(|b| &b.spec.attributes).find(|a| a.released_at.is_some() || a.is_nobodys());
        ensure!(wrong.is_none(), "{wrong:?} is recorded");
        let block = blocks.iter().find(|block| block.spec.cidr.contains(had));
        Ok(block.is_none_or(|block| block.spec.entry(had) == Entry::Free).then_some(()))
    })
    .await?;
    lab.delete(&config).await
}

/// What a Calico that knows no cooldown leaves when it rewrites a block of one that does: an attribute that names nobody.
async fn nothing_is_left(lab: &Lab) -> Result<()> {
    let namespace = &lab.namespace("void").await?;
    lab.create(deployment(namespace, "left")).await?;
    let pod = lab.running(namespace, "left", 1).await?.remove(0);
    let has = address(&pod)?;
    let api: Api<IPAMBlock> = Api::all(lab.client());
    let planted = lab
        .until("the attribute is written", || async {
            let found = blocks(lab).await?.into_iter().find(|block| block.spec.cidr.contains(has));
            let mut block = found.context("the pod's block")?;
            let spec = &mut block.spec;
            let ordinal = spec.unallocated.pop().context("a free address")?;
            spec.allocations[ordinal] = Some(spec.attributes.len());
            spec.attributes.push(AllocationAttribute::default());
            let name = block.name_any();
            match api.replace(&name, &PostParams::default(), &block).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
                replaced => Ok(Some((replaced?.name_any(), ordinal))),
            }
        })
        .await?;
    // The pod's release is the next that is written there.
    lab.drop_namespace(namespace).await?;
    lab.until("nothing is left of it", || async {
        let block = api.get_opt(&planted.0).await?;
        Ok(block.is_none_or(|block| block.spec.allocations[planted.1].is_none()).then_some(()))
    })
    .await
}

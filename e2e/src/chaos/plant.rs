//! What must not be, put in on purpose: whoever judges has to find it.

use anyhow::{Context as _, Result, bail};
use calico::{Entry, IPAMBlock};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::ground::Ground;
use super::runtime::Runtime;
use crate::real::routes::ipam_blocks;

/// What is put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// A block forgets an address that a container has, and offers it to the next one.
    Duplicate,
    /// A block records an address for a pod that there never was.
    Leak,
}

const LIMIT: Duration = Duration::from_secs(60);

/// Takes the address of a container that runs out of the records, until somebody else was given it.
pub(super) async fn duplicate(runtime: &Runtime) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while runtime.observer.duplicates() == 0 {
        if Instant::now() > until {
            bail!("nobody was given an address that was free by the records");
        }
        for (address, _) in runtime.observer.held() {
            edit(&runtime.ground, |typed, spec| {
                let mut entries = typed.spec.entries().into_iter().enumerate();
                let used = |(_, (here, entry)): &(usize, (_, Entry<'_>))| {
                    *here == address && matches!(entry, Entry::Used { .. })
                };
                let Some((ordinal, _)) = entries.find(used) else { return false };
                spec["allocations"][ordinal] = Value::Null;
                spec["unallocated"].as_array_mut().is_some_and(|free| {
                    free.insert(0, json!(ordinal));
                    true
                })
            })
            .await?;
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Records an address for nobody.
pub(super) async fn leak(ground: &Ground) -> Result<()> {
    let mut done = false;
    edit(ground, |_, spec| {
        let Some(free) = spec["unallocated"].as_array_mut().filter(|free| !free.is_empty() && !done) else {
            return false;
        };
        let Some(ordinal) = free.pop().and_then(|ordinal| ordinal.as_u64()) else { return false };
        let Some(attributes) = spec["attributes"].as_array_mut() else { return false };
        attributes.push(json!({
            "handle_id": "k8s-pod-network.0000", "secondary": {"node": "node1", "namespace": "chaos", "pod": "nobody"},
        }));
        let index = attributes.len() - 1;
        spec["allocations"][ordinal as usize] = json!(index);
        done = true;
        true
    })
    .await
}

/// Changes every block that `change` says yes to, in the version it was read in.
async fn edit(ground: &Ground, mut change: impl FnMut(&IPAMBlock, &mut Value) -> bool) -> Result<()> {
    let blocks: Api<DynamicObject> = Api::all_with(ground.client.clone(), &ipam_blocks());
    for mut block in blocks.list(&ListParams::default()).await?.items {
        block.types =
            Some(kube::core::TypeMeta { api_version: "crd.projectcalico.org/v1".into(), kind: "IPAMBlock".into() });
        let typed: IPAMBlock = serde_json::from_value(serde_json::to_value(&block)?)?;
        if change(&typed, &mut block.data["spec"]) {
            let name = block.metadata.name.clone().context("a block has a name")?;
            match blocks.replace(&name, &PostParams::default(), &block).await {
                // Somebody wrote it meanwhile.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                replaced => drop(replaced?),
            }
        }
    }
    Ok(())
}

/// Writes what stands on record beside the logs.
pub(super) async fn dump(ground: &Ground) -> Result<()> {
    let blocks = Api::<IPAMBlock>::all(ground.client.clone()).list(&ListParams::default()).await?;
    let handles = Api::<calico::IPAMHandle>::all(ground.client.clone()).list(&ListParams::default()).await?;
    let affinities = Api::<calico::BlockAffinity>::all(ground.client.clone()).list(&ListParams::default()).await?;
    let records = json!({"blocks": blocks.items, "handles": handles.items, "affinities": affinities.items});
    Ok(std::fs::write(ground.site.logs().join("records.json"), serde_json::to_string_pretty(&records)?)?)
}

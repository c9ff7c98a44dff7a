//! What must not be, put in on purpose: whoever judges has to find it.

use anyhow::{Context as _, Result, bail};
use calico::{AllocationAttribute, IPAMBlock, IPAMBlockSpec};
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};

use super::ground::Ground;
use super::runtime::Runtime;

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
            edit(&runtime.ground, |block| {
                let forgotten = block.vacate(address);
                if forgotten {
                    // It is the next that is given.
                    block.unallocated.rotate_right(1);
                }
                forgotten
            })
            .await?;
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Records an address for nobody.
pub(super) async fn leak(ground: &Ground) -> Result<()> {
    let nobody = json!({
        "handle_id": "k8s-pod-network.0000", "secondary": {"node": "node1", "namespace": "chaos", "pod": "nobody"},
    });
    let nobody: AllocationAttribute = serde_json::from_value(nobody)?;
    let mut done = false;
    edit(ground, |block| {
        if done {
            return false;
        }
        let Some(ordinal) = block.unallocated.pop() else { return false };
        block.allocations[ordinal] = Some(block.attributes.len());
        block.attributes.push(nobody.clone());
        done = true;
        true
    })
    .await
}

/// Changes every block that `change` says yes to, in the version it was read in.
async fn edit(ground: &Ground, mut change: impl FnMut(&mut IPAMBlockSpec) -> bool) -> Result<()> {
    let blocks: Api<IPAMBlock> = Api::all(ground.client.clone());
    for mut block in blocks.list(&ListParams::default()).await?.items {
        if change(&mut block.spec) {
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

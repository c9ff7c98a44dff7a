//! kube-controllers' collector, by Calico's rules: an allocation is valid while the pod that it names exists on
//! that node and has the address, or reports none yet. What was not valid for the whole grace is released, all
//! addresses of a handle or none. The grace is shorter here than Calico's fifteen minutes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use calico::{Entry, Expect, IPAMBlock, IPAMHandle, cidr_name, handle_name};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod;
use kube_ipam::store::{Objects as _, StoreError};
use tokio::time::sleep;

use super::sim::Sim;
use super::time;
use super::wire::{Caller, Wire};

/// Milliseconds.
const GRACE: u64 = 30_000;
const EVERY: Duration = Duration::from_secs(11);

/// One allocation, in the version that was seen.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    handle: String,
    cidr: IpNetwork,
    address: IpAddr,
    sequence: Option<i64>,
}

pub async fn run(sim: Arc<Sim>) {
    let mut since: BTreeMap<Seen, u64> = BTreeMap::new();
    loop {
        sleep(EVERY).await;
        let caller = Caller::immortal(format!("kube-controllers #{}", sim.nth("kube-controllers")), None);
        let wire = Wire::new(&sim, &caller);
        let Ok(invalid) = invalid(&wire).await else { continue };
        let now = time::now();
        since = invalid.iter().map(|seen| (seen.clone(), since.get(seen).copied().unwrap_or(now))).collect();
        for (seen, first) in &since {
            if now - first >= GRACE {
                sim.tell("kube-controllers", "release", &seen.address.to_string(), || seen.handle.clone());
                drop(release(&wire, seen, sim.plan.cooldown).await);
            }
        }
    }
}

/// Allocations of handles none of whose addresses is valid.
async fn invalid(wire: &Wire) -> Result<Vec<Seen>, StoreError> {
    let blocks = wire.list::<IPAMBlock>("").await?;
    let pods = wire.list::<Pod>("").await?;
    let mut by_handle: BTreeMap<String, (bool, Vec<Seen>)> = BTreeMap::new();
    for block in &blocks {
        for (address, entry) in block.spec.entries() {
            let Entry::Used { attribute, sequence } = entry else { continue };
            let Some(handle) = attribute.handle() else { continue };
            let (Some(name), Some(node)) = (attribute.secondary("pod"), attribute.secondary("node")) else { continue };
            let valid = pods.iter().any(|pod| is_user(pod, name, node, address));
            let (all, seen) = by_handle.entry(handle.to_owned()).or_default();
            *all |= valid;
            seen.push(Seen { handle: handle.to_owned(), cidr: block.spec.cidr, address, sequence });
        }
    }
    Ok(by_handle.into_values().filter(|(valid, _)| !valid).flat_map(|(_, seen)| seen).collect())
}

fn is_user(pod: &Pod, name: &str, node: &str, address: IpAddr) -> bool {
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
    pod.metadata.name.as_deref() == Some(name)
        && on == Some(node)
        && ips.is_none_or(|ips| ips.is_empty() || ips.iter().any(|ip| ip.ip == address.to_string()))
}

async fn release(wire: &Wire, seen: &Seen, cooldown: i64) -> Result<(), StoreError> {
    let Some(mut block) = wire.get::<IPAMBlock>(None, &cidr_name(&seen.cidr)).await? else { return Ok(()) };
    let expect = Expect { handle: Some(seen.handle.clone()), sequence: seen.sequence };
    let now = time::clock(time::NODES)();
    if !matches!(block.spec.release_address(seen.address, &expect, cooldown, now), Ok(Some(_))) {
        return Ok(());
    }
    block.spec.advance();
    wire.replace(&block).await?;
    let Some(mut handle) = wire.get::<IPAMHandle>(None, &handle_name(&seen.handle)).await? else { return Ok(()) };
    if handle.spec.decrement(&seen.cidr, 1).is_err() {
        return Ok(());
    }
    if handle.spec.is_empty() { wire.delete(&handle).await } else { wire.replace(&handle).await.map(drop) }
}

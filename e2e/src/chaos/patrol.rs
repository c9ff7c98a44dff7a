//! Looks while pods live: whether one witness, and only one, answers for every address that was told, and whether Calico's
//! blocks record it for that pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use calico::{Entry, IPAMBlock};
use kube::Api;
use kube::api::ListParams;
use tokio::time::sleep;

use super::observer::Tenure;
use super::runtime::Runtime;
use super::tally::Line;

const ROUND: Duration = Duration::from_millis(800);
/// From being told its address until a container's witness answers, at most, on a machine with much to do.
const BEGINNING: Duration = Duration::from_secs(6);
/// How often nobody may answer for an address.
const SILENCES: u32 = 3;
const LIST_LIMIT: Duration = Duration::from_secs(5);

/// Looks until it is dropped.
pub(super) async fn patrol(runtime: &Runtime) -> Result<()> {
    let mut silences = BTreeMap::new();
    loop {
        witnesses(runtime, &mut silences).await?;
        records(runtime).await;
        sleep(ROUND).await;
    }
}

/// Asks everybody who has the addresses that are held.
async fn witnesses(runtime: &Runtime, silences: &mut BTreeMap<(IpAddr, String), u32>) -> Result<()> {
    let observer = &runtime.observer;
    let (asked, held) = (observer.now(), observer.held());
    let addresses: Vec<IpAddr> = held.iter().map(|(address, _)| *address).collect();
    let answers = runtime.ground.segment.ask(&addresses).await?;
    for (address, tenure) in held {
        runtime.tally.count(Line::Looked("questions to witnesses"));
        let key = (address, tenure.container.clone());
        if let Some(containers) = answers.get(&address) {
            observer.answered(address, asked, containers);
            silences.remove(&key);
            continue;
        }
        if tenure.age(asked) < BEGINNING || !observer.goes_on(address, &tenure) {
            continue;
        }
        let silent = silences.entry(key).or_default();
        *silent += 1;
        if *silent == SILENCES {
            observer.wrong(Some(address), format!("{} was told {address}, and nobody answers there", tenure.pod));
        }
    }
    Ok(())
}

/// Reads the blocks: what a container was told before, and has afterwards, must stand there.
async fn records(runtime: &Runtime) {
    let observer = &runtime.observer;
    let before = observer.held();
    let blocks: Api<IPAMBlock> = Api::all(runtime.ground.client.clone());
    // While the API server is down nothing can be said.
    let Ok(Ok(blocks)) = tokio::time::timeout(LIST_LIMIT, blocks.list(&ListParams::default())).await else { return };
    let recorded = recorded(&blocks.items);
    runtime.tally.count(Line::Looked("all records"));
    for (address, tenure) in before.into_iter().filter(|(address, tenure)| observer.goes_on(*address, tenure)) {
        if let Some(wrong) = judge(address, &tenure, recorded.get(&address)) {
            observer.wrong(Some(address), wrong);
        }
    }
}

/// Addresses in use, with the pods that they are recorded for.
pub(super) fn recorded(blocks: &[IPAMBlock]) -> BTreeMap<IpAddr, String> {
    let entries = blocks.iter().flat_map(|block| block.spec.entries());
    let used = entries.filter_map(|(address, entry)| match entry {
        Entry::Used { attribute, .. } => Some((address, attribute.secondary("pod").unwrap_or_default().to_owned())),
        _ => None,
    });
    used.collect()
}

fn judge(address: IpAddr, tenure: &Tenure, recorded: Option<&String>) -> Option<String> {
    match recorded {
        Some(pod) if *pod == tenure.pod => None,
        Some(other) => Some(format!("{address} was told to {}, and is recorded for {other}", tenure.pod)),
        None => Some(format!("{address} was told to {}, and no block records it", tenure.pod)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::observer::Observer;
    use super::*;

    fn block(allocations: &[(usize, &str)]) -> IPAMBlock {
        let mut ordinals: Vec<Option<usize>> = vec![None; 64];
        let mut attributes = Vec::new();
        for (ordinal, pod) in allocations {
            ordinals[*ordinal] = Some(attributes.len());
            attributes
                .push(serde_json::json!({"handle_id": format!("h-{pod}"), "secondary": {"pod": pod, "node": "n1"}}));
        }
        let free: Vec<usize> = (0..64).filter(|ordinal| ordinals[*ordinal].is_none()).collect();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock", "metadata": {"name": "10-244-0-0-26"},
            "spec": {
                "cidr": "10.244.0.0/26", "affinity": "host:n1", "strictAffinity": false, "allocations": ordinals,
                "unallocated": free, "attributes": attributes,
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_block_that_records_an_address_for_another_or_for_nobody_is_found_out() {
        let observer = Observer::new();
        let address: IpAddr = "10.244.0.9".parse().unwrap();
        observer.told(address, "c", "web-0", "n1");
        let (_, tenure) = observer.held().remove(0);
        let judged = |block: IPAMBlock| judge(address, &tenure, recorded(&[block]).get(&address));
        assert_eq!(judged(block(&[(9, "web-0"), (8, "other")])), None);
        assert!(judged(block(&[(9, "other")])).unwrap().contains("recorded for other"));
        assert!(judged(block(&[(8, "web-0")])).unwrap().contains("no block records it"));
    }
}

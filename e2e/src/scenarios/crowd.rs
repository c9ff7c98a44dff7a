//! Many nodes, many pods at once: every address is given once, and all come back.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use calico::{Entry, IPAMBlock};
use kube::Api;
use serde_json::{Value, json};

use super::{deployment, fixed};
use crate::lab::{CROWD, Lab, Network, address, node_of};

const NODES: usize = 20;
const RANDOM: usize = 200;
const FIXED: std::ops::Range<u8> = 10..20;

pub(super) async fn at_once(lab: &Lab, namespace: &str) -> Result<()> {
    let network = Network { range: ("10.244.8.1".into(), "10.244.11.254".into()), ..lab.network() };
    let crowd = lab.crowd(NODES, &network).await?;
    let there = |mut workload: Value| {
        workload["spec"]["template"]["spec"]["nodeSelector"] = json!({CROWD: "true"});
        workload
    };
    let list: Vec<String> = FIXED.map(|n| format!("10.244.12.{n}")).collect();
    let random = there(deployment(namespace, "many", RANDOM, json!({})));
    let few = there(deployment(namespace, "few", list.len(), fixed(&list.join(", "))));
    let (a, b) = (lab.create(random.clone()), lab.create(few.clone()));
    tokio::try_join!(a, b)?;
    let many = lab.running(namespace, "many", RANDOM).await?;
    let fixed = lab.running(namespace, "few", list.len()).await?;
    let of = |pods: &[k8s_openapi::api::core::v1::Pod]| pods.iter().map(address).collect::<Result<BTreeSet<IpAddr>>>();
    let (given, wished) = (of(&many)?, of(&fixed)?);
    ensure!(given.len() == RANDOM, "{RANDOM} pods have {} addresses", given.len());
    let wanted: BTreeSet<IpAddr> = list.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
    ensure!(wished == wanted, "the fixed pods have {wished:?}");
    let low: IpAddr = network.range.0.parse()?;
    let high: IpAddr = network.range.1.parse()?;
    ensure!(given.iter().all(|ip| (low..=high).contains(ip)), "an address outside of the range: {given:?}");
    let nodes = many.iter().map(node_of).collect::<Result<BTreeSet<_>>>()?;
    ensure!(nodes.len() > NODES / 2, "the pods are on {} nodes only", nodes.len());
    for pod in many.iter().chain(&fixed) {
        lab.assert_recorded(address(pod)?, pod).await?;
    }
    super::audit(lab)?;
    for (name, workload) in [("many", &random), ("few", &few)] {
        lab.delete(workload).await?;
        lab.none_left(namespace, name).await?;
    }
    let blocks = Api::<IPAMBlock>::all(lab.client()).list(&Default::default()).await?.items;
    for (address, entry) in blocks.iter().flat_map(|b| b.spec.entries()) {
        let Entry::Used { attribute, .. } = entry else { continue };
        ensure!(attribute.secondary("namespace") != Some(namespace), "{address} is still allocated: {attribute:?}");
    }
    crowd.leave(lab).await
}

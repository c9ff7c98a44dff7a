//! Both families: by chance, by wish, and all or nothing.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{deployment, only};
use crate::lab::{Lab, Network};

pub(super) async fn both_families(lab: &Lab, namespace: &str) -> Result<()> {
    lab.configure(&Network { dual_stack: true, ..lab.network() }).await?;
    let outcome = attempt(lab, namespace).await;
    lab.configure(&lab.network()).await?;
    outcome
}

async fn attempt(lab: &Lab, namespace: &str) -> Result<()> {
    lab.create(deployment(namespace, "random", 1, json!({}))).await?;
    let wish = json!({"kube-ipam.ip": "10.244.0.228, fd00:10:244::28"});
    lab.create(deployment(namespace, "wish", 1, wish)).await?;
    let random = only(lab.running(namespace, "random", 1).await?)?;
    let addresses = addresses(&random)?;
    ensure!(addresses.len() == 2 && addresses[0].is_ipv4() && addresses[1].is_ipv6(), "{addresses:?}");
    let wish = only(lab.running(namespace, "wish", 1).await?)?;
    let wanted: [IpAddr; 2] = ["10.244.0.228".parse()?, "fd00:10:244::28".parse()?];
    ensure!(self::addresses(&wish)? == wanted, "{:?}", self::addresses(&wish)?);
    for address in wanted {
        lab.assert_recorded(address, &wish).await?;
        lab.ping(&random, address).await?;
    }
    // One of the two is another's: neither is given.
    let taken = json!({"kube-ipam.ip": "10.244.0.229, fd00:10:244::28"});
    lab.create(deployment(namespace, "taken", 1, taken)).await?;
    lab.event(namespace, "taken", &["fd00:10:244::28", &format!("Deployment {namespace}/wish")]).await?;
    // The next attempt may be half way at the first look; what is kept is there at every look.
    lab.until("no half of a dual-stack request", || async {
        let (well, shown) = lab.kube_ipam(&["claims"])?;
        Ok((well && !shown.contains("10.244.0.229")).then_some(()))
    })
    .await
}

fn addresses(pod: &Pod) -> Result<Vec<IpAddr>> {
    let ips = pod.status.as_ref().and_then(|s| s.pod_ips.as_ref()).context("the pod has no addresses")?;
    ips.iter().map(|ip| Ok(ip.ip.parse()?)).collect()
}

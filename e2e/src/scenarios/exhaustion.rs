//! Too little: a range that is used up, and blocks that the rules keep from a node.

use anyhow::Result;
use serde_json::json;

use super::{assert_has, deployment, fixed, only};
use crate::lab::{Lab, Network, node_of};

pub(super) async fn range(lab: &Lab, namespace: &str) -> Result<()> {
    let small = Network { range: ("10.244.0.100".into(), "10.244.0.101".into()), ..lab.network() };
    lab.configure(&small).await?;
    let tried = async {
        lab.create(deployment(namespace, "two", 2, json!({}))).await?;
        lab.running(namespace, "two", 2).await?;
        lab.create(deployment(namespace, "third", 1, json!({}))).await?;
        lab.event(namespace, "third", &["10.244.0.100 to 10.244.0.101", "2 in all, 2 in use"]).await?;
        lab.scale("Deployment", namespace, "two", 1).await?;
        only(lab.running(namespace, "third", 1).await?).map(drop)
    };
    let outcome = tried.await;
    lab.configure(&lab.network()).await?;
    outcome
}

pub(super) async fn strict_affinity(lab: &Lab, namespace: &str) -> Result<()> {
    let config = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMConfig", "metadata": {"name": "default"},
        "spec": {"strictAffinity": true, "autoAllocateBlocks": true},
    });
    let mut first = deployment(namespace, "first", 1, fixed("10.244.1.10"));
    lab.create(config.clone()).await?;
    let tried = async {
        lab.create(first.clone()).await?;
        let pod = only(lab.running(namespace, "first", 1).await?)?;
        assert_has(lab, &pod, "10.244.1.10".parse()?).await?;
        let (owner, other) = (node_of(&pod)?, lab.other_node(&node_of(&pod)?));
        let mut second = deployment(namespace, "second", 1, fixed("10.244.1.11"));
        second["spec"]["template"]["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": other});
        lab.create(second).await?;
        lab.event(namespace, "second", &["10.244.1.0/26", &format!("host:{owner}"), "strict"]).await
    };
    let outcome = tried.await;
    lab.delete(&config).await?;
    outcome?;
    first["metadata"]["name"] = json!("second");
    // Without the rule the address is borrowed.
    assert_has(lab, &only(lab.running(namespace, "second", 1).await?)?, "10.244.1.11".parse()?).await
}

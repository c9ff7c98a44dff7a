//! Two who want one address: another owner, and a rolling update's second pod.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{assert_has, deployment, fixed, only};
use crate::lab::{Lab, address};

pub(super) async fn two_owners(lab: &Lab, namespace: &str) -> Result<()> {
    let expected = "10.244.0.225".parse()?;
    let first = deployment(namespace, "first", 1, fixed("10.244.0.225"));
    lab.create(first.clone()).await?;
    assert_has(lab, &only(lab.running(namespace, "first", 1).await?)?, expected).await?;
    lab.create(deployment(namespace, "second", 1, fixed("10.244.0.225"))).await?;
    lab.event(namespace, "second", &["10.244.0.225", &format!("Deployment {namespace}/first")]).await?;
    for pod in lab.pods(namespace, "second").await? {
        ensure!(address(&pod).is_err(), "two owners have one address");
    }
    // The first owner gives way for good; the kubelet's next attempt succeeds.
    lab.delete(&first).await?;
    assert_has(lab, &only(lab.running(namespace, "second", 1).await?)?, expected).await
}

pub(super) async fn surge(lab: &Lab, namespace: &str) -> Result<()> {
    let expected = "10.244.0.226".parse()?;
    let mut database = deployment(namespace, "database", 1, fixed("10.244.0.226"));
    database["spec"]["strategy"] = json!({"type": "RollingUpdate"});
    lab.create(database.clone()).await?;
    assert_has(lab, &only(lab.running(namespace, "database", 1).await?)?, expected).await?;
    lab.merge(&database, json!({"spec": {"template": {"metadata": {"annotations": {"revision": "2"}}}}})).await?;
    lab.event(namespace, "database", &["10.244.0.226", "rolling update that waits for itself", "maxSurge to 0"])
        .await?;
    // The remedy works.
    lab.merge(&database, json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}}))
        .await?;
    let revised = lab.until("the second revision runs", || async {
        let pods = lab.pods(namespace, "database").await?;
        let is_new = |p: &&k8s_openapi::api::core::v1::Pod| {
            p.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("revision")) && address(p).is_ok()
        };
        Ok((pods.len() == 1).then(|| pods.iter().find(is_new).cloned()).flatten())
    });
    assert_has(lab, &revised.await?, expected).await
}

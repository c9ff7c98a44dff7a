//! StatefulSets: the n-th pod has the n-th address, and keeps it.

use anyhow::Result;
use kube::ResourceExt;
use serde_json::json;

use super::{assert_has, fixed, workload};
use crate::lab::Lab;

pub(super) async fn three_with_a_list(lab: &Lab, namespace: &str) -> Result<()> {
    let list = "10.244.0.220, 10.244.0.221, 10.244.0.222";
    let more = json!({"serviceName": "db", "podManagementPolicy": "Parallel"});
    lab.create(workload("StatefulSet", namespace, "db", 3, fixed(list), more)).await?;
    let mut pods = lab.running(namespace, "db", 3).await?;
    pods.sort_by_key(ResourceExt::name_any);
    for (pod, last) in pods.iter().zip(220..) {
        assert_has(lab, pod, format!("10.244.0.{last}").parse()?).await?;
    }
    lab.delete_pod(&pods[1]).await?;
    let pods = lab.running(namespace, "db", 3).await?;
    for pod in pods.iter().filter(|p| p.name_any() == "db-1") {
        assert_has(lab, pod, "10.244.0.221".parse()?).await?;
    }
    Ok(())
}

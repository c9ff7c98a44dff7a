//! The guide's walk-through: a fixed and two random pods, a deletion, the same address on another node.

use anyhow::{Result, ensure};
use calico::IPAMBlock;
use kube::Api;
use serde_json::json;

use super::{assert_has, assert_random, deployment, fixed, only};
use crate::lab::{Lab, address, node_of};

const ADDRESS: &str = "10.244.0.216";
/// The block that it lies in.
const BLOCK_NAME: &str = "10-244-0-192-26";

pub(super) async fn walk_through(lab: &Lab, namespace: &str) -> Result<()> {
    let expected = ADDRESS.parse()?;
    // The guide's strategy is the default one: it starts no second pod as long as the template stays.
    let mut fixed_ip_test = deployment(namespace, "fixed-ip-test", 1, fixed(ADDRESS));
    fixed_ip_test["spec"]["strategy"] = json!({});
    lab.create(fixed_ip_test).await?;
    lab.create(deployment(namespace, "random-ip-test", 2, json!({}))).await?;
    let random = lab.running(namespace, "random-ip-test", 2).await?;
    let first = only(lab.running(namespace, "fixed-ip-test", 1).await?)?;
    assert_has(lab, &first, expected).await?;
    let (a, b) = (assert_random(&random[0])?, assert_random(&random[1])?);
    ensure!(a != b, "two pods have {a}");
    for pod in &random {
        lab.ping(pod, expected).await?;
        lab.ping(&first, address(pod)?).await?;
    }
    if let Some(text) = lab.calicoctl(&["ipam", "show", "--show-blocks"])? {
        ensure!(text.contains("10.244.0.192/26"), "calicoctl ipam show --show-blocks: {text}");
    }

    let node = node_of(&first)?;
    lab.cordon(&node, true).await?;
    lab.delete_pod(&first).await?;
    let second = only(lab.running(namespace, "fixed-ip-test", 1).await?)?;
    lab.cordon(&node, false).await?;
    ensure!(node_of(&second)? == lab.other_node(&node), "the pod did not move");
    assert_has(lab, &second, expected).await?;
    for pod in &random {
        lab.ping(pod, expected).await?;
    }
    if let Some(text) = lab.calicoctl(&["ipam", "show", "--show-borrowed"])? {
        // Whose block it is depends on which node's pods came first.
        let block = Api::<IPAMBlock>::all(lab.client()).get(BLOCK_NAME).await?;
        let borrowed = block.spec.host() != Some(node_of(&second)?.as_str());
        ensure!(
            text.contains(ADDRESS) == borrowed,
            "borrowed is {borrowed}; calicoctl ipam show --show-borrowed: {text}"
        );
    }
    Ok(())
}

pub(super) async fn to_zero_and_back(lab: &Lab, namespace: &str) -> Result<()> {
    // Inside the range, so that a random pod could get it if nothing kept it.
    let expected = "10.244.0.30".parse()?;
    lab.create(deployment(namespace, "licence", 1, fixed("10.244.0.30"))).await?;
    assert_has(lab, &only(lab.running(namespace, "licence", 1).await?)?, expected).await?;
    lab.scale("Deployment", namespace, "licence", 0).await?;
    lab.none_left(namespace, "licence").await?;
    lab.create(deployment(namespace, "others", 4, json!({}))).await?;
    for pod in lab.running(namespace, "others", 4).await? {
        ensure!(assert_random(&pod)? != expected, "a random pod got the fixed address of a workload scaled to zero");
    }
    lab.scale("Deployment", namespace, "licence", 1).await?;
    assert_has(lab, &only(lab.running(namespace, "licence", 1).await?)?, expected).await
}

pub(super) async fn bad_annotations(lab: &Lab, namespace: &str) -> Result<()> {
    let cases = [
        ("malformed", json!({"kube-ipam.ip": "10.244.0.300"}), "kube-ipam.ip"),
        ("outside", json!({"kube-ipam.ip": "10.99.0.1"}), "10.244.0.0/16"),
        ("gateway", json!({"kube-ipam.ip": "10.244.0.1"}), "gateway"),
        ("netmask", json!({"kube-ipam.ip": "10.244.0.217", "kube-ipam.netmask": "255.255.255.0"}), "kube-ipam.netmask"),
        ("typo", json!({"kube-ipam.IP": "10.244.0.217"}), "kube-ipam.ip"),
    ];
    for (name, annotations, _) in &cases {
        lab.create(deployment(namespace, name, 1, annotations.clone())).await?;
    }
    for (name, _, says) in &cases {
        lab.event(namespace, name, &[says]).await?;
        for pod in lab.pods(namespace, name).await? {
            ensure!(address(&pod).is_err(), "a pod with a bad annotation got {:?}", address(&pod));
        }
    }
    Ok(())
}

//! The plugin's token: `install` gets one that works on when the pod that asked for it is gone.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use calico::IPPool;
use e2e::lab::{Lab, User};
use e2e::tools;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube_ipam::store::Objects as _;
use kube_ipam::store::kube::KubeStore;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const ACCOUNT: &str = "kube-ipam";

/// An agent in a pod hears of the end of its service account.
pub async fn is_followed(lab: &Lab) -> Result<()> {
    let pod = pod(lab, "agent").await?;
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let node = lab.rights()?.kubeconfig(User::Node);
    service_account(&node, &bound_token(lab, &pod).await?, directory.path())?;
    std::fs::write(path("ipam.json"), json!({"type": "kube-ipam", "subnet": "10.244.0.0/16"}).to_string())?;
    let mut agent = tokio::process::Command::new(tools::kube_ipam()?);
    agent.args(["agent", "--node-name", "nowhere", "--collect=false", "--take-ahead=false"]);
    for (flag, value) in [
        ("--kubeconfig", node),
        ("--state-dir", path("state")),
        ("--cni-conf-dir", directory.path().to_owned()),
        ("--service-account", directory.path().to_owned()),
        ("--ipam", path("ipam.json")),
    ] {
        agent.arg(flag).arg(value);
    }
    let _agent = agent.env_remove("CNI_COMMAND").stderr(std::process::Stdio::null()).kill_on_drop(true).spawn()?;
    for _ in 0..150 {
        let calls = lab.rights()?.calls(&[User::Node])?;
        if calls.iter().any(|call| call.verb == "watch" && call.resource == "serviceaccounts") {
            return pods(lab)
                .delete("agent", &DeleteParams::default().grace_period(0))
                .await
                .map(drop)
                .map_err(Into::into);
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    anyhow::bail!("the agent does not follow its service account")
}

fn pods(lab: &Lab) -> Api<Pod> {
    Api::namespaced(lab.client(), NAMESPACE)
}

async fn pod(lab: &Lab, name: &str) -> Result<Pod> {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"serviceAccountName": ACCOUNT, "containers": [{"name": "c", "image": "none"}]},
    });
    Ok(pods(lab).create(&PostParams::default(), &serde_json::from_value(pod)?).await?)
}

pub async fn outlives_the_pod(lab: &Lab) -> Result<()> {
    let pod = pod(lab, "installer").await?;
    let directory = tempfile::tempdir()?;
    let bound = bound_token(lab, &pod).await?;
    let pods_own = directory.path().join("pods-own");
    lab.rights()?.control_plane().write_token_kubeconfig(&pods_own, &bound)?;
    let (host, port) = service_account(&pods_own, &bound, directory.path())?;
    let path = directory.path().join("kubeconfig");
    let output = Command::new(tools::kube_ipam()?)
        .args(["install", "--cni-bin-dir"])
        .arg(directory.path())
        .arg("--kubeconfig-out")
        .arg(&path)
        .arg("--service-account")
        .arg(directory.path())
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port)
        .env_remove("CNI_COMMAND")
        .output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && !said.contains("no token"), "kube-ipam install: {said}");
    may_list(&path).await.context("the plugin's token, while the pod is there")?;
    may_list(&pods_own).await.context("the pod's token, while the pod is there")?;
    pods(lab).delete("installer", &DeleteParams::default().grace_period(0)).await?;
    // Or else this test would prove nothing.
    ensure!(ends(&pods_own).await, "the token that is bound to the pod works on");
    may_list(&path).await.context("the plugin's token, when the pod is gone")
}

async fn bound_token(lab: &Lab, pod: &Pod) -> Result<String> {
    let reference = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    };
    let spec = TokenRequestSpec { bound_object_ref: Some(reference), ..Default::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(lab.client(), NAMESPACE);
    let request = TokenRequest { spec, ..Default::default() };
    let answer = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    Ok(answer.status.context("a token request without an answer")?.token)
}

/// Writes what a pod finds of its service account; where it finds the API server.
fn service_account(kubeconfig: &Path, token: &str, directory: &Path) -> Result<(String, String)> {
    let config: Value = serde_json::from_slice(&std::fs::read(kubeconfig)?)?;
    let cluster = &config["clusters"][0]["cluster"];
    let ByteString(authority) = serde_json::from_value(cluster["certificate-authority-data"].clone())?;
    std::fs::write(directory.join("ca.crt"), authority)?;
    std::fs::write(directory.join("token"), token)?;
    let server: http::Uri = cluster["server"].as_str().context("no server")?.parse()?;
    Ok((server.host().context("no host")?.to_owned(), server.port_u16().unwrap_or(443).to_string()))
}

async fn may_list(kubeconfig: &Path) -> Result<()> {
    let store = KubeStore::from_kubeconfig(kubeconfig, None).await?;
    store.list::<IPPool>("").await?;
    Ok(())
}

/// The API server looks for the pod of a token now and then only.
async fn ends(kubeconfig: &Path) -> bool {
    for _ in 0..150 {
        if may_list(kubeconfig).await.is_err() {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    false
}

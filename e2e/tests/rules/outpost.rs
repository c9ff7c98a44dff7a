//! A node on which nobody but the test calls the plugin, with the rights of the manifest.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, MainPlugin, Network, Site, User};
use e2e::standin::{self, Attachment, CniOutcome};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's name.
pub const NODE: &str = "outpost";
/// Where its pods live.
pub const NAMESPACE: &str = "outpost";

/// Third part of the first address that an outpost gives; each has a block of its own.
const FIRST: u8 = 32;

/// The node.
pub struct Outpost<'a> {
    /// The cluster.
    pub lab: &'a Lab,
    binary: PathBuf,
    stdin: Value,
    block: u8,
    pods: AtomicU32,
    _directory: TempDir,
}

impl<'a> Outpost<'a> {
    /// Makes node and namespace, if they are missing, and a configuration whose addresses lie in block `number`.
    pub async fn new(lab: &'a Lab, number: u8) -> Result<Self> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"unschedulable": true},
        });
        for object in [node, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})] {
            e2e::manifests::apply(&lab.client(), &object).await?;
        }
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(lab.client(), NAMESPACE);
        lab.until("the default service account", || async { Ok(accounts.get_opt("default").await?.map(drop)) }).await?;
        let directory = TempDir::with_prefix("outpost-")?;
        let rights = lab.rights()?;
        let site = Site {
            kubeconfig: rights.kubeconfig(User::Node).display().to_string(),
            etcd: json!({"etcdURL": rights.control_plane().site().etcd_url()}),
            log_file: Some(directory.path().join("cni.log").display().to_string()),
            state_dir: Some(directory.path().join("state").display().to_string()),
        };
        let block = FIRST + number;
        let range = (format!("10.244.{block}.10"), format!("10.244.{block}.50"));
        let network = Network { range, wait: 1, ..lab.network() };
        let mut conflist = network.conflist(MainPlugin::Ptp, NODE, &site);
        // The first version that knows STATUS and GC.
        conflist["cniVersion"] = json!("1.1.0");
        let stdin = standin::Network::of(&conflist, NODE)?.stdin(&Value::Null);
        let binary = e2e::tools::kube_ipam()?;
        Ok(Self { lab, binary, stdin, block, pods: AtomicU32::new(0), _directory: directory })
    }

    /// Address number `n` of the block.
    pub fn address(&self, n: u8) -> String {
        format!("10.244.{}.{n}", self.block)
    }

    /// What the plugin reads on stdin.
    pub fn stdin(&self) -> &Value {
        &self.stdin
    }

    /// A pod that is bound to the node.
    pub async fn pod(&self, annotations: Value) -> Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let name = format!("pod-{}-{}", self.block, number);
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": annotations},
            "spec": {"nodeName": NODE, "containers": [{"name": "nginx", "image": "nginx:latest"}]},
        });
        self.lab.create(object).await?;
        Ok(Api::namespaced(self.lab.client(), NAMESPACE).get(&name).await?)
    }

    /// Deletes a pod's object as if nobody ran it.
    pub async fn forget(&self, pod: &Pod) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.lab.client(), NAMESPACE);
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Calls the plugin as a runtime does.
    pub async fn call(&self, verb: &str, attachment: &Attachment) -> Result<CniOutcome> {
        let path = [self.binary.parent().context("a binary lies in a directory")?.to_path_buf()];
        let mut stdin = self.stdin.clone();
        for (key, value) in attachment.extra.as_object().into_iter().flatten() {
            stdin[key] = value.clone();
        }
        standin::call(&self.binary, verb, &path, &[], attachment, &stdin).await
    }

    /// The same, which must succeed.
    pub async fn succeed(&self, verb: &str, attachment: &Attachment) -> Result<CniOutcome> {
        let outcome = self.call(verb, attachment).await?;
        ensure!(outcome.is_ok(), "{verb}: {}", outcome.error_text());
        Ok(outcome)
    }
}

/// A container of a pod.
pub fn attachment(pod: &Pod) -> Attachment {
    Attachment::of_pod(&pod.namespace().unwrap_or_default(), &pod.name_any(), &pod.uid().unwrap_or_default())
}

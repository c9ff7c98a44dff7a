//! Many nodes: stand-ins beside the nodes that a lab has, on any tier.

use std::time::Duration;

use anyhow::Result;
use calico::{BlockAffinity, IPAMBlock};
use futures::future::try_join_all;
use kube::api::{Api, DeleteParams};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tempfile::TempDir;

use super::{Lab, MainPlugin, Network};
use crate::standin;
use crate::tools;

/// Label of the nodes of a crowd, for the pods that are to run there.
pub const CROWD: &str = "kube-ipam.test/crowd";

/// Stand-in nodes. They stop where they stand when dropped.
pub struct Crowd {
    nodes: Vec<standin::Node>,
    _bin: TempDir,
}

impl Lab {
    /// Starts so many stand-in nodes.
    pub async fn crowd(&self, count: usize, network: &Network) -> Result<Crowd> {
        let bin = TempDir::with_prefix("crowd-")?;
        std::os::unix::fs::symlink(tools::kube_ipam()?, bin.path().join("kube-ipam"))?;
        let started = (0..count).map(|number| {
            let name = format!("crowd{number}");
            let state = bin.path().join(&name).display().to_string();
            let path = vec![bin.path().to_path_buf()];
            async move {
                let site = self.machine.host_site(state)?;
                let conflist = network.conflist(MainPlugin::StandIn, &name, &site);
                let mut options = standin::Options::new(self.client(), &name, conflist, path);
                options.labels.push((CROWD.to_owned(), "true".to_owned()));
                // The real node controller wants to hear of them.
                options.heartbeat = Some(Duration::from_secs(5));
                standin::Node::start(options).await
            }
        });
        Ok(Crowd { nodes: try_join_all(started).await?, _bin: bin })
    }
}

impl Crowd {
    /// Removes the nodes and the empty blocks that they have, as Calico's controllers do.
    pub async fn leave(self, lab: &Lab) -> Result<()> {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name().to_owned()).collect();
        drop(self.nodes);
        let of_crowd = |node: &str| names.iter().any(|name| name == node);
        delete(lab, |block: &IPAMBlock| block.spec.host().is_some_and(of_crowd)).await?;
        delete(lab, |affinity: &BlockAffinity| of_crowd(&affinity.spec.node)).await?;
        for name in &names {
            lab.delete(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})).await?;
        }
        Ok(())
    }
}

async fn delete<K>(lab: &Lab, which: impl Fn(&K) -> bool) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::all(lab.client());
    for object in api.list(&Default::default()).await?.items.iter().filter(|object| which(object)) {
        api.delete(&object.name_any(), &DeleteParams::default()).await?;
    }
    Ok(())
}

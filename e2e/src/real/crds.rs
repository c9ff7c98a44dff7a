//! Custom resource definitions: applied, and waited for until the API server serves them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::{await_condition, conditions};
use serde::Deserialize;
use serde_json::Value;

const ESTABLISH_LIMIT: Duration = Duration::from_secs(30);

/// Where the definitions come from.
#[derive(Debug, Default)]
pub enum Crds {
    /// No definitions.
    #[default]
    None,
    /// A file of YAML documents, such as Calico's own; kube-ipam's own are added.
    File(PathBuf),
    /// Definitions made by code.
    Definitions(Vec<CustomResourceDefinition>),
}

/// Applies the definitions side by side and waits until all are established.
pub async fn apply(client: &kube::Client, crds: &Crds) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let documents = match crds {
        Crds::None => return Ok(()),
        Crds::File(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
            let documents = documents.collect::<Result<Vec<_>, _>>().with_context(|| path.display().to_string())?;
            let definitions = documents.into_iter().filter(|document| document["kind"] == "CustomResourceDefinition");
            definitions.chain([serde_json::to_value(kube_ipam::store::ipclaim::crd())?]).collect()
        }
        Crds::Definitions(definitions) => {
            definitions.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?
        }
    };
    try_join_all(documents.iter().map(|document| establish(&api, document))).await?;
    Ok(())
}

async fn establish(api: &Api<CustomResourceDefinition>, document: &Value) -> Result<()> {
    let name = document["metadata"]["name"].as_str().context("a definition without a name")?;
    let parameters = PatchParams::apply("e2e").force();
    api.patch(name, &parameters, &Patch::Apply(document)).await.with_context(|| format!("applying {name}"))?;
    let established = await_condition(api.clone(), name, conditions::is_crd_established());
    tokio::time::timeout(ESTABLISH_LIMIT, established)
        .await
        .with_context(|| format!("{name} is not established after {ESTABLISH_LIMIT:?}"))??;
    Ok(())
}

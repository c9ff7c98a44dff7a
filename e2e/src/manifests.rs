//! The manifests of `yaml/`, as tests read and apply them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use serde::Deserialize as _;
use serde_json::Value;

/// Where the add-on lives.
pub const NAMESPACE: &str = "kube-system";
/// The service account of the nodes' agents and plugins.
pub const NODE_ACCOUNT: &str = "kube-ipam";
/// The ClusterRole of that account.
pub const NODE_ROLE: &str = "kube-ipam";
/// Name of the role by which an agent asks for the plugin's token.
pub const TOKEN_ROLE: &str = "kube-ipam-token";
/// The ClusterRole of people who use the command line.
pub const ADMIN_ROLE: &str = "kube-ipam-admin";

/// Longest wait until a kind that was just defined is served.
const KIND_SERVED: Duration = Duration::from_secs(30);

/// One thing that a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural, with the subresource after a slash.
    pub resource: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: String,
}

/// The directory `yaml/`.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("yaml")
}

/// The objects of a file of `yaml/`.
pub fn documents(file: &str) -> Result<Vec<Value>> {
    let path = directory().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

/// The objects of a YAML text.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
    let documents: Vec<Value> = documents.collect::<Result<_, _>>()?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The one object of this kind and name.
pub fn only<'a>(documents: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let mut found = documents.iter().filter(|d| d["kind"] == kind && d["metadata"]["name"] == name);
    let first = found.next().with_context(|| format!("there is no {kind} {name}"))?;
    match found.next() {
        None => Ok(first),
        Some(_) => bail!("there are two of {kind} {name}"),
    }
}

/// What `kube-ipam.yaml` says of accounts and rights: all of it but what runs.
pub fn rights() -> Result<Vec<Value>> {
    let mut documents = documents("kube-ipam.yaml")?;
    let kinds = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    documents.retain(|document| kinds.iter().any(|kind| document["kind"] == *kind));
    Ok(documents)
}

/// What a role of these documents allows, thing by thing.
pub fn rights_of(documents: &[Value], kind: &str, name: &str) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    for rule in only(documents, kind, name)?["rules"].as_array().into_iter().flatten() {
        let texts = |key: &str| -> Result<Vec<String>> {
            let texts = rule[key].as_array().with_context(|| format!("{kind} {name} has a rule without {key}"))?;
            Ok(texts.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect())
        };
        for group in texts("apiGroups")? {
            for resource in texts("resources")? {
                for verb in texts("verbs")? {
                    let right = Right { group: group.clone(), resource: resource.clone(), verb };
                    if [&right.group, &right.resource, &right.verb].iter().any(|part| part.contains('*')) {
                        bail!("{kind} {name} allows {right}: name what is meant");
                    }
                    rights.insert(right);
                }
            }
        }
    }
    Ok(rights)
}

/// Applies an object, and waits for a definition until its kind is served.
pub async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind, name) = (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let applied = api.patch(&name, &PatchParams::apply("e2e").force(), &Patch::Apply(object)).await;
    applied.with_context(|| format!("applying {kind} {name}"))?;
    if kind == "CustomResourceDefinition" {
        let established = kube::runtime::wait::conditions::is_crd_established();
        let api = Api::all(client.clone());
        let served = kube::runtime::wait::await_condition(api, &name, established);
        tokio::time::timeout(KIND_SERVED, served).await.with_context(|| format!("{name} is not served"))??;
    }
    Ok(())
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, ".{}", self.group) }
    }
}

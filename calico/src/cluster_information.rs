//! `ClusterInformation`: whether Calico's datastore may be used at all.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::wire::Unknown;

/// Name of the only object of the kind.
pub const NAME: &str = "default";

/// What Calico says of the cluster as a whole.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "ClusterInformation",
    plural = "clusterinformations",
    singular = "clusterinformation",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInformationSpec {
    /// Version of Calico that last initialised the datastore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calico_version: Option<String>,
    /// Random id of the cluster.
    #[serde(default, rename = "clusterGUID", skip_serializing_if = "Option::is_none")]
    pub cluster_guid: Option<String>,
    /// Free text, such as `k8s,bgp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_type: Option<String>,
    /// False while a migration of the datastore runs: nothing may be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datastore_ready: Option<bool>,
    /// `Calico` or another product built on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl ClusterInformationSpec {
    /// Whether the datastore may be written. Absent means yes, as in Calico.
    pub fn is_ready(&self) -> bool {
        self.datastore_ready != Some(false)
    }
}

impl JsonSchema for ClusterInformationSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ClusterInformationSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "properties": {
                "calicoVersion": {"type": "string"},
                "clusterGUID": {"type": "string"},
                "clusterType": {"type": "string"},
                "datastoreReady": {"type": "boolean"},
                "variant": {"type": "string"},
            },
        })
    }
}

//! `ClusterInformation`: whether Calico's datastore may be used at all.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::wire::Unknown;

/// The oldest release whose objects this crate knows.
const OLDEST: (u32, u32) = (3, 24);

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

    /// The version, if it is known to be older than v3.24: its objects lack what everything here relies on. Products built
    /// on Calico count their own versions.
    pub fn too_old(&self) -> Option<&str> {
        let version =
            self.calico_version.as_deref().filter(|_| self.variant.as_deref().is_none_or(|v| v == "Calico"))?;
        let mut numbers =
            version.strip_prefix('v').unwrap_or(version).split('.').map_while(|part| part.parse::<u32>().ok());
        let (major, minor) = (numbers.next()?, numbers.next()?);
        ((major, minor) < OLDEST).then_some(version)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_that_is_known_to_be_older_is_too_old() {
        let spec = |version: &str, variant: Option<&str>| ClusterInformationSpec {
            calico_version: Some(version.to_owned()),
            variant: variant.map(str::to_owned),
            ..ClusterInformationSpec::default()
        };
        for version in ["v3.23.5", "v3.9.0", "3.20.1", "v2.6.12", "v3.23.0-0.dev-12-gabc"] {
            assert_eq!(spec(version, None).too_old(), Some(version));
            assert_eq!(spec(version, Some("Calico")).too_old(), Some(version));
            assert_eq!(spec(version, Some("TigeraSecureEnterprise")).too_old(), None);
        }
        for version in ["v3.24.0", "v3.32.1", "v3.33.0-0.dev-1-gabc", "v4.0.0", "master", "v3", "release-v3.20", ""] {
            assert_eq!(spec(version, None).too_old(), None, "{version}");
        }
        assert_eq!(ClusterInformationSpec::default().too_old(), None);
    }
}

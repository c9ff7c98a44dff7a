//! `IPAMConfig`: the cluster-wide rules of assignment.

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::wire::Unknown;

/// Name of the only object of the kind.
pub const NAME: &str = "default";
/// What `maxBlocksPerHost: 0` and its absence mean.
pub const DEFAULT_MAX_BLOCKS_PER_HOST: usize = 20;

/// Rules for all nodes. `Default` is what holds while no object exists.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "IPAMConfig",
    plural = "ipamconfigs",
    singular = "ipamconfig",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct IPAMConfigSpec {
    /// A node may not assign from another node's block.
    pub strict_affinity: bool,
    /// A node may claim a new block when its own are full.
    pub auto_allocate_blocks: bool,
    /// How many blocks of a family a node may own; 0 or absent is [`DEFAULT_MAX_BLOCKS_PER_HOST`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_blocks_per_host: Option<i64>,
    /// How long a released address stays unused, in seconds; absent is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_cooldown_seconds: Option<i64>,
    /// `Enabled` or `Disabled`: whether KubeVirt machines keep their addresses.
    #[serde(default, rename = "kubeVirtVMAddressPersistence", skip_serializing_if = "Option::is_none")]
    pub kube_virt_vm_address_persistence: Option<String>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Default for IPAMConfigSpec {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: None,
            ip_cooldown_seconds: None,
            kube_virt_vm_address_persistence: None,
            unknown: Unknown::new(),
        }
    }
}

impl IPAMConfigSpec {
    /// How many blocks of a family a node may own. Negative values mean the default too.
    pub fn max_blocks(&self) -> usize {
        match self.max_blocks_per_host.map(usize::try_from) {
            Some(Ok(blocks)) if blocks > 0 => blocks,
            _ => DEFAULT_MAX_BLOCKS_PER_HOST,
        }
    }

    /// Whether KubeVirt's machines keep their addresses over all their pods, as they do unless that is disabled.
    pub fn keeps_machines_addresses(&self) -> bool {
        self.kube_virt_vm_address_persistence.as_deref() != Some("Disabled")
    }

    /// How long a released address stays unused, in seconds.
    pub fn cooldown_seconds(&self) -> i64 {
        self.ip_cooldown_seconds.unwrap_or(0)
    }
}

impl JsonSchema for IPAMConfigSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IPAMConfigSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["autoAllocateBlocks", "strictAffinity"],
            "properties": {
                "autoAllocateBlocks": {"type": "boolean"},
                "ipCooldownSeconds": {"type": "integer", "minimum": 0, "maximum": 1200},
                "kubeVirtVMAddressPersistence": {"type": "string", "enum": ["Enabled", "Disabled"]},
                "maxBlocksPerHost": {"type": "integer", "minimum": 0, "maximum": 2_147_483_647},
                "strictAffinity": {"type": "boolean"},
            },
        })
    }
}

//! `IPAMHandle`: the index from a handle to the blocks that hold its addresses.
//!
//! Keeps its half of I4: counts are never negative, and a block without addresses is not listed.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::names;
use crate::net;
use crate::wire::{Unknown, null_as_default};

/// How many addresses a handle has, by block. Written before the block on assignment, after it on release.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "IPAMHandle",
    plural = "ipamhandles",
    singular = "ipamhandle",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct IPAMHandleSpec {
    /// The handle id, `<network>.<container id>` for a pod.
    #[serde(rename = "handleID")]
    pub handle_id: String,
    /// Number of addresses by block CIDR.
    #[serde(default, deserialize_with = "null_as_default")]
    pub block: BTreeMap<String, i64>,
    /// The first step of a deletion: to readers the handle is gone.
    #[serde(default, deserialize_with = "null_as_default")]
    pub deleted: bool,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Why a handle was not counted down. It is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// The handle has no address in the block.
    #[error("handle {handle} has no address in block {cidr}")]
    NotLinked {
        /// The handle id.
        handle: String,
        /// The block.
        cidr: IpNetwork,
    },
    /// The handle has fewer addresses in the block than were to be taken off.
    #[error("handle {handle} has {found} addresses in block {cidr}, fewer than {wanted}")]
    TooFew {
        /// The handle id.
        handle: String,
        /// The block.
        cidr: IpNetwork,
        /// How many it has.
        found: i64,
        /// How many were to be taken off.
        wanted: i64,
    },
}

impl IPAMHandleSpec {
    /// A handle without addresses.
    pub fn new(id: impl Into<String>) -> Self {
        Self { handle_id: id.into(), ..Self::default() }
    }

    /// The handle as an object to be created, named after its id.
    pub fn object(self) -> IPAMHandle {
        let mut handle = IPAMHandle::new(&names::handle_name(&self.handle_id), self);
        let metadata = (names::METADATA_ANNOTATION.to_owned(), "{}".to_owned());
        handle.metadata.annotations = Some([metadata].into());
        handle
    }

    /// Counts `n` addresses of the block up; gives the new count.
    pub fn increment(&mut self, cidr: &IpNetwork, n: i64) -> i64 {
        let count = self.block.entry(net::masked(cidr).to_string()).or_default();
        *count = count.saturating_add(n);
        *count
    }

    /// Counts `n` addresses of the block down; gives how many remain in it. At none the block is not listed
    /// any more.
    pub fn decrement(&mut self, cidr: &IpNetwork, n: i64) -> Result<i64, HandleError> {
        let cidr = net::masked(cidr);
        let key = cidr.to_string();
        let Some(&found) = self.block.get(&key) else {
            return Err(HandleError::NotLinked { handle: self.handle_id.clone(), cidr });
        };
        let remaining = found.saturating_sub(n);
        if remaining < 0 {
            return Err(HandleError::TooFew { handle: self.handle_id.clone(), cidr, found, wanted: n });
        }
        if remaining == 0 {
            self.block.remove(&key);
        } else {
            self.block.insert(key, remaining);
        }
        Ok(remaining)
    }

    /// How many addresses the handle has in the block.
    pub fn count(&self, cidr: &IpNetwork) -> i64 {
        self.block.get(&net::masked(cidr).to_string()).copied().unwrap_or(0)
    }

    /// The blocks in which the handle has addresses. Entries that are no CIDR are left out.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> {
        self.block.keys().filter_map(|cidr| cidr.parse().ok())
    }

    /// Whether the handle has no address: then it is to be deleted.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// Whether a deletion has begun: to readers the handle is gone.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }
}

impl JsonSchema for IPAMHandleSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IPAMHandleSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["block", "handleID"],
            "properties": {
                "block": {"type": "object", "additionalProperties": {"type": "integer"}},
                "deleted": {"type": "boolean"},
                "handleID": {"type": "string"},
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_decrement_changes_nothing() {
        let cidr: IpNetwork = "10.0.0.0/26".parse().unwrap();
        let mut handle = IPAMHandleSpec::new("net.c1");
        assert!(matches!(handle.decrement(&cidr, 1), Err(HandleError::NotLinked { .. })));
        handle.increment(&cidr, 2);
        let before = handle.clone();
        assert!(matches!(handle.decrement(&cidr, 3), Err(HandleError::TooFew { found: 2, wanted: 3, .. })));
        assert_eq!(handle, before);
        assert_eq!(handle.decrement(&cidr, 2), Ok(0));
        assert!(handle.is_empty());
    }
}

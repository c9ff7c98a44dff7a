//! Who owns a pod's fixed address: what survives the pod.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::cni::CniError;

/// The owner of a fixed address. Two owners are equal if all but the version are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The pod's namespace.
    pub namespace: String,
    /// API group of the kind; empty for the core group.
    pub group: String,
    /// API version of the kind, for reading the object; says nothing about identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `Deployment`, `StatefulSet`, `Pod`, ...
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Which pod of a StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
}

impl Owner {
    /// The owner of a pod's addresses. Code 7 for a malformed annotation `kube-ipam.owner`, code 6 for a pod without name or namespace.
    pub fn of(pod: &Pod) -> Result<Owner, CniError> {
        let _ = pod;
        unimplemented!()
    }

    fn identity(&self) -> (&str, &str, &str, &str, Option<u32>) {
        (&self.namespace, &self.group, &self.kind, &self.name, self.ordinal)
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Owner) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Owner {}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Owner) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Owner) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        match self.ordinal {
            Some(ordinal) => write!(f, " #{ordinal}"),
            None => Ok(()),
        }
    }
}

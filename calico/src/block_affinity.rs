//! `BlockAffinity`: a node's claim to a block, made before the block exists.
//!
//! Keeps its half of I6: a claim is confirmed only after the block that says the same was seen or created.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::affinity::{Affinity, AffinityError};
use crate::names;
use crate::net;
use crate::wire::Unknown;

/// A claim of a node to a block.
#[derive(CustomResource, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "crd.projectcalico.org",
    version = "v1",
    kind = "BlockAffinity",
    plural = "blockaffinities",
    singular = "blockaffinity",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct BlockAffinitySpec {
    /// The block.
    pub cidr: IpNetwork,
    /// The node, or the virtual name.
    pub node: String,
    /// See [`AffinityState`]. Empty, from old writers, means confirmed.
    pub state: String,
    /// The first step of a deletion: to readers the claim is gone.
    #[serde(default, with = "text_or_bool")]
    pub deleted: bool,
    /// `host` or `virtual`; absent, from old writers, means host.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Fields this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How far a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AffinityState {
    /// Announced: as if absent, until the block says the same.
    Pending,
    /// The block exists and says the same.
    Confirmed,
    /// About to be given up.
    PendingDeletion,
}

impl AffinityState {
    /// As it is on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Confirmed => "confirmed",
            Self::PendingDeletion => "pendingDeletion",
        }
    }
}

impl BlockAffinitySpec {
    /// Who claims the block; an error if the type is neither `host` nor `virtual`.
    pub fn owner(&self) -> Result<Affinity, AffinityError> {
        Affinity::from_parts(self.type_.as_deref(), &self.node)
    }

    /// Whether the claim holds. Empty counts: old writers knew no states.
    pub fn is_confirmed(&self) -> bool {
        self.state.is_empty() || self.state == AffinityState::Confirmed.as_str()
    }

    /// Whether a deletion has begun: to readers the claim is gone.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }
}

impl BlockAffinity {
    /// A pending claim of `owner` to `cidr`, as an object to be created: named and labelled as Calico's
    /// readers look for it.
    pub fn pending(owner: &Affinity, cidr: &IpNetwork) -> Self {
        let cidr = net::masked(cidr);
        let spec = BlockAffinitySpec {
            cidr,
            node: owner.name().to_owned(),
            state: AffinityState::Pending.as_str().to_owned(),
            deleted: false,
            type_: Some(owner.kind().to_owned()),
            unknown: Unknown::new(),
        };
        let labels = labels(owner, &cidr);
        let metadata = serde_json::json!({ "labels": labels }).to_string();
        let mut object = Self::new(&names::affinity_name(owner.name(), &cidr), spec);
        object.metadata.labels = Some(labels);
        object.metadata.annotations = Some([(names::METADATA_ANNOTATION.to_owned(), metadata)].into());
        object
    }

    /// Whether it has the labels by which its owner looks for it. Writers before v3.31 gave none.
    pub fn is_labelled(&self) -> bool {
        let found = self.metadata.labels.as_ref();
        let has = |(key, value): (&String, &String)| found.is_some_and(|found| found.get(key) == Some(value));
        self.spec.owner().is_ok_and(|owner| labels(&owner, &self.spec.cidr).iter().all(has))
    }

    /// The same object with those labels, also in the copy of them that Calico's client keeps in `crd.projectcalico.org/v1`;
    /// as it is, if nobody knows its type of owner.
    pub fn labelled(mut self) -> Self {
        let Ok(owner) = self.spec.owner() else { return self };
        let labels = labels(&owner, &self.spec.cidr);
        let copy = self.metadata.annotations.as_mut().and_then(|all| all.get_mut(names::METADATA_ANNOTATION));
        if let Some(copy) = copy
            && let Ok(Value::Object(mut metadata)) = serde_json::from_str(copy)
        {
            let copied = metadata.entry("labels").or_insert_with(|| Value::Object(Unknown::new()));
            if let Some(copied) = copied.as_object_mut() {
                copied.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone().into())));
            }
            *copy = Value::Object(metadata).to_string();
        }
        self.metadata.labels.get_or_insert_default().extend(labels);
        self
    }

    /// The same object in another state.
    pub fn with_state(mut self, state: AffinityState) -> Self {
        self.spec.state = state.as_str().to_owned();
        self
    }

    /// The same object after the first step of its deletion.
    pub fn marked_deleted(mut self) -> Self {
        self.spec.deleted = true;
        self
    }

    /// Whether the claim holds, see [`BlockAffinitySpec::is_confirmed`].
    pub fn is_confirmed(&self) -> bool {
        self.spec.is_confirmed()
    }

    /// Whether a deletion has begun, see [`BlockAffinitySpec::is_deleted`].
    pub fn is_deleted(&self) -> bool {
        self.spec.is_deleted()
    }
}

/// The labels of a claim of `owner` to `cidr`; all but the version select the claims of one owner.
pub fn labels(owner: &Affinity, cidr: &IpNetwork) -> BTreeMap<String, String> {
    let version = if cidr.is_ipv4() { "4" } else { "6" };
    let labels = [
        (names::AFFINITY_TYPE_LABEL, owner.kind().to_owned()),
        (names::HOSTNAME_HASH_LABEL, names::hostname_hash(owner.name())),
        (names::IP_VERSION_LABEL, version.to_owned()),
    ];
    labels.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Label selector for the claims of `owner` to blocks of both families. It misses the claims of writers
/// that knew no labels; Calico's own reader misses them too.
pub fn label_selector(owner: &Affinity) -> String {
    let hash = names::hostname_hash(owner.name());
    format!("{}={hash},{}={}", names::HOSTNAME_HASH_LABEL, names::AFFINITY_TYPE_LABEL, owner.kind())
}

/// Label selector for the claims of whichever owner that have no labels, as writers before v3.31 left them.
pub fn unlabelled_selector() -> String {
    format!("!{}", names::HOSTNAME_HASH_LABEL)
}

/// A truth value that is text in `crd.projectcalico.org/v1` and none in `projectcalico.org/v3`. It is written as text, see
/// [`crate::ApiGroup::shape`].
mod text_or_bool {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Bool(bool),
        Text(String),
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if *value { "true" } else { "false" })
    }

    /// Accepts the spellings that Go's readers accept; any other text is false.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        Ok(match Option::<Either>::deserialize(deserializer)? {
            Some(Either::Bool(value)) => value,
            Some(Either::Text(text)) => matches!(text.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"),
            None => false,
        })
    }
}

impl JsonSchema for BlockAffinitySpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BlockAffinitySpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["cidr", "deleted", "node", "state"],
            "properties": {
                "cidr": {"type": "string"},
                "deleted": {"type": "string"},
                "node": {"type": "string"},
                "state": {"type": "string"},
                "type": {"type": "string"},
            },
        })
    }
}

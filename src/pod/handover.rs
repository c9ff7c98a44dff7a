//! What becomes of an update whose new pod needs the address of the old one.

use std::collections::BTreeMap;

use super::{HANDOVER, Owner};
use crate::cni::CniError;

/// What becomes of an update whose new pod needs an address that a pod of the old revision keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HandoverMode {
    /// The new pod is refused, and told the remedy.
    #[default]
    Refuse,
    /// The old pod is evicted, and the new one gets the address.
    Evict,
}

// === impl HandoverMode ===

impl HandoverMode {
    /// What is wrong with any other text.
    pub(crate) const WRONG: &str = "is neither evict nor refuse";
    /// What to write in its place.
    pub(crate) const RIGHT: &str =
        "write \"evict\", or \"refuse\": then the Deployment needs the strategy Recreate or maxSurge 0";

    /// Reads the word; none if it is another one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "evict" => Some(Self::Evict),
            "refuse" => Some(Self::Refuse),
            _ => None,
        }
    }

    /// Whether an update of this owner may hand its addresses over: its kind tells its pods' revisions apart, or only
    /// the pods' controllers know it.
    pub(crate) fn serves(self, owner: &Owner) -> bool {
        const KINDS: [(&str, &str); 4] = [
            ("apps", "Deployment"),
            ("apps", "DaemonSet"),
            ("argoproj.io", "Rollout"),
            ("apps.openshift.io", "DeploymentConfig"),
        ];
        self == Self::Evict && (owner.is_named() || KINDS.contains(&(&owner.group, &owner.kind)))
    }

    /// What a pod's annotation says; none if it has none. Code 7 if it says something else.
    ///
    /// # Errors
    /// The annotation is neither of the two words.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, CniError> {
        let Some(text) = annotations.get(HANDOVER) else { return Ok(None) };
        let mode = Self::parse(text).ok_or_else(|| CniError::annotation(HANDOVER, text, Self::WRONG, Self::RIGHT))?;
        Ok(Some(mode))
    }
}

//! Whose claims a ledger in etcd holds: by its marker, and for a ledger of before there were markers by what its
//! claims name. Pure.
//!
//! A Node's UID is never given twice, so a holder on a Node of this cluster proves that the claim is this cluster's,
//! and holders on other Nodes alone prove that it is not. An owner is recorded by its name, and two clusters may well
//! have a Deployment of one name: an owner counts only where no holder does.

use std::collections::BTreeSet;

use crate::claim::{Claim, Holder};

/// How a ledger's marker stands to this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Marker {
    /// There is none: nobody has written to the ledger, or only versions that knew no marker.
    Missing,
    /// It names this cluster.
    Ours,
    /// It names the cluster of this UID.
    Others(String),
}

/// What was found in a ledger without a marker, and of it in this cluster.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The claims that can be read.
    pub claims: Vec<Claim>,
    /// All claims, also those that cannot be read.
    pub total: usize,
    /// UIDs of this cluster's Nodes. They need not be known if no claim names one.
    pub nodes: BTreeSet<String>,
    /// Whether the owner of one of the claims exists in this cluster. False if that was not asked.
    pub owner_exists: bool,
}

/// Whose the claims of a ledger without a marker are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// There are none.
    Nobodys,
    /// This cluster's.
    Ours,
    /// Another cluster's: all holders are on Nodes that this cluster does not have, such as this one.
    Others(Box<Holder>),
    /// Nothing tells.
    Unclear,
}

impl Marker {
    /// What the marker's value means for the cluster of that UID.
    pub(super) fn of(value: Option<&[u8]>, cluster: &str) -> Self {
        match value.map(String::from_utf8_lossy) {
            None => Self::Missing,
            Some(uid) if uid == cluster => Self::Ours,
            Some(uid) => Self::Others(uid.into_owned()),
        }
    }
}

impl Seen {
    /// The claims' holders whose Nodes are known by UID.
    pub(super) fn holders(&self) -> impl Iterator<Item = (&Holder, &str)> {
        self.claims.iter().filter_map(|claim| {
            let holder = claim.holder.as_ref()?;
            Some((holder, holder.node_uid.as_deref()?))
        })
    }

    /// Whose the claims are.
    pub(super) fn whose(&self) -> Whose {
        if self.total == 0 {
            return Whose::Nobodys;
        }
        if self.holders().any(|(_, node)| self.nodes.contains(node)) {
            return Whose::Ours;
        }
        match self.holders().next() {
            Some((holder, _)) => Whose::Others(Box::new(holder.clone())),
            None if self.owner_exists => Whose::Ours,
            None => Whose::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(node_uid: Option<&str>) -> Claim {
        let holder = node_uid.map(|uid| {
            json!({
                "podUid": "u", "pod": "web-1", "containerId": "c", "interface": "eth0", "node": "n1",
                "nodeUid": (!uid.is_empty()).then_some(uid), "since": "2026-11-24T02:01:28Z",
            })
        });
        serde_json::from_value(json!({
            "address": "10.244.0.216", "generation": 1, "created": "2026-11-24T02:01:28Z", "holder": holder,
            "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
        }))
        .unwrap()
    }

    fn seen(claims: &[Option<&str>], owner_exists: bool) -> Seen {
        let claims: Vec<Claim> = claims.iter().map(|node| claim(*node)).collect();
        let nodes = ["here-1", "here-2"].map(str::to_owned).into();
        Seen { total: claims.len(), claims, nodes, owner_exists }
    }

    fn is_others(whose: &Whose) -> bool {
        matches!(whose, Whose::Others(holder) if holder.node_uid.as_deref() == Some("there"))
    }

    #[test]
    fn a_marker_names_one_cluster() {
        assert_eq!(Marker::of(None, "a"), Marker::Missing);
        assert_eq!(Marker::of(Some(b"a"), "a"), Marker::Ours);
        assert_eq!(Marker::of(Some(b"b"), "a"), Marker::Others("b".into()));
        assert_eq!(Marker::of(Some(b""), "a"), Marker::Others(String::new()));
    }

    #[test]
    fn one_holder_on_a_node_of_this_cluster_makes_the_claims_ours() {
        assert_eq!(seen(&[None, Some("there"), Some("here-2")], false).whose(), Whose::Ours);
    }

    #[test]
    fn claims_that_are_held_on_other_clusters_nodes_are_theirs_even_if_an_owner_has_a_namesake_here() {
        for owner_exists in [false, true] {
            let whose = seen(&[None, Some("there")], owner_exists).whose();
            assert!(is_others(&whose), "{whose:?}");
        }
    }

    #[test]
    fn claims_that_nobody_holds_are_ours_if_an_owner_exists_and_anybodys_if_none_does() {
        assert_eq!(seen(&[None, None], true).whose(), Whose::Ours);
        assert_eq!(seen(&[None, None], false).whose(), Whose::Unclear);
    }

    #[test]
    fn a_node_that_is_known_by_name_only_proves_nothing() {
        assert_eq!(seen(&[Some("")], false).whose(), Whose::Unclear);
        assert_eq!(seen(&[Some("")], true).whose(), Whose::Ours);
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_one_all_the_same() {
        assert_eq!(Seen::default().whose(), Whose::Nobodys);
        assert_eq!(Seen { total: 1, ..Seen::default() }.whose(), Whose::Unclear);
    }
}

//! Where the network, its claims and its ranges are, for what no flag says. Looked at in this order: the network
//! configuration lists of this machine, if it is a node of the cluster; the add-on's ConfigMap; the claims that exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::{Value, json};

use super::ledger::Choice;
use crate::install::InUse;
use crate::netconf::EtcdConfig;
use crate::store::cluster::ClusterId;
use crate::store::ipclaim::IPClaim;
use crate::store::kube::KubeStore;
use crate::store::{Failure, Objects as _, StoreError};

/// The add-on's ConfigMap: namespace, name and key.
const ADD_ON: (&str, &str, &str) = ("kube-system", "kube-ipam", "ipam.json");

/// The name that the list around a section alone is given, which has none of its own.
const AROUND: &str = "k8s-pod-network";

/// IPClaims in one answer.
const PAGE: u32 = 500;

/// A configuration that was found, as a list, and where.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub list: Value,
    pub at: String,
}

/// A list of this machine.
pub(super) struct NodeList {
    pub found: Found,
    pub kubeconfig: Option<PathBuf>,
}

/// The list of a directory that the runtime uses, if it is kube-ipam's.
pub(super) fn node_list(directory: &Path) -> Option<NodeList> {
    let (path, list, net) = InUse::of(directory)?.ours()?;
    Some(NodeList { found: Found { list, at: path.display().to_string() }, kubeconfig: net.kubeconfig })
}

impl NodeList {
    /// Whether the list's cluster is the one that `store` reaches: a person may ask for another one.
    pub(super) async fn is_of(&self, store: &KubeStore) -> bool {
        let Some(kubeconfig) = &self.kubeconfig else { return false };
        let Ok(own) = KubeStore::from_kubeconfig(kubeconfig, None).await else { return false };
        if own.origin().is_some() && own.origin() == store.origin() {
            return true;
        }
        let (own, asked) = (ClusterId::new(own), ClusterId::new(store.clone()));
        matches!((own.uid().await, asked.uid().await), (Ok(own), Ok(asked)) if own == asked)
    }
}

/// The section by which the add-on configures its nodes, as a list; `None` if there is none, or it may not be read.
pub(super) async fn add_on(store: &KubeStore) -> Result<Option<Found>> {
    let map = match store.get::<ConfigMap>(Some(ADD_ON.0), ADD_ON.1).await {
        Err(StoreError { failure: Failure::Denied(_), .. }) => None,
        found => found?,
    };
    let Some(text) = map.and_then(|map| map.data?.remove(ADD_ON.2)) else { return Ok(None) };
    let at = format!("ConfigMap {}/{}", ADD_ON.0, ADD_ON.1);
    let section: Value = serde_json::from_str(&text).with_context(|| format!("{at}, {}", ADD_ON.2))?;
    Ok(Some(Found { list: around(&section), at }))
}

pub(super) fn around(section: &Value) -> Value {
    json!({"name": AROUND, "cniVersion": "0.3.1", "plugins": [{"type": "calico", "ipam": section}]})
}

/// Why claims in the etcd of a configuration cannot be read here: a file that it names is on the nodes only.
pub(super) fn elsewhere(etcd: &EtcdConfig, at: &str) -> Option<String> {
    let files = [&etcd.ca_file, &etcd.cert_file, &etcd.key_file, &etcd.password_file];
    let file = files.into_iter().flatten().find(|file| !file.exists())?;
    Some(format!(
        "by {at} they are in etcd, whose {} is not on this machine; run this on a node, or name files of yours by \
         --etcd-ca, --etcd-cert and --etcd-key",
        file.display()
    ))
}

/// The networks of the IPClaims that exist, and whether claims of theirs were carried to another ledger. One that
/// cannot be read otherwise still says its network. `None` if the API server does not know the kind.
pub(super) async fn networks(store: &KubeStore) -> Result<Option<BTreeMap<String, bool>>, kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(store.client().clone(), &ApiResource::erase::<IPClaim>(&()));
    let mut page = ListParams::default().limit(PAGE);
    let mut found = BTreeMap::new();
    loop {
        let listed = match api.list(&page).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            listed => listed?,
        };
        for claim in &listed.items {
            if let Some(network) = claim.data.pointer("/spec/network").and_then(Value::as_str) {
                *found.entry(network.to_owned()).or_default() |= claim.data.pointer("/spec/moved").is_some();
            }
        }
        match listed.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = ListParams::default().limit(PAGE).continue_token(&token),
            None => return Ok(Some(found)),
        }
    }
}

/// What the IPClaims that exist tell: the network, if it was not known, and whether they are its ledger.
pub(super) fn by_claims(known: Option<&str>, claims: Option<&BTreeMap<String, bool>>) -> (Option<String>, Choice) {
    let unknown = |network: Option<&str>, why: String| (network.map(str::to_owned), Choice::Unknown(why));
    let Some(claims) = claims else {
        return unknown(known, "the API server does not know IPClaims, and nothing names an etcd".to_owned());
    };
    let network = match (known, claims.len()) {
        (Some(network), _) => network,
        (None, 0) => return unknown(None, "there are no IPClaims, and nothing names a network or an etcd".to_owned()),
        (None, 1) => claims.keys().next().map(String::as_str).unwrap_or_default(),
        (None, _) => {
            let names: Vec<&str> = claims.keys().map(String::as_str).collect();
            return unknown(
                None,
                format!("there are IPClaims of networks {}; name one by --network", names.join(", ")),
            );
        }
    };
    match claims.get(network) {
        None => unknown(known, format!("there are no IPClaims of network {network}, and nothing names an etcd")),
        Some(true) => {
            unknown(Some(network), format!("IPClaims of network {network} were carried to etcd, and nothing names it"))
        }
        Some(false) => (Some(network.to_owned()), Choice::Implied),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(networks: &[(&str, bool)]) -> BTreeMap<String, bool> {
        networks.iter().map(|(name, moved)| ((*name).to_owned(), *moved)).collect()
    }

    #[test]
    fn claims_that_exist_tell_the_network_only_if_they_are_of_one_that_was_not_left() {
        let (one, two) = (claims(&[("a", false)]), claims(&[("a", false), ("b", true)]));
        let told = |known, claims: &BTreeMap<String, bool>| by_claims(known, Some(claims));
        assert_eq!(told(None, &one), (Some("a".to_owned()), Choice::Implied));
        assert_eq!(told(Some("a"), &two), (Some("a".to_owned()), Choice::Implied));
        for (known, claims, why) in [
            (None, &two, "of networks a, b; name one by --network"),
            (Some("b"), &two, "carried to etcd"),
            (Some("c"), &two, "no IPClaims of network c"),
            (None, &BTreeMap::new(), "there are no IPClaims"),
        ] {
            let (network, Choice::Unknown(said)) = told(known, claims) else { panic!("{known:?} is believed") };
            assert!(said.contains(why) && network.as_deref() == known, "{said}");
        }
        assert!(matches!(by_claims(None, None), (None, Choice::Unknown(_))));
    }

    #[test]
    fn the_first_list_of_a_node_counts_and_only_if_it_is_ours() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, kind: &str| {
            let section = json!({"type": kind, "subnet": "10.244.0.0/16", "kubeConfig": "/k"});
            std::fs::write(directory.path().join(name), around(&section).to_string()).unwrap();
        };
        assert!(node_list(directory.path()).is_none());
        write("10-calico.conflist", "kube-ipam");
        assert_eq!(node_list(directory.path()).unwrap().kubeconfig.as_deref(), Some(Path::new("/k")));
        write("00-other.conflist", "host-local");
        assert!(node_list(directory.path()).is_none());
    }
}

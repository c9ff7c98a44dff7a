//! The network that this node's pods are put into, before any of them says so: the first configuration in the
//! runtime's directory, as the runtime chooses it, or what Multus there delegates to.

use std::path::Path;

use crate::install::InUse;
use crate::netconf::NetConf;

/// The configuration that pods get by default; `None` if there is none, or if it is not kube-ipam's.
pub(super) fn default_network(directory: &Path) -> Option<NetConf> {
    let (_, _, net) = InUse::of(directory)?.ours()?;
    Some(net)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn list(name: &str, kind: &str) -> String {
        let ipam = json!({"type": kind, "subnet": "10.244.0.0/16"});
        json!({"name": name, "cniVersion": "0.3.1", "plugins": [{"type": "calico", "ipam": ipam}]}).to_string()
    }

    #[test]
    fn the_first_file_counts_and_only_if_it_is_ours() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(default_network(directory.path()), None);
        write("00-note.txt", "{}".into());
        write("20-later.conflist", list("later", "kube-ipam"));
        assert_eq!(default_network(directory.path()).unwrap().network, "later");
        write("10-calico.conflist", list("first", "kube-ipam"));
        assert_eq!(default_network(directory.path()).unwrap().network, "first");
        write("10-calico.conflist", list("first", "calico-ipam"));
        assert_eq!(default_network(directory.path()), None);
        // What is none is passed over.
        write("10-calico.conflist", "{".into());
        assert_eq!(default_network(directory.path()).unwrap().network, "later");
        write(
            "05-multus.conf",
            json!({"type": "multus", "clusterNetwork": "/host/etc/cni/net.d/20-later.conflist"}).to_string(),
        );
        assert_eq!(default_network(directory.path()).unwrap().network, "later");
        let copy: serde_json::Value = serde_json::from_str(&list("copied", "kube-ipam")).unwrap();
        write("05-multus.conf", json!({"type": "multus", "delegates": [copy]}).to_string());
        assert_eq!(default_network(directory.path()).unwrap().network, "copied");
    }
}

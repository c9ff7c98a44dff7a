//! Rights that are written down twice are the same, and those for Calico are bound to whom they are for.

use e2e::manifests::rights_of;

use serde_json::Value;

use crate::{documents, object};

#[test]
fn calico_yaml_grants_kube_ipam_what_kube_ipam_yaml_does() {
    let (with_calico, alone) = (documents("calico.yaml"), documents("kube-ipam.yaml"));
    for kind in ["ClusterRole", "Role"] {
        let of = |documents| rights_of(documents, kind, "kube-ipam").unwrap();
        assert_eq!(of(&with_calico), of(&alone), "{kind} kube-ipam");
        let rules = |file| object(file, kind, "kube-ipam")["rules"].clone();
        assert_eq!(rules("calico.yaml"), rules("kube-ipam.yaml"), "{kind} kube-ipam");
    }
}

#[test]
fn every_role_is_bound_to_accounts_that_are_there() {
    for file in ["calico.yaml", "kube-ipam.yaml"] {
        let all = documents(file);
        let named = |kind: &str| -> Vec<Value> {
            all.iter().filter(|d| d["kind"] == kind).map(|d| d["metadata"]["name"].clone()).collect()
        };
        let accounts = named("ServiceAccount");
        for (role, binding) in [("ClusterRole", "ClusterRoleBinding"), ("Role", "RoleBinding")] {
            let bindings: Vec<_> = all.iter().filter(|d| d["kind"] == binding).collect();
            for name in named(role).iter().filter(|name| **name != "kube-ipam-admin") {
                assert!(
                    bindings.iter().any(|b| b["roleRef"]["kind"] == role && b["roleRef"]["name"] == *name),
                    "{file}: {role} {name} is bound to nobody"
                );
            }
            for subject in bindings.iter().flat_map(|b| b["subjects"].as_array().unwrap()) {
                assert_eq!(subject["namespace"], "kube-system", "{file}");
                assert!(accounts.contains(&subject["name"]), "{file}: there is no account {}", subject["name"]);
            }
        }
        for workload in all.iter().filter(|d| d["spec"]["template"].is_object()) {
            let account = &workload["spec"]["template"]["spec"]["serviceAccountName"];
            assert!(accounts.contains(account), "{file}: {} runs as {account}", workload["metadata"]["name"]);
        }
    }
}

/// What the sidecar in calico-node's pod may do: its account is Calico's.
#[test]
fn the_agent_beside_calico_node_may_what_the_agent_alone_may() {
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        let subjects = object("calico.yaml", kind, "kube-ipam")["subjects"].clone();
        assert!(subjects.as_array().unwrap().iter().any(|s| s["name"] == "calico-node"), "{kind}: {subjects}");
    }
}

//! The definitions of `calico.yaml`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::documents;

/// The kinds that Calico's components read and write besides the crate's, and whether they live in namespaces.
const OTHERS: [(&str, bool); 15] = [
    ("BGPConfiguration", false),
    ("BGPFilter", false),
    ("BGPPeer", false),
    ("CalicoNodeStatus", false),
    ("FelixConfiguration", false),
    ("GlobalNetworkPolicy", false),
    ("GlobalNetworkSet", false),
    ("HostEndpoint", false),
    ("KubeControllersConfiguration", false),
    ("NetworkPolicy", true),
    ("NetworkSet", true),
    ("StagedGlobalNetworkPolicy", false),
    ("StagedKubernetesNetworkPolicy", true),
    ("StagedNetworkPolicy", true),
    ("Tier", false),
];

fn definitions() -> BTreeMap<String, Value> {
    let all = documents("calico.yaml").into_iter().filter(|d| d["kind"] == "CustomResourceDefinition");
    all.map(|d| (d["metadata"]["name"].as_str().unwrap().to_owned(), d)).collect()
}

#[test]
fn the_definitions_of_ipam_are_those_of_the_crate() {
    let written = definitions();
    let mut right = String::new();
    let mut wrong = Vec::new();
    for crd in calico::crds() {
        let mut expected = serde_json::to_value(&crd).unwrap();
        // It says only that it was generated.
        expected["spec"]["versions"][0]["schema"]["openAPIV3Schema"].as_object_mut().unwrap().remove("description");
        let name = crd.metadata.name.clone().unwrap();
        right += &format!("---\n{}", serde_yaml_ng::to_string(&expected).unwrap());
        if written.get(&name) != Some(&expected) {
            wrong.push(name);
        }
    }
    let file = e2e::tools::target_directory().unwrap().join("calico-ipam-crds.yaml");
    if !wrong.is_empty() {
        std::fs::write(&file, right).unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:?} in yaml/calico.yaml are not as the crate has them: {}", file.display());
}

/// Claims go with their definition. So it is in no file that people delete to be rid of the add-on.
#[test]
fn the_definition_of_claims_is_the_types_and_stays_when_the_add_on_is_deleted() {
    let name = "ipclaims.kube-ipam.io";
    let expected = serde_json::to_value(kube_ipam::store::ipclaim::crd()).unwrap();
    assert_eq!(crate::object("ipclaims.yaml", "CustomResourceDefinition", name), expected);
    for file in ["kube-ipam.yaml", "uninstall.yaml", "calico.yaml"] {
        assert!(documents(file).iter().all(|document| document["metadata"]["name"] != name), "{file}");
    }
}

#[test]
fn every_other_kind_of_calico_is_defined_and_keeps_all_its_fields() {
    let written = definitions();
    let of_crate: BTreeSet<String> = calico::crds().into_iter().map(|crd| crd.metadata.name.unwrap()).collect();
    let names = |kind: &str| match kind.strip_suffix('y') {
        Some(stem) => format!("{}ies.crd.projectcalico.org", stem.to_lowercase()),
        None if kind.ends_with('s') => format!("{}es.crd.projectcalico.org", kind.to_lowercase()),
        None => format!("{}s.crd.projectcalico.org", kind.to_lowercase()),
    };
    let mut expected: BTreeSet<String> = OTHERS.iter().map(|(kind, _)| names(kind)).collect();
    expected.insert("clusternetworkpolicies.policy.networking.k8s.io".to_owned());
    let others: BTreeSet<String> = written.keys().filter(|name| !of_crate.contains(*name)).cloned().collect();
    assert_eq!(others, expected);
    for (kind, namespaced) in OTHERS {
        let spec = &written[&names(kind)]["spec"];
        assert_eq!(spec["scope"], if namespaced { "Namespaced" } else { "Cluster" }, "{kind}");
        assert_eq!((&spec["names"]["kind"], &spec["names"]["listKind"]), (&kind.into(), &format!("{kind}List").into()));
        assert_eq!(spec["names"]["singular"], kind.to_lowercase());
        let [version] = spec["versions"].as_array().unwrap().as_slice() else { panic!("{kind} has several versions") };
        assert_eq!(
            (&version["name"], &version["served"], &version["storage"]),
            (&"v1".into(), &true.into(), &true.into())
        );
        let spec = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(spec["x-kubernetes-preserve-unknown-fields"], true, "{kind} would lose fields");
    }
}

/// What Calico v3.32.1 relies on: fields that the API server fills in.
#[test]
fn what_the_api_server_fills_in_is_as_in_calicos_own_definitions() {
    let mut found = BTreeSet::new();
    for (name, definition) in definitions() {
        let plural = name.split('.').next().unwrap().to_owned();
        defaults(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &plural, &mut found);
    }
    let lines = [
        "bgpconfigurations.spec.logSeverityScreen=\"Info\"",
        "bgpconfigurations.spec.serviceLoadBalancerAggregation=\"Enabled\"",
        "felixconfigurations.spec.nftablesMode=\"Auto\"",
        "globalnetworkpolicies.spec.tier=\"default\"",
        "ipamblocks.spec.sequenceNumber=0",
        "ippools.spec.assignmentMode=\"Automatic\"",
        // Since the next release; to Calico's components it says what an empty one does.
        "ippools.spec.nodeSelector=\"all()\"",
        "kubecontrollersconfigurations.spec.controllers.loadBalancer.assignIPs=\"AllServices\"",
        "kubecontrollersconfigurations.spec.controllers.policyMigration.enabled=\"Enabled\"",
        "kubecontrollersconfigurations.spec.healthChecks=\"Enabled\"",
        "networkpolicies.spec.tier=\"default\"",
        "stagedglobalnetworkpolicies.spec.stagedAction=\"Set\"",
        "stagedglobalnetworkpolicies.spec.tier=\"default\"",
        "stagedkubernetesnetworkpolicies.spec.stagedAction=\"Set\"",
        "stagednetworkpolicies.spec.stagedAction=\"Set\"",
        "stagednetworkpolicies.spec.tier=\"default\"",
        "tiers.spec.defaultAction=\"Deny\"",
    ];
    assert_eq!(found, lines.iter().map(|line| line.to_string()).collect());
}

fn defaults(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (field, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{field}");
        if let Some(default) = inner.get("default") {
            found.insert(format!("{path}={default}"));
        }
        defaults(inner, &path, found);
    }
}

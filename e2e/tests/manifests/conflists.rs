//! The network configurations in the manifests: our own parser takes them, and they say what the guide says.

use kube_ipam::netconf::NetConf;
use kube_ipam::range::Family;
use serde_json::{Value, json};

use crate::{documents, object};

/// What Calico's installer puts in.
fn installed(template: &str) -> Value {
    let text = template
        .replace("__KUBERNETES_NODE_NAME__", "192.168.56.82")
        .replace("__CNI_MTU__", "0")
        .replace("__KUBECONFIG_FILEPATH__", "/etc/cni/net.d/calico-kubeconfig");
    assert!(!text.contains("__"), "a word is left that install-cni would have to replace: {text}");
    serde_json::from_str(&text).unwrap()
}

fn of_calico_yaml() -> Value {
    let config = object("calico.yaml", "ConfigMap", "calico-config");
    installed(config["data"]["cni_network_config"].as_str().unwrap())
}

fn ipam_json(documents: &[Value]) -> Value {
    let config = e2e::manifests::only(documents, "ConfigMap", "kube-ipam").unwrap();
    serde_json::from_str(config["data"]["ipam.json"].as_str().unwrap()).unwrap()
}

fn guide() -> Value {
    serde_json::from_str(include_str!("../../../tests/fixtures/guide-10-calico.conflist")).unwrap()
}

fn parsed(list: &Value) -> NetConf {
    let mut first = list["plugins"][0].clone();
    first["name"] = list["name"].clone();
    first["cniVersion"] = list["cniVersion"].clone();
    NetConf::parse(&first, "kube-ipam").unwrap()
}

#[test]
fn the_conflist_of_calico_yaml_is_the_guides_without_the_plugin_that_calico_has_no_more() {
    let mut expected = guide();
    expected["plugins"][0]["ipam"]["handover"] = json!("evict");
    let chained = expected["plugins"].as_array_mut().unwrap();
    assert_eq!(chained.pop().unwrap()["type"], "bandwidth");
    assert_eq!(of_calico_yaml(), expected);
}

#[test]
fn the_pool_that_calico_makes_is_the_subnet() {
    let node = object("calico.yaml", "DaemonSet", "calico-node");
    let containers = node["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let of_node = containers.iter().find(|c| c["name"] == "calico-node").unwrap();
    let pool = of_node["env"].as_array().unwrap().iter().find(|e| e["name"] == "CALICO_IPV4POOL_CIDR").unwrap();
    let list = of_calico_yaml();
    assert_eq!(pool["value"], list["plugins"][0]["ipam"]["subnet"]);
    assert!(parsed(&list).ipam.etcd.is_some());
}

#[test]
fn the_ipam_section_of_kube_ipam_yaml_is_the_guides_with_other_files_no_etcd_and_the_whole_subnet() {
    let ipam = ipam_json(&documents("kube-ipam.yaml"));
    let mut expected = guide()["plugins"][0]["ipam"].clone();
    // Whoever applies it unread has a cluster that needs more than the guide's 191 addresses.
    for field in ["etcdConfig", "rangeStart", "rangeEnd"] {
        expected.as_object_mut().unwrap().remove(field);
    }
    expected["handover"] = json!("evict");
    expected["kubeConfig"] = json!("/etc/cni/net.d/kube-ipam-kubeconfig");
    assert_eq!(ipam, expected);
    let mut list = guide();
    list["plugins"][0]["ipam"] = ipam;
    let net = parsed(&list);
    assert!(net.ipam.etcd.is_none() && net.ipam.ranges(Family::V4).is_some());
    assert_eq!(net.kubeconfig.unwrap().to_str(), Some("/etc/cni/net.d/kube-ipam-kubeconfig"));
}

/// The addresses of the examples can be had in the networks of the manifests.
#[test]
fn the_example_pod_fits_into_the_network() {
    let pod = object("fixed-ip-test.yaml", "Deployment", "fixed-ip-test");
    let wish = &pod["spec"]["template"]["metadata"]["annotations"];
    for list in [of_calico_yaml(), guide()] {
        let ipam = &list["plugins"][0]["ipam"];
        assert_eq!(wish["kube-ipam.gateway"], ipam["gateway"]);
        let address: std::net::IpAddr = wish["kube-ipam.ip"].as_str().unwrap().parse().unwrap();
        let subnet: ipnetwork::IpNetwork = ipam["subnet"].as_str().unwrap().parse().unwrap();
        assert!(subnet.contains(address));
        assert_eq!(wish["kube-ipam.netmask"], subnet.mask().to_string());
    }
}

/// The patch that `kustomization.yaml` shows as a comment.
#[test]
fn the_example_in_the_kustomization_is_a_network_too() {
    let text = std::fs::read_to_string(e2e::manifests::directory().join("kustomization.yaml")).unwrap();
    let shown = crate::server::uncommented(&text);
    let kustomization = &e2e::manifests::parse(&shown).unwrap()[0];
    let patch = kustomization["patches"][0]["patch"].as_str().unwrap();
    let ipam = ipam_json(&e2e::manifests::parse(patch).unwrap());
    let mut list = guide();
    list["plugins"][0]["ipam"] = ipam;
    assert!(parsed(&list).ipam.ranges(Family::V4).is_some());
}

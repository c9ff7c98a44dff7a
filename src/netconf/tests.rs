//! Whole configurations, good and bad.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::conflist::plugin_conf;
use crate::pod::Families;
use crate::range::Family;

const GUIDE: &str = include_str!("../../tests/fixtures/guide-10-calico.conflist");

fn guide() -> Value {
    plugin_conf(&serde_json::from_str(GUIDE).unwrap(), "kube-ipam").unwrap()
}

/// The guide's configuration with one field changed; `null` takes it away.
fn guide_with(pointer: &str, value: Value) -> Value {
    let mut conf = guide();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    conf.pointer_mut(parent).unwrap()[key] = value;
    conf
}

fn parse(conf: &Value) -> Result<NetConf, CniError> {
    NetConf::parse(conf, "kube-ipam")
}

#[track_caller]
fn refused(conf: Value, names: &[&str]) {
    let error = parse(&conf).unwrap_err();
    assert_eq!(error.code, 7, "{error}");
    assert!(!error.details.is_empty(), "{error}");
    for name in names {
        assert!(error.to_string().contains(name), "{name} is not in: {error}");
    }
}

fn path(text: &str) -> Option<PathBuf> {
    Some(PathBuf::from(text))
}

#[test]
fn the_guides_configuration_parses_with_all_its_fields() {
    let conf = parse(&guide()).unwrap();
    assert_eq!(conf.cni_version, CniVersion::V0_3_1);
    assert_eq!((conf.network.as_str(), conf.main_plugin.as_str()), ("k8s-pod-network", "calico"));
    assert_eq!(conf.nodename.nodename.as_deref(), Some("192.168.56.82"));
    assert_eq!(conf.kubeconfig, path("/etc/kubernetes/ssl/kube.kubeconfig"));
    assert_eq!(conf.log_level, LevelFilter::INFO);
    assert_eq!(conf.log_file_path, path("/var/log/calico/cni/cni.log"));
    assert_eq!((conf.attachments, conf.prev_result), (None, None));
    let ipam = conf.ipam;
    assert_eq!(ipam.network, "kube-subnet");
    assert_eq!(ipam.dialect, Dialect::KubeIpam);
    assert_eq!(ipam.wait, Duration::from_secs(20));
    assert_eq!(ipam.resolv_conf, path("/etc/resolv.conf"));
    assert_eq!(ipam.routes.len(), 1);
    assert_eq!(ipam.routes[0].dst.to_string(), "0.0.0.0/0");
    assert_eq!(ipam.routes[0].gw, None);
    let subnet = ipam.v4.as_ref().unwrap().subnets()[0];
    assert_eq!(subnet.network.to_string(), "10.244.0.0/16");
    assert_eq!((subnet.start.to_string(), subnet.end.to_string()), ("10.244.0.10".into(), "10.244.0.200".into()));
    assert_eq!(subnet.gateway.unwrap().to_string(), "10.244.0.1");
    assert!(ipam.v6.is_none() && ipam.assigns(Family::V4) && !ipam.assigns(Family::V6));
    let etcd = ipam.etcd.unwrap();
    assert_eq!(etcd.endpoints, ["https://192.168.1.50:2379", "https://192.168.1.58:2379", "https://192.168.1.63:2379"]);
    assert_eq!(etcd.cert_file, path("/etc/kubernetes/ssl/kubernetes.pem"));
    assert_eq!(etcd.key_file, path("/etc/kubernetes/ssl/kubernetes-key.pem"));
    assert_eq!(etcd.ca_file, path("/etc/kubernetes/ssl/k8s-root-ca.pem"));
    assert_eq!(etcd.prefix, "/kube-ipam/v1");
    assert_eq!((etcd.username, etcd.password_file), (None, None));
}

#[test]
fn a_missing_section_or_name_is_named() {
    refused(guide_with("/name", Value::Null), &["name: missing", "k8s-pod-network"]);
    refused(guide_with("/type", Value::Null), &["type: missing", "calico"]);
    refused(guide_with("/ipam", Value::Null), &["ipam: missing", "kube-ipam"]);
    refused(guide_with("/ipam", json!("kube-ipam")), &["ipam: \"kube-ipam\"", "object"]);
    refused(guide_with("/ipam", json!({"type": "kube-ipam", "ranges": []})), &["ipam.subnet: missing", "ranges"]);
    refused(json!([]), &["the network configuration", "object"]);
}

#[test]
fn an_unknown_version_is_code_1() {
    assert_eq!(parse(&guide_with("/cniVersion", json!("2.0.0"))).unwrap_err().code, 1);
    assert_eq!(parse(&guide_with("/cniVersion", Value::Null)).unwrap_err().code, 1);
}

#[test]
fn names_of_networks_are_checked() {
    for bad in ["k8s/pod", "-x", "x y", "k8s_pod", "x.", "Ä"] {
        refused(guide_with("/name", json!(bad)), &["name", bad, "handles"]);
    }
    assert_eq!(parse(&guide_with("/name", json!("Pod.Net-1"))).unwrap().network, "Pod.Net-1");
    for bad in ["a/b", "../x", " "] {
        refused(guide_with("/ipam/name", json!(bad)), &["ipam.name", bad, "letters, digits"]);
    }
    assert_eq!(parse(&guide_with("/ipam/name", Value::Null)).unwrap().ipam.network, "k8s-pod-network");
    assert_eq!(parse(&guide_with("/ipam/name", json!("kube_subnet"))).unwrap().ipam.network, "kube_subnet");
}

#[test]
fn the_kubeconfig_falls_back_to_the_main_plugins() {
    let conf = parse(&guide_with("/ipam/kubeConfig", Value::Null)).unwrap();
    assert_eq!(conf.kubeconfig, path("/etc/cni/net.d/calico-kubeconfig"));
    let mut conf = guide_with("/ipam/kubeConfig", json!(""));
    conf["kubernetes"] = Value::Null;
    assert_eq!(parse(&conf).unwrap().kubeconfig, None);
}

#[test]
fn paths_are_absolute_and_no_placeholders() {
    for pointer in [
        "/ipam/kubeConfig",
        "/ipam/resolvConf",
        "/log_file_path",
        "/nodename_file",
        "/kubernetes/kubeconfig",
        "/ipam/etcdConfig/etcdKeyFile",
    ] {
        let field = pointer[1..].replace('/', ".");
        refused(guide_with(pointer, json!("etc/x")), &[&format!("{field}: \"etc/x\""), "absolute"]);
        refused(guide_with(pointer, json!("__KUBECONFIG_FILEPATH__")), &[&field, "placeholder"]);
        refused(guide_with(pointer, json!("/a\u{0}b")), &[&field, "control character"]);
        refused(guide_with(pointer, json!(7)), &[&field, "7", "string"]);
    }
}

#[test]
fn a_key_pasted_in_place_of_its_path_is_not_shown() {
    let error = parse(&guide_with("/ipam/etcdConfig/etcdKeyFile", json!("-----BEGIN PRIVATE KEY-----\nMIIsecret")))
        .unwrap_err();
    assert!(error.msg.contains("ipam.etcdConfig.etcdKeyFile") && !error.to_string().contains("MIIsecret"), "{error}");
    let error = parse(&guide_with("/ipam/etcdConfig/etcdKeyFile", json!({"data": "s3cret"}))).unwrap_err();
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

#[test]
fn only_the_kubernetes_datastore_is_supported() {
    refused(guide_with("/datastore_type", json!("etcdv3")), &["datastore_type: \"etcdv3\"", "kubernetes"]);
    assert!(parse(&guide_with("/datastore_type", Value::Null)).is_ok());
}

/// Calico takes etcd for its datastore where etcd is named and no type is.
#[test]
fn an_etcd_that_calico_would_take_for_its_datastore_is_refused_as_the_type_is() {
    for (field, value) in [
        ("etcd_endpoints", "https://10.0.0.1:2379"),
        ("etcd_authority", "10.0.0.1:2379"),
        ("etcd_discovery_srv", "example.org"),
    ] {
        let mut conf = guide_with("/datastore_type", Value::Null);
        conf[field] = json!(value);
        refused(conf.clone(), &[field, value, "datastore_type", "\"kubernetes\""]);
        conf["datastore_type"] = json!("kubernetes");
        assert!(parse(&conf).is_ok(), "{field}");
        conf["datastore_type"] = Value::Null;
        conf[field] = json!("");
        assert!(parse(&conf).is_ok(), "{field}");
    }
}

#[test]
fn calicos_words_for_levels_are_understood() {
    for (word, level) in [
        ("INFO", LevelFilter::INFO),
        ("Warning", LevelFilter::WARN),
        ("debug", LevelFilter::DEBUG),
        ("none", LevelFilter::OFF),
    ] {
        assert_eq!(parse(&guide_with("/log_level", json!(word))).unwrap().log_level, level);
    }
    refused(guide_with("/log_level", json!("loud")), &["log_level: \"loud\"", "debug, info"]);
}

#[test]
fn any_api_group_but_the_newer_one_means_the_older_one_as_in_calico() {
    use calico::ApiGroup::{Crd, V3};
    assert_eq!(parse(&guide()).unwrap().api_group, None);
    for (text, group) in [
        ("crd.projectcalico.org/v1", Some(Crd)),
        ("projectcalico.org/v3", Some(V3)),
        ("ProjectCalico.org/V3", Some(V3)),
        ("calico.org", Some(Crd)),
        ("", None),
    ] {
        let conf = guide_with("/calico_api_group", json!(text));
        assert_eq!(parse(&conf).unwrap().api_group, group, "{text:?}");
        assert_eq!(NetConf::parse_for_del(&conf, "kube-ipam").unwrap().0.api_group, group, "{text:?}");
    }
    refused(guide_with("/calico_api_group", json!(3)), &["calico_api_group", "3", "quotes"]);
    let mut broken = guide_with("/calico_api_group", json!("projectcalico.org/v3"));
    broken["ipam"]["waitSeconds"] = json!(-1);
    assert_eq!(NetConf::parse_for_del(&broken, "kube-ipam").unwrap().0.api_group, Some(V3));
}

#[test]
fn an_update_that_needs_the_old_pods_address_is_refused_unless_the_section_says_evict() {
    use crate::pod::HandoverMode::{Evict, Refuse};
    assert_eq!(parse(&guide_with("/ipam/name", json!("net"))).unwrap().ipam.handover, Refuse);
    for (text, mode) in [("evict", Evict), ("refuse", Refuse)] {
        assert_eq!(parse(&guide_with("/ipam/handover", json!(text))).unwrap().ipam.handover, mode);
    }
    for bad in [json!("Evict"), json!("no"), json!(true)] {
        refused(guide_with("/ipam/handover", bad), &["ipam.handover"]);
    }
    refused(guide_with("/handover", json!("evict")), &["write it as ipam.handover"]);
}

#[test]
fn the_wait_is_a_bounded_number_of_seconds() {
    assert_eq!(parse(&guide_with("/ipam/waitSeconds", json!(0))).unwrap().ipam.wait, Duration::ZERO);
    assert_eq!(parse(&guide_with("/ipam/waitSeconds", json!(100))).unwrap().ipam.wait, Duration::from_secs(100));
    for bad in [json!("20"), json!(101), json!(-1), json!(1.5), json!(u64::MAX), json!({})] {
        refused(guide_with("/ipam/waitSeconds", bad), &["ipam.waitSeconds", "0 to 100"]);
    }
}

#[test]
fn when_a_held_address_may_pass_on_is_a_policy_with_a_grace() {
    use crate::claim::{Fencing, Policy};
    let policy = |takeover: Value| parse(&guide_with("/ipam/takeover", takeover)).unwrap().ipam.takeover;
    let expected = |fencing, seconds| Policy { fencing, grace: jiff::SignedDuration::from_secs(seconds) };
    assert_eq!(policy(Value::Null), expected(Fencing::PodDeleted, 60));
    assert_eq!(policy(json!({"graceSeconds": 0})), expected(Fencing::PodDeleted, 0));
    assert_eq!(policy(json!({"proof": "nodeFenced"})), expected(Fencing::NodeFenced, 60));
    refused(guide_with("/ipam/takeover", json!({"proof": "hope"})), &["ipam.takeover.proof: \"hope\"", "nodeFenced"]);
    refused(guide_with("/ipam/takeover", json!("podDeleted")), &["ipam.takeover", "object"]);
    refused(
        guide_with("/ipam/takeover", json!({"graceSeconds": 86_401})),
        &["ipam.takeover.graceSeconds: 86401", "0 to 86400"],
    );
    refused(guide_with("/ipam/takeover", json!({"grace_seconds": 1})), &["did you mean graceSeconds?"]);
}

#[test]
fn the_state_directory_is_an_absolute_path() {
    assert_eq!(parse(&guide()).unwrap().ipam.state_dir, Path::new("/run/kube-ipam"));
    assert_eq!(parse(&guide_with("/ipam/stateDir", json!("/run/x"))).unwrap().ipam.state_dir, Path::new("/run/x"));
    refused(guide_with("/ipam/stateDir", json!("run")), &["ipam.stateDir: \"run\"", "absolute"]);
}

#[test]
fn routes_are_destinations_with_an_optional_next_hop_of_their_family() {
    let routes =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "10.96.0.0/12", "gw": "10.244.0.1"}, {"dst": "::/0", "gw": "fe80::1"}]);
    let conf = parse(&guide_with("/ipam/routes", routes)).unwrap();
    assert_eq!(conf.ipam.routes[1].gw, Some("10.244.0.1".parse().unwrap()));
    let refused_route = |route: Value, names: &[&str]| refused(guide_with("/ipam/routes", json!([route])), names);
    refused_route(json!({}), &["ipam.routes[0].dst: missing", "0.0.0.0/0"]);
    refused_route(json!({"dst": "10.96.0.1/12"}), &["ipam.routes[0].dst", "host bits", "write 10.96.0.0/12"]);
    refused_route(json!({"dst": "default"}), &["ipam.routes[0].dst: \"default\"", "CIDR"]);
    refused_route(json!({"dst": "0.0.0.0/0", "gw": "fe80::1"}), &["ipam.routes[0].gw", "fe80::1", "another family"]);
    refused(guide_with("/ipam/routes", json!({"dst": "0.0.0.0/0"})), &["ipam.routes", "array"]);
}

#[test]
fn pools_are_named_or_given_as_cidrs() {
    let conf = parse(&guide_with("/ipam/ipv4_pools", json!(["default-ipv4-ippool", "10.244.9.9/16"]))).unwrap();
    assert_eq!(
        conf.ipam.v4_pools,
        [PoolRef::Name("default-ipv4-ippool".into()), PoolRef::Cidr("10.244.0.0/16".parse().unwrap())]
    );
    refused(guide_with("/ipam/ipv4_pools", json!(["fd00::/64"])), &["ipam.ipv4_pools", "fd00::/64", "not IPv4"]);
    refused(guide_with("/ipam/ipv6_pools", json!(["10.0.0.0/8"])), &["ipam.ipv6_pools", "not IPv6"]);
    refused(guide_with("/ipam/ipv4_pools", json!(["10.244.0.0"])), &["ipam.ipv4_pools", "10.244.0.0", "CIDR"]);
    refused(guide_with("/ipam/ipv4_pools", json!([7])), &["ipam.ipv4_pools[0]: 7", "strings"]);
    refused(guide_with("/ipam/ipv4_pools", json!("x")), &["ipam.ipv4_pools", "array"]);
}

#[test]
fn a_misspelt_field_of_ours_is_refused() {
    refused(
        guide_with("/ipam/rangestart", json!("10.244.0.10")),
        &["ipam: \"rangestart\"", "did you mean rangeStart?"],
    );
    refused(guide_with("/ipam/subnets", json!("10.244.0.0/16")), &["did you mean subnet?"]);
    refused(
        guide_with("/ipam/etcdConfig/etcdUrl", json!("http://a:1")),
        &["ipam.etcdConfig: \"etcdUrl\"", "did you mean etcdURL?"],
    );
    assert!(parse(&guide_with("/ipam/comment", json!("ours"))).is_ok());
    assert!(parse(&guide_with("/windows_use_single_network", json!(true))).is_ok());
}

/// Every field that kube-ipam or Calico reads somewhere else, in every section where it would be ignored.
#[test]
fn a_known_field_in_a_wrong_section_is_named_with_its_right_place() {
    for (pointer, value, right) in [
        ("/ipam/etcdConfig/kubeConfig", json!("/etc/kubernetes/kubeconfig"), "ipam.kubeConfig"),
        ("/ipam/etcdConfig/subnet", json!("10.244.0.0/16"), "ipam.subnet"),
        ("/ipam/etcdConfig/waitSeconds", json!(5), "ipam.waitSeconds"),
        ("/ipam/etcdURL", json!("http://a:1"), "ipam.etcdConfig.etcdURL"),
        ("/ipam/etcdTrustedCAFileFile", json!("/x"), "ipam.etcdConfig.etcdTrustedCAFileFile"),
        ("/ipam/nodename", json!("n2"), "nodename"),
        ("/ipam/log_level", json!("debug"), "log_level"),
        ("/ipam/datastore_type", json!("kubernetes"), "datastore_type"),
        ("/ipam/etcd_endpoints", json!("http://a:1"), "etcd_endpoints"),
        ("/ipam/proof", json!("nodeFenced"), "ipam.takeover.proof"),
        ("/ipam/graceSeconds", json!(1), "ipam.takeover.graceSeconds"),
        ("/kubeConfig", json!("/x"), "ipam.kubeConfig"),
        ("/rangeStart", json!("10.244.0.10"), "ipam.rangeStart"),
        ("/etcdConfig", json!({"etcdURL": "http://a:1"}), "ipam.etcdConfig"),
        ("/etcdURL", json!("http://a:1"), "ipam.etcdConfig.etcdURL"),
        ("/fixedAddresses", json!("allowedNamespaces"), "ipam.fixedAddresses"),
        ("/kubeconfig", json!("/x"), "kubernetes.kubeconfig"),
        ("/kubernetes/nodename", json!("n2"), "nodename"),
        ("/kubernetes/etcdConfig", json!({}), "ipam.etcdConfig"),
        ("/policy/kubeconfig", json!("/x"), "kubernetes.kubeconfig"),
        ("/policy/fixedAddresses", json!("allowedNamespaces"), "ipam.fixedAddresses"),
    ] {
        let (section, field) = pointer[1..].replace('/', ".").rsplit_once('.').map_or_else(
            || ("the network configuration".to_owned(), pointer[1..].to_owned()),
            |(section, field)| (section.to_owned(), field.to_owned()),
        );
        refused(guide_with(pointer, value), &[&format!("{section}: \"{field}\""), &format!("write it as {right}")]);
    }
    let takeover = json!({"waitSeconds": 5});
    refused(
        guide_with("/ipam/takeover", takeover),
        &["ipam.takeover: \"waitSeconds\"", "write it as ipam.waitSeconds"],
    );
    let mut conf = guide();
    conf["ipam"]["ranges"] = json!([[{"subnet": "fd00::/64", "routes": []}]]);
    refused(conf, &["ipam.ranges[0][0]: \"routes\"", "write it as ipam.routes"]);
}

/// Calico's plugins are Go programs, to which `nodeName` is `nodename`.
#[test]
fn a_field_that_differs_from_a_known_one_by_case_is_refused() {
    for (pointer, meant) in [
        ("/nodeName", "nodename"),
        ("/Datastore_Type", "datastore_type"),
        ("/calico_API_group", "calico_api_group"),
        ("/kubernetes/kubeConfig", "kubeconfig"),
        ("/Hostname", "hostname"),
    ] {
        let field = pointer.rsplit_once('/').unwrap().1;
        refused(guide_with(pointer, json!("x")), &[&format!("\"{field}\""), &format!("did you mean {meant}?")]);
    }
}

/// A main plugin has fields of its own, which may be called as ours are.
#[test]
fn fields_of_other_main_plugins_are_theirs() {
    let with = |field: &str, value: Value| {
        let ipam = json!({"type": "kube-ipam", "subnet": "10.244.0.0/16", "gateway": "10.244.0.1"});
        let mut conf = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": ipam});
        conf[field] = value;
        parse(&conf)
    };
    for (field, value) in [
        ("isGateway", json!(true)),
        ("dataDir", json!("/var/lib/cni")),
        ("gateway", json!("10.244.0.1")),
        ("mode", json!("l2")),
        ("dns", json!({"nameservers": ["10.96.0.10"]})),
        ("kubeconfig", json!("/x")),
        ("Mode", json!("l2")),
    ] {
        assert!(with(field, value).is_ok(), "{field}");
    }
    assert!(with("etcdConfig", json!({})).is_err());
    for field in ["windows_use_single_network", "feature_control", "of a later version"] {
        assert!(parse(&guide_with(&format!("/{field}"), json!({"subnet": 1}))).is_ok(), "{field}");
    }
}

// === etcd ===

fn etcd(section: Value) -> Result<EtcdConfig, CniError> {
    parse(&guide_with("/ipam/etcdConfig", section)).map(|conf| conf.ipam.etcd.unwrap())
}

#[track_caller]
fn etcd_refused(section: Value, names: &[&str]) {
    refused(guide_with("/ipam/etcdConfig", section), names);
}

#[test]
fn etcd_over_http_needs_no_files() {
    let etcd = etcd(
        json!({"etcdURL": " http://127.0.0.1:2379 , http://[fd00::1]:2379/,http://127.0.0.1:2379", "etcdCertFile": ""}),
    )
    .unwrap();
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:2379", "http://[fd00::1]:2379"]);
    assert!(!etcd.tls() && etcd.ca_file.is_none());
}

#[test]
fn both_spellings_of_the_authority_are_read() {
    let base = |key: &str| etcd(json!({"etcdURL": "https://a:2379", key: "/ca.pem"})).unwrap().ca_file;
    assert_eq!(base("etcdTrustedCAFile"), path("/ca.pem"));
    assert_eq!(base("etcdTrustedCAFileFile"), path("/ca.pem"));
    let both = |other: &str| json!({"etcdURL": "https://a:2379", "etcdTrustedCAFile": "/ca.pem", "etcdTrustedCAFileFile": other});
    assert!(etcd(both("/ca.pem")).is_ok());
    etcd_refused(
        both("/other.pem"),
        &["ipam.etcdConfig.etcdTrustedCAFile: \"/ca.pem\"", "/other.pem", "leave etcdTrustedCAFileFile out"],
    );
}

#[test]
fn urls_of_etcd_are_checked() {
    let url = |text: &str| json!({ "etcdURL": text });
    etcd_refused(url(""), &["ipam.etcdConfig.etcdURL: missing", "https://"]);
    etcd_refused(url(" , "), &["etcdURL: missing"]);
    etcd_refused(url("192.168.1.50:2379"), &["192.168.1.50:2379", "http"]);
    etcd_refused(url("ftp://a:1"), &["ftp://a:1", "neither http nor https"]);
    etcd_refused(url("http://a"), &["no port", "2379"]);
    etcd_refused(url("http://a:0"), &["no port"]);
    etcd_refused(url("http://a:2379/v3"), &["path"]);
    etcd_refused(url("http://a b:2379"), &["not a URL"]);
    etcd_refused(url("http://a:99999"), &["http://a:99999"]);
    etcd_refused(url("http://a:1,https://b:1"), &["https://b:1", "another scheme than http://a:1"]);
    etcd_refused(json!({"etcdURL": ["http://a:1"]}), &["etcdURL", "string"]);
}

#[test]
fn certificates_come_with_keys_and_with_https() {
    let https = |more: Value| {
        let mut section = json!({"etcdURL": "https://a:2379", "etcdTrustedCAFile": "/ca"});
        section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        section
    };
    etcd_refused(https(json!({"etcdCertFile": "/c"})), &["etcdKeyFile: missing", "give both"]);
    etcd_refused(https(json!({"etcdKeyFile": "/k"})), &["etcdCertFile: missing", "give both"]);
    etcd_refused(https(json!({"etcdTrustedCAFile": null})), &["etcdTrustedCAFile: missing", "https://a:2379"]);
    etcd_refused(
        json!({"etcdURL": "http://a:1", "etcdTrustedCAFileFile": "/ca"}),
        &["etcdTrustedCAFileFile: \"/ca\"", "http://a:1", "https://"],
    );
    assert!(etcd(https(json!({"etcdCertFile": "/c", "etcdKeyFile": "/k"}))).is_ok());
}

#[test]
fn passwords_come_from_files_and_are_never_shown() {
    let with = |key: &str, value: &str| json!({"etcdURL": "http://a:1", key: value});
    etcd_refused(with("etcdPassword", "s3cret"), &["ipam.etcdConfig.etcdPassword", "etcdPasswordFile"]);
    etcd_refused(with("etcdUsername", "me"), &["etcdPasswordFile: missing"]);
    etcd_refused(json!({"etcdURL": "http://me:s3cret@a:1"}), &["etcdURL", "etcdPasswordFile"]);
    for section in [with("etcdPassword", "s3cret"), json!({"etcdURL": "http://me:s3cret@a:1"})] {
        assert!(!etcd(section).unwrap_err().to_string().contains("s3cret"));
    }
    let etcd = etcd(json!({"etcdURL": "http://a:1", "etcdUsername": "me", "etcdPasswordFile": "/pw"})).unwrap();
    assert_eq!((etcd.username.as_deref(), etcd.password_file), (Some("me"), path("/pw")));
}

#[test]
fn the_prefix_of_keys_begins_with_a_slash() {
    let with = |prefix: &str| json!({"etcdURL": "http://a:1", "etcdPrefix": prefix});
    assert_eq!(etcd(with("/team/a.b")).unwrap().prefix, "/team/a.b");
    for bad in ["team", "/team/", "/", "//a", "/a b"] {
        etcd_refused(with(bad), &["ipam.etcdConfig.etcdPrefix", bad, "/kube-ipam/v1"]);
    }
}

// === calico-ipam ===

fn calico(ipam: Value) -> Value {
    json!({"cniVersion": "0.3.1", "name": "k8s-pod-network", "type": "calico", "ipam": ipam})
}

#[test]
fn calico_ipams_input_needs_no_subnet() {
    let plain = parse(&calico(json!({"type": "calico-ipam"}))).unwrap().ipam;
    assert_eq!((plain.dialect, plain.families), (Dialect::CalicoIpam, Families { v4: true, v6: false }));
    let both = json!({"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": true, "ipv6_pools": ["fd00::/48"]});
    let conf = parse(&calico(both)).unwrap();
    assert_eq!((conf.ipam.dialect, conf.ipam.families), (Dialect::CalicoIpam, Families { v4: true, v6: true }));
    assert!(conf.ipam.assigns(Family::V6) && conf.ipam.v6.is_none());
    refused(
        calico(json!({"type": "calico-ipam", "assign_ipv4": "false"})),
        &["ipam.assign_ipv4", "no address", "assign_ipv6"],
    );
    refused(calico(json!({"type": "calico-ipam", "assign_ipv6": "yes"})), &["ipam.assign_ipv6: \"yes\"", "\"true\""]);
    refused(calico(json!({"type": "calico-ipam", "assign_ipv6": 1})), &["ipam.assign_ipv6: 1"]);
}

#[test]
fn the_name_of_the_binary_stands_in_for_the_type() {
    let bare = calico(json!({}));
    for (name, dialect) in [("calico-ipam", Dialect::CalicoIpam), ("kube-ipam", Dialect::KubeIpam)] {
        assert_eq!(NetConf::parse(&bare, name).unwrap().ipam.dialect, dialect);
    }
    let ours = calico(json!({"type": "my-ipam", "subnet": "10.0.0.0/16"}));
    assert_eq!(NetConf::parse(&ours, "my-ipam").unwrap().ipam.dialect, Dialect::KubeIpam);
    refused(
        calico(json!({"type": "host-local", "subnet": "10.0.0.0/16"})),
        &["ipam.type: \"host-local\"", "kube-ipam"],
    );
}

#[test]
fn calico_ipams_switches_are_refused_beside_our_subnets() {
    refused(guide_with("/ipam/assign_ipv6", json!("true")), &["ipam.assign_ipv6", "without subnets", "leave it out"]);
    let v6 = json!({"type": "kube-ipam", "subnet": "fd00::/64", "assign_ipv4": true});
    refused(calico(v6), &["ipam.assign_ipv4: \"true\"", "leave it out"]);
}

#[test]
fn without_subnets_the_pools_decide_and_the_switches_name_the_families() {
    let families = |more: Value| {
        let mut section = json!({"type": "kube-ipam"});
        section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&calico(section)).map(|conf| (conf.ipam.goes_by_pools(), conf.ipam.families))
    };
    assert_eq!(families(json!({})), Ok((true, Families { v4: true, v6: false })));
    assert_eq!(families(json!({"assign_ipv6": "true"})), Ok((true, Families { v4: true, v6: true })));
    let v6 = json!({"assign_ipv4": false, "assign_ipv6": true, "ipv6_pools": ["six"]});
    assert_eq!(families(v6), Ok((true, Families { v4: false, v6: true })));
    assert_eq!(families(json!({"subnet": "fd00::/64"})), Ok((false, Families { v4: false, v6: true })));
    let none = families(json!({"assign_ipv4": false})).unwrap_err().to_string();
    assert!(none.contains("ipam.assign_ipv4") && none.contains("no address"), "{none}");
    // What belongs to a subnet says nothing without one.
    for field in ["gateway", "rangeStart", "rangeEnd"] {
        let alone = families(json!({field: "10.244.0.1"})).unwrap_err().to_string();
        assert!(alone.contains("ipam.subnet"), "{alone}");
    }
    let empty = families(json!({"ranges": []})).unwrap_err().to_string();
    assert!(empty.contains("ipam.subnet"), "{empty}");
    let ptp = json!({"cniVersion": "1.0.0", "name": "n", "type": "ptp", "ipam": {"type": "kube-ipam"}});
    refused(ptp, &["ipam.subnet", "ptp", "gateway"]);
}

#[test]
fn main_plugins_but_calico_get_a_gateway() {
    let gateway = |main: &str| {
        let conf = json!({"cniVersion": "1.0.0", "name": "n", "type": main, "ipam": {"type": "kube-ipam", "subnet": "10.0.0.0/24"}});
        parse(&conf).unwrap().ipam.v4.unwrap().subnets()[0].gateway
    };
    assert_eq!(gateway("calico"), None);
    assert_eq!(gateway("ptp"), Some("10.0.0.1".parse().unwrap()));
}

// === nodes ===

fn node(fields: Value) -> NodeName {
    let mut conf = guide_with("/nodename", Value::Null);
    conf.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    parse(&conf).unwrap().nodename
}

#[test]
fn the_nodes_name_follows_calicos_order() {
    let all = node(json!({"nodename": "by-conf", "hostname": "by-hostname"}));
    assert_eq!(all.resolve(Some("by-file"), "HOST").unwrap(), "by-conf");
    let hostname = node(json!({"hostname": "by-hostname"}));
    assert_eq!(hostname.file, Path::new("/var/lib/calico/nodename"));
    assert_eq!(hostname.resolve(Some("by-file\n"), "HOST").unwrap(), "by-file");
    assert_eq!(hostname.resolve(None, "HOST").unwrap(), "by-hostname");
    assert_eq!(node(json!({})).resolve(Some("\n"), " Host.Example\n").unwrap(), "host.example");
}

#[test]
fn a_file_that_was_named_must_be_there_unless_optional() {
    let named = node(json!({"nodename_file": "/x/nodename", "hostname": "h"}));
    let error = named.resolve(None, "host").unwrap_err();
    assert!(
        error.code == 7 && error.msg.contains("/x/nodename") && error.details.contains("nodename_file_optional"),
        "{error}"
    );
    let optional = node(json!({"nodename_file": "/x/nodename", "nodename_file_optional": true, "hostname": "h"}));
    assert_eq!(optional.resolve(None, "host").unwrap(), "h");
    refused(
        guide_with("/nodename_file_optional", json!("true")),
        &["nodename_file_optional: \"true\"", "without quotes"],
    );
}

#[test]
fn a_name_that_no_node_can_have_is_refused() {
    let error = node(json!({"nodename": "__KUBERNETES_NODE_NAME__"})).resolve(None, "h").unwrap_err();
    assert!(error.msg.contains("placeholder"), "{error}");
    for (node, file, host) in [
        (node(json!({"nodename": "a/b"})), None, "h"),
        (node(json!({})), Some("a b"), "h"),
        (node(json!({})), None, "(none)"),
    ] {
        let error = node.resolve(file, host).unwrap_err();
        assert!(error.code == 7 && error.details.contains("DNS-1123"), "{error}");
    }
}

// === GC and CHECK ===

#[test]
fn valid_attachments_are_read_and_their_absence_is_not_emptiness() {
    assert_eq!(parse(&guide()).unwrap().attachments, None);
    let with = |value: Value| {
        let mut conf = guide();
        conf["cni.dev/valid-attachments"] = value;
        conf
    };
    assert_eq!(parse(&with(Value::Null)).unwrap().attachments, Some(vec![]));
    assert_eq!(parse(&with(json!([]))).unwrap().attachments, Some(vec![]));
    let one = parse(&with(json!([{"containerID": "a1", "ifname": "eth0"}]))).unwrap().attachments.unwrap();
    assert_eq!(one, [Attachment { container_id: "a1".into(), ifname: "eth0".into() }]);
    refused(with(json!([{"containerID": "a1"}])), &["cni.dev/valid-attachments[0].ifname: missing"]);
    refused(with(json!(["a1"])), &["cni.dev/valid-attachments[0]", "object"]);
    refused(with(json!({})), &["cni.dev/valid-attachments", "array"]);
}

#[test]
fn the_previous_result_is_parsed() {
    let conf =
        parse(&guide_with("/prevResult", json!({"ips": [{"version": "4", "address": "10.244.0.216/32"}]}))).unwrap();
    assert_eq!(conf.prev_result.unwrap().ips[0].address.to_string(), "10.244.0.216/32");
    refused(guide_with("/prevResult", json!({"ips": 7})), &["prevResult.ips: 7", "array"]);
}

// === whatever comes ===

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[0-9a-f.:]{1,15}(/[0-9]{1,3})?".prop_map(Value::from),
        "(/[a-z]{1,4}){1,3}|https?://[a-z]{1,3}:[0-9]{1,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("subnet|gateway|dst|gw|etcdURL|[a-z]{1,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn places() -> Vec<String> {
    fn walk(path: String, value: &Value, found: &mut Vec<String>) {
        if let Value::Object(fields) = value {
            for (key, value) in fields {
                let path = format!("{path}/{key}");
                found.push(path.clone());
                walk(path, value, found);
            }
        }
    }
    let mut found = vec![
        "/ipam/ranges".into(),
        "/ipam/waitSeconds".into(),
        "/ipam/takeover".into(),
        "/ipam/ipv4_pools".into(),
        "/prevResult".into(),
        "/hostname".into(),
    ];
    walk(String::new(), &guide(), &mut found);
    found
}

proptest! {
    #[test]
    fn no_json_panics(json in any_json()) {
        prop_assert!(parse(&json).is_err_and(|error| !error.msg.is_empty()));
    }

    #[test]
    fn del_needs_what_it_uses_and_agrees_with_add_on_it(
        changes in proptest::collection::vec((proptest::sample::select(places()), any_json()), 1..4),
    ) {
        let mut conf = guide();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            if let Some(Value::Object(fields)) = conf.pointer_mut(parent) {
                fields.insert(key.to_owned(), value);
            }
        }
        match (parse(&conf), NetConf::parse_for_del(&conf, "kube-ipam")) {
            (Ok(whole), Ok((net, fault))) => {
                prop_assert!(fault.is_none());
                prop_assert_eq!(net, whole);
            }
            (Ok(_), Err(error)) => prop_assert!(false, "ADD works, DEL does not: {error}"),
            (Err(error), Ok((_, fault))) => prop_assert_eq!(fault, Some(error)),
            (Err(_), Err(error)) => {
                prop_assert!(matches!(error.code, 1 | 7) && !error.details.is_empty(), "{error}");
            }
        }
    }

    #[test]
    fn no_field_of_the_guides_configuration_panics_whatever_it_holds(
        changes in proptest::collection::vec((proptest::sample::select(places()), any_json()), 1..4),
        name in "kube-ipam|calico-ipam|\\PC{0,8}",
    ) {
        let mut conf = guide();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            if let Some(Value::Object(fields)) = conf.pointer_mut(parent) {
                fields.insert(key.to_owned(), value);
            }
        }
        match NetConf::parse(&conf, &name) {
            Err(error) => {
                prop_assert!(matches!(error.code, 1 | 7));
                prop_assert!(!error.msg.is_empty() && !error.details.is_empty(), "{error}");
                prop_assert!(error.to_string().len() < 2000);
            }
            Ok(parsed) => for set in [parsed.ipam.v4, parsed.ipam.v6].into_iter().flatten() {
                for subnet in set.subnets() {
                    prop_assert!(!set.permits_random(subnet.network.network()));
                    prop_assert!(subnet.gateway.is_none_or(|gateway| set.permits_fixed(gateway).is_err()));
                }
            }
        }
    }
}

//! Pods as manifests write them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cni::CniError;
use crate::netconf::{Ipam, NetConf, PoolRef};
use crate::range::Family;

fn ipam(section: Value) -> Ipam {
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "calico", "ipam": section});
    NetConf::parse(&conf, "kube-ipam").unwrap().ipam
}

/// The guide's subnet.
fn v4() -> Ipam {
    ipam(
        json!({"subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200", "gateway": "10.244.0.1"}),
    )
}

fn dual() -> Ipam {
    ipam(json!({"ranges": [
        [{"subnet": "10.244.0.0/16"}, {"subnet": "10.9.0.0/24"}],
        [{"subnet": "fd00:10:244::/64", "gateway": "fd00:10:244::1"}],
    ]}))
}

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn fixed(pairs: &[(&str, &str)], ipam: &Ipam) -> Result<Option<FixedRequest>, CniError> {
    FixedRequest::parse(&annotations(pairs), ipam)
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, CniError>, names: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.code, 7, "{error}");
    assert!(!error.msg.is_empty() && !error.details.is_empty(), "{error}");
    for name in names {
        assert!(error.to_string().contains(name), "{name} is not in: {error}");
    }
}

// === kube-ipam.ip ===

#[test]
fn the_guides_annotations_ask_for_one_address() {
    let pairs =
        [("kube-ipam.ip", "10.244.0.216"), ("kube-ipam.netmask", "255.255.0.0"), ("kube-ipam.gateway", "10.244.0.1")];
    let request = fixed(&pairs, &v4()).unwrap().unwrap();
    assert_eq!(request.v4, ips(&["10.244.0.216"]));
    assert!(request.v6.is_empty());
    assert_eq!(request.netmask(Family::V4), Some(16));
    assert_eq!(request.gateway(Family::V4), Some("10.244.0.1".parse().unwrap()));
    assert_eq!((request.netmask(Family::V6), request.gateway(Family::V6)), (None, None));
}

#[test]
fn a_pod_without_our_annotations_asks_for_nothing() {
    assert_eq!(fixed(&[("app", "web"), ("cni.projectcalico.org/ipv4pools", "x")], &v4()).unwrap(), None);
    assert_eq!(fixed(&[("kube-ipam.owner", "x")], &v4()).unwrap(), None);
}

#[test]
fn a_pod_says_whether_an_update_hands_its_address_over() {
    use super::HandoverMode;
    for (text, mode) in [("evict", HandoverMode::Evict), ("refuse", HandoverMode::Refuse)] {
        let request = fixed(&[("kube-ipam.ip", "10.244.0.216"), ("kube-ipam.handover", text)], &v4()).unwrap().unwrap();
        assert_eq!(request.handover, Some(mode));
    }
    for bad in ["", "Evict", "true"] {
        refused(fixed(&[("kube-ipam.handover", bad)], &v4()), &["kube-ipam.handover", "neither evict nor refuse"]);
    }
}

#[test]
fn a_list_means_one_of_these_in_order_and_may_hold_both_families() {
    let request = fixed(&[("kube-ipam.ip", " 10.9.0.7, fd00:10:244::9 ,10.244.0.5")], &dual()).unwrap().unwrap();
    assert_eq!(request.choices(Family::V4, None).unwrap(), ips(&["10.9.0.7", "10.244.0.5"]));
    assert_eq!(request.choices(Family::V6, None).unwrap(), ips(&["fd00:10:244::9"]));
}

#[test]
fn with_an_ordinal_the_nth_address_is_the_only_choice() {
    let request = fixed(&[("kube-ipam.ip", "10.244.0.5,10.244.0.6,10.244.0.7")], &v4()).unwrap().unwrap();
    assert_eq!(request.choices(Family::V4, Some(0)).unwrap(), ips(&["10.244.0.5"]));
    assert_eq!(request.choices(Family::V4, Some(2)).unwrap(), ips(&["10.244.0.7"]));
    refused(
        request.choices(Family::V4, Some(3)),
        &["kube-ipam.ip", "10.244.0.5,10.244.0.6,10.244.0.7", "ordinal 3", "one address for each replica"],
    );
    refused(request.choices(Family::V4, Some(u32::MAX)), &["ordinal"]);
    assert_eq!(request.choices(Family::V6, Some(3)).unwrap(), ips(&[]));
}

#[test]
fn what_is_no_address_is_refused() {
    let ip = |value| fixed(&[("kube-ipam.ip", value)], &v4());
    for bad in ["", " ", "10.244.0.5,", "10.244.0.5,,10.244.0.6"] {
        refused(ip(bad), &["annotation kube-ipam.ip", "empty place", "commas"]);
    }
    refused(ip("web"), &["annotation kube-ipam.ip: \"web\"", "not an IP address", "such as"]);
    refused(ip("10.244.0.256"), &["\"10.244.0.256\"", "not an IP address"]);
    refused(ip("10.244.000.21"), &["not an IP address"]);
    refused(ip("10.244.0.21/16"), &["has host bits", "write 10.244.0.21 for the address, or 10.244.0.0/16"]);
    refused(ip("::ffff:10.244.0.21"), &["IPv6 form", "write 10.244.0.21"]);
    refused(ip("10.244.0.5 10.244.0.6"), &["10.244.0.5 10.244.0.6", "not an IP address"]);
    refused(ip("10.244.0.5,10.244.0.5"), &["10.244.0.5 twice", "once"]);
}

#[test]
fn ranges_and_cidrs_list_their_addresses_in_order_and_ordinals_count_through_them() {
    let list =
        "10.244.0.20-10.244.0.22, 10.244.0.9,10.244.0.32/31 ,fd00:10:244::a - fd00:10:244::b,fd00:10:244::40/127";
    let request = fixed(&[("kube-ipam.ip", list)], &dual()).unwrap().unwrap();
    let guides = v4;
    let v4 = ips(&["10.244.0.20", "10.244.0.21", "10.244.0.22", "10.244.0.9", "10.244.0.32", "10.244.0.33"]);
    let v6 = ips(&["fd00:10:244::a", "fd00:10:244::b", "fd00:10:244::40", "fd00:10:244::41"]);
    assert_eq!((&request.v4, &request.v6), (&v4, &v6));
    for (nth, ip) in v4.iter().enumerate() {
        assert_eq!(request.choices(Family::V4, u32::try_from(nth).ok()).unwrap(), [*ip]);
    }
    refused(request.choices(Family::V4, Some(6)), &["6 IPv4 address(es)", "ordinal 6"]);
    assert_eq!(request.choices(Family::V6, Some(3)).unwrap(), ips(&["fd00:10:244::41"]));
    // One address, and fifty for a StatefulSet of fifty.
    let one = fixed(&[("kube-ipam.ip", "10.244.0.5/32")], &guides()).unwrap().unwrap();
    assert_eq!(one.v4, ips(&["10.244.0.5"]));
    let fifty = fixed(&[("kube-ipam.ip", "10.244.0.201-10.244.0.250")], &guides()).unwrap().unwrap();
    assert_eq!((fifty.v4.len(), fifty.choices(Family::V4, Some(49)).unwrap()), (50, ips(&["10.244.0.250"])));
    assert_eq!(FixedRequest::listed(list).len(), 10);
    assert_eq!(FixedRequest::listed("10.244.0.9-x"), ips(&[]));
}

#[test]
fn ranges_that_are_none_or_too_long_are_refused() {
    let ip = |value| fixed(&[("kube-ipam.ip", value)], &dual());
    refused(
        ip("10.244.0.9-10.244.0.5"),
        &["10.244.0.9-10.244.0.5", "ends before it begins", "write 10.244.0.5-10.244.0.9"],
    );
    refused(ip("10.244.0.9-fd00:10:244::9"), &["from one family to the other"]);
    refused(ip("10.244.0.9-"), &["\"10.244.0.9-\"", "not an IP address"]);
    refused(ip("10.244.0.9-12"), &["not an IP address"]);
    refused(ip("10.244.0.9-10.244.0.10-10.244.0.11"), &["not an IP address"]);
    refused(ip("10.244.0.9/33"), &["not a CIDR"]);
    refused(ip("10.244.0.9/16"), &["has host bits", "write 10.244.0.9 for the address"]);
    refused(ip("10.244.0.9/32-10.244.0.12"), &["has a mask"]);
    for long in ["10.244.0.0/16", "10.244.1.0-10.244.2.0", "fd00:10:244::/64", "fd00:10:244::1-fd00:10:244::ffff:1"] {
        refused(ip(long), &[long, "more than 256 addresses", "one for each replica"]);
    }
    refused(ip("10.244.1.0/25,10.244.2.0/25,10.244.3.0/31"), &["more than 256"]);
    assert_eq!(ip("10.244.1.0/24,10.244.3.1").unwrap().unwrap().v4.len(), 257);
    refused(ip("10.244.0.20-10.244.0.29,10.244.0.25"), &["10.244.0.25 twice"]);
    refused(ip("10.244.0.25,10.244.0.16/28"), &["10.244.0.25 twice"]);
    // All of it must be permitted, or ordinals would count otherwise than the list says.
    refused(ip("10.244.0.0/28"), &["10.244.0.0, which is the network address"]);
    refused(fixed(&[("kube-ipam.ip", "10.244.0.1-10.244.0.3")], &v4()), &["10.244.0.1, which is the gateway"]);
    refused(
        fixed(&[("kube-ipam.ip", "10.244.0.5"), ("kube-ipam.gateway", "10.244.0.2-10.244.0.3")], &v4()),
        &["kube-ipam.gateway", "not an IP address"],
    );
}

#[test]
fn an_address_that_no_pod_may_have_is_refused() {
    let ip = |value| fixed(&[("kube-ipam.ip", value)], &v4());
    refused(
        ip("10.245.0.5"),
        &["annotation kube-ipam.ip: \"10.245.0.5\"", "outside of 10.244.0.0/16", "give an address of 10.244.0.0/16"],
    );
    refused(ip("10.244.0.0"), &["network address of 10.244.0.0/16"]);
    refused(ip("10.244.255.255"), &["broadcast address"]);
    refused(ip("10.244.0.1"), &["gateway of 10.244.0.0/16"]);
    refused(ip("10.244.0.5,10.245.0.5"), &["10.245.0.5, which is outside"]);
    refused(fixed(&[("kube-ipam.ip", "fd00:10:244::")], &dual()), &["anycast"]);
}

#[test]
fn an_address_of_a_family_the_network_lacks_is_refused() {
    refused(
        fixed(&[("kube-ipam.ip", "fd00::5")], &v4()),
        &["kube-ipam.ip: \"fd00::5\"", "network net has IPv4 only: 10.244.0.0/16", "IPv6 subnet"],
    );
    let v6 = ipam(json!({"subnet": "fd00::/64"}));
    refused(fixed(&[("kube-ipam.ip", "fd00::5,10.0.0.1")], &v6), &["10.0.0.1", "has IPv6 only"]);
}

#[test]
fn without_subnets_any_unicast_address_may_be_asked_for() {
    let calico = ipam(json!({"type": "calico-ipam"}));
    let request =
        fixed(&[("kube-ipam.ip", "10.1.2.3,fd00::3"), ("kube-ipam.netmask", "24,64")], &calico).unwrap().unwrap();
    assert_eq!((request.netmask(Family::V4), request.netmask(Family::V6)), (Some(24), Some(64)));
    for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "::1"] {
        refused(fixed(&[("kube-ipam.ip", bad)], &calico), &[bad, "IP pool"]);
    }
}

// === kube-ipam.netmask and kube-ipam.gateway ===

#[test]
fn a_mask_is_dotted_or_a_length() {
    for good in ["255.255.0.0", "/16", "16", " 16 "] {
        let request = fixed(&[("kube-ipam.ip", "10.244.0.5"), ("kube-ipam.netmask", good)], &v4()).unwrap().unwrap();
        assert_eq!(request.netmask(Family::V4), Some(16), "{good}");
    }
    for bad in ["", "255.0.255.0", "255.255.0", "/", "/x", "129", "-1", "+16", "0x10", "ffff::", "16/"] {
        refused(
            fixed(&[("kube-ipam.ip", "10.244.0.5"), ("kube-ipam.netmask", bad)], &v4()),
            &["annotation kube-ipam.netmask", "not a mask", "255.255.0.0"],
        );
    }
}

#[test]
fn a_mask_that_contradicts_the_subnet_is_refused_with_the_right_one() {
    let mask = |value| fixed(&[("kube-ipam.ip", "10.244.0.5"), ("kube-ipam.netmask", value)], &v4());
    refused(
        mask("255.255.255.0"),
        &[
            "annotation kube-ipam.netmask: \"255.255.255.0\"",
            "contradicts 10.244.0.0/16, the subnet of 10.244.0.5",
            "write 255.255.0.0 or /16",
        ],
    );
    refused(mask("/24"), &["contradicts", "/16"]);
    refused(mask("0.0.0.0"), &["contradicts"]);
    let two = [("kube-ipam.ip", "10.244.0.5,10.9.0.5"), ("kube-ipam.netmask", "/16")];
    refused(fixed(&two, &dual()), &["contradicts 10.9.0.0/24, the subnet of 10.9.0.5"]);
}

#[test]
fn each_family_may_have_its_mask() {
    let both = |mask| fixed(&[("kube-ipam.ip", "10.244.0.5,fd00:10:244::5"), ("kube-ipam.netmask", mask)], &dual());
    for good in ["255.255.0.0,64", "64,16", "/16,/64"] {
        let request = both(good).unwrap().unwrap();
        assert_eq!((request.netmask(Family::V4), request.netmask(Family::V6)), (Some(16), Some(64)));
    }
    assert_eq!(both("64").unwrap().unwrap().netmask(Family::V4), None);
    refused(both("16,48"), &["contradicts fd00:10:244::/64", "write /64"]);
    refused(both("16,64,64"), &["\"64\", which is for no address", "one mask for each family"]);
    let v6 = [("kube-ipam.ip", "fd00:10:244::5"), ("kube-ipam.netmask", "255.255.0.0")];
    refused(fixed(&v6, &dual()), &["for no address of kube-ipam.ip"]);
}

#[test]
fn a_gateway_is_another_host_of_the_subnet() {
    let gateway = |value| fixed(&[("kube-ipam.ip", "10.244.0.5"), ("kube-ipam.gateway", value)], &dual());
    assert_eq!(gateway("10.244.0.254").unwrap().unwrap().gateway(Family::V4), Some("10.244.0.254".parse().unwrap()));
    refused(
        gateway("10.9.0.1"),
        &[
            "annotation kube-ipam.gateway: \"10.9.0.1\"",
            "outside 10.244.0.0/16, the subnet of 10.244.0.5",
            "give a host of 10.244.0.0/16",
        ],
    );
    refused(gateway("10.244.0.0"), &["network or broadcast address of 10.244.0.0/16"]);
    refused(gateway("10.244.255.255"), &["network or broadcast"]);
    refused(gateway("10.244.0.5"), &["asks for too"]);
    refused(gateway("10.244.0.1,10.244.0.2"), &["two IPv4 gateways"]);
    refused(gateway("fd00:10:244::1"), &["IPv6 gateway", "no IPv6 address"]);
    refused(gateway("gw"), &["\"gw\"", "not an IP address"]);
    refused(gateway(""), &["empty place"]);
}

#[test]
fn each_family_may_have_its_gateway() {
    let pairs = [("kube-ipam.ip", "10.244.0.5,fd00:10:244::5"), ("kube-ipam.gateway", "fd00:10:244::1,10.244.0.1")];
    let request = fixed(&pairs, &dual()).unwrap().unwrap();
    assert_eq!(request.gateway(Family::V4), Some("10.244.0.1".parse().unwrap()));
    assert_eq!(request.gateway(Family::V6), Some("fd00:10:244::1".parse().unwrap()));
}

#[test]
fn without_subnets_the_annotated_mask_says_what_the_gateway_may_be() {
    let calico = ipam(json!({"type": "calico-ipam"}));
    let with = |gateway| {
        fixed(&[("kube-ipam.ip", "10.1.2.3"), ("kube-ipam.netmask", "24"), ("kube-ipam.gateway", gateway)], &calico)
    };
    assert!(with("10.1.2.1").is_ok());
    refused(with("10.1.3.1"), &["outside 10.1.2.0/24"]);
}

#[test]
fn mask_and_gateway_are_of_no_use_without_an_address() {
    refused(
        fixed(&[("kube-ipam.netmask", "16")], &v4()),
        &["annotation kube-ipam.netmask: \"16\"", "without kube-ipam.ip", "add kube-ipam.ip"],
    );
    refused(
        fixed(&[("kube-ipam.gateway", "10.244.0.1")], &v4()),
        &["annotation kube-ipam.gateway", "without kube-ipam.ip"],
    );
}

#[test]
fn what_looks_like_our_annotation_but_is_not_is_refused() {
    for (bad, meant) in [
        ("kube-ipam.IP", "kube-ipam.ip"),
        ("kube-ipam.ips", "kube-ipam.ip"),
        ("kubeipam.ip", "kube-ipam.ip"),
        ("kube-ipam/ip", "kube-ipam.ip"),
        ("kube_ipam.ip", "kube-ipam.ip"),
        ("kube-ipam.mask", "known are"),
        ("kube-ipam.gatway", "kube-ipam.gateway"),
        ("kube-ipam.address", "known are kube-ipam.ip"),
    ] {
        refused(fixed(&[(bad, "10.244.0.5")], &v4()), &[bad, "10.244.0.5", meant]);
    }
    assert_eq!(fixed(&[("kube-ipam-tools/note", "x"), ("example.org/kube-ipam.address", "x")], &v4()).unwrap(), None);
}

// === owners ===

fn pod(name: &str, controller: Option<(&str, &str, &str)>, labels: Value, annotations: Value) -> Pod {
    let owners = controller.map(|(api_version, kind, name)| {
        json!([
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "0"},
            {"apiVersion": api_version, "kind": kind, "name": name, "uid": "1", "controller": true},
        ])
    });
    let metadata = json!({
        "name": name, "namespace": "default", "ownerReferences": owners, "labels": labels, "annotations": annotations,
        "creationTimestamp": "2026-11-23T22:40:56Z",
    });
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})).unwrap()
}

fn owner(name: &str, controller: Option<(&str, &str, &str)>, labels: Value) -> String {
    let owner = Owner::of(&pod(name, controller, labels, json!({}))).unwrap();
    format!("{}|{}|{owner}", owner.group, owner.version.clone().unwrap_or_default())
}

#[test]
fn a_deployment_owns_through_its_replica_sets() {
    let replica_set = Some(("apps/v1", "ReplicaSet", "web-app-59df9c4fdd"));
    let labels = json!({"pod-template-hash": "59df9c4fdd"});
    assert_eq!(owner("web-app-59df9c4fdd-hnfxm", replica_set, labels), "apps|v1|Deployment default/web-app");
}

#[test]
fn an_argo_rollout_owns_through_its_replica_sets() {
    let replica_set = Some(("apps/v1", "ReplicaSet", "web-59df9c4fdd"));
    let labels = json!({"rollouts-pod-template-hash": "59df9c4fdd"});
    assert_eq!(owner("web-59df9c4fdd-hnfxm", replica_set, labels), "argoproj.io|v1alpha1|Rollout default/web");
}

#[test]
fn a_replica_set_of_its_own_owns_by_itself() {
    let replica_set = Some(("apps/v1", "ReplicaSet", "web-1"));
    assert_eq!(owner("web-1-x", replica_set, json!({})), "apps|v1|ReplicaSet default/web-1");
    assert_eq!(owner("web-1-x", replica_set, json!({"pod-template-hash": "2"})), "apps|v1|ReplicaSet default/web-1");
    let bare = Some(("apps/v1", "ReplicaSet", "-1"));
    assert_eq!(owner("web-1-x", bare, json!({"pod-template-hash": "1"})), "apps|v1|ReplicaSet default/-1");
}

#[test]
fn each_pod_of_a_stateful_set_owns_by_its_ordinal() {
    let set = Some(("apps/v1", "StatefulSet", "db"));
    assert_eq!(owner("db-1", set, json!({})), "apps|v1|StatefulSet default/db #1");
    assert_eq!(owner("db-1", set, json!({"apps.kubernetes.io/pod-index": "12"})), "apps|v1|StatefulSet default/db #12");
    let kruise = Some(("apps.kruise.io/v1beta1", "StatefulSet", "db"));
    assert_eq!(owner("db-3", kruise, json!({})), "apps.kruise.io|v1beta1|StatefulSet default/db #3");
    assert_eq!(owner("db-x", set, json!({})), "apps|v1|StatefulSet default/db");
}

#[test]
fn a_cron_job_owns_through_its_jobs() {
    // 2026-11-23T22:40:00Z is minute 29924560 since 1970.
    let job = |name| owner("x", Some(("batch/v1", "Job", name)), json!({}));
    assert_eq!(job("backup-29924560"), "batch|v1|CronJob default/backup");
    assert_eq!(job("backup"), "batch|v1|Job default/backup");
    assert_eq!(job("backup-20261123"), "batch|v1|Job default/backup-20261123", "a date");
    assert_eq!(job("backup-31122026"), "batch|v1|Job default/backup-31122026", "later than the pod");
    assert_eq!(job("backup-2992456"), "batch|v1|Job default/backup-2992456");
    assert_eq!(job("-29924560"), "batch|v1|Job default/-29924560");
}

#[test]
fn other_controllers_own_as_they_are() {
    assert_eq!(owner("x", Some(("apps/v1", "DaemonSet", "agent")), json!({})), "apps|v1|DaemonSet default/agent");
    assert_eq!(
        owner("x", Some(("v1", "ReplicationController", "old")), json!({})),
        "|v1|ReplicationController default/old"
    );
    assert_eq!(owner("x", Some(("example.org/v2", "Thing", "t")), json!({})), "example.org|v2|Thing default/t");
}

#[test]
fn bare_and_static_pods_own_by_their_own_names() {
    assert_eq!(owner("alone", None, json!({})), "|v1|Pod default/alone");
    assert_eq!(owner("etcd-n1", Some(("v1", "Node", "n1")), json!({})), "|v1|Pod default/etcd-n1");
    let mut not_controlled = pod("alone", Some(("apps/v1", "DaemonSet", "d")), json!({}), json!({}));
    not_controlled.metadata.owner_references.as_mut().unwrap()[1].controller = None;
    assert_eq!(Owner::of(&not_controlled).unwrap().to_string(), "Pod default/alone");
}

#[test]
fn the_annotation_names_another_owner_within_the_namespace() {
    let by =
        |controller, name: &str| Owner::of(&pod("db-2", controller, json!({}), json!({ "kube-ipam.owner": name })));
    let owner = by(None, "team.db-main").unwrap();
    assert_eq!((owner.group.as_str(), owner.version.as_deref()), ("kube-ipam.io", None));
    assert_eq!(owner.to_string(), "Owner default/team.db-main");
    let owner = by(Some(("apps/v1", "StatefulSet", "db")), "main").unwrap();
    assert_eq!(owner.to_string(), "Owner default/main #2");
    for bad in ["", "Main", "a/b", "../x", "a b", "-a"] {
        refused(by(None, bad), &["annotation kube-ipam.owner", "DNS-1123"]);
    }
}

#[test]
fn a_pod_without_name_or_namespace_is_no_pod() {
    let mut pod = pod("x", None, json!({}), json!({}));
    pod.metadata.namespace = None;
    assert_eq!(Owner::of(&pod).unwrap_err().code, 6);
}

#[test]
fn the_version_of_a_kind_is_no_part_of_identity() {
    let one = Owner::of(&pod("x", Some(("apps/v1", "DaemonSet", "d")), json!({}), json!({}))).unwrap();
    let other = Owner { version: None, ..one.clone() };
    assert_eq!(one, other);
    assert_eq!(one.cmp(&other), std::cmp::Ordering::Equal);
    assert_eq!(std::collections::HashSet::from([one.clone(), other.clone()]).len(), 1);
    assert_ne!(one, Owner { ordinal: Some(0), ..one.clone() });
    assert_ne!(one, Owner { namespace: "other".into(), ..one.clone() });
    let json = serde_json::to_value(&other).unwrap();
    assert_eq!(json, json!({"namespace": "default", "group": "apps", "kind": "DaemonSet", "name": "d"}));
    assert_eq!(serde_json::from_value::<Owner>(json).unwrap(), one);
}

// === Calico's annotations ===

fn pools(pod: &[(&str, &str)], namespace: &[(&str, &str)]) -> Result<PoolAnnotations, CniError> {
    PoolAnnotations::parse(&annotations(pod), &annotations(namespace))
}

const V4: &str = "cni.projectcalico.org/ipv4pools";
const V6: &str = "cni.projectcalico.org/ipv6pools";
const FAMILIES: &str = "cni.projectcalico.org/ipFamilies";

#[test]
fn the_pods_pools_win_over_the_namespaces_key_by_key() {
    let said = pools(
        &[(V4, "[\"gold\", \"10.244.0.0/16\"]")],
        &[(V4, "[\"base\"]"), (V6, "[\"fd00::/48\"]"), (FAMILIES, "[\"IPv6\"]")],
    )
    .unwrap();
    assert_eq!(said.v4, [PoolRef::Name("gold".into()), PoolRef::Cidr("10.244.0.0/16".parse().unwrap())]);
    assert_eq!(said.v6, [PoolRef::Cidr("fd00::/48".parse().unwrap())]);
    assert_eq!(said.families, Some(Families { v4: false, v6: true }));
    assert_eq!(pools(&[(V4, "")], &[]).unwrap(), PoolAnnotations::default());
}

#[test]
fn malformed_pool_annotations_are_refused() {
    refused(pools(&[(V4, "gold")], &[]), &[V4, "\"gold\"", "JSON list", "default-ipv4-ippool"]);
    refused(pools(&[], &[(V4, "{\"a\": 1}")]), &[V4, "JSON list"]);
    refused(pools(&[(V4, "[]")], &[]), &[V4, "empty list", "leave it out"]);
    refused(pools(&[(V4, "[\"fd00::/48\"]")], &[]), &[V4, "fd00::/48", "not IPv4"]);
    refused(pools(&[(V6, "[\"Bad Name\"]")], &[]), &[V6, "Bad Name", "IPPool"]);
    refused(pools(&[(FAMILIES, "[\"ipv4\"]")], &[]), &[FAMILIES, "ipv4", "[\"IPv4\", \"IPv6\"]"]);
    refused(pools(&[(FAMILIES, "[]")], &[]), &[FAMILIES, "empty list"]);
}

// === whatever comes ===

proptest! {
    #[test]
    fn no_annotations_panic_and_none_that_is_ours_is_ignored(
        ip in proptest::option::of("[0-9a-f.:,/ ]{0,20}|10\\.244\\.0\\.[0-9]{1,3}|\\PC{0,10}"),
        netmask in proptest::option::of("[0-9./,]{0,12}|\\PC{0,6}"),
        gateway in proptest::option::of("10\\.244\\.0\\.[0-9]{1,2}|\\PC{0,10}"),
        other in proptest::option::of("(kube-ipam\\.[a-zA-Z]{1,6}|\\PC{0,12})"),
    ) {
        let pairs = [(IP.to_owned(), ip), (NETMASK.to_owned(), netmask), (GATEWAY.to_owned(), gateway)];
        let mut map: BTreeMap<String, String> = pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        map.extend(other.map(|key| (key, "10.244.0.9".to_owned())));
        let ours = map.keys().any(|key| key.starts_with("kube-ipam.") && key != OWNER);
        for ipam in [v4(), dual(), ipam(json!({"type": "calico-ipam"}))] {
            match FixedRequest::parse(&map, &ipam) {
                Ok(None) => prop_assert!(!ours, "{map:?} would give a random address"),
                Ok(Some(request)) => {
                    prop_assert!(!request.v4.is_empty() || !request.v6.is_empty());
                    for ip in request.v4.iter().chain(&request.v6) {
                        let family = Family::of(*ip);
                        prop_assert!(ipam.ranges(family).is_none_or(|ranges| ranges.permits_fixed(*ip).is_ok()));
                        prop_assert_ne!(request.gateway(family), Some(*ip));
                    }
                }
                Err(error) => {
                    prop_assert_eq!(error.code, 7);
                    prop_assert!(error.msg.contains("annotation ") && !error.details.is_empty());
                }
            }
        }
    }

    #[test]
    fn no_pool_annotation_panics(v4 in "\\PC{0,16}|\\[(\"[a-z0-9./:]{0,12}\",?){0,3}\\]", families in "\\PC{0,16}|\\[\"(IPv4|IPv6|x)\"\\]") {
        if let Err(error) = pools(&[(V4, &v4), (V6, &v4), (FAMILIES, &families)], &[]) {
            prop_assert_eq!(error.code, 7);
            prop_assert!(error.msg.contains("cni.projectcalico.org/") && !error.details.is_empty());
        }
    }

    #[test]
    fn no_pod_panics(name in "\\PC{0,12}", kind in "ReplicaSet|StatefulSet|Job|Node|\\PC{0,8}", by in "\\PC{0,12}|[a-z]{1,3}-[0-9]{6,9}",
        group in "apps/v1|batch/v1|v1|\\PC{0,8}", hash in "\\PC{0,6}|[0-9]{6,9}") {
        let pod = pod(&name, Some((&group, &kind, &by)), json!({"pod-template-hash": hash, "apps.kubernetes.io/pod-index": hash}), json!({}));
        let owner = Owner::of(&pod).unwrap();
        prop_assert!(!owner.kind.is_empty() || kind.is_empty());
    }
}

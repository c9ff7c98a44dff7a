//! Lists that are built parse; lists that are read give up our section.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::netconf::Dialect;

fn text(value: &str) -> Option<String> {
    Some(value.to_owned())
}

fn subnet(cidr: &str) -> SubnetArgs {
    SubnetArgs { subnet: cidr.to_owned(), ..SubnetArgs::default() }
}

/// The values of the guide.
fn guide() -> ConflistArgs {
    ConflistArgs {
        nodename: text("192.168.56.82"),
        ledger: text("kube-subnet"),
        kubeconfig: text("/etc/kubernetes/ssl/kube.kubeconfig"),
        etcd: Some(EtcdArgs {
            endpoints: ["50", "58", "63"].map(|host| format!("https://192.168.1.{host}:2379")).to_vec(),
            cert_file: text("/etc/kubernetes/ssl/kubernetes.pem"),
            key_file: text("/etc/kubernetes/ssl/kubernetes-key.pem"),
            ca_file: text("/etc/kubernetes/ssl/k8s-root-ca.pem"),
            ..EtcdArgs::default()
        }),
        subnets: vec![SubnetArgs {
            subnet: "10.244.0.0/16".to_owned(),
            range_start: text("10.244.0.10"),
            range_end: text("10.244.0.200"),
            gateway: text("10.244.0.1"),
        }],
        resolv_conf: text("/etc/resolv.conf"),
        ..ConflistArgs::default()
    }
}

#[test]
fn the_guides_values_give_the_guides_list() {
    let mut expected: Value =
        serde_json::from_str(include_str!("../../tests/fixtures/guide-10-calico.conflist")).unwrap();
    let etcd = expected.pointer_mut("/plugins/0/ipam/etcdConfig").unwrap().as_object_mut().unwrap();
    let authority = etcd.remove("etcdTrustedCAFileFile").unwrap();
    etcd.insert("etcdTrustedCAFile".to_owned(), authority);
    assert_eq!(build(&guide()).unwrap(), expected);
}

#[test]
fn several_subnets_are_written_as_ranges_one_set_a_family() {
    let args = ConflistArgs {
        main_plugin: "ptp".to_owned(),
        cni_version: CniVersion::V1_1_0,
        subnets: vec![subnet("10.1.0.0/24"), subnet("fd00::/64"), subnet("10.2.0.0/24")],
        wait_seconds: Some(5),
        ..ConflistArgs::default()
    };
    let list = build(&args).unwrap();
    let expected = json!([[{"subnet": "10.1.0.0/24"}, {"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]);
    assert_eq!(list.pointer("/plugins/0/ipam/ranges"), Some(&expected));
    assert_eq!(list.pointer("/plugins/0/policy"), None);
    let conf = NetConf::parse(&plugin_conf(&list, "kube-ipam").unwrap(), "kube-ipam").unwrap();
    assert_eq!(conf.ipam.v4.unwrap().subnets().len(), 2);
    assert_eq!(conf.ipam.wait.as_secs(), 5);
    assert_eq!(conf.ipam.dialect, Dialect::KubeIpam);
}

#[test]
fn values_that_make_no_configuration_are_refused_by_field() {
    let refused = |args: ConflistArgs, field: &str| {
        let error = build(&args).unwrap_err();
        assert!(error.code == 7 && error.msg.contains(field), "{error}");
    };
    refused(ConflistArgs::default(), "ipam.subnet: missing");
    refused(ConflistArgs { subnets: vec![subnet("10.244.0.1/16")], ..guide() }, "ipam.subnet");
    refused(ConflistArgs { etcd: Some(EtcdArgs::default()), ..guide() }, "ipam.etcdConfig.etcdURL");
    refused(ConflistArgs { routes: vec!["default".to_owned()], ..guide() }, "ipam.routes[0].dst");
}

#[test]
fn our_section_is_found_behind_other_plugins() {
    let list = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
        {"type": "loopback"},
        {"type": "ptp", "ipam": {"type": "kube-ipam"}},
    ]});
    let conf = plugin_conf(&list, "kube-ipam").unwrap();
    assert_eq!(conf, json!({"name": "n", "cniVersion": "1.0.0", "type": "ptp", "ipam": {"type": "kube-ipam"}}));
    assert_eq!(plugin_conf(&conf, "kube-ipam").unwrap(), conf);
    let error = plugin_conf(&list, "calico-ipam").unwrap_err();
    assert!(error.code == 7 && error.to_string().contains("calico-ipam"), "{error}");
}

proptest! {
    #[test]
    fn no_list_panics(
        plugins in proptest::option::of(proptest::collection::vec(proptest::option::of("kube-ipam|host-local|\\PC{0,4}"), 0..4)),
        wanted in "kube-ipam|\\PC{0,4}", shape in 0..3u8,
    ) {
        let sections: Option<Vec<Value>> = plugins.clone().map(|kinds| {
            kinds.into_iter().map(|kind| kind.map_or(json!(7), |kind| json!({"type": "main", "ipam": {"type": kind}}))).collect()
        });
        let list = match shape {
            0 => json!({"name": "n", "cniVersion": "1.0.0", "plugins": sections}),
            1 => json!({"name": [], "plugins": "none"}),
            _ => json!([sections]),
        };
        match plugin_conf(&list, &wanted) {
            Ok(conf) => prop_assert!(conf.get("plugins").is_none() || conf == list),
            Err(error) => prop_assert!(error.code == 7 && !error.msg.is_empty() && !error.details.is_empty()),
        }
    }

    #[test]
    fn no_values_make_a_list_that_does_not_parse(
        texts in proptest::collection::vec("\\PC{0,10}|[0-9a-f.:/]{0,18}|/[a-z]{1,6}", 6), known in any::<bool>(),
    ) {
        let some = |text: &String| Some(text.clone());
        let subnet = if known { "10.244.0.0/16".to_owned() } else { texts[0].clone() };
        let args = ConflistArgs {
            kubeconfig: some(&texts[1]),
            resolv_conf: some(&texts[2]),
            routes: vec![texts[3].clone()],
            subnets: vec![SubnetArgs { subnet, gateway: some(&texts[4]), range_start: some(&texts[5]), ..SubnetArgs::default() }],
            ..ConflistArgs::default()
        };
        if let Err(error) = build(&args) {
            prop_assert!(error.code == 7 && !error.msg.is_empty() && !error.details.is_empty(), "{error}");
        }
    }
}

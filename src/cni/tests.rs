//! Calls in, answers out.

use std::collections::HashMap;
use std::ffi::OsString;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::object::Object;
use super::*;

fn call(pairs: &[(&str, &str)]) -> Result<Invocation, CniError> {
    let variables: HashMap<_, _> = pairs.iter().copied().collect();
    invocation(|name| variables.get(name).map(OsString::from))
}

fn add(change: (&str, &str)) -> Result<Invocation, CniError> {
    let mut pairs = vec![
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a1b2"),
        ("CNI_NETNS", "/var/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1"),
    ];
    pairs.retain(|(name, _)| *name != change.0);
    pairs.push(change);
    call(&pairs)
}

/// The error has this code, and its text names all of these.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, CniError>, code: u32, names: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code, code, "{text}");
    assert!(!error.msg.is_empty());
    for name in names {
        assert!(text.contains(name), "{name} is not in: {text}");
    }
}

// === the environment ===

#[test]
fn an_add_is_read_from_its_environment() {
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=a1b2;K8S_POD_UID=0-1;IgnoreUnknown=1;X=y";
    let call = add(("CNI_ARGS", args)).unwrap();
    assert_eq!(call.verb, Verb::Add);
    assert_eq!((call.container_id.as_str(), call.ifname.as_str()), ("a1b2", "eth0"));
    assert_eq!(call.args.pod_namespace.as_deref(), Some("default"));
    assert_eq!(call.args.pod_name.as_deref(), Some("web-1"));
    assert_eq!(call.args.pod_uid.as_deref(), Some("0-1"));
    assert_eq!(call.args.ip, None);
}

#[test]
fn every_missing_variable_is_named_at_once() {
    refused(call(&[("CNI_COMMAND", "ADD")]), 4, &["CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME are not set", "ADD needs"]);
    refused(
        call(&[("CNI_COMMAND", "CHECK"), ("CNI_PATH", "/x")]),
        4,
        &["CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME are not set"],
    );
    refused(add(("CNI_NETNS", "")), 4, &["CNI_NETNS is not set"]);
    refused(call(&[("CNI_COMMAND", "GC")]), 4, &["CNI_PATH is not set"]);
    refused(call(&[]), 4, &["CNI_COMMAND is not set", "VERSION"]);
}

#[test]
fn del_does_without_a_network_namespace() {
    let del = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")];
    assert_eq!(call(&del).unwrap().verb, Verb::Del);
}

#[test]
fn verbs_about_no_container_ignore_one_in_the_environment() {
    for verb in ["STATUS", "GC", "VERSION"] {
        let call =
            call(&[("CNI_COMMAND", verb), ("CNI_PATH", "/x"), ("CNI_CONTAINERID", "../x"), ("CNI_ARGS", "x")]).unwrap();
        assert_eq!((call.container_id.as_str(), call.args), ("", CniArgs::default()));
    }
}

#[test]
fn an_unknown_verb_is_refused_with_the_known_ones() {
    refused(add(("CNI_COMMAND", "add")), 4, &["CNI_COMMAND: \"add\"", "ADD, DEL, CHECK"]);
}

#[test]
fn path_like_container_ids_are_refused() {
    for bad in ["../../etc", "a/b", "-a", ".a", "a b", "a\n", "ä", &"a".repeat(200)] {
        refused(add(("CNI_CONTAINERID", bad)), 4, &["CNI_CONTAINERID", "letters, digits"]);
    }
    assert!(add(("CNI_CONTAINERID", "A_1.b-c")).is_ok());
}

#[test]
fn interface_names_follow_the_rules_of_the_kernel() {
    for bad in ["a/b", "a:b", "a b", "..", ".", "0123456789abcdef", "a\tb"] {
        refused(add(("CNI_IFNAME", bad)), 4, &["CNI_IFNAME", "eth0"]);
    }
    assert!(add(("CNI_IFNAME", "0123456789abcde")).is_ok());
}

/// Virtual machines and Windows name a network namespace by an identifier, and an IPAM plugin runs no other plugin.
#[test]
fn what_an_ipam_plugin_does_not_use_is_not_judged() {
    for netns in ["netns/a", "{2f3c7a5e-0000-4f1f-8a1c-5d0c8b1f0000}", "none", "../x", "cni-1 2"] {
        assert!(add(("CNI_NETNS", netns)).is_ok(), "{netns}");
    }
    for path in ["", "bin", ":", "/a:b"] {
        assert!(add(("CNI_PATH", path)).is_ok(), "{path}");
    }
    assert!(call(&[("CNI_COMMAND", "STATUS")]).is_ok(), "CNI_PATH is optional for STATUS, as for ADD, DEL and CHECK");
    for args in [
        "COLOUR=red",
        "COLOUR=red;COLOUR=blue",
        "IgnoreUnknown=maybe",
        "IgnoreUnknown=1;IgnoreUnknown=0;COLOUR=red",
        "K8S_POD_INFRA_CONTAINER_ID=a/b",
        "K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_INFRA_CONTAINER_ID=b",
    ] {
        assert!(CniArgs::parse(args).is_ok(), "{args}");
    }
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let result = invocation(|name| (name == "CNI_COMMAND").then(|| OsString::from_vec(vec![0xff, b'A'])));
    refused(result, 4, &["CNI_COMMAND", "UTF-8"]);
}

#[test]
fn pod_names_that_are_paths_are_refused() {
    for (key, bad) in [
        ("K8S_POD_NAME", "../../x"),
        ("K8S_POD_NAMESPACE", "kube/system"),
        ("K8S_POD_NAMESPACE", "a.b"),
        ("K8S_POD_UID", "../x"),
        ("K8S_POD_NAME", "Web"),
    ] {
        refused(CniArgs::parse(&format!("{key}={bad}")), 4, &["CNI_ARGS", key, bad]);
    }
}

#[test]
fn a_pod_has_both_name_and_namespace_or_neither() {
    refused(CniArgs::parse("K8S_POD_NAME=a"), 4, &["K8S_POD_NAMESPACE", "give both"]);
    refused(CniArgs::parse("K8S_POD_NAMESPACE=a;K8S_POD_NAME="), 4, &["K8S_POD_NAME", "give both"]);
    assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
}

#[test]
fn malformed_and_contradicting_pairs_are_refused() {
    refused(CniArgs::parse("K8S_POD_NAME"), 4, &["\"K8S_POD_NAME\"", "key=value"]);
    refused(CniArgs::parse("=x"), 4, &["key=value"]);
    refused(CniArgs::parse("K8S_POD_UID=a;K8S_POD_UID=b"), 4, &["K8S_POD_UID", "twice"]);
    assert!(CniArgs::parse("K8S_POD_UID=a;K8S_POD_UID=a;").is_ok());
}

#[test]
fn a_misspelt_key_of_ours_is_refused_unless_unknown_ones_are_to_be_ignored() {
    refused(CniArgs::parse("K8S_POD_NAMES=a"), 4, &["did you mean K8S_POD_NAME?", "IgnoreUnknown=1"]);
    for yes in ["1", "true", "True"] {
        assert!(CniArgs::parse(&format!("K8S_POD_NAMES=a;IgnoreUnknown={yes}")).is_ok());
    }
}

#[test]
fn an_address_asked_for_in_the_arguments_is_one_a_family() {
    let ips = |text| CniArgs::parse(text).unwrap().ip.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ips("IP=10.244.0.216"), ["10.244.0.216"]);
    assert_eq!(ips("IP=10.244.0.216,fd00::1"), ["10.244.0.216", "fd00::1"]);
    refused(CniArgs::parse("IP=10.0.0.1,10.0.0.2"), 4, &["10.0.0.2", "one address a family"]);
    refused(CniArgs::parse("IP=10.0.0.256"), 4, &["IP", "10.0.0.256", "not an IP address"]);
    refused(CniArgs::parse("IP=10.0.0.1/24"), 4, &["has a mask", "write 10.0.0.1"]);
}

// === stdin ===

#[test]
fn stdin_that_is_not_one_object_is_refused() {
    refused(parse_stdin(b""), 6, &["stdin: empty"]);
    refused(parse_stdin(b" \n"), 6, &["stdin: empty"]);
    refused(parse_stdin(b"{\"name\": \"x\""), 6, &["stdin: not JSON"]);
    refused(parse_stdin(b"[1]"), 6, &["array"]);
    refused(parse_stdin(b"7"), 6, &["bare"]);
    refused(parse_stdin(b"{} {}"), 6, &["not JSON"]);
    refused(parse_stdin(&[b'{', 0xff]), 6, &["not JSON"]);
    refused(parse_stdin("[".repeat(10_000).as_bytes()), 6, &["recursion limit"]);
    refused(parse_stdin("[".repeat(100_000).as_bytes()), 5, &["32768 JSON values"]);
    refused(parse_stdin(&vec![b' '; READ_STDIN_LIMIT + 1]), 5, &["1048576 bytes"]);
    assert!(parse_stdin(b" {\"a\": 1}\n").is_ok());
}

#[test]
fn what_stdin_held_is_not_repeated_in_the_error() {
    let error = parse_stdin(b"{\"token\": \"s3cret\", \"x\": s3cret").unwrap_err();
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

// === versions ===

#[test]
fn every_version_of_the_specification_from_0_3_0_is_spoken() {
    for version in CniVersion::ALL {
        assert_eq!(CniVersion::of(&json!({ "cniVersion": version.as_str() })).unwrap(), version);
    }
    assert_eq!(
        version_answer(),
        json!({"cniVersion": "1.1.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

#[test]
fn another_version_is_refused_with_the_spoken_ones() {
    for bad in [json!({}), json!({"cniVersion": "0.2.0"}), json!({"cniVersion": 1}), json!({"cniVersion": ""})] {
        refused(CniVersion::of(&bad), 1, &["cniVersion", "0.3.1", "1.1.0"]);
    }
}

#[test]
fn a_verb_is_refused_by_versions_before_it() {
    refused(CniVersion::V0_3_1.knows(Verb::Check), 1, &["CHECK", "0.3.1", "0.4.0"]);
    refused(CniVersion::V1_0_0.knows(Verb::Gc), 1, &["GC", "1.0.0", "1.1.0"]);
    assert!(CniVersion::V0_3_0.knows(Verb::Del).is_ok());
    assert!(CniVersion::V1_1_0.knows(Verb::Status).is_ok());
}

// === errors ===

#[test]
fn an_error_is_the_json_of_the_specification() {
    let error = CniError::new(code::TRY_AGAIN, "10.244.0.216 is held", "wait");
    assert_eq!(
        error.to_json(Some(CniVersion::V0_3_1)),
        json!({"cniVersion": "0.3.1", "code": 11, "msg": "10.244.0.216 is held", "details": "wait"})
    );
    assert_eq!(CniError::new(7, "x", "").to_json(None), json!({"cniVersion": "1.1.0", "code": 7, "msg": "x"}));
    assert_eq!(error.to_string(), "10.244.0.216 is held; wait");
}

#[test]
fn long_values_are_cut_and_control_characters_escaped() {
    let error = CniError::field("name", &"é".repeat(5000), "is long", "");
    assert!(error.msg.len() < 400 && error.msg.contains("(10000 bytes)"), "{error}");
    assert!(CniError::field("name", "a\nb\u{1b}", "x", "").msg.contains("\"a\\nb\\u{1b}\""));
}

#[test]
fn keys_and_certificates_are_not_shown() {
    for secret in ["-----BEGIN EC PRIVATE KEY-----\nMHcCAQ", "LS0tLS1CRUdJTiBFQyBQUklWQVRF"] {
        assert!(!CniError::field("x", secret, "is bad", "").msg.contains(&secret[5..]));
    }
}

// === answers ===

const ANSWERS: &str = include_str!("../../tests/fixtures/calico-ipam-answers.json");

#[test]
fn answers_in_the_form_of_the_real_calico_ipam_round_trip() {
    let fixture: Value = serde_json::from_str(ANSWERS).unwrap();
    let answers = fixture["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 4);
    for answer in answers {
        let version = CniVersion::of(&answer["stdout"]).unwrap();
        let parsed = Answer::parse(&answer["stdout"], &version).unwrap();
        assert!(!parsed.ips.is_empty());
        assert_eq!(parsed.render(&version), answer["stdout"], "{}", answer["step"]);
    }
}

fn answer() -> Answer {
    Answer {
        ips: vec![
            AnswerIp { address: "10.244.0.216/16".parse().unwrap(), gateway: Some("10.244.0.1".parse().unwrap()) },
            AnswerIp { address: "fd00::7/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![Route { dst: "0.0.0.0/0".parse().unwrap(), gw: Some("10.244.0.1".parse().unwrap()) }],
        dns: Dns { nameservers: vec!["10.96.0.10".to_owned()], ..Dns::default() },
    }
}

#[test]
fn the_family_is_said_until_0_4_0_and_dns_always() {
    for version in CniVersion::ALL {
        let json = answer().render(&version);
        let old = version < CniVersion::V1_0_0;
        assert_eq!(json["cniVersion"], version.as_str());
        assert_eq!(json["ips"][0].get("version"), old.then(|| json!("4")).as_ref());
        assert_eq!(json["ips"][1].get("version"), old.then(|| json!("6")).as_ref());
        assert_eq!(json["ips"][0]["gateway"], "10.244.0.1");
        assert_eq!(json["dns"], json!({"nameservers": ["10.96.0.10"]}));
        assert_eq!(Answer::default().render(&version).get("dns").is_some(), old);
    }
}

#[test]
fn a_rendered_answer_is_read_back_as_previous_result_in_every_version() {
    for version in CniVersion::ALL {
        assert_eq!(Answer::parse(&answer().render(&version), &version).unwrap(), answer());
    }
}

#[test]
fn what_a_main_plugin_adds_to_the_previous_result_is_skipped() {
    let json = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "10.244.0.216/32", "interface": 0}],
        // A route by a next hop of the other family, which Linux has, and none of ours.
        "routes": [{"dst": "10.0.0.0/8", "gw": "fe80::1"}],
        "dns": {}
    });
    let answer = Answer::parse(&json, &CniVersion::V1_0_0).unwrap();
    assert_eq!(answer.ips[0].address.to_string(), "10.244.0.216/32");
}

#[test]
fn a_malformed_previous_result_is_refused_by_path() {
    let parse = |ip: Value| Answer::parse(&json!({ "ips": [ip] }), &CniVersion::V0_4_0);
    refused(parse(json!({"address": "10.0.0.1"})), 7, &["prevResult.ips[0].address", "10.0.0.1", "CIDR"]);
    refused(parse(json!({})), 7, &["prevResult.ips[0].address: missing"]);
    refused(parse(json!({"address": "10.0.0.1/24", "version": "6"})), 7, &["prevResult.ips[0].version", "\"4\""]);
    refused(parse(json!("x")), 7, &["prevResult.ips[0]", "object"]);
    refused(Answer::parse(&json!({"dns": {"search": [1]}}), &CniVersion::V0_4_0), 7, &["prevResult.dns.search[0]: 1"]);
    refused(Answer::parse(&json!([]), &CniVersion::V0_4_0), 7, &["prevResult"]);
}

#[test]
fn resolv_conf_is_read_as_the_resolver_reads_it() {
    let text = "# by hand\n; too\nnameserver 10.96.0.10\nnameserver\tfe80::1%eth0 # trailing\ndomain old.example\n\
                search a.example\nsearch svc.cluster.local  cluster.local\noptions ndots:5 edns0\nsortlist 1.2.3.4\nnameserver\n";
    let dns = Dns::from_resolv_conf(text);
    assert_eq!(dns.nameservers, ["10.96.0.10", "fe80::1%eth0"]);
    assert_eq!(dns.domain.as_deref(), Some("old.example"));
    assert_eq!(dns.search, ["svc.cluster.local", "cluster.local"]);
    assert_eq!(dns.options, ["ndots:5", "edns0"]);
    assert!(Dns::from_resolv_conf("").is_empty());
}

// === whatever comes ===

proptest! {
    #[test]
    fn no_stdin_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse_stdin(&bytes) {
            prop_assert!(!error.msg.is_empty());
            prop_assert!(matches!(error.code, code::IO | code::DECODE));
        }
    }

    #[test]
    fn no_resolv_conf_panics(text in "((nameserver|domain|search|options|#|;)?[ \t]?\\PC{0,10}\n){0,5}") {
        let dns = Dns::from_resolv_conf(&text);
        prop_assert!(dns.nameservers.iter().all(|server| !server.contains(char::is_whitespace) || !server.is_ascii()));
    }

    #[test]
    fn no_environment_panics(values in proptest::collection::vec(proptest::option::of("\\PC{0,20}"), 6), verb in 0..7usize) {
        let names = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"];
        let verbs = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"];
        let read = |name: &str| match names.iter().position(|known| *known == name) {
            Some(index) => values[index].clone().map(OsString::from),
            None => verbs.get(verb).map(|verb| OsString::from(*verb)).or_else(|| values[5].clone().map(OsString::from)),
        };
        match invocation(read) {
            Ok(call) if matches!(call.verb, Verb::Add | Verb::Check | Verb::Del) => {
                prop_assert!(names::is_cni_name(&call.container_id));
                prop_assert!(!call.ifname.contains('/') && (1..=15).contains(&call.ifname.len()));
            }
            Ok(_) => {}
            Err(error) => {
                prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT);
                prop_assert!(!error.msg.is_empty());
            }
        }
    }

    #[test]
    fn no_arguments_panic(args in "((IP|K8S_POD_NAME|K8S_POD_NAMESPACE|IgnoreUnknown|[A-Z]{1,3})=[0-9a-z:.,/]{0,8};?){0,4}") {
        if let Err(error) = CniArgs::parse(&args) {
            prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT);
            prop_assert!(!error.msg.is_empty());
        }
    }

    #[test]
    fn no_text_in_place_of_arguments_panics(args in "\\PC{0,40}|([A-Za-z0-9_]{0,6}[=;]\\PC{0,4}){0,6}") {
        match CniArgs::parse(&args) {
            Ok(read) => prop_assert_eq!(read.pod_name.is_some(), read.pod_namespace.is_some()),
            Err(error) => {
                prop_assert_eq!(error.code, code::INVALID_ENVIRONMENT);
                prop_assert!(!error.msg.is_empty() && !error.details.is_empty() && error.to_string().len() < 1000);
            }
        }
    }

    #[test]
    fn a_configuration_that_is_cut_or_changed_anywhere_is_parsed_or_refused(cut in 0..2000usize, byte in any::<u8>()) {
        let conf = json!({"cniVersion": "1.0.0", "name": "net", "ipam": {"subnet": "10.0.0.0/8", "\u{fc}": [1, {"a": null}]}});
        let whole = conf.to_string().into_bytes();
        let cut = cut % whole.len();
        let mut changed = whole.clone();
        changed[cut] = byte;
        for bytes in [&whole[..cut], &changed[..]] {
            if let Err(error) = parse_stdin(bytes) {
                prop_assert_eq!(error.code, code::DECODE);
                prop_assert!(!error.msg.is_empty() && !error.details.is_empty());
            }
        }
        prop_assert!(parse_stdin(&whole[..cut]).is_err());
    }

    #[test]
    fn no_previous_result_panics(
        address in "\\PC{0,10}|[0-9./]{0,18}", gateway in proptest::option::of("[0-9a-f.:]{0,15}"), version in "4|6|\\PC{0,3}",
        spoken in proptest::sample::select(CniVersion::ALL.to_vec()),
    ) {
        let json = json!({"cniVersion": spoken.as_str(), "ips": [{"address": address, "gateway": gateway, "version": version}], "routes": [{"dst": address}]});
        match Answer::parse(&json, &spoken) {
            Ok(answer) => prop_assert_eq!(Answer::parse(&answer.render(&spoken), &spoken), Ok(answer)),
            Err(error) => {
                prop_assert_eq!(error.code, code::INVALID_CONFIG);
                prop_assert!(error.msg.contains("prevResult") && !error.details.is_empty(), "{error}");
            }
        }
    }

    #[test]
    fn no_address_text_panics(text in "[0-9a-f:./%]{0,24}|\\PC{0,12}") {
        for result in [text::address_with_mask(&text).map(|_| ()), text::address(&text).map(|_| ()), text::network(&text).map(|_| ())] {
            if let Err(error) = result {
                prop_assert!(!error.wrong.is_empty() && !error.right.is_empty());
            }
        }
    }
}

#[test]
fn a_misspelt_field_is_refused_with_the_right_spelling() {
    let json = json!({"rangestart": "x", "colour": "red"});
    let object = Object::new("ipam", &json).unwrap();
    refused(
        object.refuse_misspelt(&["rangeStart", "rangeEnd"]),
        7,
        &["ipam: \"rangestart\"", "did you mean rangeStart?"],
    );
    assert!(object.refuse_misspelt(&["gateway"]).is_ok());
}

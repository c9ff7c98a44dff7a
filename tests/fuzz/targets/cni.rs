//! What a runtime says to the plugin: lines `CNI_X=value`, an empty line, and stdin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use kube_ipam::cni::{Answer, CniVersion, Invocation, READ_STDIN_LIMIT, Verb, invocation, parse_stdin};
use kube_ipam::netconf::{Dialect, NetConf};
use kube_ipam::range::{Family, RangeSet};
use serde_json::Value;

use super::is_proper;

const EMPTY_LINE: &[u8] = b"\n\n";

pub fn run(data: &[u8]) {
    let cut = data.windows(2).position(|pair| pair == EMPTY_LINE);
    let (variables, stdin) = cut.map_or((&data[..0], data), |at| (&data[..at], &data[at + 2..]));
    let variables: BTreeMap<&[u8], &[u8]> = variables.split(|byte| *byte == b'\n').filter_map(pair).collect();
    let call = invocation(|name| Some(OsString::from_vec(variables.get(name.as_bytes())?.to_vec())));
    match &call {
        Ok(call) => is_a_call(call),
        Err(error) => is_proper(error),
    }
    let conf = match parse_stdin(stdin) {
        Ok(conf) => conf,
        Err(error) => return is_proper(&error),
    };
    assert!(stdin.len() <= READ_STDIN_LIMIT && conf.is_object());
    let verb = call.map_or(Verb::Add, |call| call.verb);
    configuration(verb, &conf);
}

fn pair(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b'=')?;
    Some((&line[..at], &line[at + 1..]))
}

/// What becomes part of a file's name or of a handle is no path.
fn is_a_call(call: &Invocation) {
    for name in [&call.container_id, &call.ifname] {
        assert!(!name.contains(['/', '\0', '\n']) && !matches!(name.as_str(), "." | ".."), "{name:?}");
    }
    if matches!(call.verb, Verb::Add | Verb::Check | Verb::Del) {
        assert!(!call.container_id.is_empty() && !call.ifname.is_empty(), "{call:?}");
    }
    for name in [&call.args.pod_namespace, &call.args.pod_name, &call.args.pod_uid].into_iter().flatten() {
        assert!(!name.contains(['/', '\0', '\n', '%', '?', '#']) && name != "..", "{name:?}");
    }
}

fn configuration(verb: Verb, conf: &Value) {
    if let Err(error) = CniVersion::of(conf).and_then(|version| version.knows(verb)) {
        is_proper(&error);
    }
    for name in ["kube-ipam", "calico-ipam"] {
        let parsed = NetConf::parse(conf, name);
        let for_del = NetConf::parse_for(Verb::Del, conf, name);
        match (&parsed, &for_del) {
            (Ok(net), Ok((same, None))) => {
                assert_eq!(net, same);
                is_a_network(net);
            }
            (Ok(_), _) => panic!("DEL finds fault with what ADD accepts: {for_del:?}"),
            (Err(fault), Ok((_, told))) => {
                is_proper(fault);
                assert_eq!(told.as_ref(), Some(fault));
            }
            (Err(fault), Err(error)) => [fault, error].into_iter().for_each(is_proper),
        }
    }
}

fn is_a_network(net: &NetConf) {
    let ipam = &net.ipam;
    for family in Family::BOTH {
        let ranges = ipam.ranges(family);
        if ipam.dialect == Dialect::KubeIpam && !ipam.goes_by_pools() {
            assert_eq!(ipam.assigns(family), ranges.is_some());
        }
        if let Some(ranges) = ranges {
            are_ranges(family, ranges);
        }
    }
    assert!(Family::BOTH.into_iter().any(|family| ipam.assigns(family)), "a network without addresses");
    assert!(ipam.state_dir.is_absolute() && net.kubeconfig.iter().all(|path| path.is_absolute()));
    if let Some(previous) = &net.prev_result {
        let version = net.cni_version;
        assert_eq!(&Answer::parse(&previous.render(&version), &version).unwrap(), previous);
    }
}

fn are_ranges(family: Family, ranges: &RangeSet) {
    assert!(ranges.family() == family && !ranges.subnets().is_empty() && ranges.size() > 0);
    for subnet in ranges.subnets() {
        let inside = |address| subnet.network.contains(address);
        assert!(inside(subnet.start) && inside(subnet.end) && subnet.start <= subnet.end, "{subnet:?}");
        assert!(subnet.gateway.is_none_or(inside), "{subnet:?}");
        if let Some(gateway) = subnet.gateway {
            assert!(!ranges.permits_random(gateway) && ranges.permits_fixed(gateway).is_err(), "{subnet:?}");
        }
        for address in [subnet.start, subnet.end] {
            assert!(!ranges.permits_random(address) || ranges.permits_fixed(address).is_ok(), "{address}: {subnet:?}");
        }
    }
}

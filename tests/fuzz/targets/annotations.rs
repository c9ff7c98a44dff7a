//! What people write on pods and namespaces: `{"ipam": n, "ordinal": n, "pod": {...}, "namespace": {...}, "name": "web-0"}`,
//! both objects of texts, under one of three networks.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::Pod;
use kube_ipam::netconf::{Ipam, NetConf};
use kube_ipam::pod::{FixedAddresses, FixedRequest, Owner, PoolAnnotations, check_namespace};
use kube_ipam::range::Family;
use serde_json::{Value, json as object};

use super::{is_proper, json, texts};

static NETWORKS: LazyLock<Vec<Ipam>> = LazyLock::new(|| {
    let sections = [
        object!({"type": "kube-ipam", "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200",
            "gateway": "10.244.0.1"}),
        object!({"type": "kube-ipam", "ranges": [
            [{"subnet": "10.244.0.0/24", "gateway": "10.244.0.1"}, {"subnet": "10.9.0.0/29"}], [{"subnet": "fd00::/64"}]]}),
        object!({"type": "calico-ipam", "assign_ipv6": "true"}),
    ];
    let conf = |ipam: Value| object!({"cniVersion": "1.0.0", "name": "net", "type": "calico", "ipam": ipam});
    let parse = |ipam: Value| {
        let kind = ipam["type"].as_str().unwrap_or_default().to_owned();
        NetConf::parse(&conf(ipam), &kind).unwrap().ipam
    };
    sections.into_iter().map(parse).collect()
});

pub fn run(data: &[u8]) {
    let Some(input) = json(data) else { return };
    let (pod, namespace) = (texts(input.get("pod")), texts(input.get("namespace")));
    let which = usize::try_from(input["ipam"].as_u64().unwrap_or(0) % 3).unwrap_or(0);
    let ipam = &NETWORKS[which];
    match FixedRequest::parse(&pod, ipam) {
        Ok(None) => {}
        Ok(Some(request)) => {
            let ordinal = input["ordinal"].as_u64().and_then(|n| u32::try_from(n).ok());
            is_a_request(&request, ipam, ordinal);
            for unannotated in [FixedAddresses::AnyNamespace, FixedAddresses::AllowedNamespaces] {
                if let Err(error) = check_namespace(&request, "default", Some(&namespace), unannotated) {
                    is_proper(&error);
                }
            }
            assert!(check_namespace(&request, "default", None, FixedAddresses::AllowedNamespaces).is_err());
        }
        Err(error) => is_proper(&error),
    }
    if let Err(error) = PoolAnnotations::parse(&pod, &namespace) {
        is_proper(&error);
    }
    owner(&input);
}

/// A request never names an address that the network does not permit, and never means "any".
fn is_a_request(request: &FixedRequest, ipam: &Ipam, ordinal: Option<u32>) {
    let all: Vec<_> = Family::BOTH.iter().flat_map(|family| request.addresses(*family)).collect();
    assert!(!all.is_empty(), "a request for nothing");
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "an address twice: {all:?}");
    for family in Family::BOTH {
        for address in request.addresses(family) {
            assert_eq!(Family::of(*address), family);
            let permitted = ipam.ranges(family).is_none_or(|ranges| ranges.permits_fixed(*address).is_ok());
            assert!(permitted, "{address} is not permitted");
        }
        assert!(request.netmask(family).is_none_or(|length| length <= family.bits()));
        assert!(request.gateway(family).is_none_or(|gateway| Family::of(gateway) == family));
        match request.choices(family, ordinal) {
            Ok(chosen) => {
                assert!(chosen.iter().all(|address| request.addresses(family).contains(address)));
                assert_eq!(chosen.is_empty(), request.addresses(family).is_empty());
                assert!(ordinal.is_none() || chosen.len() <= 1);
            }
            Err(error) => is_proper(&error),
        }
    }
}

fn owner(input: &Value) {
    let metadata = object!({"name": input.get("name"), "namespace": "default", "annotations": texts(input.get("pod")),
        "labels": texts(input.get("labels")), "ownerReferences": input.get("owners")});
    let Ok(pod) = serde_json::from_value::<Pod>(object!({"metadata": metadata})) else { return };
    match Owner::of(&pod) {
        Ok(owner) => {
            assert!(owner.namespace == "default" && !owner.to_string().is_empty());
            let back: Owner = serde_json::from_value(serde_json::to_value(&owner).unwrap()).unwrap();
            assert_eq!(back, owner);
        }
        Err(error) => is_proper(&error),
    }
}

//! Objects that other writers left come out as they went in.
#![allow(clippy::unwrap_used)]

mod common;

use calico::{ApiGroup, BlockAffinity, ClusterInformation, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn round_trip<T: Serialize + DeserializeOwned>(object: &Value) -> Value {
    let group = ApiGroup::named(object["apiVersion"].as_str().unwrap());
    common::shaped(group, &serde_json::from_value::<T>(object.clone()).unwrap())
}

/// The object after a round trip through the type of its kind.
fn through_its_type(object: &Value) -> Value {
    match object["kind"].as_str().unwrap() {
        "IPPool" => round_trip::<IPPool>(object),
        "IPAMBlock" => round_trip::<IPAMBlock>(object),
        "BlockAffinity" => round_trip::<BlockAffinity>(object),
        "IPAMHandle" => round_trip::<IPAMHandle>(object),
        "IPAMConfig" | "IPAMConfiguration" => round_trip::<IPAMConfig>(object),
        "IPReservation" => round_trip::<IPReservation>(object),
        "ClusterInformation" => round_trip::<ClusterInformation>(object),
        kind => panic!("unknown kind {kind}"),
    }
}

fn captured_objects() -> Vec<Value> {
    let steps = common::steps();
    let lists = steps.iter().flat_map(|(_, step)| step.as_object().unwrap().iter());
    let lists = lists.filter(|(plural, _)| *plural != "cni").filter_map(|(_, list)| list.as_array());
    lists.flatten().cloned().collect()
}

#[test]
fn every_captured_object_keeps_every_field() {
    let objects = captured_objects();
    assert!(objects.len() > 400, "{}", objects.len());
    for object in objects {
        assert_eq!(through_its_type(&object), object);
    }
}

#[test]
fn fields_of_a_later_version_survive_in_every_place_where_one_may_appear() {
    for mut object in captured_objects() {
        object["spec"]["laterField"] = json!({"deep": [1, "two", null, -3.5, {"five": true}]});
        object["metadata"]["finalizers"] = json!(["example.org/keep"]);
        object["metadata"]["labels"]["example.org/mine"] = json!("yes");
        object["metadata"]["annotations"]["example.org/note"] = json!("kept");
        object["metadata"]["resourceVersion"] = json!("42");
        object["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u-1", "controller": true}]);
        for attribute in object["spec"]["attributes"].as_array_mut().into_iter().flatten() {
            attribute["laterAttribute"] = json!({"of": "another version"});
            attribute["alternateOwnerAttrs"] = json!({"pod": "vm-2", "namespace": "default"});
        }
        assert_eq!(through_its_type(&object), object);
    }
}

#[test]
fn a_pools_status_is_kept() {
    let pool = json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPPool",
        "metadata": {"name": "p"},
        "spec": {"cidr": "10.0.0.0/16"},
        "status": {"conditions": [{
            "type": "Allocatable", "status": "True", "reason": "OK", "message": "",
            "lastTransitionTime": "2026-11-23T22:40:56Z", "observedGeneration": 3,
        }]},
    });
    assert_eq!(through_its_type(&pool), pool);
}

#[test]
fn cluster_information_keeps_every_field() {
    let object = json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "ClusterInformation",
        "metadata": {"name": "default"},
        "spec": {
            "calicoVersion": "v3.32.1", "clusterGUID": "0123", "clusterType": "k8s,bgp",
            "datastoreReady": true, "variant": "Calico", "laterField": 1,
        },
    });
    assert_eq!(through_its_type(&object), object);
}

#[test]
fn null_where_a_list_or_map_belongs_reads_as_empty() {
    let block: IPAMBlock = serde_json::from_value(json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "IPAMBlock",
        "metadata": {"name": "10-0-0-0-26"},
        "spec": {
            "cidr": "10.0.0.0/26", "allocations": null, "unallocated": null, "attributes": null,
            "sequenceNumberForAllocation": null, "affinity": null, "deleted": null,
        },
    }))
    .unwrap();
    assert!(block.spec.allocations.is_empty() && !block.spec.is_deleted() && block.spec.affinity().is_none());
}

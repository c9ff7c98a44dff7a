//! The life of a virtual machine as the real calico-ipam wrote it, step by step: this crate's operations on what the step
//! before left give exactly the step's objects.
#![allow(clippy::unwrap_used)]

mod common;

use calico::holder::parse_timestamp;
use calico::machine::{self, Party, Side};
use calico::{Affinity, Holder, IPAMBlock};
use common::{Cluster, address, network, objects, written};
use serde_json::{Value, json};

const BLOCK: &str = "10.244.40.128/26";
const ADDRESS: &str = "10.244.40.128";
const HANDLE: &str = "k8s-pod-network.vmi.default.vm1";

fn step(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/kubevirt/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let mut step: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // These captures have only what writers wrote.
    for empty in ["ippools", "ipamconfigs", "ipreservations"] {
        step[empty] = json!([]);
    }
    for kind in ["ipamblocks", "ipamhandles", "blockaffinities"] {
        let (api_kind, items) = (kind_of(kind), step[kind].as_array_mut().unwrap());
        for item in items {
            item["apiVersion"] = json!("crd.projectcalico.org/v1");
            item["kind"] = json!(api_kind);
        }
    }
    step
}

fn kind_of(plural: &str) -> &'static str {
    match plural {
        "ipamblocks" => "IPAMBlock",
        "ipamhandles" => "IPAMHandle",
        _ => "BlockAffinity",
    }
}

/// The machine's objects that the captures show beside the pod's own.
fn uid(step: &Value, plural: &str, at: usize) -> Option<String> {
    Some(step[plural].get(at)?["metadata"]["uid"].as_str()?.to_owned())
}

/// What a pod of the machine writes about itself, at the time that the step's entry bears.
fn party(step: &Value, side: Side) -> Party {
    let pod = step["cni"]["pod"].as_str().unwrap();
    let block = objects::<IPAMBlock>(step, "ipamblocks").pop().unwrap().spec;
    let clock = parse_timestamp(&block.attributes[0].side(side).unwrap()["timestamp"]).unwrap();
    let mut party = Holder::pod(HANDLE, "default", pod, step["cni"]["node"].as_str().unwrap(), clock).secondary;
    let mut insert = |key: &str, value: Option<String>| {
        value.map(|value| party.insert(key.to_owned(), value));
    };
    insert(machine::VMI_NAME, Some("vm1".to_owned()));
    insert(machine::VMI_UID, uid(step, "virtualmachineinstances", 0));
    insert(machine::VM_UID, uid(step, "virtualmachines", 0));
    if side == Side::Alternate {
        insert(machine::MIGRATION_UID, uid(step, "virtualmachineinstancemigrations", 0));
    }
    party
}

fn set(cluster: &mut Cluster, side: Side, party: Option<Party>) {
    let block = cluster.block(&network(BLOCK));
    assert!(block.set_side(address(ADDRESS), side, party));
    block.advance();
}

#[track_caller]
fn agrees(cluster: &Cluster, step: &Value) {
    let mut ours = cluster.written(calico::ApiGroup::Crd);
    // The captures leave out the copy that Calico's client keeps of an object's metadata.
    for objects in ours.values_mut() {
        for object in objects.as_array_mut().unwrap() {
            object["metadata"].as_object_mut().unwrap().remove("annotations");
        }
    }
    assert_eq!(ours, written(step));
    assert_eq!(cluster.violations(), []);
}

#[test]
fn a_machine_starts_restarts_moves_and_goes_as_calico_wrote_it() {
    assert_eq!(HANDLE, format!("k8s-pod-network.{}", machine::machine_id("k8s-pod-network", "default", "vm1")));
    let first = step("01-source");
    let mut cluster = Cluster {
        blocks: Default::default(),
        affinities: Default::default(),
        handles: Default::default(),
        ..Cluster::load(&first)
    };
    let made =
        *objects::<IPAMBlock>(&first, "ipamblocks")[0].spec.sequence_number_for_allocation.values().min().unwrap();
    let made = jiff::Timestamp::from_nanosecond(i128::from(made)).unwrap();
    cluster.claim(&network(BLOCK), &Affinity::host("n1"), made);
    let holder = Holder { handle: HANDLE.to_owned(), secondary: party(&first, Side::Active) };
    cluster.assign_first(&network(BLOCK), &Affinity::host("n1"), &holder, made).unwrap().unwrap();
    agrees(&cluster, &first);

    let second = step("02-new-sandbox");
    set(&mut cluster, Side::Active, Some(party(&second, Side::Active)));
    agrees(&cluster, &second);

    let third = step("03-source-del");
    set(&mut cluster, Side::Active, None);
    agrees(&cluster, &third);

    let fourth = step("04-restarted");
    set(&mut cluster, Side::Active, Some(party(&fourth, Side::Active)));
    agrees(&cluster, &fourth);

    let fifth = step("05-target");
    set(&mut cluster, Side::Alternate, Some(party(&fifth, Side::Alternate)));
    agrees(&cluster, &fifth);

    let sixth = step("06-source-gone");
    set(&mut cluster, Side::Active, None);
    agrees(&cluster, &sixth);

    let seventh = step("07-vm-deleted");
    set(&mut cluster, Side::Alternate, None);
    assert_eq!(cluster.release(HANDLE, made).len(), 1);
    agrees(&cluster, &seventh);
}

//! Claims as etcd may hold them: whatever another version or another hand wrote is read, kept, or refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn written() -> Value {
    json!({
        "address": "10.244.0.216",
        "owner": {"namespace": "default", "group": "apps", "kind": "Deployment", "name": "web"},
        "holder": {
            "podUid": "u", "pod": "web-1", "containerId": "c", "interface": "eth0", "node": "n1", "since": "2026-11-24T00:00:00Z",
        },
        "created": "2026-11-24T00:00:00Z", "generation": 3, "contested": "2026-11-24T00:00:00Z",
        "successor": {"podUid": "v", "pod": "web-2", "until": "2026-11-24T00:05:00Z"},
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}|[0-9a-f.:]{0,16}|2026-[0-9]{2}-[0-9]{2}T00:00:00Z".prop_map(Value::from),
        Just(json!([])),
        Just(json!({"a": [1]})),
    ]
}

proptest! {
    #[test]
    fn no_bytes_in_place_of_a_claim_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
        let whole = written().to_string().into_bytes();
        for bytes in [&bytes[..], &whole[..cut.index(whole.len())]] {
            prop_assert!(serde_json::from_slice::<Claim>(bytes).is_err());
        }
    }

    #[test]
    fn a_claim_with_any_field_changed_is_refused_or_kept_as_it_is(
        field in prop::sample::select(vec![
            "/address", "/owner", "/owner/kind", "/owner/ordinal", "/holder", "/holder/since", "/holder/interface", "/holder/new",
            "/created", "/generation", "/contested", "/successor", "/successor/until", "/successor/new", "/new",
        ]),
        value in any_value(),
    ) {
        let mut json = written();
        let (parent, key) = field.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        if let Ok(claim) = serde_json::from_value::<Claim>(json) {
            let again = serde_json::to_value(&claim).unwrap();
            prop_assert_eq!(serde_json::from_value::<Claim>(again).unwrap(), claim.clone());
            // Decisions take whatever can be read.
            let holder = claim.holder.clone().unwrap_or_else(|| serde_json::from_value(written()["holder"].clone()).unwrap());
            let asker = Asker { owner: &claim.owner, holder: &Holder { pod_uid: "other".into(), ..holder } };
            let policy = Policy { fencing: Fencing::PodDeleted, grace: SignedDuration::MAX };
            let evidence = Evidence { pod: PodState::Gone, node: NodeState::Ready, in_block: true, elsewhere: true };
            claim.kept_from(&asker, Timestamp::MIN);
            claim.handing_over(Timestamp::MAX);
            decide(claim.address, Some(&claim), &asker, Some(&evidence), &policy, Timestamp::MAX);
            decide(claim.address, Some(&claim), &asker, Some(&evidence), &policy, Timestamp::MIN);
        }
    }
}

#[test]
fn a_claim_that_a_machine_holds_passes_to_each_of_its_pods_at_once_and_to_nobody_elses() {
    let claim = |container: &str| {
        let mut value = written();
        value["owner"] =
            json!({"namespace": "default", "group": "kubevirt.io", "kind": "VirtualMachine", "name": "vm"});
        value["holder"]["containerId"] = json!(container);
        value.as_object_mut().unwrap().remove("contested");
        serde_json::from_value::<Claim>(value).unwrap()
    };
    let policy = Policy { fencing: Fencing::NodeFenced, grace: SignedDuration::from_secs(30) };
    let decided = |standing: &Claim, container: &str, owner: &Owner| {
        let holder = standing.holder.clone().unwrap();
        let next = Holder { pod_uid: "next".into(), container_id: container.into(), ..holder };
        let asker = Asker { owner, holder: &next };
        decide(standing.address, Some(standing), &asker, None, &policy, Timestamp::UNIX_EPOCH)
    };
    let machines = claim("vmi.default.vm");
    let Decision::Take(taken) = decided(&machines, "vmi.default.vm", &machines.owner) else { panic!() };
    assert_eq!((taken.generation, taken.holder.unwrap().pod_uid.as_str()), (4, "next"));
    assert_eq!(decided(&machines, "vmi.default.other", &machines.owner), Decision::Examine);
    let other = Owner { name: "other".into(), ..machines.owner.clone() };
    assert_eq!(decided(&machines, "vmi.default.vm", &other), Decision::Examine);
    assert_eq!(decided(&claim("c1"), "c1", &machines.owner), Decision::Examine, "a container is no machine");
}

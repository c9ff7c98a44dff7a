//! The pods of KubeVirt's virtual machines.

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::Owner;

/// API group of KubeVirt's kinds.
pub(super) const GROUP: &str = "kubevirt.io";
pub(super) const MACHINE: &str = "VirtualMachine";
/// A machine that runs: without it there is no pod, and without a machine it runs by itself.
pub(super) const INSTANCE: &str = "VirtualMachineInstance";
/// Marks the target of a live migration; its value is the migration's UID.
const MIGRATION: &str = "kubevirt.io/migrationJobUID";
/// How the names of all such pods begin.
const NAME: &str = "virt-launcher-";

/// A pod that runs a virtual machine, as its owner reference tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launcher<'a> {
    /// Name of the VirtualMachineInstance, which is the machine's.
    pub machine: &'a str,
    /// UID of the VirtualMachineInstance.
    pub instance_uid: &'a str,
    /// UID of the live migration that the pod is the target of.
    pub migration: Option<&'a str>,
}

impl<'a> Launcher<'a> {
    /// What a pod tells of its machine; `None` if it is no machine's.
    pub fn of(pod: &'a Pod) -> Option<Self> {
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let is_instance = |group: &str, kind: &str| group == GROUP && kind == INSTANCE;
        let instance = owners.find(|owner| {
            let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
            owner.controller == Some(true) && is_instance(group, &owner.kind)
        })?;
        let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(MIGRATION));
        Some(Self {
            machine: &instance.name,
            instance_uid: &instance.uid,
            migration: label.map(String::as_str).filter(|uid| !uid.is_empty()),
        })
    }
}

/// Whether a pod may be a machine's, by its name: without that nobody need look.
pub fn may_be_launcher(pod: &str) -> bool {
    pod.starts_with(NAME)
}

/// The machine whose pod bears this name, as KubeVirt makes names: for a pod that is gone.
pub fn machine_by_name(pod: &str) -> Option<&str> {
    let (machine, _) = pod.strip_prefix(NAME)?.rsplit_once('-')?;
    Some(machine).filter(|machine| !machine.is_empty())
}

/// The objects that make a machine exist: the VirtualMachine, or an instance that runs without one.
pub fn machine_objects(namespace: &str, name: &str) -> [Owner; 2] {
    [MACHINE, INSTANCE].map(|kind| Owner {
        namespace: namespace.to_owned(),
        group: GROUP.to_owned(),
        version: Some("v1".to_owned()),
        kind: kind.to_owned(),
        name: name.to_owned(),
        ordinal: None,
    })
}

/// The VirtualMachine that an instance belongs to: name and UID.
pub fn machine_of_instance(instance: &Value) -> Option<(&str, &str)> {
    let owners = instance.pointer("/metadata/ownerReferences")?.as_array()?;
    let is_machine = |owner: &&Value| {
        let group = owner["apiVersion"].as_str().and_then(|version| version.split_once('/'));
        owner["kind"] == MACHINE && group.is_some_and(|(group, _)| group == GROUP)
    };
    let owner = owners.iter().find(is_machine)?;
    Some((owner["name"].as_str()?, owner["uid"].as_str()?))
}

/// Whether a machine is on its way out, by what was found of its VirtualMachine and its instance: then its last pod takes the
/// addresses along. An instance that ends while its machine stays is a stop or a restart.
pub fn is_machine_ending(machine: Option<&Value>, instance: Option<&Value>) -> bool {
    match (machine, instance) {
        (Some(machine), _) => is_deleted(machine),
        (None, Some(instance)) => is_deleted(instance),
        (None, None) => true,
    }
}

fn is_deleted(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(owner: Value, labels: Value) -> Pod {
        let metadata = json!({
            "name": "virt-launcher-vm-1-abcde", "namespace": "default", "labels": labels, "ownerReferences": [owner],
        });
        serde_json::from_value(json!({ "metadata": metadata })).unwrap()
    }

    fn instance() -> Value {
        json!({"apiVersion": "kubevirt.io/v1", "kind": INSTANCE, "name": "vm-1", "uid": "i1", "controller": true})
    }

    #[test]
    fn a_launcher_is_known_by_its_controller_and_a_target_by_its_label() {
        let source = pod(instance(), json!({"kubevirt.io": "virt-launcher"}));
        let expected = Launcher { machine: "vm-1", instance_uid: "i1", migration: None };
        assert_eq!(Launcher::of(&source), Some(expected));
        let target = pod(instance(), json!({"kubevirt.io/migrationJobUID": "m1"}));
        assert_eq!(Launcher::of(&target), Some(Launcher { migration: Some("m1"), ..expected }));
        let other = |key: &str, value: Value| {
            let mut owner = instance();
            owner[key] = value;
            Launcher::of(&pod(owner, json!({}))).is_some()
        };
        assert!(!other("apiVersion", json!("example.org/v1")));
        assert!(!other("kind", json!("ReplicaSet")));
        assert!(!other("controller", json!(false)));
        assert!(other("apiVersion", json!("kubevirt.io/v1alpha3")));
    }

    #[test]
    fn the_machine_of_a_pod_that_is_gone_is_in_its_name() {
        assert_eq!(machine_by_name("virt-launcher-vm-1-abcde"), Some("vm-1"));
        for other in ["web-abcde", "virt-launcher-", "virt-launcher-abcde", "virt-launcher--abcde"] {
            assert_eq!(machine_by_name(other), None, "{other}");
        }
        assert!(may_be_launcher("virt-launcher-vm-1-abcde") && !may_be_launcher("web-virt-launcher-1"));
    }

    #[test]
    fn an_instance_names_its_machine() {
        let owned = |owner: Value| json!({"metadata": {"name": "vm-1", "ownerReferences": [owner]}});
        let machine = json!({"apiVersion": "kubevirt.io/v1", "kind": MACHINE, "name": "vm-1", "uid": "v1"});
        assert_eq!(machine_of_instance(&owned(machine)), Some(("vm-1", "v1")));
        let pool = json!({"apiVersion": "kubevirt.io/v1", "kind": "Pool", "name": "p", "uid": "v1"});
        assert_eq!(machine_of_instance(&owned(pool)), None);
        assert_eq!(machine_of_instance(&json!({"metadata": {}})), None);
    }

    #[test]
    fn a_machine_ends_with_its_virtual_machine_or_with_an_instance_that_has_none() {
        let (stays, ends) =
            (json!({"metadata": {}}), json!({"metadata": {"deletionTimestamp": "2026-11-30T23:19:28Z"}}));
        assert!(!is_machine_ending(Some(&stays), Some(&ends)), "a restart");
        assert!(!is_machine_ending(Some(&stays), None), "a machine that is stopped");
        assert!(is_machine_ending(Some(&ends), Some(&stays)));
        assert!(is_machine_ending(None, Some(&ends)) && !is_machine_ending(None, Some(&stays)));
        assert!(is_machine_ending(None, None));
    }
}

//! KubeVirt's kinds, as far as an IPAM plugin asks for them, and the pods of its machines.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use super::World;

macro_rules! kinds {
    ($($kind:ident $plural:literal)*) => {$(
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $kind {
            api_version: String,
            kind: String,
            pub metadata: ObjectMeta,
            #[serde(default)]
            pub spec: Value,
        }

        impl kube::Resource for $kind {
            type DynamicType = ();
            type Scope = kube::core::NamespaceResourceScope;
            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($kind).into()
            }
            fn group((): &()) -> std::borrow::Cow<'_, str> {
                "kubevirt.io".into()
            }
            fn version((): &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    )*};
}

kinds! {
    VirtualMachine "virtualmachines"
    VirtualMachineInstance "virtualmachineinstances"
    VirtualMachineInstanceMigration "virtualmachineinstancemigrations"
}

const DELETED: &str = "2026-11-30T23:19:28Z";

impl World {
    /// A machine whose pods bear the annotations.
    pub fn machine(&self, name: &str, annotations: Value) {
        self.put::<VirtualMachine>(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default", "uid": format!("vm-{name}")},
            "spec": {"template": {"metadata": {"annotations": annotations}}},
        }));
        self.instance(name, "i1", true);
    }

    /// An instance, of the machine of its name or by itself.
    pub fn instance(&self, name: &str, uid: &str, owned: bool) {
        let owner = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": name,
            "uid": format!("vm-{name}"), "controller": true}]);
        self.put::<VirtualMachineInstance>(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": name, "namespace": "default", "uid": uid, "ownerReferences": if owned { owner } else { json!([]) }},
        }));
    }

    /// A pod `virt-launcher-<machine>-<suffix>` of an instance; the target of a migration if that is named.
    pub fn launcher(&self, machine: &str, suffix: &str, instance: &str, migration: Option<&str>) -> Pod {
        let mut labels = json!({"kubevirt.io": "virt-launcher"});
        if let Some(migration) = migration {
            labels["kubevirt.io/migrationJobUID"] = json!(migration);
            self.put::<VirtualMachineInstanceMigration>(json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
                "metadata": {"name": migration, "namespace": "default", "uid": migration}, "spec": {"vmiName": machine},
            }));
        }
        let name = format!("virt-launcher-{machine}-{suffix}");
        let vm =
            self.objects.dump().into_iter().find(|o| o["kind"] == "VirtualMachine" && o["metadata"]["name"] == machine);
        let annotations = vm.map_or(json!({}), |vm| vm["spec"]["template"]["metadata"]["annotations"].clone());
        self.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "labels": labels, "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": machine, "uid": instance, "controller": true,
                }],
            },
            "spec": {"containers": []}, "status": {"phase": "Pending"},
        }))
    }

    pub fn delete_machine(&self, name: &str) {
        self.put::<VirtualMachine>(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default", "uid": format!("vm-{name}"), "deletionTimestamp": DELETED},
        }));
    }

    pub fn remove_machine(&self, name: &str) {
        self.objects.remove::<VirtualMachine>(Some("default"), name);
        self.objects.remove::<VirtualMachineInstance>(Some("default"), name);
    }

    pub fn delete_instance(&self, name: &str, uid: &str) {
        self.put::<VirtualMachineInstance>(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": name, "namespace": "default", "uid": uid, "deletionTimestamp": DELETED},
        }));
    }
}

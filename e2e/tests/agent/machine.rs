//! Virtual machines of KubeVirt by the node's agent, ahead of their containers or not, and without an agent.

use calico::machine::Side;
use e2e::embedded::Options;
use serde_json::{Value, json};

use super::ground::{FIXED, Ground, PODS, assert_ok, bare};
use super::process::{Agent, until};

const GROUP: &str = "/apis/kubevirt.io/v1/namespaces/default";

/// KubeVirt's kinds, of which no more than the metadata counts here.
fn definitions() -> Vec<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> {
    let kinds = ["VirtualMachine", "VirtualMachineInstance", "VirtualMachineInstanceMigration"];
    let definition = |kind: &str| {
        let singular = kind.to_lowercase();
        let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{singular}s.kubevirt.io")},
            "spec": {
                "group": "kubevirt.io", "scope": "Namespaced",
                "names": {"kind": kind, "plural": format!("{singular}s"), "singular": singular},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
            },
        })
    };
    kinds.iter().map(|kind| serde_json::from_value(definition(kind)).unwrap()).collect()
}

impl Ground {
    async fn with_machines() -> Self {
        let crds = calico::crds().into_iter().chain(definitions()).collect();
        Self::with(Options { tls: true, crds, ..Options::default() }).await
    }

    fn found(&self, plural: &str, name: &str) -> Value {
        let all = self.server().snapshot().into_iter();
        let mut of_kind = all.filter(|(id, o)| id.starts_with(plural) && o["metadata"]["name"] == name);
        of_kind.next().unwrap().1
    }

    fn machine(&self, name: &str) {
        let version = "kubevirt.io/v1";
        let machine = json!({"apiVersion": version, "kind": "VirtualMachine",
            "metadata": {"name": name, "finalizers": ["kubevirt.io/test"]}, "spec": {}});
        self.server().create(&format!("{GROUP}/virtualmachines"), &machine).unwrap();
        let uid = self.found("virtualmachines.", name)["metadata"]["uid"].clone();
        let owner =
            json!({"apiVersion": version, "kind": "VirtualMachine", "name": name, "uid": uid, "controller": true});
        let instance = json!({"apiVersion": version, "kind": "VirtualMachineInstance",
            "metadata": {"name": name, "ownerReferences": [owner]}, "spec": {}});
        self.server().create(&format!("{GROUP}/virtualmachineinstances"), &instance).unwrap();
    }

    fn launcher(&self, machine: &str, suffix: &str, annotations: Value, migration: Option<&str>) -> String {
        let instance = self.found("virtualmachineinstances.", machine);
        let name = format!("virt-launcher-{machine}-{suffix}");
        let labels = migration.map_or(json!({}), |uid| json!({"kubevirt.io/migrationJobUID": uid}));
        let pod = json!({
            "metadata": {
                "name": name, "annotations": annotations, "labels": labels,
                "ownerReferences": [{
                    "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": machine,
                    "uid": instance["metadata"]["uid"], "controller": true,
                }],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "compute", "image": "none"}]},
        });
        self.server().create(PODS, &pod).unwrap();
        name
    }

    /// Which pods are on the sides of the only address.
    fn sides(&self) -> [Option<String>; 2] {
        let entries = self.entries();
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert_eq!(entries[0].1.handle(), Some("k8s-pod-network.vmi.default.vm"));
        Side::BOTH.map(|side| entries[0].1.side(side).map(|party| party["pod"].clone()))
    }

    async fn delete_machine(&self, name: &str) {
        let client = self.server().client("test").unwrap();
        let kind =
            kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachine"));
        let machines: kube::Api<kube::api::DynamicObject> = kube::Api::namespaced_with(client, "default", &kind);
        machines.delete(name, &Default::default()).await.unwrap();
    }
}

fn routes(outcome: &e2e::standin::CniOutcome) -> usize {
    outcome.json()["routes"].as_array().map_or(0, Vec::len)
}

/// From the first start over a restart and a live migration to the end of the machine.
async fn life(take_ahead: Option<bool>, annotations: Value, calico: bool) {
    let mut ground = Ground::with_machines().await;
    if calico {
        let state = ground.conf["ipam"]["stateDir"].clone();
        ground.conf["ipam"] =
            json!({"type": "calico-ipam", "stateDir": state, "etcdConfig": ground.conf["ipam"]["etcdConfig"]});
    } else {
        ground.conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    }
    let agent = match take_ahead {
        Some(take_ahead) => Some(Agent::start(&ground, take_ahead).await),
        None => None,
    };
    let is_told = |pod: &str| {
        let (log, told) = (agent.as_ref().map(Agent::log).unwrap_or_default(), format!("\"pod\":\"{pod}\""));
        log.lines().any(|line| line.contains("\"taken ahead\"") && line.contains(&told))
    };
    let ahead = async |pod: &str| {
        if take_ahead == Some(true) {
            until("the machine's address is taken ahead", async || is_told(pod).then_some(())).await;
        }
    };
    ground.machine("vm");
    let first = ground.launcher("vm", "aaaaa", annotations.clone(), None);
    ahead(&first).await;
    let (outcome, made) = ground.requests(ground.add_pod(&first, "c1")).await;
    assert_ok(&outcome);
    assert!(take_ahead != Some(true) || made.is_empty(), "{made:?}");
    assert_eq!(routes(&outcome), 1);
    let address = bare(&outcome);
    assert!(annotations == json!({}) || address == [FIXED]);
    assert_eq!(ground.sides(), [Some(first.clone()), None]);
    ground.assert_sound("a machine runs").await;
    ground.released(&first, "c1").await;
    assert_eq!(ground.sides(), [None, None]);
    ground.assert_sound("a machine is stopped").await;
    ground.remove(&first).await;

    let source = ground.launcher("vm", "bbbbb", annotations.clone(), None);
    ahead(&source).await;
    let outcome = ground.add_pod(&source, "c2").await;
    assert_ok(&outcome);
    assert_eq!((bare(&outcome), routes(&outcome)), (address.clone(), 1));
    let target = ground.launcher("vm", "ccccc", annotations.clone(), Some("m1"));
    ahead(&target).await;
    let outcome = ground.add_pod(&target, "c3").await;
    assert_ok(&outcome);
    assert_eq!((bare(&outcome), routes(&outcome)), (address.clone(), 0), "a target's answer has no routes");
    assert_eq!(ground.sides(), [Some(source.clone()), Some(target.clone())]);
    ground.assert_sound("a machine moves").await;
    ground.released(&source, "c2").await;
    assert_eq!(ground.sides(), [None, Some(target.clone())]);
    ground.assert_sound("a machine has moved").await;

    ground.delete_machine("vm").await;
    ground.released(&target, "c3").await;
    assert_eq!(ground.entries(), []);
    assert!(ground.handle_ids().is_empty());
    assert!(ground.claims().await.iter().all(|claim| claim.holder.is_none()));
    drop(agent);
}

#[tokio::test]
async fn a_machine_lives_by_an_agent_that_takes_ahead() {
    life(Some(true), json!({}), false).await;
}

#[tokio::test]
async fn a_machine_with_a_fixed_address_lives_by_an_agent_that_takes_ahead() {
    life(Some(true), json!({"kube-ipam.ip": FIXED}), false).await;
}

#[tokio::test]
async fn a_machine_lives_by_an_agent_that_does_not() {
    life(Some(false), json!({"kube-ipam.ip": FIXED}), false).await;
}

#[tokio::test]
async fn a_machine_lives_without_an_agent_and_in_calicos_dialect() {
    life(None, json!({"kube-ipam.ip": FIXED}), false).await;
    life(None, json!({}), true).await;
}

//! What the configuration, the runtime and a pod's annotations ask for is held against what the pod and the cluster
//! say. Where they contradict each other the call is refused with both named, and nothing is written; no pod that asked
//! for an address gets another one.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use calico::{BlockAffinity, IPAMBlock, IPAMHandle};
use common::{World, ip};
use k8s_openapi::api::core::v1::Pod;
use kube_ipam::cni::{CniArgs, CniError, Invocation, Verb};
use kube_ipam::driver::Error;
use kube_ipam::service::state::State;
use kube_ipam::service::{Call, Served};
use kube_ipam::store::{Failure, StoreError};
use serde_json::{Value, json};

/// An ADD as the plugin and the agent run it, in node `node`'s name.
async fn add_of(world: &World, node: &str, pod: &str, cni_args: &str) -> Result<Served, CniError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let state = Arc::new(State::open(directory.path()));
    let args = CniArgs::parse(&format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};{cni_args}"))?;
    let invocation = Invocation { verb: Verb::Add, container_id: "c".into(), ifname: "eth0".into(), args };
    let net = world.net();
    let call = Call { invocation: &invocation, net: &net, node, state: &state, gone: &|| false, taken: None };
    call.run(&world.driver().gated(state.clone())).await
}

async fn answer(world: &World, pod: &str, cni_args: &str) -> Value {
    add_of(world, "n1", pod, cni_args).await.unwrap().output.unwrap()
}

#[track_caller]
fn says(error: &CniError, words: &[&str]) {
    for word in words {
        assert!(error.to_string().contains(word), "{word} is not in: {error}");
    }
}

async fn assert_nothing_written(world: &World) {
    let written = (
        world.list::<IPAMBlock>().await.len(),
        world.list::<BlockAffinity>().await.len(),
        world.list::<IPAMHandle>().await.len(),
        world.reserved().await.len(),
    );
    assert_eq!(written, (0, 0, 0, 0));
}

fn bound(world: &World, name: &str, node: &str, annotations: Value) {
    world.put::<Pod>(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "annotations": annotations},
        "spec": {"containers": [], "nodeName": node}, "status": {"phase": "Pending"},
    }));
}

// === the node ===

#[tokio::test]
async fn a_pod_that_is_bound_to_another_node_than_the_configurations_is_refused_before_any_write() {
    let mut world = World::new();
    bound(&world, "random", "n1", json!({}));
    bound(&world, "fixed", "n1", json!({"kube-ipam.ip": "10.244.0.216"}));
    world.conf["nodename"] = "n2".into();
    for pod in ["random", "fixed"] {
        let error = add_of(&world, "n2", pod, "").await.unwrap_err();
        assert_eq!(error.code, 7, "{error}");
        says(&error, &[&format!("pod default/{pod} is bound to node n1"), "nodename", "n2"]);
    }
    world.conf["nodename"] = Value::Null;
    world.conf["nodename_file"] = "/var/lib/calico/nodename".into();
    let error = add_of(&world, "n2", "random", "").await.unwrap_err();
    says(&error, &["is bound to node n1", "nodename_file /var/lib/calico/nodename", "n2"]);
    assert_nothing_written(&world).await;
    assert!(world.claim("10.244.0.216").await.is_none());
    for pod in ["random", "fixed"] {
        add_of(&world, "n1", pod, "").await.unwrap();
    }
}

// === ways to ask for an address ===

#[tokio::test]
async fn an_address_that_the_runtime_asks_for_is_refused_with_the_annotation_to_use() {
    for (field, value) in [
        ("runtimeConfig", json!({"ips": ["10.244.0.216/16"]})),
        ("runtimeConfig", json!({"ips": ["10.244.0.216"], "portMappings": []})),
        ("args", json!({"cni": {"ips": ["10.244.0.216"]}})),
        ("runtimeConfig", json!({"ipRanges": [[{"subnet": "10.244.0.216/30"}]]})),
    ] {
        for kind in ["kube-ipam", "calico-ipam"] {
            let mut world = World::new();
            world.conf["ipam"]["type"] = kind.into();
            world.conf[field] = value.clone();
            world.random("r");
            let error = add_of(&world, "n1", "r", "").await.unwrap_err();
            assert_eq!(error.code, 7, "{error}");
            says(&error, &[field, "10.244.0.216", "kube-ipam.ip"]);
            assert_nothing_written(&world).await;
        }
    }
    for (field, value) in [
        ("runtimeConfig", json!({"ips": [], "ipRanges": []})),
        ("runtimeConfig", json!({"ips": null, "mac": "c2:b0:57:49:47:f1", "portMappings": [{"hostPort": 80}]})),
        ("args", json!({"cni": {"labels": [{"key": "app", "value": "web"}], "ips": []}, "org.apache.mesos": {}})),
        ("args", json!("whatever a runtime writes")),
    ] {
        let mut world = World::new();
        world.conf[field] = value;
        world.random("r");
        add_of(&world, "n1", "r", "").await.unwrap();
    }
}

#[tokio::test]
async fn an_address_in_the_arguments_is_refused_in_the_words_of_whoever_asked() {
    let mut world = World::new();
    world.random("r");
    let error = add_of(&world, "n1", "r", "IP=10.244.0.216").await.unwrap_err();
    says(&error, &["cni.projectcalico.org/ipAddrs", "IP=", "kube-ipam.ip: \"10.244.0.216\""]);
    world.conf["type"] = "ptp".into();
    let error = add_of(&world, "n1", "r", "IP=10.244.0.216").await.unwrap_err();
    says(&error, &["CNI_ARGS", "IP=10.244.0.216", "kube-ipam.ip: \"10.244.0.216\""]);
    assert_nothing_written(&world).await;
}

/// Calico's main plugin never calls us for these, so it is the agent that meets them first, ahead of any container.
#[tokio::test]
async fn calicos_own_annotations_for_addresses_are_refused_in_their_words() {
    for key in ["cni.projectcalico.org/ipAddrs", "cni.projectcalico.org/ipAddrsNoIpam"] {
        for more in [json!({}), json!({"kube-ipam.ip": "10.244.0.216"})] {
            let world = World::new();
            let mut annotations = more;
            annotations[key] = "[\"10.244.0.216\"]".into();
            world.pod("p", "app", "h1", annotations);
            let net = world.net();
            let ahead = common::attachment(&net, "n1", "p", "").ahead();
            for error in [
                CniError::from(world.driver().add(&ahead).await.unwrap_err()),
                add_of(&world, "n1", "p", "").await.unwrap_err(),
            ] {
                assert_eq!(error.code, 7, "{error}");
                says(&error, &[&format!("annotation {key}"), "10.244.0.216", "kube-ipam.ip"]);
            }
            assert_nothing_written(&world).await;
            assert!(world.claim("10.244.0.216").await.is_none());
        }
    }
}

#[tokio::test]
async fn called_as_calico_ipam_an_address_by_argument_is_answered_as_calico_ipam_does() {
    let recorded: Value = serde_json::from_str(include_str!("fixtures/calico-ipam-answers.json")).unwrap();
    let step = recorded["answers"].as_array().unwrap().iter();
    let recorded = step.clone().find(|a| a["step"].as_str().unwrap().contains("with IP=10.244.0.216")).unwrap();
    let mut world = World::new();
    world.conf["cniVersion"] = "0.3.1".into();
    for section in [json!({"type": "calico-ipam"}), json!({"type": "calico-ipam", "subnet": "10.244.0.0/16"})] {
        world.conf["ipam"] = section;
        world.random("r");
        assert_eq!(answer(&world, "r", "IP=10.244.0.216").await, recorded["stdout"]);
        // Once more, from the records.
        assert_eq!(answer(&world, "r", "IP=10.244.0.216").await, recorded["stdout"]);
    }
    // An annotation's netmask is its own.
    world.pod("f", "app", "h1", json!({"kube-ipam.ip": "10.244.0.217", "kube-ipam.netmask": "255.255.0.0"}));
    let net = world.net();
    let given = world.driver().add(&common::attachment(&net, "n1", "f", "d")).await.unwrap();
    assert_eq!((given[0].address, given[0].netmask), (ip("10.244.0.217"), Some(16)));
}

#[tokio::test]
async fn a_pool_that_does_not_exist_is_named_in_calicos_words() {
    let mut world = World::new();
    world.conf["ipam"] = json!({"type": "calico-ipam", "ipv4_pools": ["10.244.0.0/16", "192.169.1.0/24"]});
    world.random("r");
    let error = add_of(&world, "n1", "r", "").await.unwrap_err();
    says(&error, &["(192.169.1.0/24) does not exist", "default-ipv4-ippool"]);
    assert_nothing_written(&world).await;
}

// === pools against the subnet ===

#[tokio::test]
async fn a_pool_outside_the_subnet_is_named_together_with_it_and_nothing_counts_as_exhausted() {
    let elsewhere = || {
        let world = World::new();
        world.pool("elsewhere", json!({"cidr": "10.99.0.0/16", "blockSize": 26}));
        world
    };
    let by_name = "cni.projectcalico.org/ipv4pools";
    let of_pod = elsewhere();
    of_pod.pod("p", "app", "h1", json!({by_name: "[\"elsewhere\"]"}));
    let of_namespace = elsewhere();
    of_namespace.put::<k8s_openapi::api::core::v1::Namespace>(json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "annotations": {by_name: "[\"10.99.0.0/16\"]"}},
    }));
    of_namespace.random("p");
    let mut of_configuration = elsewhere();
    of_configuration.conf["ipam"]["ipv4_pools"] = json!(["elsewhere"]);
    of_configuration.random("p");
    // A pool within the subnet, of which the range leaves nothing.
    let mut of_range = World::new();
    of_range.objects.remove::<calico::IPPool>(None, "default-ipv4-ippool");
    of_range.pool("low", json!({"cidr": "10.244.0.0/17", "blockSize": 26}));
    of_range.pool("high", json!({"cidr": "10.244.128.0/17", "blockSize": 26}));
    of_range.conf["ipam"]["ipv4_pools"] = json!(["high"]);
    of_range.random("p");
    for (world, source, pool) in [
        (&of_pod, "annotation cni.projectcalico.org/ipv4pools", "elsewhere (10.99.0.0/16)"),
        (&of_namespace, "annotation cni.projectcalico.org/ipv4pools", "elsewhere (10.99.0.0/16)"),
        (&of_configuration, "ipam.ipv4_pools", "elsewhere (10.99.0.0/16)"),
        (&of_range, "ipam.ipv4_pools", "high (10.244.128.0/17)"),
    ] {
        let error = add_of(world, "n1", "p", "").await.unwrap_err();
        assert_eq!(error.code, 102, "{error}");
        says(&error, &[source, pool, "10.244.0.0/16 (10.244.0.10 to 10.244.0.200)"]);
        assert!(!error.to_string().contains("no IPv4 address is left"), "{error}");
        assert_nothing_written(world).await;
    }
    // One of several that fits is enough.
    let both = elsewhere();
    both.pod("p", "app", "h1", json!({by_name: "[\"elsewhere\", \"default-ipv4-ippool\"]"}));
    add_of(&both, "n1", "p", "").await.unwrap();
}

// === records that cannot be read ===

#[tokio::test]
async fn a_claim_that_cannot_be_read_costs_its_own_address_alone() {
    let world = World::new();
    world.fixed("two", "two", "10.244.0.216,10.244.0.217");
    world.fixed("one", "one", "10.244.0.216");
    world.ledger.spoil(ip("10.244.0.216"));
    let given = world.add("n1", "two", "c2").await.unwrap();
    assert_eq!(given[0].address, ip("10.244.0.217"));
    let error = CniError::from(world.add("n1", "one", "c1").await.unwrap_err());
    says(&error, &["claim 10.244.0.216", "cannot be read", "it was spoilt"]);
    assert_eq!(world.allocated().await.len(), 1);
    // Named as an IPClaim is, with what to do.
    let of_object = StoreError::new("get", "ipclaims net.10-244-0-216", Failure::Corrupt("no address".into()));
    let error = CniError::from(Error::from(of_object));
    says(&error, &["net.10-244-0-216", "kubectl edit ipclaim net.10-244-0-216", "kubectl delete ipclaim"]);
}

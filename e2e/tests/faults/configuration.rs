//! Configurations that an administrator broke, and annotations that ask for too much: ADD refuses and writes
//! nothing, and DEL still works, for otherwise no pod could go away.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::ground::{FIXED, Ground, assert_ok, assert_refused};

/// One broken field each; what ADD then says.
fn broken() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/ipam/rangeEnd", json!("10.244.0.1"), "rangeEnd"),
        ("/ipam/subnet", json!("10.244.0.0"), "subnet"),
        ("/ipam/gateway", json!("10.99.0.1"), "gateway"),
        ("/ipam/ranges", json!(7), "ranges"),
        ("/ipam/routes", json!([{"dst": "all"}]), "dst"),
        ("/ipam/waitSeconds", json!("long"), "waitSeconds"),
        ("/ipam/takeover", json!({"proof": "none"}), "proof"),
        ("/ipam/stateDir", json!("relative"), "stateDir"),
        ("/ipam/resolvConf", json!(5), "resolvConf"),
        ("/ipam/type", json!("host-local"), "type"),
        ("/ipam/rangestart", json!("10.244.0.9"), "rangeStart"),
        ("/nodename", json!("not a node"), "nodename"),
        ("/nodename_file", json!("relative"), "nodename_file"),
        ("/log_level", json!("loud"), "log_level"),
        ("/log_file_path", json!("relative"), "log_file_path"),
        ("/datastore_type", json!("etcdv3"), "datastore_type"),
        ("/datastore_type", json!("etcd"), "datastore_type"),
        ("/datastore_type", json!("ETCDV3"), "datastore_type"),
        ("/datastore_type", json!("Kubernetes"), "datastore_type"),
        ("/etcd_endpoints", json!("https://10.0.0.1:2379"), "etcd_endpoints"),
        ("/etcd_authority", json!("10.0.0.1:2379"), "etcd_authority"),
        ("/etcd_discovery_srv", json!("example.org"), "etcd_discovery_srv"),
        ("/type", Value::Null, "type"),
        ("/prevResult", json!({"ips": [{"address": "nowhere"}]}), "prevResult"),
        ("/ipam/etcdConfig/kubeConfig", json!("/etc/kubernetes/kubeconfig"), "ipam.kubeConfig"),
        ("/nodeName", json!("n1"), "nodename"),
        ("/runtimeConfig", json!({"ips": ["10.244.0.7"]}), "kube-ipam.ip"),
    ]
}

#[tokio::test]
async fn a_broken_configuration_stops_add_and_not_del() {
    let ground = Ground::prepare().await;
    for (n, (pointer, value, says)) in broken().into_iter().enumerate() {
        let (pod, container) = (format!("p{n}-1"), format!("c{n}"));
        ground.fixed(&pod);
        assert_ok(&ground.add(&pod, &container).await);
        let before = ground.state().await;
        assert_refused(&ground.call("ADD", &pod, "other").with(pointer, value.clone()).run().await, 7, &[says]);
        assert_eq!(ground.state().await, before, "{pointer}");
        let outcome = ground.call("DEL", &pod, &container).with(pointer, value).run().await;
        assert!(outcome.is_ok(), "{pointer}: {outcome:?}");
        assert_eq!(ground.leftovers(&container).await, [""; 0], "{pointer}");
        assert!(ground.claims().await[0].holder.is_none(), "{pointer}");
    }
    assert!(ground.log().contains("the network configuration is broken"), "{}", ground.log());
    ground.assert_sound("broken configurations").await;
}

/// Calico's definitions are applied half: ADD gives nothing and names what is missing, whichever of them that is.
#[tokio::test]
async fn without_one_of_calicos_definitions_add_gives_nothing_and_names_it() {
    let ground = Ground::prepare().await;
    ground.random("r-1");
    ground.fixed("f-1");
    let definitions: Api<CustomResourceDefinition> = Api::all(ground.server().client("test").unwrap());
    // One kind is looked for only with a fixed address.
    for definition in calico::crds() {
        let plural = definition.spec.names.plural.clone();
        let kept: Vec<_> = ground.server().snapshot().into_iter().filter(|(id, _)| id.starts_with(&plural)).collect();
        definitions.delete(&definition.name_any(), &DeleteParams::default()).await.unwrap();
        let pods: &[&str] = if plural == "ipreservations" { &["f-1"] } else { &["f-1", "r-1"] };
        for pod in pods {
            let refused = ground.add(pod, pod).await;
            assert_refused(&refused, 102, &[&plural, "is Calico (its CRDs) installed?"]);
        }
        assert_eq!(ground.allocated(), [], "{plural}");
        definitions.create(&PostParams::default(), &definition).await.unwrap();
        for (_, mut object) in kept {
            let meta = object["metadata"].as_object_mut().unwrap();
            meta.retain(|key, _| ["name", "labels", "annotations"].contains(&key.as_str()));
            ground.server().create(&format!("/apis/crd.projectcalico.org/v1/{plural}"), &object).unwrap();
        }
    }
    for pod in ["f-1", "r-1"] {
        assert_ok(&ground.add(pod, pod).await);
    }
    ground.assert_sound("definitions that came").await;
}

#[tokio::test]
async fn del_fails_for_what_it_needs_and_for_nothing_else() {
    let ground = Ground::prepare().await;
    ground.fixed("f");
    assert_ok(&ground.add("f", "f").await);
    let before = ground.state().await;
    let del = || ground.call("DEL", "f", "f");
    let missing = ground.path("no-such-file").display().to_string();
    let cases = [
        (del().with("/name", json!("a/b")), 7, "name"),
        (del().with("/name", Value::Null), 7, "name"),
        (del().with("/ipam/name", json!("a/b")), 7, "ipam.name"),
        (del().with("/kubernetes", Value::Null), 7, "kubeConfig"),
        (del().with("/kubernetes/kubeconfig", json!(missing)), 5, &missing),
        (del().with("/ipam/kubeConfig", json!(missing)), 5, &missing),
        (del().with("/ipam/kubeConfig", json!("relative")), 7, "kubeConfig"),
        (del().with("/ipam/etcdConfig/etcdURL", json!("ftp://there")), 7, "etcdURL"),
        (del().with("/ipam/etcdConfig", json!([])), 7, "etcdConfig"),
    ];
    for (call, code, says) in cases {
        assert_refused(&call.run().await, code, &[says]);
        assert_eq!(ground.state().await, before, "{says}");
    }
    // Its ADD would have been refused for these.
    assert_ok(&del().set("CNI_ARGS", "K8S_POD_NAME=../f;Unknown=1").run().await);
    assert_eq!(ground.leftovers("f").await, [""; 0]);
}

#[tokio::test]
async fn del_without_add_and_del_again_write_nothing() {
    let ground = Ground::prepare().await;
    ground.fixed("f");
    let before = ground.state().await;
    assert_ok(&ground.del("f", "f").await);
    assert_eq!(ground.state().await, before);
    assert_ok(&ground.add("f", "f").await);
    assert_ok(&ground.del("f", "f").await);
    let before = ground.state().await;
    assert_ok(&ground.del("f", "f").await);
    assert_eq!(ground.state().await, before);
}

#[tokio::test]
async fn a_broken_configuration_stops_gc_which_may_not_guess() {
    let ground = Ground::prepare().await;
    ground.random("r");
    assert_ok(&ground.add("r", "r").await);
    let before = ground.state().await;
    let gc = || ground.call("GC", "", "");
    let none = json!([]);
    assert_refused(&gc().run().await, 7, &["cni.dev/valid-attachments is missing"]);
    for (pointer, value) in [("/nodename", json!("not a node")), ("/ipam/rangeEnd", json!("10.244.0.1"))] {
        let broken = gc().with("/cni.dev~1valid-attachments", none.clone()).with(pointer, value);
        assert_refused(&broken.run().await, 7, &[]);
    }
    let half = json!([{"containerID": "r"}]);
    assert_refused(&gc().with("/cni.dev~1valid-attachments", half).run().await, 7, &["ifname"]);
    assert_eq!(ground.state().await, before);
    assert_ok(&ground.gc(&["r"]).await);
    assert_eq!(ground.state().await, before);
    assert_ok(&ground.gc(&[]).await);
    assert_eq!(ground.leftovers("r").await, [""; 0]);
}

#[tokio::test]
async fn an_annotation_that_cannot_be_honoured_is_refused_and_nothing_is_written() {
    let ground = Ground::prepare().await;
    let families = |list: &str| json!({"cni.projectcalico.org/ipFamilies": list});
    let cases = [
        (json!({"kube-ipam.ip": "10.244.0.300"}), "kube-ipam.ip"),
        (json!({"kube-ipam.ip": "10.99.0.1"}), "10.244.0.0/16"),
        (json!({"kube-ipam.ip": "10.244.0.1"}), "gateway"),
        (json!({"kube-ipam.ip": "fd00::1"}), "IPv6"),
        (json!({"kube-ipam.ip": format!("{FIXED},{FIXED}")}), "twice"),
        (json!({"kube-ipam.ip": FIXED, "kube-ipam.netmask": "255.255.255.0"}), "kube-ipam.netmask"),
        (json!({"kube-ipam.ip": FIXED, "kube-ipam.gateway": "10.99.0.1"}), "kube-ipam.gateway"),
        (json!({"kube-ipam.ip": FIXED, "kube-ipam.owner": "A B"}), "kube-ipam.owner"),
        (json!({"kube-ipam.IP": FIXED}), "kube-ipam.ip"),
        (families(r#"["IPv4", "IPv6"]"#), "asks for IPv6"),
        (families(r#"["IPv6"]"#), "asks for IPv6"),
        (families("IPv4"), "ipFamilies"),
    ];
    for (n, (annotations, says)) in cases.into_iter().enumerate() {
        let pod = format!("p{n}-1");
        ground.pod(&pod, "n1", annotations);
        let before = ground.state().await;
        assert_refused(&ground.add(&pod, &pod).await, 7, &["annotation", says]);
        assert_eq!(ground.state().await, before, "{says}");
    }
    ground.pod("four-1", "n1", families(r#"["IPv4"]"#));
    assert_ok(&ground.add("four-1", "four").await);
}

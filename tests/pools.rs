//! A configuration without subnets: Calico's pools decide.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use common::{World, ip};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

/// The add-on's section, with `more`.
fn world(more: Value) -> World {
    let mut world = World::new();
    world.conf["ipam"] = json!({"type": "kube-ipam", "name": "kube-subnet", "waitSeconds": 1});
    world.conf["ipam"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world
}

async fn addresses(world: &World, node: &str, pod: &str) -> Vec<IpAddr> {
    world.add(node, pod, pod).await.unwrap().into_iter().map(|assigned| assigned.address).collect()
}

async fn refused(world: &World, pod: &str, said: &[&str]) {
    let error = kube_ipam::service::answer::error(&world.add("n1", pod, pod).await.unwrap_err()).to_string();
    said.iter().for_each(|part| assert!(error.contains(part), "{error}"));
    assert!(world.allocated().await.is_empty());
    world.assert_sound().await;
}

fn within(cidr: &str, address: IpAddr) -> bool {
    cidr.parse::<ipnetwork::IpNetwork>().unwrap().contains(address)
}

#[tokio::test]
async fn automatic_addresses_come_from_the_pool_that_selects_the_node() {
    let world = world(json!({}));
    world.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/16", "blockSize": 26, "nodeSelector": "rack == 'a'"}));
    world.pool("second", json!({"cidr": "10.99.0.0/24", "blockSize": 26, "nodeSelector": "rack == 'b'"}));
    for (node, rack) in [("n1", "a"), ("n2", "b")] {
        let metadata = json!({"name": node, "uid": format!("uid-of-{node}"), "labels": {"rack": rack}});
        world.put::<Node>(json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}));
        world.random(&format!("on-{node}"));
    }
    let (first, second) = (addresses(&world, "n1", "on-n1").await, addresses(&world, "n2", "on-n2").await);
    assert!(first.len() == 1 && within("10.244.0.0/16", first[0]), "{first:?}");
    assert!(second.len() == 1 && within("10.99.0.0/24", second[0]), "{second:?}");
    world.assert_sound().await;
}

#[tokio::test]
async fn a_fixed_address_may_lie_in_any_pool() {
    let world = world(json!({}));
    world.pool("second", json!({"cidr": "10.99.0.0/24", "blockSize": 26, "nodeSelector": "!all()"}));
    world.fixed("a", "app-a", "10.244.3.7");
    world.fixed("b", "app-b", "10.99.0.77");
    assert_eq!(addresses(&world, "n1", "a").await, [ip("10.244.3.7")]);
    assert_eq!(addresses(&world, "n1", "b").await, [ip("10.99.0.77")]);
    assert_eq!(world.claim("10.99.0.77").await.unwrap().value.owner.to_string(), "Deployment default/app-b");
    world.assert_sound().await;
}

#[tokio::test]
async fn both_families_follow_the_switches_the_annotation_and_what_is_fixed() {
    let dual = world(json!({"assign_ipv6": "true"}));
    let plain = world(json!({}));
    for world in [&dual, &plain] {
        world.pool("six", json!({"cidr": "fd00:10:244::/64", "blockSize": 122}));
        world.random("r");
        world.fixed("f", "app", "fd00:10:244::7");
    }
    let got = addresses(&dual, "n1", "r").await;
    assert!(got.len() == 2 && within("10.244.0.0/16", got[0]) && within("fd00:10:244::/64", got[1]), "{got:?}");
    dual.pod("v6", "app", "h1", json!({"cni.projectcalico.org/ipFamilies": "[\"IPv6\"]"}));
    let got = addresses(&dual, "n1", "v6").await;
    assert!(got.len() == 1 && got[0].is_ipv6(), "{got:?}");
    let got = addresses(&plain, "n1", "r").await;
    assert!(got.len() == 1 && got[0].is_ipv4(), "{got:?}");
    let got = addresses(&plain, "n1", "f").await;
    assert!(got.len() == 2 && got[0].is_ipv4() && got[1] == ip("fd00:10:244::7"), "{got:?}");
}

#[tokio::test]
async fn a_pool_that_gives_pods_nothing_and_an_address_of_no_pool_are_refused() {
    let world = world(json!({}));
    world.pool("off", json!({"cidr": "10.97.0.0/24", "blockSize": 26, "disabled": true}));
    world.pool("tunnels", json!({"cidr": "10.98.0.0/24", "blockSize": 26, "allowedUses": ["Tunnel"]}));
    for (pod, address, said) in [
        ("a", "10.97.0.7", ["10.97.0.7", "off (10.97.0.0/24)", "disabled"]),
        ("b", "10.98.0.7", ["10.98.0.7", "tunnels (10.98.0.0/24)", "Workload"]),
        ("c", "10.96.0.7", ["address 10.96.0.7", "default-ipv4-ippool 10.244.0.0/16", "off 10.97.0.0/24"]),
    ] {
        world.fixed(pod, "app", address);
        refused(&world, pod, &said).await;
        assert!(world.claim(address).await.is_none());
    }
}

#[tokio::test]
async fn mask_and_gateway_must_agree_with_the_pool_that_holds_the_address() {
    let world = world(json!({}));
    let pod = |mask: &str, gateway: &str| {
        world.fixed("f", "app", "10.244.0.216");
        let wish = json!({"kube-ipam.ip": "10.244.0.216", "kube-ipam.netmask": mask, "kube-ipam.gateway": gateway});
        world.pod("f", "app", "h1", wish);
    };
    pod("255.255.255.0", "10.244.0.1");
    refused(&world, "f", &["kube-ipam.netmask", "10.244.0.0/16", "default-ipv4-ippool", "255.255.0.0 or /16"]).await;
    for gateway in ["10.99.0.1", "10.244.0.0", "10.244.255.255"] {
        pod("255.255.0.0", gateway);
        refused(&world, "f", &["kube-ipam.gateway", gateway, "10.244.0.0/16"]).await;
    }
    pod("255.255.0.0", "10.244.0.1");
    let given = world.add("n1", "f", "f").await.unwrap();
    assert_eq!(
        (given[0].address, given[0].netmask, given[0].gateway),
        (ip("10.244.0.216"), Some(16), Some(ip("10.244.0.1")))
    );
    world.assert_sound().await;
}

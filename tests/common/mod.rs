//! A cluster in memory, and containers that come and go on its nodes.

#![allow(dead_code, clippy::unwrap_used)]

pub mod kubevirt;
pub mod town;

use std::net::IpAddr;
use std::time::Duration;

use calico::invariants::{self, Snapshot, Violation};
use calico::{BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPReservation};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube_ipam::driver::{Assigned, Attachment, Driver, Error, Freed, GatedDriver, PodRef};
use kube_ipam::netconf::NetConf;
use kube_ipam::store::faulty::{Faults, Faulty};
use kube_ipam::store::memory::{MemoryLedger, MemoryObjects};
use kube_ipam::store::{Ledger, Object, Objects, Versioned};
use serde_json::{Value, json};
use tokio::time::Instant;

/// A cluster: what is stored, and the configuration that its nodes share.
#[derive(Clone)]
pub struct World {
    pub objects: MemoryObjects,
    pub ledger: MemoryLedger,
    pub conf: Value,
}

pub fn object<K: Object>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl World {
    /// Two ready nodes, n1 and n2, namespace default, the guide's pool and its configuration.
    pub fn new() -> Self {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico",
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
            "ipam": {
                "type": "kube-ipam", "name": "kube-subnet",
                "etcdConfig": {"etcdURL": "http://127.0.0.1:2379"},
                "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200",
                "gateway": "10.244.0.1", "waitSeconds": 1, "takeover": {"graceSeconds": 1},
            }
        });
        let world = Self { objects: MemoryObjects::default(), ledger: MemoryLedger::default(), conf };
        world.put::<Namespace>(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
        for name in ["n1", "n2"] {
            world.node(name, "True");
        }
        world.pool("default-ipv4-ippool", json!({"cidr": "10.244.0.0/16", "blockSize": 26}));
        world
    }

    pub fn put<K: Object>(&self, value: Value) -> K {
        let object: K = object(value);
        self.objects.put(&object);
        object
    }

    pub fn node(&self, name: &str, ready: &str) {
        self.put::<Node>(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-of-{name}")},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }));
    }

    pub fn pool(&self, name: &str, spec: Value) {
        self.put::<IPPool>(
            json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}),
        );
    }

    pub fn config(&self, spec: Value) {
        self.put::<calico::IPAMConfig>(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMConfig", "metadata": {"name": "default"}, "spec": spec
        }));
    }

    /// A pod of a Deployment `app`, from template `hash`.
    pub fn pod(&self, name: &str, app: &str, hash: &str, annotations: Value) -> Pod {
        self.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "annotations": annotations,
                "labels": {"pod-template-hash": hash},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"), "uid": "rs", "controller": true,
                }],
            },
            "spec": {"containers": []}, "status": {"phase": "Pending"},
        }))
    }

    /// A pod that asks for fixed addresses.
    pub fn fixed(&self, name: &str, app: &str, addresses: &str) -> Pod {
        self.put::<k8s_openapi::api::apps::v1::Deployment>(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": app, "namespace": "default"},
        }));
        self.pod(name, app, "h1", json!({"kube-ipam.ip": addresses}))
    }

    pub fn random(&self, name: &str) -> Pod {
        self.pod(name, "random", "h1", json!({}))
    }

    pub fn remove_pod(&self, name: &str) {
        assert!(self.objects.remove::<Pod>(Some("default"), name));
    }

    pub fn net(&self) -> NetConf {
        NetConf::parse(&self.conf, "kube-ipam").unwrap()
    }

    pub fn driver(&self) -> GatedDriver<MemoryObjects, MemoryLedger> {
        Driver::new(self.objects.clone(), Some(self.ledger.clone()), Timestamp::now)
    }

    pub fn faulty(&self, faults: &Faults) -> GatedDriver<Faulty<MemoryObjects>, Faulty<MemoryLedger>> {
        Driver::new(faults.wrap(self.objects.clone()), Some(faults.wrap(self.ledger.clone())), Timestamp::now)
    }

    pub async fn add(&self, node: &str, pod: &str, container: &str) -> Result<Vec<Assigned>, Error> {
        add(&self.driver(), &self.net(), node, pod, container).await
    }

    pub async fn address(&self, node: &str, pod: &str, container: &str) -> IpAddr {
        self.add(node, pod, container).await.unwrap()[0].address
    }

    pub async fn del(&self, node: &str, pod: &str, container: &str) -> Result<Vec<Freed>, Error> {
        del(&self.driver(), &self.net(), node, pod, container).await
    }

    pub async fn claim(&self, address: &str) -> Option<Versioned<kube_ipam::claim::Claim>> {
        self.ledger.read(ip(address)).await.unwrap()
    }

    pub async fn list<K: Object>(&self) -> Vec<K> {
        self.objects.list::<K>("").await.unwrap()
    }

    /// What Calico's invariants say of everything stored.
    pub async fn violations(&self) -> Vec<Violation> {
        let blocks = self.list::<IPAMBlock>().await;
        let affinities = self.list::<BlockAffinity>().await;
        let handles = self.list::<IPAMHandle>().await;
        invariants::all(&Snapshot { blocks: &blocks, affinities: &affinities, handles: &handles })
    }

    pub async fn assert_sound(&self) {
        let violations = self.violations().await;
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// Addresses that are allocated, with their handles.
    pub async fn allocated(&self) -> Vec<(IpAddr, String)> {
        let mut found = Vec::new();
        for block in self.list::<IPAMBlock>().await {
            for (address, entry) in block.spec.entries() {
                if let calico::Entry::Used { attribute, .. } = entry {
                    found.push((address, attribute.handle().unwrap_or_default().to_owned()));
                }
            }
        }
        found
    }

    pub async fn reserved(&self) -> Vec<String> {
        self.list::<IPReservation>().await.into_iter().flat_map(|r| r.spec.reserved_cidrs).collect()
    }
}

pub fn attachment<'a>(net: &'a NetConf, node: &'a str, pod: &'a str, container: &'a str) -> Attachment<'a> {
    Attachment {
        net,
        container_id: container,
        interface: "eth0",
        pod: (!pod.is_empty()).then_some(PodRef { namespace: "default", name: pod, uid: None }),
        node,
        explicit: &[],
        cancelled: &|| false,
        last_sandbox: true,
        anew: false,
        deadline: Instant::now() + Duration::from_secs(9),
        policy: net.ipam.takeover,
    }
}

pub async fn add<O: Objects, L: Ledger>(
    driver: &Driver<O, L>,
    net: &NetConf,
    node: &str,
    pod: &str,
    container: &str,
) -> Result<Vec<Assigned>, Error> {
    driver.add(&attachment(net, node, pod, container)).await
}

pub async fn del<O: Objects, L: Ledger>(
    driver: &Driver<O, L>,
    net: &NetConf,
    node: &str,
    pod: &str,
    container: &str,
) -> Result<Vec<Freed>, Error> {
    driver.del(&attachment(net, node, pod, container)).await
}

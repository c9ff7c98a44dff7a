//! What all ways stand on: a control plane without nodes, an etcd of its own for claims, one pool, and the
//! blocks of nodes that are not measured.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use calico::{
    Affinity, AffinityState, BlockAffinity, ClusterInformation, IPAMBlock, IPAMBlockSpec, IPAMHandle, IPPool,
    IPReservation, cidr_name, handle_name,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::{Failure, Object, Objects as _, StoreError};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::Agent;
use super::way::{Surroundings, Way};
use crate::calls::Counts;
use crate::embedded::etcd::Etcd;
use crate::memory;
use crate::real::{ControlPlane, ControlPlaneOptions, Crds, TOKEN_USERS};
use crate::tools::Tools;

/// The pool, and the subnet of every configuration: 16384 blocks of 64 addresses.
pub(super) const SUBNET: &str = "10.240.0.0/12";
pub(crate) const BLOCK_SIZE: u8 = 26;
/// Blocks of other nodes lie from here on, in three quarters of the pool.
const FIRST_SEEDED: u32 = u32::from_be_bytes([10, 244, 0, 0]);
const SEEDABLE: usize = 12288;
/// From one block of other nodes to the next: they lie scattered, as blocks do that nodes choose by their names.
/// Prime to [`SEEDABLE`], so that no block comes twice.
const STRIDE: usize = 7919;
/// How many blocks each of the other nodes has.
const BLOCKS_OF_A_NODE: usize = 4;
/// Objects created at the same time.
const SIDE_BY_SIDE: usize = 16;
const NAMESPACE: &str = "bench";
const SERVED_LIMIT: Duration = Duration::from_secs(30);

/// A cluster to measure on. Dropping it removes every trace.
pub(super) struct Ground {
    control_plane: ControlPlane,
    ledger: Etcd,
    store: KubeStore,
    directory: TempDir,
    etcd_config: Value,
    seeded: usize,
}

// === impl Ground ===

impl Ground {
    pub(super) async fn start(tools: Tools, crds: Crds) -> Result<Ground> {
        let directory = memory::directory("kube-ipam-bench-")?;
        let options = ControlPlaneOptions { audit: true, crds, ..Default::default() };
        let control_plane = ControlPlane::start(tools, options).await?;
        let tls = control_plane.etcd_tls();
        let ledger = tokio::task::spawn_blocking(|| Etcd::start(Some(tls))).await??;
        control_plane.write_etcd_client(directory.path())?;
        for user in TOKEN_USERS {
            control_plane.write_kubeconfig(&directory.path().join(user), user)?;
        }
        let file = |name: &str| directory.path().join(name);
        let etcd_config = json!({
            "etcdURL": ledger.url(), "etcdCertFile": file("client.crt"), "etcdKeyFile": file("client.key"),
            "etcdTrustedCAFileFile": file("ca.crt"),
        });
        let store = KubeStore::from_kubeconfig(&file("counted"), None).await?;
        let ground = Ground { control_plane, ledger, store, directory, etcd_config, seeded: 0 };
        furnish(&ground.store, ground.client(), SUBNET, NAMESPACE).await?;
        Ok(ground)
    }

    fn client(&self) -> Client {
        self.control_plane.client()
    }

    /// A store over a warm connection of its own.
    pub(super) fn store(&self) -> &KubeStore {
        &self.store
    }

    /// Requests to the claims' etcd so far.
    pub(super) fn etcd_requests(&self) -> Result<u64> {
        self.ledger.requests()
    }

    /// Runs `work`, and counts what `user` asked of the API server meanwhile.
    pub(super) async fn counted<T>(&self, user: &str, work: impl Future<Output = Result<T>>) -> Result<(T, Counts)> {
        let audit = self.control_plane.audit().context("started with an audit log")?;
        audit.counted(user, work).await
    }

    /// What a way reads on stdin on this node.
    pub(super) fn stdin(&self, way: &Way, node: &str) -> Result<Value> {
        let directory = self.node_directory(node)?;
        let kubeconfig = self.directory.path().join(way.user);
        way.stdin(&Surroundings { node, kubeconfig: &kubeconfig, etcd: &self.etcd_config, directory: &directory })
    }

    /// Starts the agent of a way that has one; `collect`: it looks after the whole cluster, too.
    pub(super) async fn start_agent(&self, way: &Way, node: &str, collect: bool) -> Result<Option<Agent>> {
        let Some(when) = way.agent else { return Ok(None) };
        let directory = self.node_directory(node)?;
        let kubeconfig = self.directory.path().join(way.user);
        let around = Surroundings { node, kubeconfig: &kubeconfig, etcd: &self.etcd_config, directory: &directory };
        Agent::start(&way.binary, node, &kubeconfig, &directory, &way.conflist(&around), when, collect).await.map(Some)
    }

    fn node_directory(&self, node: &str) -> Result<PathBuf> {
        let directory = self.directory.path().join(node);
        std::fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Waits until a pod's address is on record without a container.
    pub(super) async fn taken_ahead(&self, pod: &Pod) -> Result<()> {
        let handle = handle_name(&format!("{NAMESPACE}.{}", pod.name_any()));
        let started = Instant::now();
        let blocks = |found: Option<IPAMHandle>| found.map(|h| h.spec.blocks().collect::<Vec<_>>()).unwrap_or_default();
        while started.elapsed() < SERVED_LIMIT {
            for block in blocks(self.store.get::<IPAMHandle>(None, &handle).await?) {
                let block = self.store.get::<IPAMBlock>(None, &cidr_name(&block)).await?;
                let recorded =
                    block.iter().flat_map(|b| &b.spec.attributes).any(|a| a.handle() == Some(handle.as_str()));
                if recorded {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("no address was taken ahead for pod {}", pod.name_any())
    }

    /// A pod goes, as when its kubelet is done with it.
    pub(super) async fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client(), NAMESPACE);
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Adds blocks of other nodes, with their affinities, until there are `count`.
    pub(super) async fn seed(&mut self, count: usize) -> Result<()> {
        let new = self.seeded..count.max(self.seeded);
        if new.len() > 100 {
            eprintln!("creating {} blocks ...", new.len());
        }
        let created = stream::iter(new).map(|number| self.seed_one(number)).buffer_unordered(SIDE_BY_SIDE);
        created.try_collect::<Vec<()>>().await?;
        self.seeded = count.max(self.seeded);
        Ok(())
    }

    async fn seed_one(&self, number: usize) -> Result<()> {
        let offset = u32::try_from(number * STRIDE % SEEDABLE)? << (32 - u32::from(BLOCK_SIZE));
        let cidr = IpNetwork::new(std::net::Ipv4Addr::from(FIRST_SEEDED + offset).into(), BLOCK_SIZE)?;
        let node = format!("other-{}", number / BLOCKS_OF_A_NODE);
        if number.is_multiple_of(BLOCKS_OF_A_NODE) {
            // Or else whoever leads the collector would rightly take its blocks away.
            self.create_node(&node).await?;
        }
        match self.claim(&node, cidr).await {
            // A node that is measured was here first: the block is there all the same.
            Err(StoreError { failure: Failure::Exists, .. }) => Ok(()),
            claimed => Ok(claimed.map(drop)?),
        }
    }

    /// A block with a confirmed affinity of `node`.
    pub(super) async fn claim(&self, node: &str, cidr: IpNetwork) -> Result<IPAMBlock, StoreError> {
        let host = Affinity::host(node);
        let block = self.store.create(&IPAMBlockSpec::new(cidr, &host, Timestamp::now()).object()).await?;
        self.store.create(&BlockAffinity::pending(&host, &cidr).with_state(AffinityState::Confirmed)).await?;
        Ok(block)
    }

    /// A Node object without a kubelet behind it.
    pub(super) async fn create_node(&self, name: &str) -> Result<()> {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(self.client()).create(&PostParams::default(), &node).await?;
        Ok(())
    }

    /// Pods bound to a node, named `<node>-<number>`.
    pub(super) async fn create_pods(&self, node: &str, count: usize) -> Result<Vec<Pod>> {
        let new = (0..count).map(|number| self.create_pod(node, format!("{node}-{number}"), json!({})));
        stream::iter(new).buffered(SIDE_BY_SIDE).try_collect().await
    }

    /// One pod bound to a node.
    pub(super) async fn create_pod(&self, node: &str, name: String, annotations: Value) -> Result<Pod> {
        let pod = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx:latest"}]},
        });
        let pods: Api<Pod> = Api::namespaced(self.client(), NAMESPACE);
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await.with_context(|| format!("pod {name}"))
    }
}

/// Waits until Calico's kinds are served, and makes what a cluster has before its first pod: a pool, and a namespace
/// in which pods are admitted.
pub(crate) async fn furnish(store: &KubeStore, client: Client, subnet: &str, namespace: &str) -> Result<()> {
    served::<IPAMBlock>(store).await?;
    served::<BlockAffinity>(store).await?;
    served::<IPAMHandle>(store).await?;
    served::<IPReservation>(store).await?;
    served::<IPPool>(store).await?;
    let pool = json!({
        "cidr": subnet, "blockSize": BLOCK_SIZE, "ipipMode": "Never", "vxlanMode": "Never",
        "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"],
    });
    store.create(&object::<IPPool>("IPPool", "default-ipv4-ippool", pool)?).await?;
    let ready = json!({"datastoreReady": true, "clusterType": "k8s"});
    store.create(&object::<ClusterInformation>("ClusterInformation", "default", ready)?).await?;
    let wanted: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &wanted).await?;
    // No controller makes it, and without it no pod is admitted.
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    Api::namespaced(client, namespace).create(&PostParams::default(), &account).await?;
    Ok(())
}

/// Waits until the API server lists a kind: for a moment after a definition was established it answers 429.
async fn served<K: Object>(store: &KubeStore) -> Result<()> {
    let started = Instant::now();
    loop {
        match store.list::<K>("").await {
            Ok(_) => return Ok(()),
            Err(StoreError { failure: Failure::Busy(wait), .. }) if started.elapsed() < SERVED_LIMIT => {
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// An object of Calico's.
fn object<K: DeserializeOwned>(kind: &str, name: &str, spec: Value) -> Result<K> {
    let object = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    Ok(serde_json::from_value(object)?)
}

/// A block of the pool's first quarter, for a node that is measured without a plugin.
pub(super) fn block_of(section: usize) -> Result<IpNetwork> {
    let first = u32::from_be_bytes([10, 243, 255, 192]) - (u32::try_from(section)? << (32 - u32::from(BLOCK_SIZE)));
    Ok(IpNetwork::new(std::net::Ipv4Addr::from(first).into(), BLOCK_SIZE)?)
}

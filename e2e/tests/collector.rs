//! The election of a collector over an API server: one leads, and none acts without the Lease.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use calico::{Affinity, Holder, IPAMBlock, IPAMBlockSpec};
use e2e::embedded::{Cluster, Options};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use kube_ipam::collector::{self, Collector, Election, News};
use kube_ipam::driver::Driver;
use kube_ipam::netconf::NetConf;
use kube_ipam::store::kube::KubeStore;
use kube_ipam::store::memory::MemoryLedger;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LEASE: &str = "kube-ipam-collector";

/// What candidates did, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(&'static str, &'static str)>>>);

impl Log {
    fn count(&self, name: &str, what: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|entry| **entry == (name, what)).count()
    }

    async fn until(&self, name: &str, what: &str, count: usize) {
        while self.count(name, what) < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn cluster() -> Cluster {
    let options = Options { crds: calico::crds(), without_controllers: true, ..Default::default() };
    Cluster::start(options).await.unwrap()
}

/// A process that takes part in the election until it is told to stop.
fn candidate(cluster: &Cluster, name: &'static str, log: &Log) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let options = collector::Options { settle: Duration::ZERO, ..Default::default() };
    candidate_with(cluster, name, log, options)
}

fn candidate_with(
    cluster: &Cluster,
    name: &'static str,
    log: &Log,
    options: collector::Options,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let conf = json!({
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico",
        "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
        "ipam": {"type": "kube-ipam", "subnet": "10.244.0.0/16"},
    });
    let net = NetConf::parse(&conf, "kube-ipam").unwrap();
    let client = cluster.client(name).unwrap();
    let driver = Driver::new(KubeStore::new(client.clone()), Some(MemoryLedger::default()), Timestamp::now);
    let mut collector = Collector::new(driver, &net, options);
    let election = Election {
        namespace: "default".into(),
        identity: name.into(),
        duration: Duration::from_secs(18),
        interval: Duration::from_millis(50),
        ..Election::default()
    };
    let (stop, stopped) = oneshot::channel();
    let log = log.clone();
    let task = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        let hear = |news: News<'_>| {
            let what = match news {
                News::Leading(_) => "leads",
                News::Following => "follows",
                News::Round(Ok(report)) if report.repairs.is_empty() => "round",
                News::Round(Ok(_)) => "repair",
                News::Round(Err(_)) => "unread",
            };
            log.0.lock().unwrap().push((name, what));
        };
        collector::lead(client, &election, &mut collector, stopped, hear).await.unwrap();
    });
    (stop, task)
}

async fn holder(leases: &Api<Lease>) -> Option<String> {
    leases.get(LEASE).await.unwrap().spec.unwrap().holder_identity
}

async fn give_lease(leases: &Api<Lease>, holder: &str) {
    let patch = json!({"spec": {
        "holderIdentity": holder, "leaseDurationSeconds": 3600, "renewTime": Timestamp::now().strftime("%FT%T%.6fZ").to_string(),
    }});
    leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// An allocation of a pod and a node that never were.
async fn leak(client: &Client) {
    let mut spec = IPAMBlockSpec::new("10.244.0.0/26".parse().unwrap(), &Affinity::host("n1"), Timestamp::now());
    let holder = Holder::pod("k8s-pod-network.c", "default", "gone", "n1", Timestamp::now());
    spec.assign("10.244.0.9".parse().unwrap(), &holder, None).unwrap();
    Api::<IPAMBlock>::all(client.clone()).create(&PostParams::default(), &spec.object()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_candidate_works_only_after_the_first_has_resigned() {
    let (cluster, log) = (cluster().await, Log::default());
    let leases: Api<Lease> = Api::namespaced(cluster.client("test").unwrap(), "default");
    let (stop_first, first) = candidate(&cluster, "first", &log);
    log.until("first", "round", 3).await;
    assert!(holder(&leases).await.unwrap().starts_with("first_"));
    let (stop_second, second) = candidate(&cluster, "second", &log);
    log.until("first", "round", 20).await;
    stop_first.send(()).unwrap();
    first.await.unwrap();
    assert_eq!(log.count("second", "leads") + log.count("second", "round"), 0);
    assert_eq!(log.0.lock().unwrap().last(), Some(&("first", "follows")));
    log.until("second", "round", 3).await;
    assert!(holder(&leases).await.unwrap().starts_with("second_"));
    stop_second.send(()).unwrap();
    second.await.unwrap();
    assert_eq!(holder(&leases).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_the_lease_unheard_begins_no_repair() {
    let (cluster, log) = (cluster().await, Log::default());
    let client = cluster.client("test").unwrap();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    let (stop, task) = candidate(&cluster, "leader", &log);
    log.until("leader", "round", 2).await;
    let ours = holder(&leases).await.unwrap();
    give_lease(&leases, "thief").await;
    leak(&client).await;
    let mark = cluster.server().calls().mark();
    let looks = || {
        let calls = cluster.server().calls().after(mark);
        calls
            .iter()
            .filter(|call| call.agent == "leader" && call.resource.starts_with("leases.") && call.verb == "get")
            .count()
    };
    while looks() < 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The elector has not noticed, and yet nothing was done.
    assert_eq!((log.count("leader", "follows"), log.count("leader", "repair")), (0, 0));
    let writes = cluster.server().calls().after(mark);
    assert_eq!(writes.iter().filter(|call| call.is_write() && call.resource.starts_with("ipamblocks.")).count(), 0);
    give_lease(&leases, &ours).await;
    log.until("leader", "repair", 1).await;
    stop.send(()).unwrap();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_goes_on_with_the_graces_of_the_last_one() {
    let options =
        Options { nodes: vec!["n1".into()], crds: calico::crds(), without_controllers: true, ..Default::default() };
    let (cluster, log) = (Cluster::start(options).await.unwrap(), Log::default());
    let client = cluster.client("test").unwrap();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    leak(&client).await;
    // Its node exists, so the allocation has a long grace, which is recorded once a tenth of it is over.
    let options = |seconds| collector::Options {
        settle: Duration::ZERO,
        allocation_grace: Duration::from_secs(seconds),
        half_done_grace: Duration::from_secs(36_000),
        ..Default::default()
    };
    let noted = async || {
        let lease = leases.get(LEASE).await.unwrap();
        let text = lease.metadata.annotations.unwrap_or_default().remove("kube-ipam.io/standing");
        let standing: collector::Standing = serde_json::from_str(&text.unwrap_or("{}".into())).unwrap();
        standing.into_iter().find(|(key, _)| key.contains("allocation_freed"))
    };
    let (stop, task) = candidate_with(&cluster, "first", &log, options(60));
    let (key, since) = loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        match noted().await {
            Some(noted) => break noted,
            None => continue,
        }
    };
    stop.send(()).unwrap();
    task.await.unwrap();
    assert_eq!(log.count("first", "repair"), 0);
    // As if that had been an hour ago.
    let earlier = json!({&key: since - jiff::SignedDuration::from_hours(1)}).to_string();
    let patch = json!({"metadata": {"annotations": {"kube-ipam.io/standing": earlier}}});
    leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let (stop, task) = candidate_with(&cluster, "second", &log, options(3600));
    log.until("second", "repair", 1).await;
    stop.send(()).unwrap();
    task.await.unwrap();
    let blocks = Api::<IPAMBlock>::all(client).list(&Default::default()).await.unwrap();
    assert!(blocks.iter().all(|block| block.spec.allocations.iter().all(Option::is_none)));
}

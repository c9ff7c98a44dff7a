//! A real cluster of two nodes, from start to end, with the times each part took.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::real::{Cluster, Crds, NodeFacts, Options, routes};
use e2e::tools::Tools;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use serde_json::{from_value, json};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

#[tokio::main]
async fn main() -> Result<()> {
    let told: Targets = "warn,kube_client=off".parse()?;
    tracing_subscriber::registry().with(tracing_subscriber::fmt::layer().with_filter(told)).init();
    let Some(tools) = Tools::or_skip()? else {
        return Ok(());
    };
    let begin = Instant::now();
    let said = |what: &str| println!("{:6.2} s  {what}", begin.elapsed().as_secs_f32());
    let crds = PathBuf::from(std::env::args().nth(1).context("a file with Calico's CRDs")?);
    let calico = std::env::args().nth(2).map(PathBuf::from).filter(|path| path.is_dir());
    let calico_runs = calico.is_some();
    let options = Options {
        nodes: vec!["node1".into(), "node2".into()],
        crds: Crds::File(crds),
        conflist: Some(Box::new(if calico_runs { calico_conflist } else { conflist })),
        calico_bin: calico,
        audit: true,
        ..Options::default()
    };
    let cluster = Cluster::start(tools, options).await?;
    said("cluster started");
    let keeper = cluster.keep_routes();
    for node in cluster.nodes() {
        if !calico_runs {
            add_blocks(&cluster, node.facts()).await?;
        }
    }
    if calico_runs {
        add_calico(&cluster).await?;
    }
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    let mark = cluster.audit().context("asked for")?.mark();
    deployments.create(&PostParams::default(), &from_value(deployment())?).await?;
    said("deployed");
    if std::env::args().nth(3).as_deref() == Some("hang") {
        println!("KUBECONFIG={}", cluster.kubeconfig().display());
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    let pods = running(&cluster, 2).await?;
    said("two pods run");
    if std::env::args().nth(3).as_deref() == Some("hang") {
        println!("KUBECONFIG={}", cluster.kubeconfig().display());
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    ping_each_other(&cluster, &pods).await?;
    said("they reach each other");

    let api: Api<Pod> = Api::default_namespaced(cluster.client());
    let victim = pods[0].metadata.name.clone().context("a name")?;
    api.delete(&victim, &DeleteParams::default()).await?;
    kube::runtime::wait::await_condition(api.clone(), &victim, |pod: Option<&Pod>| pod.is_none()).await?;
    said("one deleted");
    let pods = running(&cluster, 2).await?;
    said("and made again");
    ping_each_other(&cluster, &pods).await?;
    let sandbox = cluster.sandbox(&pods[0])?;
    println!(
        "{:?} {:?}\n{}",
        sandbox.addresses()?,
        pods[0].status.as_ref().and_then(|status| status.pod_ips.clone()),
        sandbox.routes()?
    );
    let output = e2e::real::succeed(cluster.kubectl().args(["get", "pods,nodes", "-o", "wide"]))?;
    println!("{output}");

    let node = cluster.node("node2")?;
    let connect = format!("exec 3<>/dev/tcp/{}/443", e2e::real::API_SERVICE_ADDRESS);
    e2e::real::succeed(sandbox.command("bash").args(["-c", &connect])).context("the API server's service")?;
    if let Some(calico) = std::env::args().nth(2) {
        let show = ["ipam", "show", "--show-blocks"];
        println!("{}", e2e::real::succeed(cluster.calicoctl(calico.as_ref()).args(show))?);
        println!("{}", e2e::real::succeed(cluster.calicoctl(calico.as_ref()).args(["ipam", "check"]))?);
    }
    cluster.control_plane().kill_api_server();
    cluster.control_plane().kill_etcd();
    said("API server and etcd killed");
    cluster.control_plane().start_etcd()?;
    cluster.control_plane().start_api_server().await?;
    said("and back");
    node.restart_containerd()?;
    node.restart_kubelet()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = running(&cluster, 2).await?;
    ping_each_other(&cluster, &after).await?;
    let uids = |pods: &[Pod]| pods.iter().map(|pod| pod.metadata.uid.clone()).collect::<Vec<_>>();
    anyhow::ensure!(uids(&pods) == uids(&after), "pods survive restarts");
    said("containerd and kubelet restarted, pods kept");
    node.kill();
    said("node2 killed");
    node.start()?;
    node.ready(&cluster.client()).await?;
    said("node2 ready again");
    let reached = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let pods = running(&cluster, 2).await?;
            if ping_each_other(&cluster, &pods).await.is_ok() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    reached.await??;
    said("its pod runs again and is reached");
    let calls = cluster.audit().context("asked for")?.since(mark)?;
    println!("{} API calls, {} kinds", calls.len(), e2e::real::audit::count(&calls).len());
    drop(keeper);
    drop(cluster);
    said("all gone");
    Ok(())
}

fn conflist(node: &NodeFacts) -> String {
    let subnets = subnets(node);
    let ranges: Vec<_> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
    let ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    json!({
        "name": "k8s-pod-network", "cniVersion": "0.3.1",
        "plugins": [
            { "type": "ptp", "ipam": ipam },
            { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    })
    .to_string()
}

fn calico_conflist(node: &NodeFacts) -> String {
    json!({
        "name": "k8s-pod-network", "cniVersion": "0.3.1",
        "plugins": [{
            "type": "calico", "log_level": "info", "log_file_path": "/var/log/calico/cni/cni.log",
            "datastore_type": "kubernetes", "nodename": node.name, "mtu": 0,
            "ipam": { "type": "calico-ipam" }, "policy": { "type": "k8s" },
            "kubernetes": { "kubeconfig": "/etc/cni/net.d/calico-kubeconfig" },
        }],
    })
    .to_string()
}

async fn add_calico(cluster: &Cluster) -> Result<()> {
    for (kind, plural, name, spec) in [
        (
            "ClusterInformation",
            "clusterinformations",
            "default",
            json!({ "datastoreReady": true, "clusterType": "k8s" }),
        ),
        ("KubeControllersConfiguration", "kubecontrollersconfigurations", "default", json!({ "controllers": {} })),
        (
            "IPPool",
            "ippools",
            "pool",
            json!({ "cidr": "10.244.0.0/16", "blockSize": 26, "nodeSelector": "all()", "ipipMode": "Never", "vxlanMode": "Never" }),
        ),
    ] {
        let kind = kube::api::GroupVersionKind::gvk("crd.projectcalico.org", "v1", kind);
        let resource = kube::api::ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
        api.create(&PostParams::default(), &DynamicObject::new(name, &resource).data(json!({ "spec": spec }))).await?;
    }
    Ok(())
}

fn subnets(node: &NodeFacts) -> [String; 2] {
    [format!("10.244.{}.0/24", node.index), format!("fd00:10:244:{}::/120", node.index)]
}

async fn add_blocks(cluster: &Cluster, node: &NodeFacts) -> Result<()> {
    let resource = routes::ipam_blocks();
    let api: Api<DynamicObject> = Api::all_with(cluster.client(), &resource);
    for subnet in subnets(node) {
        let name = subnet.replace([':', '.', '/'], "-").replace("--", "-");
        let spec = json!({
            "cidr": subnet, "affinity": format!("host:{}", node.name), "strictAffinity": false,
            "allocations": [], "unallocated": [], "attributes": [],
        });
        let block = DynamicObject::new(&name, &resource).data(json!({ "spec": spec }));
        api.create(&PostParams::default(), &block).await?;
    }
    Ok(())
}

fn deployment() -> serde_json::Value {
    let spread = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "web" } },
    }]);
    let containers = json!([{
        "name": "nginx", "image": "nginx:latest", "imagePullPolicy": "IfNotPresent",
        "readinessProbe": { "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 1 },
    }]);
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 2,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": containers, "topologySpreadConstraints": spread },
            },
        },
    })
}

async fn running(cluster: &Cluster, count: usize) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::default_namespaced(cluster.client());
    let ready = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        pod.metadata.deletion_timestamp.is_none()
            && conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    let found = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let pods: Vec<_> = api.list(&ListParams::default()).await?.items.into_iter().filter(ready).collect();
            if pods.len() == count {
                return anyhow::Ok(pods);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    found.await.context("the pods do not run")?
}

async fn ping_each_other(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        for address in cluster.sandbox(&pods[to])?.addresses()? {
            let address: IpAddr = address.ip();
            cluster
                .sandbox(&pods[from])?
                .reaches(address, Duration::from_secs(5))
                .await
                .with_context(|| format!("{from} to {address}"))?;
        }
    }
    Ok(())
}

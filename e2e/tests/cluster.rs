//! The embedded cluster and its stand-in nodes: workloads come and go, and every sandbox that got an ADD gets its DEL.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::embedded::{Cluster, Options};
use e2e::standin::{self, Attachment, Node};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Namespace, Node as NodeObject, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// An IPAM plugin that writes down each call. File `fail` makes ADD fail, `hang` makes it hang, `stuck` makes DEL fail.
const PLUGIN: &str = r#"#!/bin/sh
dir=$(dirname "$0")
stdin=$(tr -d '\n')
printf '%s|%s|%s|%s|%s\n' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_ARGS" "$stdin" >> "$dir/calls"
case $CNI_COMMAND in
ADD)
  [ -e "$dir/hang" ] && exec sleep 60
  if [ -e "$dir/fail" ]; then
    echo '{"cniVersion":"0.3.1","code":11,"msg":"10.0.0.9 is held","details":"by default/a"}'
    exit 1
  fi
  n=2
  until mkdir "$dir/taken-$n" 2>/dev/null; do n=$((n + 1)); done
  echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.'$n'/16"}],"dns":{}}'
  ;;
DEL)
  [ -e "$dir/stuck" ] && exit 3
  ;;
esac
exit 0
"#;

/// A cluster of two nodes that share the recording plugin.
struct Ground {
    nodes: BTreeMap<String, Node>,
    cluster: Cluster,
    client: Client,
    directory: TempDir,
}

#[derive(Debug, Clone)]
struct Call {
    verb: String,
    container: String,
    netns: String,
    args: String,
    stdin: Value,
}

impl Ground {
    async fn prepare(nodes: &[&str]) -> Self {
        // RUST_LOG=e2e=debug shows what controllers and kubelets had to try again.
        let told: Option<Targets> = std::env::var("RUST_LOG").ok().and_then(|told| told.parse().ok());
        let lines = tracing_subscriber::fmt::layer().with_test_writer().with_filter(told.unwrap_or_default());
        let _ = tracing_subscriber::registry().with(lines).try_init();
        let cluster = Cluster::start(Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let plugin = directory.path().join("recorder");
        fs::write(&plugin, PLUGIN).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let mut ground = Self { nodes: BTreeMap::new(), client: cluster.client("test").unwrap(), cluster, directory };
        for name in nodes {
            let client = ground.cluster.client(name).unwrap();
            let conflist = json!({"name": "net", "cniVersion": "0.3.1", "plugins": [
                {"type": "main", "nodename": "__KUBERNETES_NODE_NAME__", "ipam": {"type": "recorder"}}]});
            let path = vec![PathBuf::from(ground.directory.path())];
            let node = Node::start(standin::Options::new(client, name, conflist, path)).await.unwrap();
            ground.nodes.insert((*name).to_owned(), node);
        }
        ground
    }

    fn flag(&self, name: &str, on: bool) {
        let file = self.directory.path().join(name);
        if on { fs::write(file, "").unwrap() } else { fs::remove_file(file).unwrap() }
    }

    fn calls(&self) -> Vec<Call> {
        let text = fs::read_to_string(self.directory.path().join("calls")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let parts = line.splitn(5, '|').map(str::to_owned).collect::<Vec<_>>();
                let [verb, container, netns, args, stdin] = parts.try_into().unwrap();
                Call { verb, container, netns, args, stdin: serde_json::from_str(&stdin).unwrap() }
            })
            .collect()
    }

    fn containers(&self, verb: &str) -> Vec<String> {
        self.calls().into_iter().filter(|call| call.verb == verb).map(|call| call.container).collect()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn list(&self) -> Vec<Pod> {
        self.pods().list(&ListParams::default()).await.unwrap().items
    }

    async fn running(&self) -> Vec<Pod> {
        self.list().await.into_iter().filter(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).collect()
    }

    async fn pod(&self, name: &str, node: &str) -> Pod {
        let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}});
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    /// Waits until so many pods run, all of them on this node, and none is left over.
    async fn settled_on(&self, wanted: &str, count: usize) {
        until(&format!("{count} pods run on {wanted} and no other is left"), async || {
            let (all, running) = (self.list().await, self.running().await);
            let there = running.iter().all(|pod| node(pod) == wanted);
            (there && all.len() == count && running.len() == count).then_some(())
        })
        .await;
    }

    /// Waits until so many pods run and none is left over.
    async fn settled(&self, count: usize) -> Vec<Pod> {
        until(&format!("{count} pods run and no other is left"), async || {
            let (all, running) = (self.list().await, self.running().await);
            (all.len() == count && running.len() == count).then_some(running)
        })
        .await
    }

    async fn scale(&self, name: &str, replicas: usize) {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), "default");
        api.patch_scale(name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": replicas}})))
            .await
            .unwrap();
    }
}

async fn until<T>(what: &str, check: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn address(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).unwrap_or_default()
}

fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "main", "image": image}]}})
}

fn deployment(name: &str, replicas: usize, strategy: Value) -> Deployment {
    let spec = json!({"replicas": replicas, "strategy": strategy, "selector": {"matchLabels": {"app": name}}, "template": template(name, "one")});
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

async fn create<K>(ground: &Ground, object: &K) -> K
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(ground.client.clone(), "default");
    api.create(&PostParams::default(), object).await.unwrap()
}

#[tokio::test]
async fn a_deployment_runs_on_all_nodes_and_every_sandbox_is_released() {
    let ground = Ground::prepare(&["a", "b"]).await;
    create(&ground, &deployment("web", 4, Value::Null)).await;
    let pods = ground.settled(4).await;
    let nodes = pods.iter().map(node).collect::<BTreeSet<_>>();
    assert_eq!(nodes, ["a", "b"].into(), "round robin");
    let addresses = pods.iter().map(address).collect::<BTreeSet<_>>();
    assert!(addresses.len() == 4 && addresses.iter().all(|a| a.starts_with("10.0.")), "{addresses:?}");
    let hash = &pods[0].labels()["pod-template-hash"];
    assert_eq!(pods[0].owner_references()[0].name, format!("web-{hash}"));
    assert!(pods[0].name_any().starts_with(&format!("web-{hash}-")));
    ground.scale("web", 0).await;
    ground.settled(0).await;
    let (mut added, mut deleted) = (ground.containers("ADD"), ground.containers("DEL"));
    added.sort();
    deleted.sort();
    assert_eq!(added, deleted, "each container gets one ADD and one DEL");
    assert!(ground.nodes.values().all(|node| node.sandboxes().is_empty()));
}

#[tokio::test]
async fn a_plugin_is_called_as_a_runtime_calls_it() {
    let ground = Ground::prepare(&["a"]).await;
    let pod = ground.pod("one", "a").await;
    ground.settled(1).await;
    ground.pods().delete("one", &DeleteParams::default()).await.unwrap();
    ground.settled(0).await;
    let calls = ground.calls();
    let [add, del] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((add.verb.as_str(), del.verb.as_str()), ("ADD", "DEL"));
    let uid = pod.uid().unwrap();
    let expected = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=one;K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={uid}",
        add.container
    );
    assert_eq!((&add.args, &del.args), (&expected, &expected));
    assert_eq!((&add.container, &add.netns), (&del.container, &del.netns));
    let config =
        json!({"name": "net", "cniVersion": "0.3.1", "type": "main", "nodename": "a", "ipam": {"type": "recorder"}});
    assert_eq!(add.stdin, config);
    let previous = &del.stdin["prevResult"];
    assert_eq!(previous["interfaces"][0]["sandbox"], add.netns.as_str());
    assert_eq!((&previous["ips"][0]["address"], &previous["ips"][0]["interface"]), (&json!("10.0.0.2/16"), &json!(0)));
}

#[tokio::test]
async fn a_failed_sandbox_is_told_and_tried_again_under_a_new_id() {
    let ground = Ground::prepare(&["a"]).await;
    ground.flag("fail", true);
    let pod = ground.pod("one", "a").await;
    let events: Api<Event> = Api::namespaced(ground.client.clone(), "default");
    let found = until("two warnings", async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        (all.len() >= 2).then_some(all)
    })
    .await;
    ground.flag("fail", false);
    ground.settled(1).await;
    let first = &ground.calls()[0].container;
    let message = found.iter().filter_map(|e| e.message.as_deref()).find(|m| m.contains(first.as_str())).unwrap();
    let expected = format!(
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox \"{first}\": plugin type=\"main\" failed (add): 10.0.0.9 is held; by default/a"
    );
    assert_eq!(message, expected);
    assert!(
        found
            .iter()
            .all(|e| e.reason.as_deref() == Some("FailedCreatePodSandBox") && e.involved_object.uid == pod.uid())
    );
    let added = ground.containers("ADD");
    assert_eq!(added.iter().collect::<BTreeSet<_>>().len(), added.len(), "a new id each time");
    assert_eq!(ground.containers("DEL"), added[..added.len() - 1], "each failed ADD is followed by its DEL");
}

#[tokio::test]
async fn a_pod_that_leaves_during_its_add_has_the_plugin_killed_and_a_del() {
    let ground = Ground::prepare(&["a"]).await;
    ground.flag("hang", true);
    ground.pod("one", "a").await;
    until("an ADD hangs", async || (!ground.containers("ADD").is_empty()).then_some(())).await;
    ground.pods().delete("one", &DeleteParams::default()).await.unwrap();
    ground.settled(0).await;
    assert_eq!(ground.containers("ADD"), ground.containers("DEL"));
}

#[tokio::test]
async fn a_pod_stays_until_its_del_succeeds() {
    let ground = Ground::prepare(&["a"]).await;
    ground.pod("one", "a").await;
    ground.settled(1).await;
    ground.flag("stuck", true);
    ground.pods().delete("one", &DeleteParams::default()).await.unwrap();
    until("three attempts", async || (ground.containers("DEL").len() >= 3).then_some(())).await;
    assert_eq!(ground.list().await.len(), 1, "still there");
    ground.flag("stuck", false);
    ground.settled(0).await;
    let ids = ground.containers("DEL").into_iter().collect::<BTreeSet<_>>();
    assert_eq!(ids, ground.containers("ADD").into_iter().collect(), "always the same id");
}

#[tokio::test]
async fn a_forced_deletion_still_releases_the_sandbox() {
    let ground = Ground::prepare(&["a"]).await;
    ground.pod("one", "a").await;
    ground.settled(1).await;
    ground.pods().delete("one", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(ground.list().await.is_empty(), "gone at once");
    until("its DEL", async || (ground.containers("DEL") == ground.containers("ADD")).then_some(())).await;
}

#[tokio::test]
async fn a_dead_node_keeps_its_pods_until_it_is_back() {
    let ground = Ground::prepare(&["a", "b"]).await;
    create(&ground, &deployment("web", 2, Value::Null)).await;
    let before = ground.settled(2).await;
    ground.nodes["a"].kill().await.unwrap();
    let nodes: Api<NodeObject> = Api::all(ground.client.clone());
    let status = nodes.get("a").await.unwrap().status.unwrap();
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "Ready" && c.status == "Unknown"));
    let victim = before.iter().find(|pod| node(pod) == "a").unwrap();
    ground.pods().delete(&victim.name_any(), &DeleteParams::default()).await.unwrap();
    let moved = until("two pods run on b", async || {
        let running = ground.running().await;
        (running.len() == 2 && running.iter().all(|pod| node(pod) == "b")).then_some(running)
    })
    .await;
    assert_eq!(ground.list().await.len(), 3, "the dead node's pod cannot leave: {}", moved.len());
    assert!(ground.containers("DEL").is_empty());
    ground.nodes["a"].start_again().await.unwrap();
    ground.settled(2).await;
    let calls = ground.calls();
    let del = calls.iter().find(|call| call.verb == "DEL").unwrap();
    assert_eq!(del.netns, "", "its network namespace went with the power");
    assert!(calls.iter().any(|call| call.verb == "ADD" && call.container == del.container));
}

#[tokio::test]
async fn a_pod_on_a_node_that_came_back_gets_a_new_sandbox_after_the_old_is_released() {
    let ground = Ground::prepare(&["a"]).await;
    let pod = ground.pod("one", "a").await;
    let old = address(&ground.settled(1).await[0]).to_owned();
    ground.nodes["a"].kill().await.unwrap();
    ground.nodes["a"].start_again().await.unwrap();
    let new = until("another address", async || {
        let pods = ground.running().await;
        pods.first().map(|p| address(p).to_owned()).filter(|a| *a != old)
    })
    .await;
    assert_ne!(new, old);
    let verbs = ground.calls().into_iter().map(|call| call.verb).collect::<Vec<_>>();
    assert_eq!(verbs, ["ADD", "DEL", "ADD"]);
    assert_eq!(ground.list().await[0].uid(), pod.uid(), "the same pod");
}

#[tokio::test]
async fn a_kubelet_that_restarts_keeps_its_sandboxes() {
    let ground = Ground::prepare(&["a"]).await;
    ground.pod("one", "a").await;
    ground.settled(1).await;
    ground.nodes["a"].stop_kubelet().await;
    ground.pods().delete("one", &DeleteParams::default()).await.unwrap();
    ground.pod("two", "a").await;
    ground.nodes["a"].start_again().await.unwrap();
    let left = ground.settled(1).await;
    assert_eq!(left[0].name_any(), "two");
    assert_eq!((ground.containers("ADD").len(), ground.containers("DEL").len()), (2, 1));
}

#[tokio::test]
async fn pods_of_a_deleted_node_are_removed_and_replaced() {
    let ground = Ground::prepare(&["a", "b"]).await;
    create(&ground, &deployment("web", 2, Value::Null)).await;
    ground.settled(2).await;
    ground.nodes["a"].kill().await.unwrap();
    let nodes: Api<NodeObject> = Api::all(ground.client.clone());
    nodes.delete("a", &DeleteParams::default()).await.unwrap();
    ground.settled_on("b", 2).await;
}

#[tokio::test]
async fn a_node_out_of_service_loses_its_pods() {
    let ground = Ground::prepare(&["a", "b"]).await;
    create(&ground, &deployment("web", 2, Value::Null)).await;
    ground.settled(2).await;
    ground.nodes["a"].kill().await.unwrap();
    let nodes: Api<NodeObject> = Api::all(ground.client.clone());
    let taint = json!({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    nodes.patch("a", &PatchParams::default(), &Patch::Merge(taint)).await.unwrap();
    ground.settled_on("b", 2).await;
}

#[tokio::test]
async fn a_cordoned_node_gets_no_pods() {
    let ground = Ground::prepare(&["a", "b"]).await;
    let nodes: Api<NodeObject> = Api::all(ground.client.clone());
    nodes.cordon("a").await.unwrap();
    create(&ground, &deployment("web", 3, Value::Null)).await;
    assert!(ground.settled(3).await.iter().all(|pod| node(pod) == "b"));
    nodes.cordon("b").await.unwrap();
    ground.scale("web", 4).await;
    let waiting = until("a pod waits", async || {
        let all = ground.list().await;
        all.into_iter().find(|pod| {
            pod.status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .is_some_and(|c| c.iter().any(|c| c.reason.as_deref() == Some("Unschedulable")))
        })
    })
    .await;
    nodes.uncordon("a").await.unwrap();
    let pods = ground.settled(4).await;
    assert!(pods.iter().any(|pod| pod.uid() == waiting.uid() && node(pod) == "a"), "woken by the node");
}

#[tokio::test]
async fn a_rolling_update_replaces_all_pods_without_going_below() {
    let ground = Ground::prepare(&["a", "b"]).await;
    create(
        &ground,
        &deployment("web", 3, json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}})),
    )
    .await;
    let old = ground.settled(3).await.iter().filter_map(ResourceExt::uid).collect::<BTreeSet<_>>();
    let api: Api<Deployment> = Api::namespaced(ground.client.clone(), "default");
    api.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"template": template("web", "two")}})))
        .await
        .unwrap();
    until("all pods are new", async || {
        let running = ground.running().await;
        assert!(running.len() >= 3, "only {} run", running.len());
        let fresh = running.iter().filter_map(ResourceExt::uid).filter(|uid| !old.contains(uid)).count();
        (fresh == 3 && ground.list().await.len() == 3).then_some(())
    })
    .await;
    let status = until("the status", async || {
        api.get("web")
            .await
            .unwrap()
            .status
            .filter(|s| s.updated_replicas == Some(3) && s.available_replicas == Some(3))
    })
    .await;
    assert_eq!(status.replicas, Some(3));
}

#[tokio::test]
async fn recreate_waits_until_the_old_pods_are_gone() {
    let ground = Ground::prepare(&["a", "b"]).await;
    create(&ground, &deployment("web", 2, json!({"type": "Recreate"}))).await;
    let old = ground.settled(2).await.iter().filter_map(ResourceExt::uid).collect::<BTreeSet<_>>();
    ground.flag("stuck", true);
    let api: Api<Deployment> = Api::namespaced(ground.client.clone(), "default");
    api.patch("web", &PatchParams::default(), &Patch::Merge(json!({"spec": {"template": template("web", "two")}})))
        .await
        .unwrap();
    until("DEL is tried", async || (ground.containers("DEL").len() >= 4).then_some(())).await;
    let during = ground.list().await.iter().filter_map(ResourceExt::uid).collect::<BTreeSet<_>>();
    assert_eq!(during, old, "no new pod while an old one is left");
    ground.flag("stuck", false);
    until("two new pods", async || {
        let running = ground.running().await;
        (running.len() == 2 && running.iter().all(|pod| !old.contains(&pod.uid().unwrap()))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_deployment_takes_everything_with_it() {
    for policy in [PropagationPolicy::Background, PropagationPolicy::Foreground] {
        let ground = Ground::prepare(&["a"]).await;
        create(&ground, &deployment("web", 2, Value::Null)).await;
        ground.settled(2).await;
        let api: Api<Deployment> = Api::namespaced(ground.client.clone(), "default");
        api.delete("web", &DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }).await.unwrap();
        ground.settled(0).await;
        until("nothing is left", async || {
            let left = ground.cluster.server().snapshot();
            (!left.keys().any(|key| key.contains("web"))).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_stateful_set_counts_up_in_order_and_down_in_reverse() {
    let ground = Ground::prepare(&["a", "b"]).await;
    let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "db"}, "spec": {
        "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "one")}}))
    .unwrap();
    create(&ground, &set).await;
    let pods = ground.settled(3).await;
    let names = pods.iter().map(|pod| pod.name_any()).collect::<Vec<_>>();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);
    let order = ground
        .calls()
        .iter()
        .map(|call| call.args.split("K8S_POD_NAME=").nth(1).unwrap()[..4].to_owned())
        .collect::<Vec<_>>();
    assert_eq!(order, names);
    let first = pods[0].uid();
    ground.pods().delete("db-0", &DeleteParams::default()).await.unwrap();
    until("db-0 again", async || {
        ground.running().await.into_iter().find(|p| p.name_any() == "db-0" && p.uid() != first)
    })
    .await;
    let api: Api<StatefulSet> = Api::namespaced(ground.client.clone(), "default");
    api.patch_scale("db", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 1}}))).await.unwrap();
    assert_eq!(ground.settled(1).await[0].name_any(), "db-0");
    let gone = ground
        .calls()
        .into_iter()
        .filter(|c| c.verb == "DEL")
        .map(|call| call.args.split("K8S_POD_NAME=").nth(1).unwrap()[..4].to_owned())
        .collect::<Vec<_>>();
    assert_eq!(gone, ["db-0", "db-2", "db-1"]);
}

#[tokio::test]
async fn a_daemon_set_has_a_pod_on_every_node() {
    let ground = Ground::prepare(&["a", "b"]).await;
    let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "agent"}, "spec": {
        "selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", "one")}}))
    .unwrap();
    create(&ground, &set).await;
    let nodes = ground.settled(2).await.iter().map(|pod| node(pod).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(nodes, ["a".to_owned(), "b".to_owned()].into());
}

#[tokio::test]
async fn a_job_runs_to_its_end_and_gives_its_sandboxes_back() {
    let ground = Ground::prepare(&["a", "b"]).await;
    let job: Job = serde_json::from_value(json!({"metadata": {"name": "sum"}, "spec": {"completions": 3, "parallelism": 2, "template": {
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none", "command": ["sleep", "0.05"]}]}}}}))
    .unwrap();
    create(&ground, &job).await;
    let api: Api<Job> = Api::namespaced(ground.client.clone(), "default");
    let status = until("the job is complete", async || {
        api.get("sum").await.unwrap().status.filter(|s| s.conditions.iter().flatten().any(|c| c.type_ == "Complete"))
    })
    .await;
    assert_eq!(status.succeeded, Some(3));
    until("all sandboxes are released", async || {
        ground.nodes.values().all(|node| node.sandboxes().is_empty()).then_some(())
    })
    .await;
    assert_eq!(ground.containers("ADD").len(), 3);
}

#[tokio::test]
async fn a_deleted_namespace_takes_its_pods_with_it() {
    let ground = Ground::prepare(&["a"]).await;
    let namespaces: Api<Namespace> = Api::all(ground.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "gone"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(ground.client.clone(), "gone");
    let pod = json!({"metadata": {"name": "one"}, "spec": {"containers": [{"name": "main", "image": "none"}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    until("it runs", async || pods.get("one").await.ok().filter(is_ready)).await;
    namespaces.delete("gone", &DeleteParams::default()).await.unwrap();
    until("the namespace is gone", async || namespaces.get_opt("gone").await.unwrap().is_none().then_some(())).await;
    assert_eq!(ground.containers("ADD"), ground.containers("DEL"));
}

#[tokio::test]
async fn a_test_may_call_a_verb_itself_and_lose_patience() {
    let ground = Ground::prepare(&["a"]).await;
    let node = &ground.nodes["a"];
    let attachment = Attachment::of_pod("default", "x", "some-uid").with("runtimeConfig", json!({"ips": []}));
    let outcome = node.run("ADD", &attachment).await.unwrap();
    assert!(outcome.is_ok() && outcome.addresses() == ["10.0.0.2/16"], "{outcome:?}");
    assert_eq!(ground.calls()[0].stdin["runtimeConfig"], json!({"ips": []}));
    ground.flag("hang", true);
    let hasty = Attachment { kill_after: Duration::from_millis(50), ..attachment };
    assert_eq!(node.run("ADD", &hasty).await.unwrap().exit, None);
}

#[tokio::test]
async fn etcd_starts_quickly_and_keeps_its_data_when_killed() {
    let started = Instant::now();
    let cluster = Cluster::start(Options { etcd: true, ..Options::default() }).await.unwrap();
    let took = started.elapsed();
    let etcd = cluster.etcd().unwrap();
    etcd.client().await.unwrap().put("key", "value", None).await.unwrap();
    etcd.kill();
    let mut client = etcd.client().await.unwrap();
    assert!(client.get("key", None).await.is_err(), "it is dead");
    etcd.restart().unwrap();
    let found = etcd.client().await.unwrap().get("key", None).await.unwrap();
    assert_eq!(found.kvs()[0].value(), b"value");
    etcd.pause().unwrap();
    let paused = etcd.client().await.unwrap();
    let answer =
        tokio::time::timeout(Duration::from_millis(200), async move { paused.clone().get("key", None).await }).await;
    assert!(answer.is_err(), "a paused etcd does not answer: {answer:?}");
    etcd.resume().unwrap();
    etcd.client().await.unwrap().get("key", None).await.unwrap();
    eprintln!("cluster with etcd: {took:?}");
    // The aim is 500 ms on an idle machine; the bound leaves room for a busy one.
    assert!(took < Duration::from_secs(3), "{took:?}");
}

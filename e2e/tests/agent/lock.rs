//! Calico's datastore is locked while an agent serves: it knows by its watch, asks nothing for that, writes nothing,
//! and does afterwards what is owed.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, core::GroupVersionKind};
use serde_json::json;

use super::ground::{Ground, State, assert_ok, assert_refused, bare};
use super::process::{Agent, until};

const TRY_AGAIN: u32 = 11;
const NOT_AVAILABLE: u32 = 50;
/// Longer than a look is believed, or a connection that is silent.
const A_WHILE: Duration = Duration::from_secs(7);
const PATH: &str = "/apis/crd.projectcalico.org/v1/clusterinformations";

impl Ground {
    fn with_information(self) -> Self {
        let object = json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation", "metadata": {"name": "default"},
            "spec": {"datastoreReady": true},
        });
        self.server().create(PATH, &object).unwrap();
        self
    }

    async fn set_ready(&self, ready: bool) {
        let client = self.server().client("test").unwrap();
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("crd.projectcalico.org", "v1", "ClusterInformation"));
        let patch = Patch::Merge(json!({"spec": {"datastoreReady": ready}}));
        let api = Api::<DynamicObject>::all_with(client, &kind);
        api.patch("default", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Attempts to write records since `mark`, and looks at the lock.
    fn writes_and_looks(&self, mark: usize) -> (Vec<String>, usize) {
        let calls = self.server().calls().after(mark);
        let of_calico = |resource: &str| resource.ends_with("crd.projectcalico.org");
        let writes = calls.iter().filter(|c| c.is_write() && of_calico(&c.resource) && c.agent != "test");
        let looks = calls.iter().filter(|c| c.verb == "get" && c.resource.starts_with("clusterinformations"));
        (writes.map(|c| format!("{} {}", c.verb, c.resource)).collect(), looks.count())
    }

    async fn claimed(&self) -> State {
        let State { etcd, .. } = self.state().await;
        State { api: 0, etcd }
    }
}

/// Pods that come and go on the node, each of them refused.
async fn churn(ground: &Ground, pods: usize) {
    for n in 0..pods {
        let pod = format!("{}-{n}", if n % 2 == 0 { "late" } else { "f" });
        ground.either(&pod);
        let refused = ground.add_pod(&pod, &pod).await;
        assert_refused(&refused, TRY_AGAIN, &["ClusterInformation default", "datastoreReady false"]);
        assert_ok(&ground.del_pod(&pod, &pod).await);
        ground.remove(&pod).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn an_agent_that_hears_of_the_lock_writes_nothing_and_asks_nothing_until_it_is_gone() {
    let ground = Ground::over_tls().await.with_information();
    let agent = Agent::start(&ground, true).await;
    for pod in ["r-1", "s-1", "f-x"] {
        ground.either(pod);
        let given = ground.add_pod(pod, pod).await;
        assert_ok(&given);
        ground.runs(pod, &given);
    }
    let stays = ground.recorded("s-1");
    // Nothing is heard for a while but the answers to pings.
    tokio::time::sleep(A_WHILE).await;
    ground.set_ready(false).await;
    until("the agent has heard of it", async || agent.log().contains("is locked: nothing is written").then_some(()))
        .await;
    let (mark, claimed) = (ground.server().calls().mark(), ground.claimed().await);
    // Owed until the lock is gone.
    assert_ok(&ground.del_pod("r-1", "r-1").await);
    churn(&ground, 12).await;
    let status = ground.call("STATUS", "", "").run().await;
    assert_refused(&status, NOT_AVAILABLE, &["datastoreReady false"]);
    assert_eq!(ground.writes_and_looks(mark), (Vec::new(), 0));
    assert_eq!(ground.claimed().await, claimed);
    assert_eq!((ground.recorded("r-1").len(), ground.recorded("s-1")), (1, stays.clone()));
    assert!(ground.owed() >= 1);

    ground.set_ready(true).await;
    ground.settled().await;
    assert!(ground.recorded("r-1").is_empty());
    assert_eq!(ground.recorded("s-1"), stays);
    until("every handle of what is gone is gone", async || (ground.handle_ids().len() == 2).then_some(())).await;
    // The watch was believed all the time: an ADD that comes now does not look either. It may ask for its pod, of which the
    // agent has not heard yet.
    ground.random("next");
    let (outcome, made) = ground.requests(ground.add_pod("next", "next")).await;
    assert_ok(&outcome);
    assert!(made.iter().all(|call| !call.contains("clusterinformations")), "{made:?}");
    assert_eq!(ground.recorded("next"), bare(&outcome));
    ground.remove("r-1").await;
    ground.assert_sound("a lock that is gone").await;
}

/// Where nothing tells whether the watch is alive, the lock is read: once in two seconds, however many ask.
#[tokio::test]
async fn over_http_1_an_agent_reads_the_lock_once_in_two_seconds() {
    let ground = Ground::prepare().await.with_information();
    let agent = Agent::start(&ground, false).await;
    ground.random("r-1");
    assert_ok(&ground.add_pod("r-1", "r-1").await);
    ground.set_ready(false).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (mark, begun) = (ground.server().calls().mark(), std::time::Instant::now());
    churn(&ground, 8).await;
    let (writes, looks) = ground.writes_and_looks(mark);
    assert_eq!(writes, [""; 0]);
    let most = begun.elapsed().as_secs() as usize / 2 + 2;
    assert!((1..=most).contains(&looks), "{looks} looks in {:?}", begun.elapsed());
    ground.set_ready(true).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ground.released("r-1", "r-1").await;
    until("no handle is left", async || ground.handle_ids().is_empty().then_some(())).await;
    ground.assert_sound("a lock that is gone").await;
    drop(agent);
}

/// What the agent believed before it stood still, it does not believe when it wakes up.
#[tokio::test]
async fn an_agent_that_stood_still_while_the_lock_was_set_writes_nothing_when_it_wakes_up() {
    let ground = Ground::over_tls().await.with_information();
    let agent = Agent::start(&ground, true).await;
    ground.random("r-1");
    assert_ok(&ground.add_pod("r-1", "r-1").await);
    agent.signal("STOP");
    ground.set_ready(false).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mark = ground.server().calls().mark();
    let pods: Vec<String> = (0..5).map(|n| format!("late-{n}")).collect();
    for pod in &pods {
        // Bound to the node: as soon as the agent hears of it, it would put its address on record ahead.
        ground.random(pod);
    }
    let adds = futures::future::join_all(pods.iter().map(|pod| ground.add_pod(pod, pod)));
    let wake = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        agent.signal("CONT");
    };
    let (outcomes, ()) = futures::future::join(adds, wake).await;
    for outcome in &outcomes {
        assert_refused(outcome, TRY_AGAIN, &["datastoreReady false"]);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ground.writes_and_looks(mark).0, [""; 0]);
    ground.set_ready(true).await;
    let client = ground.server().client("test").unwrap();
    assert_eq!(Api::<Pod>::namespaced(client, "default").list(&Default::default()).await.unwrap().items.len(), 6);
    until("an ADD goes well again", async || ground.add_pod("late-0", "again").await.is_ok().then_some(())).await;
    ground.assert_sound("a lock that is gone").await;
}

/// In direct mode both ADD and DEL are refused, and done when the runtime comes again.
#[tokio::test]
async fn without_an_agent_add_and_del_are_refused_until_it_is_gone() {
    let ground = Ground::prepare().await.with_information();
    ground.random("r-1");
    ground.fixed("f-1");
    assert_ok(&ground.add_pod("r-1", "r-1").await);
    ground.set_ready(false).await;
    let state = ground.state().await;
    for (verb, pod) in [("ADD", "f-1"), ("DEL", "r-1")] {
        let refused = ground.of_pod(verb, pod, pod).run().await;
        assert_refused(&refused, TRY_AGAIN, &["ClusterInformation default", "datastoreReady false"]);
    }
    assert_refused(&ground.gc(&[]).await, TRY_AGAIN, &["datastoreReady false"]);
    assert_refused(&ground.call("STATUS", "", "").run().await, NOT_AVAILABLE, &["datastoreReady false"]);
    assert_eq!(ground.state().await, state);
    ground.set_ready(true).await;
    assert_ok(&ground.del_pod("r-1", "r-1").await);
    assert_ok(&ground.add_pod("f-1", "f-1").await);
    assert_eq!(ground.entries().len(), 1);
    ground.assert_sound("a lock that is gone").await;
}

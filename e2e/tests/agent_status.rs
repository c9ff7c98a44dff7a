//! How agents show themselves: metrics, probes, `kube-ipam status`, Events, and who leads the collectors.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Output;
use std::time::Duration;

use calico::{Affinity, BlockAffinity, IPAMBlock, IPAMBlockSpec, cidr_name};
use e2e::embedded::apiserver::{Fault, Gate, Match};
use e2e::lab::{Lab, Network};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use serde_json::{Value, json};
use tokio::time::Instant;

const FIXED: &str = "10.244.0.216";
/// Longest wait for something that must come: more than a Lease lasts.
const LIMIT: Duration = Duration::from_secs(120);

/// Looks again and again until there is something to see.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a node's agent says on its own socket: HTTP status and body.
async fn own(lab: &Lab, node: &str, path: &str) -> Option<(u16, String)> {
    let socket = lab.state_dir(node).unwrap().join("status.sock");
    let client = reqwest::Client::builder().unix_socket(socket).no_proxy().build().unwrap();
    let answer = client.get(format!("http://agent{path}")).send().await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

/// The same over TCP.
async fn tcp(address: &str, path: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{address}{path}")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn ready(lab: &Lab, node: &str) {
    until("the agent is ready", async || own(lab, node, "/readyz").await.filter(|(code, _)| *code == 200)).await;
}

/// `kube-ipam status` on a node.
fn command(lab: &Lab, node: &str, format: &str) -> Output {
    std::process::Command::new(e2e::tools::kube_ipam().unwrap())
        .args(["status", "-o", format, "--state-dir"])
        .arg(lab.state_dir(node).unwrap())
        .env_remove("CNI_COMMAND")
        .output()
        .unwrap()
}

fn status(lab: &Lab, node: &str) -> Value {
    let output = command(lab, node, "json");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The value of a series, written as it stands in the text.
fn value(metrics: &str, series: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|number| number.parse().unwrap())
}

/// The sum of all series of a name.
fn sum(metrics: &str, name: &str) -> f64 {
    let of_name = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
    of_name.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

async fn create(lab: &Lab, node: &str, name: &str, annotations: Value) {
    lab.create(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "nginx"}]},
    }))
    .await
    .unwrap();
}

async fn running(lab: &Lab, name: &str) -> Pod {
    let pods: Api<Pod> = Api::namespaced(lab.client(), "default");
    let has_address = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.pod_ip.is_some());
    until(&format!("{name} runs"), async || pods.get(name).await.ok().filter(has_address)).await
}

/// The notes of our Events about an object, under a reason.
async fn notes(lab: &Lab, name: &str, reason: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(lab.client(), "default");
    let of_it =
        |event: &Event| event.involved_object.name.as_deref() == Some(name) && event.reason.as_deref() == Some(reason);
    events.list(&Default::default()).await.unwrap().into_iter().filter(of_it).filter_map(|e| e.message).collect()
}

async fn note(lab: &Lab, name: &str, reason: &str) -> String {
    until(&format!("an Event {reason} of {name}"), async || notes(lab, name, reason).await.pop()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_pods_is_told_by_metrics_status_and_events_alike() {
    let lab = Lab::embedded(true).await.unwrap();
    let [node, other] = lab.nodes();
    ready(&lab, &node).await;
    ready(&lab, &other).await;
    let address = status(&lab, &node)["metricsAddress"].as_str().unwrap().to_owned();
    assert_eq!((tcp(&address, "/readyz").await.0, tcp(&address, "/healthz").await.0), (200, 200));
    assert_eq!(tcp(&address, "/status").await.0, 404, "names of pods are for this user only");

    create(&lab, &node, "fixed", json!({"kube-ipam.ip": FIXED})).await;
    create(&lab, &node, "random", json!({})).await;
    let (fixed, random) = (running(&lab, "fixed").await, running(&lab, "random").await);
    create(&lab, &node, "refused", json!({"kube-ipam.ip": "10.9.0.1"})).await;
    let refusal = note(&lab, "refused", "AddressRefused").await;
    assert!(refusal.contains("10.9.0.1"), "{refusal}");
    let refused = Api::<Pod>::namespaced(lab.client(), "default").get("refused").await.unwrap();
    let of_kubelet = lab.events(&refused).await.unwrap();
    assert!(of_kubelet.iter().any(|text| text.contains("failed (add)") && text.contains(&refusal)), "{of_kubelet:?}");
    assert_eq!(note(&lab, "fixed", "AddressGiven").await, format!("{FIXED} (fixed)"));
    lab.delete_pod(&random).await.unwrap();

    let used = r#"kube_ipam_block_addresses{pool="default-ipv4-ippool",state="used"}"#;
    let metrics = until("one address is left in use", async || {
        Some(tcp(&address, "/metrics").await.1).filter(|text| value(text, used) == Some(1.0))
    })
    .await;
    let count = |verb: &str, result: &str| {
        let series = format!(r#"kube_ipam_request_duration_seconds_count{{verb="{verb}",result="{result}"}}"#);
        value(&metrics, &series).unwrap_or_else(|| panic!("no {series} in\n{metrics}"))
    };
    assert_eq!((count("ADD", "ok"), sum(&metrics, "kube_ipam_adds_total")), (2.0, 2.0), "{metrics}");
    assert!(count("ADD", "refused") >= 1.0 && count("DEL", "ok") >= 1.0 && count("DEL", "refused") == 0.0, "{metrics}");
    assert_eq!(value(&metrics, r#"kube_ipam_cache_synced{kind="ippools"}"#), Some(1.0));
    assert!(value(&metrics, r#"kube_ipam_events_total{result="sent"}"#) >= Some(2.0), "{metrics}");
    assert_eq!(value(&metrics, r#"kube_ipam_events_total{result="dropped"}"#), Some(0.0));
    assert_eq!(notes(&lab, "random", "AddressGiven").await, [""; 0], "a random address is no news");

    let told = status(&lab, &node);
    let adds: u64 = told["adds"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((adds, &told["node"], &told["notReady"]), (2, &json!(node), &json!([])));
    assert_eq!((&told["pools"][0]["pool"], &told["pools"][0]["used"]), (&json!("default-ipv4-ippool"), &json!(1)));
    let last = &told["lastErrors"][0];
    assert_eq!(
        (&last["verb"], &last["pod"], &last["message"]),
        (&json!("ADD"), &json!("default/refused"), &json!(refusal))
    );
    let screen = String::from_utf8(command(&lab, &node, "table").stdout).unwrap();
    assert!(screen.contains("Ready:      yes") && screen.contains("default/refused"), "{screen}");

    // The fixed pod goes for good, and others come for its address: one has it, one waits.
    lab.delete_pod(&fixed).await.unwrap();
    create(&lab, &node, "heir", json!({"kube-ipam.ip": FIXED, "kube-ipam.owner": "heirs"})).await;
    running(&lab, "heir").await;
    let taken_over = note(&lab, "heir", "AddressTakenOver").await;
    assert!(taken_over.starts_with(&format!("{FIXED} taken over from Pod default/fixed")), "{taken_over}");
    create(&lab, &other, "late", json!({"kube-ipam.ip": FIXED, "kube-ipam.owner": "heirs"})).await;
    let awaited = note(&lab, "late", "AddressAwaited").await;
    assert!(awaited.contains(FIXED) && awaited.contains(&format!("pod heir on node {node}")), "{awaited}");
    assert!(awaited.ends_with("which is running"), "{awaited}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_ready_once_its_caches_are_filled_and_until_it_stops() {
    let lab = Lab::embedded(true).await.unwrap();
    let [node, _] = lab.nodes();
    let faults = lab.embedded_server().unwrap().faults();
    let refused = Fault::Status { code: 503, retry_after: None };
    let fault = faults.on(Match::on("list", "ippools.crd.projectcalico.org"), refused, usize::MAX);
    lab.restart_agent(&node).await.unwrap();
    let only_pools = async || {
        let (code, text) = own(&lab, &node, "/readyz").await?;
        (code == 503 && text == "not ready: ippools are not listed yet\n").then_some(())
    };
    until("only the pools are missing", only_pools).await;
    assert_eq!(own(&lab, &node, "/healthz").await.unwrap().0, 200, "it lives");
    let metrics = until("the watch of pools has begun anew", async || {
        let (_, text) = own(&lab, &node, "/metrics").await?;
        (value(&text, r#"kube_ipam_watch_restarts_total{kind="ippools"}"#) >= Some(1.0)).then_some(text)
    })
    .await;
    assert_eq!(value(&metrics, r#"kube_ipam_cache_synced{kind="ippools"}"#), Some(0.0));
    assert_eq!(status(&lab, &node)["notReady"], json!(["ippools are not listed yet"]));
    fault.stop();
    ready(&lab, &node).await;

    // It finishes what it has begun, and says meanwhile that nobody should come.
    let gate = Gate::new();
    let create_handle = Match::on("create", "ipamhandles.crd.projectcalico.org");
    faults.on(create_handle, Fault::Hold(gate.clone()), usize::MAX);
    create(&lab, &node, "begun", json!({})).await;
    gate.arrival().await;
    lab.terminate_agent(&node).unwrap();
    until("it is not ready any more", async || {
        own(&lab, &node, "/readyz").await.filter(|(code, text)| *code == 503 && text.contains("it stops"))
    })
    .await;
    assert!(!lab.agent_has_ended(&node).unwrap());
    gate.open();
    until("it ends", async || lab.agent_has_ended(&node).unwrap().then_some(())).await;
    assert!(!lab.state_dir(&node).unwrap().join("status.sock").exists());
    running(&lab, "begun").await;
}

/// The only node that leads by its own word, if the other one says the same.
fn leader(lab: &Lab) -> Option<String> {
    let told: Vec<(String, Value)> =
        lab.nodes().into_iter().map(|n| (n.clone(), status(lab, &n)["collector"].take())).collect();
    let mut leading = told.iter().filter(|(_, collector)| collector["leading"] == true);
    let (node, _) = leading.next()?;
    let agreed = told.iter().all(|(_, collector)| collector["leader"] == node.as_str());
    (leading.next().is_none() && agreed).then(|| node.clone())
}

async fn holder(lab: &Lab) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(lab.client(), "kube-system");
    leases.get("kube-ipam-collector").await.ok()?.spec?.holder_identity
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_agent_leads_the_collectors_once_the_leaders_has_died_or_stopped() {
    let lab = Lab::embedded(true).await.unwrap();
    let first = until("one leads", async || leader(&lab)).await;
    let second = lab.other_node(&first);
    until("its rounds are counted", async || {
        let (_, metrics) = own(&lab, &first, "/metrics").await?;
        let rounds = value(&metrics, r#"kube_ipam_collector_rounds_total{result="done"}"#);
        (rounds >= Some(1.0) && value(&metrics, "kube_ipam_collector_leader") == Some(1.0)).then_some(())
    })
    .await;
    let (_, metrics) = own(&lab, &second, "/metrics").await.unwrap();
    assert_eq!(value(&metrics, "kube_ipam_collector_leader"), Some(0.0));

    lab.kill_agent(&first).unwrap();
    let output = command(&lab, &first, "table");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("no agent answers") && error.contains("--state-dir"), "{error}");
    until("the other one leads", async || (status(&lab, &second)["collector"]["leading"] == true).then_some(())).await;

    // Whoever stops in an orderly way leaves no lease behind that must run out.
    lab.restart_agent(&first).await.unwrap();
    until("both agree", async || leader(&lab).filter(|leader| *leader == second)).await;
    lab.terminate_agent(&second).unwrap();
    until("it ends", async || lab.agent_has_ended(&second).unwrap().then_some(())).await;
    let holder = holder(&lab).await.unwrap_or_default();
    assert!(!holder.starts_with(&format!("{second}_")), "{holder} is over and holds the lease");
    until("the first one leads again", async || (status(&lab, &first)["collector"]["leading"] == true).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_range_and_a_repair_are_told_on_their_nodes() {
    let lab = Lab::embedded(true).await.unwrap();
    let [node, _] = lab.nodes();
    ready(&lab, &node).await;
    // What a node that was deleted leaves behind.
    let cidr: ipnetwork::IpNetwork = "10.244.64.0/26".parse().unwrap();
    let owner = Affinity::Host("lost".into());
    lab.create(serde_json::to_value(BlockAffinity::pending(&owner, &cidr)).unwrap()).await.unwrap();
    lab.create(serde_json::to_value(IPAMBlockSpec::new(cidr, &owner, jiff::Timestamp::now()).object()).unwrap())
        .await
        .unwrap();

    let one = ("10.244.0.10".to_owned(), "10.244.0.10".to_owned());
    lab.configure(&Network { range: one, wait: 0, ..Network::default() }).await.unwrap();
    create(&lab, &node, "first", json!({})).await;
    running(&lab, "first").await;
    create(&lab, &node, "second", json!({})).await;
    let exhausted = note(&lab, &node, "RangeExhausted").await;
    assert!(exhausted.contains("10.244.0.10"), "{exhausted}");
    let second = Api::<Pod>::namespaced(lab.client(), "default").get("second").await.unwrap();
    assert_eq!(second.status.and_then(|status| status.pod_ip), None);

    let repaired = note(&lab, "lost", "CollectorRepaired").await;
    let object = format!("IPAMBlock/{}", cidr_name(&cidr));
    assert_eq!(repaired, format!("block_released: {object} was empty, and its node lost does not exist"));
    let blocks: Api<IPAMBlock> = Api::all(lab.client());
    assert!(blocks.get_opt(&cidr_name(&cidr)).await.unwrap().is_none());
}

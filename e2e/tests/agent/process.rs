//! An agent of node n1, started and ended by the test's hand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use calico::{AllocationAttribute, Entry, IPAMBlock};
use e2e::standin::CniOutcome;
use e2e::tools;
use kube_ipam::protocol::Request;
use tokio::process::{Child, Command};

use super::ground::{Call, Ground, assert_ok};

/// Longest wait for something that must come.
const LIMIT: Duration = Duration::from_secs(30);

pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent; returns when its socket is there and its caches are filled.
    pub async fn start(ground: &Ground, take_ahead: bool) -> Self {
        let networks = ground.path("net.d");
        std::fs::create_dir_all(&networks).unwrap();
        std::fs::write(networks.join("10-calico.conflist"), ground.conflist().to_string()).unwrap();
        Self::start_with(ground, take_ahead, |_| ()).await
    }

    /// Runs one with `state` as its directory, which must refuse to serve; what it says.
    pub async fn refused(ground: &Ground, state: &Path) -> String {
        let output = Command::new(tools::kube_ipam().unwrap())
            .args(["agent", "--node-name", "n1", "--kubeconfig"])
            .arg(ground.cluster.kubeconfig())
            .arg("--state-dir")
            .arg(state)
            .env_remove("CNI_COMMAND")
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(20), output).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    }

    /// The same with the network configurations that are there already, and further flags.
    pub async fn start_with(ground: &Ground, take_ahead: bool, further: impl FnOnce(&mut Command)) -> Self {
        Self::start_logging(ground, "debug", take_ahead, further).await
    }

    /// The same with as much in the log as `level` says.
    pub async fn start_logging(
        ground: &Ground,
        level: &str,
        take_ahead: bool,
        further: impl FnOnce(&mut Command),
    ) -> Self {
        let log = ground.path("agent.log");
        let seen = std::fs::read_to_string(&log).map_or(0, |text| text.len());
        let output = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(tools::kube_ipam().unwrap());
        command.args(["agent", "--node-name", "n1", "--log-level", level, "--collect", "false", "--take-ahead"]);
        command
            .arg(take_ahead.to_string())
            .arg("--kubeconfig")
            .arg(ground.cluster.kubeconfig())
            .arg("--state-dir")
            .arg(ground.path("state"))
            .arg("--cni-conf-dir")
            .arg(ground.path("net.d"));
        further(&mut command);
        let child = command
            .env_remove("CNI_COMMAND")
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let agent = Self { child, log };
        let text = || std::fs::read_to_string(&agent.log).unwrap()[seen..].to_owned();
        until("the agent serves", async || text().contains("\"serving\"").then_some(())).await;
        until("its caches are filled", async || text().contains("every cache is filled").then_some(())).await;
        agent
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// How many calls of this verb it has answered.
    pub fn answered(&self, verb: &str) -> usize {
        let said = format!("\"verb\":\"{verb}\"");
        self.log().lines().filter(|line| line.contains("\"answered\"") && line.contains(&said)).count()
    }

    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    #[allow(dead_code)]
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended by itself, in good order.
    pub async fn ended(mut self) {
        let end = tokio::time::timeout(LIMIT, self.child.wait()).await;
        assert!(end.expect("the agent goes on").unwrap().success(), "{}", self.log());
    }

    /// SIGTERM, and its end.
    pub async fn stop(mut self) {
        self.signal("TERM");
        assert!(self.child.wait().await.unwrap().success(), "{}", self.log());
    }
}

/// Looks again and again until there is something to see.
pub async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Call {
    /// What the plugin asks the node's agent for it.
    pub fn request(&self) -> Request {
        let variables = self.environment.iter().map(|(k, v)| ((*k).to_owned(), v.to_str().unwrap().to_owned()));
        Request::new("kube-ipam", variables.collect(), serde_json::from_slice(&self.stdin).unwrap())
    }
}

impl Ground {
    /// The node's network configuration list.
    pub fn conflist(&self) -> serde_json::Value {
        let (name, version) = (&self.conf["name"], &self.conf["cniVersion"]);
        serde_json::json!({"name": name, "cniVersion": version, "plugins": [self.conf]})
    }

    /// A call with the pod's UID, as every runtime of today makes it.
    pub fn of_pod(&self, verb: &str, pod: &str, container: &str) -> Call {
        let call = self.call(verb, pod, container);
        let arguments = call.environment["CNI_ARGS"].to_str().unwrap().to_owned();
        let uid = self.uid(pod);
        call.set("CNI_ARGS", format!("{arguments};K8S_POD_UID={uid}"))
    }

    pub fn uid(&self, pod: &str) -> String {
        let found =
            self.server().snapshot().into_iter().find(|(id, o)| id.starts_with("pods") && o["metadata"]["name"] == pod);
        found.map_or_else(|| format!("gone-{pod}"), |(_, o)| o["metadata"]["uid"].as_str().unwrap().to_owned())
    }

    pub async fn add_pod(&self, pod: &str, container: &str) -> CniOutcome {
        self.of_pod("ADD", pod, container).run().await
    }

    pub async fn del_pod(&self, pod: &str, container: &str) -> CniOutcome {
        self.of_pod("DEL", pod, container).run().await
    }

    /// A pod with the fixed address if its name begins with f, else with a random one.
    pub fn either(&self, pod: &str) {
        if pod.starts_with('f') { self.fixed(pod) } else { self.random(pod) }
    }

    /// DEL, until the release is on record.
    pub async fn released(&self, pod: &str, container: &str) {
        assert_ok(&self.del_pod(pod, container).await);
        self.settled().await;
    }

    /// DELs that the node's agent has answered and whose releases are not on record.
    pub fn owed(&self) -> usize {
        let entries = std::fs::read_dir(self.path("state")).unwrap().flatten();
        entries.filter(|entry| entry.path().extension() == Some("release".as_ref())).count()
    }

    /// Waits until there are none.
    pub async fn settled(&self) {
        until("every release is on record", async || (self.owed() == 0).then_some(())).await;
    }

    /// Allocated addresses, with what the block says of each.
    pub fn entries(&self) -> Vec<(String, AllocationAttribute)> {
        let blocks = self.server().snapshot().into_iter().filter(|(id, _)| id.starts_with("ipamblocks"));
        let mut found = Vec::new();
        for (_, object) in blocks {
            let block: IPAMBlock = serde_json::from_value(object).unwrap();
            for (address, entry) in block.spec.entries() {
                if let Entry::Used { attribute, .. } = entry {
                    found.push((address.to_string(), attribute.clone()));
                }
            }
        }
        found
    }

    /// The addresses recorded for a pod.
    pub fn recorded(&self, pod: &str) -> Vec<String> {
        let of_pod = |(_, attribute): &(String, AllocationAttribute)| attribute.secondary("pod") == Some(pod);
        self.entries().into_iter().filter(of_pod).map(|(address, _)| address).collect()
    }

    /// The pod object goes, as when its kubelet is done with it.
    pub async fn remove(&self, pod: &str) {
        let client = self.server().client("test").unwrap();
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, "default");
        pods.delete(pod, &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    }

    /// Affinities that are not confirmed.
    pub fn half_claimed(&self) -> Vec<String> {
        let snapshot = self.server().snapshot();
        let affinities = snapshot.into_iter().filter(|(id, _)| id.starts_with("blockaffinities"));
        affinities.filter(|(_, a)| a["spec"]["state"] != "confirmed").map(|(id, _)| id).collect()
    }

    /// Handles on record.
    pub fn handle_ids(&self) -> Vec<String> {
        let snapshot = self.server().snapshot();
        let handles = snapshot.iter().filter(|(id, _)| id.starts_with("ipamhandles"));
        handles.map(|(_, handle)| handle["spec"]["handleID"].as_str().unwrap().to_owned()).collect()
    }

    /// The requests that an operation cost; watches aside, and Events, which no answer waits for.
    pub async fn requests<T>(&self, operation: impl Future<Output = T>) -> (T, Vec<String>) {
        let calls = self.server().calls();
        let mark = calls.mark();
        let outcome = operation.await;
        let made = calls.after(mark).into_iter().filter(|c| c.verb != "watch" && !c.resource.starts_with("events"));
        (outcome, made.map(|c| format!("{} {}", c.verb, c.resource.split('.').next().unwrap())).collect())
    }
}

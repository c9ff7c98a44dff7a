//! The add-on is taken off the cluster, or only seems to be: an agent that is in its pod gives the conflist back to
//! calico-ipam, or leaves it.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::embedded::Options;
use e2e::embedded::apiserver::{Fault, Match};
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DeleteParams, PropagationPolicy};
use serde_json::{Value, json};

use super::ground::{Ground, PODS};
use super::process::{Agent, until};

const SETS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
/// A user with every right, for the test and the agent's watches.
const ADMIN: &str = "0-admin";
const CALICO: &str = "calico";

/// A node with the add-on's pod on it, whose agent this is.
struct Node {
    ground: Ground,
    ours: Value,
    /// The token of the pod, which ends with it, and the plugin's, which does not.
    tokens: [String; 2],
}

/// A service account's token.
fn token(more: Value) -> String {
    let mut claims = json!({"sub": "system:serviceaccount:default:kube-ipam"});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn set(uid_of: &str) -> Value {
    json!({
        "metadata": {"name": uid_of, "finalizers": ["test/keep"]},
        "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "none"}]}},
        },
    })
}

impl Node {
    async fn prepare() -> Node {
        let users = [(ADMIN.to_owned(), "admin".to_owned()), (CALICO.to_owned(), "calico".to_owned())];
        let ground = Ground::with(Options { tls: true, tokens: users.into(), ..Options::default() }).await;
        let server = ground.server();
        server.create(SETS, &set("kube-ipam")).unwrap();
        server
            .create("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "kube-ipam"}}))
            .unwrap();
        let uid = server.snapshot()["daemonsets.apps/default/kube-ipam"]["metadata"]["uid"].clone();
        let pod = json!({
            "metadata": {"name": "kube-ipam-x", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "kube-ipam", "uid": uid, "controller": true},
            ]},
            "spec": {"nodeName": "n1", "hostNetwork": true, "containers": [{"name": "main", "image": "none"}]},
        });
        server.create(PODS, &pod).unwrap();
        let pod = ground.uid("kube-ipam-x");
        let tokens = [token(json!({"kubernetes.io": {"pod": {"name": "kube-ipam-x", "uid": pod}}})), token(json!({}))];
        tokens.iter().for_each(|token| server.add_token(token, "system:serviceaccount:default:kube-ipam"));
        let ours = ground.conf["ipam"].clone();
        let node = Node { ground, ours, tokens };
        node.furnish();
        // The plugin has its token already, and gets no other.
        let asked = Match { subresource: Some("token".into()), ..Match::on("create", "serviceaccounts") };
        node.ground.server().faults().on(asked, Fault::Status { code: 503, retry_after: None }, usize::MAX);
        node
    }

    fn furnish(&self) {
        for directory in ["net.d", "config", "account"] {
            std::fs::create_dir_all(self.path(directory)).unwrap();
        }
        let server = self.ground.server();
        server.write_kubeconfig(&self.path("net.d/calico-kubeconfig"), Some(CALICO)).unwrap();
        let text = std::fs::read_to_string(self.ground.cluster.kubeconfig()).unwrap();
        let config: Value = serde_yaml_ng::from_str(&text).unwrap();
        let authority = config["clusters"][0]["cluster"]["certificate-authority-data"].clone();
        let ByteString(authority) = serde_json::from_value(authority).unwrap();
        std::fs::write(self.path("account/ca.crt"), authority).unwrap();
        std::fs::write(self.path("account/token"), &self.tokens[0]).unwrap();
        let plugins = json!({"users": [{"name": "kube-ipam", "user": {"token": self.tokens[1]}}]});
        std::fs::write(self.path("net.d/kube-ipam-kubeconfig"), plugins.to_string()).unwrap();
        std::fs::write(self.path("config/ipam.json"), self.ours.to_string()).unwrap();
        let mut list = self.ground.conflist();
        list["plugins"][0]["ipam"] = json!({"type": "calico-ipam"});
        list["plugins"][0]["kubernetes"]["kubeconfig"] = json!(self.path("net.d/calico-kubeconfig"));
        std::fs::write(self.path("net.d/10-calico.conflist"), list.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.ground.path(name)
    }

    async fn agent(&self) -> Agent {
        let port = self.ground.server().address().port().to_string();
        let agent = Agent::start_with(&self.ground, false, |command| {
            for (flag, name) in [
                ("--ipam", "config/ipam.json"),
                ("--kubeconfig-out", "net.d/kube-ipam-kubeconfig"),
                ("--service-account", "account"),
            ] {
                command.arg(flag).arg(self.path(name));
            }
            command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", port);
        })
        .await;
        until("the node is ours", async || self.is_ours().then_some(())).await;
        agent
    }

    fn ipam(&self) -> Value {
        let list = std::fs::read_to_string(self.path("net.d/10-calico.conflist")).unwrap();
        serde_json::from_str::<Value>(&list).unwrap()["plugins"][0]["ipam"].clone()
    }

    fn is_ours(&self) -> bool {
        self.ipam() == self.ours
    }

    fn client(&self) -> kube::Client {
        self.ground.cluster.client("test").unwrap()
    }

    /// The DaemonSet goes, with its finalizer or without.
    async fn delete_set(&self, kept: bool) {
        let sets: Api<DaemonSet> = Api::namespaced(self.client(), "default");
        let foreground =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        sets.delete("kube-ipam", &foreground).await.unwrap();
        if !kept {
            let patch = json!({"metadata": {"finalizers": null}});
            sets.patch("kube-ipam", &Default::default(), &kube::api::Patch::Merge(patch)).await.unwrap();
        }
    }

    /// Everybody who logs in as the account is refused.
    fn refuse_account(&self) {
        self.tokens.iter().for_each(|token| self.ground.server().revoke_token(token));
    }
}

#[tokio::test]
async fn an_agent_that_is_stopped_because_its_daemon_set_is_gone_gives_the_node_back() {
    for (kept, made_again, why) in
        [(false, false, "does not exist"), (true, false, "is being deleted"), (false, true, "is another one")]
    {
        let node = Node::prepare().await;
        let agent = node.agent().await;
        node.delete_set(kept).await;
        if made_again {
            node.ground.server().create(SETS, &set("kube-ipam")).unwrap();
        }
        // Until it is stopped there is nobody to take its place.
        assert!(node.is_ours());
        agent.stop().await;
        assert_eq!(node.ipam(), json!({"type": "calico-ipam"}), "{why}");
        let log = std::fs::read_to_string(node.path("agent.log")).unwrap();
        assert!(log.contains(why) && log.contains("given back to calico-ipam"), "{why}: {log}");
        // An agent that starts again takes the node again.
        node.agent().await.stop().await;
    }
}

#[tokio::test]
async fn an_agent_that_is_replaced_leaves_the_node_as_it_is() {
    let node = Node::prepare().await;
    node.agent().await.stop().await;
    assert!(node.is_ours());
    // Pods are deleted first, and then what would make them again.
    let agent = node.agent().await;
    agent.signal("TERM");
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.delete_set(false).await;
    agent.stop().await;
    assert!(!node.is_ours());
}

#[tokio::test]
async fn without_a_clear_answer_the_node_is_kept() {
    let forbidden = Node::prepare().await;
    let fault = Match::on("get", "daemonsets.apps");
    forbidden.ground.server().faults().on(fault, Fault::Status { code: 403, retry_after: None }, usize::MAX);
    let broken = Node::prepare().await;
    let fault = Match::on("get", "daemonsets.apps");
    broken.ground.server().faults().on(fault, Fault::Status { code: 503, retry_after: None }, usize::MAX);
    let away = Node::prepare().await;
    let nodes = [forbidden, broken, away];
    let agents = [nodes[0].agent().await, nodes[1].agent().await, nodes[2].agent().await];
    nodes[2].ground.server().down();
    let [first, second, third] = agents;
    tokio::join!(first.stop(), second.stop(), third.stop());
    for node in &nodes {
        assert!(node.is_ours());
    }
}

#[tokio::test]
async fn an_account_that_is_deleted_takes_the_node_along_and_brings_it_back() {
    let node = Node::prepare().await;
    let agent = node.agent().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(node.client(), "default");
    accounts.delete("kube-ipam", &DeleteParams::default()).await.unwrap();
    // As API servers do, this one forgets later.
    tokio::time::sleep(Duration::from_secs(5)).await;
    node.refuse_account();
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(node.is_ours(), "not half a minute has passed");
    until("the node is given back", async || (!node.is_ours()).then_some(())).await;
    let status = std::process::Command::new(e2e::tools::kube_ipam().unwrap())
        .args(["status", "--state-dir"])
        .arg(node.path("state"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(said.contains("given back to calico-ipam") && said.contains("refused the tokens"), "{said}");
    node.ground.server().add_token(&node.tokens[1], "system:serviceaccount:default:kube-ipam");
    until("the node is ours again", async || node.is_ours().then_some(())).await;
    agent.stop().await;
    assert!(node.is_ours());
}

/// A pod that was deleted by force takes its token along, a server may have lost its keys, and an old token runs out.
#[tokio::test]
async fn refused_tokens_alone_prove_nothing() {
    let forced = Node::prepare().await;
    let keys = Node::prepare().await;
    let nodes = [forced, keys];
    let agents = [nodes[0].agent().await, nodes[1].agent().await];
    nodes[0].ground.server().revoke_token(&nodes[0].tokens[0]);
    nodes[1].refuse_account();
    nodes[1].ground.server().revoke_token(CALICO);
    for node in &nodes {
        let accounts: Api<ServiceAccount> = Api::namespaced(node.client(), "default");
        accounts.delete("kube-ipam", &DeleteParams::default()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(45)).await;
    let [first, second] = agents;
    tokio::join!(first.stop(), second.stop());
    for node in &nodes {
        assert!(node.is_ours());
    }
}

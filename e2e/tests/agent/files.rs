//! The node's files: what calico-node's installer, an administrator and the kubelet write is seen and answered.

use std::path::PathBuf;
use std::process::Output;

use e2e::tools;
use serde_json::{Value, json};

use super::ground::{Ground, assert_ok};
use super::process::{Agent, until};

/// A node whose conflist is as Calico's installer leaves it, and the directories that a pod of ours has.
struct Node {
    ground: Ground,
    ours: Value,
}

impl Node {
    async fn prepare() -> Node {
        let ground = Ground::prepare().await;
        let ours = ground.conf["ipam"].clone();
        let node = Node { ground, ours };
        for directory in ["net.d", "config", "account", "bin"] {
            std::fs::create_dir_all(node.path(directory)).unwrap();
        }
        node.write("config/ipam.json", &node.ours.to_string());
        node.write("account/ca.crt", "an authority");
        node.write("account/token", "token-1");
        node.calico_writes();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.ground.path(name)
    }

    /// By rename, as installers and the kubelet do.
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path("draft"), text).unwrap();
        std::fs::rename(self.path("draft"), self.path(name)).unwrap();
    }

    fn calicos(&self) -> Value {
        let mut list = self.ground.conflist();
        list["plugins"][0]["ipam"] = json!({"type": "calico-ipam", "assign_ipv4": "true"});
        list["plugins"][0]["mtu"] = 1440.into();
        list
    }

    fn calico_writes(&self) {
        self.write("net.d/10-calico.conflist", &self.calicos().to_string());
    }

    fn ipam(&self) -> Value {
        let text = std::fs::read_to_string(self.path("net.d/10-calico.conflist")).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["plugins"][0]["mtu"], 1440, "{list}");
        list["plugins"][0]["ipam"].clone()
    }

    async fn is_ours(&self, what: &str, ours: &Value) {
        until(what, async || (self.ipam() == *ours).then_some(())).await;
    }

    fn flags(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        [
            ("--ipam", "config/ipam.json"),
            ("--kubeconfig-out", "net.d/kube-ipam-kubeconfig"),
            ("--service-account", "account"),
        ]
        .into_iter()
        .flat_map(|(flag, name)| [flag.to_owned(), path(name)])
        .collect()
    }

    async fn agent(&self) -> Agent {
        Agent::start_with(&self.ground, true, |command| {
            command
                .args(self.flags())
                .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
                .env("KUBERNETES_SERVICE_PORT", "443");
        })
        .await
    }

    /// Runs a command of the binary on this node.
    fn run(&self, command: &str, flags: &[String]) -> Output {
        let run = std::process::Command::new(tools::kube_ipam().unwrap())
            .arg(command)
            .args(flags)
            .arg("--cni-conf-dir")
            .arg(self.path("net.d"))
            .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
            .env("KUBERNETES_SERVICE_PORT", "443")
            .env_remove("CNI_COMMAND")
            .output();
        run.unwrap()
    }

    fn kubeconfig(&self) -> String {
        std::fs::read_to_string(self.path("net.d/kube-ipam-kubeconfig")).unwrap_or_default()
    }

    fn uninstall(&self) -> Output {
        self.run("uninstall", &["--state-dir".to_owned(), self.path("state").display().to_string()])
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn whoever_rewrites_the_conflist_ipam_comes_back() {
    let node = Node::prepare().await;
    let agent = node.agent().await;
    node.is_ours("the first list is edited", &node.ours).await;
    for _ in 0..20 {
        node.calico_writes();
        node.is_ours("calico-node's list is edited", &node.ours).await;
    }
    let mut later = node.ours.clone();
    later["rangeEnd"] = "10.244.0.199".into();
    node.write("config/ipam.json", &later.to_string());
    node.is_ours("the administrator's change comes through", &later).await;
    // One that is wrong changes nothing, and is told.
    node.write("config/ipam.json", r#"{"type": "kube-ipam", "subnet": "10.244.0.0/160"}"#);
    until("it is logged", async || agent.log().contains("10.244.0.0/160").then_some(())).await;
    assert_eq!(node.ipam(), later);
    let flags = ["--state-dir".to_owned(), node.path("state").display().to_string()];
    let status = std::process::Command::new(tools::kube_ipam().unwrap()).arg("status").args(&flags).output().unwrap();
    assert!(said(&status).contains("10.244.0.0/160"), "{}", said(&status));
    // So does one under which no pod could start, and calico-node gets the last good one all the same.
    let mut uncovered = later.clone();
    for (field, value) in [("subnet", "10.99.0.0/16"), ("rangeStart", "10.99.0.10"), ("rangeEnd", "10.99.0.20")] {
        uncovered[field] = value.into();
    }
    uncovered.as_object_mut().unwrap().remove("gateway");
    node.write("config/ipam.json", &uncovered.to_string());
    let status = async || {
        let status =
            std::process::Command::new(tools::kube_ipam().unwrap()).arg("status").args(&flags).output().unwrap();
        said(&status)
            .contains("subnet 10.99.0.0/16 of the CNI config is not covered by any Calico IPPool")
            .then_some(())
    };
    until("the agent says why it is not ready", status).await;
    assert_eq!(node.ipam(), later);
    node.calico_writes();
    node.is_ours("calico-node's list is edited", &later).await;
    // Pods are served all the same.
    node.ground.random("a");
    assert_ok(&node.ground.add_pod("a", "a").await);
    agent.stop().await;
}

/// Multus comes first with a copy of Calico's list, which nobody but Multus writes.
#[tokio::test]
async fn a_configuration_that_comes_before_calicos_keeps_the_agent_from_being_ready() {
    let node = Node::prepare().await;
    let multus = json!({"cniVersion": "0.3.1", "name": "m", "type": "multus", "delegates": [node.calicos()]});
    node.write("net.d/00-multus.conf", &multus.to_string());
    let mut flags = node.flags();
    flags.extend(["--cni-bin-dir".to_owned(), node.path("bin").display().to_string()]);
    let installed = node.run("install", &flags);
    assert!(installed.status.success() && said(&installed).contains("00-multus.conf"), "{}", said(&installed));
    let agent = node.agent().await;
    let status = || {
        let flags = ["--state-dir".to_owned(), node.path("state").display().to_string()];
        let program = tools::kube_ipam().unwrap();
        said(&std::process::Command::new(program).arg("status").args(&flags).output().unwrap())
    };
    let (file, part) = ("00-multus.conf", "its delegates[0] is a copy of Calico's list with calico-ipam");
    until("it is named", async || (status().contains(file) && status().contains(part)).then_some(())).await;
    std::fs::remove_file(node.path("net.d/00-multus.conf")).unwrap();
    until("the agent is ready", async || (!status().contains(file)).then_some(())).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_renewed_token_reaches_the_plugins_kubeconfig() {
    let node = Node::prepare().await;
    let agent = node.agent().await;
    until("it is written", async || node.kubeconfig().contains("token-1").then_some(())).await;
    assert!(node.kubeconfig().contains("https://10.96.0.1:443"), "{}", node.kubeconfig());
    node.write("account/token", "token-2");
    until("it is renewed", async || node.kubeconfig().contains("token-2").then_some(())).await;
    assert!(!agent.log().contains("token-"), "no token is logged");
    agent.stop().await;
}

#[tokio::test]
async fn a_node_is_given_to_us_and_back_by_hand() {
    let node = Node::prepare().await;
    let mut flags = node.flags();
    flags.extend(["--cni-bin-dir".to_owned(), node.path("bin").display().to_string()]);
    let installed = node.run("install", &flags);
    assert!(installed.status.success(), "{}", said(&installed));
    assert_eq!(node.ipam(), node.ours);
    let placed = std::fs::read(node.path("bin/kube-ipam")).unwrap();
    assert!(placed == std::fs::read(tools::kube_ipam().unwrap()).unwrap());
    let again = node.run("install", &flags);
    assert!(again.status.success() && said(&again).contains("up to date"), "{}", said(&again));

    let agent = node.agent().await;
    let refused = node.uninstall();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("an agent answers") && said(&refused).contains("delete daemonset"));
    assert_eq!(node.ipam(), node.ours);
    agent.stop().await;
    let restored = node.uninstall();
    assert!(restored.status.success(), "{}", said(&restored));
    assert_eq!(node.ipam(), node.calicos()["plugins"][0]["ipam"]);
}

#[tokio::test]
async fn an_install_that_cannot_be_done_says_why_and_leaves_the_list() {
    let node = Node::prepare().await;
    node.write("config/ipam.json", r#"{"type": "kube-ipam", "subnet": "10.244.0.0/16", "rangeEnd": "10.9.0.1"}"#);
    let mut flags = node.flags();
    flags.extend(["--cni-bin-dir".to_owned(), node.path("bin").display().to_string()]);
    let refused = node.run("install", &flags);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("ipam.json: ipam.rangeEnd: \"10.9.0.1\""), "{}", said(&refused));
    assert_eq!(node.ipam(), node.calicos()["plugins"][0]["ipam"]);
    assert_eq!(std::fs::read_dir(node.path("bin")).unwrap().count(), 0, "nothing was begun");
    // Sound, and no pod could start under it.
    let mut uncovered = node.ours.clone();
    for (field, value) in [("subnet", "10.99.0.0/16"), ("rangeStart", "10.99.0.10"), ("rangeEnd", "10.99.0.20")] {
        uncovered[field] = value.into();
    }
    uncovered.as_object_mut().unwrap().remove("gateway");
    node.write("config/ipam.json", &uncovered.to_string());
    let refused = node.run("install", &flags);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("subnet 10.99.0.0/16 of the CNI config is not covered"), "{}", said(&refused));
    assert_eq!(node.ipam(), node.calicos()["plugins"][0]["ipam"]);
    node.write("config/ipam.json", &node.ours.to_string());
    std::fs::remove_dir_all(node.path("bin")).unwrap();
    let refused = node.run("install", &flags);
    assert!(said(&refused).contains("bin/kube-ipam: No such file"), "{}", said(&refused));
}

//! A real API server takes every manifest, strictly, as `kubectl` sends it; and its controllers make pods of them.

use std::process::Command;
use std::time::Duration;

use e2e::real::{ControlPlane, ControlPlaneOptions, Crds, succeed};
use e2e::tools::Tools;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::documents;

/// All but the kustomization, which is no object.
const FILES: [&str; 8] = [
    "calico.yaml",
    "kube-ipam.yaml",
    "ipclaims.yaml",
    "policy.yaml",
    "uninstall.yaml",
    "fixed-ip-test.yaml",
    "fixed-ip-statefulset.yaml",
    "random-ip-test.yaml",
];
const LIMIT: Duration = Duration::from_secs(60);

/// The text with its last comment, an example, made part of it.
pub fn uncommented(kustomization: &str) -> String {
    let (before, example) = kustomization.split_once("#\n# patches:").expect("an example of patches");
    let example = format!("# patches:{example}");
    let lines = example.lines().map(|line| line.strip_prefix("# ").or(line.strip_prefix('#')).unwrap_or(line));
    format!("{before}\n{}\n", lines.collect::<Vec<_>>().join("\n"))
}

struct Cluster {
    control_plane: ControlPlane,
    tools: Tools,
}

impl Cluster {
    /// `None` if it cannot run here, which has been said.
    async fn start() -> Option<Self> {
        kube_ipam::store::choose_tls();
        let tools = Tools::or_skip().unwrap()?;
        let options = ControlPlaneOptions { controllers: true, crds: Crds::None, ..Default::default() };
        let control_plane = ControlPlane::start(tools.clone(), options).await.unwrap();
        let namespaces: Api<Namespace> = Api::all(control_plane.client());
        let made = await_condition(namespaces, "kube-system", |n: Option<&Namespace>| n.is_some());
        tokio::time::timeout(LIMIT, made).await.unwrap().unwrap();
        Some(Self { control_plane, tools })
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(self.tools.path("kubectl"));
        command.env("KUBECONFIG", self.control_plane.kubeconfig()).current_dir(e2e::manifests::directory());
        command.env_remove("HTTPS_PROXY").env_remove("https_proxy").args(arguments);
        succeed(&mut command).unwrap()
    }

    fn client(&self) -> Client {
        self.control_plane.client()
    }

    /// A node that nobody runs, for controllers to count.
    async fn node(&self) {
        let node = json!({"metadata": {"name": "node1", "labels": {"kubernetes.io/os": "linux"}}});
        let nodes: Api<Node> = Api::all(self.client());
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    }

    /// Waits until the controller has made a pod for the node, which takes account, priority and admission.
    async fn has_pod(&self, name: &str) {
        let sets: Api<DaemonSet> = Api::namespaced(self.client(), "kube-system");
        let counted = |set: Option<&DaemonSet>| {
            let status = set.and_then(|set| set.status.as_ref());
            status.is_some_and(|s| s.current_number_scheduled == 1 && s.updated_number_scheduled == Some(1))
        };
        let waited = tokio::time::timeout(LIMIT, await_condition(sets.clone(), name, counted)).await;
        let Err(_) = waited else { return };
        panic!(
            "no pod of {name}: {:?}\n{}",
            sets.get(name).await.unwrap().status,
            self.kubectl(&["get", "events", "-A"])
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_takes_every_manifest_strictly() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.node().await;
    let written = std::fs::read_dir(e2e::manifests::directory()).unwrap();
    let written = written.filter(|entry| entry.as_ref().unwrap().path().is_file()).count();
    assert_eq!(written, FILES.len() + 1, "a file of yaml/ is not tested");
    let strict = ["apply", "--server-side", "--validate=strict"];
    for file in FILES {
        let said = cluster.kubectl(&[&strict[..], &["--dry-run=server", "-f", file]].concat());
        assert_eq!(said.lines().count(), documents(file).len(), "{file}: {said}");
        assert!(!said.to_lowercase().contains("warning"), "{file}: {said}");
    }
    // A mistake is found by this.
    let wrong = std::fs::read_to_string(e2e::manifests::directory().join("uninstall.yaml")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), wrong.replace("maxUnavailable", "maxUnavailabel")).unwrap();
    let mut command = Command::new(cluster.tools.path("kubectl"));
    command.env("KUBECONFIG", cluster.control_plane.kubeconfig()).args(strict).args(["--dry-run=server", "-f"]);
    assert!(succeed(command.arg(file.path())).unwrap_err().to_string().contains("maxUnavailabel"));

    cluster.kubectl(&["apply", "-f", "calico.yaml"]);
    cluster.has_pod("calico-node").await;
    for definition in documents("calico.yaml").iter().filter(|d| d["kind"] == "CustomResourceDefinition") {
        let name = format!("crd/{}", definition["metadata"]["name"].as_str().unwrap());
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &name]);
        let non_structural = "-o=jsonpath={.status.conditions[?(@.type==\"NonStructuralSchema\")].message}";
        assert_eq!(cluster.kubectl(&["get", &name, non_structural]), "");
    }
    cluster.kubectl(&["apply", "-k", "."]);
    cluster.has_pod("kube-ipam").await;
    cluster.kubectl(&["apply", "-f", "uninstall.yaml"]);
    cluster.has_pod("kube-ipam").await;
    let set = cluster.kubectl(&["-n", "kube-system", "get", "daemonset", "kube-ipam", "-o", "json"]);
    let pod = serde_json::from_str::<Value>(&set).unwrap()["spec"]["template"]["spec"].clone();
    assert_eq!(pod["initContainers"], Value::Null, "the uninstaller would install first");
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    cluster.kubectl(&["delete", "--wait=false", "-f", "kube-ipam.yaml"]);
}

/// The same with every whole number written like one: kustomize makes 0 of 0.0.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 => json!(float as i64),
            _ => value.clone(),
        },
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => fields.iter().map(|(key, field)| (key.clone(), plain(field))).collect(),
        other => other.clone(),
    }
}

/// Needs kubectl alone.
#[test]
fn the_kustomization_is_kube_ipam_yaml_and_its_example_changes_the_network() {
    let Some(tools) = Tools::or_skip().unwrap() else { return };
    let render = |directory: &std::path::Path| {
        let text = succeed(Command::new(tools.path("kubectl")).arg("kustomize").arg(directory)).unwrap();
        e2e::manifests::parse(&text).unwrap().iter().map(plain).collect::<Vec<_>>()
    };
    let rendered = render(&e2e::manifests::directory());
    let written: Vec<Value> = documents("kube-ipam.yaml").iter().map(plain).collect();
    assert_eq!(rendered.len(), written.len());
    for object in &written {
        assert!(rendered.contains(object), "{} {} is rendered otherwise", object["kind"], object["metadata"]["name"]);
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(e2e::manifests::directory().join("kube-ipam.yaml"), directory.path().join("kube-ipam.yaml")).unwrap();
    let text = std::fs::read_to_string(e2e::manifests::directory().join("kustomization.yaml")).unwrap();
    std::fs::write(directory.path().join("kustomization.yaml"), uncommented(&text)).unwrap();
    let changed = render(directory.path());
    let config = e2e::manifests::only(&changed, "ConfigMap", "kube-ipam").unwrap();
    let ipam: Value = serde_json::from_str(config["data"]["ipam.json"].as_str().unwrap()).unwrap();
    assert_eq!(ipam["subnet"], "192.168.0.0/16");
}

//! A cluster without nodes or controllers, and one plugin call at a time by the test's hand.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use calico::{ApiGroup, Entry, IPAMBlock};
use e2e::embedded::{Cluster, Options, apiserver};
use e2e::standin::CniOutcome;
use e2e::tools;
use kube_ipam::claim::Claim;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

pub const FIXED: &str = "10.244.0.216";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
const CALICO: &str = "/apis/crd.projectcalico.org/v1";
const CLAIMS: &str = "/kube-ipam/v1/kube-subnet/claims/";

pub struct Ground {
    pub cluster: Cluster,
    pub directory: TempDir,
    /// What the plugin reads on stdin.
    pub conf: Value,
}

/// A plugin call before it is made.
pub struct Call {
    pub environment: BTreeMap<&'static str, OsString>,
    pub stdin: Vec<u8>,
    /// Words before the binary: a program that runs it.
    pub under: Vec<String>,
}

/// What both stores hold, by their revisions: equal exactly as long as nothing is written.
#[derive(Debug, PartialEq)]
pub struct State {
    pub api: u64,
    pub etcd: i64,
}

impl Ground {
    /// Two ready nodes, n1 and n2, the guide's pool, an API server and etcd.
    pub async fn prepare() -> Self {
        Self::with(Options::default()).await
    }

    /// The same behind TLS with HTTP/2, as API servers are in clusters.
    #[allow(dead_code)]
    pub async fn over_tls() -> Self {
        Self::with(Options { tls: true, ..Options::default() }).await
    }

    /// The same with other options; without definitions those of Calico's older group.
    pub async fn with(options: Options) -> Self {
        let crds = if options.crds.is_empty() { calico::crds() } else { options.crds };
        let is_older = crds.iter().any(|crd| crd.spec.group == ApiGroup::Crd.group());
        let group = if is_older { ApiGroup::Crd } else { ApiGroup::V3 };
        let options =
            Options { crds, etcd: true, nodes: vec!["n1".into(), "n2".into()], without_controllers: true, ..options };
        let cluster = Cluster::start(options).await.unwrap();
        let mut pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "default-ipv4-ippool"}, "spec": {
            "cidr": "10.244.0.0/16", "blockSize": 26, "nodeSelector": "all()", "allowedUses": ["Workload"],
        }});
        group.shape(&mut pool);
        cluster.server().create(&group.path(&format!("{CALICO}/ippools")).unwrap(), &pool).unwrap();
        let directory = TempDir::with_prefix("faults-").unwrap();
        std::fs::create_dir(directory.path().join("log")).unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let conf = json!({
            "cniVersion": "1.1.0", "name": "k8s-pod-network", "type": "calico", "nodename": "n1",
            "log_file_path": path("log/cni.log"),
            "kubernetes": {"kubeconfig": cluster.kubeconfig()},
            "ipam": {
                "type": "kube-ipam", "name": "kube-subnet", "etcdConfig": {"etcdURL": cluster.etcd().unwrap().url()},
                "subnet": "10.244.0.0/16", "rangeStart": "10.244.0.10", "rangeEnd": "10.244.0.200",
                "gateway": "10.244.0.1", "waitSeconds": 2, "takeover": {"graceSeconds": 1}, "stateDir": path("state"),
            }
        });
        Self { cluster, directory, conf }
    }

    pub fn server(&self) -> &apiserver::Server {
        self.cluster.server()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log/kube-ipam.log")).unwrap_or_default()
    }

    /// Creates a pod on a node, of a Deployment named like the pod without its last word.
    pub fn pod(&self, name: &str, node: &str, annotations: Value) {
        let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
        let pod = json!({
            "metadata": {
                "name": name, "annotations": annotations, "labels": {"pod-template-hash": "h1"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-h1"), "uid": "rs", "controller": true,
                }],
            },
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        });
        self.server().create(PODS, &pod).unwrap();
    }

    pub fn random(&self, name: &str) {
        self.pod(name, "n1", json!({}));
    }

    pub fn fixed(&self, name: &str) {
        self.pod(name, "n1", json!({"kube-ipam.ip": FIXED}));
    }

    /// What a kubelet reports of a pod that runs.
    pub fn runs(&self, name: &str, outcome: &CniOutcome) {
        let addresses = bare(outcome);
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"phase": "Running", "podIP": addresses.first(), "podIPs": ips});
        self.server().set_status(PODS, name, &status).unwrap();
    }

    /// A call as a runtime makes it.
    pub fn call(&self, verb: &str, pod: &str, container: &str) -> Call {
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_INFRA_CONTAINER_ID={container}"
        );
        let environment = [
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", container.into()),
            ("CNI_NETNS", format!("/var/run/netns/{container}").into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", "/opt/cni/bin".into()),
            ("CNI_ARGS", arguments.into()),
        ];
        Call { environment: environment.into(), stdin: self.conf.to_string().into_bytes(), under: Vec::new() }
    }

    pub async fn add(&self, pod: &str, container: &str) -> CniOutcome {
        self.call("ADD", pod, container).run().await
    }

    pub async fn del(&self, pod: &str, container: &str) -> CniOutcome {
        self.call("DEL", pod, container).run().await
    }

    /// GC with these containers valid, on eth0.
    pub async fn gc(&self, valid: &[&str]) -> CniOutcome {
        let valid: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        self.call("GC", "", "").with("/cni.dev~1valid-attachments", json!(valid)).run().await
    }

    pub async fn state(&self) -> State {
        State { api: self.server().revision(), etcd: self.etcd_revision().await }
    }

    async fn etcd_revision(&self) -> i64 {
        let mut client = self.cluster.etcd().unwrap().client().await.unwrap();
        client.get("any", None).await.unwrap().header().unwrap().revision()
    }

    pub async fn claims(&self) -> Vec<Claim> {
        let mut client = self.cluster.etcd().unwrap().client().await.unwrap();
        let prefix = etcd_client::GetOptions::new().with_prefix();
        let answer = client.get(CLAIMS, Some(prefix)).await.unwrap();
        answer.kvs().iter().map(|pair| serde_json::from_slice(pair.value()).unwrap()).collect()
    }

    /// Allocated addresses with the containers that have them.
    pub fn allocated(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (_, object) in self.server().snapshot().into_iter().filter(|(id, _)| id.starts_with("ipamblocks")) {
            let block: IPAMBlock = serde_json::from_value(object).unwrap();
            for (address, entry) in block.spec.entries() {
                if let Entry::Used { attribute, .. } = entry {
                    let container = attribute.handle().unwrap().strip_prefix("k8s-pod-network.").unwrap();
                    found.push((address.to_string(), container.to_owned()));
                }
            }
        }
        found.sort();
        found
    }

    fn handles(&self) -> Vec<String> {
        let snapshot = self.server().snapshot();
        let handles = snapshot.iter().filter(|(id, _)| id.starts_with("ipamhandles"));
        handles.map(|(_, handle)| handle["spec"]["handleID"].as_str().unwrap().to_owned()).collect()
    }

    /// What a container may leave, in words.
    pub async fn leftovers(&self, container: &str) -> Vec<String> {
        let mut found: Vec<String> = self
            .allocated()
            .into_iter()
            .filter(|(_, c)| c == container)
            .map(|(ip, _)| format!("address {ip}"))
            .collect();
        found.extend(self.handles().into_iter().filter(|h| h.ends_with(&format!(".{container}"))));
        let holds = |c: &Claim| c.holder.as_ref().is_some_and(|h| h.container_id == container);
        found.extend(self.claims().await.iter().filter(|c| holds(c)).map(|c| format!("claim {}", c.address)));
        found
    }

    /// `kube-ipam check` finds nothing.
    pub async fn assert_sound(&self, after: &str) {
        let output = Command::new(tools::kube_ipam().unwrap())
            .args(["check", "--settle", "0", "--skip", "ranges", "--network", "kube-subnet", "--kubeconfig"])
            .arg(self.cluster.kubeconfig())
            .args(["--etcd-url", &self.cluster.etcd().unwrap().url()])
            .env_remove("CNI_COMMAND")
            .output();
        let output = output.await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{after}: kube-ipam check: {text}");
    }
}

impl Call {
    /// The same with another value on stdin, by JSON pointer; null takes it away.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut conf: Value = serde_json::from_slice(&self.stdin).unwrap();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = conf.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        let key = key.replace("~1", "/");
        if value.is_null() {
            parent.remove(&key)
        } else {
            parent.insert(key, value)
        };
        self.stdin = conf.to_string().into_bytes();
        self
    }

    /// The same on another node.
    pub fn on(self, node: &str) -> Self {
        self.with("/nodename", json!(node))
    }

    pub fn set(mut self, variable: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.insert(variable, value.into());
        self
    }

    pub fn unset(mut self, variable: &'static str) -> Self {
        self.environment.remove(variable);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// The same run by another program, whose last words are the binary.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Starts it; its stdin is written and closed.
    pub async fn start(&self) -> Child {
        let binary = tools::kube_ipam().unwrap();
        let mut command = match self.under.split_first() {
            None => Command::new(binary),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(binary);
                command
            }
        };
        for variable in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"] {
            command.env_remove(variable);
        }
        command.envs(&self.environment).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        // A plugin that has read enough closes it early.
        let _ = child.stdin.take().unwrap().write_all(&self.stdin).await;
        child
    }

    pub async fn run(&self) -> CniOutcome {
        let started = Instant::now();
        end(self.start().await, started).await
    }
}

/// Waits for the end of a plugin.
pub async fn end(mut child: Child, started: Instant) -> CniOutcome {
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (_, _, status) = tokio::join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr), child.wait());
    CniOutcome { exit: status.unwrap().code(), stdout, stderr, took: started.elapsed() }
}

/// The addresses of an answer without their masks.
pub fn bare(outcome: &CniOutcome) -> Vec<String> {
    outcome.addresses().iter().map(|a| a.split('/').next().unwrap().to_owned()).collect()
}

#[track_caller]
pub fn assert_ok(outcome: &CniOutcome) {
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// One JSON document with this code, a message that says all of `parts`, and a remedy.
#[track_caller]
pub fn assert_refused(outcome: &CniOutcome, code: u32, parts: &[&str]) {
    let Some(error) = outcome.error() else { panic!("no CNI error: {outcome:?}") };
    assert_eq!(error.code, code, "{outcome:?}");
    assert!(!error.details.is_empty(), "no remedy: {outcome:?}");
    let text = outcome.error_text();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(outcome.json()["cniVersion"].is_string(), "{outcome:?}");
}

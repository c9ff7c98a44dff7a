//! The containers that run kube-ipam: flags, paths, ports and images agree with the binary and with each other.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};

use crate::{documents, object};

const IMAGE: &str = concat!("kube-ipam:", env!("CARGO_PKG_VERSION"));

/// A container and the pod that it is in.
struct Container {
    file: &'static str,
    pod: Value,
    container: Value,
}

/// All containers of our image.
fn ours() -> Vec<Container> {
    let mut found = Vec::new();
    for file in ["calico.yaml", "kube-ipam.yaml", "uninstall.yaml"] {
        for workload in documents(file) {
            let pod = &workload["spec"]["template"]["spec"];
            for container in ["initContainers", "containers"].iter().flat_map(|key| pod[key].as_array()).flatten() {
                if container["image"].as_str().unwrap().starts_with("kube-ipam") {
                    found.push(Container { file, pod: pod.clone(), container: container.clone() });
                }
            }
        }
    }
    assert_eq!(found.len(), 5, "install and agent twice, and uninstall");
    found
}

impl Container {
    fn args(&self) -> Vec<String> {
        self.container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect()
    }

    fn flag(&self, name: &str) -> Option<String> {
        self.args().iter().find_map(|a| a.strip_prefix(&format!("--{name}=")).map(str::to_owned))
    }

    fn command(&self) -> String {
        self.args()[0].clone()
    }

    /// What is mounted: path inside to the volume, and whether it can be written to.
    fn mounts(&self) -> BTreeMap<String, (Value, bool)> {
        let volumes = self.pod["volumes"].as_array().unwrap();
        let mounts = self.container["volumeMounts"].as_array().unwrap();
        let of = |mount: &Value| {
            let volume = volumes.iter().find(|v| v["name"] == mount["name"]).expect("a volume of that name");
            (mount["mountPath"].as_str().unwrap().to_owned(), (volume.clone(), mount["readOnly"] != true))
        };
        mounts.iter().map(of).collect()
    }

    fn describe(&self) -> String {
        format!("{}: container {}", self.file, self.container["name"])
    }
}

#[test]
fn the_binary_knows_every_command_and_flag() {
    for container in ours() {
        let mut command = Command::new(e2e::tools::kube_ipam().unwrap());
        command.args(container.args()).arg("--help").env("NODENAME", "node1").env_remove("CNI_COMMAND");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", container.describe());
        // Without the flags it would print help as well: a flag that does not exist must be refused.
        let output = command.arg("--no-such-flag").output().unwrap();
        assert!(output.status.success(), "help comes first");
    }
    let mut wrong = Command::new(e2e::tools::kube_ipam().unwrap());
    wrong.args(["agent", "--no-such-flag=1", "--help"]).env_remove("CNI_COMMAND");
    assert!(!wrong.output().unwrap().status.success(), "--help hides flags that do not exist");
}

#[test]
fn there_is_one_image_and_it_is_this_version() {
    for container in ours() {
        assert_eq!(container.container["image"], IMAGE, "{}", container.describe());
        assert_eq!(container.container["imagePullPolicy"], "IfNotPresent");
        assert!(container.container.get("command").is_none(), "{}: the image's entrypoint is it", container.describe());
    }
    let images = documents("kustomization.yaml")[0]["images"].clone();
    let (name, tag) = IMAGE.split_once(':').unwrap();
    assert_eq!(images, json!([{"name": name, "newName": name, "newTag": tag}]));
}

#[test]
fn the_hosts_directories_have_their_own_paths_inside() {
    for container in ours() {
        for (path, (volume, _)) in container.mounts() {
            if let Some(host) = volume["hostPath"]["path"].as_str() {
                assert_eq!(host, path, "{}", container.describe());
                assert_eq!(volume["hostPath"]["type"], "DirectoryOrCreate", "{}: {path}", container.describe());
            }
        }
    }
}

#[test]
fn every_file_that_a_container_uses_is_where_it_can_be_used() {
    for container in ours() {
        let mounts = container.mounts();
        let under = |path: &str| {
            let found = mounts.iter().find(|(mount, _)| path.starts_with(&format!("{mount}/")) || path == *mount);
            found.unwrap_or_else(|| panic!("{}: {path} is not mounted", container.describe())).1.clone()
        };
        let keeps_conflist = container.flag("ipam").is_some();
        match container.command().as_str() {
            "install" => {
                assert!(under("/opt/cni/bin").1);
                assert!(under("/etc/cni/net.d").1);
            }
            "agent" => {
                assert!(under(kube_ipam::netconf::STATE_DIR).1);
                assert_eq!(under("/etc/cni/net.d").1, keeps_conflist, "{}", container.describe());
                assert!(!under("/etc/kubernetes/ssl/kubernetes.pem").1, "certificates are only read");
            }
            "uninstall" => assert!(under("/etc/cni/net.d").1 && !under(kube_ipam::netconf::STATE_DIR).1),
            other => panic!("{other}"),
        }
        if let Some(file) = container.flag("ipam") {
            let (volume, _) = under(&file);
            let map = object(container.file, "ConfigMap", volume["configMap"]["name"].as_str().unwrap());
            assert!(map["data"][file.rsplit('/').next().unwrap()].is_string(), "{file} is no key of the ConfigMap");
            let ipam: Value = serde_json::from_str(map["data"]["ipam.json"].as_str().unwrap()).unwrap();
            let kubeconfig = container.flag("kubeconfig-out").expect("the conflist names a kubeconfig");
            assert_eq!(ipam["kubeConfig"], kubeconfig.as_str());
            assert!(under(&kubeconfig).1);
        }
    }
}

/// In calico.yaml, Calico's own installer writes the conflist, and kubeConfig is the nodes' own.
#[test]
fn in_calico_yaml_nothing_but_the_binary_is_installed() {
    let node = object("calico.yaml", "DaemonSet", "calico-node");
    let order: Vec<&str> = node["spec"]["template"]["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["upgrade-ipam", "install-kube-ipam", "install-cni", "mount-bpffs"]);
    for container in ours().iter().filter(|c| c.file == "calico.yaml") {
        assert_eq!((container.flag("ipam"), container.flag("kubeconfig-out")), (None, None));
    }
}

#[test]
fn the_probes_ask_where_the_agent_listens() {
    for container in ours().iter().filter(|c| c.command() == "agent") {
        assert_eq!(container.pod["hostNetwork"], true);
        let address: std::net::SocketAddr = container.flag("metrics-address").unwrap().parse().unwrap();
        for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
            let get = &container.container[probe]["httpGet"];
            assert_eq!(get, &json!({"host": address.ip(), "port": address.port(), "path": path}), "{probe}");
        }
        let env = container.container["env"].as_array().unwrap();
        let name = env.iter().find(|e| e["name"] == "NODENAME").expect("the node's name");
        assert_eq!(name["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
    }
}

/// With these the benchmark measures how much memory an agent takes.
#[test]
fn the_allocator_is_told_to_give_memory_back() {
    for container in ours().iter().filter(|c| c.command() == "agent") {
        let env = container.container["env"].as_array().unwrap();
        for (name, value) in kube_ipam::agent::ALLOCATOR {
            assert!(env.contains(&json!({"name": name, "value": value})), "{}: {name}", container.describe());
        }
    }
}

#[test]
fn our_containers_are_confined() {
    for container in ours() {
        let context = &container.container["securityContext"];
        let what = container.describe();
        assert_eq!(context["allowPrivilegeEscalation"], false, "{what}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{what}");
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{what}");
        assert!(context["privileged"] != true, "{what}");
        assert_eq!(container.pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{what}");
        let user = [&context["runAsUser"], &container.pod["securityContext"]["runAsUser"]];
        assert!(user.contains(&&json!(0)), "{what}: the socket's directory is root's");
    }
}

/// Whatever a node is tainted with, it needs addresses.
#[test]
fn the_agents_run_on_every_node_before_anything_else() {
    for container in ours() {
        let pod = &container.pod;
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]), "{}", container.describe());
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
        assert_eq!(pod["hostNetwork"], true);
    }
}

/// An agent that still ran would undo what it does.
#[test]
fn the_uninstaller_takes_the_agents_place() {
    let (agent, uninstaller) =
        (object("kube-ipam.yaml", "DaemonSet", "kube-ipam"), object("uninstall.yaml", "DaemonSet", "kube-ipam"));
    assert_eq!(uninstaller["metadata"]["namespace"], agent["metadata"]["namespace"]);
    assert_eq!(uninstaller["spec"]["selector"], agent["spec"]["selector"], "a selector cannot be changed");
}

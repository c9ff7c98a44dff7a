use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use calico::IPPool;
use serde_json::{Value, json};

use super::*;

struct Node {
    directory: tempfile::TempDir,
    files: NodeFiles,
}

fn calicos() -> Value {
    let main = json!({"type": "calico", "mtu": 1440, "ipam": {"type": "calico-ipam", "assign_ipv6": "true"}});
    json!({"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [main, {"type": "bandwidth"}]})
}

fn section() -> Value {
    json!({"type": "kube-ipam", "name": "kube-subnet", "subnet": "10.244.0.0/16"})
}

impl Node {
    fn new() -> Node {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("net.d")).unwrap();
        fs::create_dir(path("config")).unwrap();
        let files = NodeFiles {
            cni_conf_dir: path("net.d"),
            ipam: Some(path("config/ipam.json")),
            kubeconfig: None,
            service_account: path("account"),
        };
        let node = Node { files, directory };
        node.write("config/ipam.json", &section().to_string());
        node
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> Value {
        read_json(&self.path(name)).unwrap()
    }

    /// What lies in the runtime's directory.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("net.d")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn restore(directory: &Path) {
    restore_calico(directory).into_iter().for_each(|edit| drop(edit.unwrap()));
}

#[test]
fn calicos_list_gets_our_section_and_has_its_own_again() {
    let node = Node::new();
    node.write("net.d/10-calico.conflist", &calicos().to_string());
    fs::set_permissions(node.path("net.d/10-calico.conflist"), Permissions::from_mode(0o640)).unwrap();
    node.write("net.d/00-broken.conf", r#"{"name": "no type"}"#);
    node.write("net.d/99-broken.conflist", "{");
    let outcome = node.files.put(None, &mut Judge::default());
    assert!(outcome.unused.is_none(), "{outcome:?}");
    assert!(outcome.failed.is_empty() && outcome.has_list, "{outcome:?}");
    assert_eq!(outcome.written.len(), 1);
    let mut expected = calicos();
    expected["plugins"][0]["ipam"] = section();
    assert_eq!(node.read("net.d/10-calico.conflist"), expected);
    let mode = fs::metadata(node.path("net.d/10-calico.conflist")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let again = node.files.put(None, &mut Judge::default());
    assert!(again.written.is_empty() && again.failed.is_empty(), "{again:?}");
    let kept = "10-calico.conflist.before-kube-ipam";
    assert_eq!(node.names(), ["00-broken.conf", "10-calico.conflist", kept, "99-broken.conflist"]);
    restore(&node.files.cni_conf_dir);
    assert_eq!(node.read("net.d/10-calico.conflist"), calicos());
    assert_eq!(node.names(), ["00-broken.conf", "10-calico.conflist", "99-broken.conflist"]);
    restore(&node.files.cni_conf_dir);
    assert_eq!(node.read("net.d/10-calico.conflist"), calicos());
}

/// The template names no subnet: what Calico's section says stays so at each pass, and comes back as it was.
#[test]
fn what_calicos_section_says_of_families_stays_in_force() {
    let node = Node::new();
    let template = json!({"type": "kube-ipam", "name": "kube-subnet"});
    node.write("config/ipam.json", &template.to_string());
    node.write("net.d/10-calico.conflist", &calicos().to_string());
    let mut expected = calicos();
    expected["plugins"][0]["ipam"] = template;
    expected["plugins"][0]["ipam"]["assign_ipv6"] = "true".into();
    for written in [1, 0] {
        let outcome = node.files.put(None, &mut Judge::by(Pools::Known(Vec::new())));
        assert!(outcome.failed.is_empty() && outcome.written.len() == written, "{outcome:?}");
        assert_eq!(node.read("net.d/10-calico.conflist"), expected);
        assert!(node.files.net().unwrap().ipam.assigns(calico::Family::V6));
    }
    restore(&node.files.cni_conf_dir);
    assert_eq!(node.read("net.d/10-calico.conflist"), calicos());
}

/// Multus copies Calico's list into a file of its own, or names it; other plugins come first with what they are.
#[test]
fn what_the_runtime_really_uses_is_judged() {
    let ours = |kind: &str| json!({"name": "n", "plugins": [{"type": "calico", "ipam": {"type": kind}}]});
    let single = json!({"type": "calico", "ipam": {"type": "calico-ipam"}});
    let multus = |more: Value| {
        let mut conf = json!({"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        conf
    };
    for (conf, said) in [
        (multus(json!({"delegates": [ours("calico-ipam")]})), Some("delegates[0] is a copy")),
        (multus(json!({"delegates": [single]})), Some("delegates[0] is a copy")),
        (multus(json!({"delegates": [ours("kube-ipam"), {"type": "macvlan"}]})), None),
        (multus(json!({"delegates": [{"type": "flannel"}]})), Some("default network is not Calico's")),
        (multus(json!({"clusterNetwork": "/host/etc/cni/net.d/10-calico.conflist"})), None),
        (multus(json!({"clusterNetwork": "k8s-pod-network"})), None),
        (multus(json!({"clusterNetwork": "another"})), Some("clusterNetwork is no configuration")),
        (multus(json!({"type": "multus-shim"})), Some("neither delegates nor clusterNetwork")),
        (multus(json!({"delegates": []})), Some("neither delegates nor clusterNetwork")),
        (json!({"name": "n", "type": "bridge", "ipam": {"type": "host-local"}}), Some("another network plugin's")),
    ] {
        let node = Node::new();
        node.write("net.d/10-calico.conflist", &calicos().to_string());
        node.write("net.d/00-first.conf", &conf.to_string());
        let outcome = node.files.put(None, &mut Judge::default());
        assert!(outcome.failed.is_empty(), "{outcome:?}");
        assert_eq!(node.read("net.d/10-calico.conflist")["plugins"][0]["ipam"], section());
        let unused = outcome.unused.map(|unused| unused.to_string());
        match said {
            None => assert_eq!(unused, None, "{conf}"),
            Some(said) => {
                let unused = unused.unwrap_or_else(|| panic!("{conf} is taken for ours"));
                assert!(unused.contains("00-first.conf") && unused.contains(said), "{conf}: {unused}");
            }
        }
        // Behind Calico's list it does not matter.
        fs::rename(node.path("net.d/00-first.conf"), node.path("net.d/90-first.conf")).unwrap();
        assert!(node.files.put(None, &mut Judge::default()).unused.is_none(), "{conf}");
    }
}

#[test]
fn a_bad_section_is_never_written() {
    let node = Node::new();
    node.write("net.d/10-calico.conflist", &calicos().to_string());
    for (text, said) in [
        ("{", "this is no JSON"),
        (r#"{"type": "host-local", "subnet": "10.244.0.0/16"}"#, "\"host-local\""),
        (r#"{"type": "kube-ipam", "subnet": "10.244.0.0/33"}"#, "10.244.0.0/33"),
    ] {
        node.write("config/ipam.json", text);
        let outcome = node.files.put(None, &mut Judge::default());
        let texts = outcome.failed.iter().map(ToString::to_string).collect::<String>();
        assert!(texts.contains(said) && texts.contains("ipam.json"), "{texts}");
        assert_eq!(node.read("net.d/10-calico.conflist"), calicos());
        assert_eq!(node.names(), ["10-calico.conflist"]);
    }
}

#[test]
fn a_section_that_no_pool_covers_is_not_put_in_place_and_the_last_good_one_is_kept() {
    let node = Node::new();
    let list = "net.d/10-calico.conflist";
    let pool = |cidr: &str| {
        serde_json::from_value::<IPPool>(json!({"metadata": {"name": "p"}, "spec": {"cidr": cidr}})).unwrap()
    };
    let ours = |node: &Node| node.read(list)["plugins"][0]["ipam"].clone();
    node.write(list, &calicos().to_string());
    let mut judge = Judge::by(Pools::Known(vec![pool("10.200.0.0/16")]));
    let said = |outcome: &Outcome| outcome.failed.iter().map(ToString::to_string).collect::<String>();
    let outcome = node.files.put(None, &mut judge);
    assert!(said(&outcome).contains("subnet 10.244.0.0/16 of the CNI config is not covered"), "{outcome:?}");
    assert!(said(&outcome).contains("p 10.200.0.0/16") && said(&outcome).contains("ipam.json"), "{outcome:?}");
    assert_eq!(node.read(list), calicos());
    judge.pools = Pools::Unknown;
    assert!(said(&node.files.put(None, &mut judge)).contains("not known yet"));
    assert_eq!(node.read(list), calicos());

    judge.pools = Pools::Known(vec![pool("10.244.0.0/16")]);
    assert_eq!(said(&node.files.put(None, &mut judge)), "");
    assert_eq!(ours(&node), section());
    // Another section that no pool covers; Calico's installer writes its list anew meanwhile.
    node.write("config/ipam.json", &json!({"type": "kube-ipam", "subnet": "10.99.0.0/16"}).to_string());
    assert!(said(&node.files.put(None, &mut judge)).contains("subnet 10.99.0.0/16"));
    assert_eq!(ours(&node), section());
    node.write(list, &calicos().to_string());
    assert!(said(&node.files.put(None, &mut judge)).contains("subnet 10.99.0.0/16"));
    assert_eq!(ours(&node), section());
    // What was good is not left for a pool that went.
    node.write("config/ipam.json", &section().to_string());
    judge.pools = Pools::Known(Vec::new());
    node.write(list, &calicos().to_string());
    assert_eq!(said(&node.files.put(None, &mut judge)), "");
    assert_eq!(ours(&node), section());
}

#[test]
fn without_a_list_there_is_nothing_to_do_yet() {
    let node = Node::new();
    let outcome = node.files.put(None, &mut Judge::default());
    assert!(outcome.failed.is_empty() && outcome.written.is_empty() && !outcome.has_list, "{outcome:?}");
}

#[test]
fn the_binary_is_replaced_while_it_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kube-ipam");
    fs::write(&path, "an older release").unwrap();
    let in_use = fs::File::open(&path).unwrap();
    assert!(place_binary(directory.path()).unwrap().is_some());
    assert_eq!(place_binary(directory.path()).unwrap(), None);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(io::read_to_string(in_use).unwrap(), "an older release");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let missing = place_binary(&directory.path().join("missing")).unwrap_err().to_string();
    assert!(missing.contains("missing/kube-ipam: No such file"), "{missing}");
}

#[tokio::test]
async fn changes_are_heard_of() {
    let node = Node::new();
    let mut watcher = Watcher::new(&node.files.directories()).unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(100), watcher.changed()).await;
    assert!(quiet.is_err());
    replace(&node.path("net.d/10-calico.conflist"), b"{}", 0o600).unwrap();
    watcher.changed().await.unwrap();
    node.write("config/ipam.json", "{}");
    watcher.changed().await.unwrap();
    fs::remove_dir_all(node.path("config")).unwrap();
    let gone = async { while watcher.changed().await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    let error = Watcher::new(&node.files.directories()).err().unwrap().to_string();
    assert!(error.contains("config: No such file"), "{error}");
}

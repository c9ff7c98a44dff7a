//! Links, pipes and directories where a file of ours should be: none is followed, waited for, or written through.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use e2e::tools;
use kube_ipam::cni::invocation;
use kube_ipam::service::state::{Note, State};
use serde_json::json;
use tempfile::TempDir;

use super::ground::{Ground, assert_ok, bare};
use super::process::{Agent, until};

fn private(path: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).unwrap();
}

fn note(container: &str) -> Note {
    let variables =
        [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", container), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")];
    let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
    Note::of(&invocation(value).unwrap())
}

#[test]
fn a_note_is_neither_read_nor_written_through_a_link() {
    let directory = TempDir::with_prefix("hostile-").unwrap();
    let (state, elsewhere) = (directory.path().join("state"), directory.path().join("elsewhere"));
    private(&state);
    let written = State::open(&state);
    assert!(written.put_note("uid-1", &note("mine")));
    assert!(written.note("uid-1").unwrap().is_of("mine", "eth0"));
    fs::rename(state.join("uid-1.pod"), &elsewhere).unwrap();
    symlink(&elsewhere, state.join("uid-1.pod")).unwrap();
    assert_eq!(written.note("uid-1"), None, "it was read through the link");
    let before = fs::read(&elsewhere).unwrap();
    symlink(&elsewhere, state.join("uid-1.part")).unwrap();
    assert!(written.put_note("uid-1", &note("other")), "a link is replaced");
    assert!(written.note("uid-1").unwrap().is_of("other", "eth0"));
    assert_eq!(fs::read(&elsewhere).unwrap(), before, "it was written through the link");
}

#[test]
fn a_pending_handle_is_not_read_through_a_link_and_no_pipe_is_waited_for() {
    let directory = TempDir::with_prefix("hostile-").unwrap();
    let (path, elsewhere) = (directory.path().join("state"), directory.path().join("elsewhere"));
    private(&path);
    let state = State::open(&path);
    assert!(state.put_pending(&calico::IPAMHandleSpec::new("net.mine").object()));
    assert_eq!(state.pending().len(), 1);
    fs::rename(path.join("net.mine.handle"), &elsewhere).unwrap();
    symlink(&elsewhere, path.join("net.mine.handle")).unwrap();
    for pipe in ["net.pipe.handle", "uid-1.pod"] {
        assert!(Command::new("mkfifo").arg(path.join(pipe)).status().unwrap().success());
    }
    fs::create_dir(path.join("net.directory.handle")).unwrap();
    assert_eq!(state.pending(), []);
    assert_eq!(state.note("uid-1"), None);
}

#[tokio::test]
async fn a_link_in_place_of_the_socket_is_neither_trusted_nor_replaced() {
    let ground = Ground::prepare().await;
    ground.random("a");
    private(&ground.path("state"));
    private(&ground.path("elsewhere"));
    let listener = std::os::unix::net::UnixListener::bind(ground.path("elsewhere/agent.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    symlink(ground.path("elsewhere/agent.sock"), ground.path("state/agent.sock")).unwrap();
    let outcome = ground.add_pod("a", "a").await;
    assert_ok(&outcome);
    assert_eq!(ground.recorded("a"), bare(&outcome));
    assert!(ground.log().contains("is not private to this user"), "{}", ground.log());
    assert!(listener.accept().is_err(), "somebody came");
    let said = Agent::refused(&ground, &ground.path("state")).await;
    assert!(said.contains("is there and is no socket"), "{said}");
    assert!(listener.accept().is_err(), "somebody came");
    assert!(fs::symlink_metadata(ground.path("state/agent.sock")).unwrap().is_symlink());
}

#[tokio::test]
async fn a_log_is_not_set_aside_through_a_link() {
    let ground = Ground::prepare().await;
    ground.random("a");
    fs::write(ground.path("precious"), "precious").unwrap();
    fs::write(ground.path("log/kube-ipam.log"), vec![b'\n'; (10 << 20) + 1]).unwrap();
    symlink(ground.path("precious"), ground.path("log/kube-ipam.log.1")).unwrap();
    assert_ok(&ground.add("a", "a").await);
    assert_eq!(fs::read_to_string(ground.path("precious")).unwrap(), "precious");
    assert!(fs::symlink_metadata(ground.path("log/kube-ipam.log.1")).unwrap().is_file(), "the link was replaced");
    assert!(ground.log().len() < 1 << 20 && ground.log().contains("\"ADD\""));
}

#[tokio::test]
async fn an_agent_beside_links_in_its_directory_serves_and_touches_nothing_else() {
    let ground = Ground::prepare().await;
    ground.random("a");
    private(&ground.path("state"));
    fs::write(ground.path("precious"), "precious").unwrap();
    let uid = ground.uid("a");
    let names = ["blocks.lock".to_owned(), format!("{uid}.pod"), format!("{uid}.lock"), "x.handle".to_owned()];
    let of_container = ["lock", "deleted", "claims", "block"].map(|end| format!("k8s-pod-network.a.{end}"));
    for name in names.iter().chain(&of_container) {
        symlink(ground.path("precious"), ground.path("state").join(name)).unwrap();
    }
    let agent = Agent::start(&ground, true).await;
    let outcome = ground.add_pod("a", "a").await;
    assert_ok(&outcome);
    ground.runs("a", &outcome);
    assert_ok(&ground.del_pod("a", "a").await);
    ground.remove("a").await;
    until("the address is given back", async || ground.recorded("a").is_empty().then_some(())).await;
    agent.stop().await;
    assert_eq!(fs::read_to_string(ground.path("precious")).unwrap(), "precious");
    assert_eq!(fs::metadata(ground.path("precious")).unwrap().permissions().mode() & 0o777, 0o644);
    ground.assert_sound("links").await;
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn the_nodes_files_are_replaced_and_never_written_through() {
    let ground = Ground::prepare().await;
    for directory in ["net.d", "bin", "account"] {
        fs::create_dir(ground.path(directory)).unwrap();
    }
    let mut list = ground.conflist();
    list["plugins"][0]["ipam"] = json!({"type": "calico-ipam"});
    let outside = [
        ("conflist", list.to_string()),
        ("before", "before".into()),
        ("kubeconfig", "key".into()),
        ("binary", "elf".into()),
    ];
    for (name, text) in &outside {
        fs::write(ground.path(name), text).unwrap();
    }
    let links = [
        ("net.d/10-calico.conflist", "conflist"),
        ("net.d/10-calico.conflist.before-kube-ipam", "before"),
        ("net.d/kube-ipam-kubeconfig", "kubeconfig"),
        ("bin/kube-ipam", "binary"),
    ];
    for (link, target) in links {
        symlink(ground.path(target), ground.path(link)).unwrap();
    }
    fs::write(ground.path("ipam.json"), ground.conf["ipam"].to_string()).unwrap();
    fs::write(ground.path("account/token"), "t").unwrap();
    fs::write(ground.path("account/ca.crt"), "c").unwrap();
    let flags = [
        ("--cni-conf-dir", "net.d"),
        ("--cni-bin-dir", "bin"),
        ("--ipam", "ipam.json"),
        ("--kubeconfig-out", "net.d/kube-ipam-kubeconfig"),
        ("--service-account", "account"),
    ];
    let mut command = Command::new(tools::kube_ipam().unwrap());
    command.arg("install").env("KUBERNETES_SERVICE_HOST", "10.96.0.1").env("KUBERNETES_SERVICE_PORT", "443");
    for (flag, path) in flags {
        command.arg(flag).arg(ground.path(path));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    for (name, text) in &outside {
        assert_eq!(&fs::read_to_string(ground.path(name)).unwrap(), text, "{name} was written through a link");
    }
    for (link, _) in links {
        assert!(fs::symlink_metadata(ground.path(link)).unwrap().is_file(), "{link} is still a link");
    }
    let written = fs::read_to_string(ground.path("net.d/10-calico.conflist")).unwrap();
    assert!(written.contains("kube-subnet"), "{written}");
}

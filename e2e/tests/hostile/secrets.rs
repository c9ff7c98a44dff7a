//! Secrets in whatever can be read, refused or broken, at the loudest log there is: nobody is told one. The plugin's own
//! cases are in tests/faults/credentials.rs; these are the agent's and the command line's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use e2e::embedded::Options;
use e2e::tools;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::ground::{Ground, assert_ok};
use super::process::{Agent, until};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InBsYW50ZWQifQ";
const PASSWORD: &str = "planted-correct-horse-battery";
/// The middle of a key, plain and as base64 has it once more.
const KEY: &str = "MHcCAQEEIPlantedPlantedPlantedPlantedPlantedPlantedPlanted";
const SECRETS: [&str; 3] = [TOKEN, PASSWORD, KEY];

fn pem() -> String {
    format!("-----BEGIN EC PRIVATE KEY-----\n{KEY}\n-----END EC PRIVATE KEY-----\n")
}

#[track_caller]
fn assert_silent(origin: &str, text: &str) {
    use base64::Engine as _;
    for secret in SECRETS {
        let encoded = base64::engine::general_purpose::STANDARD.encode(secret);
        for form in [secret, &encoded[..encoded.len() - 4]] {
            let place = text.find(form).map(|at| text[at.saturating_sub(200).min(at)..at].to_owned());
            assert_eq!(place, None, "{origin} tells {secret}");
        }
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn user(server: &str, user: Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "c", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}

/// Kubeconfigs that hold secrets and are of no use, by name.
fn kubeconfigs(ground: &Ground) -> Vec<String> {
    use base64::Engine as _;
    let url = ground.server().url();
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let unreadable = ground.path("missing").display().to_string();
    let files = [
        ("wrong-token", user(&url, json!({"token": TOKEN}))),
        ("basic", user(&url, json!({"username": "u", "password": PASSWORD}))),
        (
            "bad-key",
            user(&url, json!({"client-certificate-data": encoded("none"), "client-key-data": encoded(&pem())})),
        ),
        ("no-base64", user(&url, json!({"client-certificate-data": "%", "client-key-data": format!("%{KEY}")}))),
        ("no-file", user(&url, json!({"token": TOKEN, "tokenFile": unreadable, "password": PASSWORD}))),
        ("typed", user(&url, json!([TOKEN]))),
        ("typed-token", user(&url, json!({"token": {"of": TOKEN}}))),
        (
            "exec",
            user(
                &url,
                json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "/missing", "args": [TOKEN],
            "env": [{"name": "PASSWORD", "value": PASSWORD}], "interactiveMode": "Never"}}),
            ),
        ),
        ("cut-short", user(&url, json!({"token": TOKEN})).replace("\"token\":", "\"token\": [{ ")),
        ("yaml", format!("users:\n- name: c\n  user:\n    token: {TOKEN}\n   password: {PASSWORD}\n")),
        ("only-a-token", TOKEN.to_owned()),
        ("only-a-key", pem()),
        ("url", user(&url.replace("://", &format!("://u:{PASSWORD}@")), json!({}))),
    ];
    let write = |(name, text): (&str, String)| {
        fs::write(ground.path(name), text).unwrap();
        ground.path(name).display().to_string()
    };
    files.into_iter().map(write).chain([unreadable.clone()]).collect()
}

async fn refusing() -> Ground {
    let tokens: BTreeMap<String, String> = [("good".to_owned(), "kube-ipam".to_owned())].into();
    Ground::with(Options { tokens, ..Options::default() }).await
}

/// Runs the binary as loudly as it goes, for at most some seconds.
fn run(words: &[&str]) -> Output {
    Command::new("timeout")
        .arg("20")
        .arg(tools::kube_ipam().unwrap())
        .args(words)
        .env_remove("CNI_COMMAND")
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_and_an_agent_without_usable_credentials_tell_none_of_them() {
    let ground = refusing().await;
    let state = ground.path("state").display().to_string();
    for config in kubeconfigs(&ground) {
        let commands: [&[&str]; 4] = [
            &["show", "--kubeconfig", &config],
            &["check", "--settle", "0", "--kubeconfig", &config],
            &["claims", "--network", "kube-subnet", "--kubeconfig", &config],
            &["release", "10.244.0.9", "--yes", "--kubeconfig", &config],
        ];
        for command in commands {
            let output = run(command);
            assert!(!output.status.success(), "{config}: {}", said(&output));
            assert!(!said(&output).is_empty(), "{config}: not a word");
            assert_silent(&format!("{command:?}"), &said(&output));
        }
        let agent =
            ["agent", "--node-name", "n1", "--log-level", "trace", "--state-dir", &state, "--kubeconfig", &config];
        // One that is only refused tries again and again.
        let output = Command::new("timeout")
            .arg("3")
            .arg(tools::kube_ipam().unwrap())
            .args(agent)
            .env("RUST_LOG", "trace")
            .output()
            .unwrap();
        assert!(!said(&output).is_empty(), "{config}: not a word");
        assert_silent(&format!("the agent with {config}"), &said(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reaches_etcd_is_not_told_by_the_command_line() {
    let ground = Ground::prepare().await;
    let file = |name: &str, text: &str| {
        fs::write(ground.path(name), text).unwrap();
        ground.path(name).display().to_string()
    };
    let kubeconfig = ground.cluster.kubeconfig().display().to_string();
    let etcd = ground.cluster.etcd().unwrap().url();
    let (password, key, token) = (file("password", PASSWORD), file("key", &pem()), file("token", TOKEN));
    let missing = ground.path("missing").display().to_string();
    let flags: [&[&str]; 5] = [
        &["--etcd-url", &etcd, "--etcd-user", "u", "--etcd-password-file", &password],
        &["--etcd-url", &etcd, "--etcd-user", "u", "--etcd-password-file", &missing],
        &["--etcd-url", "https://127.0.0.1:1", "--etcd-cert", &key, "--etcd-key", &key, "--etcd-ca", &token],
        &["--etcd-url", "https://127.0.0.1:1", "--etcd-cert", &token, "--etcd-key", &token],
        &["--etcd-url", &format!("http://u:{PASSWORD}@127.0.0.1:1")],
    ];
    for flags in flags {
        let mut words = vec!["claims", "--network", "kube-subnet", "--kubeconfig", &kubeconfig];
        words.extend(flags);
        let output = run(&words);
        assert!(!output.status.success(), "{flags:?}: {}", said(&output));
        assert_silent(&format!("{flags:?}"), &said(&output));
    }
}

/// What an agent shows of itself.
async fn shown(state: &Path) -> String {
    let mut all = String::new();
    for path in ["/metrics", "/status", "/readyz", "/healthz"] {
        let Ok(mut stream) = UnixStream::connect(state.join("status.sock")).await else { continue };
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        stream.read_to_string(&mut all).await.unwrap();
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_locked_out_and_finds_broken_files_tells_nobody_why_in_full() {
    let ground = refusing().await;
    for directory in ["net.d", "config", "account"] {
        fs::create_dir(ground.path(directory)).unwrap();
    }
    ground.server().add_token(TOKEN, "kube-ipam");
    let own = user(&ground.server().url(), json!({"token": TOKEN}));
    fs::write(ground.path("own"), &own).unwrap();
    fs::write(ground.cluster.kubeconfig(), &own).unwrap();
    fs::write(ground.path("account/token"), PASSWORD).unwrap();
    fs::write(ground.path("account/ca.crt"), pem()).unwrap();
    fs::write(ground.path("config/ipam.json"), ground.conf["ipam"].to_string()).unwrap();
    fs::write(ground.path("net.d/10-calico.conflist"), ground.conflist().to_string()).unwrap();
    fs::write(ground.path("net.d/99-other.conflist"), format!("{{\"token\": \"{TOKEN}\", {PASSWORD}")).unwrap();
    ground.random("served");
    ground.random("refused");
    let path = |name: &str| ground.path(name).display().to_string();
    let agent = Agent::start_logging(&ground, "trace", true, |command| {
        command
            .args(["--events", "all", "--ipam", &path("config/ipam.json"), "--service-account", &path("account")])
            .args(["--kubeconfig-out", &path("net.d/kube-ipam-kubeconfig")])
            .env("RUST_LOG", "trace")
            .env("KUBERNETES_SERVICE_HOST", "127.0.0.1")
            .env("KUBERNETES_SERVICE_PORT", "1");
    })
    .await;
    assert_ok(&ground.of_pod("ADD", "served", "served").with("/kubernetes/kubeconfig", json!(path("own"))).run().await);
    assert!(fs::read_to_string(ground.path("net.d/kube-ipam-kubeconfig")).unwrap().contains(PASSWORD), "it is planted");
    // The section is broken by somebody who pastes the wrong thing.
    for text in [TOKEN.to_owned(), pem(), format!("{{\"type\": \"kube-ipam\", \"etcdConfig\": {{\"etcdKeyFile\": \"{}\"}}}}", pem().replace('\n', "\\n")),
        json!({"type": "kube-ipam", "subnet": "10.244.0.0/16", "etcdConfig": {"etcdURL": format!("http://u:{PASSWORD}@127.0.0.1:1")}}).to_string()]
    {
        let before = agent.log().len();
        fs::write(ground.path("draft"), text).unwrap();
        fs::rename(ground.path("draft"), ground.path("config/ipam.json")).unwrap();
        until("it is said", async || agent.log()[before..].contains("ipam.json").then_some(())).await;
        assert_silent("readyz", &shown(&ground.path("state")).await);
    }
    ground.server().revoke_token(TOKEN);
    let call = ground.of_pod("ADD", "refused", "refused").with("/kubernetes/kubeconfig", json!(path("own")));
    let alone = call.with("/log_level", json!("trace")).with("/ipam/stateDir", json!(path("elsewhere")));
    let outcome = alone.run().await;
    assert!(!outcome.is_ok(), "{outcome:?}");
    // A pod that no watch has told of is asked for, and the answer is 401.
    let stranger = ground.call("ADD", "unknown", "unknown").run().await;
    assert_eq!(stranger.error().map(|error| error.code), Some(104), "{stranger:?}");
    assert!(agent.log().contains("Unauthorized"), "it was not the agent who answered");
    assert_silent("the agent's answer", &stranger.stdout);
    let told = [
        ("the plugin", format!("{}{}", outcome.stdout, outcome.stderr)),
        ("the plugin's log", ground.log()),
        ("the agent's HTTP", shown(&ground.path("state")).await),
        ("the status", said(&run(&["status", "--state-dir", &path("state")]))),
        (
            "an object of the cluster",
            ground.server().snapshot().into_values().map(|object| object.to_string()).collect(),
        ),
        ("the agent's log", agent.log()),
    ];
    for (origin, text) in told {
        assert!(!text.is_empty() || origin == "the plugin", "{origin} is empty");
        assert_silent(origin, &text);
    }
}

//! One call of a CNI binary: its environment, its stdin, and what it answered.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// What a call is about: a container's interface in a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; may be empty for DEL.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`, as `KEY=value;KEY=value`.
    pub args: String,
    /// Fields added to the plugin's stdin, as `prevResult` or `runtimeConfig`; null: none.
    pub extra: Value,
    /// The plugin is killed after this time, without warning, as a runtime does that has lost patience.
    pub kill_after: Duration,
}

/// What a runtime allows a plugin at most.
const PATIENCE: Duration = Duration::from_secs(120);

impl Attachment {
    /// A new container of a pod, with a random id and a network namespace path that nobody opens.
    pub fn of_pod(namespace: &str, name: &str, uid: &str) -> Self {
        let container = random_id();
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={uid}"
        );
        Self {
            netns: format!("/var/run/netns/cni-{}", &container[..16]),
            container,
            interface: "eth0".to_owned(),
            args,
            extra: Value::Null,
            kill_after: PATIENCE,
        }
    }

    /// The same with a field added to the plugin's stdin.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.extra[field] = value;
        self
    }
}

/// 64 hexadecimal digits, as containerd names sandboxes.
fn random_id() -> String {
    let mut rng = rand::rng();
    (0..4).map(|_| format!("{:016x}", rng.random::<u64>())).collect()
}

/// An error as CNI defines it, from a plugin's stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CniError {
    /// 1 to 99 by the specification, 100 and more by the plugin.
    pub code: u32,
    /// A short sentence.
    #[serde(default)]
    pub msg: String,
    /// A longer one.
    #[serde(default)]
    pub details: String,
}

/// What became of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct CniOutcome {
    /// Exit code; none if the plugin was killed.
    pub exit: Option<i32>,
    /// What it wrote on stdout.
    pub stdout: String,
    /// What it wrote on stderr.
    pub stderr: String,
    /// From before it was started until it had ended.
    pub took: Duration,
}

impl CniOutcome {
    /// Exit code 0.
    pub fn is_ok(&self) -> bool {
        self.exit == Some(0)
    }

    /// stdout as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    /// The addresses of a successful ADD, with prefix lengths, as they stand in the answer.
    pub fn addresses(&self) -> Vec<String> {
        addresses(&self.json())
    }

    /// The error of a failed call, if it is well-formed.
    pub fn error(&self) -> Option<CniError> {
        if self.is_ok() { None } else { serde_json::from_str(&self.stdout).ok() }
    }

    /// The error in the words of the CNI library, as they reach a pod's Events.
    pub fn error_text(&self) -> String {
        match self.error() {
            Some(error) if error.details.is_empty() => error.msg,
            Some(error) => format!("{}; {}", error.msg, error.details),
            None if !self.stdout.is_empty() => {
                format!("netplugin failed but error parsing its diagnostic message {:?}", self.stdout)
            }
            None if self.stderr.is_empty() => format!("netplugin failed with no error message: {}", self.exit_text()),
            None => format!("netplugin failed: {:?}", self.stderr),
        }
    }

    fn exit_text(&self) -> String {
        self.exit.map_or_else(|| "signal: killed".to_owned(), |code| format!("exit status {code}"))
    }
}

/// The addresses in a CNI result.
pub(super) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["address"].as_str().map(str::to_owned)).collect()
}

/// Finds a plugin's binary in the directories of `CNI_PATH`.
pub(super) fn find(name: &str, path: &[PathBuf]) -> Result<PathBuf> {
    let found = path.iter().map(|directory| directory.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("failed to find plugin {name:?} in path {path:?}"))
}

/// Runs a plugin's binary as a runtime does: `path` is its `CNI_PATH`, `environment` what it gets besides the
/// `CNI_` variables, `stdin` the network configuration. An error means that it could not be run at all.
pub async fn call(
    binary: &Path,
    verb: &str,
    path: &[PathBuf],
    environment: &[(OsString, OsString)],
    attachment: &Attachment,
    stdin: &Value,
) -> Result<CniOutcome> {
    let started = Instant::now();
    let mut command = Command::new(binary);
    command
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &attachment.container)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.interface)
        .env("CNI_ARGS", &attachment.args)
        .env("CNI_PATH", std::env::join_paths(path)?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", binary.display()))?;
    let (mut input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let text = stdin.to_string();
    let feed = async {
        // A plugin that does not read its stdin is judged by its answer.
        if let Some(mut input) = input.take() {
            let _ = input.write_all(text.as_bytes()).await;
        }
    };
    let finished = async {
        let (_, stdout, stderr, status) = tokio::join!(feed, read(output), read(errors), child.wait());
        status.map(|status| (status.code(), stdout, stderr))
    };
    match tokio::time::timeout(attachment.kill_after, finished).await {
        Ok(ended) => {
            let (exit, stdout, stderr) = ended?;
            Ok(CniOutcome { exit, stdout, stderr, took: started.elapsed() })
        }
        Err(_) => {
            child.kill().await?;
            Ok(CniOutcome { exit: None, stdout: String::new(), stderr: String::new(), took: started.elapsed() })
        }
    }
}

async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What was read before an error is what the plugin said.
        let _ = stream.read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(exit: Option<i32>, stdout: &str, stderr: &str) -> CniOutcome {
        CniOutcome { exit, stdout: stdout.into(), stderr: stderr.into(), took: Duration::ZERO }
    }

    #[test]
    fn an_error_is_told_in_the_words_of_the_cni_library() {
        let full = outcome(Some(1), r#"{"code":11,"msg":"held","details":"by default/a"}"#, "");
        assert_eq!(full.error_text(), "held; by default/a");
        assert_eq!(full.error().unwrap().code, 11);
        assert_eq!(outcome(Some(1), r#"{"code":7,"msg":"bad"}"#, "").error_text(), "bad");
        assert_eq!(outcome(Some(101), "", "boom").error_text(), "netplugin failed: \"boom\"");
        assert_eq!(outcome(None, "", "").error_text(), "netplugin failed with no error message: signal: killed");
        assert!(outcome(Some(1), "nonsense", "").error_text().contains("\"nonsense\""));
    }

    #[test]
    fn a_new_container_has_an_id_of_its_own() {
        let (one, other) = (Attachment::of_pod("d", "a", "u"), Attachment::of_pod("d", "a", "u"));
        assert_eq!(one.container.len(), 64);
        assert_ne!(one.container, other.container);
        assert!(one.args.contains(&format!("K8S_POD_INFRA_CONTAINER_ID={};", one.container)));
    }
}

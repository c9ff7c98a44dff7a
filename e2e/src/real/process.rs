//! A program of the cluster, with all its descendants, on a leash.
//! Keeps: it runs in a pid namespace of its own whose first process waits for our end of a pipe. So no
//! descendant outlives `kill`, a drop, or this process itself, not even if this process is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Runs the program and ends with it, or kills it when the pipe on stdin closes. Ending, it takes the pid namespace along.
const LEASH: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
program=$!
{ read -r _ <&3; kill -9 $program; } &
exec 3<&-
wait $program
"#;

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `program` in the named network namespace, with its own pid, mount and host name namespaces.
    /// Its output is appended to `log`. Nothing of the environment but `PATH` and `HOME` is passed on.
    pub fn start(name: &str, netns: &str, log: &Path, program: &Path, arguments: &[String]) -> Result<Process> {
        let output = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{netns}"))
            .args(["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", LEASH, "leash"])
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", "/root")
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Process { name: name.into(), log: log.into(), child })
    }

    /// An error with the end of the log, if the program ended by itself.
    pub fn still_runs(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        bail!("{} ended with {status}:\n{}", self.name, self.log_tail(30))
    }

    /// The last lines of what the program said.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The first process of the pid namespace, by its number on the host: a way into all the namespaces.
    pub fn leader(&self) -> Result<u32> {
        let parent = self.child.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        let first = children.split_whitespace().next();
        first.and_then(|pid| pid.parse().ok()).with_context(|| format!("{} has no process any more", self.name))
    }

    /// Asks for SIGKILL without waiting, so that several can die at the same time.
    pub fn let_go(&mut self) {
        drop(self.child.stdin.take());
    }

    /// SIGKILL for the program and every descendant. Returns when the last is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.let_go();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command to its end and returns its standard output; its stderr is in the error if it fails.
pub fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

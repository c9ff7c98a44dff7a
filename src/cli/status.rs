//! `kube-ipam status`: how this node's agent stands.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use super::Outcome;
use super::connect::Connection;
use super::output::{self, Format, NONE};
use crate::agent::status::Status;
use crate::netconf::STATE_DIR;
use crate::protocol::{STATUS_SOCKET, connect};

/// Longest wait for the agent.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Flags of `status`.
#[derive(Args, Debug)]
pub(super) struct StatusArguments {
    /// The agent's directory; by default `stateDir` of --conflist, else /run/kube-ipam.
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,
}

impl StatusArguments {
    /// Asks and shows.
    pub(super) async fn run(self, connection: &Connection, format: Format) -> Result<Outcome> {
        let listed = || Ok::<_, anyhow::Error>(connection.site()?.net.map(|net| net.ipam.state_dir));
        let directory = match self.state_dir {
            Some(directory) => directory,
            None => listed()?.unwrap_or_else(|| STATE_DIR.into()),
        };
        let value = ask(&directory.join(STATUS_SOCKET)).await?;
        let status: Status = serde_json::from_value(value.clone()).context("the agent's answer")?;
        output::print(format, &value, || screen(&status))
    }
}

async fn ask(socket: &Path) -> Result<Value> {
    let shown = socket.display();
    // A socket whose agent was killed is still there: only a connection tells.
    if let Err(error) = connect(socket) {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => bail!(
                "no agent answers on {shown}: start `kube-ipam agent` on this node, or name its directory with --state-dir"
            ),
            ErrorKind::TimedOut => bail!("the agent on {shown} hangs: it takes on no connection"),
            ErrorKind::PermissionDenied => bail!("{shown}: {error}; only root and the agent's own user may ask"),
            _ => return Err(error).with_context(|| shown.to_string()),
        }
    }
    let client = reqwest::Client::builder().unix_socket(socket).no_proxy().timeout(ANSWER_TIME).build()?;
    let answer = client.get("http://agent/status").send().await?.error_for_status()?;
    Ok(answer.json().await?)
}

fn screen(status: &Status) -> String {
    let caches = status.caches.iter().map(|cache| {
        let age = cache.age_seconds.map_or_else(|| NONE.to_owned(), |age| span(age as u64));
        [cache.kind.clone(), yes(cache.synced), cache.objects.to_string(), age]
    });
    let mut parts =
        vec![output::description(summary(status)), output::table(["CACHE", "SYNCED", "OBJECTS", "LAST HEARD"], caches)];
    if !status.pools.is_empty() {
        let pools = status.pools.iter().map(|pool| {
            let name = if pool.pool.is_empty() { NONE.to_owned() } else { pool.pool.clone() };
            let counts = [pool.blocks, pool.used, pool.free, pool.reserved, pool.cooling].map(|n| n.to_string());
            let [blocks, used, free, reserved, cooling] = counts;
            [name, blocks, used, free, reserved, cooling]
        });
        parts.push(output::table(["POOL", "BLOCKS", "IN USE", "FREE", "RESERVED", "COOLING"], pools));
    }
    if !status.last_errors.is_empty() {
        let errors = status.last_errors.iter().rev().map(|trouble| {
            let pod = output::or_none(trouble.pod.as_ref());
            let (code, times) = (trouble.code.to_string(), trouble.count.to_string());
            [output::time(trouble.time), times, trouble.verb.clone(), pod, code, trouble.message.clone()]
        });
        parts.push(output::table(["LAST ERRORS", "TIMES", "VERB", "POD", "CODE", "MESSAGE"], errors));
    }
    parts.join("\n\n")
}

fn summary(status: &Status) -> Vec<(&'static str, String)> {
    let found =
        |wrong: &[String]| if wrong.is_empty() { "yes".to_owned() } else { format!("no: {}", wrong.join(", ")) };
    let collector = match (&status.collector, status.collector.leader.as_ref()) {
        (collector, _) if collector.leading => "leads the cluster's collectors".to_owned(),
        (collector, leader) => {
            let takes_part = if collector.enabled { "follows" } else { "takes no part" };
            format!("{takes_part}; the leader is {}", leader.map_or("not known", String::as_str))
        }
    };
    let adds: Vec<String> = status.adds.iter().map(|(how, count)| format!("{count} {how}")).collect();
    let ahead = match status.ahead.enabled {
        true => format!("{} waiting, {} pods in mind", status.ahead.waiting, status.ahead.pods),
        false => "off".to_owned(),
    };
    let queues = &status.queues;
    let under_way = format!(
        "{} tasks, {} releases to make, {} handles to delete, {} Events to send",
        queues.tasks, queues.pending_releases, queues.pending_handles, queues.events
    );
    vec![
        ("Node", status.node.clone()),
        ("Agent", format!("{}, up {}", status.version, span(status.uptime_seconds))),
        ("Healthy", found(&status.stuck)),
        ("Ready", found(&status.not_ready)),
        ("Memory", format!("{:.1} MiB", status.resident_bytes as f64 / f64::from(1 << 20))),
        ("Metrics", output::or_none(status.metrics_address.map(|address| format!("http://{address}/metrics")))),
        ("Under way", under_way),
        ("Ahead", ahead),
        ("Adds", adds.join(", ")),
        ("Collector", collector),
    ]
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// A span in its two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        serde_json::from_value(json!({
            "node": "n1", "version": "0.3.0", "uptimeSeconds": 3725, "residentBytes": 13 << 20,
            "notReady": ["pods are not listed yet"],
            "caches": [{"kind": "pods", "synced": false, "objects": 0},
                       {"kind": "ippools", "synced": true, "objects": 2, "ageSeconds": 61.5}],
            "pools": [{"pool": "default", "blocks": 1, "used": 3, "free": 60, "reserved": 1}],
            "queues": {"tasks": 1, "pendingReleases": 3, "pendingHandles": 2, "events": 0},
            "ahead": {"enabled": true, "pods": 4, "waiting": 1},
            "adds": {"ahead": 7, "decision": 2, "records": 0},
            "collector": {"enabled": true, "leading": false, "leader": "n2"},
            "lastErrors": [{"time": "2026-11-24T02:01:28Z", "verb": "ADD", "pod": "default/web", "code": 11, "message": "m"}],
        }))
        .unwrap()
    }

    #[test]
    fn the_screen_shows_what_is_wrong_and_who_leads() {
        let expected = "\
Node:       n1
Agent:      0.3.0, up 1h2m
Healthy:    yes
Ready:      no: pods are not listed yet
Memory:     13.0 MiB
Metrics:    -
Under way:  1 tasks, 3 releases to make, 2 handles to delete, 0 Events to send
Ahead:      1 waiting, 4 pods in mind
Adds:       7 ahead, 2 decision, 0 records
Collector:  follows; the leader is n2

CACHE     SYNCED   OBJECTS   LAST HEARD
pods      no       0         -
ippools   yes      2         1m1s

POOL      BLOCKS   IN USE   FREE   RESERVED   COOLING
default   1        3        60     1          0

LAST ERRORS            TIMES   VERB   POD           CODE   MESSAGE
2026-11-24T02:01:28Z   1       ADD    default/web   11     m";
        assert_eq!(screen(&status()), expected);
    }

    #[tokio::test]
    async fn without_an_agent_it_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(STATUS_SOCKET);
        let error = ask(&socket).await.unwrap_err().to_string();
        assert!(error.contains("no agent answers") && error.contains("--state-dir"), "{error}");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error = ask(&socket).await.unwrap_err().to_string();
        assert!(error.contains("no agent answers"), "{error}");
    }
}

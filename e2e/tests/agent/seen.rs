//! The agent seen from outside: status, metrics, readiness, Events.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use tokio::process::Command;

use super::ground::{FIXED, Ground, assert_ok, assert_refused};
use super::process::{Agent, until};

/// What the agent answers on its status socket; the code and the text.
pub fn get(ground: &Ground, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(ground.path("state/status.sock")).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer)
}

pub async fn status(ground: &Ground, format: &str) -> std::process::Output {
    let mut command = Command::new(e2e::tools::kube_ipam().unwrap());
    command.args(["status", "-o", format, "--state-dir"]).arg(ground.path("state")).env_remove("CNI_COMMAND");
    command.output().await.unwrap()
}

/// Reasons of the Events on a pod.
fn reasons(ground: &Ground, pod: &str) -> Vec<String> {
    let events = ground.server().snapshot().into_iter().filter(|(id, _)| id.starts_with("events"));
    let about = |event: &Value| {
        ["regarding", "involvedObject"].iter().any(|field| event[field]["name"] == pod && event[field]["kind"] == "Pod")
    };
    events.filter(|(_, e)| about(e)).filter_map(|(_, e)| Some(e["reason"].as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn status_metrics_and_events_say_what_happened() {
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    ground.random("r-1");
    ground.fixed("f-1");
    ground.pod("bad-1", "n1", serde_json::json!({"kube-ipam.ip": "10.244.0.300"}));
    assert_ok(&ground.add_pod("r-1", "r").await);
    assert_ok(&ground.add_pod("f-1", "f").await);
    assert_refused(&ground.add_pod("bad-1", "b").await, 7, &["10.244.0.300"]);
    assert_ok(&ground.del_pod("r-1", "r").await);
    let (code, text) = get(&ground, "/metrics");
    assert_eq!(code, 200);
    for line in [
        r#"kube_ipam_request_duration_seconds_count{verb="ADD",result="ok"} 2"#,
        r#"kube_ipam_request_duration_seconds_count{verb="ADD",result="refused"} 1"#,
        r#"kube_ipam_request_duration_seconds_count{verb="DEL",result="ok"} 1"#,
        r#"kube_ipam_adds_total{how="decision"} 2"#,
        r#"kube_ipam_cache_synced{kind="pods"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert_eq!(get(&ground, "/readyz").0, 200);
    assert_eq!(get(&ground, "/healthz").0, 200);

    let output = status(&ground, "json").await;
    assert!(output.status.success());
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["node"], &value["notReady"]), (&"n1".into(), &serde_json::json!([])));
    assert_eq!(value["adds"]["decision"], 2);
    assert_eq!(value["ahead"]["pods"], 0, "nothing is taken ahead, and nobody would forget a pod");
    assert!(value["lastErrors"].to_string().contains("10.244.0.300"), "{value}");
    let screen = String::from_utf8(status(&ground, "table").await.stdout).unwrap();
    assert!(screen.contains("n1") && screen.contains("pods"), "{screen}");

    until("an Event on the fixed pod", async || (!reasons(&ground, "f-1").is_empty()).then_some(())).await;
    until("an Event on the refused pod", async || (!reasons(&ground, "bad-1").is_empty()).then_some(())).await;
    assert!(reasons(&ground, "r-1").is_empty(), "a random address is nothing to note");
    assert_eq!(ground.recorded("f-1"), [FIXED]);

    agent.kill().await;
    let output = status(&ground, "json").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no agent answers"));
}

//! The agent's HTTP, on its own socket and on an address that everybody reaches: slow peers, floods, long heads.

use std::time::{Duration, Instant};

use e2e::tools;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::ground::Ground;
use super::process::Agent;
use super::usage::{Usage, agent, many_files};

/// Connections at once, and their longest life.
const CONNECTIONS: usize = 64;
const LIFE: Duration = Duration::from_secs(10);

fn address(agent: &Agent) -> String {
    let log = agent.log();
    let line = log.lines().find(|line| line.contains("\"serving\"")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["metrics"].as_str().unwrap().to_owned()
}

/// Says something and reads to the end.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &[u8]) -> String {
    let _ = stream.write_all(text).await;
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told).await;
    String::from_utf8_lossy(&told).into_owned()
}

#[tokio::test]
async fn slow_peers_keep_nobody_from_the_probes_and_the_status() {
    many_files();
    let ground = Ground::prepare().await;
    let agent = agent(&ground).await;
    let (address, socket) = (address(&agent), ground.path("state/status.sock"));
    let before = Usage::of(&agent);
    let (mut slow, mut own) = (Vec::new(), Vec::new());
    let started = Instant::now();
    for n in 0..600 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        // The first ones may be gone by now.
        let _ = stream.write_all(if n % 2 == 0 { b"GET /metrics HTTP/1.1\r\nX: " } else { b"" }).await;
        slow.push(stream);
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let _ = stream.write_all(b"GET /status HT").await;
        own.push(stream);
    }
    let during = Usage::of(&agent);
    // Two listeners, and as many as may be inside may be on their way out.
    assert!(during.files < before.files + 2 * 2 * CONNECTIONS + 8, "{before:?} {during:?}");
    assert!(during.files > before.files + CONNECTIONS, "nothing was held: {before:?} {during:?}");
    assert!(during.peak < before.peak + (32 << 10), "{before:?} {during:?}");
    for path in ["/healthz", "/readyz", "/metrics"] {
        let asked = Instant::now();
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let told = exchange(TcpStream::connect(&address).await.unwrap(), request.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 200"), "{path}: {told}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{path}: {:?}", asked.elapsed());
    }
    let status = std::process::Command::new(tools::kube_ipam().unwrap())
        .args(["status", "--state-dir"])
        .arg(ground.path("state"))
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let mut last = slow.pop().unwrap();
    let mut told = Vec::new();
    let _ = tokio::time::timeout(LIFE * 2, last.read_to_end(&mut told)).await.unwrap();
    assert!(started.elapsed() < LIFE + Duration::from_secs(8), "{:?}", started.elapsed());
    drop((slow, own));
}

#[tokio::test]
async fn long_heads_and_what_is_no_http_cost_nothing() {
    let ground = Ground::prepare().await;
    let agent = agent(&ground).await;
    let address = address(&agent);
    let before = Usage::of(&agent);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(8 << 20));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000));
    for text in [long.as_bytes(), many.as_bytes(), b"\x16\x03\x01\x02\x00\x01\x00", b"{\"protocol\":1}\n\n"] {
        let told = exchange(TcpStream::connect(&address).await.unwrap(), text).await;
        assert!(!told.starts_with("HTTP/1.1 200"), "{told}");
    }
    let body = b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\nx";
    let told = exchange(TcpStream::connect(&address).await.unwrap(), body).await;
    assert!(told.starts_with("HTTP/1.1 405"), "{told}");
    let after = Usage::of(&agent);
    assert!(after.peak < before.peak + (16 << 10), "{before:?} {after:?}");
}

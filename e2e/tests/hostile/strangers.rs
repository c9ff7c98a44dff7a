//! Another user of the node gets nothing from the agent, not even where the permissions of its files fail.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::ground::Ground;
use super::process::Agent;

const NOBODY: u32 = 65534;
/// Says to the process below which socket to ask.
const SOCKET: &str = "STRANGERS_SOCKET";

/// Run by the test below as another user; by itself it does nothing.
#[test]
#[ignore = "is the other user's process"]
fn asks() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let mut stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(error) => return println!("TOLD {:?}", error.kind()),
    };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let http = Path::new(&socket).ends_with("status.sock");
    let request = if http { "GET /status HTTP/1.1\r\nHost: a\r\n\r\n" } else { "{\"protocol\":9}\n" };
    let mut told = Vec::new();
    // Hung up on, it may be cut off in the middle of either.
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut told));
    println!("TOLD {} bytes", told.len());
}

/// What a user is told by a socket.
fn told(program: &Path, socket: &Path, user: u32) -> String {
    let mut command = Command::new(program);
    command.args(["strangers::asks", "--exact", "--ignored", "--nocapture"]).env(SOCKET, socket).current_dir("/");
    if user != 0 {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find_map(|line| line.split_once("TOLD ")).map(|(_, told)| told.to_owned());
    line.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// This program where another user may run it.
fn program(ground: &Ground) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = ground.path("strangers");
    fs::copy(own, &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_stranger_is_refused_by_the_files_and_by_the_agent() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("\nSKIPPED: becoming another user needs root\n");
        return;
    }
    let ground = Ground::prepare().await;
    let agent = Agent::start(&ground, false).await;
    let program = program(&ground);
    open_to_all(ground.directory.path(), 0o711);
    let sockets = ["state/agent.sock", "state/status.sock"].map(|name| ground.path(name));
    for socket in &sockets {
        assert_eq!(fs::metadata(socket).unwrap().mode() & 0o777, 0o600);
        assert_eq!(told(&program, socket, NOBODY), "PermissionDenied", "{socket:?}");
    }
    open_to_all(&ground.path("state"), 0o711);
    for socket in &sockets {
        assert_eq!(told(&program, socket, NOBODY), "PermissionDenied", "{socket:?}: its own mode");
        open_to_all(socket, 0o666);
        assert_eq!(told(&program, socket, NOBODY), "0 bytes", "{socket:?}");
        let root = told(&program, socket, 0);
        assert!(root.ends_with(" bytes") && root != "0 bytes", "{socket:?}: {root}");
    }
    assert_eq!(agent.log().matches("refused a peer").count(), 2, "{}", agent.log());
}

//! Network namespaces: the control plane's, with a bridge, and one per node joined to it by a veth pair.
//! Keeps: the test process stays in the host's namespace and reaches the cluster by one veth pair of its own.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::slot::Slot;

/// The services' addresses. The first is the API server's own, which lies on the control plane's loopback:
/// which is every node's default route, so in-cluster clients work without kube-proxy.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// See [`SERVICE_CIDR`].
pub const API_SERVICE_ADDRESS: &str = "10.96.0.1";
/// The host part of the control plane's address.
pub const CONTROL_PLANE_HOST: u8 = 1;
/// The host part of the address by which the test process is reached.
pub const TEST_PROCESS_HOST: u8 = 254;

/// Runs `ip <arguments>` in a named namespace or the host's, and returns what it printed.
pub fn ip(netns: Option<&str>, arguments: &str) -> Result<String> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-netns", netns]);
    }
    super::process::succeed(command.args(arguments.split_whitespace()))
}

/// Runs several `ip` commands, one a line, in one process.
pub fn ip_batch(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-netns", netns]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("running ip")?;
    child.stdin.take().context("ip has a stdin")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip -batch in {netns:?}: {}\n{lines}", stderr.trim());
    Ok(())
}

/// Makes the control plane's namespace, with the bridge `br0`, and joins the host's namespace to it.
pub fn join_host(slot: &Slot, netns: &str) -> Result<()> {
    ip(None, &format!("netns add {netns}"))?;
    let (v4, v6) = (slot.ipv4(CONTROL_PLANE_HOST), slot.ipv6(CONTROL_PLANE_HOST));
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up
             addr add {API_SERVICE_ADDRESS}/32 dev lo
             link add br0 type bridge forward_delay 0
             addr add {v4}/24 dev br0
             addr add {v6}/64 dev br0 nodad
             link set br0 up"
        ),
    )?;
    let host = slot.host_interface();
    let (v4, v6) = (slot.ipv4(TEST_PROCESS_HOST), slot.ipv6(TEST_PROCESS_HOST));
    ip_batch(
        None,
        &format!(
            "link add {host} type veth peer name host netns {netns}
             addr add {v4}/24 dev {host}
             addr add {v6}/64 dev {host} nodad
             link set {host} up"
        ),
    )?;
    ip(Some(netns), "link set host master br0 up").map(drop)
}

/// Makes a node's namespace, joined to the control plane's bridge, with `eth0` at the host part given.
/// It needs default routes even though nothing lies behind them: proxy ARP, by which Calico's pods reach
/// their gateway 169.254.1.1, answers only for what the node has a route to.
pub fn join_node(slot: &Slot, control_plane: &str, netns: &str, host: u8) -> Result<()> {
    ip(None, &format!("netns add {netns}"))?;
    ip(Some(control_plane), &format!("link add veth{host} type veth peer name eth0 netns {netns}"))?;
    ip(Some(control_plane), &format!("link set veth{host} master br0 up"))?;
    let (v4, v6) = (slot.ipv4(host), slot.ipv6(host));
    ip_batch(
        Some(netns),
        &format!(
            "link set lo up
             addr add {v4}/24 dev eth0
             addr add {v6}/64 dev eth0 nodad
             link set eth0 up
             route add default via {}
             route add default via {}",
            slot.ipv4(CONTROL_PLANE_HOST),
            slot.ipv6(CONTROL_PLANE_HOST)
        ),
    )
}

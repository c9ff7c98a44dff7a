//! The pods' network: one segment that all containers of all nodes are on, so that an address is seen wherever it is.
//!
//! Every container has a network namespace with a veth pair, and in it a witness: a socket that tells who it is when it
//! is asked. The watcher's questions go to an address of the network layer, but to everybody on the link: whichever
//! kernel has the address takes the question in, so two containers with one address both answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::task::JoinHandle;

use crate::real::network::{ip, ip_batch};
use crate::real::site::Site;

/// The witnesses' port.
const PORT: u16 = 7007;
/// The watcher's address, outside of the range that pods get.
const WATCHER: Ipv4Addr = Ipv4Addr::new(10, 244, 255, 254);
const PREFIX: u8 = 16;
/// How long answers to a question are waited for.
const ANSWER_LIMIT: Duration = Duration::from_millis(700);

/// The segment and its watcher.
pub(super) struct Segment {
    site: Arc<Site>,
    bridge: String,
    watcher: tokio::net::UdpSocket,
}

/// A container's namespace. It has to be ended by [`Container::end`], or it ends with the segment.
pub(super) struct Container {
    id: String,
    netns: String,
    witness: Option<JoinHandle<()>>,
}

// === impl Segment ===

impl Segment {
    /// Makes the segment; the watcher can ask for the addresses from `10.244.0.0` on, of so many blocks of 256.
    pub(super) fn make(site: Arc<Site>, blocks: u8) -> Result<Segment> {
        let (bridge, watcher) = (site.netns("pods"), site.netns("watcher"));
        for netns in [&bridge, &watcher] {
            ip(None, &format!("netns add {netns}"))?;
        }
        ip_batch(Some(&bridge), "link add br0 type bridge forward_delay 0\nlink set br0 up")?;
        join(&bridge, "watcher", &watcher)?;
        // To everybody on the link, whoever has it by ARP.
        let everybody = |address| format!("neigh replace {address} lladdr ff:ff:ff:ff:ff:ff dev eth0 nud permanent\n");
        let all = (0..u16::from(blocks) << 8)
            .map(|last| Ipv4Addr::from(u32::from_be_bytes([10, 244, 0, 0]) + u32::from(last)));
        let lines: String = all.map(everybody).collect();
        ip_batch(Some(&watcher), &format!("addr add {WATCHER}/{PREFIX} dev eth0\n{lines}"))?;
        let watcher = tokio::net::UdpSocket::from_std(socket_in(&watcher)?)?;
        Ok(Segment { bridge, watcher, site })
    }

    /// A namespace for a container, on the segment and without an address.
    pub(super) async fn container(&self, id: &str) -> Result<Container> {
        let netns = self.site.netns(&format!("c{}", &id[..16]));
        let (bridge, name) = (self.bridge.clone(), id[..10].to_owned());
        let container = Container { id: id.to_owned(), netns: netns.clone(), witness: None };
        blocking(move || {
            ip(None, &format!("netns add {netns}"))?;
            join(&bridge, &name, &netns)
        })
        .await?;
        Ok(container)
    }

    /// Asks everybody who has these addresses; who answered for which.
    pub(super) async fn ask(&self, addresses: &[IpAddr]) -> Result<BTreeMap<IpAddr, Vec<String>>> {
        let question = format!("{:016x}", rand::random::<u64>());
        for address in addresses {
            // A full queue is no answer, and no answer is looked into.
            let _ = self.watcher.send_to(question.as_bytes(), SocketAddr::new(*address, PORT)).await;
        }
        let mut answers: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        let until = tokio::time::Instant::now() + ANSWER_LIMIT;
        let mut buffer = [0; 256];
        while let Ok(received) = tokio::time::timeout_at(until, self.watcher.recv_from(&mut buffer)).await {
            let (length, from) = received?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            if let Some(container) = text.strip_prefix(&question) {
                answers.entry(from.ip()).or_default().push(container.to_owned());
            }
        }
        Ok(answers)
    }
}

// === impl Container ===

impl Container {
    /// The path of the namespace, as a runtime names it to a plugin.
    pub(super) fn path(&self) -> String {
        format!("/run/netns/{}", self.netns)
    }

    /// The interface gets its address, and the witness begins to answer.
    pub(super) async fn has(&mut self, address: IpAddr) -> Result<()> {
        let netns = self.netns.clone();
        let socket = blocking(move || {
            ip(Some(&netns), &format!("addr add {address}/{PREFIX} dev eth0"))?;
            socket_in(&netns)
        })
        .await?;
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let id = self.id.clone();
        self.witness = Some(tokio::spawn(async move {
            let mut question = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                let answer = [&question[..length], id.as_bytes()].concat();
                let _ = socket.send_to(&answer, from).await;
            }
        }));
        Ok(())
    }

    /// Whether an echo request from this namespace is answered within two seconds.
    pub(super) async fn reaches(&self, to: IpAddr) -> bool {
        let mut ping = tokio::process::Command::new("nsenter");
        ping.arg(format!("--net={}", self.path())).args(["ping", "-n", "-q", "-c", "1", "-W", "2", &to.to_string()]);
        ping.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).kill_on_drop(true);
        ping.status().await.is_ok_and(|status| status.success())
    }

    /// The namespace goes, with its address.
    pub(super) async fn end(mut self) -> Result<()> {
        if let Some(witness) = self.witness.take() {
            // Its socket holds the namespace.
            witness.abort();
            let _ = witness.await;
        }
        let netns = self.netns.clone();
        blocking(move || {
            // A namespace is taken down some time after its name is gone; the interface goes at once.
            let _ = ip(Some(&netns), "link del eth0");
            ip(None, &format!("netns del {netns}")).map(drop)
        })
        .await
    }
}

/// Joins a namespace to the bridge by `eth0`, without an address.
fn join(bridge: &str, name: &str, netns: &str) -> Result<()> {
    let lines = format!("link add v{name} type veth peer name eth0 netns {netns}\nlink set v{name} master br0 up");
    ip_batch(Some(bridge), &lines)?;
    ip_batch(Some(netns), "link set lo up\nlink set eth0 up")
}

/// A socket on the witnesses' port in a namespace. It stays there, whoever uses it.
fn socket_in(netns: &str) -> Result<UdpSocket> {
    let namespace = File::open(format!("/run/netns/{netns}"))?;
    // The thread ends with this: it is not to come back from the namespace.
    let bind = std::thread::spawn(move || -> Result<UdpSocket> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    bind.join().map_err(|_| anyhow!("the thread panicked"))?.with_context(|| format!("a socket in {netns}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

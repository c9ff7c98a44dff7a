//! An etcd of three members, each in a network namespace and on a disk of its own: killed, started again, cut off, starved.
//! Keeps: a member that was killed, or died of a full disk, comes back with the data it had.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, ConnectOptions};
use tokio::time::{Instant, sleep};

use super::disk::Disk;
use super::quota::QUOTA;
use crate::real::network::{ip, join_node};
use crate::real::process::{Process, succeed};
use crate::real::site::Site;

pub(super) const MEMBERS: usize = 3;
/// The host part of the first member's address.
const FIRST_HOST: u8 = 21;
const START_LIMIT: Duration = Duration::from_secs(60);
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// Room for its log, of which it keeps some 200 MB in pieces of 64, and for its database twice.
const DISK: &str = "size=512m,mode=700";
/// Longest time until a member notices that its disk is full. While another harm leaves no majority, nothing is written.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// Pause before a member that ended by itself is started again.
const RESTART: Duration = Duration::from_millis(500);

/// In which way a member is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// From everybody.
    Wholly,
    /// From the other members; clients still reach it.
    FromPeers,
}

/// The members.
pub(super) struct Members {
    site: Arc<Site>,
    bridge: String,
    binary: PathBuf,
    disks: Vec<Disk>,
    processes: [Mutex<Option<Process>>; MEMBERS],
}

// === impl Members ===

impl Members {
    /// Makes the namespaces, joined to the bridge in namespace `bridge`, and starts all members.
    pub(super) async fn start(site: Arc<Site>, bridge: String) -> Result<Members> {
        let binary = site.tools.etcd()?;
        let directory = |member| site.slot.directory().join(name(member));
        let disks = (0..MEMBERS).map(|member| Disk::mount(directory(member), DISK)).collect::<Result<_>>()?;
        let members = Members { site, bridge, binary, disks, processes: Default::default() };
        for member in 0..MEMBERS {
            join_node(&members.site.slot, &members.bridge, &members.netns(member), host(member))?;
            members.start_one(member)?;
        }
        for member in 0..MEMBERS {
            members.serves(member).await?;
        }
        Ok(members)
    }

    /// Where clients reach a member.
    pub(super) fn address(&self, member: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.site.slot.ipv4(host(member))), 2379)
    }

    /// The URLs of all members.
    pub(super) fn urls(&self) -> Vec<String> {
        (0..MEMBERS).map(|member| format!("http://{}", self.address(member))).collect()
    }

    /// SIGKILL; false if it did not run.
    pub(super) fn kill(&self, member: usize) -> bool {
        let killed = self.process(member).take();
        killed.map(Process::kill).is_some()
    }

    /// Starts a member with the data it had.
    pub(super) fn start_one(&self, member: usize) -> Result<()> {
        let name = name(member);
        let process =
            Process::start(&name, &self.netns(member), &self.site.log(&name), &self.binary, &self.flags(member))?;
        *self.process(member) = Some(process);
        Ok(())
    }

    /// Waits until a member knows its leader.
    pub(super) async fn serves(&self, member: usize) -> Result<()> {
        let until = Instant::now() + START_LIMIT;
        while self.status(member).await.is_none_or(|(_, leader)| leader == 0) {
            if let Some(process) = self.process(member).as_mut() {
                process.still_runs()?;
            }
            if Instant::now() > until {
                bail!("{} does not serve: see {}", name(member), self.site.log(&name(member)).display());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Leaves no room on a member's disk until so long after it died of that, while somebody starts it again and again.
    /// How often it died.
    pub(super) async fn starve(&self, member: usize, lasts: Duration) -> Result<u64> {
        let disk = self.disks[member].clone();
        tokio::task::spawn_blocking(move || disk.fill()).await??;
        let (mut deaths, mut until) = (0, Instant::now() + NOTICE_LIMIT);
        while Instant::now() < until {
            if !self.has_ended(member) {
                if deaths == 0 {
                    self.add_ballast().await;
                }
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            deaths += 1;
            if deaths == 1 {
                until = Instant::now() + lasts;
            }
            sleep(RESTART).await;
            self.start_one(member)?;
        }
        Ok(deaths)
    }

    /// Makes room again, and returns when the member serves. It may have been about to die.
    pub(super) async fn feed(&self, member: usize) -> Result<()> {
        self.disks[member].free()?;
        let until = Instant::now() + START_LIMIT;
        while self.status(member).await.is_none_or(|(_, leader)| leader == 0) {
            if self.has_ended(member) {
                self.start_one(member)?;
            }
            if Instant::now() > until {
                let log = self.site.log(&name(member));
                bail!("{} does not come back from a full disk: see {}", name(member), log.display());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    fn has_ended(&self, member: usize) -> bool {
        self.process(member).as_mut().is_none_or(|process| process.still_runs().is_err())
    }

    /// Who leads, by the word of any member that believes so of itself.
    pub(super) async fn leader(&self) -> Option<usize> {
        for member in 0..MEMBERS {
            if self.status(member).await.is_some_and(|(own, leader)| own == leader) {
                return Some(member);
            }
        }
        None
    }

    /// A member's own id and its leader's.
    async fn status(&self, member: usize) -> Option<(u64, u64)> {
        let ask = async {
            let status = self.client(&[member], ASK_LIMIT).await.ok()?.status().await.ok()?;
            Some((status.header()?.member_id(), status.leader()))
        };
        tokio::time::timeout(ASK_LIMIT, ask).await.ok().flatten()
    }

    /// A client of these members, which waits so long for each answer.
    pub(super) async fn client(&self, members: &[usize], limit: Duration) -> Result<Client> {
        let options = ConnectOptions::new().with_connect_timeout(ASK_LIMIT).with_timeout(limit);
        let urls: Vec<String> = members.iter().map(|member| format!("http://{}", self.address(*member))).collect();
        Ok(Client::connect(urls, Some(options)).await?)
    }

    /// Cuts a member off.
    pub(super) fn cut(&self, member: usize, cut: Cut) -> Result<()> {
        self.partition(member, cut, true).with_context(|| format!("cutting {} off", name(member)))
    }

    /// Joins it again.
    pub(super) fn join(&self, member: usize, cut: Cut) -> Result<()> {
        self.partition(member, cut, false).with_context(|| format!("joining {} again", name(member)))
    }

    fn partition(&self, member: usize, cut: Cut, on: bool) -> Result<()> {
        match cut {
            Cut::Wholly => {
                let state = if on { "down" } else { "up" };
                ip(Some(&self.bridge), &format!("link set veth{} {state}", host(member))).map(drop)
            }
            Cut::FromPeers => {
                for (chain, port) in
                    [("INPUT", "--dport"), ("INPUT", "--sport"), ("OUTPUT", "--dport"), ("OUTPUT", "--sport")]
                {
                    let verb = if on { "-A" } else { "-D" };
                    let mut command = std::process::Command::new("nsenter");
                    command.arg(format!("--net=/run/netns/{}", self.netns(member)));
                    succeed(command.args(["iptables", "-w", verb, chain, "-p", "tcp", port, "2380", "-j", "DROP"]))?;
                }
                Ok(())
            }
        }
    }

    fn process(&self, member: usize) -> MutexGuard<'_, Option<Process>> {
        self.processes[member].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn netns(&self, member: usize) -> String {
        self.site.netns(&name(member))
    }

    fn flags(&self, member: usize) -> Vec<String> {
        let here = |member: usize, port: u16| format!("http://{}:{port}", self.site.slot.ipv4(host(member)));
        let all: Vec<String> = (0..MEMBERS).map(|member| format!("{}={}", name(member), here(member, 2380))).collect();
        let data = self.disks[member].directory().join("data");
        vec![
            format!("--name={}", name(member)),
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={}", here(member, 2379)),
            format!("--advertise-client-urls={}", here(member, 2379)),
            format!("--listen-peer-urls={}", here(member, 2380)),
            format!("--initial-advertise-peer-urls={}", here(member, 2380)),
            format!("--initial-cluster={}", all.join(",")),
            // Those that were away for long catch up by a snapshot.
            "--snapshot-count=5000".into(),
            "--max-wals=2".into(),
            format!("--quota-backend-bytes={QUOTA}"),
            "--log-level=warn".into(),
        ]
    }
}

fn name(member: usize) -> String {
    format!("etcd{member}")
}

fn host(member: usize) -> u8 {
    FIRST_HOST + member as u8
}

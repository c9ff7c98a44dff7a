//! A numbered place on this machine for one cluster: its directory (a tmpfs), its addresses and its names.
//! Keeps: a number belongs to one living process, by a file lock, so clusters run side by side; and whoever
//! takes the lock of a dead process' number removes what that left behind.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::network::ip;

const RUNTIME: &str = "/run/kube-ipam-e2e";
const CGROUPS: &str = "/sys/fs/cgroup";

/// A cluster's number and what follows from it. Dropping it removes every namespace, cgroup and file of the number.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: File,
}

impl Slot {
    /// Takes the lowest free number, and clears all numbers whose process died.
    pub fn claim() -> Result<Slot> {
        fs::create_dir_all(RUNTIME)?;
        let mut mine = None;
        for number in 0..=u8::MAX {
            let path = Path::new(RUNTIME).join(format!("{number}.lock"));
            let used_before = path.exists();
            if mine.is_some() && !used_before {
                break;
            }
            let lock = File::options().create(true).append(true).open(&path)?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => {
                    return Err(error).context(path.display().to_string());
                }
            }
            if used_before {
                clear(number);
            }
            if mine.is_none() && !address_in_use(number)? {
                mine = Some(Slot { number, _lock: lock });
            }
        }
        let Some(slot) = mine else { bail!("256 clusters run on this machine already") };
        let directory = slot.directory();
        fs::create_dir_all(&directory)?;
        // Memory: etcd waits for its disk at every write, and a container's layers cannot lie on an overlay.
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "mode=755", "kube-ipam-e2e"]).arg(&directory);
        super::process::succeed(&mut mount)?;
        Ok(slot)
    }

    /// Where the cluster keeps its state, gone after the run: `/run/kube-ipam-e2e/<number>`.
    pub fn directory(&self) -> PathBuf {
        directory(self.number)
    }

    /// The name, unique on this machine, of a namespace or a cgroup.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", prefix(self.number))
    }

    /// The name of the host's interface into the cluster.
    pub fn host_interface(&self) -> String {
        host_interface(self.number)
    }

    /// `172.29.<number>.<host>`, in a /24.
    pub fn ipv4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 29, self.number, host)
    }

    /// `fd29:<number>::<host>`, in a /64.
    pub fn ipv6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd29, self.number.into(), 0, 0, 0, 0, 0, host.into())
    }

    /// Removes a cgroup of this cluster in every hierarchy; its processes must have ended.
    pub fn remove_cgroups(&self, part: &str) {
        remove_cgroups(&self.name(part));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        clear(self.number);
    }
}

fn directory(number: u8) -> PathBuf {
    Path::new(RUNTIME).join(number.to_string())
}

fn prefix(number: u8) -> String {
    format!("kie2e-{number}-")
}

fn host_interface(number: u8) -> String {
    format!("kie2e{number}")
}

fn address_in_use(number: u8) -> Result<bool> {
    let found = ip(None, &format!("-o addr show to 172.29.{number}.0/24"))?;
    Ok(!found.trim().is_empty())
}

/// Best effort, in an order that lets go of what the next step removes. Nothing here must fail a test.
fn clear(number: u8) {
    let prefix = prefix(number);
    if let Ok(entries) = fs::read_dir("/run/netns") {
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.starts_with(&prefix) {
                let _ = ip(None, &format!("netns del {name}"));
            }
        }
    }
    let interface = host_interface(number);
    if Path::new("/sys/class/net").join(&interface).exists() {
        let _ = ip(None, &format!("link del {interface}"));
    }
    remove_cgroups(&prefix);
    let directory = directory(number);
    let _ = std::process::Command::new("umount").args(["--lazy", "--quiet"]).arg(&directory).output();
    let _ = fs::remove_dir(&directory);
}

/// Removes every cgroup whose name starts so. Their last processes may still be dying: a few attempts.
fn remove_cgroups(prefix: &str) {
    let tops = || {
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        let children = hierarchies.flat_map(|hierarchy| fs::read_dir(hierarchy.path()).into_iter().flatten().flatten());
        children.filter(|child| child.file_name().to_string_lossy().starts_with(prefix)).map(|child| child.path())
    };
    for _ in 0..50 {
        tops().for_each(|top| remove_tree(&top));
        if tops().next().is_none() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
}

/// A cgroup's files cannot be removed, only its directories, the deepest first.
fn remove_tree(cgroup: &Path) {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&child.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

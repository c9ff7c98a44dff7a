//! What control plane and nodes of one cluster share: its number, programs, certificates, logs and addresses.
//! Keeps: it outlives every process of the cluster, so that what they used is removed after they ended.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::network::{API_SERVICE_ADDRESS, CONTROL_PLANE_HOST};
use super::pki::Pki;
use super::slot::Slot;
use crate::tools::{Tools, target_directory};

/// The common ground of one cluster.
#[derive(Debug)]
pub struct Site {
    pub(crate) tools: Tools,
    pub(crate) pki: Pki,
    logs: PathBuf,
    keeps_logs: AtomicBool,
    pub(crate) slot: Slot,
}

impl Site {
    /// Claims a number and makes its certificates.
    pub(crate) fn prepare(tools: Tools) -> Result<Site> {
        let slot = Slot::claim()?;
        let pki = Pki::create(&slot.directory().join("pki"))?;
        let address = slot.ipv4(CONTROL_PLANE_HOST);
        let service: Ipv4Addr = API_SERVICE_ADDRESS.parse()?;
        let addresses: Vec<IpAddr> = vec![address.into(), service.into(), Ipv4Addr::LOCALHOST.into()];
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        pki.write_server("server", &addresses, &names)?;
        let logs = target_directory()?.join("e2e-logs").join(std::process::id().to_string()).join(slot.name("logs"));
        fs::create_dir_all(&logs)?;
        Ok(Site { tools, pki, logs, keeps_logs: AtomicBool::new(false), slot })
    }

    /// `https://172.29.<number>.1`: reachable from the host and from every node.
    pub fn api_server(&self) -> String {
        format!("https://{}", self.slot.ipv4(CONTROL_PLANE_HOST))
    }

    /// etcd without TLS, reachable from the host and from every node.
    pub fn etcd_url(&self) -> String {
        format!("http://{}:2379", self.slot.ipv4(CONTROL_PLANE_HOST))
    }

    /// The same etcd, asking for a client certificate: on nodes the three files in [`super::node::paths`].
    pub fn etcd_tls_url(&self) -> String {
        format!("https://{}:2378", self.slot.ipv4(CONTROL_PLANE_HOST))
    }

    /// Where the processes' logs are. Kept if a test panicked, else removed with the cluster.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Logs are not removed at the end.
    pub(crate) fn keep_logs(&self) {
        self.keeps_logs.store(true, Ordering::Relaxed);
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    pub(crate) fn netns(&self, part: &str) -> String {
        self.slot.name(part)
    }

    /// Made when the API server answers: nodes wait for it before they start their kubelet.
    pub(crate) fn api_ready_file(&self) -> PathBuf {
        self.slot.directory().join("api-ready")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() || self.keeps_logs.load(Ordering::Relaxed) {
            eprintln!("the cluster's logs: {}", self.logs.display());
            return;
        }
        let _ = fs::remove_dir_all(&self.logs);
        if let Some(parent) = self.logs.parent() {
            let _ = fs::remove_dir(parent);
        }
    }
}

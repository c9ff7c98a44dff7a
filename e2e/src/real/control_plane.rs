//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler in a network namespace of their own.
//! Keeps: the client made at the start stays valid when the API server or etcd is killed and started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::audit::{self, AuditLog};
use super::crds::{self, Crds};
use super::network::{SERVICE_CIDR, join_host};
use super::pki::Identity;
use super::process::Process;
use super::site::Site;
use crate::embedded::etcd::Tls;
use crate::tools::Tools;

const NETNS: &str = "control-plane";
const START_LIMIT: Duration = Duration::from_secs(90);
/// After this long without a heartbeat a node is not ready. Kubernetes' default is 50 s.
const NODE_GRACE: &str = "16s";

/// What a control plane is made of besides etcd and the API server.
#[derive(Debug, Default)]
pub struct ControlPlaneOptions {
    /// Write every request to an audit log.
    pub audit: bool,
    /// Run controller-manager and scheduler.
    pub controllers: bool,
    /// Give user `kube-ipam` no rights but what RBAC objects grant it. Else it may do everything.
    pub restricted: bool,
    /// Custom resource definitions to apply before anything else.
    pub crds: Crds,
}

/// The running control plane. Dropping it ends it.
pub struct ControlPlane {
    processes: Mutex<Processes>,
    client: kube::Client,
    audit: Option<AuditLog>,
    /// Client URLs of an etcd that somebody else runs; none: one member of its own.
    etcd_servers: Vec<String>,
    site: Arc<Site>,
}

#[derive(Debug, Default)]
struct Processes {
    scheduler: Option<Process>,
    controller_manager: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
}

impl ControlPlane {
    /// Starts a control plane alone, for what needs no nodes.
    pub async fn start(tools: Tools, options: ControlPlaneOptions) -> Result<ControlPlane> {
        let control_plane = ControlPlane::prepare(Arc::new(Site::prepare(tools)?), &options).await?;
        control_plane.run(options).await?;
        Ok(control_plane)
    }

    /// Makes the network that nodes join, and a client for later. Nothing runs yet.
    pub(crate) async fn prepare(site: Arc<Site>, options: &ControlPlaneOptions) -> Result<ControlPlane> {
        join_host(&site.slot, &site.netns(NETNS))?;
        write_files(&site, options.restricted)?;
        let client = client(&admin_kubeconfig(&site)).await?;
        let audit = options.audit.then(|| AuditLog::new(&site.slot.directory().join("audit.log")));
        Ok(ControlPlane { processes: Mutex::default(), client, audit, etcd_servers: Vec::new(), site })
    }

    /// The same on an etcd that somebody else runs.
    pub(crate) fn on_etcd(mut self, etcd_servers: Vec<String>) -> ControlPlane {
        self.etcd_servers = etcd_servers;
        self
    }

    /// Returns when the API server is ready and the CRDs are served.
    pub(crate) async fn run(&self, options: ControlPlaneOptions) -> Result<()> {
        if self.etcd_servers.is_empty() {
            self.start_etcd()?;
        }
        self.start_api_server().await?;
        fs::write(self.site.api_ready_file(), "")?;
        if options.controllers {
            self.start_controllers()?;
        }
        crds::apply(&self.client, &options.crds).await
    }

    /// A client with every right, from the host's network namespace, in whatever group the cluster has Calico's objects.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The path of a kubeconfig with every right.
    pub fn kubeconfig(&self) -> PathBuf {
        admin_kubeconfig(&self.site)
    }

    /// Writes a kubeconfig for one of [`TOKEN_USERS`], usable from the host and from every node.
    pub fn write_kubeconfig(&self, path: &Path, user: &str) -> Result<()> {
        ensure!(TOKEN_USERS.contains(&user), "no token is known for user {user}");
        self.site.pki.write_token_kubeconfig(path, &self.site.api_server(), user)
    }

    /// Writes a kubeconfig that logs in with any bearer token, such as a service account's.
    pub fn write_token_kubeconfig(&self, path: &Path, token: &str) -> Result<()> {
        self.site.pki.write_token_kubeconfig(path, &self.site.api_server(), token)
    }

    /// What another etcd of this cluster needs to speak TLS like the first.
    pub fn etcd_tls(&self) -> Tls {
        let file = |name: &str| self.site.pki.path(name);
        Tls { cert: file("server.crt"), key: file("server.key"), client_ca: file("ca.crt") }
    }

    /// Writes `client.crt`, `client.key` and `ca.crt`: what a client of the cluster's etcd needs.
    pub fn write_etcd_client(&self, directory: &Path) -> Result<()> {
        let signed = self.site.pki.client(&Identity::new("kube-ipam", "kube-ipam"))?;
        fs::write(directory.join("client.crt"), signed.certificate)?;
        fs::write(directory.join("client.key"), signed.key)?;
        fs::copy(self.site.pki.path("ca.crt"), directory.join("ca.crt"))
            .map(drop)
            .context("the authority's certificate")
    }

    /// Addresses, logs and programs.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The audit log, if asked for at the start.
    pub fn audit(&self) -> Option<&AuditLog> {
        self.audit.as_ref()
    }

    /// The network namespace with the bridge that all nodes are joined to.
    pub(crate) fn netns(&self) -> String {
        self.site.netns(NETNS)
    }

    /// SIGKILL for the API server. Nodes and etcd go on.
    pub fn kill_api_server(&self) {
        let killed = self.processes().api_server.take();
        killed.into_iter().for_each(Process::kill);
    }

    /// Starts the API server, and waits until it is ready.
    pub async fn start_api_server(&self) -> Result<()> {
        let process = self.spawn("kube-apiserver", &self.site.tools.path("kube-apiserver"), self.api_server_flags())?;
        self.processes().api_server = Some(process);
        let started = Instant::now();
        let mut last = String::new();
        while started.elapsed() < START_LIMIT {
            self.processes().still_run()?;
            match self.client.request_text(http::Request::get("/readyz").body(Vec::new())?).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("the API server is not ready after {START_LIMIT:?}: {last}")
    }

    /// SIGKILL for etcd: Kubernetes' objects and our claims both become unreachable.
    pub fn kill_etcd(&self) {
        let killed = self.processes().etcd.take();
        killed.into_iter().for_each(Process::kill);
    }

    /// Starts etcd with the data it had.
    pub fn start_etcd(&self) -> Result<()> {
        let process = self.spawn("etcd", &self.site.tools.etcd()?, self.etcd_flags())?;
        self.processes().etcd = Some(process);
        Ok(())
    }

    fn start_controllers(&self) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        let pki = |name: &str| self.site.pki.path(name).display().to_string();
        let flags = vec![
            kubeconfig.clone(),
            format!("--service-account-private-key-file={}", pki("service-accounts.key")),
            format!("--root-ca-file={}", pki("ca.crt")),
            format!("--node-monitor-grace-period={NODE_GRACE}"),
            "--node-monitor-period=1s".into(),
            "--leader-elect=false".into(),
            "--kube-api-qps=200".into(),
            "--kube-api-burst=400".into(),
        ];
        let name = "kube-controller-manager";
        let controller_manager = self.spawn(name, &self.site.tools.path(name), flags)?;
        let flags = vec![kubeconfig, "--leader-elect=false".into()];
        let scheduler = self.spawn("kube-scheduler", &self.site.tools.path("kube-scheduler"), flags)?;
        let mut processes = self.processes();
        processes.controller_manager = Some(controller_manager);
        processes.scheduler = Some(scheduler);
        Ok(())
    }

    fn etcd_flags(&self) -> Vec<String> {
        let directory = self.site.slot.directory().join("etcd");
        let pki = |name: &str| self.site.pki.path(name).display().to_string();
        let urls = format!("{},{},http://127.0.0.1:2379", self.site.etcd_url(), self.site.etcd_tls_url());
        vec![
            format!("--data-dir={}", directory.display()),
            format!("--listen-client-urls={urls}"),
            format!("--advertise-client-urls={}", self.site.etcd_url()),
            format!("--cert-file={}", pki("server.crt")),
            format!("--key-file={}", pki("server.key")),
            format!("--trusted-ca-file={}", pki("ca.crt")),
            "--client-cert-auth=true".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--log-level=warn".into(),
        ]
    }

    fn api_server_flags(&self) -> Vec<String> {
        let directory = self.site.slot.directory();
        let pki = |name: &str| self.site.pki.path(name).display().to_string();
        let address = self.site.api_server().replace("https://", "");
        let own = ["http://127.0.0.1:2379".to_owned()];
        let etcd = if self.etcd_servers.is_empty() { &own[..] } else { &self.etcd_servers };
        let mut flags = vec![
            format!("--etcd-servers={}", etcd.join(",")),
            "--secure-port=443".into(),
            "--bind-address=0.0.0.0".into(),
            format!("--advertise-address={address}"),
            format!("--tls-cert-file={}", pki("server.crt")),
            format!("--tls-private-key-file={}", pki("server.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--token-auth-file={}", directory.join("tokens.csv").display()),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--allow-privileged=true".into(),
        ];
        if let Some(audit) = &self.audit {
            flags.push(format!("--audit-policy-file={}", directory.join("audit-policy.json").display()));
            flags.push(format!("--audit-log-path={}", audit.path().display()));
        }
        flags
    }

    fn spawn(&self, name: &str, program: &Path, flags: Vec<String>) -> Result<Process> {
        Process::start(name, &self.netns(), &self.site.log(name), program, &flags)
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processes {
    fn still_run(&mut self) -> Result<()> {
        let all = [&mut self.etcd, &mut self.api_server, &mut self.controller_manager, &mut self.scheduler];
        all.into_iter().flatten().try_for_each(Process::still_runs)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let mut processes = self.processes();
        let Processes { scheduler, controller_manager, api_server, etcd } = &mut *processes;
        [scheduler, controller_manager, api_server, etcd].into_iter().flatten().for_each(Process::let_go);
    }
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ControlPlane").field("site", &self.site).finish_non_exhaustive()
    }
}

/// The users who log in with a token: their names are also their tokens. The nodes' plugins have the first two;
/// whoever calls a plugin to count its requests uses the third.
pub const TOKEN_USERS: [&str; 3] = ["kube-ipam", "calico", "counted"];

fn write_files(site: &Site, restricted: bool) -> Result<()> {
    let directory = site.slot.directory();
    let group = |user: &str| if restricted && user == "kube-ipam" { "kube-ipam" } else { "system:masters" };
    let tokens: String = TOKEN_USERS.iter().map(|user| format!("{user},{user},{user},{}\n", group(user))).collect();
    fs::write(directory.join("tokens.csv"), tokens)?;
    fs::write(directory.join("audit-policy.json"), audit::POLICY)?;
    site.pki.write_kubeconfig(&admin_kubeconfig(site), &site.api_server(), &Identity::unrestricted("admin"))
}

fn admin_kubeconfig(site: &Site) -> PathBuf {
    site.slot.directory().join("admin.kubeconfig")
}

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    // Fails if there is one already, which is as good.
    kube_ipam::store::choose_tls();
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    ensure!(config.proxy_url.is_none(), "a proxy is set for a cluster on this machine");
    let client = kube::Client::try_from(config).context("the admin's client")?;
    Ok(kube_ipam::store::Group::default().client(&client))
}

//! The command line: what people ask of a cluster.

mod agent;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use comfy_table::Table;
use serde_json::json;

use crate::audit::{self, Violation};
use crate::netconf::EtcdConfig;
use crate::store::Ledger as _;
use crate::store::etcd::EtcdLedger;
use crate::store::kube::KubeStore;

/// Fixed and random pod addresses for Calico clusters.
///
/// Exit codes: 0 all is well, 1 violations were found, 2 something could not be done or read.
#[derive(Parser)]
#[command(name = "kube-ipam", version)]
struct Arguments {
    /// The kubeconfig file; by default KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// etcd's client URL, several separated by commas. Without it claims are not looked at.
    #[arg(long, global = true, value_delimiter = ',')]
    etcd_url: Vec<String>,
    /// File with the client certificate for etcd.
    #[arg(long, global = true)]
    etcd_cert: Option<PathBuf>,
    /// File with the key of that certificate.
    #[arg(long, global = true)]
    etcd_key: Option<PathBuf>,
    /// File with the authority that signed etcd's certificate.
    #[arg(long, global = true)]
    etcd_ca: Option<PathBuf>,
    /// The ledger's network: `ipam.name` of the CNI config.
    #[arg(long, global = true, default_value = "k8s-pod-network")]
    network: String,
    /// JSON for machines instead of text for people.
    #[arg(short, long, global = true, value_parser = ["table", "json"], default_value = "table")]
    output: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Holds everything that is recorded against the invariants; exit 1 with a line for each violation.
    Check {
        /// Seconds after which a violation is looked at again before it counts.
        #[arg(long, default_value_t = 2)]
        settle: u64,
    },
    /// Serves this node's pods: the sidecar.
    Agent(agent::AgentArguments),
    /// Lists the claims: who owns which fixed address, and which pod has it.
    Claims,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("no runtime").and_then(|r| r.block_on(arguments.run()));
    outcome.unwrap_or_else(|error| {
        eprintln!("kube-ipam: {error:#}");
        ExitCode::from(2)
    })
}

impl Arguments {
    async fn run(&self) -> Result<ExitCode> {
        match &self.command {
            Command::Agent(arguments) => agent::run(arguments, self.kubeconfig.clone()).await,
            Command::Check { settle } => self.check(Duration::from_secs(*settle)).await,
            Command::Claims => self.claims().await,
        }
    }

    async fn store(&self) -> Result<KubeStore> {
        match &self.kubeconfig {
            Some(path) => Ok(KubeStore::from_kubeconfig(path, None).await?),
            None => Ok(KubeStore::from_config(kube::Config::infer().await?)?),
        }
    }

    async fn ledger(&self) -> Result<Option<EtcdLedger>> {
        if self.etcd_url.is_empty() {
            return Ok(None);
        }
        let config = EtcdConfig {
            endpoints: self.etcd_url.clone(),
            cert_file: self.etcd_cert.clone(),
            key_file: self.etcd_key.clone(),
            ca_file: self.etcd_ca.clone(),
            prefix: "/kube-ipam/v1".into(),
            username: None,
            password_file: None,
        };
        Ok(Some(EtcdLedger::open(&config, &self.network).await?))
    }

    /// A violation counts if it is there twice: a cluster that lives shows each step of a writer for a moment.
    async fn check(&self, settle: Duration) -> Result<ExitCode> {
        let (store, ledger) = (self.store().await?, self.ledger().await?);
        let mut found = self.audit(&store, ledger.as_ref()).await?;
        if !found.is_empty() {
            tokio::time::sleep(settle).await;
            found = audit::persisting(&found, &self.audit(&store, ledger.as_ref()).await?);
        }
        if self.output == "json" {
            println!("{}", serde_json::to_string_pretty(&found)?);
        } else {
            for v in &found {
                println!("{} {}: {} -- {}", v.invariant, v.object, v.detail, v.remedy);
            }
            let claims = if ledger.is_some() { "" } else { " (claims were not looked at: no --etcd-url)" };
            println!("{} violations{claims}", found.len());
        }
        Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    async fn audit(&self, store: &KubeStore, ledger: Option<&EtcdLedger>) -> Result<Vec<Violation>> {
        let reading = audit::read(store, ledger, &|_| {}).await;
        if let Some(error) = reading.unread.into_iter().next() {
            return Err(error).context("could not be read, so nothing can be said");
        }
        let snapshot = reading.snapshot.context("could not be read, so nothing can be said")?;
        Ok(audit::audit(&snapshot))
    }

    async fn claims(&self) -> Result<ExitCode> {
        let ledger = self.ledger().await?.context("claims are in etcd: give --etcd-url")?;
        let claims = ledger.all().await?;
        if self.output == "json" {
            let values: Vec<_> = claims.iter().map(|c| json!(c.value)).collect();
            println!("{}", serde_json::to_string_pretty(&values)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new();
        table.set_header(["ADDRESS", "OWNER", "HOLDER", "NODE", "SINCE"]);
        for claim in claims.into_iter().map(|c| c.value) {
            let (address, owner) = (claim.address.to_string(), claim.owner.to_string());
            table.add_row(match claim.holder {
                Some(h) => [address, owner, h.pod, h.node, h.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()],
                None => [address, owner, "-".into(), "-".into(), "-".into()],
            });
        }
        println!("{table}");
        Ok(ExitCode::SUCCESS)
    }
}

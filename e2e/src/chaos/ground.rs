//! What is harmed: three etcd members, an API server on them, nodes, the pods' network, and a proxy before each store.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kube::Client;
use kube_ipam::store::kube::KubeStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::losses::{Losses, Store};
use super::members::{MEMBERS, Members};
use super::node::{Clock, Node};
use super::proxy::{Proxy, Tls};
use super::segment::Segment;
use crate::bench::ground::furnish;
use crate::lab::agents::Agents;
use crate::lab::{self, Network};
use crate::manifests;
use crate::real::network::TEST_PROCESS_HOST;
use crate::real::site::Site;
use crate::real::{ControlPlane, ControlPlaneOptions, Crds};
use crate::standin::status::register;
use crate::tools::Tools;

pub(super) const NAMESPACE: &str = "chaos";
const SUBNET: &str = "10.244.0.0/16";
/// Four blocks, one for each node. Fixed addresses lie among them.
const RANGE: (&str, &str) = ("10.244.0.10", "10.244.0.250");
/// How long an ADD waits for the holder of a fixed address.
const WAIT: u64 = 4;
/// Name, and the agent's way of taking addresses; the last has none, so that its plugins are on their own.
const NODES: [(&str, Option<bool>); 4] =
    [("node1", Some(true)), ("node2", Some(true)), ("node3", Some(false)), ("node4", None)];

/// Everything that runs. Dropping it removes every trace but logs of a failure.
pub(super) struct Ground {
    // Dropped first: agents and proxies before what they talk to.
    pub agents: Agents,
    _proxies: Vec<Proxy>,
    pub nodes: Vec<Arc<Node>>,
    pub segment: Segment,
    pub losses: Arc<Losses>,
    pub control_plane: ControlPlane,
    pub members: Members,
    pub client: Client,
    kubeconfig: PathBuf,
    pub site: Arc<Site>,
}

// === impl Ground ===

impl Ground {
    /// Starts everything. `calico`: the definitions are all of Calico's.
    pub(super) async fn start(tools: Tools, crds: Crds, calico: bool, seed: u64) -> Result<Ground> {
        let site = Arc::new(Site::prepare(tools)?);
        let options = ControlPlaneOptions { crds, ..Default::default() };
        let control_plane = ControlPlane::prepare(site.clone(), &options).await?;
        let members = Members::start(site.clone(), control_plane.netns()).await?;
        let control_plane = control_plane.on_etcd(members.urls());
        control_plane.run(options).await?;
        let client = control_plane.client();
        let store = KubeStore::from_kubeconfig(&control_plane.kubeconfig(), None).await?;
        furnish(&store, client.clone(), SUBNET, NAMESPACE).await?;
        if calico {
            // calicoctl asks for it; Calico's own controllers make it.
            let config = json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "KubeControllersConfiguration",
                "metadata": {"name": "default"}, "spec": {"controllers": {}},
            });
            manifests::apply(&client, &config).await?;
        }
        let losses = Arc::new(Losses::new(seed));
        let (proxies, kubeconfig, etcd) = proxies(&site, &members, &losses).await?;
        let network = Network { range: (RANGE.0.into(), RANGE.1.into()), wait: WAIT, ..Network::default() };
        let clock = Clock::find();
        let mut nodes = Vec::new();
        for (name, agent) in NODES {
            register(&client, name, IpAddr::V4(site.slot.ipv4(TEST_PROCESS_HOST)), &[]).await?;
            let reached = lab::Site {
                kubeconfig: kubeconfig.display().to_string(),
                etcd: etcd.clone(),
                log_file: Some(log_file(&site, name)?),
                state_dir: None,
            };
            let directory = site.slot.directory().join("nodes");
            nodes.push(Arc::new(Node::prepare(name, agent, &directory, &network, reached, clock.clone())?));
        }
        let segment = Segment::make(site.clone(), 1)?;
        let agents = Agents::default();
        let ground = Ground {
            agents,
            _proxies: proxies,
            nodes,
            segment,
            losses,
            control_plane,
            members,
            client,
            kubeconfig,
            site,
        };
        for node in &ground.nodes {
            ground.start_agent(node).await;
        }
        Ok(ground)
    }

    /// Returns when the node's agent serves, if it has one.
    pub(super) async fn start_agent(&self, node: &Node) {
        node.start_agent(&self.agents, &self.kubeconfig, &self.site.log(&format!("{}-agent", node.name))).await;
    }

    /// The object that owns fixed addresses in the name of its pods.
    pub(super) async fn create_owner(&self, name: &str) -> Result<()> {
        let labels = json!({"app": name});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "none"}]},
            }},
        });
        manifests::apply(&self.client, &deployment).await
    }

    /// Starts the API server again, however often it gives up because etcd has no leader.
    pub(super) async fn start_api_server(&self) {
        while let Err(error) = self.control_plane.start_api_server().await {
            tracing::debug!("{error:#}");
            self.control_plane.kill_api_server();
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for node in &self.nodes {
            self.agents.kill(&node.name);
        }
        Clock::clean_up();
    }
}

/// Beside which plugins without an agent write theirs.
fn log_file(site: &Site, node: &str) -> Result<String> {
    let directory = site.logs().join(node);
    std::fs::create_dir_all(&directory)?;
    Ok(directory.join("cni.log").display().to_string())
}

/// One proxy before the API server and one before each member; the nodes' kubeconfig and `etcdConfig`.
async fn proxies(site: &Site, members: &Members, losses: &Arc<Losses>) -> Result<(Vec<Proxy>, PathBuf, Value)> {
    let here = IpAddr::V4(site.slot.ipv4(TEST_PROCESS_HOST));
    site.pki.write_server("proxy", &[here], &[])?;
    let tls = tls(site)?;
    let api = site.api_server().replace("https://", "") + ":443";
    let mut proxies = vec![Proxy::before(here, Store::Api, api.parse()?, tls.clone(), losses.clone()).await?];
    let kubeconfig = site.slot.directory().join("nodes.kubeconfig");
    site.pki.write_token_kubeconfig(&kubeconfig, &format!("https://{}", proxies[0].address), "kube-ipam")?;
    let mut urls = Vec::new();
    for member in 0..MEMBERS {
        let proxy = Proxy::before(here, Store::Etcd, members.address(member), tls.clone(), losses.clone()).await?;
        urls.push(format!("https://{}", proxy.address));
        proxies.push(proxy);
    }
    let etcd = json!({"etcdURL": urls.join(","), "etcdTrustedCAFile": site.pki.path("ca.crt")});
    Ok((proxies, kubeconfig, etcd))
}

fn tls(site: &Site) -> Result<Tls> {
    let certificates = |name: &str| CertificateDer::pem_file_iter(site.pki.path(name))?.collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_file(site.pki.path("proxy.key"))?;
    let mut server =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certificates("proxy.crt")?, key)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificates("ca.crt")?.pop().context("an authority")?)?;
    let mut client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(server)), connector: TlsConnector::from(Arc::new(client)) })
}

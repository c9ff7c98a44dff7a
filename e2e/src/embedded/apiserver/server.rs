//! The server's life, and the handle tests hold.
//!
//! Invariant: `down` leaves the objects as they are, and `up` serves them at the same address.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::Context as _;
use http::{HeaderName, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::ByteString;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::api::{Api, Asked};
use super::calls::Calls;
use super::connection::Shared;
use super::faults::Faults;
use super::request;

/// What a server starts with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Users by bearer token. Empty: nobody needs a token, and a token given is taken for the user's name.
    pub tokens: BTreeMap<String, String>,
    /// Definitions created before the first request.
    pub crds: Vec<CustomResourceDefinition>,
    /// True: behind TLS, where HTTP/2 is spoken as API servers do; else HTTP/1.1 in the clear.
    pub tls: bool,
}

/// What the server shows of itself.
#[derive(Clone)]
struct Identity {
    acceptor: TlsAcceptor,
    certificate: Vec<u8>,
    /// The same as text.
    authority: String,
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    identity: Option<Identity>,
    running: Mutex<Option<Running>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    fn new() -> anyhow::Result<Self> {
        kube_ipam::store::choose_tls();
        let made = rcgen::generate_simple_self_signed(vec![Ipv4Addr::LOCALHOST.to_string()])?;
        let key = made.signing_key.serialize_der().try_into().map_err(anyhow::Error::msg)?;
        let certificate = made.cert.der().clone();
        let mut tls =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate.clone()], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            certificate: certificate.to_vec(),
            authority: made.cert.pem(),
        })
    }
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts a server on a free loopback port, with the namespaces every cluster has.
    pub fn start(options: &Options) -> anyhow::Result<Self> {
        let listener =
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no loopback port for the API server")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            api: Arc::new(Api::new()),
            calls: Calls::default(),
            faults: Faults::default(),
            tokens: Mutex::new(options.tokens.clone()),
            address: address.to_string(),
            started: Instant::now(),
        });
        let identity = options.tls.then(Identity::new).transpose()?;
        let running = serve(shared.clone(), listener, identity.clone())?;
        let server = Self { running: Mutex::new(Some(running)), shared, address, identity };
        for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            server.create("/api/v1/namespaces", &json!({"metadata": {"name": namespace}}))?;
        }
        for crd in &options.crds {
            server.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &serde_json::to_value(crd)?)?;
        }
        Ok(server)
    }

    /// Creates an object without a connection: no fault strikes it and no call is counted.
    ///
    /// `collection` is the path a client would post to.
    pub fn create(&self, collection: &str, object: &Value) -> anyhow::Result<()> {
        self.write(&http::Method::POST, collection, object)
    }

    /// Sets an object's status, likewise; what it had is kept where `status` says nothing.
    pub fn set_status(&self, collection: &str, name: &str, status: &Value) -> anyhow::Result<()> {
        let path = format!("{collection}/{name}/status");
        self.write(&http::Method::PATCH, &path, &json!({"status": status}))
    }

    fn write(&self, method: &http::Method, path: &str, object: &Value) -> anyhow::Result<()> {
        let target = request::Path::parse(path).with_context(|| format!("{path} is not the path of a resource"))?;
        let body = object.to_string();
        let patches = method == http::Method::PATCH;
        let asked = Asked {
            method,
            query: &request::Query::default(),
            accept: "",
            content_type: if patches { "application/merge-patch+json" } else { "application/json" },
            body: body.as_bytes(),
        };
        let outcome = self.shared.api.handle(target, &asked);
        outcome.map(drop).map_err(|error| anyhow::anyhow!("{path}: {}", error.message))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:<port>`, or https.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.identity.is_some() { "https" } else { "http" }, self.address)
    }

    /// A client that gives `agent` as its `User-Agent`, by which the call log tells it apart.
    /// It belongs to the tokio runtime of the caller.
    pub fn client(&self, agent: &str) -> anyhow::Result<kube::Client> {
        self.client_with_token(agent, None)
    }

    /// The same, with a bearer token.
    pub fn client_with_token(&self, agent: &str, token: Option<&str>) -> anyhow::Result<kube::Client> {
        let mut config = kube::Config::new(self.url().parse()?);
        config.headers.push((HeaderName::from_static("user-agent"), HeaderValue::from_str(agent)?));
        // A client that repeats a 504 by itself hides from the test what its request did.
        config.default_retry = false;
        config.root_cert = self.identity.as_ref().map(|identity| vec![identity.certificate.clone()]);
        config.auth_info.token = token.map(|t| t.to_owned().into());
        Ok(kube::Client::try_from(config)?)
    }

    /// Writes a kubeconfig for this server, with a bearer token if one is given.
    pub fn write_kubeconfig(&self, file: &Path, token: Option<&str>) -> anyhow::Result<()> {
        let user = token.map(|t| json!({"token": t})).unwrap_or_else(|| json!({}));
        let mut cluster = json!({"server": self.url()});
        if let Some(identity) = &self.identity {
            cluster["certificate-authority-data"] = json!(ByteString(identity.authority.clone().into_bytes()));
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "embedded",
            "clusters": [{"name": "embedded", "cluster": cluster}],
            "users": [{"name": "embedded", "user": user}],
            "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": "embedded"}}],
        });
        std::fs::write(file, serde_yaml_ng::to_string(&config)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The faults of this server.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The log of its requests.
    pub fn calls(&self) -> &Calls {
        &self.shared.calls
    }

    /// Every object, by `<resource>/<namespace>/<name>` (`<resource>/<name>` without a namespace), to compare before and after.
    pub fn snapshot(&self) -> BTreeMap<String, Value> {
        self.shared.api.store.with(|state| {
            let id = |key: &super::store::Key| {
                let words = [&key.resource, &key.namespace, &key.name];
                words.into_iter().filter(|w| !w.is_empty()).map(String::as_str).collect::<Vec<_>>().join("/")
            };
            state.all().map(|(key, object)| (id(key), Value::clone(object))).collect()
        })
    }

    /// The newest revision: it stays the same exactly as long as nothing is written.
    pub fn revision(&self) -> u64 {
        self.shared.api.store.with(|state| state.revision)
    }

    /// Forgets the history: watches from older revisions get 410, open ones that are up to date go on.
    pub fn compact(&self) {
        self.shared.api.store.with(super::store::State::compact);
    }

    /// Ends every watch, as a server does that restarts.
    pub fn cut_watches(&self) {
        self.shared.api.watch_epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Sends a bookmark on every watch that allows them.
    pub fn send_bookmarks(&self) {
        self.shared.api.bookmarks.send_modify(|count| *count += 1);
    }

    /// Gives a token to a user.
    pub fn add_token(&self, token: &str, user: &str) {
        self.tokens().insert(token.to_owned(), user.to_owned());
    }

    /// Makes a token invalid, as if it had expired.
    pub fn revoke_token(&self, token: &str) {
        self.tokens().remove(token);
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts all connections and refuses new ones.
    pub fn down(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(running) = running {
            let _ = running.stop.send(());
            let _ = running.thread.join();
        }
    }

    /// Serves again, at the same address and with the same objects.
    pub fn up(&self) -> anyhow::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = Some(serve(self.shared.clone(), listen_again(self.address)?, self.identity.clone())?);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

/// Binds a port that was ours a moment ago: connections in TIME_WAIT must not prevent it.
fn listen_again(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    // The standard library sets SO_REUSEADDR on Unix.
    std::net::TcpListener::bind(address)
}

/// Serves on a thread of its own.
fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, identity: Option<Identity>) -> io::Result<Running> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else {
                return;
            };
            let mut connections = JoinSet::new();
            tokio::select! {
                () = accept(shared, listener, identity, &mut connections) => {}
                _ = stopped => {}
            }
        });
    })?;
    Ok(Running { stop, thread })
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, identity: Option<Identity>, connections: &mut JoinSet<()>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        // Without it, small answers wait 40 ms for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let (shared, identity) = (shared.clone(), identity.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { shared.answer(request).await }
            });
            // A cut connection ends with an error that was asked for.
            let mut http1 = http1::Builder::new();
            http1.timer(TokioTimer::new());
            let Some(Identity { acceptor, .. }) = identity else {
                return drop(http1.serve_connection(TokioIo::new(stream), service).await);
            };
            let Ok(stream) = acceptor.accept(stream).await else { return };
            match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => {
                    let http2 = http2::Builder::new(TokioExecutor::new());
                    drop(http2.serve_connection(TokioIo::new(stream), service).await);
                }
                _ => drop(http1.serve_connection(TokioIo::new(stream), service).await),
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

//! How requests reach an API server: over how many connections, and what happens when one breaks off.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use calico::IPAMHandle;
use futures::future::join_all;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::ByteString;
use kube_ipam::store::Objects as _;
use kube_ipam::store::kube::KubeStore;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// An API server that has nothing, behind TLS.
struct Server {
    connections: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<JoinHandle<()>>>>,
    farewell: Arc<Notify>,
    directory: TempDir,
}

impl Server {
    /// Speaks only `protocol`, as ALPN names it; none: it takes no part in ALPN and speaks HTTP/1.1.
    async fn start(protocol: Option<&'static str>) -> Server {
        kube_ipam::store::choose_tls();
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = certified.signing_key.serialize_der().try_into().unwrap();
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = protocol.iter().map(|name| name.as_bytes().to_vec()).collect();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = Server {
            connections: Arc::default(),
            open: Arc::default(),
            farewell: Arc::default(),
            directory: TempDir::with_prefix("transport-").unwrap(),
        };
        server.write_kubeconfig(listener.local_addr().unwrap().port(), &certified.cert.pem());
        let (connections, open, farewell) = (server.connections.clone(), server.open.clone(), server.farewell.clone());
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                stream.set_nodelay(true).unwrap();
                let (acceptor, farewell) = (acceptor.clone(), farewell.clone());
                let serving = tokio::spawn(async move {
                    let stream = TokioIo::new(acceptor.accept(stream).await.unwrap());
                    // A connection that a test cuts ends with an error that was asked for.
                    let _ = match protocol {
                        Some("h2") => {
                            let builder = http2::Builder::new(TokioExecutor::new());
                            let mut serving = pin!(builder.serve_connection(stream, service_fn(absent)));
                            tokio::select! {
                                ended = &mut serving => ended,
                                () = farewell.notified() => {
                                    serving.as_mut().graceful_shutdown();
                                    serving.await
                                }
                            }
                        }
                        _ => http1::Builder::new().serve_connection(stream, service_fn(absent)).await,
                    };
                });
                open.lock().unwrap().push(serving);
            }
        });
        server
    }

    fn write_kubeconfig(&self, port: u16, authority: &str) {
        let cluster = json!({
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": ByteString(authority.as_bytes().to_vec()),
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "c", "user": {"token": "any"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(self.directory.path().join("kubeconfig"), config.to_string()).unwrap();
    }

    async fn store(&self) -> KubeStore {
        KubeStore::from_kubeconfig(&self.directory.path().join("kubeconfig"), None).await.unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Asks the clients to come back on other connections, as an API server does that is about to stop.
    fn say_goodbye(&self) {
        self.farewell.notify_waiters();
    }

    fn cut(&self) {
        self.open.lock().unwrap().drain(..).for_each(|serving| serving.abort());
    }
}

async fn absent(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.headers()["authorization"], "Bearer any");
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
    Ok(Response::builder().status(404).body(Full::new(status.to_string().into())).unwrap())
}

async fn eight_reads(store: &KubeStore) {
    for read in join_all((0..8).map(|_| store.get::<IPAMHandle>(None, "absent"))).await {
        assert!(read.unwrap().is_none());
    }
}

#[tokio::test]
async fn reads_side_by_side_share_one_connection() {
    let server = Server::start(Some("h2")).await;
    let store = server.store().await;
    eight_reads(&store).await;
    eight_reads(&store).await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_2_is_served_as_well() {
    for protocol in [Some("http/1.1"), None] {
        let server = Server::start(protocol).await;
        eight_reads(&server.store().await).await;
        assert!(server.connections() > 1);
    }
}

#[tokio::test]
async fn after_a_connection_was_cut_the_next_request_makes_a_new_one() {
    let server = Server::start(Some("h2")).await;
    let store = server.store().await;
    eight_reads(&store).await;
    server.cut();
    // The one that finds the connection cut may fail: nobody repeats it, since it might have been a write.
    let _ = store.get::<IPAMHandle>(None, "absent").await;
    eight_reads(&store).await;
    assert_eq!(server.connections(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_because_the_server_closes_its_connections_in_good_order() {
    let server = Server::start(Some("h2")).await;
    let store = server.store().await;
    for _ in 0..100 {
        eight_reads(&store).await;
        server.say_goodbye();
        eight_reads(&store).await;
    }
    assert!(server.connections() > 50, "{}", server.connections());
}

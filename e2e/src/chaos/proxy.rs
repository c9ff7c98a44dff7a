//! A proxy before a server that carries a write out and then loses the reply: the connection is cut, or stays silent.
//!
//! It ends TLS and speaks HTTP/2 on both sides, so that it knows what it loses: an object that the API server has
//! stored, a transaction of etcd that took effect. Every client has an upstream connection of its own; when one ends, so
//! does the other.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, Uri, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::losses::{Fate, Losses, Store};

/// Longer than any client waits for an answer.
const SILENCE: Duration = Duration::from_secs(8);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// TLS towards clients and towards the API server.
#[derive(Clone)]
pub(super) struct Tls {
    pub acceptor: TlsAcceptor,
    pub connector: TlsConnector,
}

/// A proxy before one server. Dropping it stops it; connections that are open go on.
pub(super) struct Proxy {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

/// What one proxy knows.
struct Upstream {
    store: Store,
    server: SocketAddr,
    tls: Tls,
    losses: Arc<Losses>,
}

/// One client's connection.
struct Session {
    upstream: Arc<Upstream>,
    sender: SendRequest<Incoming>,
    /// Ends both connections.
    end: Arc<Notify>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

type Body = BoxBody<Bytes, hyper::Error>;

// === impl Proxy ===

impl Proxy {
    /// Before `server`, on a free port of `here`.
    pub(super) async fn before(
        here: IpAddr,
        store: Store,
        server: SocketAddr,
        tls: Tls,
        losses: Arc<Losses>,
    ) -> Result<Proxy> {
        let listener = TcpListener::bind((here, 0)).await.context("a proxy's port")?;
        let address = listener.local_addr()?;
        let upstream = Arc::new(Upstream { store, server, tls, losses });
        let accepting = tokio::spawn(async move {
            loop {
                // Out of file descriptors, for one: others are about to be closed.
                let Ok((client, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    // A connection that was cut ends with an error, which was asked for.
                    let _ = upstream.serve(client).await;
                });
            }
        });
        Ok(Proxy { address, accepting })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

// === impl Upstream ===

impl Upstream {
    async fn serve(self: Arc<Self>, client: TcpStream) -> Result<()> {
        client.set_nodelay(true)?;
        let server = tokio::time::timeout(CONNECT_LIMIT, self.connect()).await??;
        let client = self.tls.acceptor.accept(client).await?;
        let two = client.get_ref().1.alpn_protocol() == Some(b"h2");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server)).await?;
        let end = Arc::new(Notify::new());
        let session = Arc::new(Session { upstream: self, sender, end: end.clone() });
        let service = service_fn(move |request| {
            let session = session.clone();
            async move { session.forward(request).await }
        });
        let client = TokioIo::new(client);
        let serving: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> = if two {
            Box::pin(http2::Builder::new(TokioExecutor::new()).serve_connection(client, service))
        } else {
            Box::pin(http1::Builder::new().serve_connection(client, service))
        };
        let upstream = tokio::spawn(connection);
        let stop = upstream.abort_handle();
        tokio::select! {
            _ = serving => {}
            _ = upstream => {}
            () = end.notified() => {}
        }
        stop.abort();
        Ok(())
    }

    async fn connect(&self) -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.server).await?;
        stream.set_nodelay(true)?;
        Ok(match self.store {
            Store::Etcd => Box::new(stream),
            Store::Api => {
                let name = ServerName::IpAddress(self.server.ip().into());
                Box::new(self.tls.connector.connect(name, stream).await?)
            }
        })
    }

    /// The same request for the server, in HTTP/2.
    fn readdressed(&self, request: Request<Incoming>) -> Result<Request<Incoming>> {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let scheme = if self.store == Store::Api { "https" } else { "http" };
        parts.uri = Uri::builder().scheme(scheme).authority(self.server.to_string()).path_and_query(path).build()?;
        parts.version = http::Version::HTTP_2;
        for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
            parts.headers.remove(name);
        }
        Ok(Request::from_parts(parts, body))
    }
}

// === impl Session ===

impl Session {
    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Body>, std::convert::Infallible> {
        match self.carry_out(request).await {
            Ok(response) => Ok(response),
            Err(_) => {
                self.end.notify_one();
                std::future::pending().await
            }
        }
    }

    async fn carry_out(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let Upstream { store, losses, .. } = &*self.upstream;
        let may_be_lost = is_write(*store, request.method(), request.uri());
        let request = self.upstream.readdressed(request)?;
        let response = self.sender.clone().send_request(request).await?;
        let (parts, body) = response.into_parts();
        if !may_be_lost {
            return Ok(Response::from_parts(parts, body.boxed()));
        }
        let answer = body.collect().await?;
        let trailers = answer.trailers().cloned();
        let bytes = answer.to_bytes();
        let committed = match store {
            Store::Api => parts.status.is_success(),
            Store::Etcd => is_ok(trailers.as_ref()) && took_effect(&bytes),
        };
        let fate = if committed { losses.fate(*store) } else { Fate::Passes };
        match fate {
            Fate::Passes => {
                let body = Full::new(bytes).with_trailers(std::future::ready(trailers.map(Ok)));
                return Ok(Response::from_parts(parts, body.map_err(|never| match never {}).boxed()));
            }
            Fate::Cut => {}
            Fate::Silent => tokio::time::sleep(SILENCE).await,
        }
        anyhow::bail!("lost")
    }
}

/// Requests whose replies are worth losing: changes of what Calico and kube-ipam record.
fn is_write(store: Store, method: &Method, uri: &Uri) -> bool {
    match store {
        Store::Etcd => uri.path() == "/etcdserverpb.KV/Txn",
        Store::Api => {
            [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method)
                && uri.path().starts_with("/apis/crd.projectcalico.org/")
        }
    }
}

fn is_ok(trailers: Option<&HeaderMap>) -> bool {
    trailers.and_then(|trailers| trailers.get("grpc-status")).is_some_and(|status| status == "0")
}

/// Whether a gRPC message with etcd's TxnResponse says `succeeded`, its second field, which follows the header.
fn took_effect(message: &[u8]) -> bool {
    let inner = |message: &[u8]| -> Option<bool> {
        let fields = message.get(5..)?;
        let after_header = match fields.split_first()? {
            (0x0a, rest) => {
                let (length, rest) = rest.split_first()?;
                // A header of 128 bytes or more has a longer length; etcd's has some thirty.
                rest.get(usize::from(*length)..).filter(|_| *length < 0x80)?
            }
            _ => fields,
        };
        Some(after_header.starts_with(&[0x10, 0x01]))
    };
    inner(message).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_transaction_that_took_effect_counts_as_committed() {
        let message = |fields: &[u8]| [&[0, 0, 0, 0, fields.len() as u8], fields].concat();
        assert!(took_effect(&message(&[0x0a, 2, 0x18, 7, 0x10, 1, 0x1a, 0])));
        assert!(!took_effect(&message(&[0x0a, 2, 0x10, 1, 0x1a, 0])));
        assert!(took_effect(&message(&[0x10, 1])));
        for cut in [&[][..], &[0, 0, 0], &[0, 0, 0, 0, 2, 0x0a, 9, 1]] {
            assert!(!took_effect(cut));
        }
    }

    #[test]
    fn changes_of_records_may_be_lost_and_reads_never() {
        let is = |store, method, path: &str| is_write(store, &method, &path.parse().unwrap());
        let block = "https://a/apis/crd.projectcalico.org/v1/ipamblocks/10-0-0-0-26";
        assert!(is(Store::Api, Method::PUT, block));
        assert!(!is(Store::Api, Method::GET, block));
        assert!(!is(Store::Api, Method::POST, "https://a/api/v1/namespaces/default/events"));
        assert!(is(Store::Etcd, Method::POST, "https://a/etcdserverpb.KV/Txn"));
        assert!(!is(Store::Etcd, Method::POST, "https://a/etcdserverpb.KV/Range"));
    }
}

//! What the agent shows over HTTP: to this user on a socket of the state directory everything, to everybody
//! who reaches an address given for that only what holds no name of a pod.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::net::unix::SocketAddr as UnixAddr;
use tokio::net::{TcpListener, UnixStream};
use tokio::time::timeout;

use super::Agent;
use super::room::Room;
use super::socket::{BindError, Listener, is_ours};
use crate::collector::Election;

/// Type of OpenMetrics' text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Longest wait for the Lease that says who leads.
const LEASE_TIME: Duration = Duration::from_secs(2);
/// Connections at once. Beyond that the oldest makes room: whoever wants to know something is done in a moment.
const CONNECTIONS: usize = 64;
/// Longest life of a connection, from its first byte to the last of the answer.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const BUFFER: usize = 16 << 10;

/// Listens on an address for everybody.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError::Address { address, source })
}

/// Serves everybody.
pub(super) async fn serve_all(agent: Arc<Agent>, listener: TcpListener) {
    serve(listener, routes().with_state(agent)).await;
}

/// Serves this user and root.
pub(super) async fn serve_own(agent: Arc<Agent>, listener: Listener) {
    let routes = routes().route("/status", get(status));
    serve(Private(listener), routes.with_state(agent)).await;
}

/// Serves one request of each connection, of as many as there are places for.
async fn serve(mut listener: impl axum::serve::Listener, routes: Router) {
    let room = Room::new(CONNECTIONS);
    let mut protocol = http1::Builder::new();
    protocol.keep_alive(false).max_buf_size(BUFFER);
    loop {
        let (stream, _) = listener.accept().await;
        let place = room.enter().await;
        let serving = protocol.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
        tokio::spawn(async move {
            tokio::select! {
                _ = timeout(CONNECTION_TIME, serving) => {}
                () = place.lost() => {}
            }
        });
    }
}

fn routes() -> Router<Arc<Agent>> {
    Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

async fn metrics(State(agent): State<Arc<Agent>>) -> Response {
    ([(CONTENT_TYPE, OPEN_METRICS)], agent.witness.metrics.text(&agent.status())).into_response()
}

async fn healthz(State(agent): State<Arc<Agent>>) -> Response {
    verdict("these loops do not move", &agent.health.stuck())
}

async fn readyz(State(agent): State<Arc<Agent>>) -> Response {
    verdict("not ready", &agent.not_ready())
}

/// 200 if there is nothing to say, else 503 with what there is.
fn verdict<T: AsRef<str>>(wrong: &str, found: &[T]) -> Response {
    if found.is_empty() {
        return "ok\n".into_response();
    }
    let found = found.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{wrong}: {found}\n")).into_response()
}

async fn status(agent: State<Arc<Agent>>) -> Response {
    let mut status = agent.status();
    status.collector.leader = agent.leader().await;
    Json(status).into_response()
}

impl Agent {
    /// The node whose agent leads the collectors, as the Lease says.
    async fn leader(&self) -> Option<String> {
        let Election { namespace, lease, .. } = Election::default();
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &namespace);
        let lease = timeout(LEASE_TIME, leases.get(&lease)).await.ok()?.ok()?;
        let identity = lease.spec?.holder_identity.filter(|identity| !identity.is_empty())?;
        // Something random follows the node's name.
        Some(identity.rsplit_once('_').map_or(identity.as_str(), |(node, _)| node).to_owned())
    }
}

/// A socket that lets nobody in but this user and root.
struct Private(Listener);

impl axum::serve::Listener for Private {
    type Io = UnixStream;
    type Addr = UnixAddr;

    async fn accept(&mut self) -> (UnixStream, UnixAddr) {
        loop {
            match self.0.listener().accept().await {
                Ok((stream, address)) if is_ours(&stream) => return (stream, address),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<UnixAddr> {
        self.0.listener().local_addr()
    }
}

//! The way to an API server: one connection for all requests of a process, where the server speaks HTTP/2.
//!
//! kube's own client speaks HTTP/1.1 only. There, requests side by side need a connection each, and each
//! connection a TLS handshake, which costs both sides more than most requests do. Nothing is
//! repeated here that the server may have seen: a request whose connection breaks off fails, and the next one makes a
//! new connection.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_rustls::{DefaultServerNameResolver, FixedServerNameResolver, HttpsConnector, ResolveServerName};
use hyper_util::client::legacy::Client as Http1;
use hyper_util::client::legacy::connect::{Connection as _, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt as _, RustlsTlsError};
use kube::{Client, Config, Error};
use tokio::sync::Mutex;
use tower::util::MapRequestLayer;
use tower::{BoxError, Service, ServiceBuilder};

use super::group::copy;
use super::heard::{Heard, Listening};
use super::token_file::TokenFile;

/// How often a connection with requests on it is asked whether it still lives, and how long for the answer.
const PING_EVERY: Duration = Duration::from_secs(2);
/// On how many connections a request is tried while servers close them without having looked at it.
const CONNECTIONS: u32 = 5;

/// A client for this configuration.
///
/// # Errors
/// The certificates or the address in it cannot be used.
pub(super) fn client(mut config: Config) -> Result<Client, Error> {
    // Without TLS nothing tells beforehand which protocol a server speaks, and a connection costs next to nothing.
    if config.cluster_url.scheme() != Some(&Scheme::HTTPS) || proxy(&config).is_some() {
        return plain(config);
    }
    let token = TokenFile::of(&mut config)?.map(signed_by);
    let transport = Transport::new(&config)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .option_layer(token)
        .layer(config.extra_headers_layer()?)
        .service(transport);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// kube's own client for this configuration.
///
/// # Errors
/// The certificates or the address in it cannot be used.
pub(crate) fn plain(mut config: Config) -> Result<Client, Error> {
    config.proxy_url = proxy(&config);
    let token = TokenFile::of(&mut config)?.map(signed_by);
    let builder = ClientBuilder::try_from(config)?;
    Ok(match token {
        Some(token) => builder.with_layer(&token).build(),
        None => builder.build(),
    })
}

/// Signs requests with the token of a file.
fn signed_by(file: TokenFile) -> MapRequestLayer<impl Fn(Request<Body>) -> Request<Body> + Clone> {
    MapRequestLayer::new(move |request| file.sign(request))
}

/// The proxy to the server. That of the environment is not for a server that `NO_PROXY` excludes, as a runtime's environment
/// often does with the cluster: kube compares that with the proxy's own address.
fn proxy(config: &Config) -> Option<Uri> {
    let values = PROXY_VARIABLES.into_iter().filter_map(|name| std::env::var(name).ok()?.parse().ok());
    chosen(config, &values.collect::<Vec<Uri>>(), &Matcher::from_env())
}

fn chosen(config: &Config, of_environment: &[Uri], environment: &Matcher) -> Option<Uri> {
    let excluded = |proxy: &Uri| of_environment.contains(proxy) && environment.intercept(&config.cluster_url).is_none();
    config.proxy_url.clone().filter(|proxy| !excluded(proxy))
}

/// Where kube looks for a proxy that a kubeconfig does not name.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// Sends requests with absolute URIs to one server.
#[derive(Clone)]
struct Transport {
    server: Uri,
    connector: HttpsConnector<HttpConnector>,
    connect_timeout: Duration,
    /// Held while a connection is made: whoever comes meanwhile waits and uses it too.
    spoken: Arc<Mutex<Spoken>>,
    http1: Http1<HttpsConnector<HttpConnector>, Body>,
}

/// What the server speaks, as far as it was asked.
enum Spoken {
    Unknown,
    Http1,
    Http2(SendRequest<Body>, Heard),
}

// === impl Transport ===

impl Transport {
    fn new(config: &Config) -> Result<Self, Error> {
        let connect_timeout = config.connect_timeout.unwrap_or(super::kube::CALL_TIMEOUT);
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        // A request must not wait until the server has acknowledged the handshake's last flight.
        http.set_nodelay(true);
        http.set_connect_timeout(Some(connect_timeout));
        let mut tls = config.rustls_client_config()?;
        let http1 = Http1::builder(TokioExecutor::new()).build(connector(config, tls.clone(), http.clone())?);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connector = connector(config, tls, http)?;
        let spoken = Arc::new(Mutex::new(Spoken::Unknown));
        Ok(Self { server: config.cluster_url.clone(), connector, connect_timeout, spoken, http1 })
    }

    /// The shared connection, and when it is heard of; `None` if the server does not speak HTTP/2.
    async fn http2(&self) -> Result<Option<(SendRequest<Body>, Heard)>, BoxError> {
        let mut spoken = self.spoken.lock().await;
        match &*spoken {
            Spoken::Http2(sender, heard) if !sender.is_closed() => return Ok(Some((sender.clone(), heard.clone()))),
            Spoken::Http1 => return Ok(None),
            _ => {}
        }
        let mut connector = self.connector.clone();
        let connecting = tokio::time::timeout(self.connect_timeout, connector.call(self.server.clone()));
        let stream = connecting.await.map_err(|_| format!("no connection within {:?}", self.connect_timeout))??;
        if !stream.connected().is_negotiated_h2() {
            *spoken = Spoken::Http1;
            return Ok(None);
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING_EVERY).keep_alive_timeout(PING_EVERY);
        let heard = Heard::now();
        let (sender, connection) = builder.handshake(Listening::new(stream, heard.clone())).await?;
        // Its end shows in the sender.
        tokio::spawn(connection.map(drop));
        *spoken = Spoken::Http2(sender.clone(), heard.clone());
        Ok(Some((sender, heard)))
    }
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let transport = self.clone();
        async move {
            let mut request = request;
            for _ in 0..CONNECTIONS {
                let Some((mut sender, heard)) = transport.http2().await? else {
                    return Ok(transport.http1.request(request).await?);
                };
                if sender.ready().await.is_err() {
                    continue;
                }
                let spare = copy(&request);
                let mut failed = match sender.try_send_request(request).await {
                    Ok(mut answer) => {
                        answer.extensions_mut().insert(heard);
                        return Ok(answer);
                    }
                    Err(failed) => failed,
                };
                let refused = if was_refused(failed.error()) { spare } else { None };
                request = failed.take_message().or(refused).ok_or_else(|| failed.into_error())?;
            }
            Err(format!("the server closed {CONNECTIONS} connections without looking at the request").into())
        }
        .boxed()
    }
}

/// Whether a server that closes its connection in good order, as API servers do now and then, says that it has not
/// looked at this request and will not.
fn was_refused(error: &hyper::Error) -> bool {
    let mut causes = std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
    causes.any(|cause| {
        cause.downcast_ref::<h2::Error>().is_some_and(|error| {
            let reason = error.reason();
            (error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR))
                || (error.is_reset() && error.is_remote() && reason == Some(h2::Reason::REFUSED_STREAM))
        })
    })
}

fn connector(
    config: &Config,
    tls: rustls::ClientConfig,
    http: HttpConnector,
) -> Result<HttpsConnector<HttpConnector>, Error> {
    let resolver: Arc<dyn ResolveServerName + Send + Sync> = match &config.tls_server_name {
        Some(name) => {
            let name = name.clone().try_into().map_err(|e| Error::RustlsTls(RustlsTlsError::InvalidServerName(e)))?;
            Arc::new(FixedServerNameResolver::new(name))
        }
        None => Arc::new(DefaultServerNameResolver::default()),
    };
    Ok(HttpsConnector::new(http, tls, true, resolver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_of_the_environment_is_for_servers_that_it_does_not_exclude() {
        let environment =
            Matcher::builder().https("http://proxy.example:3128").no("10.96.0.0/12,.cluster.local").build();
        let proxy: Uri = "http://proxy.example:3128".parse().unwrap();
        let chosen = |server: &str, of_environment: &[Uri]| {
            let mut config = Config::new(server.parse().unwrap());
            config.proxy_url = Some(proxy.clone());
            chosen(&config, of_environment, &environment)
        };
        let named = [proxy.clone()];
        assert_eq!(chosen("https://192.0.2.7:6443", &named), Some(proxy.clone()));
        for excluded in ["https://10.96.0.1:443", "https://api.cluster.local"] {
            assert_eq!(chosen(excluded, &named), None, "{excluded}");
            // A kubeconfig's own word counts.
            assert_eq!(chosen(excluded, &[]), Some(proxy.clone()), "{excluded}");
        }
    }
}

//! The ledger in etcd: one key a claim, one transaction a change.
//!
//! Key `<prefix>/<network>/claims/<address>`, value the claim as JSON. The compare of every transaction is on
//! the key's `mod_revision`, so a stale read can cost a retry but never an address. Nothing is repeated here:
//! a transaction without an answer is reported as unknown and the caller reads back.
//!
//! Key `<prefix>/<network>/cluster`, the marker, holds the UID of the cluster whose claims lie beside it. Every read
//! gets it with the claims, and every change compares it, in the same request: another cluster's claims are neither
//! read nor written. A ledger without a marker gets one with its first change, or, if it has claims from before
//! there were markers, as soon as one of them proves to be this cluster's.

mod marker;
mod view;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, Identity, KeyValue, KvClient, TlsOptions, Txn,
    TxnOp, WatchOptions,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use self::marker::Marker;
use self::view::{Purpose, View};
use super::cluster::ClusterId;
use super::{Failure, Ledger, Listed, StoreError, Swap, Unreadable, Versioned, tls};
use crate::claim::{Claim, LedgerName};
use crate::netconf::EtcdConfig;

/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause after a watch that the server ended.
const AFTER_A_CUT: Duration = Duration::from_millis(500);

/// Claims of one network of one cluster in etcd.
#[derive(Clone)]
pub struct EtcdLedger {
    client: Client,
    name: LedgerName,
    /// `<prefix>/<network>/`.
    place: String,
    credentials: Credentials,
    /// The cluster. Its API server tells whose the claims of a ledger without a marker are.
    cluster: Arc<ClusterId>,
}

/// Names the fields and files of the credentials, for the error that says they are not accepted.
#[derive(Clone)]
struct Credentials {
    names: Arc<str>,
    /// Whether etcd sees a certificate of ours.
    certificate: bool,
}

// === impl EtcdLedger ===

impl EtcdLedger {
    /// A ledger for `network` of `cluster`, whose UID is asked for by the first call. Connections are made
    /// then, or now if a user has to log in.
    ///
    /// # Errors
    /// [`Failure::Unreadable`] and [`Failure::Malformed`] naming the certificate, key, CA or password file that
    /// cannot be used; [`Failure::Denied`] if it is not accepted; [`Failure::Refused`] for an endpoint that is no URL.
    pub async fn open(config: &EtcdConfig, network: &str, cluster: &Arc<ClusterId>) -> Result<Self, StoreError> {
        let fail = |failure| StoreError::new("connect", format!("etcd {}", config.endpoints.join(",")), failure);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CALL_TIMEOUT)
            .with_timeout(CALL_TIMEOUT)
            .with_require_leader(true);
        if config.endpoints.iter().any(|e| e.starts_with("https://")) {
            options = options.with_tls(tls_options(config).map_err(fail)?);
        }
        if let Some((user, password)) = credentials(config).map_err(fail)? {
            // A token lives for five minutes by default.
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let credentials = Credentials::of(config);
        let what = format!("etcd {}", config.endpoints.join(","));
        let client = credentials.bounded("connect", &what, Client::connect(&config.endpoints, Some(options))).await?;
        Ok(Self {
            client,
            name: LedgerName::etcd(&config.prefix, network),
            place: format!("{}/{network}/", config.prefix.trim_end_matches('/')),
            credentials,
            cluster: cluster.clone(),
        })
    }

    fn kv(&self) -> KvClient {
        self.client.kv_client()
    }

    fn key(&self, address: IpAddr) -> String {
        format!("{}{address}", self.claims())
    }

    fn claims(&self) -> String {
        format!("{}claims/", self.place)
    }

    fn marker(&self) -> String {
        format!("{}cluster", self.place)
    }

    /// The ledger as the cluster sees it that this process is of.
    async fn view(&self) -> Result<View<'_>, StoreError> {
        Ok(View { ledger: self, cluster: self.cluster.uid().await? })
    }
}

impl Ledger for EtcdLedger {
    fn name(&self) -> LedgerName {
        self.name.clone()
    }

    async fn read(&self, address: IpAddr) -> Result<Option<Versioned<Claim>>, StoreError> {
        let (view, what) = (self.view().await?, format!("claim {address}"));
        let txn = Txn::new().and_then([TxnOp::get(self.marker(), None), TxnOp::get(self.key(address), None)]);
        let mut kv = self.kv();
        let answer = self.credentials.bounded("range", &what, kv.txn(txn)).await?;
        let (marker, claim) = view.after_marker(&answer);
        match marker {
            Marker::Ours => {}
            Marker::Others(cluster) => return Err(view.foreign(&what, &cluster)),
            Marker::Missing => view.settle(&what, Purpose::Read).await?,
        }
        claim.map(|pair| decode(&what, &pair)).transpose()
    }

    async fn listed(&self) -> Result<Listed, StoreError> {
        let view = self.view().await?;
        let found = view.range().await?;
        match found.marker {
            Marker::Ours => {}
            Marker::Others(cluster) => return Err(view.foreign("claims", &cluster)),
            Marker::Missing if found.claims.is_empty() => {}
            Marker::Missing => view.settle("claims", Purpose::Read).await?,
        }
        let mut listed = Listed::default();
        for pair in &found.claims {
            let key = pair.key_str().unwrap_or("claim");
            match decode(key, pair) {
                Ok(claim) => listed.claims.push(claim),
                Err(error) => listed.unreadable.push(Unreadable {
                    record: key.to_owned(),
                    address: key.strip_prefix(&self.claims()).and_then(|address| address.parse().ok()),
                    why: error.failure.to_string(),
                    remedy: format!("look at it by `etcdctl get {key}`; mend it, or delete it by `etcdctl del {key}`"),
                }),
            }
        }
        listed.claims.sort_by_key(|c| c.value.address);
        Ok(listed)
    }

    async fn swap(&self, address: IpAddr, expected: Option<i64>, claim: Option<&Claim>) -> Result<Swap, StoreError> {
        let (view, what, key) = (self.view().await?, format!("claim {address}"), self.key(address));
        let (write, purpose) = match claim {
            Some(claim) => {
                let value = serde_json::to_vec(claim)
                    .map_err(|e| StoreError::new("txn", what.as_str(), Failure::Refused(e.to_string())))?;
                (TxnOp::put(key.as_str(), value, None), Purpose::Write)
            }
            None => (TxnOp::delete(key.as_str(), None), Purpose::Delete),
        };
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, expected.unwrap_or(0));
        let txn = Txn::new()
            .when([view.is_marked(), unchanged])
            .and_then([write])
            .or_else([TxnOp::get(self.marker(), None), TxnOp::get(key.as_str(), None)]);
        let mut settled = false;
        loop {
            let mut kv = self.kv();
            let answer = self.credentials.bounded("txn", &what, kv.txn(txn.clone())).await?;
            if answer.succeeded() {
                let revision = answer.header().map_or(0, |h| h.revision());
                return Ok(Swap::Done(if claim.is_some() { revision } else { 0 }));
            }
            match view.after_marker(&answer) {
                (Marker::Ours, standing) => {
                    return Ok(Swap::Lost(standing.map(|pair| decode(&what, &pair)).transpose()?));
                }
                (Marker::Others(cluster), _) => return Err(view.foreign(&what, &cluster)),
                // Somebody takes it away as often as it is put there.
                (Marker::Missing, _) if settled => return Err(StoreError::new("txn", what, Failure::Conflict)),
                (Marker::Missing, _) => view.settle(&what, purpose).await?,
            }
            settled = true;
        }
    }

    async fn changed(&self, address: IpAddr, revision: i64) -> Result<(), StoreError> {
        let what = format!("claim {address}");
        let fail = |e: &Error| StoreError::new("watch", what.as_str(), self.credentials.sort(e));
        let options = WatchOptions::new().with_start_revision(revision + 1);
        let mut stream =
            self.client.watch_client().watch(self.key(address), Some(options)).await.map_err(|e| fail(&e))?;
        loop {
            match stream.message().await.map_err(|e| fail(&e))? {
                Some(message) if message.canceled() => {
                    // Compacted, as a rule. Only a read can tell, and whoever waits is not to read without pause.
                    tokio::time::sleep(AFTER_A_CUT).await;
                    return Ok(());
                }
                Some(message) if message.events().is_empty() => {}
                // An event; or a watch that was cut, after which only a read can tell.
                _ => return Ok(()),
            }
        }
    }
}

// === impl Credentials ===

impl Credentials {
    fn of(config: &EtcdConfig) -> Self {
        let files = [
            ("etcdTrustedCAFile", &config.ca_file),
            ("etcdCertFile", &config.cert_file),
            ("etcdKeyFile", &config.key_file),
            ("etcdPasswordFile", &config.password_file),
        ];
        let named = files.into_iter().filter_map(|(field, path)| Some(format!("{field} {}", path.as_ref()?.display())));
        let user = config.username.iter().map(|user| format!("etcdUsername {user}"));
        let all: Vec<String> = named.chain(user).collect();
        let all = if all.is_empty() { "no credentials".to_owned() } else { all.join(", ") };
        Self { names: format!("etcdConfig: {all}").into(), certificate: config.cert_file.is_some() }
    }

    async fn bounded<T>(
        &self,
        verb: &'static str,
        what: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let late = || Failure::Unknown(format!("no answer from etcd within {CALL_TIMEOUT:?}"));
        let failure = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(e)) => self.sort(&e),
            Err(_) => late(),
        };
        Err(StoreError::new(verb, what, failure))
    }

    fn sort(&self, error: &Error) -> Failure {
        // etcd-client's error does not give what it wraps as its source.
        let below: &(dyn std::error::Error + 'static) = match error {
            Error::GRpcStatus(status) => status,
            Error::TransportError(transport) => transport,
            other => other,
        };
        match tls::refusal(below).map_or_else(|| sort(error), Failure::Denied) {
            Failure::Denied(why) => Failure::Denied(format!("{why} ({})", self.names)),
            // In TLS 1.3 a server judges the client's certificate after the client is done with the handshake, and
            // what the client then sees is often no more than a closed connection.
            Failure::Unknown(why) if self.certificate && was_closed(error) => Failure::Unknown(format!(
                "{why}; a client certificate that etcd does not accept shows like this, too ({})",
                self.names
            )),
            other => other,
        }
    }
}

fn decode(what: &str, pair: &KeyValue) -> Result<Versioned<Claim>, StoreError> {
    let value = serde_json::from_slice(pair.value())
        .map_err(|e| StoreError::new("range", what, Failure::Corrupt(e.to_string())))?;
    Ok(Versioned { value, revision: pair.mod_revision() })
}

/// Whether the connection was closed, rather than never made or silent.
fn was_closed(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if !super::kube::chain(status).contains("onnect error"))
}

fn sort(error: &Error) -> Failure {
    use tonic_code::*;
    match error {
        Error::GRpcStatus(status) => match status.code() as i32 {
            UNAUTHENTICATED | PERMISSION_DENIED => Failure::Denied(status.message().to_owned()),
            INVALID_ARGUMENT if LOGIN.iter().any(|words| status.message().contains(words)) => {
                Failure::Denied(status.message().to_owned())
            }
            INVALID_ARGUMENT | FAILED_PRECONDITION | OUT_OF_RANGE | UNIMPLEMENTED => {
                Failure::Refused(status.message().to_owned())
            }
            RESOURCE_EXHAUSTED if status.message().contains("space exceeded") => {
                Failure::Full(status.message().to_owned())
            }
            _ => Failure::Unknown(super::kube::chain(status)),
        },
        Error::TransportError(transport) => Failure::Unknown(super::kube::chain(transport)),
        Error::InvalidArgs(_) | Error::InvalidUri(_) => Failure::Refused(super::kube::chain(error)),
        other => Failure::Unknown(super::kube::chain(other)),
    }
}

/// What etcd says, as an invalid argument, of a wrong password and of a client without a user.
const LOGIN: [&str; 2] = ["authentication failed", "user name is empty"];

/// gRPC's status numbers, which crate etcd-client does not re-export.
mod tonic_code {
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const FAILED_PRECONDITION: i32 = 9;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const UNIMPLEMENTED: i32 = 12;
    pub const UNAUTHENTICATED: i32 = 16;
}

fn tls_options(config: &EtcdConfig) -> Result<TlsOptions, Failure> {
    let mut options = TlsOptions::new();
    if let Some(ca) = &config.ca_file {
        options = options.ca_certificate(Certificate::from_pem(certificates("etcdTrustedCAFile", ca)?));
    }
    if let (Some(cert), Some(key)) = (&config.cert_file, &config.key_file) {
        options =
            options.identity(Identity::from_pem(certificates("etcdCertFile", cert)?, private_key("etcdKeyFile", key)?));
    }
    Ok(options)
}

/// The user, and the password in its file without the line break at the end.
fn credentials(config: &EtcdConfig) -> Result<Option<(String, String)>, Failure> {
    let (Some(user), Some(path)) = (&config.username, &config.password_file) else { return Ok(None) };
    let wrong = || malformed("etcdPasswordFile", path, "a password in UTF-8");
    let text = String::from_utf8(read("etcdPasswordFile", path)?).map_err(|_| wrong())?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let password = line.strip_suffix('\r').unwrap_or(line);
    if password.is_empty() { Err(wrong()) } else { Ok(Some((user.clone(), password.to_owned()))) }
}

/// PEM text with at least one certificate. The libraries below would not say which file is wrong.
fn certificates(field: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let pem = read(field, path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(pem),
        _ => Err(malformed(field, path, "PEM certificates")),
    }
}

fn private_key(field: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let pem = read(field, path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(_) => Err(malformed(field, path, "a PEM private key")),
    }
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| Failure::Unreadable(format!("etcdConfig.{field} {}: {e}", path.display())))
}

fn malformed(field: &str, path: &Path, what: &str) -> Failure {
    Failure::Malformed(format!("etcdConfig.{field} {}: does not hold {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::kube::KubeStore;

    fn config(password_file: &Path) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec!["http://127.0.0.1:1".into()],
            cert_file: None,
            key_file: None,
            ca_file: None,
            prefix: "/kube-ipam/v1".into(),
            username: Some("ipam".into()),
            password_file: Some(password_file.to_owned()),
        }
    }

    #[test]
    fn a_password_is_its_file_without_the_line_break_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        for (content, password) in [("s3 cret\n", "s3 cret"), ("s3cret", "s3cret"), ("a\r\n", "a"), (" a\n\n", " a\n")]
        {
            std::fs::write(&file, content).unwrap();
            let read = credentials(&config(&file)).unwrap();
            assert_eq!(read, Some(("ipam".to_owned(), password.to_owned())));
        }
        assert_eq!(credentials(&EtcdConfig { username: None, password_file: None, ..config(&file) }).unwrap(), None);
    }

    fn cluster() -> Arc<ClusterId> {
        let config = ::kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Arc::new(ClusterId::new(KubeStore::from_config(config).unwrap()))
    }

    #[tokio::test]
    async fn a_password_file_that_is_missing_or_empty_is_named_before_anything_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let error = EtcdLedger::open(&config(&file), "net", &cluster()).await.err().unwrap().to_string();
        assert!(error.contains(&format!("etcdConfig.etcdPasswordFile {}: No such file", file.display())), "{error}");
        std::fs::write(&file, "\n").unwrap();
        let error = EtcdLedger::open(&config(&file), "net", &cluster()).await.err().unwrap().to_string();
        assert!(error.contains("etcdConfig.etcdPasswordFile") && error.contains("does not hold a password"), "{error}");
    }
}

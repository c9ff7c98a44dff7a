//! `ipam.etcdConfig`: where the claims on fixed addresses are kept.

use std::path::PathBuf;

/// How to reach etcd. Holds paths of secrets, never secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `etcdURL`, split at commas: `scheme://host:port`, all http or all https, at least one, no duplicates.
    pub endpoints: Vec<String>,
    /// `etcdCertFile`, the client's certificate; present exactly if `key_file` is. Absolute.
    pub cert_file: Option<PathBuf>,
    /// `etcdKeyFile`. Absolute.
    pub key_file: Option<PathBuf>,
    /// `etcdTrustedCAFile`, also spelt `etcdTrustedCAFileFile`; present exactly if the endpoints are https. Absolute.
    pub ca_file: Option<PathBuf>,
    /// `etcdPrefix`, by default `/kube-ipam/v1`: starts with `/`, does not end with it.
    pub prefix: String,
    /// `etcdUsername`; present exactly if `password_file` is.
    pub username: Option<String>,
    /// `etcdPasswordFile`: the file that holds the user's password. Absolute.
    pub password_file: Option<PathBuf>,
}

impl EtcdConfig {
    /// Whether the endpoints are https.
    pub fn tls(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("https:"))
    }
}

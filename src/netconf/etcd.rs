//! `ipam.etcdConfig`: where the claims on fixed addresses are kept.

use std::path::PathBuf;

use http::Uri;

use crate::cni::object::Object;
use crate::cni::{CniError, code};

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

/// The fields of the section.
pub(super) const FIELDS: [&str; 8] = [
    "etcdURL",
    "etcdCertFile",
    "etcdKeyFile",
    "etcdTrustedCAFile",
    "etcdTrustedCAFileFile",
    "etcdPrefix",
    "etcdUsername",
    "etcdPasswordFile",
];

impl EtcdConfig {
    pub(crate) fn parse(etcd: &Object<'_>) -> Result<EtcdConfig, CniError> {
        if etcd.value("etcdPassword").is_some() {
            let wrong = format!("{}: a password does not belong in a network configuration", etcd.path("etcdPassword"));
            let right = "write it to a file of mode 0600 and give the path as etcdPasswordFile";
            return Err(CniError::new(code::INVALID_CONFIG, wrong, right));
        }
        etcd.refuse_misspelt(&FIELDS)?;
        let config = EtcdConfig {
            endpoints: endpoints(etcd)?,
            cert_file: etcd.file("etcdCertFile")?,
            key_file: etcd.file("etcdKeyFile")?,
            ca_file: ca_file(etcd)?,
            prefix: prefix(etcd)?,
            username: etcd.text("etcdUsername")?.map(str::to_owned),
            password_file: etcd.file("etcdPasswordFile")?,
        };
        together(etcd, "etcdCertFile", "etcdKeyFile")?;
        together(etcd, "etcdUsername", "etcdPasswordFile")?;
        config.credentials_fit_scheme(etcd)?;
        Ok(config)
    }

    /// A certificate over http would give a false sense of safety, and https without an authority trusts nobody.
    fn credentials_fit_scheme(&self, etcd: &Object<'_>) -> Result<(), CniError> {
        let first = &self.endpoints[0];
        if self.tls() && self.ca_file.is_none() {
            let right = format!("give the file of the authority that signed the certificate of {first}");
            return Err(etcd.missing("etcdTrustedCAFile", right));
        }
        let keys = ["etcdCertFile", "etcdTrustedCAFile", "etcdTrustedCAFileFile"];
        match keys.into_iter().find(|key| !self.tls() && etcd.value(key).is_some()) {
            Some(key) => {
                let path = etcd.text(key)?.unwrap_or_default();
                Err(etcd.refuse(
                    key,
                    path,
                    format!("is of no use over {first}"),
                    "write https:// in etcdURL, or leave the files out",
                ))
            }
            None => Ok(()),
        }
    }

    /// Whether the endpoints are https.
    pub fn tls(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.starts_with("https:"))
    }
}

fn endpoints(etcd: &Object<'_>) -> Result<Vec<String>, CniError> {
    let list = etcd.text("etcdURL")?.unwrap_or_default();
    let mut endpoints: Vec<String> = Vec::new();
    for url in list.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let endpoint = endpoint(etcd, url)?;
        if let Some(first) =
            endpoints.first().filter(|first| first.starts_with("https:") != endpoint.starts_with("https:"))
        {
            let right = "use https for all, or http for all";
            return Err(etcd.refuse("etcdURL", &endpoint, format!("has another scheme than {first}"), right));
        }
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    if endpoints.is_empty() {
        return Err(etcd.missing("etcdURL", EXAMPLE));
    }
    Ok(endpoints)
}

const EXAMPLE: &str = "give https://host:port, several separated by commas, such as \"https://192.168.1.50:2379\"";

/// `scheme://host:port` of one URL. A user and password in it are refused without showing them.
fn endpoint(etcd: &Object<'_>, url: &str) -> Result<String, CniError> {
    if url.contains('@') {
        let wrong = format!("{}: has a user or password in it (not shown)", etcd.path("etcdURL"));
        return Err(CniError::new(code::INVALID_CONFIG, wrong, "give etcdUsername and etcdPasswordFile"));
    }
    let refuse = |wrong: &str| Err(etcd.refuse("etcdURL", url, wrong, EXAMPLE));
    let Ok(uri) = url.parse::<Uri>() else { return refuse("is not a URL") };
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host().filter(|host| !host.is_empty())) else {
        return refuse("is not a URL with http:// or https://");
    };
    if !matches!(scheme, "http" | "https") {
        return refuse("is neither http nor https");
    }
    let Some(port) = uri.port_u16().filter(|port| *port != 0) else { return refuse("has no port") };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return refuse("has a path, which etcd does not serve");
    }
    Ok(format!("{scheme}://{host}:{port}"))
}

/// Both spellings: the doubled one is what existing configurations have.
fn ca_file(etcd: &Object<'_>) -> Result<Option<PathBuf>, CniError> {
    let (sane, doubled) = (etcd.file("etcdTrustedCAFile")?, etcd.file("etcdTrustedCAFileFile")?);
    match (&sane, &doubled) {
        (Some(one), Some(other)) if one != other => {
            let wrong = format!("differs from etcdTrustedCAFileFile {:?}", other.display().to_string());
            let right = "both mean the same: leave etcdTrustedCAFileFile out";
            Err(etcd.refuse("etcdTrustedCAFile", &one.display().to_string(), wrong, right))
        }
        _ => Ok(sane.or(doubled)),
    }
}

fn prefix(etcd: &Object<'_>) -> Result<String, CniError> {
    let Some(text) = etcd.text("etcdPrefix")? else { return Ok("/kube-ipam/v1".to_owned()) };
    let segment = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    match text.strip_prefix('/') {
        Some(rest) if text.len() <= 256 && rest.split('/').all(segment) => Ok(text.to_owned()),
        _ => {
            let right =
                "write it like \"/kube-ipam/v1\": a / before each part, letters, digits, _ . - in it, none at the end";
            Err(etcd.refuse("etcdPrefix", text, "is not a key prefix", right))
        }
    }
}

fn together(etcd: &Object<'_>, one: &str, other: &str) -> Result<(), CniError> {
    match (etcd.value(one), etcd.value(other)) {
        (Some(_), None) => Err(etcd.missing(other, format!("{one} is given: give both, or neither"))),
        (None, Some(_)) => Err(etcd.missing(one, format!("{other} is given: give both, or neither"))),
        _ => Ok(()),
    }
}

//! The kubeconfig by which the plugin reaches the API server where no agent answers: as the service account of the
//! pod that writes it.

use std::env;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{InstallError, Login, Written, replace};

/// Where a pod finds its service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Writes it, readable by its owner only; `None` if it is so already.
pub(super) fn write(account: &Path, path: &Path, login: Login<'_>) -> Result<Option<Written>, InstallError> {
    let own;
    let token = match login {
        Login::Plugin(token) => token,
        Login::AsItIs if path.exists() => return Ok(None),
        Login::Pod | Login::AsItIs => {
            own = read(account, "token")?;
            &String::from_utf8_lossy(&own)
        }
    };
    let content = format!("{:#}\n", of(account, token)?);
    let written = replace(path, content.as_bytes(), 0o600)?;
    Ok(written.then(|| Written { path: path.to_owned(), what: "the plugin's kubeconfig" }))
}

/// A file of a service account.
pub(super) fn read(account: &Path, name: &str) -> Result<Vec<u8>, InstallError> {
    let path = account.join(name);
    fs::read(&path).map_err(|error| InstallError::Io { path, error })
}

/// The kubeconfig of whoever has this token, by where this pod finds the API server.
pub(super) fn of(account: &Path, token: &str) -> Result<Value, InstallError> {
    let variable = |name: &'static str| env::var(name).map_err(|_| InstallError::NoPod(name));
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    Ok(kubeconfig(&host, &port, &read(account, "ca.crt")?, token))
}

/// JSON is YAML.
fn kubeconfig(host: &str, port: &str, authority: &[u8], token: &str) -> Value {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "local",
            "cluster": {
                "server": format!("https://{host}:{port}"),
                "certificate-authority-data": STANDARD.encode(authority),
            },
        }],
        "users": [{ "name": "kube-ipam", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "local", "context": { "cluster": "local", "user": "kube-ipam" } }],
        "current-context": "local",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_kubeconfig() {
        for (host, server) in [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")] {
            let text = kubeconfig(host, "443", b"authority", "secret\n").to_string();
            let read: kube::config::Kubeconfig = serde_json::from_str(&text).unwrap();
            let cluster = read.clusters[0].cluster.as_ref().unwrap();
            assert_eq!(cluster.server.as_deref(), Some(server));
            assert_eq!(cluster.certificate_authority_data.as_deref(), Some("YXV0aG9yaXR5"));
            assert!(text.contains("\"token\":\"secret\""), "{text}");
        }
    }
}

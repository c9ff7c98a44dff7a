//! The kubeconfig by which the plugin reaches the API server where no agent answers: the service account of the pod
//! that writes it.

use std::env;
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{InstallError, Written, replace};

/// Where a pod finds its service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Writes it, readable by its owner only; `None` if it is so already.
pub(super) fn write(account: &Path, path: &Path) -> Result<Option<Written>, InstallError> {
    let variable = |name: &'static str| env::var(name).map_err(|_| InstallError::NoPod(name));
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let read = |name: &str| {
        let path = account.join(name);
        fs::read(&path).map_err(|error| InstallError::Io { path, error })
    };
    let content = kubeconfig(&host, &port, &read("ca.crt")?, &String::from_utf8_lossy(&read("token")?));
    Ok(replace(path, &content, 0o600)?.then(|| Written { path: path.to_owned(), what: "the plugin's kubeconfig" }))
}

/// JSON is YAML.
fn kubeconfig(host: &str, port: &str, authority: &[u8], token: &str) -> Vec<u8> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let config = json!({
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
    });
    format!("{config:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_kubeconfig() {
        for (host, server) in [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")] {
            let text = String::from_utf8(kubeconfig(host, "443", b"authority", "secret\n")).unwrap();
            let read: kube::config::Kubeconfig = serde_json::from_str(&text).unwrap();
            let cluster = read.clusters[0].cluster.as_ref().unwrap();
            assert_eq!(cluster.server.as_deref(), Some(server));
            assert_eq!(cluster.certificate_authority_data.as_deref(), Some("YXV0aG9yaXR5"));
            assert!(text.contains("\"token\": \"secret\""), "{text}");
        }
    }
}

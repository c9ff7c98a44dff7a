//! The cluster's certificate authority, its keys, and the kubeconfigs that name them.
//! Keeps: one authority signs for the API server, etcd and every client, and lives as long as the cluster.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

/// Who a client is to the API server.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The user's name, such as `system:node:node1`.
    pub user: String,
    /// The user's group, such as `system:nodes`.
    pub group: String,
}

impl Identity {
    /// A user of one group.
    pub fn new(user: &str, group: &str) -> Identity {
        Identity { user: user.into(), group: group.into() }
    }

    /// A user whom every access check lets pass.
    pub fn unrestricted(user: &str) -> Identity {
        Identity::new(user, "system:masters")
    }
}

/// A certificate and its key, PEM.
#[derive(Debug)]
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS 8.
    pub key: String,
}

/// The authority, with its files in one directory.
pub struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Pki {
    /// Makes the authority and the key pair for service account tokens, and writes both below `directory`.
    pub fn create(directory: &Path) -> Result<Pki> {
        fs::create_dir_all(directory)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = named("kube-ipam-e2e", None);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let service_accounts = KeyPair::generate()?;
        fs::write(directory.join("ca.crt"), authority.pem())?;
        fs::write(directory.join("service-accounts.key"), service_accounts.serialize_pem())?;
        fs::write(directory.join("service-accounts.pub"), service_accounts.public_key_pem())?;
        Ok(Pki { authority, directory: directory.into() })
    }

    /// The path of one of the files written: `ca.crt`, `service-accounts.key`, `service-accounts.pub`, and `<name>.crt`, `<name>.key`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes `<name>.crt` and `<name>.key` for a server at these addresses and names (usable as a client too).
    pub fn write_server(&self, name: &str, addresses: &[IpAddr], names: &[&str]) -> Result<()> {
        let mut params = CertificateParams::new(names.iter().map(|name| name.to_string()).collect::<Vec<_>>())?;
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = named(name, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = self.sign(params)?;
        fs::write(self.path(&format!("{name}.crt")), signed.certificate)?;
        fs::write(self.path(&format!("{name}.key")), signed.key)?;
        Ok(())
    }

    /// A client's certificate: the API server reads user and groups from it.
    pub fn client(&self, identity: &Identity) -> Result<Signed> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&identity.user, Some(&identity.group));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// Writes a kubeconfig that logs in with a certificate for this identity, everything embedded.
    pub fn write_kubeconfig(&self, path: &Path, server: &str, identity: &Identity) -> Result<()> {
        let signed = self.client(identity)?;
        let user = json!({
            "client-certificate-data": base64(&signed.certificate),
            "client-key-data": base64(&signed.key),
        });
        self.write_kubeconfig_for(path, server, user)
    }

    /// Writes a kubeconfig that logs in with a bearer token.
    pub fn write_token_kubeconfig(&self, path: &Path, server: &str, token: &str) -> Result<()> {
        self.write_kubeconfig_for(path, server, json!({ "token": token }))
    }

    fn write_kubeconfig_for(&self, path: &Path, server: &str, user: serde_json::Value) -> Result<()> {
        let cluster = json!({ "server": server, "certificate-authority-data": base64(&self.authority.pem()) });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "e2e", "cluster": cluster }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "e2e", "context": { "cluster": "e2e", "user": "user" } }],
            "current-context": "e2e",
        });
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, serde_json::to_string_pretty(&config)?)?)
    }

    fn sign(&self, params: CertificateParams) -> Result<Signed> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        Ok(Signed { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pki").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn named(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// Text in the form of a kubeconfig's `-data` fields.
fn base64(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

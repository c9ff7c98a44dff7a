//! Credentials that are expired, wrong or unreadable (fault 29): the plugin fails closed, says which file or
//! field, and tells nobody what they hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use e2e::embedded::Options;
use e2e::embedded::etcd::{Etcd, Tls};
use e2e::standin::CniOutcome;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde_json::{Value, json};

use super::ground::{FIXED, Ground, assert_ok, assert_refused};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InMzY3IzdCJ9";
const PASSWORD: &str = "correct horse battery staple";

/// What must appear nowhere: the token, the password, and every line of the keys.
fn assert_silent(ground: &Ground, outcome: &CniOutcome, keys: &[String]) {
    let said = format!("{}{}{}", outcome.stdout, outcome.stderr, ground.log());
    let lines = keys.iter().flat_map(|key| key.lines()).filter(|line| !line.starts_with("-----"));
    for secret in lines.chain([TOKEN, PASSWORD]) {
        assert!(secret.len() < 12 || !said.contains(secret), "{secret} was told: {said}");
    }
}

fn kubeconfig(server: &str, cluster: Value, user: Value) -> String {
    let mut cluster = cluster;
    cluster["server"] = json!(server);
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "c", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}

/// An authority and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for 127.0.0.1, for servers and clients; the certificate may have expired.
    fn sign(&self, expired: bool) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named_and_not_told() {
    let tokens: BTreeMap<String, String> = [("good".to_owned(), "kube-ipam".to_owned())].into();
    let ground = Ground::with(Options { tokens, ..Options::default() }).await;
    ground.random("r");
    ground.server().add_token(TOKEN, "kube-ipam");
    let file = |name: &str, text: &str| {
        fs::write(ground.path(name), text).unwrap();
        ground.path(name).display().to_string()
    };
    let (url, plain, token) = (ground.server().url(), json!({}), json!({"token": TOKEN}));
    let (_, key) = Authority::new().sign(false);
    let (certificate, other_key) = Authority::new().sign(false);
    let keys = [key.clone(), other_key.clone()];
    let missing = ground.path("missing").display().to_string();
    let config = |name: &str, cluster: &Value, user: Value| file(name, &kubeconfig(&url, cluster.clone(), user));
    let key_file = file("key.pem", &key);
    let cert_file = file("cert.pem", &certificate);
    let bad_key = json!({"client-certificate": cert_file, "client-key": key_file});
    let cases = [
        (missing.clone(), 5, missing.as_str()),
        (ground.directory.path().display().to_string(), 5, "kubeConfig"),
        (file("a-token", TOKEN), 6, "a-token"),
        (file("a-key", &key), 6, "a-key"),
        (file("broken", &format!("users: [{{name: c, user: {{token: {TOKEN}")), 6, "broken"),
        (file("typed", &format!("apiVersion: v1\nusers: {TOKEN}\n")), 6, "typed"),
        (config("no-token-file", &plain, json!({"tokenFile": missing})), 5, &missing),
        (config("no-ca", &json!({"certificate-authority": missing}), token.clone()), 5, &missing),
        (config("no-key", &plain, json!({"client-certificate": cert_file, "client-key": missing})), 5, &missing),
        (config("wrong-token", &plain, json!({"token": format!("{TOKEN}x")})), 104, "wrong-token"),
        (config("anonymous", &plain, json!({})), 104, "anonymous"),
    ];
    let before = ground.state().await;
    for (path, code, says) in cases {
        for verb in ["ADD", "DEL", "CHECK"] {
            let call = ground
                .call(verb, "r", "r")
                .with("/kubernetes/kubeconfig", json!(path))
                .with("/log_level", json!("trace"));
            let outcome = call.with("/prevResult", json!({"ips": [{"address": "10.244.0.10/16"}]})).run().await;
            assert_refused(&outcome, code, &[says]);
            assert_silent(&ground, &outcome, &keys);
        }
        let status = ground.call("STATUS", "", "").with("/kubernetes/kubeconfig", json!(path)).run().await;
        assert_refused(&status, 50, &[says]);
        assert_eq!(ground.state().await, before, "{path}");
    }
    // A certificate over http is of no use, and its key must not be told all the same.
    let mixed = ground.call("ADD", "r", "r").with("/kubernetes/kubeconfig", json!(config("mixed", &plain, bad_key)));
    assert_silent(&ground, &mixed.run().await, &keys);
    // Good until it is revoked.
    let good = config("good", &plain, token);
    let call =
        || ground.call("ADD", "r", "r").with("/kubernetes/kubeconfig", json!(good)).with("/log_level", json!("trace"));
    let outcome = call().run().await;
    assert_ok(&outcome);
    ground.server().revoke_token(TOKEN);
    let expired = call().run().await;
    assert_refused(&expired, 104, &["Unauthorized", "good", "`kube-ipam uninstall`"]);
    assert_silent(&ground, &expired, &keys);
}

#[tokio::test]
async fn an_api_server_that_does_not_prove_itself_gets_no_credentials() {
    let ground = Ground::prepare().await;
    ground.random("r");
    let (ours, others) = (Authority::new(), Authority::new());
    let write = |name: &str, text: &str| -> PathBuf {
        fs::write(ground.path(name), text).unwrap();
        ground.path(name)
    };
    let ca = write("ca.pem", &ours.0.pem());
    let wrong_ca = write("wrong-ca.pem", &others.0.pem());
    for (name, expired, trusted) in [("untrusted", false, &wrong_ca), ("expired", true, &ca)] {
        let (certificate, key) = ours.sign(expired);
        let tls = Tls { cert: write("s.pem", &certificate), key: write("s.key", &key), client_ca: ca.clone() };
        // What matters is over before a word of HTTP: any server that speaks TLS does.
        let server = Etcd::start(Some(tls)).unwrap();
        let config = kubeconfig(&server.url(), json!({"certificate-authority": trusted}), json!({"token": TOKEN}));
        let path = write(name, &config).display().to_string();
        let before = ground.state().await;
        let outcome = ground.call("ADD", "r", "r").with("/kubernetes/kubeconfig", json!(path)).run().await;
        assert_refused(&outcome, 104, &["certificate", &path]);
        assert_silent(&ground, &outcome, &[key]);
        assert_eq!(ground.state().await, before);
    }
}

#[tokio::test]
async fn credentials_for_etcd_that_cannot_be_used_are_named_and_not_told() {
    let ground = Ground::prepare().await;
    ground.fixed("f");
    let (ours, others) = (Authority::new(), Authority::new());
    let write = |name: &str, text: &str| -> PathBuf {
        fs::write(ground.path(name), text).unwrap();
        ground.path(name)
    };
    let pair = |name: &str, (certificate, key): &(String, String)| {
        (write(&format!("{name}.pem"), certificate), write(&format!("{name}.key"), key))
    };
    let ca = write("ca.pem", &ours.0.pem());
    let wrong_ca = write("wrong-ca.pem", &others.0.pem());
    let (server, client, expired, foreign) = (ours.sign(false), ours.sign(false), ours.sign(true), others.sign(false));
    let keys = [&client, &expired, &foreign].map(|(_, key)| key.clone());
    let (cert, key) = pair("server", &server);
    let etcd = Etcd::start(Some(Tls { cert, key, client_ca: ca.clone() })).unwrap();
    let ((cert, key), (old_cert, old_key), (foreign_cert, foreign_key)) =
        (pair("client", &client), pair("expired", &expired), pair("foreign", &foreign));
    let (missing, garbage) = (ground.path("missing.pem"), write("garbage.pem", TOKEN));
    let config = |ca: &PathBuf, cert: &PathBuf, key: &PathBuf| json!({"etcdURL": etcd.url(), "etcdTrustedCAFile": ca, "etcdCertFile": cert, "etcdKeyFile": key});
    let cases = [
        (config(&missing, &cert, &key), 5, "etcdTrustedCAFile"),
        (config(&ca, &missing, &key), 5, "etcdCertFile"),
        (config(&ca, &cert, &missing), 5, "etcdKeyFile"),
        (config(&garbage, &cert, &key), 6, "etcdTrustedCAFile"),
        (config(&ca, &garbage, &key), 6, "etcdCertFile"),
        (config(&ca, &cert, &garbage), 6, "etcdKeyFile"),
        (config(&ca, &cert, &cert), 6, "etcdKeyFile"),
        (config(&ca, &cert, &old_key), 104, "etcdKeyFile"),
        (config(&wrong_ca, &cert, &key), 104, "wrong-ca.pem"),
    ];
    let before = ground.state().await;
    for (config, code, says) in cases {
        let call = ground.call("ADD", "f", "f").with("/ipam/etcdConfig", config).with("/log_level", json!("trace"));
        let outcome = call.run().await;
        assert_refused(&outcome, code, &[says]);
        assert_silent(&ground, &outcome, &keys);
        assert_eq!(ground.state().await, before, "{says}");
    }
    // These etcd judges. Its alert may be lost with the connection, which then is all that is known.
    for (config, says) in
        [(config(&ca, &old_cert, &old_key), "expired.pem"), (config(&ca, &foreign_cert, &foreign_key), "foreign.pem")]
    {
        let outcome = ground.call("ADD", "f", "f").with("/ipam/etcdConfig", config).run().await;
        let code = outcome.error().unwrap().code;
        assert!(matches!(code, 11 | 104), "{outcome:?}");
        assert_refused(&outcome, code, &[says]);
        assert_silent(&ground, &outcome, &keys);
        assert_eq!(ground.state().await, before, "{says}");
    }
    let outcome = ground.call("ADD", "f", "f").with("/ipam/etcdConfig", config(&ca, &cert, &key)).run().await;
    assert_ok(&outcome);
    assert_silent(&ground, &outcome, &keys);
}

#[tokio::test]
async fn etcd_is_logged_in_to_as_the_configured_user() {
    let mut ground = Ground::prepare().await;
    ground.fixed("f");
    let mut client = ground.cluster.etcd().unwrap().client().await.unwrap();
    for (user, password) in [("root", "root"), ("kube-ipam", PASSWORD), ("nobody", PASSWORD)] {
        client.user_add(user, password, None).await.unwrap();
    }
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("claims").await.unwrap();
    let all = etcd_client::Permission::read_write("/kube-ipam/v1/").with_prefix();
    client.role_grant_permission("claims", all).await.unwrap();
    client.user_grant_role("kube-ipam", "claims").await.unwrap();
    client.auth_enable().await.unwrap();
    let file = |name: &str, text: &str| {
        fs::write(ground.path(name), text).unwrap();
        ground.path(name).display().to_string()
    };
    let (right, wrong) = (file("password", &format!("{PASSWORD}\n")), file("wrong", "guess"));
    let missing = ground.path("missing").display().to_string();
    let before = ground.server().revision();
    for (user, password, code, says) in [
        ("kube-ipam", Some(&wrong), 104, "etcdPasswordFile"),
        ("kube-ipam", Some(&missing), 5, missing.as_str()),
        ("nobody", Some(&right), 104, "etcdUsername nobody"),
        ("", None, 104, "etcdConfig"),
    ] {
        let call = ground.call("ADD", "f", "f");
        let call = call
            .with("/ipam/etcdConfig/etcdUsername", json!(user))
            .with("/ipam/etcdConfig/etcdPasswordFile", json!(password));
        let outcome = call.run().await;
        assert_refused(&outcome, code, &[says]);
        assert_silent(&ground, &outcome, &[]);
        assert_eq!(ground.server().revision(), before, "{says}");
    }
    ground.conf["ipam"]["etcdConfig"]["etcdUsername"] = json!("kube-ipam");
    ground.conf["ipam"]["etcdConfig"]["etcdPasswordFile"] = json!(right);
    let outcome = ground.add("f", "f").await;
    assert_eq!(super::ground::bare(&outcome), [FIXED], "{outcome:?}");
    assert_ok(&ground.del("f", "f").await);
}

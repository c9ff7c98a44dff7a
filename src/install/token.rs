//! The token by which the plugin logs in.
//!
//! The token that a pod finds in its own service account ends with the pod, and the plugin needs one while the
//! agent's pod is replaced. So one is asked for that is bound to no pod.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::Deserialize;

use super::{InstallError, kubeconfig};
use crate::store::kube::{KubeStore, chain};

/// How long a token is to be valid; a server may give less.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest wait for one.
const WAIT: Duration = Duration::from_secs(5);
/// Until a request that got no answer is repeated.
const RETRY: Duration = Duration::from_secs(5);
/// Until one that was refused is repeated: somebody must first allow it.
const REFUSED_RETRY: Duration = Duration::from_secs(60);

/// By which token the plugin's kubeconfig logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login<'a> {
    /// The plugin's own.
    Plugin(&'a str),
    /// The pod's, since the plugin gets none.
    Pod,
    /// That of the file as it is, or the pod's if there is none: nobody has answered yet.
    AsItIs,
}

/// The plugin's token, renewed when half of its life is over.
#[derive(Debug)]
pub struct PluginToken {
    account: PathBuf,
    token: Option<String>,
    refused: bool,
    next: Option<Timestamp>,
}

/// Why there is none.
enum NoToken {
    /// The service account cannot have one.
    Refused(InstallError),
    /// Nobody knows yet.
    Unanswered(InstallError),
}

/// The part of a service account's token that says whose it is, until when, and for which pod.
#[derive(Deserialize)]
pub(super) struct Claims {
    sub: String,
    /// Seconds since 1970.
    exp: Option<i64>,
    #[serde(default, rename = "kubernetes.io")]
    bound: Bound,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Bound {
    pod: Option<BoundTo>,
}

/// What a token ends with.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
pub(super) struct BoundTo {
    pub uid: String,
}

// === impl PluginToken ===

impl PluginToken {
    /// For the service account of this directory; nothing is asked for yet.
    pub fn new(account: &Path) -> Self {
        Self { account: account.to_owned(), token: None, refused: false, next: None }
    }

    /// What the kubeconfig is to have now.
    pub(super) fn login(&self) -> Login<'_> {
        match &self.token {
            Some(token) => Login::Plugin(token),
            None if self.refused => Login::Pod,
            None => Login::AsItIs,
        }
    }

    /// Until it should be renewed.
    pub fn rest(&self) -> Duration {
        let rest = self.next.map(|next| next.duration_since(Timestamp::now()));
        rest.and_then(|rest| Duration::try_from(rest).ok()).unwrap_or_default()
    }

    /// Asks for one, if it is time. Without an answer the last one stays.
    ///
    /// # Errors
    /// The service account cannot be read, the server does not answer, or does not allow this.
    pub async fn renew(&mut self) -> Result<(), InstallError> {
        if !self.rest().is_zero() {
            return Ok(());
        }
        let asked = tokio::time::timeout(WAIT, request(&self.account)).await;
        let asked = asked.unwrap_or_else(|_| Err(NoToken::Unanswered(no_token(&format!("no answer within {WAIT:?}")))));
        let now = Timestamp::now();
        let (pause, outcome) = match asked {
            Ok((token, expires)) => {
                self.token = Some(token);
                (Duration::try_from(expires.duration_since(now) / 2).unwrap_or(RETRY).max(RETRY), Ok(()))
            }
            Err(NoToken::Refused(error)) => {
                (self.token, self.refused) = (None, true);
                (REFUSED_RETRY, Err(error))
            }
            Err(NoToken::Unanswered(error)) => (RETRY, Err(error)),
        };
        self.next = now.checked_add(pause).ok();
        outcome
    }
}

async fn request(account: &Path) -> Result<(String, Timestamp), NoToken> {
    let own = kubeconfig::read(account, "token").map_err(NoToken::Refused)?;
    let own = String::from_utf8_lossy(&own);
    let nobody = || NoToken::Refused(no_token(&"the pod's own token names no service account"));
    let claims = Claims::of(&own).ok_or_else(nobody)?;
    let (namespace, name) = claims.account().ok_or_else(nobody)?;
    let client = client(account, own.trim()).await.map_err(NoToken::Refused)?;
    let wanted = TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: i64::try_from(LIFE.as_secs()).ok(), ..Default::default() },
        ..Default::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    let answer = accounts.create_token_request(name, &PostParams::default(), &wanted).await.map_err(|error| {
        let told = no_token(&chain(&error));
        match error {
            kube::Error::Api(status) if matches!(status.code, 403 | 404) => NoToken::Refused(told),
            _ => NoToken::Unanswered(told),
        }
    })?;
    let status = answer.status.ok_or_else(|| NoToken::Unanswered(no_token(&"the answer holds none")))?;
    Ok((status.token, status.expiration_timestamp.0))
}

/// A client that logs in by this token.
async fn client(account: &Path, token: &str) -> Result<Client, InstallError> {
    let store = KubeStore::from_config(config(account, token).await?);
    Ok(store.map_err(|error| no_token(&chain(&error)))?.client().clone())
}

/// The way to the API server as this pod finds it, with this token.
pub(super) async fn config(account: &Path, token: &str) -> Result<Config, InstallError> {
    let config = kubeconfig::of(account, token)?;
    let config: Kubeconfig = serde_json::from_value(config).map_err(|error| no_token(&error))?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    config.map_err(|error| no_token(&chain(&error)))
}

// === impl Claims ===

impl Claims {
    /// What a token says; nothing is verified. `None`: it is no service account's.
    pub(super) fn of(token: &str) -> Option<Self> {
        let payload = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?).ok()?;
        let claims: Self = serde_json::from_slice(&payload).ok()?;
        claims.account().is_some().then_some(claims)
    }

    /// Namespace and name of its service account.
    pub(super) fn account(&self) -> Option<(&str, &str)> {
        self.sub.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// The pod that it ends with.
    pub(super) fn pod(&self) -> Option<&BoundTo> {
        self.bound.pod.as_ref()
    }

    /// Whether it has run out by this time.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.exp.is_some_and(|end| end <= now.as_second())
    }
}

fn no_token(why: &dyn std::fmt::Display) -> InstallError {
    InstallError::NoToken(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_whose_it_is() {
        let token = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let own = token(r#"{"iss":"x","sub":"system:serviceaccount:kube-system:kube-ipam"}"#);
        let claims = Claims::of(&format!("{own}\n")).unwrap();
        assert_eq!((claims.account(), claims.pod()), (Some(("kube-system", "kube-ipam")), None));
        assert!(!claims.is_over(Timestamp::MAX));
        let bound = token(
            r#"{"exp":60,"kubernetes.io":{"pod":{"name":"p","uid":"u"}},"sub":"system:serviceaccount:kube-system:kube-ipam"}"#,
        );
        let claims = Claims::of(&bound).unwrap();
        assert_eq!(claims.pod().map(|pod| pod.uid.as_str()), Some("u"));
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!([59, 60].map(|second| claims.is_over(at(second))), [false, true]);
        for other in [token(r#"{"sub":"alice"}"#), token("{"), "opaque".to_owned(), String::new()] {
            assert!(Claims::of(&other).is_none(), "{other}");
        }
    }
}

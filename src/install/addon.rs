//! Whether the add-on that this agent's pod belongs to is still installed. Keeps: it counts as gone only by what the API
//! server itself says of the DaemonSet, or by a service account whose tokens it refuses for [`PATIENCE`] while it accepts
//! Calico's; a server that is away, slow or broken, rights that were taken away, and a pod that was deleted by force
//! prove nothing.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use k8s_openapi::api::core::v1::Pod;
use kube::client::Body;
use kube::{Client, Config, ResourceExt as _};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::token::{self, Claims};
use super::{configurations, kubeconfig, read_json};
use crate::conflist;
use crate::store::kube::{KubeStore, chain};

/// How long the tokens of the account must have been refused.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for an answer.
const WAIT: Duration = Duration::from_secs(4);
/// Largest answer that is read, in bytes.
const LARGEST: usize = 4 << 20;
/// What every account may ask for, and nobody without one.
const FOR_ACCOUNTS: &str = "/api";

/// The add-on, as its pod on this node knows it.
#[derive(Debug)]
pub struct AddOn {
    account: PathBuf,
    plugins: Option<PathBuf>,
    lists: PathBuf,
    namespace: String,
    name: String,
    pod: String,
    set: Mutex<Option<Set>>,
    evidence: Mutex<Evidence>,
}

/// The DaemonSet that made this pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Set {
    name: String,
    uid: String,
}

/// What one look at the cluster found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// The DaemonSet is there, and stays.
    There,
    /// The API server says that it is not, or is being deleted: in words.
    Gone(String),
    /// Tokens of the service account that have not run out are refused, and Calico's credentials are accepted.
    Refused,
    /// Nothing that tells: why.
    Unclear(String),
}

/// What the looks until now come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The add-on is there.
    There,
    /// It is gone: in words.
    Gone(String),
    /// It may be gone: its account is refused, but not for long enough.
    Doubtful,
    /// Nobody can tell, and so it stays.
    Unknown(String),
}

/// What is remembered between looks.
#[derive(Debug, Default)]
struct Evidence {
    refused_since: Option<Instant>,
}

/// An answer to one token.
#[derive(Debug, PartialEq)]
enum Answer {
    /// 401, and the time by the server's clock, if it says.
    Refused(Option<Timestamp>),
    /// Any other: status and body.
    Other(u16, Value),
    /// There was none.
    Silence(String),
}

// === impl AddOn ===

impl AddOn {
    /// By the token of a pod's service account in `account`; `None` if it is no pod's. `plugins` is the kubeconfig that is
    /// written for the plugin, `lists` the directory of the runtime's configurations.
    pub fn of_pod(account: &Path, plugins: Option<&Path>, lists: &Path) -> Option<Self> {
        let claims = Claims::of(&own_token(account)?)?;
        let (namespace, name) = claims.account()?;
        Some(Self {
            account: account.to_owned(),
            plugins: plugins.map(Path::to_owned),
            lists: lists.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            pod: claims.pod()?.uid.clone(),
            set: Mutex::default(),
            evidence: Mutex::default(),
        })
    }

    /// Namespace and name of its service account.
    pub fn account(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// Takes in what is heard of the node's pods. One that lost its DaemonSet is still of the last one.
    pub fn hear(&self, pod: &Pod) {
        if pod.metadata.uid.as_ref() != Some(&self.pod) {
            return;
        }
        let controller = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
        if let Some(owner) = controller.filter(|owner| owner.kind == "DaemonSet") {
            let set = Set { name: owner.name.clone(), uid: owner.uid.clone() };
            *self.set.lock().unwrap_or_else(PoisonError::into_inner) = Some(set);
        }
    }

    /// Looks once more, and says what all looks come to.
    pub async fn look(&self) -> Verdict {
        let look = self.look_once().await;
        tracing::debug!(?look, "whether the add-on is still installed");
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner).weigh(look, Instant::now())
    }

    async fn look_once(&self) -> Look {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let path = match &set {
            Some(set) => format!("/apis/apps/v1/namespaces/{}/daemonsets/{}", self.namespace, set.name),
            None => FOR_ACCOUNTS.to_owned(),
        };
        // A pod that was deleted by force takes its own token with it; the plugin's ends with the account only.
        let mut lasting = false;
        for token in [own_token(&self.account), self.plugins.as_deref().and_then(plugins_token)].into_iter().flatten() {
            match self.ask(&path, &token).await {
                Answer::Refused(time) => lasting |= is_evidence(&token, time.unwrap_or_else(Timestamp::now)),
                answer => return judge(set.as_ref(), answer),
            }
        }
        if !lasting {
            return Look::Unclear("its tokens are refused (401), and would be with the account there, too".into());
        }
        match self.accepts_calico().await {
            Ok(()) => Look::Refused,
            Err(why) => Look::Unclear(format!("its tokens are refused (401), but {why}")),
        }
    }

    /// What the API server, as this pod finds it, answers to a token.
    async fn ask(&self, path: &str, token: &str) -> Answer {
        match token::config(&self.account, token).await {
            Ok(config) => answer(config, path).await,
            Err(error) => Answer::Silence(error.to_string()),
        }
    }

    /// Whether the same server accepts the credentials in the kubeconfig that Calico's list names.
    async fn accepts_calico(&self) -> Result<(), String> {
        let lists = configurations(&self.lists).map_err(|error| error.to_string())?;
        let named = lists.iter().filter_map(|path| read_json(path).ok());
        let path = named.into_iter().find_map(|list| conflist::main_kubeconfig(&list));
        let path = path.ok_or("no list names a kubeconfig of Calico's")?;
        let theirs = KubeStore::config(&path, None).await.map_err(|error| error.to_string())?;
        let mut config = token::config(&self.account, "").await.map_err(|error| error.to_string())?;
        config.auth_info = theirs.auth_info;
        match answer(config, FOR_ACCOUNTS).await {
            Answer::Other(200, _) => Ok(()),
            Answer::Refused(_) => Err(format!("those of {} are, too", path.display())),
            Answer::Other(status, _) => Err(format!("those of {} are answered by HTTP {status}", path.display())),
            Answer::Silence(why) => Err(format!("those of {} got no answer: {why}", path.display())),
        }
    }
}

fn own_token(account: &Path) -> Option<String> {
    kubeconfig::read(account, "token").ok().map(|token| String::from_utf8_lossy(&token).into_owned())
}

/// The token in the kubeconfig that we write.
fn plugins_token(path: &Path) -> Option<String> {
    read_json(path).ok()?.pointer("/users/0/user/token")?.as_str().map(str::to_owned)
}

/// Whether a token would be accepted at this time if its account were there.
fn is_evidence(token: &str, now: Timestamp) -> bool {
    Claims::of(token).is_some_and(|claims| claims.pod().is_none() && !claims.is_over(now))
}

async fn answer(config: Config, path: &str) -> Answer {
    match KubeStore::from_config(config) {
        Ok(store) => match timeout(WAIT, exchange(store.client(), path)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Answer::Silence(why),
            Err(_) => Answer::Silence(format!("no answer within {WAIT:?}")),
        },
        Err(error) => Answer::Silence(chain(&error)),
    }
}

async fn exchange(client: &Client, path: &str) -> Result<Answer, String> {
    let request = http::Request::get(path).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = client.send(request).await.map_err(|error| chain(&error))?;
    let status = answer.status().as_u16();
    if status == 401 {
        return Ok(Answer::Refused(server_time(answer.headers())));
    }
    let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
    Ok(Answer::Other(status, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
}

/// A node's own clock may be slow, and a token then seem good that is not.
fn server_time(headers: &http::HeaderMap) -> Option<Timestamp> {
    rfc2822::parse(headers.get(http::header::DATE)?.to_str().ok()?).ok().map(|time| time.timestamp())
}

/// What an answer other than 401 says of the DaemonSet.
fn judge(set: Option<&Set>, answer: Answer) -> Look {
    let Some(set) = set else { return Look::Unclear("the DaemonSet of this pod is not known yet".into()) };
    let Set { name, uid } = set;
    match answer {
        // A path that is not served is answered by 404 as well, without these details.
        Answer::Other(404, status)
            if status["details"]["kind"] == "daemonsets" && status["details"]["name"] == **name =>
        {
            Look::Gone(format!("DaemonSet {name} does not exist"))
        }
        Answer::Other(200, found) if found["kind"] == "DaemonSet" => {
            let metadata = &found["metadata"];
            if metadata["uid"] != **uid {
                Look::Gone(format!("DaemonSet {name} is another one than that of this pod"))
            } else if metadata["deletionTimestamp"].is_string() {
                Look::Gone(format!("DaemonSet {name} is being deleted"))
            } else {
                Look::There
            }
        }
        Answer::Other(status, body) => {
            Look::Unclear(format!("HTTP {status}: {}", body["message"].as_str().unwrap_or("no message")))
        }
        Answer::Silence(why) => Look::Unclear(why),
        Answer::Refused(_) => Look::Unclear("401".into()),
    }
}

// === impl Evidence ===

impl Evidence {
    fn weigh(&mut self, look: Look, now: Instant) -> Verdict {
        if look != Look::Refused {
            self.refused_since = None;
        }
        match look {
            Look::There => Verdict::There,
            Look::Gone(why) => Verdict::Gone(why),
            Look::Unclear(why) => Verdict::Unknown(why),
            Look::Refused if now.duration_since(*self.refused_since.get_or_insert(now)) < PATIENCE => Verdict::Doubtful,
            Look::Refused => Verdict::Gone(format!(
                "the API server has refused the tokens of its service account for {} s, and accepts Calico's",
                PATIENCE.as_secs()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;

    fn set() -> Set {
        Set { name: "kube-ipam".into(), uid: "u1".into() }
    }

    fn found(status: u16, body: Value) -> Look {
        judge(Some(&set()), Answer::Other(status, body))
    }

    fn daemon_set(uid: &str, more: Value) -> Value {
        let mut metadata = json!({"name": "kube-ipam", "uid": uid});
        metadata.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"kind": "DaemonSet", "metadata": metadata})
    }

    #[test]
    fn the_server_says_that_the_daemon_set_is_gone_or_goes() {
        let absent = json!({"kind": "Status", "details": {"kind": "daemonsets", "group": "apps", "name": "kube-ipam"}});
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (status, body) in [(404, absent), (200, daemon_set("u2", json!({}))), (200, daemon_set("u1", deleted))] {
            assert!(matches!(found(status, body.clone()), Look::Gone(_)), "{status} {body}");
        }
    }

    #[test]
    fn nothing_else_says_so() {
        assert_eq!(found(200, daemon_set("u1", json!({}))), Look::There);
        for (status, body) in [
            (404, json!("404 page not found")),
            (404, json!({"details": {"kind": "daemonsets", "name": "another"}})),
            (403, json!({"details": {"kind": "daemonsets", "name": "kube-ipam"}})),
            (500, Value::Null),
            (503, Value::Null),
            (429, Value::Null),
            (200, json!({"kind": "Status"})),
            (200, Value::Null),
        ] {
            assert!(matches!(found(status, body.clone()), Look::Unclear(_)), "{status} {body}");
        }
        assert!(matches!(judge(Some(&set()), Answer::Silence("reset".into())), Look::Unclear(_)));
        assert!(matches!(judge(None, Answer::Other(404, Value::Null)), Look::Unclear(_)));
    }

    #[test]
    fn a_refused_account_is_gone_after_half_a_minute_without_a_break() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut evidence = Evidence::default();
        assert_eq!(evidence.weigh(Look::Refused, at(0)), Verdict::Doubtful);
        assert_eq!(evidence.weigh(Look::Refused, at(29)), Verdict::Doubtful);
        assert!(matches!(evidence.weigh(Look::Refused, at(30)), Verdict::Gone(_)));
        for between in [Look::There, Look::Unclear("HTTP 403".into())] {
            let mut evidence = Evidence::default();
            assert_eq!(evidence.weigh(Look::Refused, at(0)), Verdict::Doubtful);
            evidence.weigh(between.clone(), at(20));
            assert_eq!(evidence.weigh(Look::Refused, at(40)), Verdict::Doubtful, "{between:?}");
            assert!(matches!(evidence.weigh(Look::Refused, at(70)), Verdict::Gone(_)));
        }
        let mut evidence = Evidence::default();
        assert!(matches!(evidence.weigh(Look::Gone("404".into()), at(0)), Verdict::Gone(_)));
    }

    #[test]
    fn a_token_that_has_run_out_or_ends_with_its_pod_proves_nothing() {
        let token = |more: &str| {
            let claims = format!(r#"{{"sub":"system:serviceaccount:kube-system:kube-ipam"{more}}}"#);
            format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
        };
        let now = Timestamp::from_second(1000).unwrap();
        assert!(is_evidence(&token(""), now) && is_evidence(&token(r#","exp":1001"#), now));
        for other in [token(r#","exp":1000"#), token(r#","kubernetes.io":{"pod":{"uid":"u"}}"#), "opaque".into()] {
            assert!(!is_evidence(&other, now), "{other}");
        }
    }

    #[test]
    fn the_server_says_what_time_it_is() {
        let mut headers = http::HeaderMap::new();
        assert_eq!(server_time(&headers), None);
        headers.insert(http::header::DATE, http::HeaderValue::from_static("Thu, 01 Jan 1970 00:01:00 GMT"));
        assert_eq!(server_time(&headers), Timestamp::from_second(60).ok());
    }

    #[test]
    fn a_pod_is_of_the_daemon_set_that_had_it_last() {
        let add_on = AddOn {
            account: PathBuf::new(),
            plugins: None,
            lists: PathBuf::new(),
            namespace: "kube-system".into(),
            name: "kube-ipam".into(),
            pod: "p1".into(),
            set: Mutex::default(),
            evidence: Mutex::default(),
        };
        let pod = |uid: &str, owner: Option<(&str, &str)>| -> Pod {
            let owner = owner.map(|(kind, uid)| {
                json!({"apiVersion": "apps/v1", "kind": kind, "name": "kube-ipam", "uid": uid, "controller": true})
            });
            serde_json::from_value(
                json!({"metadata": {"uid": uid, "ownerReferences": owner.into_iter().collect::<Vec<_>>()}}),
            )
            .unwrap()
        };
        let known = || add_on.set.lock().unwrap().clone().map(|set| set.uid);
        add_on.hear(&pod("p2", Some(("DaemonSet", "u9"))));
        add_on.hear(&pod("p1", Some(("ReplicaSet", "u8"))));
        assert_eq!(known(), None);
        add_on.hear(&pod("p1", Some(("DaemonSet", "u1"))));
        // As `kubectl delete --cascade=orphan` leaves it, and as a DaemonSet that is made again adopts it.
        add_on.hear(&pod("p1", None));
        assert_eq!(known().as_deref(), Some("u1"));
        add_on.hear(&pod("p1", Some(("DaemonSet", "u2"))));
        assert_eq!(known().as_deref(), Some("u2"));
    }
}

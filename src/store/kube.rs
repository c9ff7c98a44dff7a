//! The Kubernetes API server as a store of objects.
//!
//! Requests are built by crate kube and sent one by one: no retries below us (a repeated write could hide
//! that the first one took effect), `Retry-After` is read from the answer, and every failure is sorted into
//! "nothing happened" or "nobody knows".

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use ::kube::client::{AuthError, Body};
use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::core::{ObjectList, Request};
use ::kube::discovery::{ApiCapabilities, Scope};
use ::kube::{Client, Config, Resource as _};
use calico::{ApiGroup, ClusterInformation, IPAMBlock, cluster_information};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::group::DEFINITION;
use super::{Failure, Group, Object, Objects, StoreError, describe, tls, transport};
use crate::pod::Owner;

/// Longest wait for one answer. Two of these fit into the ten seconds in which an ADD must fail
/// when the API server is down.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Largest answer read, in bytes: ten thousand blocks of 256 addresses fit.
const ANSWER_LIMIT: usize = 256 << 20;
/// Objects in one answer of a list.
const PAGE: u32 = 500;
/// How an API server passes on that its etcd's quota is used up: then nothing was written.
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";
/// Wait after a 429 that names none.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Objects on an API server.
#[derive(Clone)]
pub struct KubeStore {
    client: Client,
    /// The same in whatever group a request names.
    plain: Client,
    group: Group,
    /// Where the credentials come from, for the error that says they are not accepted.
    credentials: Arc<str>,
    origin: Option<Arc<str>>,
}

/// Why no client could be made of a kubeconfig.
#[derive(Debug, thiserror::Error)]
#[error("kubeConfig {path:?}: {reason}")]
pub struct KubeconfigError {
    /// The file.
    pub path: String,
    /// What is wrong with it. Never what it holds.
    pub reason: String,
    /// Whether it, or a file that it names, could not be read; else what they hold is wrong.
    pub unreadable: bool,
}

/// The part of a `Status` answer that matters here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    message: String,
    reason: String,
}

// === impl KubeconfigError ===

impl KubeconfigError {
    fn of(path: &Path, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut unreadable = false;
        let mut next = Some(error);
        while let Some(cause) = next {
            // A file that was read, and is not what it should be, is of that kind.
            let read = |error: &std::io::Error| error.kind() != std::io::ErrorKind::InvalidData;
            unreadable |= cause.downcast_ref().is_some_and(read);
            next = cause.source();
        }
        let reason = match error.downcast_ref() {
            // The parser quotes the text it fails at, and that may be a token.
            Some(::kube::config::KubeconfigError::Parse(_)) => {
                "this is not a kubeconfig (its text is not shown)".into()
            }
            _ => chain(error),
        };
        Self { path: path.display().to_string(), reason, unreadable }
    }
}

// === impl KubeStore ===

impl KubeStore {
    /// A store over a client that the caller made; its library must not retry by itself. Calico's objects are read and written
    /// in the group that the cluster turns out to have.
    pub fn new(plain: Client) -> Self {
        let group = Group::default();
        let client = group.client(&plain);
        Self { client, plain, group, credentials: Arc::from("the client's own credentials"), origin: None }
    }

    /// The same server, with Calico's objects in a group.
    #[must_use]
    pub fn in_group(&self, group: Group) -> Self {
        Self { client: group.client(&self.plain), group, ..self.clone() }
    }

    /// The group in which Calico's objects are read and written.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Whether a CustomResourceDefinition of this name exists.
    pub(super) async fn is_defined(&self, name: &str) -> Result<bool, StoreError> {
        let request =
            Request::new(CustomResourceDefinition::url_path(&(), None)).get_metadata(name, &Default::default());
        match self.call::<serde_json::Value>("get", describe::<CustomResourceDefinition>(name), request).await {
            Ok(_) => Ok(true),
            Err(StoreError { failure: Failure::Absent, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How an object is named in errors.
    fn describe<K: Object>(&self, name: &str) -> String {
        format!("{} {name}", self.plural::<K>())
    }

    fn plural<K: Object>(&self) -> String {
        self.group.known().unwrap_or_default().name(&K::plural(&())).to_owned()
    }

    /// A store by a kubeconfig file; nothing is sent yet.
    ///
    /// # Errors
    /// The file cannot be read, is no kubeconfig, or names certificates that cannot be used.
    pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Self, KubeconfigError> {
        let config = Self::config(path, context).await?;
        let store = Self::from_config(config).map_err(|e| KubeconfigError::of(path, &e))?;
        Ok(Self { credentials: format!("kubeConfig {}", path.display()).into(), ..store })
    }

    /// kube's configuration by a kubeconfig file.
    ///
    /// # Errors
    /// The file cannot be read, is no kubeconfig, or has no such context.
    pub async fn config(path: &Path, context: Option<&str>) -> Result<Config, KubeconfigError> {
        let kubeconfig = Kubeconfig::read_from(path).map_err(|e| KubeconfigError::of(path, &e))?;
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        config.map_err(|e| KubeconfigError::of(path, &e))
    }

    /// A store by kube's own configuration, with everything switched off that would repeat a request.
    ///
    /// # Errors
    /// The certificates or the address in it cannot be used.
    pub fn from_config(mut config: Config) -> Result<Self, ::kube::Error> {
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(3));
        config.read_timeout = Some(CALL_TIMEOUT);
        config.write_timeout = Some(CALL_TIMEOUT);
        let origin = Some(origin(&config).into());
        Ok(Self { origin, ..Self::new(transport::client(config)?) })
    }

    /// A digest of the API server's address and authority, by which its cluster is known again; `None` for a store over
    /// a client that the caller made.
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// The client, for reads that are not IPAM (Events, watches).
    pub fn client(&self) -> &Client {
        &self.client
    }

    async fn call<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        object: String,
        request: Result<http::Request<Vec<u8>>, ::kube::core::request::Error>,
    ) -> Result<T, StoreError> {
        let request = match request {
            Ok(request) => request.map(Body::from),
            Err(e) => return Err(StoreError::new(verb, object, Failure::Refused(chain(&e)))),
        };
        match tokio::time::timeout(CALL_TIMEOUT, self.exchange(request)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => Err(StoreError::new(verb, object, failure)),
            Err(_) => Err(StoreError::new(
                verb,
                object,
                Failure::Unknown(format!("no answer from the API server within {CALL_TIMEOUT:?}")),
            )),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, request: http::Request<Body>) -> Result<T, Failure> {
        let creates = request.method() == http::Method::POST;
        let answer = self.client.send(request).await.map_err(|e| self.unsent(&e))?;
        let status = answer.status();
        let retry_after = retry_after(answer.headers());
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        let body = body.map_err(|e| Failure::Unknown(format!("the answer broke off: {e}")))?.to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| Failure::Corrupt(e.to_string()));
        }
        let told: Status = serde_json::from_slice(&body).unwrap_or_default();
        let message = if told.message.is_empty() { format!("HTTP {status}") } else { told.message };
        Err(match status.as_u16() {
            409 if creates && told.reason == "AlreadyExists" => Failure::Exists,
            409 => Failure::Conflict,
            404 if told.reason == "NotFound" => Failure::Absent,
            404 => Failure::NoKind,
            429 => Failure::Busy(retry_after.unwrap_or(DEFAULT_RETRY_AFTER)),
            401 | 403 => Failure::Denied(format!("{message} ({})", self.credentials)),
            code if code < 500 => Failure::Refused(message),
            500 if message.contains(NO_SPACE) => Failure::Full(message),
            _ => Failure::Unknown(format!("HTTP {status}: {message}")),
        })
    }
}

/// A digest of the address and the authority of an API server.
pub fn origin(config: &Config) -> String {
    let file = config.root_cert_file.as_ref().and_then(|file| std::fs::read(file).ok());
    let authority = config.root_cert.iter().flatten().chain(&file);
    let mut digest = Sha256::new();
    for part in std::iter::once(config.cluster_url.to_string().as_bytes()).chain(authority.map(Vec::as_slice)) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Objects for KubeStore {
    async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, StoreError> {
        let request = Request::new(K::url_path(&(), namespace)).get(name, &Default::default());
        match self.call("get", self.describe::<K>(name), request).await {
            Ok(object) => Ok(Some(object)),
            Err(StoreError { failure: Failure::Absent, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        self.fold(selector, Vec::new, Vec::push).await
    }

    async fn newer_is_ready(&self) -> Result<Option<bool>, StoreError> {
        if self.group.known() != Some(ApiGroup::Crd) || !self.is_defined(DEFINITION).await? {
            return Ok(None);
        }
        match self.in_group(ApiGroup::V3.into()).get::<ClusterInformation>(None, cluster_information::NAME).await {
            Ok(found) => Ok(found.map(|information| information.spec.is_ready())),
            Err(StoreError { failure: Failure::NoKind, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn fold<K: Object, T: Send>(
        &self,
        selector: &str,
        start: impl Fn() -> T + Send + Sync,
        add: impl Fn(&mut T, K) + Send + Sync,
    ) -> Result<T, StoreError> {
        let params = matching(ListParams::default(), selector);
        if let Some(sum) = self.fold_pages(&params, start(), &add).await? {
            return Ok(sum);
        }
        let mut sum = start();
        self.list_page(&params).await?.items.into_iter().for_each(|object| add(&mut sum, object));
        Ok(sum)
    }

    async fn list_cached<K: Object>(&self, selector: &str) -> Result<Vec<K>, StoreError> {
        // From the API server's cache a list comes whole, whatever the limit is.
        Ok(self.list_page(&matching(ListParams::default().match_any(), selector)).await?.items)
    }

    async fn create<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let what = self.describe::<K>(name_of(object));
        let data = encode("create", &what, object)?;
        self.call("create", what, Request::new(K::url_path(&(), None)).create(&PostParams::default(), data)).await
    }

    async fn replace<K: Object>(&self, object: &K) -> Result<K, StoreError> {
        let name = name_of(object);
        let what = self.describe::<K>(name);
        if object.meta().resource_version.is_none() {
            return Err(StoreError::new(
                "update",
                what,
                Failure::Refused("a write without resourceVersion would overwrite blindly".into()),
            ));
        }
        let data = encode("update", &what, &*untracked(object))?;
        self.call("update", what, Request::new(K::url_path(&(), None)).replace(name, &PostParams::default(), data))
            .await
    }

    async fn delete<K: Object>(&self, object: &K) -> Result<(), StoreError> {
        let name = name_of(object);
        let meta = object.meta();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let request = Request::new(K::url_path(&(), None)).delete(name, &params);
        self.call::<serde_json::Value>("delete", self.describe::<K>(name), request).await.map(drop)
    }

    async fn owner(&self, owner: &Owner) -> Result<Option<serde_json::Value>, StoreError> {
        let what = owner.to_string();
        let Some(path) = self.owner_path(owner, &what).await? else {
            // The kind itself is gone: no object of it can exist.
            return Ok(None);
        };
        match self
            .call::<serde_json::Value>("get", what, Request::new(path).get(&owner.name, &Default::default()))
            .await
        {
            Ok(object) => Ok(Some(object)),
            // The same where the kind is gone.
            Err(StoreError { failure: Failure::Absent | Failure::NoKind, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl KubeStore {
    /// Page by page, as of one moment: ten thousand blocks are neither one answer that takes too long nor a text of
    /// many megabytes beside what is read from it. `None` if that moment was forgotten before the last page.
    async fn fold_pages<K: Object, T>(
        &self,
        params: &ListParams,
        mut sum: T,
        add: &(impl Fn(&mut T, K) + Sync),
    ) -> Result<Option<T>, StoreError> {
        let mut page = params.clone().limit(PAGE);
        loop {
            let begun = page.continue_token.is_some();
            let list: ObjectList<K> = match self.list_page(&page).await {
                // 410 Gone: the token has expired.
                Err(StoreError { failure: Failure::Refused(_), .. }) if begun => return Ok(None),
                list => list?,
            };
            list.items.into_iter().for_each(|object| add(&mut sum, object));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(Some(sum)),
            }
        }
    }

    async fn list_page<K: Object>(&self, params: &ListParams) -> Result<ObjectList<K>, StoreError> {
        let mut list: ObjectList<K> =
            self.call("list", self.plural::<K>(), Request::new(K::url_path(&(), None)).list(params)).await?;
        for item in &mut list.items {
            // Often more than the object itself, and a write without them changes nothing of them.
            item.meta_mut().managed_fields = None;
        }
        Ok(list)
    }

    /// A request that got no answer may have been carried out all the same. Credentials that could not be
    /// loaded, or that did not get through the handshake, are the exception: nothing was sent.
    fn unsent(&self, error: &::kube::Error) -> Failure {
        match credentials_fault(error).or_else(|| tls::refusal(error)) {
            Some(why) => Failure::Denied(format!("{why} ({})", self.credentials)),
            None => Failure::Unknown(chain(error)),
        }
    }

    /// The collection an owner's object lives in; `None` if the cluster serves no such kind.
    async fn owner_path(&self, owner: &Owner, what: &str) -> Result<Option<String>, StoreError> {
        let known = match (owner.group.as_str(), owner.kind.as_str()) {
            ("", "Pod") => Some("/api/v1/namespaces/{}/pods"),
            ("", "ReplicationController") => Some("/api/v1/namespaces/{}/replicationcontrollers"),
            ("apps", "Deployment") => Some("/apis/apps/v1/namespaces/{}/deployments"),
            ("apps", "ReplicaSet") => Some("/apis/apps/v1/namespaces/{}/replicasets"),
            ("apps", "StatefulSet") => Some("/apis/apps/v1/namespaces/{}/statefulsets"),
            ("apps", "DaemonSet") => Some("/apis/apps/v1/namespaces/{}/daemonsets"),
            ("batch", "Job") => Some("/apis/batch/v1/namespaces/{}/jobs"),
            ("batch", "CronJob") => Some("/apis/batch/v1/namespaces/{}/cronjobs"),
            ("kubevirt.io", "VirtualMachine") => Some("/apis/kubevirt.io/v1/namespaces/{}/virtualmachines"),
            ("kubevirt.io", "VirtualMachineInstance") => {
                Some("/apis/kubevirt.io/v1/namespaces/{}/virtualmachineinstances")
            }
            _ => None,
        };
        if let Some(path) = known {
            return Ok(Some(path.replace("{}", &owner.namespace)));
        }
        let discovered = tokio::time::timeout(CALL_TIMEOUT, ::kube::discovery::group(&self.client, &owner.group)).await;
        let group = match discovered {
            Ok(Ok(group)) => group,
            Ok(Err(::kube::Error::Discovery(::kube::error::DiscoveryError::MissingApiGroup(_)))) => return Ok(None),
            Ok(Err(e)) => return Err(StoreError::new("discover", what, Failure::Unknown(chain(&e)))),
            Err(_) => {
                return Err(StoreError::new(
                    "discover",
                    what,
                    Failure::Unknown("no answer from the API server".into()),
                ));
            }
        };
        let found = group.recommended_kind(&owner.kind);
        Ok(found.map(|(resource, ApiCapabilities { scope, .. })| match scope {
            Scope::Namespaced => {
                format!("/apis/{}/namespaces/{}/{}", resource.api_version, owner.namespace, resource.plural)
            }
            Scope::Cluster => format!("/apis/{}/{}", resource.api_version, resource.plural),
        }))
    }
}

/// Why credentials could not be made ready for a request, also where a layer below kube's client says it.
fn credentials_fault(error: &::kube::Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if cause.is::<AuthError>() {
            return Some(chain(cause));
        }
        next = cause.source();
    }
    None
}

/// The object without a record of who set which field, where that record costs most: a block is written for every
/// address that comes or goes, and a seventh of the time of such a write is the server keeping `managedFields` of 64
/// entries. One empty entry tells it to keep none from now on.
fn untracked<K: Object>(object: &K) -> Cow<'_, K> {
    if K::kind(&()) != IPAMBlock::kind(&()) {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    object.meta_mut().managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    Cow::Owned(object)
}

fn name_of<K: Object>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

fn encode<K: Object>(verb: &'static str, what: &str, object: &K) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(object).map_err(|e| StoreError::new(verb, what, Failure::Refused(e.to_string())))
}

/// `Retry-After` in seconds; the HTTP-date form is not used by API servers.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes, outermost first: a TLS or DNS failure hides two levels down.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = inner.source();
    }
    text
}

fn matching(params: ListParams, selector: &str) -> ListParams {
    if selector.is_empty() { params } else { params.labels(selector) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answering(status: u16, body: &'static str) -> KubeStore {
        let service = tower::service_fn(move |_: http::Request<Body>| async move {
            http::Response::builder().status(status).body(Body::from(body.as_bytes().to_vec()))
        });
        KubeStore::new(Client::new(service, "default"))
    }

    /// As an API server passes it on: by the etcd client's words alone.
    #[tokio::test]
    async fn an_etcd_without_room_has_written_nothing() {
        let status =
            r#"{"kind":"Status","status":"Failure","message":"etcdserver: mvcc: database space exceeded","code":500}"#;
        let error = answering(500, status).get::<IPAMBlock>(None, "b").await.unwrap_err();
        assert!(matches!(error.failure, Failure::Full(_)), "{error}");
        let another = answering(500, r#"{"message":"etcdserver: request timed out"}"#);
        let error = another.get::<IPAMBlock>(None, "b").await.unwrap_err();
        assert!(matches!(error.failure, Failure::Unknown(_)), "{error}");
    }

    /// A kubeconfig in a directory of its own, for a server that answers whatever it is asked with 404; and the first
    /// lines of what it was asked.
    async fn asked_by(cluster: &str, user: &str, files: &[(&str, &str)]) -> Result<String, String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let path = directory.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        std::fs::write(&path, text.replace("SERVER", &server)).unwrap();
        let store = KubeStore::from_kubeconfig(&path, None).await.map_err(|error| error.to_string())?;
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = vec![0; 4096];
            let read = stream.read(&mut text).await.unwrap();
            let body = r#"{"kind":"Status","status":"Failure","reason":"NotFound","code":404}"#;
            let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&text[..read]).into_owned()
        });
        let got = store.get::<IPAMBlock>(None, "b").await;
        if let Err(error) = &got
            && !serving.is_finished()
        {
            serving.abort();
            return Err(error.to_string());
        }
        Ok(serving.await.unwrap())
    }

    /// As kubectl takes them.
    #[tokio::test]
    async fn a_token_file_may_end_in_a_line_break_and_be_named_by_a_relative_path() {
        for text in ["secret-token", "secret-token\n", " secret-token \r\n\n"] {
            let asked = asked_by("server: 'http://SERVER'", "tokenFile: token", &[("token", text)]).await.unwrap();
            assert!(asked.to_lowercase().contains("authorization: bearer secret-token\r\n"), "{asked}");
        }
        for (text, says) in [("\n", "no token in it"), ("two\nlines", "no token in it")] {
            let refused =
                asked_by("server: 'http://SERVER'", "tokenFile: token", &[("token", text)]).await.unwrap_err();
            assert!(refused.contains("token") && refused.contains(says) && !refused.contains("lines\""), "{refused}");
        }
    }

    #[tokio::test]
    async fn the_proxy_that_a_kubeconfig_names_is_used() {
        let cluster = "server: 'http://192.0.2.7:6443', proxy-url: 'http://SERVER'";
        let asked = asked_by(cluster, "token: t", &[]).await.unwrap();
        assert!(asked.starts_with("CONNECT 192.0.2.7:6443 "), "{asked}");
        let refused =
            asked_by("server: 'http://SERVER', proxy-url: 'gopher://x:1'", "token: t", &[]).await.unwrap_err();
        assert!(refused.contains("gopher"), "{refused}");
    }

    #[tokio::test]
    async fn credentials_that_cannot_be_had_are_no_unclear_answer() {
        let exec =
            "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./no-such-command, interactiveMode: Never}";
        let refused = asked_by("server: 'http://SERVER'", exec, &[]).await.unwrap_err();
        assert!(refused.contains("exec") && !refused.contains("no clear answer"), "{refused}");
        let failing = tower::service_fn(|_: http::Request<Body>| async {
            Err::<http::Response<Body>, _>(Box::new(AuthError::ExecPluginFailed) as tower::BoxError)
        });
        let error = KubeStore::new(Client::new(failing, "default")).get::<IPAMBlock>(None, "b").await.unwrap_err();
        assert!(matches!(&error.failure, Failure::Denied(why) if why.contains("exec-plugin")), "{error}");
    }

    #[test]
    fn a_block_is_written_without_a_record_of_who_set_which_field() {
        let mut block: IPAMBlock = calico::IPAMBlockSpec::new(
            "10.0.0.0/26".parse().unwrap(),
            &calico::Affinity::host("n1"),
            jiff::Timestamp::UNIX_EPOCH,
        )
        .object();
        block.meta_mut().managed_fields =
            Some(vec![ManagedFieldsEntry { manager: Some("x".into()), ..Default::default() }]);
        let written = serde_json::to_value(&*untracked(&block)).unwrap();
        assert_eq!(written["metadata"]["managedFields"], serde_json::json!([{}]));
    }
}

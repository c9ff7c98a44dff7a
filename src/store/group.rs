//! Which of Calico's two API groups this process speaks, and its requests in that group.
//!
//! Everything here is written for `crd.projectcalico.org/v1`. A client of [`Group::client`] carries a request over into the
//! cluster's group on its way out; the types read the answers of either. The group is decided once: by whoever configures the
//! process, or by the first answer about an object of Calico's. Where v1 answers, that costs no request.

use std::env;
use std::sync::{Arc, OnceLock};

use ::kube::Client;
use ::kube::client::Body;
use calico::{
    ApiGroup, BlockAffinity, ClusterInformation, IPAMBlock, IPAMHandle, IPPool, IPReservation, cluster_information,
};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use tokio::sync::Mutex;

use super::kube::KubeStore;
use super::{Failure, Object, Objects as _, StoreError};

/// The variable by which Calico's programs are told the group, too.
pub const VARIABLE: &str = "CALICO_API_GROUP";

/// A definition that the newer group has, and Calico's aggregated API server, which serves the same group, has not.
pub const DEFINITION: &str = "ippools.projectcalico.org";

/// Where it is.
const DEFINITION_PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ippools.projectcalico.org";
/// Longest answer that says that something is not there, in bytes.
const REFUSAL_LIMIT: usize = 1 << 20;

/// The group that this process speaks. Clones share the decision.
#[derive(Debug, Clone, Default)]
pub struct Group {
    decided: Arc<OnceLock<ApiGroup>>,
    /// Held while the definitions are asked for: whoever comes meanwhile waits for the answer.
    asking: Arc<Mutex<()>>,
}

// === impl Group ===

impl Group {
    /// The group that a configuration names, else the one of [`VARIABLE`], else whichever the cluster turns out to have.
    pub fn of(named: Option<ApiGroup>) -> Self {
        named.or_else(of_environment).map_or_else(Self::default, Self::from)
    }

    /// The group, if that is decided.
    pub fn known(&self) -> Option<ApiGroup> {
        self.decided.get().copied()
    }

    fn decide(&self, group: ApiGroup) {
        if self.decided.set(group).is_ok() {
            tracing::debug!(%group, "Calico's objects are in this API group");
        }
    }

    /// A client that speaks this group, over one that speaks v1.
    pub fn client(&self, inner: &Client) -> Client {
        if self.known() == Some(ApiGroup::Crd) {
            return inner.clone();
        }
        let (group, client) = (self.clone(), inner.clone());
        let service = tower::service_fn(move |request| {
            let (group, client) = (group.clone(), client.clone());
            async move { group.send(&client, request).await }
        });
        Client::new(service, inner.default_namespace())
    }

    async fn send(&self, client: &Client, request: Request<Body>) -> Result<Response<Body>, ::kube::Error> {
        if ApiGroup::Crd.path(request.uri().path()).is_none() {
            return client.send(request).await;
        }
        if let Some(known) = self.known() {
            return client.send(shaped(known, request).await?).await;
        }
        let Some(spare) = copy(&request) else { return client.send(request).await };
        let answer = client.send(request).await?;
        if answer.status().is_success() {
            self.decide(ApiGroup::Crd);
        }
        if answer.status() != StatusCode::NOT_FOUND {
            return Ok(answer);
        }
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, REFUSAL_LIMIT).collect().await.map_err(::kube::Error::Service)?.to_bytes();
        // An object is missing, or a kind.
        if serde_json::from_slice::<Value>(&body).is_ok_and(|status| status["reason"] == "NotFound") {
            self.decide(ApiGroup::Crd);
        } else if let Some(other) = self.ask(client).await? {
            return Ok(other);
        }
        match self.known() {
            // Nothing took effect, so the request may be sent again.
            Some(ApiGroup::V3) => client.send(shaped(ApiGroup::V3, spare).await?).await,
            _ => Ok(Response::from_parts(head, Body::from(body))),
        }
    }

    /// Decides for v3, as v1 is not served, if v3's definitions exist. Gives the answer if it says neither.
    async fn ask(&self, client: &Client) -> Result<Option<Response<Body>>, ::kube::Error> {
        let _asking = self.asking.lock().await;
        if self.known().is_some() {
            return Ok(None);
        }
        let request = Request::get(DEFINITION_PATH).body(Body::empty()).map_err(::kube::Error::HttpError)?;
        let answer = client.send(request).await?;
        match answer.status() {
            status if status.is_success() => self.decide(ApiGroup::V3),
            StatusCode::NOT_FOUND => {}
            _ => return Ok(Some(answer)),
        }
        Ok(None)
    }
}

impl From<ApiGroup> for Group {
    fn from(group: ApiGroup) -> Self {
        Self { decided: Arc::new(OnceLock::from(group)), asking: Arc::default() }
    }
}

fn of_environment() -> Option<ApiGroup> {
    env::var(VARIABLE).ok().filter(|text| !text.trim().is_empty()).map(|text| ApiGroup::named(&text))
}

/// The group that the conflist of a node is to name, by [`VARIABLE`], else by what the cluster has. `None` if it is as good
/// with what it names already, or with nothing.
///
/// Where a migration has copied everything, both groups are served, and only the locks tell that v1 is over.
///
/// # Errors
/// What kept it from being found out.
pub async fn of_cluster(store: &KubeStore) -> Result<Option<ApiGroup>, StoreError> {
    if let Some(named) = of_environment() {
        return Ok(Some(named));
    }
    let is_ready = async |group: ApiGroup| {
        let store = store.in_group(group.into());
        match store.get::<ClusterInformation>(None, cluster_information::NAME).await {
            Ok(found) => Ok(Some(found.map(|information| information.spec.is_ready()))),
            Err(StoreError { failure: Failure::NoKind, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    if !store.is_defined(DEFINITION).await? {
        return Ok(Some(ApiGroup::Crd));
    }
    Ok(match (is_ready(ApiGroup::Crd).await?, is_ready(ApiGroup::V3).await?) {
        // v1's ClusterInformation goes early when its definitions are deleted.
        (None, Some(_)) | (Some(None | Some(false)), Some(Some(true))) => Some(ApiGroup::V3),
        (Some(Some(true)), None | Some(None | Some(false))) => Some(ApiGroup::Crd),
        _ => None,
    })
}

/// What every object bears that a migration has copied, and its UID.
const MIGRATED_BY: &str = "migration.projectcalico.org/migrated-by";

/// What the newer group holds, as `<kind>/<name>`, and no migration has copied there.
///
/// # Errors
/// What kept it from being found out.
pub async fn not_copied(store: &KubeStore) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    if !store.is_defined(DEFINITION).await? {
        return Ok(found);
    }
    let newer = store.in_group(ApiGroup::V3.into());
    strangers::<IPPool>(&newer, &mut found).await?;
    strangers::<IPReservation>(&newer, &mut found).await?;
    strangers::<BlockAffinity>(&newer, &mut found).await?;
    strangers::<IPAMBlock>(&newer, &mut found).await?;
    strangers::<IPAMHandle>(&newer, &mut found).await?;
    Ok(found)
}

async fn strangers<K: Object>(store: &KubeStore, found: &mut Vec<String>) -> Result<(), StoreError> {
    let listed = match store.list::<K>(&format!("!{MIGRATED_BY}")).await {
        Err(StoreError { failure: Failure::NoKind, .. }) => return Ok(()),
        listed => listed?,
    };
    found.extend(listed.iter().filter_map(|one| Some(format!("{}/{}", K::kind(&()), one.meta().name.as_deref()?))));
    Ok(())
}

/// The same request in a group.
async fn shaped(group: ApiGroup, request: Request<Body>) -> Result<Request<Body>, ::kube::Error> {
    if group == ApiGroup::Crd {
        return Ok(request);
    }
    let (mut head, mut body) = request.into_parts();
    let path = head.uri.path_and_query().and_then(|path| group.path(path.as_str()));
    if let Some(path) = path {
        let mut parts = head.uri.into_parts();
        parts.path_and_query = Some(path.parse().map_err(|error| ::kube::Error::HttpError(http::Error::from(error)))?);
        head.uri = Uri::from_parts(parts).map_err(|error| ::kube::Error::HttpError(error.into()))?;
    }
    let bytes = body.collect().await.map_err(|error| ::kube::Error::Service(error.into()))?.to_bytes();
    body = match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut object) => {
            group.shape(&mut object);
            serde_json::to_vec(&object).map_err(::kube::Error::SerdeError)?.into()
        }
        Err(_) => bytes.into(),
    };
    Ok(Request::from_parts(head, body))
}

/// The same request once more; `None` for a body that can be read only once.
pub(super) fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

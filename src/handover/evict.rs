//! The Eviction API: it keeps disruption budgets, and evicts the pod of one UID or none.

use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use crate::store::kube::{CALL_TIMEOUT, KubeStore, chain};
use crate::store::{Failure, StoreError};

/// What the API server reads of an answer, at most.
const ANSWER_LIMIT: usize = 1 << 20;

/// What became of an eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evicted {
    /// The pod is being deleted.
    Done,
    /// There is no pod of that UID.
    Gone,
    /// A disruption budget does not allow it, or several speak of the pod; in the API server's words.
    Budget(String),
}

/// Evicts pods.
pub trait Evict: Send + Sync {
    /// Evicts the pod of that name if it has that UID; as a trial it only says whether that could be.
    fn evict(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        trial: bool,
    ) -> impl Future<Output = Result<Evicted, StoreError>> + Send;
}

/// The part of an answer that matters here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    message: String,
    details: Details,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

impl Evict for KubeStore {
    async fn evict(&self, namespace: &str, name: &str, uid: &str, trial: bool) -> Result<Evicted, StoreError> {
        let failed = |failure| StoreError::new("evict", format!("pods {namespace}/{name}"), failure);
        let dry_run: &[&str] = if trial { &["All"] } else { &[] };
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}, "dryRun": dry_run},
        });
        let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(eviction.to_string().into_bytes()))
            .map_err(|error| failed(Failure::Refused(error.to_string())))?;
        let exchange = async {
            let answer = self.client().send(request).await.map_err(|error| Failure::Unknown(chain(&error)))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
            let body = body.map_err(|error| Failure::Unknown(format!("the answer broke off: {error}")))?.to_bytes();
            Ok((status, serde_json::from_slice::<Status>(&body).unwrap_or_default()))
        };
        match timeout(CALL_TIMEOUT, exchange).await {
            Ok(Ok((status, told))) => read(status, told).map_err(failed),
            Ok(Err(failure)) => Err(failed(failure)),
            Err(_) => Err(failed(Failure::Unknown(format!("no answer from the API server within {CALL_TIMEOUT:?}")))),
        }
    }
}

/// What an answer means. Of several budgets on one pod an API server speaks as of an error of its own.
fn read(status: u16, told: Status) -> Result<Evicted, Failure> {
    let budgets: Vec<&Cause> = told.details.causes.iter().filter(|c| c.reason == "DisruptionBudget").collect();
    let words = budgets.iter().map(|cause| cause.message.as_str()).filter(|text| !text.is_empty());
    let words = words.collect::<Vec<_>>().join("; ");
    match status {
        200..300 => Ok(Evicted::Done),
        404 | 409 => Ok(Evicted::Gone),
        429 if !budgets.is_empty() || told.message.contains("disruption budget") => {
            Ok(Evicted::Budget(if words.is_empty() { told.message } else { words }))
        }
        500 if told.message.contains("PodDisruptionBudget") => Ok(Evicted::Budget(told.message)),
        429 => Err(Failure::Busy(std::time::Duration::from_secs(1))),
        401 | 403 => Err(Failure::Denied(told.message)),
        code if code < 500 => Err(Failure::Refused(told.message)),
        _ => Err(Failure::Unknown(format!("HTTP {status}: {}", told.message))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_told_apart_from_an_api_server_that_is_busy() {
        let status = |text: &str| serde_json::from_str::<Status>(text).unwrap();
        // As kube-apiserver 1.33 answers.
        let budget = r#"{"kind":"Status","status":"Failure","reason":"TooManyRequests","code":429,
            "message":"Cannot evict pod as it would violate the pod's disruption budget.",
            "details":{"causes":[{"reason":"DisruptionBudget",
            "message":"The disruption budget web needs 1 healthy pods and has 1 currently"}]}}"#;
        let words = "The disruption budget web needs 1 healthy pods and has 1 currently";
        assert_eq!(read(429, status(budget)), Ok(Evicted::Budget(words.into())));
        let several =
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        let text = format!(r#"{{"message":"{several}","code":500}}"#);
        assert_eq!(read(500, status(&text)), Ok(Evicted::Budget(several.into())));
        assert!(matches!(read(429, Status::default()), Err(Failure::Busy(_))));
        assert!(matches!(read(500, Status::default()), Err(Failure::Unknown(_))));
        assert!(matches!(read(403, Status::default()), Err(Failure::Denied(_))));
        for status in [404, 409] {
            assert_eq!(read(status, Status::default()), Ok(Evicted::Gone));
        }
        assert_eq!(read(201, Status::default()), Ok(Evicted::Done));
    }
}

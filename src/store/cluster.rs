//! Which cluster this process serves: the UID of namespace `kube-system`, which a cluster keeps all its life.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use tokio::sync::OnceCell;

use super::kube::KubeStore;
use super::{Failure, Objects as _, StoreError};

/// The namespace whose UID stands for the cluster.
const NAMESPACE: &str = "kube-system";

/// The UID of the cluster of an API server, read when it is first asked for and then known.
pub struct ClusterId {
    store: KubeStore,
    memory: Option<Arc<dyn Memory>>,
    uid: OnceCell<String>,
}

/// Keeps the UID for processes that live for one call.
pub trait Memory: Send + Sync {
    /// The UID that was noted for the API server with this [`KubeStore::origin`]; `None` for any other.
    fn recall(&self, origin: &str) -> Option<String>;

    /// Notes it. That may fail without a word: then it is read again.
    fn remember(&self, origin: &str, uid: &str);
}

// === impl ClusterId ===

impl ClusterId {
    /// The UID of the cluster that `store` reaches; nothing is sent yet.
    pub fn new(store: KubeStore) -> Self {
        Self { store, memory: None, uid: OnceCell::new() }
    }

    /// The same, which asks `memory` before the API server.
    #[must_use]
    pub fn remembered(self, memory: Arc<dyn Memory>) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// The API server's store.
    pub fn store(&self) -> &KubeStore {
        &self.store
    }

    /// The UID.
    ///
    /// # Errors
    /// [`Failure::Unidentified`] if the namespace may not be read, or is not there; else what kept it from being read.
    pub async fn uid(&self) -> Result<&str, StoreError> {
        self.uid.get_or_try_init(|| self.find()).await.map(String::as_str)
    }

    async fn find(&self) -> Result<String, StoreError> {
        let noted = self.memory.as_ref().zip(self.store.origin());
        if let Some(uid) = noted.and_then(|(memory, origin)| memory.recall(origin)) {
            return Ok(uid);
        }
        let uid = self.read().await?;
        if let Some((memory, origin)) = noted {
            memory.remember(origin, &uid);
        }
        Ok(uid)
    }

    async fn read(&self) -> Result<String, StoreError> {
        let unknown =
            |why: String| StoreError::new("get", format!("namespaces {NAMESPACE}"), Failure::Unidentified(why));
        match self.store.get::<Namespace>(None, NAMESPACE).await {
            Ok(Some(Namespace { metadata, .. })) => metadata.uid.ok_or_else(|| unknown("it has no UID".into())),
            Ok(None) => Err(unknown("it does not exist".into())),
            Err(StoreError { failure: failure @ (Failure::Denied(_) | Failure::Refused(_)), .. }) => {
                Err(unknown(failure.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}

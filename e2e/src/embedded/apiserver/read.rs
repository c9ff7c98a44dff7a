//! Reading one object and lists of them.

use serde_json::{Value, json};

use super::api::{Api, Reply, Target};
use super::error::ApiError;
use super::represent::Form;
use super::request::Query;
use super::store::{Key, State};

impl Api {
    pub fn read(&self, target: &Target, name: &str, query: &Query) -> Result<Reply, ApiError> {
        self.store.with(|state| {
            check_known(state, query)?;
            let object = state.get(&target.key(name)).ok_or_else(|| ApiError::not_found(&target.resource, name))?;
            Ok(Reply::ok(target.present(object)))
        })
    }

    pub fn list(&self, target: &Target, form: Form, query: &Query) -> Result<Reply, ApiError> {
        let selector = target.selector(query)?;
        let limit = query.number("limit")?.unwrap_or(0);
        let page = match query.text("continue") {
            "" => None,
            token => Some(Page::read(token)?),
        };
        let exact =
            (query.text("resourceVersionMatch") == "Exact").then(|| query.resource_version()).transpose()?.flatten();
        let resource = target.key("").resource;
        let namespace = target.namespace.as_deref();
        self.store.with(|state| {
            check_known(state, query)?;
            let revision = page.as_ref().map(|p| p.revision).or(exact).unwrap_or(state.revision);
            let all = if revision == state.revision {
                state.list(&resource, namespace)
            } else {
                state.list_at(&resource, namespace, revision).ok_or_else(|| {
                    ApiError::expired(if page.is_some() {
                        "The provided continue parameter is too old to display a consistent list result.".to_owned()
                    } else {
                        format!("The resourceVersion for the provided list is too old: {revision}")
                    })
                })?
            };
            let mut chosen = all
                .into_iter()
                .filter(|(key, object)| page.as_ref().is_none_or(|p| p.precedes(key)) && selector.matches(object))
                .collect::<Vec<_>>();
            let mut metadata = json!({"resourceVersion": revision.to_string()});
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            if limit > 0 && chosen.len() > limit {
                let rest = chosen.len() - limit;
                chosen.truncate(limit);
                if let Some((last, _)) = chosen.last() {
                    metadata["continue"] = Page::after(revision, last).into();
                }
                if query.text("labelSelector").is_empty() && query.text("fieldSelector").is_empty() {
                    metadata["remainingItemCount"] = rest.into();
                }
            }
            let items = chosen.iter().map(|(_, object)| target.present(object)).collect::<Vec<Value>>();
            Ok(Reply::ok(form.list(&target.resource, &target.version.name, metadata, items)))
        })
    }
}

/// A read "not older than" a revision that does not exist yet.
fn check_known(state: &State, query: &Query) -> Result<(), ApiError> {
    let asked = query.resource_version()?.unwrap_or(0);
    if asked <= state.revision {
        return Ok(());
    }
    let mut error =
        ApiError::new(504, "Timeout", format!("Too large resource version: {asked}, current: {}", state.revision));
    error.retry_after = Some(1);
    error.details = Some(json!({
        "retryAfterSeconds": 1,
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
    }));
    Err(error)
}

/// Where the next page of a list begins.
struct Page {
    revision: u64,
    namespace: String,
    name: String,
}

impl Page {
    fn after(revision: u64, last: &Key) -> String {
        format!("{revision}:{}/{}", last.namespace, last.name)
    }

    fn read(token: &str) -> Result<Self, ApiError> {
        let parts = || {
            let (revision, rest) = token.split_once(':')?;
            let (namespace, name) = rest.split_once('/')?;
            Some(Self { revision: revision.parse().ok()?, namespace: namespace.to_owned(), name: name.to_owned() })
        };
        parts().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }

    fn precedes(&self, key: &Key) -> bool {
        (self.namespace.as_str(), self.name.as_str()) < (key.namespace.as_str(), key.name.as_str())
    }
}

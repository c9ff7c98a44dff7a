//! What a request asks for: path and query turned into types once.

use std::collections::BTreeMap;

use http::Method;
use percent_encoding::percent_decode_str;

use super::error::ApiError;

/// The path of a resource request, not yet looked up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Path {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub plural: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Path {
    /// None for paths that are not of a resource (discovery, health).
    pub fn parse(path: &str) -> Option<Self> {
        let segments = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(|s| percent_decode_str(s).decode_utf8_lossy().into_owned())
            .collect::<Vec<_>>();
        let words = segments.iter().map(String::as_str).collect::<Vec<_>>();
        let (group, version, rest) = match words.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let own = |s: &str| Some(s.to_owned());
        let mut parsed = Self { group: group.to_owned(), version: version.to_owned(), ..Self::default() };
        let (plural, rest) = match rest {
            ["namespaces", name, sub @ ("status" | "finalize")] => ("namespaces", vec![*name, *sub]),
            ["namespaces", namespace, plural, rest @ ..] => {
                parsed.namespace = own(namespace);
                (*plural, rest.to_vec())
            }
            [plural, rest @ ..] => (*plural, rest.to_vec()),
            [] => return None,
        };
        parsed.plural = plural.to_owned();
        match rest.as_slice() {
            [] => {}
            [name] => parsed.name = own(name),
            [name, sub] => (parsed.name, parsed.subresource) = (own(name), own(sub)),
            _ => return None,
        }
        Some(parsed)
    }

    /// `pods`, `ipamblocks.crd.projectcalico.org`.
    pub fn id(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The query parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The value of a parameter; empty if absent.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    pub fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1")
    }

    /// A number; none if absent or empty.
    pub fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.text(key) {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("{key}: {text:?} is not a number")))
            }
        }
    }

    /// `resourceVersion`: none for "any" (absent, empty) and `Some(0)` for "any cached".
    pub fn resource_version(&self) -> Result<Option<u64>, ApiError> {
        self.number("resourceVersion")
            .map_err(|_| ApiError::bad_request(format!("invalid resource version {:?}", self.text("resourceVersion"))))
    }
}

/// The Kubernetes verb of a request.
pub(super) fn verb(method: &Method, path: Option<&Path>, query: &Query) -> &'static str {
    let named = path.is_some_and(|p| p.name.is_some());
    match *method {
        Method::GET if query.flag("watch") => "watch",
        Method::GET if named || path.is_none() => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        let pod = Path::parse("/api/v1/namespaces/default/pods/a/status").unwrap();
        assert_eq!(
            (pod.id().as_str(), pod.namespace.as_deref(), pod.name.as_deref(), pod.subresource.as_deref()),
            ("pods", Some("default"), Some("a"), Some("status"))
        );
        let block = Path::parse("/apis/crd.projectcalico.org/v1/ipamblocks").unwrap();
        assert_eq!(
            (block.id().as_str(), block.namespace, block.name),
            ("ipamblocks.crd.projectcalico.org", None, None)
        );
        let namespace = Path::parse("/api/v1/namespaces/default").unwrap();
        assert_eq!((namespace.plural.as_str(), namespace.name.as_deref()), ("namespaces", Some("default")));
        let finalize = Path::parse("/api/v1/namespaces/default/finalize").unwrap();
        assert_eq!((finalize.plural.as_str(), finalize.subresource.as_deref()), ("namespaces", Some("finalize")));
        assert_eq!(Path::parse("/apis/apps/v1"), None);
        assert_eq!(Path::parse("/readyz"), None);
    }
}

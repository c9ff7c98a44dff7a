//! Label and field selectors, as they stand in query strings.

use serde_json::Value;

use super::error::ApiError;
use super::meta::text;

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Requirement {
    fn holds(&self, object: &Value) -> bool {
        let label = |key: &str| object.pointer("/metadata/labels").and_then(|l| l.get(key)).and_then(Value::as_str);
        match self {
            Self::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Self::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

/// One requirement on a field.
#[derive(Debug, Clone, PartialEq)]
struct FieldRequirement {
    pointer: String,
    value: String,
    equal: bool,
}

/// Which objects a list or watch is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

impl Selector {
    /// From the two query parameters; `resource` decides which fields are known.
    pub fn parse(labels: &str, fields: &str, resource: &str) -> Result<Self, ApiError> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(fields, resource)? })
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|r| r.holds(object))
            && self.fields.iter().all(|f| (text(object, &f.pointer) == f.value) == f.equal)
    }
}

fn unparsable(selector: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("unable to parse requirement: {why}: {selector:?}"))
}

/// Splits at commas that are not inside parentheses.
fn split_requirements(selector: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in selector.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&selector[start..]);
    parts.into_iter().map(str::trim).filter(|p| !p.is_empty()).collect()
}

fn parse_labels(selector: &str) -> Result<Vec<Requirement>, ApiError> {
    split_requirements(selector).into_iter().map(parse_label).collect()
}

fn parse_label(part: &str) -> Result<Requirement, ApiError> {
    if let Some(open) = part.find('(') {
        let set = part[open..]
            .strip_prefix('(')
            .and_then(|s| s.strip_suffix(')'))
            .ok_or_else(|| unparsable(part, "expected ')'"))?;
        let values = set.split(',').map(|v| v.trim().to_owned()).collect();
        let mut head = part[..open].split_whitespace();
        return match (head.next(), head.next(), head.next()) {
            (Some(key), Some("in"), None) => Ok(Requirement::In(label_key(key)?, values)),
            (Some(key), Some("notin"), None) => Ok(Requirement::NotIn(label_key(key)?, values)),
            _ => Err(unparsable(part, "expected 'in' or 'notin'")),
        };
    }
    let one = |v: &str| vec![v.trim().to_owned()];
    if let Some((key, value)) = part.split_once("!=") {
        Ok(Requirement::NotIn(label_key(key)?, one(value)))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        Ok(Requirement::In(label_key(key)?, one(value)))
    } else if let Some(key) = part.strip_prefix('!') {
        Ok(Requirement::Absent(label_key(key)?))
    } else {
        Ok(Requirement::Exists(label_key(part)?))
    }
}

fn label_key(key: &str) -> Result<String, ApiError> {
    let key = key.trim();
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if key.is_empty() || !key.chars().all(known) {
        return Err(unparsable(key, "not a label key"));
    }
    Ok(key.to_owned())
}

fn parse_fields(selector: &str, resource: &str) -> Result<Vec<FieldRequirement>, ApiError> {
    selector
        .split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (field, value, equal) = if let Some((f, v)) = part.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (f, v, true)
            } else {
                return Err(ApiError::bad_request(format!("invalid field selector {part:?}")));
            };
            if !is_selectable(resource, field) {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            Ok(FieldRequirement { pointer: format!("/{}", field.replace('.', "/")), value: value.to_owned(), equal })
        })
        .collect()
}

fn is_selectable(resource: &str, field: &str) -> bool {
    let own: &[&str] = match resource {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "events" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "reason",
            "reportingComponent",
            "type",
        ],
        "namespaces" => &["status.phase"],
        "secrets" => &["type"],
        "jobs.batch" => &["status.successful"],
        "replicasets.apps" => &["status.replicas"],
        "nodes" => &["spec.unschedulable"],
        _ => &[],
    };
    field == "metadata.name" || field == "metadata.namespace" || own.contains(&field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chosen(labels: &str) -> bool {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        Selector::parse(labels, "", "pods").unwrap().matches(&object)
    }

    #[test]
    fn label_selectors_choose_as_kubernetes_does() {
        for (selector, expected) in [
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (db, web)", true),
            ("app notin (web)", false),
            ("none notin (web)", true),
            ("!none", true),
            ("!app", false),
            ("tier", true),
            ("app=web,tier=back", false),
        ] {
            assert_eq!(chosen(selector), expected, "{selector}");
        }
    }

    #[test]
    fn a_selector_that_makes_no_sense_is_refused() {
        for (labels, fields) in
            [("app in web", ""), ("a b", ""), ("app (x)", ""), ("", "spec.image=x"), ("", "metadata.name")]
        {
            assert!(Selector::parse(labels, fields, "pods").is_err(), "{labels} {fields}");
        }
    }

    #[test]
    fn an_absent_field_equals_the_empty_string() {
        let selector = Selector::parse("", "spec.nodeName=", "pods").unwrap();
        assert!(selector.matches(&json!({"spec": {}})));
        assert!(!selector.matches(&json!({"spec": {"nodeName": "a"}})));
    }
}

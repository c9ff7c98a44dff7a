//! Calico's releases as their definitions tell them apart: which fields an API server keeps.
//!
//! The definitions are made of `calico/tests/fixtures/schemas.json`, where each field that a release names has a line.

use std::path::Path;

use anyhow::{Context as _, Result};
use calico::ApiGroup;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value, json};

/// A release of Calico with its objects in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// As Calico's tags are called.
    pub name: &'static str,
    /// Where its objects are.
    pub group: ApiGroup,
}

/// What may follow a field's type.
const KEYWORDS: [&str; 7] = ["format", "enum", "default", "maximum", "minimum", "pattern", "x-kubernetes-list-type"];

impl Release {
    /// v3.24 to v3.29, which have the same definitions.
    pub const V3_24: Self = Self { name: "v3.24.5", group: ApiGroup::Crd };
    /// v3.30.
    pub const V3_30: Self = Self { name: "v3.30.7", group: ApiGroup::Crd };
    /// v3.31.
    pub const V3_31: Self = Self { name: "v3.31.7", group: ApiGroup::Crd };
    /// v3.32.
    pub const V3_32: Self = Self { name: "v3.32.1", group: ApiGroup::Crd };
    /// v3.32 with its objects in the newer group.
    pub const V3_32_IN_V3: Self = Self { name: "v3.32.1", group: ApiGroup::V3 };

    /// Its definitions, and kube-ipam's own.
    ///
    /// # Errors
    /// The captured fields cannot be read.
    pub fn crds(self) -> Result<Vec<CustomResourceDefinition>> {
        let mut crds = self.of_calico()?;
        crds.push(kube_ipam::store::ipclaim::crd());
        Ok(crds)
    }

    fn of_calico(self) -> Result<Vec<CustomResourceDefinition>> {
        let kinds = self.fields()?;
        kinds.iter().map(|(kind, fields)| Ok(serde_json::from_value(self.definition(kind, fields)?)?)).collect()
    }

    fn fields(self) -> Result<Map<String, Value>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("calico/tests/fixtures/schemas.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let all: Map<String, Value> = serde_json::from_str(&text)?;
        let key = format!("{} {}", self.group, self.name);
        let kinds = all.get(&key).and_then(Value::as_object).cloned();
        kinds.with_context(|| format!("{}: no fields of {key}", path.display()))
    }

    fn definition(self, kind: &str, fields: &Value) -> Result<Value> {
        let plural = fields["plural"].as_str().context("a plural")?;
        let (group, version) = self.group.api_version().split_once('/').context("a group with a version")?;
        let spec = object(fields["spec"].as_object().context("the fields of spec")?, "")?;
        let has_status = fields["subresources"].as_array().is_some_and(|names| !names.is_empty());
        let mut properties = json!({
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": spec,
        });
        if has_status {
            properties["status"] = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        }
        Ok(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group, "scope": fields["scope"],
                "names": {
                    "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(),
                },
                "versions": [{
                    "name": version, "served": true, "storage": true,
                    "subresources": if has_status { json!({"status": {}}) } else { json!({}) },
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
                }],
            },
        }))
    }
}

/// The schema of an object whose fields have this prefix.
fn object(fields: &Map<String, Value>, prefix: &str) -> Result<Value> {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (path, text) in fields {
        let Some(name) = path.strip_prefix(prefix).filter(|name| !name.contains('.') && !name.starts_with('(')) else {
            continue;
        };
        let text = text.as_str().with_context(|| format!("{path} has no type"))?;
        let bare = name.trim_end_matches('*');
        if bare != name {
            required.push(bare);
        }
        let inner = |suffix: &str| object(fields, &format!("{prefix}{bare}{suffix}."));
        properties.insert(bare.to_owned(), field(text, inner)?);
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    Ok(schema)
}

/// The schema of a field by its line, such as `[integer nullable] x-kubernetes-list-type=atomic`.
fn field(text: &str, inner: impl Fn(&str) -> Result<Value>) -> Result<Value> {
    let mut cuts: Vec<usize> = KEYWORDS.iter().filter_map(|word| text.find(&format!(" {word}="))).collect();
    cuts.sort_unstable();
    let kind = &text[..cuts.first().copied().unwrap_or(text.len())];
    let in_brackets = |open: &str| kind.strip_prefix(open)?.strip_suffix(']');
    let mut schema = match (in_brackets("["), in_brackets("map[")) {
        (Some("object"), _) => json!({"type": "array", "items": inner("[]")?}),
        (Some(items), _) => json!({"type": "array", "items": plain(items)}),
        (_, Some(values)) => json!({"type": "object", "additionalProperties": plain(values)}),
        _ if kind == "object" => inner("")?,
        _ => plain(kind),
    };
    for (n, start) in cuts.iter().enumerate() {
        let end = cuts.get(n + 1).copied().unwrap_or(text.len());
        let (word, value) = text[start + 1..end].split_once('=').context("a keyword with a value")?;
        schema[word] = match (word, kind) {
            ("enum", _) => serde_json::from_str(&value.replace('\'', "\""))?,
            ("maximum" | "minimum", _) | ("default", "integer") => serde_json::from_str::<Value>(value)?,
            ("default", "boolean") => (value == "True").into(),
            _ => value.into(),
        };
    }
    Ok(schema)
}

/// A type alone, such as `integer nullable`.
fn plain(text: &str) -> Value {
    match text.strip_suffix(" nullable") {
        Some(kind) => json!({"type": kind, "nullable": true}),
        None => json!({"type": text}),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Name and schema of `spec`, without what people read.
    fn shapes(crds: &[CustomResourceDefinition]) -> BTreeMap<String, Value> {
        let shape = |crd: &CustomResourceDefinition| {
            let crd = serde_json::to_value(crd).unwrap();
            let mut spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
            strip(&mut spec);
            (crd["metadata"]["name"].as_str().unwrap().to_owned(), spec)
        };
        crds.iter().map(shape).collect()
    }

    fn strip(schema: &mut Value) {
        schema.as_object_mut().unwrap().remove("description");
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.sort_by_key(Value::to_string);
        }
        for key in ["maximum", "minimum"] {
            if let Some(bound) = schema.get(key).and_then(Value::as_f64) {
                schema[key] = bound.into();
            }
        }
        for (_, field) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
            strip(field);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get_mut(key) {
                strip(inner);
                // The captured lines have no more than the type of what is in a list or a map.
                inner.as_object_mut().unwrap().retain(|word, _| !["format", "enum"].contains(&word.as_str()));
            }
        }
    }

    /// What is made of the newest release's fields is what this project defines where Calico has not.
    #[test]
    fn definitions_made_of_captured_fields_are_those_that_are_known_to_be_right() {
        let newest = Release { name: "87c1590", group: ApiGroup::V3 };
        assert_eq!(shapes(&newest.of_calico().unwrap()), shapes(&ApiGroup::V3.crds()));
    }

    #[test]
    fn each_release_keeps_what_it_knows() {
        let keeps = |release: Release, kind: &str, pointer: &str| {
            let name = format!("{kind}.{}", release.group.group());
            shapes(&release.of_calico().unwrap())[&name].pointer(pointer).is_some()
        };
        let all = [Release::V3_24, Release::V3_30, Release::V3_31, Release::V3_32, Release::V3_32_IN_V3];
        let known = |kind: &str, pointer: &str| all.map(|release| keeps(release, kind, pointer));
        assert_eq!(known("blockaffinities", "/properties/type"), [false, true, true, true, true]);
        assert_eq!(known("ipamblocks", "/properties/affinityClaimTime"), [false, false, false, true, true]);
        assert_eq!(known("ippools", "/properties/namespaceSelector"), [false, false, true, true, true]);
        let attribute = "/properties/attributes/items/properties";
        assert_eq!(known("ipamblocks", &format!("{attribute}/handle_id")), [true; 5]);
        assert_eq!(known("ipamblocks", &format!("{attribute}/releasedAt")), [false; 5]);
    }
}

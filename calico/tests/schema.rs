//! The definitions have the fields of Calico's own, no more and no less, and the types have the same.
#![allow(clippy::unwrap_used)]

mod common;

use calico::{ApiGroup, BlockAffinity, ClusterInformation, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// A schema in the short form of the captured file.
fn short(schema: &Value) -> Value {
    if let Some(items) = schema.get("items") {
        return json!([short(items)]);
    }
    if let Some(values) = schema.get("additionalProperties") {
        return json!({ "<key>": short(values) });
    }
    if let Some(properties) = schema.get("properties") {
        let required: Vec<_> = schema["required"].as_array().into_iter().flatten().cloned().collect();
        let fields = properties.as_object().unwrap().iter().map(|(name, field)| {
            let mark = if required.contains(&json!(name)) { "*" } else { "" };
            (format!("{name}{mark}"), short(field))
        });
        return Value::Object(fields.collect());
    }
    let mut text = schema["type"].as_str().unwrap().to_owned();
    for key in ["format", "nullable", "enum", "default"] {
        match schema.get(key) {
            Some(Value::Array(values)) => {
                let values: Vec<_> = values.iter().map(Value::to_string).collect();
                text += &format!(" {key}=[{}]", values.join(", "));
            }
            Some(value) => text += &format!(" {key}={value}"),
            None => {}
        }
    }
    json!(text)
}

#[test]
fn the_definitions_have_exactly_the_fields_of_calicos_own() {
    let mut ours = Map::new();
    for crd in calico::crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let spec = &crd["spec"];
        let (plural, kind) = (spec["names"]["plural"].as_str().unwrap(), spec["names"]["kind"].as_str().unwrap());
        assert_eq!(crd["metadata"]["name"], format!("{plural}.crd.projectcalico.org"));
        assert_eq!(spec["group"], "crd.projectcalico.org");
        assert_eq!(spec["names"]["singular"], kind.to_lowercase());
        let versions = spec["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 1);
        let version = &versions[0];
        assert_eq!((&version["served"], &version["storage"]), (&json!(true), &json!(true)));
        let schema = &version["schema"]["openAPIV3Schema"];
        let text = schema.to_string();
        assert!(!text.contains("x-kubernetes-preserve-unknown-fields"), "{text}");
        ours.insert(
            kind.to_owned(),
            json!({
                "plural": plural,
                "scope": spec["scope"],
                "version": version["name"],
                "preserveUnknown": spec.get("preserveUnknownFields"),
                "subresources": version.get("subresources").filter(|value| **value != json!({})),
                "spec": short(&schema["properties"]["spec"]),
            }),
        );
    }
    assert_eq!(Value::Object(ours), common::file("schema.json"));
}

/// The fields of a schema, each on a line of its own, as in the newer group's captured file.
fn flat(prefix: &str, schema: &Value, fields: &mut Map<String, Value>) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let mark = if required.contains(&json!(name)) { "*" } else { "" };
        fields.insert(format!("{prefix}{name}{mark}"), json!(line(field)));
        flat(&format!("{prefix}{name}[]."), &field["items"], fields);
    }
}

fn line(field: &Value) -> String {
    let kind = |field: &Value| {
        let nullable = if field["nullable"] == true { " nullable" } else { "" };
        format!("{}{nullable}", field["type"].as_str().unwrap())
    };
    let mut text = match (field.get("items"), field.get("additionalProperties")) {
        (Some(items), _) => format!("[{}]", kind(items)),
        (_, Some(values)) => format!("map[{}]", kind(values)),
        _ => kind(field),
    };
    for keyword in ["format", "enum", "default", "maximum", "minimum", "pattern", "x-kubernetes-list-type"] {
        text += &match &field[keyword] {
            Value::Null => continue,
            Value::String(value) => format!(" {keyword}={value}"),
            Value::Bool(value) => format!(" {keyword}={}", if *value { "True" } else { "False" }),
            Value::Array(values) => {
                let values: Vec<_> = values.iter().map(|value| format!("'{}'", value.as_str().unwrap())).collect();
                format!(" {keyword}=[{}]", values.join(", "))
            }
            Value::Number(value) => format!(" {keyword}={}", value.as_f64().unwrap()),
            other => panic!("{other}"),
        };
    }
    text
}

#[test]
fn the_definitions_of_the_newer_group_have_its_fields_its_types_and_its_bounds() {
    let captured = common::file_of(ApiGroup::V3, "schema.json");
    let mut kinds = 0;
    for crd in ApiGroup::V3.crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let spec = &crd["spec"];
        let (plural, kind) = (spec["names"]["plural"].as_str().unwrap(), spec["names"]["kind"].as_str().unwrap());
        let captured = &captured[kind];
        assert_eq!(captured["plural"], plural);
        assert_eq!(crd["metadata"]["name"], format!("{plural}.projectcalico.org"));
        assert_eq!(spec["group"], "projectcalico.org");
        assert_eq!(spec["names"]["singular"], kind.to_lowercase());
        assert_eq!(spec["versions"][0]["name"], "v3");
        let mut fields = Map::new();
        flat("", &spec["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], &mut fields);
        assert_eq!(Value::Object(fields), captured["spec"], "{kind}");
        kinds += 1;
    }
    assert_eq!(kinds, captured.as_object().unwrap().len());
}

/// A value for a field in the short form.
fn sample(field: &Value) -> Value {
    match field {
        Value::Array(items) => json!([sample(&items[0])]),
        Value::Object(fields) => fields.iter().map(|(name, field)| (name.replace('*', ""), sample(field))).collect(),
        Value::String(text) if text.contains("format=\"cidr\"") => json!("10.0.0.0/26"),
        Value::String(text) if text.contains("enum=") => json!(text.split('"').nth(1).unwrap()),
        Value::String(text) if text.contains("date-time") => json!("2026-11-23T22:40:56Z"),
        Value::String(text) if text.starts_with("string") => json!("text"),
        Value::String(text) if text.starts_with("boolean") => json!(true),
        Value::String(text) if text.starts_with("integer") => json!(7),
        other => panic!("{other}"),
    }
}

fn knows_all_fields<T: Serialize + DeserializeOwned>(kind: &str, unknown: impl Fn(&T) -> bool) {
    let schema = common::file("schema.json");
    let mut spec = sample(&schema[kind]["spec"]);
    if spec.get("cidr").is_some() {
        spec["cidr"] = json!("10.0.0.0/26");
    }
    if schema[kind]["spec"]["deleted*"] == "string" {
        spec["deleted"] = json!("true");
    }
    let object = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec,
    });
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), object);
    assert!(!unknown(&typed), "{kind} has a field in its schema that its type does not know");
}

#[test]
fn the_types_know_every_field_of_the_schema_by_its_right_name() {
    knows_all_fields::<IPPool>("IPPool", |object| !object.spec.unknown.is_empty());
    knows_all_fields::<IPAMBlock>("IPAMBlock", |object| {
        !object.spec.unknown.is_empty() || object.spec.attributes.iter().any(|one| !one.unknown.is_empty())
    });
    knows_all_fields::<BlockAffinity>("BlockAffinity", |object| !object.spec.unknown.is_empty());
    knows_all_fields::<IPAMHandle>("IPAMHandle", |object| !object.spec.unknown.is_empty());
    knows_all_fields::<IPAMConfig>("IPAMConfig", |object| !object.spec.unknown.is_empty());
    knows_all_fields::<IPReservation>("IPReservation", |object| !object.spec.unknown.is_empty());
    knows_all_fields::<ClusterInformation>("ClusterInformation", |object| !object.spec.unknown.is_empty());
}

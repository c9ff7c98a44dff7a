//! Structural schemas of custom resources: what is dropped, what is filled in, what is refused.
//!
//! Follows the documented rules of apiextensions.k8s.io/v1: unknown fields are pruned, nulls of fields that are not nullable
//! are dropped, then defaults are applied, then the whole is validated. CEL rules (`x-kubernetes-validations`) are not evaluated.

use regex::Regex;
use serde_json::{Map, Value};

use super::error::{Cause, CauseKind};

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// The schema of a field of an object: of its own, or that of all additional ones.
fn field_schema<'a>(schema: &'a Value, field: &str) -> Option<&'a Value> {
    schema
        .get("properties")
        .and_then(|p| p.get(field))
        .or_else(|| schema.get("additionalProperties").filter(|a| a.is_object()))
}

/// Drops what the schema does not know; returns the paths of what was dropped.
pub(super) fn prune(object: &mut Value, schema: &Value) -> Vec<String> {
    let mut dropped = Vec::new();
    prune_at(object, schema, true, "", &mut dropped);
    dropped
}

fn prune_at(value: &mut Value, schema: &Value, whole_object: bool, path: &str, dropped: &mut Vec<String>) {
    match value {
        Value::Object(map) => prune_fields(map, schema, whole_object || flag(schema, EMBEDDED), path, dropped),
        Value::Array(items) => {
            if let Some(item_schema) = schema.get("items") {
                for (at, item) in items.iter_mut().enumerate() {
                    prune_at(item, item_schema, false, &format!("{path}[{at}]"), dropped);
                }
            }
        }
        _ => {}
    }
}

fn prune_fields(
    map: &mut Map<String, Value>,
    schema: &Value,
    whole_object: bool,
    path: &str,
    dropped: &mut Vec<String>,
) {
    let keeps_all = flag(schema, PRESERVE) || schema.get("additionalProperties") == Some(&Value::Bool(true));
    map.retain(|field, value| {
        let here = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        if whole_object && matches!(field.as_str(), "apiVersion" | "kind" | "metadata") {
            return true;
        }
        if let Some(schema) = field_schema(schema, field) {
            prune_at(value, schema, false, &here, dropped);
            return true;
        }
        if !keeps_all {
            dropped.push(here);
        }
        keeps_all
    });
}

/// Drops nulls that may not be, then fills in defaults, from the outside in.
pub(super) fn default(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            map.retain(|field, value| {
                !value.is_null() || field_schema(schema, field).is_none_or(|s| flag(s, "nullable"))
            });
            for (field, schema) in properties.into_iter().flatten() {
                if let Some(preset) = schema.get("default")
                    && !map.contains_key(field)
                {
                    map.insert(field.clone(), preset.clone());
                }
            }
            for (field, value) in map.iter_mut() {
                if let Some(schema) = field_schema(schema, field) {
                    default(value, schema);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| default(item, schema));
            }
        }
        _ => {}
    }
}

/// Everything in an object that its schema refuses.
pub(super) fn violations(object: &Value, schema: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    check(object, schema, "", &mut causes);
    causes
}

fn check(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && flag(schema, "nullable") {
        return;
    }
    if !has_type(value, schema) {
        let expected = schema.get("type").and_then(Value::as_str).unwrap_or("integer or string");
        let found = type_name(value);
        causes.push(Cause::new(
            CauseKind::Type,
            path,
            format!("{found:?}: {path} in body must be of type {expected}: {found:?}"),
        ));
        return;
    }
    check_enum(value, schema, path, causes);
    match value {
        Value::Object(map) => check_object(map, schema, path, causes),
        Value::Array(items) => check_array(items, schema, path, causes),
        Value::String(text) => check_string(text, schema, path, causes),
        Value::Number(_) => check_number(value, schema, path, causes),
        Value::Null | Value::Bool(_) => {}
    }
    check_combinations(value, schema, path, causes);
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn has_type(value: &Value, schema: &Value) -> bool {
    if flag(schema, INT_OR_STRING) {
        return value.is_string() || is_integer(value);
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => is_integer(value),
        Some("number") => value.is_number(),
        _ => true,
    }
}

fn check_enum(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let Some(allowed) = schema.get("enum").and_then(Value::as_array) else {
        return;
    };
    if !allowed.contains(value) {
        let list = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        causes.push(Cause::new(CauseKind::NotSupported, path, format!("{value}: supported values: {list}")));
    }
}

fn invalid(path: &str, value: impl std::fmt::Display, rule: &str) -> Cause {
    Cause::new(CauseKind::Invalid, path, format!("{value}: {path} in body should {rule}"))
}

fn check_object(map: &Map<String, Value>, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let inside = |field: &str| {
        if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
    };
    for field in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(field) {
            causes.push(Cause::new(CauseKind::Required, inside(field), ""));
        }
    }
    check_size(map.len(), schema, ("minProperties", "maxProperties"), "properties", path, causes);
    for (field, value) in map {
        if let Some(schema) = field_schema(schema, field) {
            check(value, schema, &inside(field), causes);
        }
    }
}

fn check_size(
    size: usize,
    schema: &Value,
    (least, most): (&str, &str),
    what: &str,
    path: &str,
    causes: &mut Vec<Cause>,
) {
    let limit = |key: &str| schema.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    if let Some(min) = limit(least).filter(|min| size < *min) {
        causes.push(invalid(path, size, &format!("have at least {min} {what}")));
    }
    if let Some(max) = limit(most).filter(|max| size > *max) {
        causes.push(invalid(path, size, &format!("have at most {max} {what}")));
    }
}

fn check_array(items: &[Value], schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    check_size(items.len(), schema, ("minItems", "maxItems"), "items", path, causes);
    check_unique(items, schema, path, causes);
    if let Some(schema) = schema.get("items") {
        for (at, item) in items.iter().enumerate() {
            check(item, schema, &format!("{path}[{at}]"), causes);
        }
    }
}

fn check_unique(items: &[Value], schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let keys: Vec<&str> = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => Vec::new(),
        Some("map") => schema
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect(),
        _ => return,
    };
    let identity = |item: &Value| {
        if keys.is_empty() {
            item.clone()
        } else {
            keys.iter().map(|k| item.get(*k).cloned().unwrap_or_default()).collect()
        }
    };
    for (at, item) in items.iter().enumerate() {
        if items[..at].iter().any(|other| identity(other) == identity(item)) {
            causes.push(Cause::new(CauseKind::Duplicate, format!("{path}[{at}]"), identity(item).to_string()));
        }
    }
}

fn check_string(text: &str, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    check_size(text.chars().count(), schema, ("minLength", "maxLength"), "chars", path, causes);
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        && !Regex::new(pattern).is_ok_and(|r| r.is_match(text))
    {
        causes.push(invalid(path, format!("{text:?}"), &format!("match '{pattern}'")));
    }
    if let Some(format) = schema.get("format").and_then(Value::as_str)
        && !fits_format(text, format)
    {
        causes.push(Cause::new(
            CauseKind::Invalid,
            path,
            format!("{text:?}: {path} in body must be of type {format}: {text:?}"),
        ));
    }
}

fn fits_format(text: &str, format: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.contains('/') && text.parse::<ipnetwork::IpNetwork>().is_ok(),
        _ => true,
    }
}

fn check_number(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    if schema.get("format").and_then(Value::as_str) == Some("int32")
        && value.as_i64().is_none_or(|n| i32::try_from(n).is_err())
    {
        causes.push(Cause::new(
            CauseKind::Invalid,
            path,
            format!("{value}: {path} in body must be of type int32: {value}"),
        ));
    }
    let Some(number) = value.as_f64() else { return };
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(min) =
        limit("minimum").filter(|min| number < *min || (flag(schema, "exclusiveMinimum") && number == *min))
    {
        causes.push(invalid(path, value, &format!("be greater than or equal to {min}")));
    }
    if let Some(max) =
        limit("maximum").filter(|max| number > *max || (flag(schema, "exclusiveMaximum") && number == *max))
    {
        causes.push(invalid(path, value, &format!("be less than or equal to {max}")));
    }
    if let Some(step) = limit("multipleOf").filter(|step| *step != 0.0 && (number / step).fract() != 0.0) {
        causes.push(invalid(path, value, &format!("be a multiple of {step}")));
    }
}

fn check_combinations(value: &Value, schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let branches = |key: &str| schema.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let fits = |schema: &Value| {
        let mut found = Vec::new();
        check(value, schema, path, &mut found);
        found.is_empty()
    };
    for schema in branches("allOf") {
        check(value, &schema, path, causes);
    }
    let any = branches("anyOf");
    if !any.is_empty() && !any.iter().any(fits) {
        causes.push(invalid(path, value, "match at least one schema (anyOf)"));
    }
    let one = branches("oneOf");
    if !one.is_empty() && one.iter().filter(|s| fits(s)).count() != 1 {
        causes.push(invalid(path, value, "match exactly one schema (oneOf)"));
    }
    if schema.get("not").is_some_and(fits) {
        causes.push(invalid(path, value, "not match the schema (not)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "required": ["cidr"],
            "properties": {
                "cidr": {"type": "string"},
                "state": {"type": "string", "enum": ["pending", "confirmed"]},
                "size": {"type": "integer", "format": "int32", "default": 26, "minimum": 20},
                "seq": {"type": "integer", "format": "int64"},
                "allocations": {"type": "array", "items": {"type": "integer", "nullable": true}},
                "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"known": {"type": "object"}}},
                "port": {"x-kubernetes-int-or-string": true}
            }
        }}})
    }

    fn taken(mut object: Value) -> (Value, Vec<String>) {
        prune(&mut object, &schema());
        default(&mut object, &schema());
        let causes = violations(&object, &schema()).iter().map(Cause::to_string).collect();
        (object, causes)
    }

    #[test]
    fn unknown_fields_are_pruned_at_every_depth_unless_preserved() {
        let mut object = json!({"kind": "X", "metadata": {"name": "a"}, "other": 1, "spec": {
            "cidr": "c", "CIDR": "d", "counts": {"a": 1}, "free": {"x": {"y": 1}, "known": {"z": 1}}}});
        let dropped = prune(&mut object, &schema());
        assert_eq!(dropped, ["other", "spec.CIDR", "spec.free.known.z"]);
        assert_eq!(
            object,
            json!({"kind": "X", "metadata": {"name": "a"}, "spec": {
            "cidr": "c", "counts": {"a": 1}, "free": {"x": {"y": 1}, "known": {}}}})
        );
    }

    #[test]
    fn nulls_that_may_not_be_are_dropped_before_defaults() {
        let (object, causes) =
            taken(json!({"spec": {"cidr": "c", "size": null, "state": null, "allocations": [null, 3]}}));
        assert_eq!(object, json!({"spec": {"cidr": "c", "size": 26, "allocations": [null, 3]}}));
        assert!(causes.is_empty(), "{causes:?}");
    }

    #[test]
    fn each_violation_is_named_with_its_field() {
        let (_, causes) =
            taken(json!({"spec": {"state": "x", "size": 3, "seq": "1", "counts": {"a": "b"}, "port": true}}));
        let fields: Vec<_> = causes.iter().map(|c| c.split(':').next().unwrap()).collect();
        assert_eq!(fields, ["spec.cidr", "spec.counts.a", "spec.port", "spec.seq", "spec.size", "spec.state"]);
        assert!(causes[0].ends_with("Required value"), "{causes:?}");
    }

    #[test]
    fn a_null_in_a_list_of_integers_needs_nullable() {
        let strict = json!({"type": "array", "items": {"type": "integer"}});
        assert_eq!(violations(&json!([1, null]), &strict).len(), 1);
    }
}

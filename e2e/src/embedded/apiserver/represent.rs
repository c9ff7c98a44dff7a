//! The forms an object is answered in: whole, its metadata only, or a table row; chosen by the header `Accept`.

use serde_json::{Value, json};

use super::meta::{name, text};
use super::resources::Resource;

/// The form a client asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Form {
    Whole,
    Metadata,
    Table,
}

impl Form {
    /// The first form in `Accept` that the server knows.
    pub fn accepted(accept: &str) -> Self {
        for media in accept.split(',') {
            let params: Vec<_> = media.split(';').map(str::trim).collect();
            if !matches!(params[0], "application/json" | "*/*" | "application/*" | "") {
                continue;
            }
            match params.iter().find_map(|p| p.strip_prefix("as=")) {
                None => return Self::Whole,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Self::Metadata;
                }
                Some("Table") => return Self::Table,
                Some(_) => {}
            }
        }
        Self::Whole
    }

    /// One object.
    pub fn object(self, object: Value) -> Value {
        match self {
            Self::Whole => object,
            Self::Metadata => partial(&object, "PartialObjectMetadata"),
            Self::Table => table(json!({"resourceVersion": text(&object, "/metadata/resourceVersion")}), &[object]),
        }
    }

    /// A list with its metadata.
    pub fn list(self, resource: &Resource, version: &str, metadata: Value, items: Vec<Value>) -> Value {
        match self {
            Self::Whole => json!({
                "kind": resource.list_kind, "apiVersion": resource.api_version(version), "metadata": metadata, "items": items,
            }),
            Self::Metadata => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "items": items.iter().map(|item| partial(item, "PartialObjectMetadata")).collect::<Vec<_>>(),
            }),
            Self::Table => table(metadata, &items),
        }
    }
}

fn partial(object: &Value, kind: &str) -> Value {
    json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn table(metadata: Value, items: &[Value]) -> Value {
    let column =
        |name: &str, kind: &str| json!({"name": name, "type": kind, "format": "", "description": "", "priority": 0});
    let rows = items
        .iter()
        .map(|item| {
            json!({
                "cells": [name(item), text(item, "/metadata/creationTimestamp")],
                "object": partial(item, "PartialObjectMetadata"),
            })
        })
        .collect::<Vec<_>>();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": [column("Name", "string"), column("Created At", "date")], "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_form_wins() {
        assert_eq!(Form::accepted("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"), Form::Metadata);
        assert_eq!(Form::accepted("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), Form::Table);
        assert_eq!(Form::accepted("application/vnd.kubernetes.protobuf,application/json"), Form::Whole);
        assert_eq!(Form::accepted(""), Form::Whole);
    }
}

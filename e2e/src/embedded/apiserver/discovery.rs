//! What clients ask before they ask for objects: groups, versions, resources, health.

use serde_json::{Value, json};

use super::api::Api;
use super::resources::{Resource, Version};

/// The document at a path that is not of a resource; none if there is nothing.
pub(super) fn document(api: &Api, path: &str, address: &str) -> Option<Value> {
    let words = path.split('/').filter(|s| !s.is_empty()).collect::<Vec<_>>();
    match words.as_slice() {
        ["healthz" | "readyz" | "livez", ..] => Some(Value::from("ok")),
        ["version"] => Some(json!({
            "major": "1", "minor": "35", "gitVersion": "v1.35.4", "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
        })),
        ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(api)})),
        ["apis", group] => groups(api).into_iter().find(|g| g["name"] == *group).map(|mut g| {
            g["kind"] = "APIGroup".into();
            g["apiVersion"] = "v1".into();
            g
        }),
        ["api", version] => resources(api, "", version),
        ["apis", group, version] => resources(api, group, version),
        _ => None,
    }
}

fn groups(api: &Api) -> Vec<Value> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for resource in api.registry.all().iter().filter(|r| !r.group.is_empty()) {
        if groups.last().is_none_or(|(name, _)| *name != resource.group) {
            groups.push((resource.group.clone(), Vec::new()));
        }
        let Some((_, versions)) = groups.last_mut() else {
            continue;
        };
        for version in resource.versions.iter().filter(|v| v.served) {
            if !versions.contains(&version.name) {
                versions.push(version.name.clone());
            }
        }
    }
    let described =
        |group: &str, version: &str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    groups
        .iter()
        .filter(|(_, versions)| !versions.is_empty())
        .map(|(group, versions)| {
            json!({
                "name": group,
                "versions": versions.iter().map(|v| described(group, v)).collect::<Vec<_>>(),
                "preferredVersion": described(group, &versions[0]),
            })
        })
        .collect()
}

fn resources(api: &Api, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let mut group_version = String::new();
    for resource in api.registry.all().iter().filter(|r| r.group == group) {
        if let Some(found) = resource.version(version) {
            group_version = resource.api_version(version);
            list.extend(described(resource, found));
        }
    }
    (!list.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// A resource and its subresources.
fn described(resource: &Resource, version: &Version) -> Vec<Value> {
    let mut own = json!({
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced, "kind": resource.kind,
        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
    });
    if !resource.short_names.is_empty() {
        own["shortNames"] = json!(resource.short_names);
    }
    let sub = |name: &str, kind: &str, verbs: &[&str]| {
        json!({
            "name": format!("{}/{name}", resource.plural), "singularName": "", "namespaced": resource.namespaced, "kind": kind, "verbs": verbs,
        })
    };
    let mut list = vec![own];
    if version.status {
        list.push(sub("status", &resource.kind, &["get", "patch", "update"]));
    }
    if version.scale {
        list.push(sub("scale", "Scale", &["get", "patch", "update"]));
    }
    if resource.is("", "pods") {
        list.push(sub("binding", "Binding", &["create"]));
        list.push(sub("eviction", "Eviction", &["create"]));
    }
    list
}

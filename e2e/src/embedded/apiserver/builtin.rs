//! Defaults and rules of the built-in resources that our programs can notice.

use serde_json::{Value, json};

use super::error::{ApiError, Cause, CauseKind};
use super::meta::{self, text};
use super::resources::Resource;

/// Fills in the defaults the real server fills in.
pub(super) fn default(resource: &Resource, object: &mut Value) {
    let defaults = match resource.id().as_str() {
        "pods" => json!({"spec": POD_DEFAULTS.clone_json()}),
        "deployments.apps" => json!({"spec": {
            "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate"}, "template": {"spec": POD_DEFAULTS.clone_json()}}}),
        "replicasets.apps" => json!({"spec": {"replicas": 1}}),
        "statefulsets.apps" => json!({"spec": {
            "replicas": 1, "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "RollingUpdate"},
            "template": {"spec": POD_DEFAULTS.clone_json()}}}),
        "daemonsets.apps" => json!({"spec": {
            "updateStrategy": {"type": "RollingUpdate"}, "template": {"spec": POD_DEFAULTS.clone_json()}}}),
        "jobs.batch" => json!({"spec": {"completions": 1, "parallelism": 1, "backoffLimit": 6}}),
        _ => return,
    };
    fill(object, &defaults);
    if resource.id() == "deployments.apps" && text(object, "/spec/strategy/type") == "RollingUpdate" {
        fill(object, &json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}}}));
    }
}

/// Defaults of a pod's spec.
struct PodDefaults;
const POD_DEFAULTS: PodDefaults = PodDefaults;

impl PodDefaults {
    fn clone_json(&self) -> Value {
        json!({
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "enableServiceLinks": true,
        })
    }
}

/// Adds what is absent; never changes what is there.
fn fill(object: &mut Value, defaults: &Value) {
    let (Some(map), Some(defaults)) = (object.as_object_mut(), defaults.as_object()) else {
        return;
    };
    for (key, preset) in defaults {
        match map.get_mut(key) {
            Some(present) if !present.is_null() => fill(present, preset),
            _ => {
                map.insert(key.clone(), preset.clone());
            }
        }
    }
}

/// What the server itself writes into a new object.
pub(super) fn at_birth(resource: &Resource, object: &mut Value) {
    match resource.id().as_str() {
        "pods" => object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"}),
        "namespaces" => {
            let name = meta::name(object).to_owned();
            object["status"] = json!({"phase": "Active"});
            fill(
                object,
                &json!({"metadata": {"labels": {"kubernetes.io/metadata.name": name}}, "spec": {"finalizers": ["kubernetes"]}}),
            );
        }
        "jobs.batch" => label_job(object),
        _ => {}
    }
}

/// A job's pods are told apart by a label that bears the job's UID.
fn label_job(object: &mut Value) {
    if object["spec"]["manualSelector"] == json!(true) {
        return;
    }
    let labels = json!({
        "batch.kubernetes.io/controller-uid": text(object, "/metadata/uid"),
        "batch.kubernetes.io/job-name": meta::name(object),
    });
    fill(
        object,
        &json!({"spec": {
        "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": labels["batch.kubernetes.io/controller-uid"]}},
        "template": {"metadata": {"labels": labels}}}}),
    );
}

/// What the real server refuses in built-in objects, as far as our programs write them.
pub(super) fn violations(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    match resource.id().as_str() {
        "pods" if object.pointer("/spec/containers").and_then(Value::as_array).is_none_or(Vec::is_empty) => {
            causes.push(Cause::new(CauseKind::Required, "spec.containers", ""));
        }
        "deployments.apps" | "replicasets.apps" | "statefulsets.apps" | "daemonsets.apps" => {
            let wanted = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
            let labels = object.pointer("/spec/template/metadata/labels");
            let fits = wanted.into_iter().flatten().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value));
            if !fits {
                causes.push(Cause::new(
                    CauseKind::Invalid,
                    "spec.template.metadata.labels",
                    "`selector` does not match template `labels`",
                ));
            }
        }
        _ => {}
    }
    causes
}

/// Refuses changes of what may not change in a built-in object.
pub(super) fn check_update(resource: &Resource, current: &Value, next: &Value) -> Result<(), ApiError> {
    let cause = match resource.id().as_str() {
        "pods" if fixed_pod_spec(current) != fixed_pod_spec(next) => Cause::new(
            CauseKind::Forbidden,
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` or `spec.terminationGracePeriodSeconds`",
        ),
        "deployments.apps" | "replicasets.apps" | "statefulsets.apps" | "daemonsets.apps"
            if current["spec"]["selector"] != next["spec"]["selector"] =>
        {
            Cause::new(CauseKind::Invalid, "spec.selector", "field is immutable")
        }
        _ => return Ok(()),
    };
    Err(ApiError::invalid(resource, meta::name(current), &[cause]))
}

/// A pod's spec without the fields that may change.
fn fixed_pod_spec(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(map) = spec.as_object_mut() {
        for key in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
            map.remove(key);
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(map) = container.as_object_mut() {
                map.remove("image");
            }
        }
    }
    spec
}

/// Seconds a deletion of this object waits for its node; 0: it goes at once.
pub(super) fn grace(resource: &Resource, object: &Value, asked: Option<u64>) -> u64 {
    if resource.id() != "pods" || text(object, "/spec/nodeName").is_empty() {
        return 0;
    }
    if matches!(text(object, "/status/phase"), "Succeeded" | "Failed") {
        return 0;
    }
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(30);
    asked.unwrap_or(own)
}

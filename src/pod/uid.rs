//! A static pod has two UIDs.
//!
//! Its node's kubelet runs it under the hash of its manifest. The API server shows it as a mirror, an object with a UID of
//! its own, which is made again whenever somebody deletes it, while the pod goes on. Only the hash tells whether two
//! records are about one pod.

use k8s_openapi::api::core::v1::Pod;

/// Bears a static pod's own UID on its mirror.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The UID under which a pod's node runs it: of a mirror the static pod's, of any other pod its object's.
pub fn uid(pod: &Pod) -> Option<&str> {
    static_uid(pod).or(pod.metadata.uid.as_deref())
}

/// Whether `recorded` is the pod's UID. Records of releases up to 0.3 name a static pod by its mirror's.
pub fn has_uid(pod: &Pod, recorded: &str) -> bool {
    [static_uid(pod), pod.metadata.uid.as_deref()].contains(&Some(recorded))
}

/// Whether the pod is a node's own, by a manifest that the API server does not have.
pub fn is_static(pod: &Pod) -> bool {
    static_uid(pod).is_some()
}

fn static_uid(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_static_pod_is_known_by_its_manifest_and_any_other_by_its_object() {
        let pod = |metadata| serde_json::from_value::<Pod>(json!({ "metadata": metadata })).unwrap();
        let mirror = pod(json!({"uid": "u1", "annotations": {MIRROR: "h"}}));
        let again = pod(json!({"uid": "u2", "annotations": {MIRROR: "h"}}));
        assert_eq!((uid(&mirror), uid(&again)), (Some("h"), Some("h")));
        assert!(has_uid(&again, "h") && has_uid(&again, "u2") && !has_uid(&again, "u1"));
        let other = pod(json!({"uid": "u3", "annotations": {"a": "h"}}));
        assert_eq!((uid(&other), is_static(&other), is_static(&mirror)), (Some("u3"), false, true));
        assert!(!has_uid(&other, "h") && !has_uid(&pod(json!({})), ""));
    }
}

//! Whether a node has the images of a pod: the kubelet pulls them only after the pod has its address.

use k8s_openapi::api::core::v1::{Node, Pod};

/// Whether the node lists every image of the pod's containers. A kubelet lists 50 images at most: what it does not list
/// may be there.
pub(super) fn has_images(node: &Node, pod: &Pod) -> bool {
    let listed = node.status.as_ref().and_then(|status| status.images.as_deref()).unwrap_or_default();
    let names: Vec<String> = listed.iter().flat_map(|image| image.names.iter().flatten()).map(|n| whole(n)).collect();
    let Some(spec) = &pod.spec else { return false };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut images = containers.map(|container| container.image.as_deref().unwrap_or_default());
    images.all(|image| names.contains(&whole(image)))
}

/// A reference with what is understood where it is not said: the registry docker.io, its library, and the tag latest.
fn whole(image: &str) -> String {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let is_registry = first.contains(['.', ':']) || first == "localhost";
    let mut name = match (first, rest) {
        ("", name) => format!("docker.io/library/{name}"),
        _ if is_registry => image.to_owned(),
        _ => format!("docker.io/{image}"),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '@']) {
        name.push_str(":latest");
    }
    name
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_has_an_image_under_any_of_its_names() {
        let node: Node = serde_json::from_value(json!({"status": {"images": [
            {"names": ["docker.io/library/nginx@sha256:11", "docker.io/library/nginx:latest"]},
            {"names": ["registry.example:5000/team/app:2"]}, {"names": null}, {"names": ["docker.io/team/app:1"]},
        ]}}))
        .unwrap();
        let pod = |images: &[&str]| -> Pod {
            let containers: Vec<_> = images.iter().map(|image| json!({"name": "c", "image": image})).collect();
            serde_json::from_value(
                json!({"spec": {"containers": &containers[..1], "initContainers": &containers[1..]}}),
            )
            .unwrap()
        };
        for known in [
            &["nginx:latest"][..],
            &["nginx"],
            &["library/nginx"],
            &["docker.io/library/nginx@sha256:11"],
            &["registry.example:5000/team/app:2", "team/app:1"],
        ] {
            assert!(has_images(&node, &pod(known)), "{known:?}");
        }
        for unknown in [&["nginx:1.27"][..], &["registry.example:5000/team/app"], &["app:1"], &["nginx", "busybox"]] {
            assert!(!has_images(&node, &pod(unknown)), "{unknown:?}");
        }
    }
}

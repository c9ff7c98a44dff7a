//! The character rules of names that arrive as text: Kubernetes objects, networks, containers.

//! The manifests on two real nodes: kubelets run the containers, and the guide's pods have their addresses.

#![allow(clippy::unwrap_used)]

mod alone;
mod ground;
mod removed;
mod with_calico;

//! Clusters of real parts: etcd, kube-apiserver, controller-manager, scheduler, and nodes with kubelet and
//! containerd, all in network namespaces of this machine. Needs root; see [`crate::tools`] for what else.
//!
//! Layout: [`Cluster`] joins a [`ControlPlane`] and [`Node`]s on a [`Site`]; [`Sandbox`] looks into a pod's
//! network, [`routes`] connects the nodes, [`audit`] counts API calls.
//!
//! Keeps: whatever way the test process ends, nothing of a cluster outlives the start of the next one.

pub mod audit;
mod cluster;
mod control_plane;
pub mod crds;
pub mod image;
pub(crate) mod network;
pub mod node;
pub(crate) mod pki;
pub(crate) mod process;
pub mod routes;
mod sandbox;
pub(crate) mod site;
pub(crate) mod slot;

pub use cluster::{Cluster, Conflist, Options, RouteKeeper};
pub use control_plane::{ControlPlane, ControlPlaneOptions, TOKEN_USERS};
pub use crds::Crds;
pub use network::API_SERVICE_ADDRESS;
pub use node::{Node, NodeFacts};
pub use process::succeed;
pub use sandbox::Sandbox;
pub use site::Site;

//! Stand-in nodes: what kubelet and the container runtime do for CNI, without containers.
//!
//! Layout: `network` is the conflist, `plugin` runs a CNI binary and reads its answer, `runtime` keeps sandboxes, `kubelet` follows
//! pods, `status` is what it tells the API server, `node` is the handle tests hold.
//!
//! A stand-in works against any API server: it needs a `kube::Client` and a node name.

mod kubelet;
mod network;
mod node;
mod plugin;
mod runtime;
pub(crate) mod status;

pub use network::Network;
pub use node::{Backoff, Node, Options};
pub use plugin::{Attachment, CniError, CniOutcome, call};
pub use runtime::{MainPlugin, Sandbox};

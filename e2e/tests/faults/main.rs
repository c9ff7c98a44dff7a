//! What must not break the plugin, tried through the binary: against the embedded API server, whose faults are
//! on demand, and a real etcd.
#![allow(clippy::unwrap_used, missing_docs)]

mod configuration;
mod credentials;
mod files;
mod ground;
mod input;
mod killed;
mod relay;
mod replies;
mod servers;
mod shared;

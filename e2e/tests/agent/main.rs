//! The node's agent by its binary, beside the plugin's: against the embedded API server, which counts, and a
//! real etcd.
#![allow(clippy::unwrap_used, missing_docs)]

mod ahead;
mod behind;
mod cost;
mod fallback;
mod files;
mod gone;
#[allow(dead_code)]
#[path = "../faults/ground.rs"]
mod ground;
mod groups;
mod killed;
mod lock;
mod machine;
mod process;
mod seen;

//! A small strict Kubernetes API server, in memory, over HTTP on loopback.
//!
//! Layout: `connection` speaks HTTP, `request` and `api` find what is asked for, `read`, `watch`, `write`, `delete`, `patch`
//! and `subresource` do it, `admit`, `schema` and `builtin` decide what may be stored, `store` keeps it; `faults` and `calls`
//! are for tests. It runs on a thread of its own, so that a test may block while it serves.
//!
//! What it does not do: authorisation, admission webhooks, CEL rules, field ownership (`managedFields`), protobuf, OpenAPI documents.

mod admit;
mod api;
mod builtin;
mod calls;
mod connection;
mod delete;
mod discovery;
mod error;
mod events;
mod faults;
mod meta;
mod patch;
mod read;
mod represent;
mod request;
mod resources;
mod schema;
mod selector;
mod server;
mod store;
mod subresource;
mod watch;
mod write;

pub use calls::{Call, Calls};
pub use faults::{Fault, Faults, Gate, Match, Planned};
pub use server::{Options, Server};

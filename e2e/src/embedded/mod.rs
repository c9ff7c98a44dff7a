//! The embedded tier: a whole control plane that needs nothing but Rust.

pub mod apiserver;

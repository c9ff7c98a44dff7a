//! Whoever means harm, or is broken, at the doors of a node: floods, strangers, links in the place of files, full file
//! systems, and secrets in whatever can be read wrongly.
#![allow(clippy::unwrap_used, missing_docs)]

mod files;
mod flood;
mod full;
#[allow(dead_code)]
#[path = "../faults/ground.rs"]
mod ground;
mod http;
#[allow(dead_code)]
#[path = "../agent/process.rs"]
mod process;
mod secrets;
mod strangers;
mod usage;

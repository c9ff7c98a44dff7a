//! The manifests of `yaml/`: what they say agrees with the code, with the guide and with each other, and a real API
//! server takes every one of them.

#![allow(clippy::unwrap_used)]

mod conflists;
mod containers;
mod kinds;
mod rights;
mod server;

use serde_json::Value;

/// The objects of a file, which can be read.
fn documents(file: &str) -> Vec<Value> {
    e2e::manifests::documents(file).unwrap()
}

/// The one object of this kind and name in a file.
fn object(file: &str, kind: &str, name: &str) -> Value {
    e2e::manifests::only(&documents(file), kind, name).unwrap().clone()
}

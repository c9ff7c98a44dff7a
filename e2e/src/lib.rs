//! Test clusters.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod real;
pub mod tools;

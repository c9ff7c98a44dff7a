//! Test clusters and the scenarios that run on them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod calls;
pub mod conformance;
pub mod embedded;
pub mod lab;
pub mod real;
pub mod run;
pub mod scenarios;
pub mod standin;
pub mod tools;

//! Test clusters.

pub mod conformance;
pub mod embedded;
pub mod standin;

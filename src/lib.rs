//! kube-ipam.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cni;
pub mod netconf;
pub mod pod;
pub mod range;

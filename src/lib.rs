//! kube-ipam: fixed and random pod addresses for Calico clusters.
//!
//! # Layout, arrows point down only
//!
//! | module | what it owns |
//! |---|---|
//! | [`plugin`] | the CNI executable: environment and stdin in, JSON out |
//! | [`agent`] | the node's sidecar: answers the plugin from memory |
//! | [`cli`] | the command line: arguments in, tables or JSON out |
//! | [`install`] | the node's files: binary, conflist, kubeconfig |
//! | [`service`] | one CNI call from parsed input to answer |
//! | [`collector`] | looks after the whole cluster: finishes what crashes left, frees what nobody uses |
//! | [`handover`] | lets an update have the addresses of the old pods: evicts one when its successor waits |
//! | [`audit`] | judges the whole live state by the named invariants |
//! | [`driver`] | runs a decision: reads, asks, writes, retries |
//! | [`store`] | I/O: Kubernetes objects, the ledger of claims |
//! | [`cni`], [`conflist`], [`netconf`], [`pod`], [`range`], [`claim`], [`protocol`] | pure: text to types, choices, claim decisions |
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod audit;
pub mod claim;
pub mod cli;
pub mod cni;
pub mod collector;
pub mod conflist;
pub mod driver;
pub mod handover;
pub mod install;
pub mod netconf;
pub mod plugin;
pub mod pod;
pub mod protocol;
pub mod range;
pub mod service;
pub mod store;

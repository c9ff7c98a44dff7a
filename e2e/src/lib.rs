//! Test clusters and the scenarios that run on them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod arguments;
pub mod bench;
pub mod calls;
pub mod chaos;
pub mod conformance;
pub mod embedded;
pub mod hammer;
pub mod lab;
pub mod manifests;
pub mod memory;
pub mod picture;
pub mod real;
pub mod releases;
pub mod run;
pub mod scenarios;
pub mod site;
pub mod standin;
pub mod tools;

use calico::ApiGroup;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The kinds that kube-ipam works on: Calico's, and its own.
pub fn crds() -> Vec<CustomResourceDefinition> {
    crds_in(ApiGroup::Crd)
}

/// The same with Calico's kinds in a group.
pub fn crds_in(group: ApiGroup) -> Vec<CustomResourceDefinition> {
    let mut crds = group.crds();
    crds.push(kube_ipam::store::ipclaim::crd());
    crds
}

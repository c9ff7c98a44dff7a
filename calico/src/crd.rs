//! The CustomResourceDefinitions of Calico's IPAM kinds.
//!
//! They name the fields that Calico's own definitions name, and no field is preserved beyond them: an API
//! server with these definitions prunes a misspelt field, as one with Calico's would.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::{BlockAffinity, ClusterInformation, IPAMBlock, IPAMConfig, IPAMHandle, IPPool, IPReservation};

/// All kinds of this crate, for a cluster that does not have Calico's own definitions.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        IPPool::crd(),
        IPAMBlock::crd(),
        BlockAffinity::crd(),
        IPAMHandle::crd(),
        IPAMConfig::crd(),
        IPReservation::crd(),
        ClusterInformation::crd(),
    ]
}

//! What a container is to get: by annotations, CNI_ARGS and configuration.

use std::net::IpAddr;

use calico::{AllowedUse, Family, PoolRef, covering};
use ipnetwork::IpNetwork;
use kube::ResourceExt as _;

use super::snapshot::Snapshot;
use super::{Attachment, Error, UnmetPool};
use crate::cni::{CniError, code};
use crate::pod::{FixedRequest, Owner, PoolAnnotations};

/// What a container is to get in one family.
pub(super) enum Want {
    /// One of these, by claim.
    Fixed(Vec<IpAddr>),
    /// Exactly this, without a claim (calico-ipam's `IP=`).
    Explicit(IpAddr),
    /// Whatever the rules allow.
    Random(Named),
}

/// The pools that somebody names for a container; none: any that Calico's rules allow.
pub(super) struct Named {
    pub pools: Vec<PoolRef>,
    /// Where they are named, for an error.
    pub by: String,
}

/// What the container is to get, family by family.
pub(super) fn wants(
    attachment: &Attachment<'_>,
    snapshot: &Snapshot,
    request: Option<&FixedRequest>,
    owner: Option<&Owner>,
) -> Result<Vec<(Family, Want)>, Error> {
    let ipam = &attachment.net.ipam;
    if !attachment.explicit.is_empty() {
        if request.is_some() {
            return Err(CniError::new(
                code::INVALID_CONFIG,
                "the pod has the annotation kube-ipam.ip, and CNI_ARGS has IP= as well",
                "ask for the address in one place: remove the annotation, or IP= from CNI_ARGS",
            )
            .into());
        }
        return Ok(attachment.explicit.iter().map(|a| (Family::of(*a), Want::Explicit(*a))).collect());
    }
    let empty = Default::default();
    let pod_annotations = snapshot.pod.as_ref().map_or(&empty, |p| p.annotations());
    let namespace_annotations = snapshot.namespace.as_ref().map_or(&empty, |n| n.annotations());
    let annotations = PoolAnnotations::parse(pod_annotations, namespace_annotations)?;
    let mut wants = Vec::new();
    for family in Family::BOTH {
        let choices = match request {
            Some(request) => request.choices(family, owner.and_then(|o| o.ordinal))?,
            None => Vec::new(),
        };
        if !choices.is_empty() {
            wants.push((family, Want::Fixed(choices)));
        } else if ipam.assigns(family) {
            if annotations.families.is_some_and(|asked| !asked.contains(family)) {
                continue;
            }
            let (of_pod, of_config) = match family {
                Family::V4 => (annotations.v4.clone(), &ipam.v4_pools),
                Family::V6 => (annotations.v6.clone(), &ipam.v6_pools),
            };
            wants.push((
                family,
                Want::Random(match of_pod.is_empty() {
                    true => Named {
                        pools: of_config.clone(),
                        by: format!("ipam.{}_pools", family.to_string().to_lowercase()),
                    },
                    false => Named { pools: of_pod, by: format!("annotation {}", PoolAnnotations::key(family)) },
                }),
            ));
        } else if let Some(asked) = annotations.families.filter(|asked| asked.contains(family)) {
            return Err(asked.unmet(family, ipam).into());
        }
    }
    Ok(wants)
}

/// The block of an address that is asked for by name: it must lie in an enabled pool for workloads.
pub(super) fn workload_block(snapshot: &Snapshot, address: IpAddr) -> Result<IpNetwork, Error> {
    let pool = covering(&snapshot.pools, address).ok_or_else(|| UnmetPool::of_address(address, &snapshot.pools))?;
    pool.spec.check_explicit(&pool.name_any(), AllowedUse::Workload).map_err(|error| {
        let right = "ask for an address of another pool, or change the pool";
        CniError::new(code::NO_POOL, format!("address {address} cannot be given to a pod: {error}"), right)
    })?;
    Ok(pool.spec.block_of(address))
}

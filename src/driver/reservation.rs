//! Our IPReservations: claimed addresses that Calico's automatic assignment must leave alone.
//!
//! One object per block, `kube-ipam-<block name>`; other people's reservations are never touched.

use std::net::IpAddr;

use calico::{IPReservation, IPReservationSpec, cidr_name};
use ipnetwork::IpNetwork;
use kube::ResourceExt;
use tokio::time::Instant;

use super::converge::{Known, Step};
use super::{Driver, Error, host_cidr};
use crate::store::{Ledger, Objects};

/// Name of the reservation for the claims inside a block.
pub(crate) fn reservation_name(block: &IpNetwork) -> String {
    format!("kube-ipam-{}", cidr_name(block))
}

/// Whether the reservation for `block` covers `address` already.
pub(super) fn is_reserved(reservations: &[IPReservation], block: &IpNetwork, address: IpAddr) -> bool {
    let name = reservation_name(block);
    let entry = host_cidr(address).to_string();
    reservations.iter().any(|r| r.name_any() == name && r.spec.reserved_cidrs.contains(&entry))
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Adds `address` to the reservation of its block.
    pub(super) async fn reserve(&self, address: IpAddr, block: &IpNetwork, deadline: Instant) -> Result<(), Error> {
        let name = reservation_name(block);
        let entry = host_cidr(address).to_string();
        let settled = self
            .converge::<IPReservation, _, Error>(&name, Known::Unread, deadline, |current| {
                Ok(match current {
                    None => Step::Create(
                        IPReservation::new(
                            &name,
                            IPReservationSpec { reserved_cidrs: vec![entry.clone()], ..Default::default() },
                        ),
                        (),
                    ),
                    Some(found) if found.spec.reserved_cidrs.contains(&entry) => Step::Done(()),
                    Some(mut found) => {
                        found.spec.reserved_cidrs.push(entry.clone());
                        found.spec.reserved_cidrs.sort();
                        Step::Replace(found, ())
                    }
                })
            })
            .await?;
        Ok(settled.value)
    }

    /// Takes `address` out of the reservation of its block; an empty reservation is deleted.
    pub(crate) async fn unreserve(&self, address: IpAddr, block: &IpNetwork, deadline: Instant) -> Result<(), Error> {
        let entry = host_cidr(address).to_string();
        let settled = self
            .converge::<IPReservation, _, Error>(&reservation_name(block), Known::Unread, deadline, |current| {
                Ok(match current {
                    None => Step::Done(()),
                    Some(found) if !found.spec.reserved_cidrs.contains(&entry) => Step::Done(()),
                    Some(mut found) => {
                        found.spec.reserved_cidrs.retain(|c| *c != entry);
                        if found.spec.reserved_cidrs.is_empty() {
                            Step::Delete(found, ())
                        } else {
                            Step::Replace(found, ())
                        }
                    }
                })
            })
            .await?;
        Ok(settled.value)
    }
}

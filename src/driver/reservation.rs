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

/// What the names of our reservations begin with.
const PREFIX: &str = "kube-ipam-";

/// Name of the reservation for the claims inside a block.
pub(crate) fn reservation_name(block: &IpNetwork) -> String {
    format!("{PREFIX}{}", cidr_name(block))
}

/// Whether a reservation of this name is one of ours.
pub(crate) fn is_own_reservation(name: &str) -> bool {
    name.starts_with(PREFIX)
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
        self.reserve_in(&reservation_name(block), address, deadline).await
    }

    /// Adds `address` to the reservation of that name. What is remembered of it is not believed: it may still show what
    /// went with an earlier claim on the address.
    pub(super) async fn reserve_in(&self, name: &str, address: IpAddr, deadline: Instant) -> Result<(), Error> {
        let entry = host_cidr(address).to_string();
        self.converge::<IPReservation, _, Error>(name, Known::Doubted, deadline, |current| {
            Ok(match current {
                None => Step::Create(
                    IPReservation::new(
                        name,
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
        .await
        .map(|settled| settled.value)
    }

    /// Takes `address` out of the reservation of its block; an empty reservation is deleted.
    pub(crate) async fn unreserve(&self, address: IpAddr, block: &IpNetwork, deadline: Instant) -> Result<(), Error> {
        self.unreserve_in(&reservation_name(block), address, deadline).await
    }

    /// Takes `address` out of whichever of our reservations has it: the pool's block size may have changed
    /// since it was put there.
    pub(super) async fn unreserve_everywhere(&self, address: IpAddr, deadline: Instant) -> Result<(), Error> {
        let entry = host_cidr(address).to_string();
        for reservation in self.optional::<IPReservation>().await? {
            if is_own_reservation(&reservation.name_any()) && reservation.spec.reserved_cidrs.contains(&entry) {
                self.unreserve_in(&reservation.name_any(), address, deadline).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn unreserve_in(&self, name: &str, address: IpAddr, deadline: Instant) -> Result<(), Error> {
        let entry = host_cidr(address).to_string();
        self.converge::<IPReservation, _, Error>(name, Known::Unread, deadline, |current| {
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
        .await
        .map(|settled| settled.value)
    }
}

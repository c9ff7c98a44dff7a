//! Our IPReservations: claimed addresses that Calico's automatic assignment must leave alone.
//!
//! One object per block, `kube-ipam-<block name>`; other people's reservations are never touched. An annotation says in
//! which ledger each address is claimed. So a configuration that names another ledger, or another network, does not take
//! an address for free whose claim it cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::{IPReservation, IPReservationSpec, cidr_name};
use ipnetwork::IpNetwork;
use kube::ResourceExt;
use tokio::time::Instant;

use super::converge::{Known, Step};
use super::{Driver, Error, host_cidr};
use crate::claim::{ClaimedElsewhere, LedgerName};
use crate::store::{Ledger, Objects};

/// What the names of our reservations begin with.
const PREFIX: &str = "kube-ipam-";

/// Annotation of our reservations: the addresses by the ledger in which they are claimed, as a JSON object such as
/// `{"ipclaims:k8s-pod-network":["10.244.0.216"]}`.
pub const LEDGERS_ANNOTATION: &str = "kube-ipam.ledgers";

/// Who asks for a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// An ADD whose ledger had no claim on the address: one in another ledger counts.
    ForNewClaim,
    /// Whoever has found the claim in this ledger.
    ForClaim,
}

/// What the annotation says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Marks(BTreeMap<LedgerName, BTreeSet<IpAddr>>);

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

/// The ledger that one of our reservations names for `address`, if that is not `here`. Unreadable annotations and addresses
/// that are not reserved any more name none.
pub(crate) fn claimed_elsewhere<'a>(
    reservations: impl IntoIterator<Item = &'a IPReservation>,
    address: IpAddr,
    here: &LedgerName,
) -> Option<ClaimedElsewhere> {
    let entry = host_cidr(address).to_string();
    let ours = reservations.into_iter().filter(|r| is_own_reservation(&r.name_any()));
    let mut elsewhere = ours.filter(|r| r.spec.reserved_cidrs.contains(&entry)).filter_map(|reservation| {
        let there = Marks::of(reservation).ledger(address)?.clone();
        let reservation = reservation.name_any();
        (there != *here).then(|| ClaimedElsewhere { address, reservation, there, here: here.clone() })
    });
    elsewhere.next()
}

/// An address that `permitted` lets the configuration of ledger `here` give, and that is claimed in another ledger:
/// whichever of the same network, else one of a network of another name, if no address is claimed in `here`.
pub(crate) fn any_claimed_elsewhere(
    reservations: &[IPReservation],
    here: &LedgerName,
    permitted: impl Fn(IpAddr) -> bool,
) -> Option<ClaimedElsewhere> {
    let mut renamed = None;
    let mut any_here = false;
    for reservation in reservations.iter().filter(|r| is_own_reservation(&r.name_any())) {
        let marks = Marks::of(reservation);
        for address in reserved_addresses(reservation).filter(|address| permitted(*address)) {
            let Some(there) = marks.ledger(address) else { continue };
            if there == here {
                any_here = true;
                continue;
            }
            let (there, here, reservation) = (there.clone(), here.clone(), reservation.name_any());
            let same = there.network() == here.network();
            let found = ClaimedElsewhere { address, reservation, there, here };
            if same {
                return Some(found);
            }
            renamed.get_or_insert(found);
        }
    }
    renamed.filter(|_| !any_here)
}

/// The single addresses of a reservation, in the form that we write. Anything else was put there by a person, who may have
/// meant it.
pub(crate) fn reserved_addresses(reservation: &IPReservation) -> impl Iterator<Item = IpAddr> {
    reservation.spec.reserved_cidrs.iter().filter_map(|text| as_written(text))
}

/// The address of a reservation's entry, if that has the form that we write.
pub(crate) fn as_written(text: &str) -> Option<IpAddr> {
    let address = text.split_once('/').and_then(|(address, _)| address.parse::<IpAddr>().ok());
    address.filter(|address| host_cidr(*address).to_string() == *text)
}

/// Addresses of a reservation that are among `claimed`, and not marked as claimed in `here`; none if it is not ours.
pub(crate) fn unmarked(reservation: &IPReservation, claimed: &BTreeSet<IpAddr>, here: &LedgerName) -> Vec<IpAddr> {
    if !is_own_reservation(&reservation.name_any()) {
        return Vec::new();
    }
    let marks = Marks::of(reservation);
    let unmarked = |address: &IpAddr| claimed.contains(address) && marks.ledger(*address) != Some(here);
    reserved_addresses(reservation).filter(unmarked).collect()
}

// === impl Marks ===

impl Marks {
    fn of(reservation: &IPReservation) -> Self {
        let text = reservation.annotations().get(LEDGERS_ANNOTATION);
        Self(text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
    }

    fn ledger(&self, address: IpAddr) -> Option<&LedgerName> {
        self.0.iter().find(|(_, addresses)| addresses.contains(&address)).map(|(ledger, _)| ledger)
    }

    fn remove(&mut self, address: IpAddr) {
        self.0.values_mut().for_each(|addresses| {
            addresses.remove(&address);
        });
        self.0.retain(|_, addresses| !addresses.is_empty());
    }

    fn insert(&mut self, address: IpAddr, ledger: &LedgerName) {
        self.remove(address);
        self.0.entry(ledger.clone()).or_default().insert(address);
    }

    fn write(&self, reservation: &mut IPReservation) {
        let annotations = reservation.annotations_mut();
        match self.0.is_empty() {
            true => drop(annotations.remove(LEDGERS_ANNOTATION)),
            // Strings and addresses: that cannot fail.
            false => {
                drop(annotations.insert(LEDGERS_ANNOTATION.into(), serde_json::to_string(&self.0).unwrap_or_default()))
            }
        }
    }
}

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// Adds `address` to the reservation of its block, and says there that it is claimed in this driver's ledger.
    ///
    /// # Errors
    /// [`Error::ClaimedElsewhere`] for a new claim if the reservation names another ledger; nothing is written then.
    pub(super) async fn reserve(
        &self,
        address: IpAddr,
        block: &IpNetwork,
        asks: Asks,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.reserve_in(&reservation_name(block), &[address], asks, deadline).await
    }

    /// Adds `addresses` to the reservation of that name. What is remembered of it is not believed: it may still show what
    /// went with an earlier claim on the address.
    pub(super) async fn reserve_in(
        &self,
        name: &str,
        addresses: &[IpAddr],
        asks: Asks,
        deadline: Instant,
    ) -> Result<(), Error> {
        let here = self.ledger.as_ref().map(Ledger::name);
        self.converge::<IPReservation, _, Error>(name, Known::Doubted, deadline, |current| {
            let elsewhere = |found| addresses.iter().find_map(|a| claimed_elsewhere([found], *a, here.as_ref()?));
            if let Some(found) = current.as_ref().filter(|_| asks == Asks::ForNewClaim).and_then(elsewhere) {
                return Err(found.into());
            }
            let mut wanted = current.clone().unwrap_or_else(|| IPReservation::new(name, IPReservationSpec::default()));
            let mut marks = Marks::of(&wanted);
            for address in addresses {
                let entry = host_cidr(*address).to_string();
                if !wanted.spec.reserved_cidrs.contains(&entry) {
                    wanted.spec.reserved_cidrs.push(entry);
                    wanted.spec.reserved_cidrs.sort();
                }
                if let Some(here) = &here {
                    marks.insert(*address, here);
                }
            }
            if marks != Marks::of(&wanted) {
                marks.write(&mut wanted);
            }
            Ok(match current {
                None => Step::Create(wanted, ()),
                Some(found) if found == wanted => Step::Done(()),
                Some(_) => Step::Replace(wanted, ()),
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

    /// The same for the reservation of that name. What is claimed in another ledger stays.
    pub(super) async fn unreserve_in(&self, name: &str, address: IpAddr, deadline: Instant) -> Result<(), Error> {
        let here = self.ledger.as_ref().map(Ledger::name);
        let entry = host_cidr(address).to_string();
        self.converge::<IPReservation, _, Error>(name, Known::Unread, deadline, |current| {
            let Some(mut found) = current.filter(|found| found.spec.reserved_cidrs.contains(&entry)) else {
                return Ok(Step::Done(()));
            };
            if here.as_ref().is_some_and(|here| claimed_elsewhere([&found], address, here).is_some()) {
                return Ok(Step::Done(()));
            }
            found.spec.reserved_cidrs.retain(|c| *c != entry);
            if found.spec.reserved_cidrs.is_empty() {
                return Ok(Step::Delete(found, ()));
            }
            let mut marks = Marks::of(&found);
            marks.remove(address);
            marks.write(&mut found);
            Ok(Step::Replace(found, ()))
        })
        .await
        .map(|settled| settled.value)
    }
}

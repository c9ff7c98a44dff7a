//! Our IPReservations follow the claims.

use std::collections::BTreeSet;
use std::net::IpAddr;

use calico::IPReservation;
use kube::ResourceExt as _;

use super::{Finding, Needs, Scene, Task};
use crate::claim::Claim;
use crate::collector::{Kind, Repair};
use crate::driver::{is_own_reservation, reservation_name, reserved_addresses, unmarked};
use crate::store::Versioned;

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    // Claims that were not read are not "no claims".
    let Some(claims) = &scene.census.claims else { return Vec::new() };
    let reserved = reserved(scene);
    let listed: BTreeSet<IpAddr> = reserved.iter().map(|(address, _)| *address).collect();
    let claimed: BTreeSet<IpAddr> = claims.iter().map(|claim| claim.value.address).collect();
    let missing = claims.iter().filter(|claim| !listed.contains(&claim.value.address));
    let mut found: Vec<Finding> = missing.filter_map(|claim| missing_entry(scene, claim)).collect();
    let leftover = reserved.iter().filter(|(address, _)| !claimed.contains(address) && is_ours(scene, *address));
    // There may be a claim, in another ledger or in a record that cannot be read.
    let leftover = leftover
        .filter(|(address, _)| scene.claimed_elsewhere(*address).is_none() && !scene.census.is_unread(*address));
    found.extend(leftover.map(|(address, name)| leftover_entry(scene, *address, name)));
    // A claim that was carried away is marked from where it is now.
    let open = claims.iter().map(|claim| &claim.value).filter(|claim| claim.moved.is_none());
    let open: BTreeSet<IpAddr> = open.map(|claim| claim.address).collect();
    found
        .extend(scene.census.reservations.iter().filter_map(|reservation| unmarked_entries(scene, &open, reservation)));
    found
}

/// Every single address in our reservations, in the form that we write, with the reservation's name.
fn reserved(scene: &Scene<'_>) -> BTreeSet<(IpAddr, String)> {
    let ours = scene.census.reservations.iter().filter(|r| is_own_reservation(&r.name_any()));
    ours.flat_map(|r| reserved_addresses(r).map(|address| (address, r.name_any()))).collect()
}

/// Whether an entry without claim can only be this network's. Another network's claims are not known here, but
/// its addresses are other ones, and for one that a pod has the block says that it is fixed.
fn is_ours(scene: &Scene<'_>, address: IpAddr) -> bool {
    scene.rules.ipam.permits_fixed(address) && scene.census.used(address).is_none_or(|used| used.party.fixed.is_none())
}

fn missing_entry(scene: &Scene<'_>, claim: &Versioned<Claim>) -> Option<Finding> {
    let Claim { address, owner, created, .. } = &claim.value;
    let cidr = scene.block_of(*address)?;
    let name = reservation_name(&cidr);
    let needs = Needs { claims: vec![*address], reservations: vec![name.clone()], ..Needs::default() };
    let detail = format!("did not list {address}, which {owner} has claimed");
    let key = format!("{address} {created}");
    Some(finding(scene, Kind::ReservationAdded, key, needs, &name, detail, Task::Reserve(*address, cidr)))
}

/// A reservation that does not say of each of its claimed addresses that the claim lies here: one of an earlier release, or
/// of before the claims were carried over.
fn unmarked_entries(scene: &Scene<'_>, claimed: &BTreeSet<IpAddr>, reservation: &IPReservation) -> Option<Finding> {
    let (here, name) = (scene.rules.ledger.as_ref()?, reservation.name_any());
    let addresses = unmarked(reservation, claimed, here);
    let first = addresses.first()?;
    let needs = Needs { claims: addresses.clone(), reservations: vec![name.clone()], ..Needs::default() };
    let detail = format!("did not say that {first} is claimed in {here}");
    let key = format!("{name} {addresses:?}");
    Some(finding(scene, Kind::ReservationMarked, key, needs, &name, detail, Task::Mark(name.clone(), addresses)))
}

fn leftover_entry(scene: &Scene<'_>, address: IpAddr, name: &str) -> Finding {
    let needs = Needs {
        claims: vec![address],
        reservations: vec![name.to_owned()],
        blocks: scene.block_of(address).into_iter().collect(),
        ..Needs::default()
    };
    let detail = format!("kept {address} from automatic assignment, and there was no claim on it");
    let task = Task::Unreserve(name.to_owned(), address);
    finding(scene, Kind::ReservationRemoved, format!("{name} {address}"), needs, name, detail, task)
}

fn finding(
    scene: &Scene<'_>,
    kind: Kind,
    key: String,
    needs: Needs,
    name: &str,
    detail: String,
    task: Task,
) -> Finding {
    Finding {
        key: (kind, key),
        patience: Some(scene.rules.options.settle),
        not_before: None,
        needs,
        repair: Repair { kind, object: format!("IPReservation/{name}"), detail, pod: None, node: None },
        task,
    }
}

//! Our IPReservations follow the claims.

use std::collections::BTreeSet;
use std::net::IpAddr;

use calico::Family;
use kube::ResourceExt as _;

use super::{Finding, Needs, Scene, Task};
use crate::claim::Claim;
use crate::collector::{Kind, Repair};
use crate::driver::{host_cidr, is_own_reservation, reservation_name};
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
    found.extend(leftover.map(|(address, name)| leftover_entry(scene, *address, name)));
    found
}

/// Every single address in our reservations, in the form that we write, with the reservation's name.
fn reserved(scene: &Scene<'_>) -> BTreeSet<(IpAddr, String)> {
    let mut found = BTreeSet::new();
    for reservation in scene.census.reservations.iter().filter(|r| is_own_reservation(&r.name_any())) {
        for text in &reservation.spec.reserved_cidrs {
            let address = text.split_once('/').and_then(|(address, _)| address.parse::<IpAddr>().ok());
            // Anything else was put there by a person, who may have meant it.
            let address = address.filter(|address| host_cidr(*address).to_string() == *text);
            found.extend(address.map(|address| (address, reservation.name_any())));
        }
    }
    found
}

/// Whether an entry without claim can only be this network's. Another network's claims are not known here, but
/// its addresses are other ones, and for one that a pod has the block says that it is fixed.
fn is_ours(scene: &Scene<'_>, address: IpAddr) -> bool {
    let ranges = scene.rules.ipam.ranges(Family::of(address));
    let permitted = ranges.is_none_or(|ranges| ranges.permits_fixed(address).is_ok());
    permitted && !scene.census.used(address).is_some_and(|used| used.party.fixed.is_some())
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
        needs,
        repair: Repair { kind, object: format!("IPReservation/{name}"), detail, pod: None, node: None },
        task,
    }
}

//! Claims against blocks, pods and reservations: I2, and what a crash between two of its records leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::machine::Side;
use ipnetwork::IpNetwork;
use kube::ResourceExt as _;

use super::view::{Use, View};
use super::{Class, Snapshot, Violation, by_itself};
use crate::claim::{Claim, Holder};
use crate::driver::{CLAIM_KEY, POD_UID_KEY, as_written, is_own_reservation};
use crate::pod::Owner;

pub(super) fn violations(view: &View<'_>) -> Vec<Violation> {
    let Some(claims) = &view.snapshot.claims else { return Vec::new() };
    let claims: BTreeMap<IpAddr, &Claim> = claims.iter().map(|claim| (claim.value.address, &claim.value)).collect();
    let mut found: Vec<Violation> = claims.values().filter_map(|claim| judge(view, claim)).collect();
    found.extend(claims.values().filter(|claim| !view.in_a_pool(claim.address)).map(|claim| outside(claim)));
    let unclaimed = view.used.values().filter(|used| used.is_fixed() && view.is_ours(used));
    found.extend(unclaimed.filter(|used| !claims.contains_key(&used.address)).map(without_claim));
    found.extend(reservations(view, &claims));
    found
}

/// Claims whose owners are gone.
pub(super) fn notes(snapshot: &Snapshot) -> Vec<Violation> {
    let claims = snapshot.claims.iter().flatten().map(|claim| &claim.value);
    let orphans = claims.filter(|claim| snapshot.owners.get(&claim.owner) == Some(&false));
    let note = |claim: &Claim| {
        let detail = format!("belongs to {}, which does not exist any more", claim.owner);
        let remedy = by_itself(
            "kube-ipam release --claim gives the address back to random assignment, and another owner may take it over",
        );
        Violation::new(Class::OwnerGone, object(claim), detail, remedy)
    };
    orphans.map(note).collect()
}

fn object(claim: &Claim) -> String {
    format!("Claim/{}", claim.address)
}

/// The first thing that is wrong between a claim, its block's entry and its holder's pod.
fn judge(view: &View<'_>, claim: &Claim) -> Option<Violation> {
    let entry = view.used.get(&claim.address);
    if let Some(detail) = disagreement(claim, entry) {
        let remedy = match entry {
            None => by_itself(&format!("if no pod has it: kube-ipam release {}", claim.address)),
            Some(_) => by_itself(&format!("if the pod is gone: kube-ipam release {}", claim.address)),
        };
        return Some(Violation::new(Class::ClaimDisagrees, object(claim), detail, remedy));
    }
    let (holder, used) = (claim.holder.as_ref()?, entry?);
    if used.party().machine().is_some() {
        // The machine holds it, whichever of its pods it runs in.
        return None;
    }
    let Some(pod) = view.by_uid(&claim.owner.namespace, &holder.pod, &holder.pod_uid) else {
        // That the allocation has no user is said by the leak.
        if view.staleness(used).is_some() {
            return None;
        }
        let detail = format!("is held by {holder}, whose UID {} no pod has", holder.pod_uid);
        let remedy = by_itself(&format!("if that container is gone: kube-ipam release {}", claim.address));
        return Some(Violation::new(Class::HolderGone, object(claim), detail, remedy));
    };
    let owner = Owner::of(pod.pod).ok()?;
    if owner == claim.owner {
        return None;
    }
    let detail = format!("belongs to {}, and is held by {holder}, a pod of {owner}", claim.owner);
    let remedy = by_itself("give the pod its owner back by the annotation kube-ipam.owner, or delete it");
    Some(Violation::new(Class::ForeignHolder, object(claim), detail, remedy))
}

/// In which way claim and block tell different stories.
fn disagreement(claim: &Claim, entry: Option<&Use<'_>>) -> Option<String> {
    match (&claim.holder, entry) {
        (None, None) => None,
        (Some(holder), None) => Some(format!("is held by {holder}, but no block records it")),
        (None, Some(used)) => Some(format!("names no holder, but the block records it for {}", used.user())),
        (Some(holder), Some(used)) if !is_same(holder, claim, used) => {
            Some(format!("is held by {holder}, but the block records it for {}", used.user()))
        }
        (Some(_), Some(used)) => {
            if used.attribute.is_vacant() {
                return None;
            }
            let alternate = || used.attribute.side(Side::Alternate)?.get(CLAIM_KEY).map(String::as_str);
            let recorded = used.attribute.secondary(CLAIM_KEY).or_else(alternate);
            let (says, generation) = (recorded.unwrap_or("none"), claim.generation);
            (recorded != Some(generation.to_string().as_str()))
                .then(|| format!("is of generation {generation}, but the block's entry says {says}"))
        }
    }
}

fn is_same(holder: &Holder, claim: &Claim, used: &Use<'_>) -> bool {
    if used.party().machine().is_some() {
        return used.is_of(&holder.container_id);
    }
    used.attribute.secondary(POD_UID_KEY).map_or_else(|| used.is_of(&holder.container_id), |uid| uid == holder.pod_uid)
        && used.pod() == Some((claim.owner.namespace.as_str(), holder.pod.as_str()))
        && used.attribute.secondary("node") == Some(holder.node.as_str())
}

fn outside(claim: &Claim) -> Violation {
    let remedy = format!("restore the pool, or drop the claim: kube-ipam release --claim {}", claim.address);
    Violation::new(Class::OutsidePools, object(claim), "is on an address that no IPPool covers", remedy)
}

/// The claim was lost. That its reservation is without a claim as well need not be said.
fn without_claim(used: &Use<'_>) -> Violation {
    let detail = format!("records {} as fixed for {}, and there is no claim on it", used.address, used.user());
    let remedy =
        by_itself("kube-ipam adopt writes the claims of pods that run, and kube-ipam release frees what none has");
    Violation::new(Class::FixedWithoutClaim, used.object(), detail, remedy)
}

/// Claims and the entries of our reservations must be the same set.
fn reservations(view: &View<'_>, claims: &BTreeMap<IpAddr, &Claim>) -> Vec<Violation> {
    let (snapshot, mut found) = (view.snapshot, Vec::new());
    let mut reserved: BTreeSet<IpAddr> = BTreeSet::new();
    for reservation in snapshot.reservations.iter().filter(|r| is_own_reservation(&r.name_any())) {
        for text in &reservation.spec.reserved_cidrs {
            let address = text.trim().parse::<IpNetwork>().ok().filter(is_host).map(|cidr| cidr.ip());
            reserved.extend(address);
            let fixed = |address: &IpAddr| view.used.get(address).is_some_and(Use::is_fixed);
            if address.is_some_and(|a| claims.contains_key(&a) || fixed(&a)) {
                continue;
            }
            let object = format!("IPReservation/{}", reservation.name_any());
            let detail = format!("keeps {text} from automatic assignment, and there is no claim on it");
            let by_hand = "kube-ipam release --claim, if no other network has claimed the address";
            // The collector leaves alone what may be another network's, and what a person wrote in another form.
            let ours = as_written(text).filter(|address| may_be_ours(snapshot, *address));
            let remedy = if ours.is_some() { by_itself(by_hand) } else { by_hand.to_owned() };
            found.push(Violation::new(Class::ReservationWithoutClaim, object, detail, remedy));
        }
    }
    for claim in claims.values().filter(|claim| !reserved.contains(&claim.address)) {
        let detail = "is on an address that Calico may assign to anybody: no IPReservation of ours lists it";
        let remedy = by_itself("its pod's next ADD reserves it");
        found.push(Violation::new(Class::ClaimNotReserved, object(claim), detail, remedy));
    }
    found
}

fn is_host(cidr: &IpNetwork) -> bool {
    cidr.prefix() == if cidr.is_ipv4() { 32 } else { 128 }
}

/// Whether an address without claim is this network's by its configuration, if that is known.
fn may_be_ours(snapshot: &Snapshot, address: IpAddr) -> bool {
    snapshot.net.as_ref().is_some_and(|net| net.ipam.permits_fixed(address))
}

//! The records against the books, while no call is under way: every allocation has its container, every container its
//! allocation, and every other object its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::books::Books;
use super::records::Records;

/// What does not fit, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// An address on record for another container than the one that was told it, or in two blocks.
    pub duplicates: Vec<String>,
    /// Allocations without a living container.
    pub leaks: Vec<String>,
    /// Handles, affinities, blocks, claims, holders and reservations that belong to nothing.
    pub orphans: Vec<String>,
    /// What a living container should have on record, and has not.
    pub missing: Vec<String>,
}

/// The comparison under way.
struct Comparison<'a> {
    records: &'a Records,
    books: &'a Books,
    network: &'a str,
    found: Findings,
}

/// Compares. `network` is what the handles' ids begin with.
pub fn compare(records: &Records, books: &Books, network: &str) -> Findings {
    let mut comparison = Comparison { records, books, network, found: Findings::default() };
    comparison.allocations();
    comparison.handles();
    comparison.affinities();
    comparison.claims();
    comparison.reservations();
    comparison.found
}

// === impl Findings ===

impl Findings {
    /// Whether everything fits.
    pub fn is_clean(&self) -> bool {
        self.all().next().is_none()
    }

    /// All findings.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        [&self.duplicates, &self.leaks, &self.orphans, &self.missing].into_iter().flatten()
    }
}

// === impl Comparison ===

impl Comparison<'_> {
    fn container<'h>(&self, handle: &'h str) -> &'h str {
        handle.strip_prefix(self.network).and_then(|rest| rest.strip_prefix('.')).unwrap_or(handle)
    }

    fn allocations(&mut self) {
        let mut recorded: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for block in &self.records.blocks {
            for (address, (handle, node)) in &block.entries {
                let id = self.container(handle);
                if recorded.insert(*address, id).is_some() {
                    self.found.duplicates.push(format!("{address} is in two blocks"));
                }
                match self.books.container(id) {
                    Some(living) if living.told == Some(*address) && living.node == *node => {}
                    Some(living) if living.told.is_some() => {
                        let (told, on) = (living.told.map(|a| a.to_string()).unwrap_or_default(), &living.node);
                        let wrong = format!("{address} is on record for {id} on {node}, who was told {told} on {on}");
                        self.found.duplicates.push(wrong);
                    }
                    _ => {
                        self.found.leaks.push(format!("{address} in {} is on record for {id}, who is gone", block.cidr))
                    }
                }
            }
        }
        for (id, container) in self.books.containers() {
            let Some(address) = container.told else { continue };
            match recorded.get(&address) {
                Some(user) if *user == id => {}
                Some(user) => self.found.duplicates.push(format!("{address} of {id} is on record for {user}")),
                None => self.found.missing.push(format!("{address} of {id} is not on record")),
            }
        }
    }

    fn handles(&mut self) {
        let mut borne: BTreeMap<&str, BTreeMap<&str, i64>> = BTreeMap::new();
        for block in &self.records.blocks {
            for (handle, _) in block.entries.values() {
                *borne.entry(handle).or_default().entry(&block.cidr).or_default() += 1;
            }
        }
        for handle in &self.records.handles {
            let counts: BTreeMap<&str, i64> = handle.counts.iter().map(|(cidr, n)| (cidr.as_str(), *n)).collect();
            match borne.remove(handle.id.as_str()) {
                _ if handle.deleted => self.found.orphans.push(format!("handle {} is half deleted", handle.id)),
                None => self.found.orphans.push(format!("handle {} without allocation: {counts:?}", handle.id)),
                Some(found) if found != counts => {
                    let wrong = format!("handle {} counts {counts:?}, and the blocks bear {found:?}", handle.id);
                    self.found.orphans.push(wrong);
                }
                Some(_) => {}
            }
        }
        self.found.orphans.extend(borne.into_keys().map(|handle| format!("allocation of {handle} without its handle")));
    }

    fn affinities(&mut self) {
        let hosts: BTreeMap<&str, Option<&str>> =
            self.records.blocks.iter().map(|b| (b.cidr.as_str(), b.host.as_deref())).collect();
        let mut kept: BTreeSet<&str> = BTreeSet::new();
        for affinity in &self.records.affinities {
            let cidr = affinity.cidr.as_str();
            let whole = affinity.state == "confirmed" && !affinity.deleted;
            let same = hosts.get(cidr).is_some_and(|host| *host == Some(affinity.node.as_str()));
            if !whole || !same || !kept.insert(cidr) {
                let (node, state) = (&affinity.node, &affinity.state);
                let wrong =
                    format!("affinity of {node} for {cidr}, {state}: the block's host is {:?}", hosts.get(cidr));
                self.found.orphans.push(wrong);
            }
        }
        for block in &self.records.blocks {
            if block.deleted {
                self.found.orphans.push(format!("block {} is half deleted", block.cidr));
            } else if !kept.contains(block.cidr.as_str()) {
                self.found.orphans.push(format!("block {} of {:?} without affinity", block.cidr, block.host));
            }
        }
    }

    fn claims(&mut self) {
        let mut held: BTreeMap<IpAddr, Option<&str>> = BTreeMap::new();
        for claim in &self.records.claims {
            let (address, owner) = (claim.address, claim.owner.as_str());
            held.insert(address, claim.holder.as_deref());
            if self.books.owner(address) != Some(owner) {
                self.found.orphans.push(format!("claim of {address} by {owner}, whose it is not"));
            }
            let Some(holder) = &claim.holder else { continue };
            if self.books.container(holder).is_none_or(|container| container.told != Some(address)) {
                self.found.orphans.push(format!("claim of {address} is held by {holder}, who is gone"));
            }
        }
        for (id, container) in self.books.containers().filter(|(_, c)| c.wants.is_some() && c.told == c.wants) {
            let Some(address) = container.told else { continue };
            if held.get(&address) != Some(&Some(id)) {
                self.found.missing.push(format!("claim of {address} does not name {id}: {:?}", held.get(&address)));
            }
        }
    }

    fn reservations(&mut self) {
        let claimed: BTreeSet<IpAddr> = self.records.claims.iter().map(|claim| claim.address).collect();
        let mut reserved: BTreeSet<IpAddr> = BTreeSet::new();
        for (address, name) in &self.records.reserved {
            if !reserved.insert(*address) {
                self.found.orphans.push(format!("{address} is reserved twice, the second time by {name}"));
            }
            if !claimed.contains(address) {
                self.found.orphans.push(format!("{name} reserves {address}, which nobody claims"));
            }
        }
        let open = claimed.difference(&reserved).map(|address| format!("{address} is claimed and not reserved"));
        self.found.missing.extend(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hammer::records::{Affinity, Block, Claim, Handle};

    const CIDR: &str = "10.0.0.0/26";
    const FIXED: &str = "10.0.0.10";
    const RANDOM: &str = "10.0.0.32";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// A random and a fixed container, and what is on record for them.
    fn sound() -> (Records, Books) {
        let mut books = Books::new([(ip(FIXED), "web".to_owned())].into(), (ip("10.0.0.20"), ip("10.0.0.60")));
        books.asks("r", "n1", None);
        books.told("r", ip(RANDOM));
        books.asks("f", "n2", Some(ip(FIXED)));
        books.told("f", ip(FIXED));
        let entry = |address: &str, id: &str, node: &str| (ip(address), (format!("net.{id}"), node.to_owned()));
        let handle =
            |id: &str| Handle { id: format!("net.{id}"), deleted: false, counts: [(CIDR.to_owned(), 1)].into() };
        let records = Records {
            blocks: vec![Block {
                cidr: CIDR.into(),
                host: Some("n1".into()),
                deleted: false,
                entries: [entry(RANDOM, "r", "n1"), entry(FIXED, "f", "n2")].into(),
            }],
            handles: vec![handle("r"), handle("f")],
            affinities: vec![Affinity {
                cidr: CIDR.into(),
                node: "n1".into(),
                state: "confirmed".into(),
                deleted: false,
            }],
            reserved: vec![(ip(FIXED), "kube-ipam-10-0-0-0-26".into())],
            claims: vec![Claim { address: ip(FIXED), owner: "web".into(), holder: Some("f".into()) }],
        };
        (records, books)
    }

    /// What is found after something was planted.
    fn after(plant: impl FnOnce(&mut Records, &mut Books)) -> Findings {
        let (mut records, mut books) = sound();
        plant(&mut records, &mut books);
        compare(&records, &books, "net")
    }

    #[test]
    fn sound_records_are_clean() {
        assert_eq!(after(|_, _| {}), Findings::default());
        // An ADD that was refused and is not yet cleaned up has nothing.
        assert!(after(|_, books| books.asks("late", "n1", None)).is_clean());
    }

    #[test]
    fn a_planted_duplicate_is_found() {
        let stolen = after(|records, _| {
            records.blocks[0].entries.insert(ip(RANDOM), ("net.x".into(), "n1".into()));
        });
        assert_eq!(stolen.duplicates, ["10.0.0.32 of r is on record for x"]);
        let twice = after(|records, _| {
            let mut other = records.blocks[0].clone();
            other.cidr = "10.0.0.0/27".into();
            records.blocks.push(other);
        });
        assert_eq!(twice.duplicates, ["10.0.0.10 is in two blocks", "10.0.0.32 is in two blocks"]);
        let moved = after(|records, _| {
            let entry = records.blocks[0].entries.remove(&ip(RANDOM)).unwrap();
            records.blocks[0].entries.insert(ip("10.0.0.33"), entry);
        });
        assert_eq!(moved.duplicates, ["10.0.0.33 is on record for r on n1, who was told 10.0.0.32 on n1"]);
        assert_eq!(moved.missing, ["10.0.0.32 of r is not on record"]);
    }

    #[test]
    fn a_planted_leak_is_found() {
        let leak = after(|_, books| {
            books.leaves("r");
            books.gone("r");
        });
        assert_eq!(leak.leaks, ["10.0.0.32 in 10.0.0.0/26 is on record for r, who is gone"]);
        let refused = after(|records, books| {
            books.asks("late", "n1", None);
            records.blocks[0].entries.insert(ip("10.0.0.40"), ("net.late".into(), "n1".into()));
        });
        assert_eq!(refused.leaks, ["10.0.0.40 in 10.0.0.0/26 is on record for late, who is gone"]);
    }

    #[test]
    fn planted_orphans_are_found() {
        let one = |plant: fn(&mut Records)| {
            let found = after(|records, _| plant(records));
            assert_eq!((found.duplicates.len(), found.leaks.len()), (0, 0), "{found:?}");
            found.orphans.join("; ")
        };
        let handle = Handle { id: "net.x".into(), deleted: false, counts: [(CIDR.to_owned(), 1)].into() };
        let found = after(|records, _| records.handles.push(handle));
        assert_eq!(found.orphans, ["handle net.x without allocation: {\"10.0.0.0/26\": 1}"]);
        let found = one(|records| drop(records.handles.remove(0)));
        assert_eq!(found, "allocation of net.r without its handle");
        let found = one(|records| records.handles[0].counts.values_mut().for_each(|count| *count = 2));
        assert_eq!(found, "handle net.r counts {\"10.0.0.0/26\": 2}, and the blocks bear {\"10.0.0.0/26\": 1}");
        assert_eq!(one(|records| records.handles[0].deleted = true), "handle net.r is half deleted");
        let found = one(|records| records.affinities.clear());
        assert_eq!(found, "block 10.0.0.0/26 of Some(\"n1\") without affinity");
        assert!(one(|records| records.affinities[0].state = "pending".into()).starts_with("affinity of n1"));
        assert!(one(|records| records.affinities[0].node = "n2".into()).starts_with("affinity of n2"));
        let found = one(|records| records.affinities[0].cidr = "10.0.9.0/26".into());
        assert!(found.starts_with("affinity of n1 for 10.0.9.0/26, confirmed: the block's host is None"), "{found}");
        assert_eq!(one(|records| records.blocks[0].deleted = true), "block 10.0.0.0/26 is half deleted");
        let found = one(|records| records.claims[0].owner = "db".into());
        assert_eq!(found, "claim of 10.0.0.10 by db, whose it is not");
        assert_eq!(
            one(|records| records.claims[0].holder = Some("x".into())),
            "claim of 10.0.0.10 is held by x, who is gone"
        );
        let found = one(|records| records.reserved.push((ip("10.0.0.11"), "kube-ipam-10-0-0-0-26".into())));
        assert_eq!(found, "kube-ipam-10-0-0-0-26 reserves 10.0.0.11, which nobody claims");
    }

    #[test]
    fn what_a_container_lacks_is_found() {
        let found = after(|records, _| records.claims[0].holder = None);
        assert_eq!(found.missing, ["claim of 10.0.0.10 does not name f: Some(None)"]);
        let found = after(|records, _| records.reserved.clear());
        assert_eq!(found.missing, ["10.0.0.10 is claimed and not reserved"]);
        let found = after(|records, _| records.claims.clear());
        assert_eq!(found.missing, ["claim of 10.0.0.10 does not name f: None"]);
        assert_eq!(found.orphans, ["kube-ipam-10-0-0-0-26 reserves 10.0.0.10, which nobody claims"]);
    }
}

//! The oracle: it knows which containers run and what they were answered, and judges every write by that.
//!
//! A container counts as running from the answer to its ADD until its runtime has stopped it. One whose death
//! somebody with the right to say so has asserted (its pod deleted by force while its node is not Ready, its
//! Node deleted) is given up: it may go on running and lose its address, as docs/reliability.md admits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::{AllocationAttribute, Entry, Family, IPAMBlock, IPAMBlockSpec};
use ipnetwork::IpNetwork;
use jiff::Timestamp;
use kube_ipam::claim::Claim;
use kube_ipam::driver::{CLAIM_KEY, POD_UID_KEY};

use super::time;

/// Seconds by which the clocks of two nodes differ at most, and times are rounded.
const CLOCKS_DIFFER: i64 = 7;

/// What was broken, when, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// `I1` to `I9`, or the name of another property.
    pub invariant: &'static str,
    pub detail: String,
    /// Milliseconds.
    pub at: u64,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Its ADD has not been answered.
    Asking,
    Running,
    /// Its runtime has stopped it, or its node died.
    Stopped,
    /// It may run, and nothing is promised to it any more.
    GivenUp,
}

#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub pod_uid: String,
    pub pod: String,
    pub node: usize,
    /// What its pod's annotation asks for; empty if there is none.
    pub wanted: Vec<IpAddr>,
    /// Whether calico-ipam serves it.
    pub foreign: bool,
    pub addresses: Vec<IpAddr>,
    pub life: Life,
    /// Whether its runtime has had a DEL answered for it, with nothing to come after.
    pub released: bool,
}

pub struct Oracle {
    pub containers: BTreeMap<String, Container>,
    pub network: String,
    pub nodes: Vec<String>,
    /// Who uses each address now: the container, and whether it is there by a claim.
    using: BTreeMap<IpAddr, String>,
    /// Last stored form of each block.
    blocks: BTreeMap<IpNetwork, IPAMBlockSpec>,
    claims: BTreeMap<IpAddr, Claim>,
    /// Addresses whose claims were written by hand: what they say is judged in the end only, what blocks say at any time.
    harmed: BTreeSet<IpAddr>,
    /// Addresses that random assignment may give, for each family.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Seconds for which a released address is given to nobody but its owner.
    cooldown: i64,
    /// The first violation; what comes after it may follow from it.
    pub violation: Option<Violation>,
    pub answers: u64,
    pub takeovers: u64,
    /// Addresses that have cooled, or went to their owner meanwhile.
    pub cooled: u64,
}

impl Oracle {
    pub fn new(network: &str, nodes: Vec<String>, ranges: Vec<(IpAddr, IpAddr)>, cooldown: i64) -> Self {
        Self {
            containers: BTreeMap::new(),
            network: network.to_owned(),
            nodes,
            using: BTreeMap::new(),
            blocks: BTreeMap::new(),
            claims: BTreeMap::new(),
            harmed: BTreeSet::new(),
            ranges,
            cooldown,
            violation: None,
            answers: 0,
            takeovers: 0,
            cooled: 0,
        }
    }

    pub fn fail(&mut self, invariant: &'static str, detail: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, detail, at: time::now() });
        }
    }

    // === containers ===

    pub fn asks(&mut self, container: Container) {
        self.containers.insert(container.id.clone(), container);
    }

    /// An ADD was answered, and the runtime takes the container up.
    pub fn answered(&mut self, id: &str, addresses: &[IpAddr]) {
        self.answers += 1;
        let Some(container) = self.containers.get(id).cloned() else { return };
        if container.life != Life::Asking {
            return;
        }
        if !container.wanted.is_empty() && !addresses.iter().all(|a| container.wanted.contains(a)) {
            self.fail(
                "I9",
                format!("{id} of pod {} wants {:?} and got {addresses:?}", container.pod, container.wanted),
            );
        }
        for family in Family::BOTH {
            let count = |of: &[IpAddr]| of.iter().filter(|a| Family::of(**a) == family).count();
            if count(addresses) > 1 || (count(&container.wanted) > 0 && count(addresses) == 0) {
                self.fail("I9", format!("{id} of pod {} was answered {addresses:?}", container.pod));
            }
        }
        for address in addresses {
            let permitted = self.ranges.iter().any(|(first, last)| first <= address && address <= last);
            if container.wanted.is_empty() && !container.foreign && !permitted {
                self.fail("I7", format!("{id} of pod {} got {address}, outside of the range", container.pod));
            }
            if let Some(other) = self.using.get(address) {
                let detail = format!("{address} was given to {id} while {other} runs with it");
                self.fail("I1", detail);
            }
            if let Some(wrong) = self.unrecorded(&container, *address) {
                self.fail("I3", format!("{id} was answered {address}: {wrong}"));
            }
            self.using.insert(*address, id.to_owned());
        }
        if let Some(container) = self.containers.get_mut(id) {
            (container.life, container.addresses) = (Life::Running, addresses.to_vec());
        }
    }

    /// What the records lack of a container's address.
    fn unrecorded(&self, container: &Container, address: IpAddr) -> Option<String> {
        let Some(block) = self.blocks.values().find(|block| block.cidr.contains(address)) else {
            return Some("its block does not exist".to_owned());
        };
        let Entry::Used { attribute, .. } = block.entry(address) else {
            return Some("its block does not record it".to_owned());
        };
        if !is_for(attribute, container, &self.network) {
            return Some(format!("its block records it for {:?}", attribute.handle()));
        }
        if attribute.secondary("node") != self.nodes.get(container.node).map(String::as_str) {
            return Some(format!("its block records it on node {:?}", attribute.secondary("node")));
        }
        if container.wanted.is_empty() || self.harmed.contains(&address) {
            return None;
        }
        let Some(claim) = self.claims.get(&address) else { return Some("there is no claim".to_owned()) };
        // Taken ahead, it is the pod's, and the claim may yet name an earlier sandbox of it or none.
        let ahead = attribute.secondary(POD_UID_KEY).is_some();
        let by_pod = claim.holder.as_ref().is_some_and(|holder| ahead && holder.pod_uid == container.pod_uid);
        if !by_pod && !claim.is_held_by(&container.id, "eth0") {
            let holder = claim.holder.as_ref().map(|h| h.container_id.as_str());
            return Some(format!("its claim is held by {holder:?}"));
        }
        let recorded = attribute.secondary(CLAIM_KEY);
        (recorded != Some(claim.generation.to_string().as_str()))
            .then(|| format!("its claim is of generation {}, its block says {recorded:?}", claim.generation))
    }

    /// The runtime has stopped a container.
    pub fn stopped(&mut self, id: &str) {
        self.end(id, Life::Stopped);
    }

    /// The container is beyond every promise from now on.
    pub fn give_up(&mut self, id: &str) {
        self.end(id, Life::GivenUp);
    }

    fn end(&mut self, id: &str, life: Life) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.life == Life::Stopped {
            return;
        }
        container.life = life;
        for address in &container.addresses {
            if self.using.get(address).is_some_and(|user| user == id) {
                self.using.remove(address);
            }
        }
    }

    pub fn of_pod(&self, uid: &str) -> Vec<String> {
        self.containers.values().filter(|c| c.pod_uid == uid).map(|c| c.id.clone()).collect()
    }

    pub fn on_node(&self, node: usize) -> Vec<String> {
        self.containers.values().filter(|c| c.node == node).map(|c| c.id.clone()).collect()
    }

    /// Containers that their runtime lists, whatever is promised to them.
    pub fn alive_on(&self, node: usize) -> Vec<String> {
        let here = self.containers.values().filter(|c| c.node == node && !c.addresses.is_empty());
        here.filter(|c| matches!(c.life, Life::Running | Life::GivenUp)).map(|c| c.id.clone()).collect()
    }

    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.values().filter(|c| c.life == Life::Running)
    }

    // === records ===

    pub fn block_written(&mut self, block: &IPAMBlock) {
        if let Err(corrupt) = block.spec.validate() {
            self.fail("I5", format!("block {}: {corrupt}", block.spec.cidr));
        }
        let before = self.blocks.insert(block.spec.cidr, block.spec.clone());
        self.has_cooled(before.as_ref(), Some(&block.spec));
        self.still_recorded(|address| block.spec.cidr.contains(address));
    }

    pub fn block_deleted(&mut self, block: &IPAMBlock) {
        let before = self.blocks.remove(&block.spec.cidr);
        self.has_cooled(before.as_ref(), None);
        self.still_recorded(|address| block.spec.cidr.contains(address));
    }

    /// What cooled does so until its time is over, unless it is claimed.
    fn has_cooled(&mut self, before: Option<&IPAMBlockSpec>, after: Option<&IPAMBlockSpec>) {
        let Some(before) = before.filter(|_| self.cooldown > 0) else { return };
        for (address, entry) in before.entries() {
            let Entry::Cooling { released_at } = entry else { continue };
            let now = after.map_or(Entry::NotInBlock, |after| after.entry(address));
            if let Entry::Cooling { .. } = now {
                continue;
            }
            self.cooled += 1;
            let claimed = matches!(now, Entry::Used { attribute, .. } if attribute.secondary(CLAIM_KEY).is_some());
            let cooled = released_at.parse::<Timestamp>().map_or(0, |at| time::true_now().duration_since(at).as_secs());
            if !claimed && cooled < self.cooldown - CLOCKS_DIFFER {
                let detail = format!("{address} was released {cooled} s ago, and is {now:?} by now");
                self.fail("cooldown", detail);
            }
        }
    }

    /// Somebody wrote a claim by hand, or took it away.
    pub fn claim_harmed(&mut self, address: IpAddr, claim: Option<&Claim>) {
        match claim {
            Some(claim) => drop(self.claims.insert(address, claim.clone())),
            None => drop(self.claims.remove(&address)),
        }
        self.harmed.insert(address);
    }

    /// Whether the claim of one of them was written by hand.
    pub fn is_harmed(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().any(|address| self.harmed.contains(address))
    }

    pub fn claim_written(&mut self, address: IpAddr, claim: Option<&Claim>) {
        let before = match claim {
            Some(claim) => self.claims.insert(address, claim.clone()),
            None => self.claims.remove(&address),
        };
        let holder = |claim: Option<&Claim>| claim.and_then(|c| Some(c.holder.as_ref()?.pod_uid.clone()));
        if let (Some(old), Some(new)) = (holder(before.as_ref()), holder(claim)) {
            self.takeovers += u64::from(old != new);
        }
        if let (Some(before), Some(claim)) = (&before, claim)
            && claim.generation < before.generation
        {
            self.fail(
                "I2",
                format!("the generation of {address} went from {} to {}", before.generation, claim.generation),
            );
        }
        self.still_recorded(|other| other == address);
    }

    /// What a running container was answered stays on record until it is stopped.
    fn still_recorded(&mut self, among: impl Fn(IpAddr) -> bool) {
        let mut lost = None;
        for (address, id) in self.using.iter().filter(|(address, _)| among(**address)) {
            let Some(container) = self.containers.get(id) else { continue };
            if let Some(wrong) = self.unrecorded(container, *address) {
                lost = Some(format!("{id} of pod {} runs with {address}: {wrong}", container.pod));
            }
        }
        if let Some(detail) = lost {
            self.fail("I3", detail);
        }
    }
}

/// Whether an entry is a container's: under its own handle, or under its pod's with the pod's UID.
pub fn is_for(attribute: &AllocationAttribute, container: &Container, network: &str) -> bool {
    let handle = attribute.handle().unwrap_or_default();
    match attribute.secondary(POD_UID_KEY) {
        Some(uid) => uid == container.pod_uid && handle == format!("default.{}", container.pod),
        None => handle == format!("{network}.{}", container.id),
    }
}

#[cfg(test)]
mod tests {
    use calico::{Affinity, Holder};
    use jiff::SignedDuration;

    use super::*;

    /// What the oracle says of an address that was released so many seconds ago, and is free now.
    fn freed_after(seconds: i64) -> Option<Violation> {
        let address = IpAddr::from([10, 244, 0, 1]);
        let then = time::true_now() - SignedDuration::from_secs(seconds);
        let mut block = IPAMBlockSpec::new("10.244.0.0/30".parse().unwrap(), &Affinity::Host("n1".into()), then);
        block.assign(address, &Holder::pod("net.a", "default", "a", "n1", then), None).unwrap();
        block.release_handle("net.a", 30, then);
        let mut oracle = Oracle::new("net", Vec::new(), vec![(address, address)], 30);
        oracle.block_written(&block.clone().object());
        block.vacate(address);
        oracle.block_written(&block.object());
        assert_eq!(oracle.cooled, 1);
        oracle.violation
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_free_again_before_it_has_cooled_is_seen() {
        assert_eq!(freed_after(10).unwrap().invariant, "cooldown");
        assert_eq!(freed_after(31), None);
    }
}

//! The real side of the model: blocks, claims and handles are the types of the program, and change by its functions
//! alone. Each version is kept once, and a state names it by its number; what a function made of it is remembered.

use std::cell::RefCell;
use std::net::IpAddr;

use calico::{Affinity, Entry, Expect, Holder as Allocation, IPAMBlockSpec, IPAMHandleSpec, Reservations};
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use kube_ipam::claim::{
    self, Asker, Claim, Decision, Evidence, Fencing, Holder, NodeState, PodState, Policy, Standing, decide, standing,
};
use kube_ipam::driver::edit::{Assign, Edit, Outcome, Release, Which, Whose};
use kube_ipam::driver::{CLAIM_KEY, Error};
use kube_ipam::pod::Owner;

use super::quick::Map;
use super::state::{ADDRESSES, CONTAINERS, FIXED, Found, Id, Pod, State};

/// Seconds from one moment of the model to the next: longer than a grace, and than the longest ADD.
const AGE: i64 = 1000;
const CIDR: &str = "10.0.0.0/31";

/// What the model needs to know of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub owner: u8,
    pub holder: Option<u8>,
    pub generation: u64,
}

/// [`Decision`], with claims by number.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    Take(Id),
    Contest(Id),
    Held,
    Examine,
    ExamineOwner,
    Wait,
    Refuse,
}

/// [`Standing`], with claims by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    Lost,
    Contest(Id),
    Keeps,
}

/// What came of writing an address.
#[derive(Debug, Clone, Copy)]
pub enum Written {
    Address(u8, Option<u8>),
    Full,
    Taken,
}

/// Who has each address, and whether by a claim.
type Entries = [Option<(u8, bool)>; ADDRESSES];
/// Whose pod a decision is about, as far as it is known.
type Known = Option<(Found, bool)>;

#[derive(Default)]
struct Kept {
    blocks: Vec<IPAMBlockSpec>,
    block_ids: Map<String, Id>,
    claims: Vec<Claim>,
    claim_ids: Map<String, Id>,
    assigned: Map<(Id, u8, bool, Option<u64>), (Id, Written)>,
    released: Map<(Id, u8), (Id, Option<u8>)>,
    freed: Map<(Id, u8, u8), (Id, bool)>,
    entries: Map<Id, Entries>,
    decided: Map<(Id, u8, Known, bool), Verdict>,
    stood: Map<(Id, Found, bool), Stands>,
    facts: Map<Id, Facts>,
    aged: Map<Id, Id>,
}

/// The records of a model.
pub struct Records {
    /// The owner of each pod that wants the fixed address; `None` wants any.
    owners: [Option<u8>; super::state::PODS],
    cidr: IpNetwork,
    kept: RefCell<Kept>,
}

pub fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(10 * AGE)
}

fn long_ago() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(AGE)
}

fn handle(container: u8) -> String {
    format!("net.c{container}")
}

fn container_of(handle: &str) -> u8 {
    handle.strip_prefix("net.c").unwrap().parse().unwrap()
}

fn owner(number: u8) -> Owner {
    Owner {
        namespace: "default".into(),
        group: "apps".into(),
        version: None,
        kind: "Deployment".into(),
        name: format!("app{number}"),
        ordinal: None,
    }
}

/// The container as a holder; `paused` if its ADD began long ago.
fn holder(container: u8, paused: bool) -> Holder {
    let pod = State::pod_of(container);
    Holder {
        pod_uid: format!("uid{pod}"),
        pod: format!("pod{pod}"),
        container_id: format!("c{container}"),
        interface: "eth0".into(),
        node: format!("node{pod}"),
        node_uid: Some(format!("node-uid{pod}")),
        since: if paused { long_ago() } else { now() },
        unknown: Default::default(),
    }
}

fn policy() -> Policy {
    Policy { fencing: Fencing::PodDeleted, grace: SignedDuration::from_secs(60) }
}

fn evidence(found: &Found, in_block: bool) -> Evidence {
    let pod = match found.pod {
        Pod::Alive => PodState::Alive,
        Pod::Terminating => PodState::Terminating,
        Pod::Gone { .. } => PodState::Gone,
    };
    Evidence { pod, node: if found.node.ready { NodeState::Ready } else { NodeState::NotReady }, in_block }
}

impl Records {
    pub fn new(owners: [Option<u8>; super::state::PODS]) -> Self {
        Self { owners, cidr: CIDR.parse().unwrap(), kept: RefCell::default() }
    }

    pub fn owner_of(&self, container: u8) -> Option<u8> {
        self.owners[State::pod_of(container)]
    }

    fn address(&self, number: u8) -> IpAddr {
        self.cidr.iter().nth(usize::from(number)).unwrap()
    }

    fn number(&self, address: IpAddr) -> u8 {
        u8::from(self.address(FIXED) != address)
    }

    // === blocks ===

    /// An empty block of the first node.
    pub fn empty_block(&self) -> Id {
        let host = Affinity::Host("node0".into());
        self.keep_block(IPAMBlockSpec::new(self.cidr, &host, now()))
    }

    /// Every write is by compare-and-swap, so the sequence numbers, which only ever rise, would make no two states
    /// equal. They are all zero here: an address is known by its handle alone, which is the harder case.
    fn keep_block(&self, mut block: IPAMBlockSpec) -> Id {
        block.sequence_number = 0;
        block.sequence_number_for_allocation.values_mut().for_each(|number| *number = 0);
        block.validate().unwrap();
        let mut kept = self.kept.borrow_mut();
        let key = serde_json::to_string(&block).unwrap();
        let id = Id::try_from(kept.blocks.len()).unwrap();
        if let Some(known) = kept.block_ids.get(&key) {
            return *known;
        }
        kept.blocks.push(block);
        kept.block_ids.insert(key, id);
        id
    }

    fn block(&self, id: Id) -> IPAMBlockSpec {
        self.kept.borrow().blocks[usize::from(id)].clone()
    }

    pub fn entries(&self, id: Id) -> Entries {
        if let Some(entries) = self.kept.borrow().entries.get(&id) {
            return *entries;
        }
        let (block, mut entries) = (self.block(id), [None; ADDRESSES]);
        for (address, entry) in block.entries() {
            if let Entry::Used { attribute, .. } = entry {
                let fixed = attribute.secondary(CLAIM_KEY).is_some();
                entries[usize::from(self.number(address))] = Some((container_of(attribute.handle().unwrap()), fixed));
            }
        }
        self.kept.borrow_mut().entries.insert(id, entries);
        entries
    }

    /// How many addresses a container has.
    pub fn borne(&self, id: Id, container: u8) -> u8 {
        self.entries(id).iter().flatten().filter(|(of, _)| *of == container).count() as u8
    }

    /// Gives a container an address of the block: with a generation the fixed one, else any that the reservations it
    /// knows of leave.
    pub fn assign(&self, id: Id, container: u8, reserved: bool, generation: Option<u64>) -> (Id, Written) {
        let key = (id, container, reserved, generation);
        if let Some(known) = self.kept.borrow().assigned.get(&key) {
            return *known;
        }
        let pod = State::pod_of(container);
        let node = format!("node{pod}");
        let mut allocation = Allocation::pod(handle(container), "default", &format!("pod{pod}"), &node, now());
        if let Some(generation) = generation {
            allocation.secondary.insert(CLAIM_KEY.to_owned(), generation.to_string());
        }
        let which = match generation {
            Some(generation) => Which::Exactly(self.address(FIXED), Some(generation)),
            None => Which::Any { own: false },
        };
        let listed = if reserved { vec![self.address(FIXED).to_string()] } else { Vec::new() };
        let spec = calico::IPReservationSpec { reserved_cidrs: listed, ..Default::default() };
        let mut edit = Edit::Assign(Box::new(Assign {
            which,
            allocation,
            ours: Affinity::Host(node),
            strict: false,
            cooldown: 0,
            ranges: None,
            reservations: Reservations::new(&[calico::IPReservation::new("kube-ipam-block", spec)]),
        }));
        let mut block = self.block(id);
        let (_, outcome) = edit.apply(&mut block, now());
        let written = match outcome {
            Ok(Outcome::Assigned { address, displaced }) => {
                Written::Address(self.number(address), displaced.as_deref().map(container_of))
            }
            Ok(Outcome::Full) => Written::Full,
            Err(Error::Taken { .. }) => Written::Taken,
            other => panic!("{other:?}"),
        };
        let result = (self.keep_block(block), written);
        self.kept.borrow_mut().assigned.insert(key, result);
        result
    }

    /// Releases what bears a container's handle; the fixed address, or another, if it had one.
    pub fn release(&self, id: Id, container: u8) -> (Id, Option<u8>) {
        if let Some(known) = self.kept.borrow().released.get(&(id, container)) {
            return *known;
        }
        let mut edit =
            Edit::Release(Release::new(&handle(container), Whose::Container { interface: Some("eth0".into()) }, 0));
        let mut block = self.block(id);
        let Ok(Outcome::Released { freed, others: false }) = edit.apply(&mut block, now()).1 else { unreachable!() };
        assert!(freed.len() <= 1, "{freed:?}");
        let result = (self.keep_block(block), freed.first().map(|freed| self.number(freed.address)));
        self.kept.borrow_mut().released.insert((id, container), result);
        result
    }

    /// Releases one address if it still is the container's; whether it was.
    pub fn free(&self, id: Id, address: u8, container: u8) -> (Id, bool) {
        if let Some(known) = self.kept.borrow().freed.get(&(id, address, container)) {
            return *known;
        }
        let mut block = self.block(id);
        let expect = Expect { handle: Some(handle(container)), sequence: None };
        let freed = block.release_address(self.address(address), &expect, 0, now()).is_ok_and(|freed| freed.is_some());
        let result = (self.keep_block(block), freed);
        self.kept.borrow_mut().freed.insert((id, address, container), result);
        result
    }

    // === handles ===

    /// A handle with one address counted off; `None` if it goes with it.
    pub fn count_off(&self, count: Option<u8>) -> Option<u8> {
        let mut spec = IPAMHandleSpec::new("net.c");
        spec.increment(&self.cidr, i64::from(count?));
        if spec.decrement(&self.cidr, 1).is_err() {
            return count;
        }
        (!spec.is_empty()).then(|| u8::try_from(spec.count(&self.cidr)).unwrap())
    }

    // === claims ===

    fn keep_claim(&self, claim: Claim) -> Id {
        let mut kept = self.kept.borrow_mut();
        let key = serde_json::to_string(&claim).unwrap();
        if let Some(known) = kept.claim_ids.get(&key) {
            return *known;
        }
        kept.claims.push(claim);
        let id = Id::try_from(kept.claims.len()).unwrap();
        kept.claim_ids.insert(key, id);
        id
    }

    fn claim(&self, id: Id) -> Option<Claim> {
        usize::from(id).checked_sub(1).map(|index| self.kept.borrow().claims[index].clone())
    }

    pub fn facts(&self, id: Id) -> Option<Facts> {
        if id == 0 {
            return None;
        }
        if let Some(facts) = self.kept.borrow().facts.get(&id) {
            return Some(*facts);
        }
        let claim = self.claim(id)?;
        let holder = claim.holder.as_ref().map(|holder| container_of(&format!("net.{}", holder.container_id)));
        let owner = claim.owner.name.strip_prefix("app").unwrap().parse().unwrap();
        let facts = Facts { owner, holder, generation: claim.generation };
        self.kept.borrow_mut().facts.insert(id, facts);
        Some(facts)
    }

    pub fn holder(&self, id: Id) -> Option<u8> {
        self.facts(id)?.holder
    }

    pub fn released(&self, id: Id) -> Id {
        self.claim(id).map_or(0, |claim| self.keep_claim(claim.released()))
    }

    /// What a container's ADD is to do about the claim that it has read.
    pub fn decide(&self, id: Id, container: u8, known: Known, paused: bool) -> Verdict {
        if let Some(verdict) = self.kept.borrow().decided.get(&(id, container, known, paused)) {
            return *verdict;
        }
        let (owner, holder) = (owner(self.owner_of(container).unwrap()), holder(container, paused));
        let asker = Asker { owner: &owner, holder: &holder };
        let evidence = known.map(|(found, in_block)| evidence(&found, in_block));
        let claim = self.claim(id);
        let decision = decide(self.address(FIXED), claim.as_ref(), &asker, evidence.as_ref(), &policy(), now());
        let verdict = self.verdict(decision);
        self.kept.borrow_mut().decided.insert((id, container, known, paused), verdict);
        verdict
    }

    /// The same once it is known whether the owner of a claim that nobody holds still exists.
    pub fn take_over(&self, id: Id, container: u8, owner_exists: bool, paused: bool) -> Verdict {
        let (owner, holder) = (owner(self.owner_of(container).unwrap()), holder(container, paused));
        let asker = Asker { owner: &owner, holder: &holder };
        self.verdict(claim::take_over(&self.claim(id).unwrap(), &asker, owner_exists, now()))
    }

    fn verdict(&self, decision: Decision) -> Verdict {
        match decision {
            Decision::Take(claim) => Verdict::Take(self.keep_claim(*claim)),
            Decision::Contest(claim) => Verdict::Contest(self.keep_claim(*claim)),
            Decision::Held => Verdict::Held,
            Decision::Examine => Verdict::Examine,
            Decision::ExamineOwner => Verdict::ExamineOwner,
            Decision::Wait(_) => Verdict::Wait,
            Decision::Refuse(_) => Verdict::Refuse,
        }
    }

    /// How the holder of a claim stands, by the collector's look.
    pub fn standing(&self, id: Id, found: Found, in_block: bool) -> Stands {
        if let Some(stands) = self.kept.borrow().stood.get(&(id, found, in_block)) {
            return *stands;
        }
        let stands = match standing(&self.claim(id).unwrap(), &evidence(&found, in_block), &policy(), now()) {
            Standing::Lost => Stands::Lost,
            Standing::Contest(claim) => Stands::Contest(self.keep_claim(*claim)),
            Standing::Keeps(_) => Stands::Keeps,
        };
        self.kept.borrow_mut().stood.insert((id, found, in_block), stands);
        stands
    }

    /// The claim after a pause: everything in it was long ago.
    pub fn aged(&self, id: Id) -> Id {
        if let Some(aged) = self.kept.borrow().aged.get(&id) {
            return *aged;
        }
        let Some(mut claim) = self.claim(id) else { return 0 };
        claim.contested = claim.contested.map(|_| long_ago());
        claim.created = long_ago();
        if let Some(holder) = &mut claim.holder {
            holder.since = long_ago();
        }
        let aged = self.keep_claim(claim);
        self.kept.borrow_mut().aged.insert(id, aged);
        aged
    }

    /// How many versions of blocks and claims there were.
    pub fn versions(&self) -> (usize, usize) {
        let kept = self.kept.borrow();
        (kept.blocks.len(), kept.claims.len())
    }

    pub fn containers() -> impl Iterator<Item = u8> {
        0..CONTAINERS as u8
    }
}

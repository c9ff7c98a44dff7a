//! The real side of the model: blocks, claims and handles are the types of the program, and change by its functions
//! alone. Each version is kept once, and a state names it by its number; what a function made of it is remembered.

use std::cell::RefCell;
use std::net::IpAddr;

use calico::{Affinity, Entry, Expect, Holder as Allocation, IPAMBlockSpec, IPAMHandleSpec, Reservations};
use ipnetwork::IpNetwork;
use jiff::{SignedDuration, Timestamp};
use kube_ipam::claim::Claim;
use kube_ipam::driver::edit::{Assign, Edit, Judged, Outcome, Release, Which, Whose};
use kube_ipam::driver::{CLAIM_KEY, Error};

use super::claims::{Facts, Known, Stands, Verdict};
use super::quick::Map;
use super::state::{ADDRESSES, CONTAINERS, FIXED, Found, Id, State};

/// Seconds from one moment of the model to the next: longer than a grace, and than the longest ADD.
pub const AGE: i64 = 1000;
const CIDR: &str = "10.0.0.0/31";

/// What came of writing an address.
#[derive(Debug, Clone, Copy)]
pub enum Written {
    Address(u8, Option<u8>),
    Full,
    Taken,
}

/// An address asked for: of which block, by whom, what it knows to be reserved, and by which generation of a claim.
type Asked = (Id, u8, bool, Option<u64>);
/// Who has each address, and whether by a claim.
pub type Entries = [Option<(u8, bool)>; ADDRESSES];

#[derive(Default)]
pub struct Kept {
    pub blocks: Vec<IPAMBlockSpec>,
    pub block_ids: Map<String, Id>,
    pub claims: Vec<Claim>,
    pub claim_ids: Map<String, Id>,
    pub assigned: Map<Asked, (Id, Written)>,
    pub released: Map<(Id, u8), (Id, Option<u8>)>,
    pub freed: Map<(Id, u8, u8), (Id, bool)>,
    pub entries: Vec<Entries>,
    pub decided: Map<(Id, u8, Known), Verdict>,
    pub stood: Map<(Id, Found, bool), Stands>,
    pub facts: Vec<Facts>,
    pub aged: Map<Id, Id>,
    pub twin_claims: Map<Id, Id>,
    pub twin_blocks: Map<Id, Id>,
}

/// The records of a model.
pub struct Records {
    /// The owner of each pod that wants the fixed address; `None` wants any.
    pub owners: [Option<u8>; super::state::PODS],
    pub cidr: IpNetwork,
    /// Whether an ADD judges a holder by the block that it read before the claim, as it once did.
    pub looks_once: bool,
    /// Whether an ADD answers however long ago it took its claim, as it once did.
    pub answers_late: bool,
    /// Whether an ADD answers for a claim that is contested.
    pub answers_contested: bool,
    /// Whether the search leaves out what makes no difference, see `settle`.
    pub reduces: bool,
    pub kept: RefCell<Kept>,
}

pub fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(10 * AGE)
}

fn handle(container: u8) -> String {
    format!("net.c{container}")
}

pub fn container_of(handle: &str) -> u8 {
    handle.strip_prefix("net.c").unwrap().parse().unwrap()
}

impl Records {
    pub fn new(owners: [Option<u8>; super::state::PODS]) -> Self {
        let cidr = CIDR.parse().unwrap();
        let (looks_once, answers_late, answers_contested) = (false, false, false);
        Self { owners, cidr, looks_once, answers_late, answers_contested, reduces: true, kept: RefCell::default() }
    }

    pub fn owner_of(&self, container: u8) -> Option<u8> {
        self.owners[State::pod_of(container)]
    }

    pub fn address(&self, number: u8) -> IpAddr {
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
    pub fn keep_block(&self, mut block: IPAMBlockSpec) -> Id {
        block.sequence_number = 0;
        block.sequence_number_for_allocation.values_mut().for_each(|number| *number = 0);
        block.validate().unwrap();
        let mut kept = self.kept.borrow_mut();
        let key = serde_json::to_string(&block).unwrap();
        let id = Id::try_from(kept.blocks.len()).unwrap();
        if let Some(known) = kept.block_ids.get(&key) {
            return *known;
        }
        kept.entries.push(self.entries_of(&block));
        kept.blocks.push(block);
        kept.block_ids.insert(key, id);
        id
    }

    pub fn block(&self, id: Id) -> IPAMBlockSpec {
        self.kept.borrow().blocks[usize::from(id)].clone()
    }

    fn entries_of(&self, block: &IPAMBlockSpec) -> Entries {
        let mut entries = [None; ADDRESSES];
        for (address, entry) in block.entries() {
            if let Entry::Used { attribute, .. } = entry {
                let fixed = attribute.secondary(CLAIM_KEY).is_some();
                entries[usize::from(self.number(address))] = Some((container_of(attribute.handle().unwrap()), fixed));
            }
        }
        entries
    }

    pub fn entries(&self, id: Id) -> Entries {
        self.kept.borrow().entries[usize::from(id)]
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
        let mut block = self.block(id);
        // In the model claims say the truth: whose entry is of an earlier generation was judged when the claim passed on.
        let displaces = match block.entry(self.address(FIXED)) {
            Entry::Used { attribute, sequence } => Some(Judged::new(attribute, sequence)),
            _ => None,
        };
        let mut edit = Edit::Assign(Box::new(Assign {
            which,
            allocation,
            renews: false,
            displaces,
            ours: Affinity::Host(node),
            strict: false,
            cooldown: 0,
            ranges: None,
            reservations: Reservations::new(&[calico::IPReservation::new("kube-ipam-block", spec)]),
        }));
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

    /// How many versions of blocks and claims there were.
    pub fn versions(&self) -> (usize, usize) {
        let kept = self.kept.borrow();
        (kept.blocks.len(), kept.claims.len())
    }

    pub fn containers() -> impl Iterator<Item = u8> {
        0..CONTAINERS as u8
    }
}

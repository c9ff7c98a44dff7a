//! What the model is in at one moment: the records, the cluster, and every call under way at its next request.

use std::hash::{Hash, Hasher};

/// Pods, and their nodes: pod `n` is on node `n`.
pub const PODS: usize = 3;
/// Each pod has at most this many sandboxes, one after the other.
pub const SANDBOXES: usize = 2;
/// Containers: sandbox `s` of pod `p` is `p * SANDBOXES + s`.
pub const CONTAINERS: usize = PODS * SANDBOXES;
/// Both addresses of the block. The first is the fixed one.
pub const ADDRESSES: usize = 2;
/// The fixed address.
pub const FIXED: u8 = 0;

/// A number by which [`super::records::Records`] knows a block or a claim; of claims, 0 is none.
pub type Id = u16;

/// A pod object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pod {
    Alive,
    Terminating,
    /// Whether longer ago than every grace.
    Gone {
        long: bool,
    },
}

/// A node: what its object says, and whether anything runs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    pub ready: bool,
    pub runs: bool,
}

/// A container, as its kubelet knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sandbox {
    Unborn,
    Adding,
    /// ADD has answered with this address.
    Given(u8),
    /// DEL is to be called, before the pod gets another sandbox.
    Ended,
    /// DEL is to be called, but something went wrong with the container, and it may come late.
    Left,
    Deleting,
    Deleted,
}

/// Where a call stands: the request that it sends next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    Idle,
    // ADD
    Cluster,
    ReadClaim,
    SwapClaim,
    ReadAfterNoAnswer,
    Examine,
    ExamineOwner,
    Wait,
    Reserve,
    MakeHandle,
    WriteBlock,
    CountOff,
    LastLook,
    // what a failed ADD takes back
    UndoBlock,
    UndoHolder,
    UndoHandle,
    UndoClaim,
    /// Whether there is a claim that the reservation is for; then the write, also of a DEL.
    ReadForReservation,
    Unreserve,
    // DEL
    ReadHandle,
    FreeBlock,
    ClearHolder,
    DropHandle,
    GiveUpClaim,
}

/// What an ADD found out about a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Found {
    pub pod: Pod,
    pub node: Node,
}

/// A call under way. What it does not need any more is as in [`Call::IDLE`], so that equal futures are equal states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub at: At,
    /// The claim as it was read last.
    pub claim: Id,
    /// The claim that is about to be written, and whether it only starts a grace.
    pub next: Id,
    pub contests: bool,
    pub found: Option<Found>,
    /// Whether the block, when it was read, had the fixed address under this container's handle.
    pub entry: Option<u8>,
    /// Whether the list of reservations had the fixed address.
    pub reserved: bool,
    /// The generation of the claim by which it is to write the address (0: by none), and what must be taken back: the
    /// claim, which was the first there or not, and the handle.
    pub generation: u8,
    pub first: Option<bool>,
    pub handle: bool,
    /// Whose handle is to be counted off.
    pub displaced: Option<u8>,
    /// The address that was written or freed.
    pub address: Option<u8>,
    /// Whether it stood still for longer than every lease.
    pub paused: bool,
}

/// What the collector is repairing; see `collector`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Repair {
    Nothing,
    /// Clear this claim's holder, whose allocation was or was not seen: the allocation, the claim (0: it was written
    /// since), the handle.
    FreeHolders(Id, Option<u8>),
    SettleClaim(Id, Option<u8>),
    /// Start the grace of this claim's holder: what to write in its place.
    Contest(Id, Id),
    /// Free this container's address.
    Free(u8, u8),
    CountOff(u8),
    /// Make this container's handle, as it was seen, count what the block was seen to bear; then what it bears now.
    Recount(u8, Option<u8>, u8),
    Raise(u8),
    /// Put the fixed address into the reservation, or take it out, each with a look at the claim behind it.
    Mirror,
    LookAfterMirror,
    Unmirror,
    LookAfterUnmirror,
    MirrorAgain,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    pub faults: u8,
    pub block: Id,
    pub claim: Id,
    pub reserved: bool,
    /// What each container's handle counts in the block.
    pub handles: [Option<u8>; CONTAINERS],
    /// Notes on the nodes that an ADD is about to take claims.
    pub noted: [bool; CONTAINERS],
    pub pods: [Pod; PODS],
    pub nodes: [Node; PODS],
    pub sandboxes: [Sandbox; CONTAINERS],
    pub calls: [Call; CONTAINERS],
    pub repair: Repair,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The kubelet calls ADD or DEL for a container.
    Add(u8),
    Del(u8),
    /// A call's next request, with what goes wrong with it.
    Step(u8, Fault),
    /// A waiting ADD gives up.
    GiveUp(u8),
    /// The collector begins a repair, or goes on with it.
    Begin(Repair),
    Repair(Fault),
    /// A pod is deleted. Its object goes with its last container.
    Delete(u8),
    /// The same while this container's ADD is about to send its first request.
    DeleteMeanwhile(u8),
    /// Faults of the cluster: deleted by force, the sandbox died, the node died, the node is cut off, a pause that is
    /// longer than every lease.
    DeleteByForce(u8),
    SandboxDies(u8),
    NodeDies(u8),
    NodeIsCutOff(u8),
    Pause,
}

/// What goes wrong with one request. A reply that is lost, a time-out, a 429 or 500 are one of these: the call goes on by
/// itself (what every loop of writes does), or it fails, and the write was carried out or it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    None,
    /// The caller dies before it, or after it.
    DieBefore,
    DieAfter,
    /// It is answered by an error, and was not carried out, or was.
    FailBefore,
    FailAfter,
}

/// Two words: most of the time goes into the hashes of states.
impl Hash for Call {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let small = |number: Option<u8>| number.map_or(0, |n| u64::from(n) + 1);
        let found = self.found.map_or(0, |found| {
            let pod = match found.pod {
                Pod::Alive => 1,
                Pod::Terminating => 2,
                Pod::Gone { long } => 3 + u64::from(long),
            };
            pod << 2 | u64::from(found.node.ready) << 1 | u64::from(found.node.runs)
        });
        let flags = [self.contests, self.reserved, self.handle, self.paused];
        let flags = flags.iter().fold(0, |bits, flag| bits << 1 | u64::from(*flag));
        let first = self.first.map_or(0, |first| 1 + u64::from(first));
        let ids = [self.claim, self.next, u16::from(self.generation)];
        let ids = ids.iter().fold(0, |bits, id| bits << 16 | u64::from(*id));
        hasher.write_u64(ids << 8 | self.at as u64);
        let numbers = small(self.entry) | small(self.displaced) << 4 | small(self.address) << 8;
        hasher.write_u64(numbers | first << 12 | flags << 14 | found << 20);
    }
}

impl Call {
    pub const IDLE: Call = Call {
        at: At::Idle,
        claim: 0,
        next: 0,
        contests: false,
        found: None,
        entry: None,
        reserved: false,
        generation: 0,
        first: None,
        handle: false,
        displaced: None,
        address: None,
        paused: false,
    };

    pub fn at(at: At) -> Call {
        Call { at, ..Call::IDLE }
    }

    /// Whether the next request changes anything.
    pub fn writes(&self) -> bool {
        !matches!(
            self.at,
            At::Idle
                | At::Cluster
                | At::ReadClaim
                | At::ReadAfterNoAnswer
                | At::Examine
                | At::ExamineOwner
                | At::Wait
                | At::LastLook
                | At::ReadForReservation
                | At::ReadHandle
        )
    }

    pub fn is_add(&self) -> bool {
        !matches!(
            self.at,
            At::Idle | At::ReadHandle | At::FreeBlock | At::ClearHolder | At::DropHandle | At::GiveUpClaim
        )
    }
}

impl State {
    pub fn pod_of(container: u8) -> usize {
        usize::from(container) / SANDBOXES
    }

    pub fn node_of(&self, container: u8) -> Node {
        self.nodes[State::pod_of(container)]
    }

    pub fn exists(&self, pod: usize) -> bool {
        !matches!(self.pods[pod], Pod::Gone { .. })
    }

    pub fn is_idle(&self) -> bool {
        self.calls.iter().all(|call| call.at == At::Idle) && self.repair == Repair::Nothing
    }
}

//! Claims in the model: by the program's own decisions.

use jiff::{SignedDuration, Timestamp};
use kube_ipam::claim::{
    self, Asker, Claim, Decision, Evidence, Fencing, Holder, NodeState, PodState, Policy, Standing, decide, standing,
};
use kube_ipam::pod::Owner;

use super::records::{AGE, Records, container_of, now};
use super::state::{FIXED, Found, Id, Pod, State};

/// What the model needs to know of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub owner: u8,
    pub holder: Option<u8>,
    pub generation: u64,
    pub contested: bool,
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

/// Whose pod a decision is about, as far as it is known.
pub type Known = Option<(Found, bool)>;

fn long_ago() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(AGE)
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

/// The container as a holder that takes the claim now.
fn holder(container: u8) -> Holder {
    let pod = State::pod_of(container);
    Holder {
        pod_uid: format!("uid{pod}"),
        pod: format!("pod{pod}"),
        container_id: format!("c{container}"),
        interface: "eth0".into(),
        node: format!("node{pod}"),
        node_uid: Some(format!("node-uid{pod}")),
        since: now(),
        unknown: Default::default(),
    }
}

fn policy() -> Policy {
    Policy { fencing: Fencing::PodDeleted, grace: SignedDuration::from_secs(60) }
}

fn evidence(found: &Found, in_block: bool, elsewhere: bool) -> Evidence {
    let pod = match found.pod {
        Pod::Alive => PodState::Alive,
        Pod::Terminating => PodState::Terminating,
        Pod::Gone { .. } => PodState::Gone,
    };
    let node = if found.node.ready { NodeState::Ready } else { NodeState::NotReady };
    Evidence { pod, node, in_block, elsewhere }
}

impl Facts {
    fn of(claim: &Claim) -> Self {
        let holder = claim.holder.as_ref().map(|holder| container_of(&format!("net.{}", holder.container_id)));
        let owner = claim.owner.name.strip_prefix("app").unwrap().parse().unwrap();
        Self { owner, holder, generation: claim.generation, contested: claim.contested.is_some() }
    }
}

impl Records {
    pub fn keep_claim(&self, claim: Claim) -> Id {
        let mut kept = self.kept.borrow_mut();
        let key = serde_json::to_string(&claim).unwrap();
        if let Some(known) = kept.claim_ids.get(&key) {
            return *known;
        }
        kept.facts.push(Facts::of(&claim));
        kept.claims.push(claim);
        let id = Id::try_from(kept.claims.len()).unwrap();
        kept.claim_ids.insert(key, id);
        id
    }

    pub fn claim(&self, id: Id) -> Option<Claim> {
        usize::from(id).checked_sub(1).map(|index| self.kept.borrow().claims[index].clone())
    }

    pub fn facts(&self, id: Id) -> Option<Facts> {
        usize::from(id).checked_sub(1).map(|index| self.kept.borrow().facts[index])
    }

    pub fn holder(&self, id: Id) -> Option<u8> {
        self.facts(id)?.holder
    }

    pub fn released(&self, id: Id) -> Id {
        self.claim(id).map_or(0, |claim| self.keep_claim(claim.released()))
    }

    /// What a container's ADD is to do about the claim that it has read.
    pub fn decide(&self, id: Id, container: u8, known: Known) -> Verdict {
        if let Some(verdict) = self.kept.borrow().decided.get(&(id, container, known)) {
            return *verdict;
        }
        let (owner, holder) = (owner(self.owner_of(container).unwrap()), holder(container));
        let asker = Asker { owner: &owner, holder: &holder };
        let evidence = known.map(|(found, in_block)| evidence(&found, in_block, false));
        let claim = self.claim(id);
        let decision = decide(self.address(FIXED), claim.as_ref(), &asker, evidence.as_ref(), &policy(), now());
        let verdict = self.verdict(decision);
        self.kept.borrow_mut().decided.insert((id, container, known), verdict);
        verdict
    }

    /// The same once it is known that the owner of a claim that nobody holds still exists, as all of them do here.
    pub fn take_over(&self, id: Id, container: u8) -> Verdict {
        let (owner, holder) = (owner(self.owner_of(container).unwrap()), holder(container));
        let asker = Asker { owner: &owner, holder: &holder };
        self.verdict(claim::take_over(&self.claim(id).unwrap(), &asker, true, now()))
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

    /// How the holder of a claim stands, by the collector's look. There is one fixed address here, so no pod has another
    /// one; but the collector believes it of every pod whose container is not in the block.
    pub fn standing(&self, id: Id, found: Found, in_block: bool) -> Stands {
        if let Some(stands) = self.kept.borrow().stood.get(&(id, found, in_block)) {
            return *stands;
        }
        let evidence = evidence(&found, in_block, !in_block);
        let stands = match standing(&self.claim(id).unwrap(), &evidence, &policy(), now()) {
            Standing::Lost => Stands::Lost,
            Standing::Contest(claim) => Stands::Contest(self.keep_claim(*claim)),
            Standing::Keeps(_) => Stands::Keeps,
        };
        self.kept.borrow_mut().stood.insert((id, found, in_block), stands);
        stands
    }

    /// The claim after a pause: holder and contest are of long ago. By when it was made nothing is decided here.
    pub fn aged(&self, id: Id) -> Id {
        if let Some(aged) = self.kept.borrow().aged.get(&id) {
            return *aged;
        }
        let Some(mut claim) = self.claim(id) else { return 0 };
        claim.contested = claim.contested.map(|_| long_ago());
        if let Some(holder) = &mut claim.holder {
            holder.since = long_ago();
        }
        let aged = self.keep_claim(claim);
        self.kept.borrow_mut().aged.insert(id, aged);
        aged
    }
}

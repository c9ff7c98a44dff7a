//! A claim as etcd or an IPClaim holds it: `{"claim": {...}, "asker": {...}, "owner": {...}, "seconds": n, "network": "..."}`,
//! where the claim is the value of the key or the spec of the object.

use calico::Affinity;
use jiff::{SignedDuration, Timestamp};
use kube_ipam::claim::{
    self, Asker, Claim, Decision, Evidence, Fencing, Holder, NodeState, Obstacle, PodState, Policy, Standing,
};
use kube_ipam::pod::Owner;
use kube_ipam::store::ipclaim::{IPClaim, IPClaimSpec, object_name};
use serde_json::{Value, json as object};

use super::json;

const PODS: [PodState; 4] = [PodState::Alive, PodState::Terminating, PodState::Finished, PodState::Gone];
const NODES: [NodeState; 4] = [NodeState::Ready, NodeState::NotReady, NodeState::OutOfService, NodeState::Deleted];

pub fn run(data: &[u8]) {
    let Some(input) = json(data) else { return };
    let network = input["network"].as_str().unwrap_or("kube-subnet");
    if let Ok(spec) = serde_json::from_value::<IPClaimSpec>(input["claim"].clone()) {
        let written = serde_json::to_value(&spec).unwrap();
        assert_eq!(serde_json::from_value::<IPClaimSpec>(written).unwrap(), spec);
    }
    let Ok(claim) = serde_json::from_value::<Claim>(input["claim"].clone()) else { return };
    round_trip(&input["claim"], &claim, network);
    let own = claim.holder.clone();
    let holder = serde_json::from_value::<Holder>(input["asker"].clone()).ok().or(own);
    let owner = serde_json::from_value::<Owner>(input["owner"].clone()).unwrap_or_else(|_| claim.owner.clone());
    if let Some(holder) = holder {
        let seconds = input["seconds"].as_i64().unwrap_or(1_800_000_000);
        let now = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        decisions(&claim, &Asker { owner: &owner, holder: &holder }, now);
    }
}

/// What is written is what was read, in both ledgers, with every field that this version does not know.
fn round_trip(value: &Value, claim: &Claim, network: &str) {
    let written = serde_json::to_value(claim).unwrap();
    assert_eq!(&serde_json::from_value::<Claim>(written.clone()).unwrap(), claim);
    for key in claim.unknown.keys() {
        assert_eq!(written.get(key), value.get(key), "{key} was lost");
    }
    let stored = IPClaimSpec::new(network, claim).object(Default::default());
    let name = stored.metadata.name.clone().unwrap();
    assert_eq!(name, object_name(network, claim.address));
    let permitted = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    assert!(name.len() <= 253 && name.chars().all(permitted) && !name.starts_with(['-', '.']), "{name:?}");
    // What two fields of one name mean is not ours to say: no claim bears them.
    if claim.unknown.keys().all(|key| key != "network" && key != "ownedBy") {
        let back: IPClaim = serde_json::from_value(serde_json::to_value(&stored).unwrap()).unwrap();
        assert_eq!(&back.spec.claim, claim);
    }
}

fn decisions(claim: &Claim, asker: &Asker<'_>, now: Timestamp) {
    let _ = (claim.released(), claim.held_by(asker), claim.owner.to_string(), Affinity::host(&asker.holder.node));
    for fencing in [Fencing::PodDeleted, Fencing::NodeFenced] {
        for grace in [0, 30, i64::MAX] {
            let policy = Policy { fencing, grace: SignedDuration::from_secs(grace) };
            for evidence in evidence() {
                let decision = claim::decide(claim.address, Some(claim), asker, evidence.as_ref(), &policy, now);
                is_lawful(claim, asker, evidence.as_ref(), &policy, &decision, now);
            }
        }
    }
    assert!(matches!(claim::take_over(claim, asker, true, now), Decision::Refuse(Obstacle::OtherOwner)));
}

fn evidence() -> impl Iterator<Item = Option<Evidence>> {
    const SEEN: [(bool, bool); 3] = [(true, false), (false, false), (false, true)];
    let of = |pod| {
        let seen = move |node| SEEN.map(|(in_block, elsewhere)| Some(Evidence { pod, node, in_block, elsewhere }));
        NODES.into_iter().flat_map(seen)
    };
    PODS.into_iter().flat_map(of).chain([None])
}

/// An address passes on only from nobody, within a pod, or where the holder has lost it; each time a generation later.
fn is_lawful(
    claim: &Claim,
    asker: &Asker<'_>,
    evidence: Option<&Evidence>,
    policy: &Policy,
    decision: &Decision,
    now: Timestamp,
) {
    let Decision::Take(next) = decision else {
        if let Decision::Held = decision {
            assert_eq!(claim.holder.as_ref().map(|holder| &holder.pod_uid), Some(&asker.holder.pod_uid));
        }
        return;
    };
    assert!(claim.moved.is_none(), "a claim that was carried away is taken");
    assert_eq!(next.address, claim.address);
    assert_eq!(next.owner, claim.owner, "another owner's");
    assert_eq!(next.holder.as_ref(), Some(asker.holder));
    assert_eq!(next.generation, claim.generation.saturating_add(1));
    assert_eq!(next.unknown, claim.unknown, "fields were lost");
    let Some(holder) = &claim.holder else { return };
    if holder.pod_uid != asker.holder.pod_uid {
        let evidence = evidence.expect("it is taken unseen");
        assert_eq!(claim::standing(claim, evidence, policy, now), Standing::Lost, "{}", object!(claim));
        assert!(evidence.pod != PodState::Alive || evidence.elsewhere, "from a pod that runs");
    }
}

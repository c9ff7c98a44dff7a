//! Calico's objects among themselves: I1 across blocks, I4, I5, I6, and deletions that stopped half way.

use calico::invariants::{
    self, affinities_match_blocks, blocks_have_their_shape, handles_count_allocations, one_holder_per_address,
};
use calico::{AffinityState, BlockAffinity};
use kube::ResourceExt as _;

use super::party::is_handle_of;
use super::{Class, Snapshot, Violation, by_itself};

pub(super) fn violations(snapshot: &Snapshot) -> Vec<Violation> {
    let (blocks, affinities) = (&snapshot.blocks, &snapshot.affinities);
    let mut found = Vec::new();
    let mut take = |class, violations: Vec<invariants::Violation>, remedy: &dyn Fn(&str) -> String| {
        let violation = |v: invariants::Violation| {
            let remedy = remedy(&v.object);
            Violation::new(class, v.object, v.detail, remedy)
        };
        found.extend(violations.into_iter().map(violation));
    };
    take(Class::BlocksOverlap, one_holder_per_address(blocks), &|_| {
        "move the pods of one of the two blocks away, then delete that block".to_owned()
    });
    take(Class::HandleCount, handles_count_allocations(blocks, &snapshot.handles), &|object| match is_ours(
        snapshot, object,
    ) {
        true => by_itself(RECOUNT),
        false => RECOUNT.to_owned(),
    });
    take(Class::BlockShape, blocks_have_their_shape(blocks), &|_| {
        "nothing is assigned from it as it is: restore it from a backup, or move its pods away and delete it".to_owned()
    });
    take(Class::AffinityMismatch, affinities_match_blocks(blocks, affinities), &|_| {
        by_itself("restart calico-node on that node, or delete the affinity if the node is gone")
    });
    found.extend(affinities.iter().filter(|a| !a.is_deleted() && !a.is_confirmed()).map(half_done));
    found.extend(leftovers(snapshot));
    found
}

/// Who sets a handle's counts right that is not this network's.
const RECOUNT: &str =
    "a DEL of the container, or `calicoctl ipam release` by a report of `calicoctl ipam check`, sets it right";

/// Whether the collector of the network that is judged counts a handle anew.
fn is_ours(snapshot: &Snapshot, object: &str) -> bool {
    let handle = object.strip_prefix("IPAMHandle/");
    snapshot.net.as_ref().zip(handle).is_some_and(|(net, handle)| is_handle_of(&net.network, handle))
}

/// Neither pending nor on its way out is a state to stay in.
fn half_done(affinity: &BlockAffinity) -> Violation {
    let spec = &affinity.spec;
    let remedy = by_itself(if spec.state == AffinityState::Pending.as_str() {
        "the next assignment on that node completes it; delete the affinity if the node is gone"
    } else {
        "delete the affinity if its block is gone, or set its state to confirmed"
    });
    let detail = format!("node {}'s claim to block {} stays {}", spec.node, spec.cidr, spec.state);
    Violation::new(Class::HalfDoneAffinity, format!("BlockAffinity/{}", affinity.name_any()), detail, remedy)
}

fn leftovers(snapshot: &Snapshot) -> impl Iterator<Item = Violation> {
    let blocks = snapshot.blocks.iter().filter(|b| b.spec.is_deleted()).map(|b| ("IPAMBlock", b.name_any()));
    let handles = snapshot.handles.iter().filter(|h| h.spec.is_deleted()).map(|h| ("IPAMHandle", h.name_any()));
    let affinities = snapshot.affinities.iter().filter(|a| a.is_deleted()).map(|a| ("BlockAffinity", a.name_any()));
    let group = snapshot.group.group();
    blocks.chain(handles).chain(affinities).map(move |(kind, name)| {
        let remedy = by_itself(&format!("kubectl delete {}.{group} {name}", plural(kind)));
        Violation::new(
            Class::DeletedLeftover,
            format!("{kind}/{name}"),
            "is marked deleted and was not deleted",
            remedy,
        )
    })
}

fn plural(kind: &str) -> String {
    match kind {
        "BlockAffinity" => "blockaffinities".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    }
}

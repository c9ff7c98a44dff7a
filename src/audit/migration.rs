//! What would hold up Calico's migration to its newer API group.

use calico::{ApiGroup, IPAMHandle};
use kube::ResourceExt as _;

use super::{Class, Snapshot, Violation};

/// Said beforehand, while the older group is in use.
pub(super) fn notes(snapshot: &Snapshot) -> Vec<Violation> {
    if snapshot.group != ApiGroup::Crd {
        return Vec::new();
    }
    let (older, newer) = (ApiGroup::Crd, ApiGroup::V3);
    let early = snapshot.early.iter().map(|object| {
        let detail =
            format!("is in {newer} while {older} is in use: Calico's migration takes it for a conflict and waits");
        let remedy = format!("before that migration delete what is in {newer}; what {older} has is copied by it");
        Violation::new(Class::Early, object, detail, remedy)
    });
    let with_capitals = |handle: &&IPAMHandle| handle.spec.handle_id.contains(|c: char| c.is_ascii_uppercase());
    let handles = snapshot.handles.iter().filter(with_capitals).map(|handle| {
        let detail = format!(
            "is of {:?}: Calico's migration to {newer} names it so, which no object can be called, and fails at it",
            handle.spec.handle_id
        );
        let remedy = "before that migration give the network a name without capitals (name of Calico's conflist), and start \
                      its pods anew";
        Violation::new(Class::HandleCase, format!("IPAMHandle/{}", handle.name_any()), detail, remedy)
    });
    early.chain(handles).collect()
}

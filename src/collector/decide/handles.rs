//! Handles whose deletion stopped half way, and those of this network that do not count what the blocks bear.

use std::collections::BTreeSet;

use calico::{IPAMHandle, handle_name};
use ipnetwork::IpNetwork;
use kube::ResourceExt as _;

use super::{Finding, Needs, Scene, Task};
use crate::audit::party::is_handle_of;
use crate::collector::census::{Counts, counted};
use crate::collector::{Kind, PodName, Repair};
use crate::driver::POD_UID_KEY;

/// What the blocks say of one handle.
#[derive(Default)]
struct Borne {
    /// The id as it was assigned.
    id: String,
    counts: Counts,
    /// Whether an allocation says that it is of this network.
    ours: bool,
    pod: Option<PodName>,
}

pub(super) fn findings(scene: &Scene<'_>) -> Vec<Finding> {
    // A block that contradicts itself may not tell who has its addresses.
    let malformed = &scene.census.blocks.malformed;
    let readable = |counts: &Counts| counts.keys().all(|cidr| !malformed.contains(cidr));
    let mut found = Vec::new();
    for handle in &scene.census.handles.kept {
        if handle.spec.is_deleted() {
            found.push(unfinished(scene, handle));
            continue;
        }
        let bears = borne(scene, handle.name_any());
        let counted = counted(handle);
        let right = counted.as_ref() == Some(&bears.counts) && !bears.counts.is_empty();
        let counted = counted.unwrap_or_default();
        if !right && is_ours(scene, handle, &bears) && readable(&bears.counts) && readable(&counted) {
            found.push(miscounted(scene, handle, &counted, &bears));
        }
    }
    let ids = scene.census.blocks.all(&scene.census.pods).filter_map(|used| used.party.handle);
    let unknown = ids.filter(|id| !id.is_empty() && !scene.census.handles.has(id));
    let unknown: BTreeSet<String> = unknown.map(handle_name).collect();
    let absentees = unknown.into_iter().map(|name| borne(scene, name)).filter(|bears| bears.ours);
    found.extend(absentees.filter(|bears| readable(&bears.counts)).map(|bears| absent(scene, &bears)));
    found
}

fn borne(scene: &Scene<'_>, name: String) -> Borne {
    let mut bears = Borne { counts: scene.census.blocks.borne_by(name.clone()), ..Borne::default() };
    for used in scene.census.blocks.under(name, &scene.census.pods) {
        bears.id = used.party.handle.unwrap_or_default().to_owned();
        bears.ours |= used.party.is_of_network(&scene.rules.network);
        bears.pod = used.party.pod().map(|(namespace, name)| PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: used.party.uid.map(str::to_owned),
        });
    }
    bears
}

fn is_ours(scene: &Scene<'_>, handle: &IPAMHandle, bears: &Borne) -> bool {
    // Under another name nobody looks for it, and a repair would write the one under the right name.
    handle.name_any() == handle_name(&handle.spec.handle_id)
        && (bears.ours
            || handle.annotations().contains_key(POD_UID_KEY)
            || is_handle_of(&scene.rules.network, &handle.spec.handle_id))
}

fn unfinished(scene: &Scene<'_>, handle: &IPAMHandle) -> Finding {
    let kind = Kind::HandleRemoved;
    Finding {
        key: (kind, version(handle)),
        patience: Some(scene.rules.options.settle),
        not_before: None,
        needs: Needs { handles: vec![handle.name_any()], ..Needs::default() },
        repair: repair(kind, &handle.name_any(), "was marked deleted and had not been deleted".into(), None),
        task: Task::RemoveHandle(Box::new(handle.clone())),
    }
}

fn miscounted(scene: &Scene<'_>, handle: &IPAMHandle, counted: &Counts, bears: &Borne) -> Finding {
    let kind = if bears.counts.is_empty() { Kind::HandleRemoved } else { Kind::HandleCorrected };
    let detail = format!("counted {}, where the blocks bear {}", words(counted), words(&bears.counts));
    let among: BTreeSet<IpNetwork> = counted.keys().chain(bears.counts.keys()).copied().collect();
    let among: Vec<IpNetwork> = among.into_iter().collect();
    Finding {
        key: (kind, version(handle)),
        // An ADD counts up before it writes its block.
        patience: Some(scene.rules.options.longest_add()),
        not_before: None,
        needs: Needs { handles: vec![handle.name_any()], blocks: among.clone(), ..Needs::default() },
        repair: repair(kind, &handle.name_any(), detail, bears.pod.clone()),
        task: Task::Recount(handle.spec.handle_id.clone(), Some(Box::new(handle.clone())), among),
    }
}

fn absent(scene: &Scene<'_>, bears: &Borne) -> Finding {
    let kind = Kind::HandleCorrected;
    let detail = format!("did not exist, where the blocks bear {}", words(&bears.counts));
    let among: Vec<IpNetwork> = bears.counts.keys().copied().collect();
    let name = handle_name(&bears.id);
    Finding {
        key: (kind, format!("{name} absent")),
        patience: Some(scene.rules.options.longest_add()),
        not_before: None,
        needs: Needs { handles: vec![name.clone()], blocks: among.clone(), ..Needs::default() },
        repair: repair(kind, &name, detail, bears.pod.clone()),
        task: Task::Recount(bears.id.clone(), None, among),
    }
}

fn repair(kind: Kind, name: &str, detail: String, pod: Option<PodName>) -> Repair {
    Repair { kind, object: format!("IPAMHandle/{name}"), detail, pod, node: None }
}

fn version(handle: &IPAMHandle) -> String {
    let (uid, version) = (handle.uid(), handle.resource_version());
    format!("{} {} {}", handle.name_any(), uid.unwrap_or_default(), version.unwrap_or_default())
}

/// "2 in 10.0.0.0/26", "nothing".
fn words(counts: &Counts) -> String {
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    counts.iter().map(|(cidr, count)| format!("{count} in {cidr}")).collect::<Vec<_>>().join(", ")
}

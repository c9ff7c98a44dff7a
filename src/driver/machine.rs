//! Virtual machines of KubeVirt, whose addresses outlive their pods.
//!
//! A machine's addresses bear one handle, which has the machine's id in the place of a container's; to claims the holder is
//! the machine, too. A pod only comes to a side of them, or leaves it: the active one, or the alternate one as the target
//! of a live migration. They are released when the machine itself goes and nobody is left on a side.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use calico::machine::{self, Party, Side};
use calico::{
    AllocationAttribute, Entry, Family, Holder as Allocation, IPAMBlockSpec, IPAMConfig, IPAMConfigSpec, IPAMHandle,
    handle_name,
};
use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::converge::Known;
use super::edit::{Edit, Outcome, Whose, generation_of};
use super::release::HeldBy;
use super::snapshot::{Snapshot, pod_state};
use super::undo::Done;
use super::wants::Want;
use super::{
    Attachment, CLAIM_KEY, CONTAINER_KEY, CONTAINERS_POD_KEY, Driver, Error, Freed, PodRef, Trace, Unrecorded,
    handle_of,
};
use crate::claim::PodState;
use crate::cni::{CniError, code};
use crate::pod::{
    self, Launcher, is_machine_ending, machine_by_name, machine_objects, machine_of_instance, may_be_launcher,
};
use crate::store::{Failure, Ledger, Objects, StoreError};

/// How often what another pod of the machine is about to record is looked for.
const LOOKS: usize = 20;
/// Pause between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// A virtual machine, and what a pod of it is to it.
#[derive(Clone)]
pub(super) struct Machine {
    /// What its handle has in the place of a container's id.
    pub id: String,
    /// The pod's side.
    pub side: Side,
    /// What the pod writes on that side.
    pub party: Party,
}

/// An address that a machine has on record.
#[derive(Clone)]
pub(super) struct Owned {
    pub address: IpAddr,
    pub cidr: IpNetwork,
    pub attribute: AllocationAttribute,
}

/// A change of sides in one block: a pod comes, or a pod leaves.
pub struct Sides {
    /// The machine's handle.
    handle: String,
    change: Change,
    /// `ipCooldownSeconds`.
    pub(super) cooldown: i64,
}

enum Change {
    /// The party takes a side, with the generation of the claim on each fixed address.
    Come(Side, Party, BTreeMap<IpAddr, u64>),
    /// The pod leaves whichever side it is on.
    Leave(Leaver),
}

/// A pod that leaves.
struct Leaver {
    namespace: String,
    pod: String,
    uid: Option<String>,
    /// Its container; empty if it never had one.
    container: String,
    /// Whether it is the pod's last one: then a side that names no container is the pod's to leave.
    last: bool,
}

// === impl Machine ===

impl Machine {
    /// An attachment as the machine's: its handle, and its part in claims, are the machine's.
    pub(super) fn attachment<'a>(&'a self, of: &Attachment<'a>) -> Attachment<'a> {
        Attachment { container_id: &self.id, interface: "", ..*of }
    }

    /// An allocation for its first pod.
    pub(super) fn allocation(&self, handle: String) -> Allocation {
        Allocation { handle, secondary: self.party.clone() }
    }
}

// === impl Sides ===

impl Sides {
    pub(super) fn apply(&self, block: &mut IPAMBlockSpec) -> bool {
        let mut changed = false;
        for (address, attribute) in self.entries(block) {
            match &self.change {
                Change::Come(side, party, generations) => {
                    let mut party = party.clone();
                    // A target's entry is as fixed as the source's.
                    let generation = generations.get(&address).copied().or_else(|| recorded_generation(&attribute));
                    if let Some(generation) = generation {
                        party.insert(CLAIM_KEY.to_owned(), generation.to_string());
                    }
                    changed |= block.set_side(address, *side, Some(party));
                }
                Change::Leave(leaver) => {
                    for side in Side::BOTH {
                        if attribute.side(side).is_some_and(|party| leaver.is(party)) {
                            changed |= block.set_side(address, side, None);
                        }
                    }
                }
            }
        }
        changed
    }

    pub(super) fn outcome(&self, block: &IPAMBlockSpec) -> Outcome {
        let entries = self.entries(block);
        Outcome::Sides {
            occupied: entries.iter().any(|(_, attribute)| !attribute.is_vacant()),
            addresses: entries.into_iter().map(|(address, _)| address).collect(),
        }
    }

    fn entries(&self, block: &IPAMBlockSpec) -> Vec<(IpAddr, AllocationAttribute)> {
        borne(block, &self.handle)
    }
}

// === impl Leaver ===

impl Leaver {
    fn of(attachment: &Attachment<'_>, pod: PodRef<'_>) -> Self {
        Self {
            namespace: pod.namespace.to_owned(),
            pod: pod.name.to_owned(),
            uid: pod.uid.map(str::to_owned),
            container: attachment.container_id.to_owned(),
            last: attachment.last_sandbox,
        }
    }

    /// Whether a side is this pod's, and no later sandbox's of it.
    fn is(&self, party: &Party) -> bool {
        let names = |key: &str| party.get(key).map(String::as_str);
        let same_pod = names("namespace") == Some(&self.namespace) && names("pod") == Some(&self.pod);
        let other_uid =
            names(CONTAINERS_POD_KEY).zip(self.uid.as_deref()).is_some_and(|(recorded, uid)| recorded != uid);
        same_pod && !other_uid && names(CONTAINER_KEY).map_or(self.last, |container| container == self.container)
    }
}

/// What a block has under a handle.
fn borne(block: &IPAMBlockSpec, handle: &str) -> Vec<(IpAddr, AllocationAttribute)> {
    let entries = block.entries().filter_map(|(address, entry)| match entry {
        Entry::Used { attribute, .. } if attribute.handle() == Some(handle) => Some((address, attribute.clone())),
        _ => None,
    });
    entries.collect()
}

/// The generation of the claim under which an address was recorded, by either side.
fn recorded_generation(attribute: &AllocationAttribute) -> Option<u64> {
    let alternate = || attribute.side(Side::Alternate)?.get(CLAIM_KEY)?.parse().ok();
    generation_of(attribute).or_else(alternate)
}

// === ADD ===

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// The machine that a pod runs; `None` for other pods, at no request, and where machines do not keep their addresses.
    pub(super) async fn machine(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
    ) -> Result<Option<Machine>, Error> {
        let (Some(found), Some(named)) = (&snapshot.pod, attachment.pod) else { return Ok(None) };
        let Some(launcher) = Launcher::of(found) else { return Ok(None) };
        let instance = self.instance(named.namespace, &launcher).await?;
        if !snapshot.config.keeps_machines_addresses() {
            return match launcher.migration {
                Some(_) => Err(disabled(named)),
                None => Ok(None),
            };
        }
        let id = machine::machine_id(&attachment.net.network, named.namespace, launcher.machine);
        let party = self.party(attachment, named, found, &launcher, &instance);
        let side = if launcher.migration.is_some() { Side::Alternate } else { Side::Active };
        Ok(Some(Machine { id, side, party }))
    }

    /// The instance that the pod is of, by a live read.
    async fn instance(&self, namespace: &str, launcher: &Launcher<'_>) -> Result<Value, Error> {
        let [_, instance] = machine_objects(namespace, launcher.machine);
        let found = self.objects.owner(&instance).await?;
        let wrong = match found.as_ref().and_then(|found| found.pointer("/metadata/uid")?.as_str()) {
            Some(uid) if uid == launcher.instance_uid => return Ok(found.unwrap_or_default()),
            Some(uid) => format!("{instance} is another by now: its UID is {uid}, not {}", launcher.instance_uid),
            None => format!("{instance}, which the pod is of, does not exist"),
        };
        let right = "KubeVirt deletes such a pod and makes another one; this is tried again until then";
        Err(CniError::new(code::TRY_AGAIN, wrong, right).into())
    }

    fn party(
        &self,
        attachment: &Attachment<'_>,
        named: PodRef<'_>,
        found: &Pod,
        launcher: &Launcher<'_>,
        instance: &Value,
    ) -> Party {
        let mut party = Allocation::pod("", named.namespace, named.name, attachment.node, self.now()).secondary;
        let container = Some(attachment.container_id).filter(|container| !container.is_empty());
        for (key, value) in [
            (machine::VMI_NAME, Some(launcher.machine)),
            (machine::VMI_UID, Some(launcher.instance_uid)),
            (machine::VM_UID, machine_of_instance(instance).map(|(_, uid)| uid)),
            (machine::MIGRATION_UID, launcher.migration),
            (CONTAINERS_POD_KEY, pod::uid(found)),
            (CONTAINER_KEY, container),
        ] {
            value.map(|value| party.insert(key.to_owned(), value.to_owned()));
        }
        party
    }

    /// What a machine has on record.
    pub(super) async fn owned(&self, handle: &str) -> Result<Vec<Owned>, Error> {
        let Some(found) = self.objects.fresh::<IPAMHandle>(None, &handle_name(handle)).await? else {
            return Ok(Vec::new());
        };
        let mut owned = Vec::new();
        for block in self.blocks_of(&found).await? {
            let cidr = block.spec.cidr;
            owned.extend(borne(&block.spec, handle).into_iter().map(|(address, attribute)| Owned {
                address,
                cidr,
                attribute,
            }));
        }
        owned.sort_by_key(|owned| owned.address);
        Ok(owned)
    }

    /// What the pod is to use of what its machine has: everything, unless it asks for a fixed address that the machine does not
    /// have. Then that is released, if no other pod of the machine uses it.
    ///
    /// # Errors
    /// The target of a migration has nothing to use.
    pub(super) async fn machines_own(
        &self,
        attachment: &Attachment<'_>,
        machine: &Machine,
        wants: &[(Family, Want)],
    ) -> Result<Vec<Owned>, Error> {
        let handle = attachment.handle();
        let owned = self.owned(&handle).await?;
        if machine.side == Side::Alternate {
            return if owned.is_empty() { Err(no_source(&machine.id)) } else { Ok(owned) };
        }
        let is_other = |owned: &Owned| {
            let mut wants = wants.iter().filter(|(family, _)| *family == Family::of(owned.address));
            wants.any(|(_, want)| matches!(want, Want::Fixed(list) if !list.contains(&owned.address)))
        };
        let Some(other) = owned.iter().find(|owned| is_other(owned)) else { return Ok(owned) };
        if let Some(user) = self.other_user(attachment, &owned).await? {
            let wrong =
                format!("the machine has {} by pod {user}, and this pod asks for another address", other.address);
            let right = "it is given another one as soon as that pod is down; this is tried again by itself";
            return Err(CniError::new(code::TRY_AGAIN, wrong, right).into());
        }
        let held = HeldBy { interface: None, ..attachment.held_itself() };
        let whose = Whose::Container { interface: None };
        let freed = self.release_handle(&handle, &whose, None, attachment.deadline).await?.unwrap_or_default();
        self.clear_machines_claims(&freed, &held, attachment.deadline).await?;
        Ok(Vec::new())
    }

    /// A pod on a side, other than the asking one, that has not ended; by live reads.
    async fn other_user(&self, attachment: &Attachment<'_>, owned: &[Owned]) -> Result<Option<String>, Error> {
        let mut parties: Vec<&Party> = Vec::new();
        for owned in owned {
            parties.extend(Side::BOTH.iter().filter_map(|side| owned.attribute.side(*side)));
        }
        for party in parties {
            let (Some(namespace), Some(name)) = (party.get("namespace"), party.get("pod")) else { continue };
            if attachment.pod.is_some_and(|pod| (pod.namespace, pod.name) == (namespace, name)) {
                continue;
            }
            let found = self.objects.fresh::<Pod>(Some(namespace), name).await?;
            let uid = party.get(CONTAINERS_POD_KEY).cloned();
            let uid = uid.or_else(|| found.as_ref().and_then(pod::uid).map(str::to_owned)).unwrap_or_default();
            if !matches!(pod_state(found.as_ref(), &uid), PodState::Gone | PodState::Finished) {
                return Ok(Some(format!("{namespace}/{name}")));
            }
        }
        Ok(None)
    }

    /// Puts the pod on its side of what its machine has.
    ///
    /// # Errors
    /// It was released meanwhile.
    pub(super) async fn take_side(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        machine: &Machine,
        owned: &[Owned],
        done: &Done,
    ) -> Result<(), Error> {
        let generations = done.claims.iter().map(|held| (held.address, held.claim.value.generation)).collect();
        let change = || Change::Come(machine.side, machine.party.clone(), BTreeMap::clone(&generations));
        let cooldown = snapshot.config.cooldown_seconds();
        let mut cidrs: Vec<IpNetwork> = owned.iter().map(|owned| owned.cidr).collect();
        cidrs.dedup();
        let deadline = attachment.deadline.max(Instant::now() + Duration::from_secs(5));
        for cidr in cidrs {
            let edit = Edit::Sides(Sides { handle: attachment.handle(), change: change(), cooldown });
            let outcome = self.commit(cidr, edit, Known::Unread, deadline).await?;
            let Outcome::Sides { addresses, .. } = outcome else { continue };
            if owned.iter().any(|owned| owned.cidr == cidr && !addresses.contains(&owned.address)) {
                return Err(Error::Overtaken("the machine's address was released"));
            }
        }
        Ok(())
    }

    /// What another pod of the machine, which made the handle, records under it; `None` if it does not in time. A machine
    /// that starts twice has one address of each family.
    pub(super) async fn await_first(
        &self,
        attachment: &Attachment<'_>,
        snapshot: &Snapshot,
        wants: &[(Family, Want)],
        done: &Done,
    ) -> Result<Option<Vec<(Family, IpAddr, IpNetwork)>>, Error> {
        let Some(machine) = &snapshot.machine else { return Ok(None) };
        for look in 0..LOOKS {
            let owned = self.owned(&attachment.handle()).await?;
            let of = |family: Family| owned.iter().find(|owned| Family::of(owned.address) == family);
            let given: Vec<_> =
                wants.iter().filter_map(|(family, _)| of(*family).map(|o| (*family, o.address, o.cidr))).collect();
            let is_fixed_other = |held: &super::claims::Held| {
                of(Family::of(held.address)).is_some_and(|owned| owned.address != held.address)
            };
            if done.claims.iter().any(is_fixed_other) {
                return Err(Error::Overtaken("another pod of the machine was given another address"));
            }
            if given.len() == wants.len() {
                self.take_side(attachment, snapshot, machine, &owned, done).await?;
                return Ok(Some(given));
            }
            if (attachment.cancelled)() {
                return Err(Error::Cancelled);
            }
            if look + 1 < LOOKS {
                sleep(BETWEEN_LOOKS).await;
            }
        }
        Ok(None)
    }

    /// What an ADD of the machine's pod did that failed: the pod leaves its side, and what nobody is left on was this call's.
    pub(super) async fn undo_machine(
        &self,
        attachment: &Attachment<'_>,
        machine: &Machine,
        done: &Done,
        deadline: Instant,
    ) {
        let of_machine = machine.attachment(attachment);
        let handle = of_machine.handle();
        let undone = async {
            let Some(pod) = attachment.pod else { return Ok(()) };
            self.leave(attachment, pod, &handle, &done.blocks, deadline).await?;
            if done.handle {
                self.release_in(done.blocks.iter().copied(), &handle, &Whose::Vacant, deadline).await?;
                self.release_handle(&handle, &Whose::Vacant, None, deadline).await?;
            }
            if !self.owned(&handle).await?.is_empty() {
                // It is the machine's as it was, and so are its claims.
                return Ok(());
            }
            let (Some(ledger), held) = (&self.ledger, of_machine.held_itself()) else { return Ok(()) };
            for claimed in &done.claims {
                match claimed.taken {
                    None => {}
                    Some(super::claims::Taken::Existing) => {
                        self.clear_holder(ledger, claimed.address, &held, deadline).await?;
                    }
                    Some(super::claims::Taken::New) => {
                        self.drop_claim(ledger, &claimed.claim.value, &held, deadline).await?;
                    }
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = undone.await {
            tracing::warn!(machine = machine.id, %error, "a failed ADD of a machine's pod was not undone");
        }
    }
}

// === DEL ===

impl<O: Objects, L: Ledger> Driver<O, L> {
    /// The DEL of a virtual machine's pod, which leaves its side. The addresses are released if the machine is on its way out,
    /// or is gone, and nobody is left on a side.
    pub(super) async fn del_of_machine(&self, attachment: &Attachment<'_>) -> Result<Vec<Freed>, Error> {
        let Some(pod) = attachment.pod.filter(|pod| may_be_launcher(pod.name)) else { return Ok(Vec::new()) };
        let Some(name) = self.machine_name(pod).await? else { return Ok(Vec::new()) };
        let id = machine::machine_id(&attachment.net.network, pod.namespace, &name);
        let handle = handle_of(&attachment.net.network, &id);
        let of_machine = Attachment { container_id: &id, interface: "", ..*attachment };
        let held = HeldBy { interface: None, ..of_machine.held_itself() };
        let deadline = attachment.deadline;
        let freed = match self.leave(attachment, pod, &handle, &[], deadline).await? {
            Some(false) if self.is_ending(pod.namespace, &name).await? => {
                let freed = self.release_handle(&handle, &Whose::Vacant, None, deadline).await?.unwrap_or_default();
                self.clear_machines_claims(&freed, &held, deadline).await?;
                freed
            }
            Some(_) => Vec::new(),
            None => {
                if self.gate.noted(&handle, Trace::Claims) {
                    self.give_up_claims(&held, deadline).await?;
                }
                Vec::new()
            }
        };
        if self.gate.noted(&handle, Trace::Block) {
            self.settle_affinities(attachment.node, deadline).await?;
        }
        self.gate.forget(&handle);
        Ok(freed)
    }

    /// What of `addresses` no machine of the pod's has with the pod on a side; `None` if the pod is no machine's.
    pub(super) async fn check_of_machine(
        &self,
        attachment: &Attachment<'_>,
        addresses: &[IpAddr],
    ) -> Result<Option<Vec<Unrecorded>>, Error> {
        let Some(pod) = attachment.pod.filter(|pod| may_be_launcher(pod.name)) else { return Ok(None) };
        let Some(name) = self.machine_name(pod).await? else { return Ok(None) };
        let id = machine::machine_id(&attachment.net.network, pod.namespace, &name);
        let owned = self.owned(&handle_of(&attachment.net.network, &id)).await?;
        if owned.is_empty() {
            return Ok(None);
        }
        let pod = Leaver::of(attachment, pod);
        let has = |address: &IpAddr| {
            let mut found = owned.iter().filter(|owned| owned.address == *address);
            found.any(|owned| {
                Side::BOTH.iter().any(|side| owned.attribute.side(*side).is_some_and(|party| pod.is(party)))
            })
        };
        let missing = addresses.iter().filter(|address| !has(address));
        Ok(Some(missing.map(|address| Unrecorded::NotInBlock(*address)).collect()))
    }

    /// Name of the machine that a pod is or was of, if it is one's.
    async fn machine_name(&self, pod: PodRef<'_>) -> Result<Option<String>, Error> {
        let found = self.objects.get::<Pod>(Some(pod.namespace), pod.name).await?;
        let found = found.filter(|found| pod.uid.is_none_or(|uid| pod::has_uid(found, uid)));
        Ok(match &found {
            Some(found) => Launcher::of(found).map(|launcher| launcher.machine.to_owned()),
            None => machine_by_name(pod.name).map(str::to_owned),
        })
    }

    /// Lets a pod leave its side; whether anybody is left on one, `None` if there is no such handle.
    async fn leave(
        &self,
        attachment: &Attachment<'_>,
        pod: PodRef<'_>,
        handle: &str,
        besides: &[IpNetwork],
        deadline: Instant,
    ) -> Result<Option<bool>, Error> {
        let found = self.objects.fresh::<IPAMHandle>(None, &handle_name(handle)).await?;
        let mut cidrs: Vec<IpNetwork> = found.iter().flat_map(|found| found.spec.blocks()).collect();
        cidrs.extend(besides.iter().filter(|cidr| !cidrs.contains(cidr)).copied().collect::<Vec<_>>());
        let config = self.objects.get::<IPAMConfig>(None, calico::config::NAME).await?;
        let cooldown = config.map_or_else(IPAMConfigSpec::default, |config| config.spec).cooldown_seconds();
        let mut is_occupied = false;
        for cidr in cidrs {
            let change = Change::Leave(Leaver::of(attachment, pod));
            let edit = Edit::Sides(Sides { handle: handle.to_owned(), change, cooldown });
            if let Outcome::Sides { occupied, .. } = self.commit(cidr, edit, Known::Unread, deadline).await? {
                is_occupied |= occupied;
            }
        }
        Ok(found.map(|_| is_occupied))
    }

    /// Whether a machine is on its way out or gone, by live reads. Where they are forbidden it is not: the collector looks later.
    async fn is_ending(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        let mut found = Vec::new();
        for object in machine_objects(namespace, name) {
            found.push(match self.objects.owner(&object).await {
                Ok(found) => found,
                Err(error @ StoreError { failure: Failure::Denied(_), .. }) => {
                    tracing::warn!(%object, %error, "whether the machine is deleted cannot be read; it keeps its address");
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            });
        }
        let found_at = |at: usize| found.get(at).and_then(Option::as_ref);
        Ok(is_machine_ending(found_at(0), found_at(1)))
    }

    /// Clears the claims on what was released: a side that is left does not say any more that its address is fixed.
    async fn clear_machines_claims(&self, freed: &[Freed], held: &HeldBy<'_>, deadline: Instant) -> Result<(), Error> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        for address in freed.iter().map(|freed| freed.address) {
            self.clear_holder(ledger, address, held, deadline).await?;
        }
        Ok(())
    }
}

fn disabled(pod: PodRef<'_>) -> Error {
    CniError::new(
        code::INVALID_CONFIG,
        format!(
            "pod {}/{} is the target of a live migration, and Calico's IPAMConfig has kubeVirtVMAddressPersistence Disabled",
            pod.namespace, pod.name
        ),
        "the machine would lose its address: set it to Enabled, or stop and start the machine instead of migrating it",
    )
    .into()
}

fn no_source(id: &str) -> Error {
    let machine =
        machine::machine_of_id(id).map_or_else(|| id.to_owned(), |(namespace, name)| format!("{namespace}/{name}"));
    CniError::new(
        code::TRY_AGAIN,
        format!("the pod is the target of a live migration, and VirtualMachine {machine} has no address on record"),
        "the migration's source was started before machines kept their addresses: stop and start the machine",
    )
    .into()
}

#[cfg(test)]
mod tests {
    use calico::Affinity;
    use jiff::Timestamp;

    use super::*;

    const HANDLE: &str = "net.vmi.default.vm";

    fn party(pairs: &[(&str, &str)]) -> Party {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn leaver(uid: Option<&str>, container: &str, last: bool) -> Leaver {
        let uid = uid.map(str::to_owned);
        Leaver { namespace: "default".into(), pod: "a".into(), uid, container: container.into(), last }
    }

    #[test]
    fn a_pod_leaves_its_own_side_and_no_later_sandboxs() {
        let of_calico = party(&[("namespace", "default"), ("pod", "a")]);
        assert!(leaver(Some("u"), "c1", true).is(&of_calico));
        assert!(!leaver(Some("u"), "c1", false).is(&of_calico), "a later sandbox has what was made ahead of both");
        let mut ours = of_calico.clone();
        ours.extend(party(&[(CONTAINERS_POD_KEY, "u"), (CONTAINER_KEY, "c1")]));
        assert!(leaver(Some("u"), "c1", false).is(&ours) && leaver(None, "c1", true).is(&ours));
        assert!(!leaver(Some("u"), "c2", true).is(&ours), "another sandbox");
        assert!(!leaver(Some("v"), "c1", true).is(&ours), "another pod of that name");
        assert!(!leaver(Some("u"), "", true).is(&ours), "a sandbox took it on");
        for other in [[("namespace", "other"), ("pod", "a")], [("namespace", "default"), ("pod", "b")]] {
            assert!(!leaver(None, "c1", true).is(&party(&other)));
        }
    }

    #[test]
    fn a_target_is_recorded_as_fixed_as_its_source_and_a_repeated_edit_changes_nothing() {
        let now = Timestamp::UNIX_EPOCH;
        let mut block = IPAMBlockSpec::new("10.0.0.0/29".parse().unwrap(), &Affinity::host("n1"), now);
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let source = party(&[("namespace", "default"), ("pod", "a"), (CLAIM_KEY, "3")]);
        block.assign(address, &Allocation { handle: HANDLE.into(), secondary: source }, None).unwrap();
        let sides = |change: Change| Sides { handle: HANDLE.into(), change, cooldown: 0 };
        let target = party(&[("namespace", "default"), ("pod", "b")]);
        let come = sides(Change::Come(Side::Alternate, target, BTreeMap::new()));
        assert!(come.apply(&mut block) && !come.apply(&mut block));
        let Entry::Used { attribute, .. } = block.entry(address) else { panic!() };
        assert_eq!(attribute.side(Side::Alternate).unwrap()[CLAIM_KEY], "3");
        let leave = sides(Change::Leave(leaver(None, "c1", true)));
        assert!(leave.apply(&mut block) && !leave.apply(&mut block));
        assert!(
            matches!(leave.outcome(&block), Outcome::Sides { occupied: true, addresses } if addresses == [address])
        );
        let Entry::Used { attribute, .. } = block.entry(address) else { panic!() };
        assert_eq!((attribute.side(Side::Active), recorded_generation(attribute)), (None, Some(3)));
    }
}

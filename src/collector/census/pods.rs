//! Which pods there are, and what they have.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::audit::party::Seen;
use crate::claim::PodState;
use crate::collector::notice::Notice;
use crate::driver::state_of;
use crate::pod::{self, FixedRequest, IP, Owner, own_addresses};

/// The pods with addresses of their own, and some words about the others.
#[derive(Default)]
pub(in crate::collector) struct Pods {
    /// By namespace and name, once sorted.
    records: Vec<Record>,
    names: Names,
    /// Owners whose objects do not exist.
    missing: BTreeSet<Owner>,
    /// Those of them whose pods do.
    running: BTreeSet<Owner>,
    /// Addresses that their owners' templates do not ask for.
    given_up: BTreeSet<IpAddr>,
    /// Those of them that a pod asks for all the same.
    asked: BTreeSet<IpAddr>,
    /// Pods whose annotation is not kept.
    notices: Vec<Notice>,
}

struct Record {
    namespace: Arc<str>,
    name: Box<str>,
    uid: Option<Box<str>>,
    /// Of a static pod's mirror its own UID.
    mirror: Option<Box<str>>,
    node: Option<Arc<str>>,
    state: PodState,
    addresses: Box<[IpAddr]>,
    is_foreign: bool,
    /// Of pods that ask for fixed addresses.
    owner: Option<Box<Owner>>,
}

/// Texts that many records share.
#[derive(Default)]
pub(super) struct Names(HashSet<Arc<str>>);

// === impl Pods ===

impl Pods {
    /// No pods yet; of the owners `missing` is to be said whether pods of theirs exist, and of the addresses `given_up`
    /// whether pods ask for them.
    pub(in crate::collector) fn new(missing: BTreeSet<Owner>, given_up: BTreeSet<IpAddr>) -> Self {
        Self { missing, given_up, ..Self::default() }
    }

    pub(in crate::collector) fn add(&mut self, pod: Pod) {
        if !self.missing.is_empty() {
            self.running.extend(Owner::of(&pod).ok().filter(|owner| self.missing.contains(owner)));
        }
        if let Some(asked) = pod.annotations().get(IP).filter(|_| !self.given_up.is_empty() && !pod::has_finished(&pod))
        {
            let listed = FixedRequest::listed(asked);
            self.asked.extend(self.given_up.iter().filter(|address| listed.contains(address)));
        }
        self.notices.extend(Notice::of(&pod));
        let Some(addresses) = own_addresses(&pod) else { return };
        let (state, uid) = (state_of(&pod), pod::uid(&pod).map(Into::into));
        let mirror = pod.metadata.uid.as_deref().filter(|_| pod::is_static(&pod)).map(Into::into);
        let is_foreign = pod::is_foreign(&pod);
        let owner = pod.annotations().contains_key(IP).then(|| Owner::of(&pod).ok()).flatten();
        self.records.push(Record {
            namespace: self.names.get(pod.metadata.namespace.as_deref().unwrap_or_default()),
            name: pod.metadata.name.unwrap_or_default().into(),
            uid,
            mirror,
            node: pod.spec.and_then(|spec| spec.node_name).map(|node| self.names.get(&node)),
            state,
            addresses: addresses.into(),
            is_foreign,
            owner: owner.map(Box::new),
        });
    }

    /// What is to be said of pods whose annotation is not kept.
    pub(in crate::collector) fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// To be called once all are in: only then they are found.
    pub(in crate::collector) fn sort(&mut self) {
        self.records.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
    }

    /// The pod of that name.
    pub(in crate::collector) fn get(&self, namespace: &str, name: &str) -> Option<Seen<'_>> {
        self.position(namespace, name).map(|at| self.records[at].seen())
    }

    /// The owner of the pod of that name, if it asks for fixed addresses.
    pub(in crate::collector) fn owner(&self, namespace: &str, name: &str) -> Option<&Owner> {
        self.position(namespace, name).and_then(|at| self.records[at].owner.as_deref())
    }

    /// The state of the pod of that UID.
    pub(in crate::collector) fn state(&self, namespace: &str, name: &str, uid: &str) -> PodState {
        let pod = self.get(namespace, name).filter(|pod| pod.has_uid(uid));
        pod.map_or(PodState::Gone, |pod| pod.state)
    }

    /// Those of `addresses` that a live pod has, neither finished nor on its way out.
    pub(in crate::collector) fn live_among(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let live = self.records.iter().filter(|pod| pod.state == PodState::Alive);
        live.flat_map(|pod| &*pod.addresses).filter(|address| addresses.contains(address)).copied().collect()
    }

    /// Whether pods exist whose owner is `owner`, of which only those are known that do not exist themselves.
    pub(in crate::collector) fn outlive(&self, owner: &Owner) -> bool {
        self.running.contains(owner)
    }

    /// Whether a pod asks for an address, of which only those are known that their owners' templates do not ask for.
    pub(in crate::collector) fn ask_for(&self, address: IpAddr) -> bool {
        self.asked.contains(&address)
    }

    /// Every pod that has an address of its own: namespace, name and what was seen.
    pub(in crate::collector) fn all(&self) -> impl Iterator<Item = (&str, &str, Seen<'_>)> {
        (0..self.records.len()).map(|position| self.at(position))
    }

    pub(super) fn position(&self, namespace: &str, name: &str) -> Option<usize> {
        self.records.binary_search_by(|record| record.key().cmp(&(namespace, name))).ok()
    }

    /// Namespace, name and what was seen of the pod at a [`Pods::position`].
    pub(super) fn at(&self, position: usize) -> (&str, &str, Seen<'_>) {
        let record = &self.records[position];
        (&record.namespace, &record.name, record.seen())
    }
}

// === impl Record ===

impl Record {
    fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    fn seen(&self) -> Seen<'_> {
        let (uid, mirror, node) = (self.uid.as_deref(), self.mirror.as_deref(), self.node.as_deref());
        Seen { uid, mirror, node, state: self.state, addresses: &self.addresses, is_foreign: self.is_foreign }
    }
}

// === impl Names ===

impl Names {
    pub(super) fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.0.insert(name.clone());
        name
    }
}

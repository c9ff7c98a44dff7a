//! What nobody can repair, and whoever made a pod should hear: its annotation is not kept.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::PodName;
use crate::audit::pods::not_as_asked;
use crate::claim::PodState;
use crate::driver::state_of;
use crate::pod::own_addresses;
use crate::pod::{self, IP};
use crate::range::Usage;

/// A pod whose annotation is not kept, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The pod; its UID is known.
    pub pod: PodName,
    /// What it is told.
    pub what: Unkept,
    /// In words.
    pub text: String,
}

/// In which way an annotation is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkept {
    /// The pod runs with another address.
    OtherAddress,
    /// The pod has no address of its own.
    HostNetwork,
}

/// A range in which few addresses are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filling {
    /// The IPPool that it begins in.
    pub pool: String,
    /// How full it is.
    pub usage: Usage,
}

/// What was said already.
#[derive(Default)]
pub(super) struct Told {
    /// UIDs of pods.
    pods: BTreeSet<String>,
    /// When it was said of a range, by its first address.
    ranges: BTreeMap<IpAddr, Instant>,
}

/// What is still so is said again after this time: an Event is forgotten by then.
const AGAIN: Duration = Duration::from_secs(3600);

// === impl Notice ===

impl Notice {
    /// What is to be said of a pod, if it lives and its annotation is not kept.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let asked = pod.annotations().get(IP)?;
        let uid = pod::uid(pod)?;
        if state_of(pod) != PodState::Alive {
            return None;
        }
        let (what, text) = match own_addresses(pod) {
            None => {
                let why = "the pod is in its node's network and has no address of its own";
                let text = format!("{IP}: {asked:?} is ignored: {why}; leave the annotation or hostNetwork out");
                (Unkept::HostNetwork, text)
            }
            Some(addresses) => {
                let (asked, has) = not_as_asked(pod, &addresses)?;
                let why = "calico-ipam gave it, or the annotation came after the pod had its address";
                let text = format!(
                    "the pod asks for {asked:?} by {IP} and has {has}: {why}; delete the pod to have it made again with its address"
                );
                (Unkept::OtherAddress, text)
            }
        };
        let pod =
            PodName { namespace: pod.namespace().unwrap_or_default(), name: pod.name_any(), uid: Some(uid.to_owned()) };
        Some(Self { pod, what, text })
    }
}

// === impl Told ===

impl Told {
    /// Those of the notices that are new; pods that are gone are forgotten.
    pub(super) fn news(&mut self, notices: &[Notice]) -> Vec<Notice> {
        let earlier = std::mem::take(&mut self.pods);
        self.pods = notices.iter().filter_map(|notice| notice.pod.uid.clone()).collect();
        let is_new = |notice: &&Notice| notice.pod.uid.as_ref().is_some_and(|uid| !earlier.contains(uid));
        notices.iter().filter(is_new).cloned().collect()
    }

    /// Those of the ranges of which it was not said lately.
    pub(super) fn filling(&mut self, filling: Vec<Filling>, now: Instant) -> Vec<Filling> {
        self.ranges.retain(|_, told| now - *told < AGAIN);
        let mut is_new = |filling: &Filling| match self.ranges.entry(filling.usage.first) {
            Entry::Vacant(vacant) => {
                vacant.insert(now);
                true
            }
            Entry::Occupied(_) => false,
        };
        filling.into_iter().filter(|filling| is_new(filling)).collect()
    }
}

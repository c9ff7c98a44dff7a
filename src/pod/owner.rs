//! Who owns a pod's fixed address: what survives the pod.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::{Deserialize, Serialize};

use super::{OWNER, launcher};
use crate::cni::names::is_dns_subdomain;
use crate::cni::{CniError, code};

/// The owner of a fixed address. Two owners are equal if all but the version are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The pod's namespace.
    pub namespace: String,
    /// API group of the kind; empty for the core group.
    pub group: String,
    /// API version of the kind, for reading the object; says nothing about identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// `Deployment`, `StatefulSet`, `Pod`, ...
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Which pod of a StatefulSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u32>,
}

/// Group and kind of an owner that an annotation names.
const NAMED: (&str, &str) = ("kube-ipam.io", "Owner");

impl Owner {
    /// The owner of a pod's addresses. Code 7 for a malformed annotation `kube-ipam.owner`, code 6 for a pod without name or namespace.
    ///
    /// It is the controller, by its ownerReference, but what lives as long as the user's intent does: the Deployment (or Argo Rollout)
    /// of a ReplicaSet, the VirtualMachine of a VirtualMachineInstance, the CronJob of a Job named `<name>-<minutes since 1970>`, the pod of a StatefulSet by its ordinal. A bare pod, and
    /// the kubelet's mirror of a static one, own by their own names.
    pub fn of(pod: &Pod) -> Result<Owner, CniError> {
        let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else {
            let right = "this is a reply of the API server that makes no sense";
            return Err(CniError::new(code::DECODE, "a pod has no name or no namespace", right));
        };
        let controller = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let kind = match controller {
            Some(controller) if controller.kind != "Node" => Controller::of(pod, controller),
            _ => Controller::new("", "v1", "Pod", name),
        };
        let ordinal = if kind.kind == "StatefulSet" { ordinal(pod, name) } else { None };
        let chosen = named_by_annotation(pod)?.unwrap_or(kind);
        Ok(Owner {
            namespace: namespace.clone(),
            group: chosen.group,
            version: chosen.version,
            kind: chosen.kind,
            name: chosen.name,
            ordinal,
        })
    }

    /// Whether it is only a name, given by annotation: no object tells whether it still exists.
    pub fn is_named(&self) -> bool {
        (self.group.as_str(), self.kind.as_str()) == NAMED
    }

    /// Whether it is the bare pod of this name.
    pub fn is_pod(&self, namespace: &str, name: &str) -> bool {
        (self.group.as_str(), self.kind.as_str()) == ("", "Pod") && (&*self.namespace, &*self.name) == (namespace, name)
    }

    /// The objects of which one has to exist for the owner to exist.
    pub fn objects(&self) -> Vec<Owner> {
        match (self.group.as_str(), self.kind.as_str()) {
            (launcher::GROUP, launcher::MACHINE) => launcher::machine_objects(&self.namespace, &self.name).into(),
            _ => vec![self.clone()],
        }
    }

    fn identity(&self) -> (&str, &str, &str, &str, Option<u32>) {
        (&self.namespace, &self.group, &self.kind, &self.name, self.ordinal)
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Owner) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Owner {}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Owner) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Owner) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl Hash for Owner {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        match self.ordinal {
            Some(ordinal) => write!(f, " #{ordinal}"),
            None => Ok(()),
        }
    }
}

/// The object that owns, without the pod's part in it.
struct Controller {
    group: String,
    version: Option<String>,
    kind: String,
    name: String,
}

impl Controller {
    fn new(group: &str, version: &str, kind: &str, name: &str) -> Controller {
        Controller {
            group: group.to_owned(),
            version: Some(version.to_owned()),
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }

    fn of(pod: &Pod, reference: &OwnerReference) -> Controller {
        let (group, version) = reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
        let name = reference.name.as_str();
        let above = match (group, reference.kind.as_str()) {
            ("apps", "ReplicaSet") => above_replica_set(pod, name),
            // Named like its machine, which makes a new one at every start.
            (launcher::GROUP, launcher::INSTANCE) => Some(Controller::new(group, version, launcher::MACHINE, name)),
            ("batch", "Job") => cron_job(pod, name).map(|cron| Controller::new("batch", "v1", "CronJob", cron)),
            _ => None,
        };
        above.unwrap_or_else(|| Controller::new(group, version, &reference.kind, name))
    }
}

/// What stamps a ReplicaSet's pods with a hash of their template, and ends the ReplicaSet's name with it.
fn above_replica_set(pod: &Pod, replica_set: &str) -> Option<Controller> {
    const STAMPS: [(&str, &str, &str, &str); 2] = [
        ("pod-template-hash", "apps", "v1", "Deployment"),
        ("rollouts-pod-template-hash", "argoproj.io", "v1alpha1", "Rollout"),
    ];
    STAMPS.into_iter().find_map(|(stamp, group, version, kind)| {
        let name = replica_set.strip_suffix(label(pod, stamp)?)?.strip_suffix('-')?;
        (!name.is_empty()).then(|| Controller::new(group, version, kind, name))
    })
}

/// The CronJob that made a Job, told by the Job's name alone, which ends with the scheduled time in minutes since 1970. A date such as
/// 20261123 is less than any such time since 2017, and a time after the pod's creation is none.
fn cron_job<'a>(pod: &Pod, job: &'a str) -> Option<&'a str> {
    const MINUTES_IN_2017: i64 = 25_000_000;
    let (name, minutes) = job.rsplit_once('-')?;
    let digits = minutes.len() == 8 && minutes.bytes().all(|byte| byte.is_ascii_digit());
    let scheduled = minutes.parse::<i64>().ok().filter(|minutes| digits && *minutes >= MINUTES_IN_2017)?;
    let created = pod.metadata.creation_timestamp.as_ref().map(|created| created.0.as_second() / 60);
    (!name.is_empty() && created.is_none_or(|created| scheduled <= created + 1)).then_some(name)
}

/// Which pod of a StatefulSet this is: by label, which Kubernetes sets since 1.28, else by the end of the name.
fn ordinal(pod: &Pod, name: &str) -> Option<u32> {
    let by_label = label(pod, "apps.kubernetes.io/pod-index").and_then(|index| index.parse().ok());
    by_label.or_else(|| name.rsplit_once('-')?.1.parse().ok())
}

fn named_by_annotation(pod: &Pod) -> Result<Option<Controller>, CniError> {
    let Some(name) = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(OWNER)) else {
        return Ok(None);
    };
    if is_dns_subdomain(name) {
        let (group, kind) = NAMED;
        let (group, kind) = (group.to_owned(), kind.to_owned());
        return Ok(Some(Controller { group, version: None, kind, name: name.clone() }));
    }
    let right = "use a DNS-1123 name: a-z, 0-9, - and . with a letter or digit at both ends";
    Err(CniError::annotation(OWNER, name, "is not a name", right))
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.labels.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

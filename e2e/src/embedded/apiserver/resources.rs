//! Which resources the server serves, built in or by CustomResourceDefinition.
//!
//! Invariant: `id()` (plural and group) names a resource in errors, in the store, in faults and in the call log alike.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use k8s_openapi::api::{
    apps::v1 as apps, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core, rbac::v1 as rbac,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::meta::NameRule;

/// Reads an object into its Rust type and back: what the type does not know is dropped, what does not fit is an error.
pub(super) type Coerce = fn(Value) -> serde_json::Result<Value>;

/// One resource.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub namespaced: bool,
    pub names: NameRule,
    pub versions: Vec<Version>,
    /// False: an update must name the resourceVersion it replaces.
    pub unconditional_update: bool,
    pub origin: Origin,
}

/// One version of a resource.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    pub status: bool,
    pub scale: bool,
    /// OpenAPI v3 schema of a custom resource.
    pub schema: Option<Value>,
}

/// Where a resource comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    Builtin(Coerce),
    Custom,
}

impl Resource {
    /// `pods`, `deployments.apps`, `ipamblocks.crd.projectcalico.org`.
    pub fn id(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name && v.served)
    }

    pub fn storage_version(&self) -> &str {
        self.versions.iter().find(|v| v.storage).map(|v| v.name.as_str()).unwrap_or("v1")
    }

    pub fn is_custom(&self) -> bool {
        matches!(self.origin, Origin::Custom)
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// The resource a CustomResourceDefinition (as JSON) describes.
    pub fn from_crd(crd: &CustomResourceDefinition) -> serde_json::Result<Self> {
        let spec = &crd.spec;
        let versions = spec
            .versions
            .iter()
            .map(|v| {
                let schema = v.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
                let sub = v.subresources.as_ref();
                Ok(Version {
                    name: v.name.clone(),
                    served: v.served,
                    storage: v.storage,
                    status: sub.is_some_and(|s| s.status.is_some()),
                    scale: false,
                    schema: schema.map(serde_json::to_value).transpose()?,
                })
            })
            .collect::<serde_json::Result<Vec<_>>>()?;
        let names = &spec.names;
        Ok(Self {
            group: spec.group.clone(),
            plural: names.plural.clone(),
            singular: names.singular.clone().unwrap_or_else(|| names.kind.to_lowercase()),
            kind: names.kind.clone(),
            list_kind: names.list_kind.clone().unwrap_or_else(|| format!("{}List", names.kind)),
            short_names: names.short_names.clone().unwrap_or_default(),
            namespaced: spec.scope == "Namespaced",
            names: NameRule::Subdomain,
            versions,
            unconditional_update: false,
            origin: Origin::Custom,
        })
    }
}

/// All resources, by group and plural.
#[derive(Debug)]
pub(super) struct Registry {
    known: RwLock<BTreeMap<(String, String), Arc<Resource>>>,
}

impl Registry {
    /// The built-in resources.
    pub fn new() -> Self {
        let known = builtins().into_iter().map(|r| ((r.group.clone(), r.plural.clone()), Arc::new(r))).collect();
        Self { known: RwLock::new(known) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<(String, String), Arc<Resource>>> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn find(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        self.read().get(&(group.to_owned(), plural.to_owned())).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Resource>> {
        self.read().values().cloned().collect()
    }

    pub fn add(&self, resource: Resource) {
        let key = (resource.group.clone(), resource.plural.clone());
        self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(key, Arc::new(resource));
    }

    pub fn remove(&self, group: &str, plural: &str) {
        let key = (group.to_owned(), plural.to_owned());
        self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&key);
    }
}

fn coerce<T: DeserializeOwned + Serialize>(object: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(object)?)
}

/// A built-in namespaced resource of version v1, from its Rust type.
fn builtin<T>() -> Resource
where
    T: k8s_openapi::Resource + DeserializeOwned + Serialize,
{
    let plural = T::URL_PATH_SEGMENT.to_owned();
    Resource {
        group: T::GROUP.to_owned(),
        singular: T::KIND.to_lowercase(),
        kind: T::KIND.to_owned(),
        list_kind: format!("{}List", T::KIND),
        short_names: Vec::new(),
        namespaced: true,
        names: NameRule::Subdomain,
        versions: vec![Version {
            name: T::VERSION.to_owned(),
            served: true,
            storage: true,
            status: false,
            scale: false,
            schema: None,
        }],
        unconditional_update: true,
        origin: Origin::Builtin(coerce::<T>),
        plural,
    }
}

impl Resource {
    fn short(mut self, name: &str) -> Self {
        self.short_names.push(name.to_owned());
        self
    }
    fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    fn status(mut self) -> Self {
        self.versions[0].status = true;
        self
    }
    fn scale(mut self) -> Self {
        self.versions[0].scale = true;
        self
    }
    fn conditional(mut self) -> Self {
        self.unconditional_update = false;
        self
    }
    fn named(mut self, rule: NameRule) -> Self {
        self.names = rule;
        self
    }
}

fn builtins() -> Vec<Resource> {
    let mut later_events = builtin::<k8s_openapi::api::events::v1::Event>();
    later_events.short_names.push("ev".to_owned());
    vec![
        builtin::<core::Pod>().short("po").status(),
        builtin::<core::Node>().short("no").cluster().status(),
        builtin::<core::Namespace>().short("ns").cluster().status().named(NameRule::Label),
        builtin::<core::Event>().short("ev"),
        builtin::<core::ConfigMap>().short("cm"),
        builtin::<core::Secret>(),
        builtin::<core::ServiceAccount>().short("sa"),
        builtin::<core::Service>().short("svc").status().named(NameRule::Label),
        builtin::<apps::Deployment>().short("deploy").status().scale(),
        builtin::<apps::ReplicaSet>().short("rs").status().scale(),
        builtin::<apps::StatefulSet>().short("sts").status().scale(),
        builtin::<apps::DaemonSet>().short("ds").status(),
        builtin::<apps::ControllerRevision>(),
        builtin::<batch::Job>().status(),
        builtin::<coordination::Lease>().conditional(),
        later_events,
        builtin::<rbac::ClusterRole>().cluster().named(NameRule::Segment),
        builtin::<rbac::ClusterRoleBinding>().cluster().named(NameRule::Segment),
        builtin::<rbac::Role>().named(NameRule::Segment),
        builtin::<rbac::RoleBinding>().named(NameRule::Segment),
        builtin::<CustomResourceDefinition>().short("crd").cluster().status().conditional(),
    ]
}

//! The two API groups in which clusters keep Calico's objects, and everything in which their objects differ.
//!
//! The types of this crate are one form for both: they read either, and serialise as [`ApiGroup::Crd`] has it. Keeps: what
//! goes out to the other group went through [`ApiGroup::shape`] and [`ApiGroup::path`], so no other place knows a difference.

use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use crate::crd::crds;
use crate::names::METADATA_ANNOTATION;

/// The API group, with its version, in which a cluster keeps Calico's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ApiGroup {
    /// `crd.projectcalico.org/v1`.
    #[default]
    Crd,
    /// `projectcalico.org/v3` as CustomResourceDefinitions. Calico's aggregated API server serves the same name over objects
    /// of the other group.
    V3,
}

/// Where the objects of [`ApiGroup::Crd`] are.
const CRD_PATH: &str = "/apis/crd.projectcalico.org/v1/";

/// Names that only the configuration has: kind, plural and singular by group.
const CONFIG: [[&str; 2]; 3] =
    [["IPAMConfig", "IPAMConfiguration"], ["ipamconfigs", "ipamconfigurations"], ["ipamconfig", "ipamconfiguration"]];

impl ApiGroup {
    /// Both, the older one first.
    pub const BOTH: [Self; 2] = [Self::Crd, Self::V3];

    /// The group that a configuration names. As Calico reads it, any text but `projectcalico.org/v3`, in whatever case, means
    /// the older one.
    pub fn named(text: &str) -> Self {
        if text.trim().eq_ignore_ascii_case(Self::V3.api_version()) { Self::V3 } else { Self::Crd }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Crd => "crd.projectcalico.org/v1",
            Self::V3 => "projectcalico.org/v3",
        }
    }

    /// The group without its version.
    pub fn group(self) -> &'static str {
        self.api_version().split('/').next().unwrap_or_default()
    }

    /// A kind, or its plural or singular, as this group calls it.
    pub fn name(self, of_crd: &str) -> &str {
        let of_config = CONFIG.iter().find(|[crd, _]| self == Self::V3 && *crd == of_crd);
        of_config.map_or(of_crd, |[_, v3]| v3)
    }

    /// The path of a request, which may have a server's own before it, in this group, by its path in [`ApiGroup::Crd`]; `None`
    /// for what is not Calico's.
    pub fn path(self, of_crd: &str) -> Option<String> {
        let (before, rest) = of_crd.split_once(CRD_PATH)?;
        let (plural, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Some(format!("{before}/apis/{}/{}{rest}", self.api_version(), self.name(plural)))
    }

    /// Makes of an object that the types of this crate serialised the one that this group takes. Others stay as they are.
    pub fn shape(self, object: &mut Value) {
        if self == Self::Crd || object["apiVersion"] != Self::Crd.api_version() {
            return;
        }
        object["apiVersion"] = self.api_version().into();
        if let Some(kind) = object["kind"].as_str() {
            object["kind"] = self.name(kind).into();
        }
        if object["kind"] == "BlockAffinity"
            && let Some(deleted) = object.pointer_mut("/spec/deleted").filter(|deleted| deleted.is_string())
        {
            *deleted = (deleted == "true").into();
        }
        // Only of one that is to be created: a rewrite keeps what is there.
        let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if !meta.contains_key("resourceVersion")
            && let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut)
            && annotations.remove(METADATA_ANNOTATION).is_some()
            && annotations.is_empty()
        {
            meta.remove("annotations");
        }
    }

    /// The definitions of all kinds of this crate in this group, for a cluster that does not have Calico's own.
    pub fn crds(self) -> Vec<CustomResourceDefinition> {
        let mut definitions = crds();
        if self == Self::V3 {
            definitions.iter_mut().for_each(redefine);
        }
        definitions
    }
}

impl fmt::Display for ApiGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.api_version())
    }
}

/// A definition of [`ApiGroup::Crd`] as [`ApiGroup::V3`] has it.
fn redefine(definition: &mut CustomResourceDefinition) {
    let v3 = ApiGroup::V3;
    let spec = &mut definition.spec;
    let kind = spec.names.kind.clone();
    spec.group = v3.group().to_owned();
    spec.names.kind = v3.name(&kind).to_owned();
    spec.names.list_kind = spec.names.list_kind.as_ref().map(|_| format!("{}List", spec.names.kind));
    spec.names.plural = v3.name(&spec.names.plural).to_owned();
    spec.names.singular = spec.names.singular.as_deref().map(|singular| v3.name(singular).to_owned());
    definition.metadata.name = Some(format!("{}.{}", spec.names.plural, spec.group));
    for version in &mut spec.versions {
        version.name = "v3".to_owned();
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let Some(fields) = schema.and_then(|schema| schema.properties.as_mut()?.get_mut("spec")?.properties.as_mut())
        else {
            continue;
        };
        for (field, schema) in stricter(&kind).as_object().into_iter().flatten() {
            let Some(found) = fields.get_mut(field) else { continue };
            let mut changed = serde_json::to_value(&*found).unwrap_or_default();
            for (keyword, value) in schema.as_object().into_iter().flatten() {
                changed[keyword] = value.clone();
            }
            if let Ok(changed) = serde_json::from_value(changed) {
                *found = changed;
            }
        }
    }
}

/// What the schema of a kind says in [`ApiGroup::V3`] beyond, or instead of, that in [`ApiGroup::Crd`], by field of `spec`.
fn stricter(kind: &str) -> Value {
    let (cidr, atomic) = (json!({"format": "cidr"}), json!({"x-kubernetes-list-type": "atomic"}));
    match kind {
        "BlockAffinity" => json!({
            "cidr": cidr,
            "deleted": {"type": "boolean", "default": false},
            "state": {"enum": ["", "confirmed", "pending", "pendingDeletion"]},
        }),
        "IPAMBlock" => json!({
            "affinity": {"pattern": r"^(host|virtual):[a-zA-Z0-9\.\-_]+$"},
            "allocations": atomic, "attributes": atomic, "cidr": cidr, "unallocated": atomic,
        }),
        "IPAMConfig" => json!({
            "autoAllocateBlocks": {"default": true},
            "ipCooldownSeconds": {"format": "int32"},
            "maxBlocksPerHost": {"format": "int32", "default": 0, "maximum": 1_000_000},
            "strictAffinity": {"default": false},
        }),
        "IPPool" => json!({
            "allowedUses": {"x-kubernetes-list-type": "set"}, "blockSize": {"minimum": 0, "maximum": 128},
        }),
        "IPReservation" => json!({"reservedCIDRs": {"x-kubernetes-list-type": "set"}}),
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_but_the_newer_groups_means_the_older_one() {
        for text in ["projectcalico.org/v3", "PROJECTCALICO.org/V3", " projectcalico.org/v3\n"] {
            assert_eq!(ApiGroup::named(text), ApiGroup::V3, "{text:?}");
        }
        for text in ["crd.projectcalico.org/v1", "", "v3", "projectcalico.org/v1", "projectcalico.org"] {
            assert_eq!(ApiGroup::named(text), ApiGroup::Crd, "{text:?}");
        }
    }

    #[test]
    fn a_path_is_another_in_the_other_group_and_only_if_it_is_calicos() {
        let v3 = |path| ApiGroup::V3.path(path);
        for (crd, other) in [
            (
                "/apis/crd.projectcalico.org/v1/ipamconfigs/default",
                "/apis/projectcalico.org/v3/ipamconfigurations/default",
            ),
            ("/apis/crd.projectcalico.org/v1/ipamblocks", "/apis/projectcalico.org/v3/ipamblocks"),
            (
                "/k8s/c-1/apis/crd.projectcalico.org/v1/ippools?limit=5",
                "/k8s/c-1/apis/projectcalico.org/v3/ippools?limit=5",
            ),
            ("/apis/crd.projectcalico.org/v1/ipamconfigs?a=/b", "/apis/projectcalico.org/v3/ipamconfigurations?a=/b"),
        ] {
            assert_eq!(v3(crd).as_deref(), Some(other));
            assert_eq!(ApiGroup::Crd.path(crd).as_deref(), Some(crd));
        }
        for other in ["/api/v1/pods", "/apis/projectcalico.org/v3/ippools", "/apis/crd.projectcalico.org/v1"] {
            assert_eq!(v3(other), None, "{other}");
        }
    }

    #[test]
    fn a_rewrite_keeps_the_annotation_that_a_new_object_does_not_get() {
        let meta = json!({"name": "h", "annotations": {"projectcalico.org/metadata": "{}"}});
        let kept = json!({"name": "h", "annotations": {"projectcalico.org/metadata": "{}"}, "resourceVersion": "7"});
        for (meta, expected) in [(meta, json!({"name": "h"})), (kept.clone(), kept)] {
            let mut object = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMHandle", "metadata": meta});
            ApiGroup::V3.shape(&mut object);
            assert_eq!(object["metadata"], expected);
        }
    }
}

//! What the template of an owner has to say, so that its next pod asks for the address. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use calico::Family;
use serde::Serialize;
use serde_json::{Value, json};

use crate::claim::Claim;
use crate::pod::{IP, Owner};

/// What the user is to do for the pods of one controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Template {
    /// The controller.
    pub owner: String,
    /// The value of the annotation `kube-ipam.ip`; none if no list would be right.
    pub annotation: Option<String>,
    /// The arguments of `kubectl` that set it; none where there is no template that could be changed.
    pub kubectl: Option<Vec<String>>,
    /// What is to be known.
    pub note: String,
}

/// Why a person does it: the controller replaces its pods.
const REPLACES: &str = "changing the template makes the controller replace its pods";
const SURGE: &str = "; with strategy Recreate, or rollingUpdate.maxSurge 0, each new pod finds its address free";

impl Template {
    /// For the pods of `controller`, whose claims are under `claims`, by owner; all of them, old and new. `calicos` are
    /// the annotations of Calico's for addresses that its pods bear: with them the next pod would be refused.
    pub(super) fn of(controller: &Owner, claims: &[&Claim], calicos: &BTreeSet<&str>) -> Self {
        let owner = Owner { ordinal: None, ..controller.clone() };
        let list = match controller.kind.as_str() {
            "StatefulSet" => by_ordinal(claims),
            _ => Ok(in_order(claims)),
        };
        let list = match list {
            Ok(list) => list,
            Err(note) => return Self { owner: owner.to_string(), annotation: None, kubectl: None, note },
        };
        let kubectl = patch(&owner, &list, calicos);
        let replaced = match calicos.is_empty() {
            true => String::new(),
            false => format!(", in the place of {}", calicos.iter().copied().collect::<Vec<_>>().join(" and ")),
        };
        let note = match (&kubectl, owner.kind.as_str()) {
            (None, "Pod") => {
                format!("a pod without controller: put {IP} into the manifest that it is made from{replaced}")
            }
            (None, _) => format!("put {IP} into the template from which its pods are made{replaced}"),
            (Some(_), "Deployment") => format!("{REPLACES}{SURGE}"),
            (Some(_), _) => REPLACES.to_owned(),
        };
        Self { owner: owner.to_string(), annotation: Some(list), kubectl, note }
    }

    pub(super) fn text(&self) -> String {
        let head = match &self.annotation {
            Some(list) => format!("{}: its pods ask for it by {IP}: {list:?}; {}", self.owner, self.note),
            None => format!("{}: {}", self.owner, self.note),
        };
        match &self.kubectl {
            Some(words) => {
                format!("{head}\n  kubectl {}", words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" "))
            }
            None => head,
        }
    }
}

/// IPv4 first.
fn in_order(claims: &[&Claim]) -> String {
    let addresses: BTreeSet<IpAddr> = claims.iter().map(|claim| claim.address).collect();
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

/// The n-th address is that of ordinal n, in each family.
fn by_ordinal(claims: &[&Claim]) -> Result<String, String> {
    let mut list = Vec::new();
    for family in Family::BOTH {
        let of_family = claims.iter().filter(|claim| Family::of(claim.address) == family);
        let by_ordinal: BTreeMap<u32, IpAddr> =
            of_family.filter_map(|claim| Some((claim.owner.ordinal?, claim.address))).collect();
        if let Some(gap) = (0u32..).zip(by_ordinal.keys()).find(|(expected, found)| expected != *found) {
            return Err(format!(
                "the n-th address of {IP} is that of the pod with ordinal n, and the pod with ordinal {} has no claim on \
                 an {family} address yet: adopt or import it too, and ask again",
                gap.0
            ));
        }
        list.extend(by_ordinal.values().map(IpAddr::to_string));
    }
    Ok(list.join(","))
}

/// `kubectl patch` for the kinds whose template may be changed.
fn patch(owner: &Owner, list: &str, calicos: &BTreeSet<&str>) -> Option<Vec<String>> {
    let mut annotations = json!({IP: list});
    // In a merge patch, null takes a key away.
    calicos.iter().for_each(|key| annotations[*key] = Value::Null);
    let template = json!({"template": {"metadata": {"annotations": annotations}}});
    let spec: Value = match (owner.group.as_str(), owner.kind.as_str()) {
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet") | ("argoproj.io", "Rollout") => template,
        ("batch", "CronJob") => json!({"jobTemplate": {"spec": template}}),
        _ => return None,
    };
    let resource = format!("{}.{}", owner.kind.to_lowercase(), owner.group);
    let patch = json!({"spec": spec}).to_string();
    let words = ["patch", &resource, &owner.name, "-n", &owner.namespace, "--type", "merge", "-p", &patch];
    Some(words.map(str::to_owned).into())
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(kind: &str, group: &str, ordinal: Option<u32>) -> Owner {
        let (namespace, name) = ("default".into(), "web".into());
        Owner { namespace, group: group.into(), version: None, kind: kind.into(), name, ordinal }
    }

    fn claim(address: &str, owner: &Owner) -> Claim {
        serde_json::from_value(json!({
            "address": address, "owner": owner, "created": "2026-11-24T02:01:28Z", "generation": 2,
        }))
        .unwrap()
    }

    #[test]
    fn the_patch_of_a_deployment_lists_the_addresses_of_all_its_pods() {
        let web = owner("Deployment", "apps", None);
        let claims = [claim("10.0.0.9", &web), claim("10.0.0.8", &web), claim("fd00::8", &web)];
        let template = Template::of(&web, &claims.iter().collect::<Vec<_>>(), &BTreeSet::new());
        assert_eq!(template.annotation.as_deref(), Some("10.0.0.8,10.0.0.9,fd00::8"));
        let expected = "\n  kubectl patch deployment.apps web -n default --type merge -p \
                        '{\"spec\":{\"template\":{\"metadata\":{\"annotations\":{\"kube-ipam.ip\":\"10.0.0.8,10.0.0.9,fd00::8\"}}}}}'";
        assert!(template.text().ends_with(expected) && template.text().contains("maxSurge"), "{}", template.text());
    }

    #[test]
    fn the_list_of_a_statefulset_is_in_order_of_the_pods_and_has_no_gap() {
        let of = |ordinal, address| claim(address, &owner("StatefulSet", "apps", Some(ordinal)));
        let set = owner("StatefulSet", "apps", Some(1));
        let claims = [of(1, "10.0.0.8"), of(0, "10.0.0.9")];
        let template = Template::of(&set, &claims.iter().collect::<Vec<_>>(), &BTreeSet::new());
        assert_eq!(
            (template.owner.as_str(), template.annotation.as_deref()),
            ("StatefulSet default/web", Some("10.0.0.9,10.0.0.8"))
        );
        let template = Template::of(&set, &[&claims[0]], &BTreeSet::new());
        assert_eq!((template.annotation, template.kubectl), (None, None));
        assert!(template.note.contains("ordinal 0 has no claim"), "{}", template.note);
    }

    #[test]
    fn calicos_own_annotation_is_replaced() {
        let (web, calicos) = (owner("Deployment", "apps", None), BTreeSet::from(["cni.projectcalico.org/ipAddrs"]));
        let template = Template::of(&web, &[&claim("10.0.0.8", &web)], &calicos);
        let expected = r#"{"cni.projectcalico.org/ipAddrs":null,"kube-ipam.ip":"10.0.0.8"}"#;
        assert!(template.text().contains(expected), "{}", template.text());
        let pod = owner("Pod", "", None);
        let template = Template::of(&pod, &[&claim("10.0.0.8", &pod)], &calicos);
        assert!(template.note.ends_with("in the place of cni.projectcalico.org/ipAddrs"), "{}", template.note);
    }

    #[test]
    fn where_no_template_may_be_changed_there_is_no_patch() {
        for (kind, group) in [("Pod", ""), ("Job", "batch"), ("CloneSet", "apps.kruise.io")] {
            let owner = owner(kind, group, None);
            let template = Template::of(&owner, &[&claim("10.0.0.8", &owner)], &BTreeSet::new());
            assert_eq!(template.kubectl, None);
            assert!(template.note.contains(IP), "{}", template.note);
        }
        let cron = owner("CronJob", "batch", None);
        let template = Template::of(&cron, &[&claim("10.0.0.8", &cron)], &BTreeSet::new());
        assert!(template.text().contains(r#"{"spec":{"jobTemplate":{"spec":{"template""#), "{}", template.text());
    }
}

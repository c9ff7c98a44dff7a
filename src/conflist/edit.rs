//! Changing who does the IPAM of a network configuration list that somebody else wrote: one section is replaced, and
//! everything else of it stays.

use std::path::PathBuf;

use calico::ApiGroup;
use serde_json::{Value, json};

use super::plugin_conf;
use crate::cni::error::shown_json;
use crate::cni::{CniError, code};
use crate::netconf::NetConf;

/// `ipam.type` of ours.
const OURS: &str = "kube-ipam";
/// `ipam.type` of Calico's.
const CALICOS: &str = "calico-ipam";
/// Fields that name subnets: with one of them the families and pools are the template's own.
const SUBNETS: [&str; 2] = ["subnet", "ranges"];
/// Fields of Calico's section that mean the same in ours.
const CARRIED: [&str; 4] = ["assign_ipv4", "assign_ipv6", "ipv4_pools", "ipv6_pools"];
/// The main plugin's field that names the API group of Calico's objects.
const API_GROUP: &str = "calico_api_group";

/// The `ipam` section of a list, whoever's of the two it is. `None`: it is no list of Calico's, or its addresses come
/// from somewhere else.
pub fn ipam_section(list: &Value) -> Option<&Value> {
    sections(list).find_map(|plugin| plugin.get("ipam").filter(|ipam| is(ipam, OURS) || is(ipam, CALICOS)))
}

/// Whether a runtime takes the content of a file for a configuration: of a list if the file's name ends in `.conflist`,
/// else of one plugin.
pub fn is_configuration(conf: &Value, is_list: bool) -> bool {
    let typed = |plugin: &Value| plugin.get("type").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty());
    let plugins = conf.get("plugins").and_then(Value::as_array);
    if is_list { plugins.is_some_and(|all| !all.is_empty() && all.iter().all(typed)) } else { typed(conf) }
}

/// Whether a section is ours.
pub fn is_ours(section: &Value) -> bool {
    is(section, OURS)
}

/// Where a configuration says what a pod's own network is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DefaultNetwork<'a> {
    /// In itself.
    Own,
    /// Multus: in the first of its delegates.
    Delegate(&'a Value),
    /// Multus: in a configuration of this network's or file's name.
    Named(&'a str),
    /// Multus: it does not say.
    Unsaid,
}

/// Where `conf` says it.
pub fn default_network(conf: &Value) -> DefaultNetwork<'_> {
    let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default();
    if !kind.starts_with("multus") {
        return DefaultNetwork::Own;
    }
    // As in Multus itself, this counts more.
    let named = conf.get("clusterNetwork").and_then(Value::as_str).filter(|name| !name.is_empty());
    let first = || conf.get("delegates")?.as_array()?.first();
    match (named, first()) {
        (Some(name), _) => DefaultNetwork::Named(name),
        (None, Some(delegate)) => DefaultNetwork::Delegate(delegate),
        (None, None) => DefaultNetwork::Unsaid,
    }
}

/// The kubeconfig of the main plugin whose addresses come from Calico's IPAM or from ours.
pub fn main_kubeconfig(list: &Value) -> Option<PathBuf> {
    let main = sections(list).find(|plugin| has_section(plugin))?;
    main.pointer("/kubernetes/kubeconfig")?.as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The API group that the main plugin of a list names, whose addresses come from Calico's IPAM or from ours.
pub fn api_group(list: &Value) -> Option<ApiGroup> {
    let main = sections(list).find(|plugin| has_section(plugin))?;
    main.get(API_GROUP)?.as_str().filter(|text| !text.is_empty()).map(ApiGroup::named)
}

/// The list with its main plugin in an API group; `None` if nothing would change. The older group is what a list means that
/// names none, and is written only in the place of the newer one: without kube-ipam nobody would correct it after Calico's
/// migration, and Calico's own plugin finds the group by itself.
pub fn with_api_group(list: &Value, group: ApiGroup) -> Option<Value> {
    if api_group(list).unwrap_or_default() == group || ipam_section(list).is_none() {
        return None;
    }
    let mut edited = list.clone();
    for plugin in sections_mut(&mut edited).into_iter().filter(|plugin| has_section(plugin)) {
        plugin[API_GROUP] = group.api_version().into();
    }
    Some(edited)
}

/// Whether a section is Calico's own.
pub fn is_calicos(section: &Value) -> bool {
    is(section, CALICOS)
}

/// The list with our section in the place of its own; `None` if nothing would change. Code 7 if there is no such
/// section, or if what comes out is no configuration that kube-ipam understands.
pub fn with_ours(list: &Value, section: &Value) -> Result<Option<Value>, CniError> {
    is_named(section)?;
    let Some(edited) = replaced(list, section)? else { return Ok(None) };
    NetConf::parse(&plugin_conf(&edited, OURS)?, OURS)?;
    Ok(Some(edited))
}

/// The list with Calico's own section, `before` if that is known; `None` if it has Calico's.
pub fn with_calicos(list: &Value, before: Option<&Value>) -> Result<Option<Value>, CniError> {
    if ipam_section(list).is_some_and(is_calicos) {
        return Ok(None);
    }
    let plain = json!({ "type": CALICOS });
    replaced(list, before.filter(|section| is_calicos(section)).unwrap_or(&plain))
}

/// The section that a list gets by a template: where this names no subnet, what Calico's own section `calicos` says of
/// families and pools, and the template does not, stays so.
pub fn carried_over(template: &Value, calicos: Option<&Value>) -> Value {
    let mut section = template.clone();
    let (Some(fields), Some(calicos)) = (section.as_object_mut(), calicos.filter(|section| is_calicos(section))) else {
        return section;
    };
    if SUBNETS.iter().any(|key| fields.contains_key(*key)) {
        return section;
    }
    for key in CARRIED {
        if let Some(value) = calicos.get(key) {
            fields.entry(key).or_insert_with(|| value.clone());
        }
    }
    section
}

/// What a section alone says, before there is a list to put it in. Code 7 if it is not sound.
pub fn check_ours(section: &Value) -> Result<NetConf, CniError> {
    is_named(section)?;
    let around = json!({ "cniVersion": "0.3.1", "name": "k8s-pod-network", "type": "calico", "ipam": section });
    NetConf::parse(&around, OURS)
}

/// A main plugin calls what `type` names.
fn is_named(section: &Value) -> Result<(), CniError> {
    if is(section, OURS) {
        return Ok(());
    }
    let found = section.get("type").map_or("nothing".to_owned(), shown_json);
    let wrong = format!("type: {found} is not kube-ipam's section");
    Err(CniError::new(code::INVALID_CONFIG, wrong, "write \"type\": \"kube-ipam\""))
}

fn replaced(list: &Value, section: &Value) -> Result<Option<Value>, CniError> {
    match ipam_section(list) {
        Some(found) if found == section => return Ok(None),
        Some(_) => {}
        None => {
            let wrong = format!("plugins: none has ipam.type {CALICOS:?} or {OURS:?}");
            return Err(CniError::new(code::INVALID_CONFIG, wrong, "name the list that calico-node's installer wrote"));
        }
    }
    let mut edited = list.clone();
    for plugin in sections_mut(&mut edited).into_iter().filter(|plugin| has_section(plugin)) {
        plugin["ipam"] = section.clone();
    }
    Ok(Some(edited))
}

/// Whether a plugin's addresses come from Calico's IPAM or from ours.
fn has_section(plugin: &Value) -> bool {
    plugin.get("ipam").is_some_and(|ipam| is(ipam, OURS) || is(ipam, CALICOS))
}

/// The plugins of a list, or the one that a configuration of the old form is.
fn sections(list: &Value) -> impl Iterator<Item = &Value> {
    let plugins = list.get("plugins").and_then(Value::as_array);
    plugins.into_iter().flatten().chain(plugins.is_none().then_some(list))
}

fn sections_mut(list: &mut Value) -> Vec<&mut Value> {
    match list.get("plugins").is_some_and(Value::is_array) {
        true => list["plugins"].as_array_mut().into_iter().flatten().collect(),
        false => vec![list],
    }
}

fn is(section: &Value, kind: &str) -> bool {
    section.get("type").and_then(Value::as_str) == Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calicos() -> Value {
        json!({
            "name": "k8s-pod-network", "cniVersion": "0.3.1",
            "plugins": [
                {"type": "calico", "mtu": 0, "ipam": {"type": "calico-ipam", "assign_ipv6": "true"},
                 "container_settings": {"allow_ip_forwarding": false}, "of a later version": [1]},
                {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
            ],
        })
    }

    fn ours() -> Value {
        json!({"type": "kube-ipam", "name": "kube-subnet", "subnet": "10.244.0.0/16"})
    }

    #[test]
    fn only_ipam_changes_and_comes_back_as_it_was() {
        let before = calicos();
        let edited = with_ours(&before, &ours()).unwrap().unwrap();
        let mut expected = before.clone();
        expected["plugins"][0]["ipam"] = ours();
        assert_eq!(edited, expected);
        assert_eq!(with_ours(&edited, &ours()).unwrap(), None);
        let original = ipam_section(&before).unwrap();
        assert_eq!(with_calicos(&edited, Some(original)).unwrap(), Some(before.clone()));
        assert_eq!(with_calicos(&before, Some(original)).unwrap(), None);
        let plain = with_calicos(&edited, None).unwrap().unwrap();
        assert_eq!(plain["plugins"][0]["ipam"], json!({"type": "calico-ipam"}));
        // What is kept of an earlier time is believed only if it is Calico's.
        assert_eq!(with_calicos(&edited, Some(&ours())).unwrap().unwrap(), plain);
    }

    #[test]
    fn what_calicos_section_says_of_families_and_pools_is_carried_over() {
        let calicos = json!({
            "type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true", "ipv6_pools": ["six"], "other": 1,
        });
        let template = json!({"type": "kube-ipam", "name": "kube-subnet"});
        let expected = json!({
            "type": "kube-ipam", "name": "kube-subnet", "assign_ipv4": "false", "assign_ipv6": "true", "ipv6_pools": ["six"],
        });
        assert_eq!(carried_over(&template, Some(&calicos)), expected);
        // What the template says counts, and its subnets say everything.
        let own = json!({"type": "kube-ipam", "assign_ipv4": true, "ipv6_pools": ["own"]});
        let mut expected = own.clone();
        expected["assign_ipv6"] = "true".into();
        assert_eq!(carried_over(&own, Some(&calicos)), expected);
        assert_eq!(carried_over(&ours(), Some(&calicos)), ours());
        assert_eq!(carried_over(&template, None), template);
        assert_eq!(carried_over(&template, Some(&own)), template);
    }

    #[test]
    fn a_single_plugin_without_a_list_is_edited_too() {
        let single = json!({"name": "n", "cniVersion": "0.3.1", "type": "calico", "ipam": {"type": "calico-ipam"}});
        let edited = with_ours(&single, &ours()).unwrap().unwrap();
        assert_eq!((&edited["ipam"], &edited["type"]), (&ours(), &json!("calico")));
    }

    #[test]
    fn other_lists_and_bad_sections_are_refused() {
        let mut other = calicos();
        other["plugins"][0]["ipam"]["type"] = "host-local".into();
        assert_eq!(ipam_section(&other), None);
        let said = with_ours(&other, &ours()).unwrap_err().to_string();
        assert!(said.contains("calico-ipam") && said.contains("calico-node's installer"), "{said}");
        let mut bad = ours();
        bad["rangeStart"] = "10.9.0.1".into();
        let said = with_ours(&calicos(), &bad).unwrap_err().to_string();
        assert!(said.contains("rangeStart") && said.contains("10.9.0.1"), "{said}");
        assert_eq!(check_ours(&bad).unwrap_err().to_string(), said);
        // A list whose records Calico would look for elsewhere, or whose fields nobody reads where they stand.
        for (field, value) in [("etcd_endpoints", "https://10.0.0.1:2379"), ("kubeConfig", "/x"), ("nodeName", "n1")] {
            let mut elsewhere = calicos();
            elsewhere["plugins"][0][field] = value.into();
            let said = with_ours(&elsewhere, &ours()).unwrap_err().to_string();
            assert!(said.contains(field), "{said}");
        }
        // By a list that is one plugin the section would be found without its type; its caller would not be.
        let single = json!({"name": "n", "cniVersion": "0.3.1", "type": "calico", "ipam": {"type": "calico-ipam"}});
        assert!(with_ours(&single, &json!({"type": null, "subnet": "10.244.0.0/16"})).is_err());
        let said = check_ours(&json!({"type": "calico-ipam"})).unwrap_err().to_string();
        assert!(said.contains("type: \"calico-ipam\"") && said.contains("\"kube-ipam\""), "{said}");
        check_ours(&ours()).unwrap();
    }

    #[test]
    fn a_list_names_the_newer_group_and_the_older_one_only_in_its_place() {
        use calico::ApiGroup::{Crd, V3};
        let named = |list: &Value| list["plugins"][0].get("calico_api_group").cloned();
        assert_eq!((api_group(&calicos()), with_api_group(&calicos(), Crd)), (None, None));
        let newer = with_api_group(&calicos(), V3).unwrap();
        assert_eq!((named(&newer), api_group(&newer)), (Some(json!("projectcalico.org/v3")), Some(V3)));
        assert_eq!(newer["plugins"][1], calicos()["plugins"][1]);
        assert_eq!(with_api_group(&newer, V3), None);
        let older = with_api_group(&newer, Crd).unwrap();
        assert_eq!((named(&older), api_group(&older)), (Some(json!("crd.projectcalico.org/v1")), Some(Crd)));
        assert_eq!(with_api_group(&older, Crd), None);
        let single = calicos()["plugins"][0].clone();
        assert_eq!(with_api_group(&single, V3).unwrap()["calico_api_group"], "projectcalico.org/v3");
        // What gives its addresses otherwise is not Calico's to say.
        let other = json!({"plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}]});
        assert_eq!((api_group(&other), with_api_group(&other, V3)), (None, None));
    }
}

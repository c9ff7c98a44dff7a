//! A network configuration list that somebody else wrote, and the section to put into it: `{"list": ..., "section": ...}`.

use kube_ipam::conflist::{check_ours, ipam_section, is_calicos, plugin_conf, with_calicos, with_ours};
use kube_ipam::netconf::NetConf;
use serde_json::{Value, json as object};

use super::{is_proper, json};

pub fn run(data: &[u8]) {
    let Some(input) = json(data) else { return };
    let (list, section) = (&input["list"], &input["section"]);
    let checked = check_ours(section);
    if let Err(error) = &checked {
        is_proper(error);
    }
    match with_ours(list, section) {
        Err(error) => is_proper(&error),
        Ok(None) => assert_eq!(ipam_section(list), Some(section)),
        Ok(Some(edited)) => {
            is_ours(list, &edited, section);
            back(list, &edited);
        }
    }
    match with_calicos(list, Some(section)) {
        Err(error) => is_proper(&error),
        Ok(None) => assert!(ipam_section(list).is_some_and(is_calicos)),
        Ok(Some(edited)) => {
            assert!(ipam_section(&edited).is_some_and(is_calicos));
            assert_eq!(outside(list), outside(&edited));
        }
    }
}

/// The plugin understands what came out, nothing but the section changed, and doing it again does nothing.
fn is_ours(list: &Value, edited: &Value, section: &Value) {
    let conf = plugin_conf(edited, "kube-ipam").unwrap();
    NetConf::parse(&conf, "kube-ipam").unwrap();
    assert_eq!(conf.get("ipam"), Some(section));
    assert_eq!(outside(list), outside(edited), "something else changed");
    assert_eq!(with_ours(edited, section), Ok(None));
}

/// Calico's section comes back as it was, if it was the only one.
fn back(list: &Value, edited: &Value) {
    let Some(before) = ipam_section(list).filter(|found| is_calicos(found)) else { return };
    let restored = with_calicos(edited, Some(before)).unwrap().unwrap();
    assert_eq!(ipam_section(&restored), Some(before));
    let sections = list["plugins"].as_array().map_or(1, |plugins| plugins.iter().filter(|p| is_one(p)).count());
    if sections == 1 {
        assert_eq!(&restored, list);
    }
}

fn is_one(plugin: &Value) -> bool {
    matches!(plugin.pointer("/ipam/type").and_then(Value::as_str), Some("calico-ipam" | "kube-ipam"))
}

/// A list without the sections that may be replaced.
fn outside(list: &Value) -> Value {
    let mut rest = list.clone();
    let blank = |plugin: &mut Value| {
        if is_one(plugin) {
            plugin["ipam"] = object!("a section");
        }
    };
    match rest.get_mut("plugins").and_then(Value::as_array_mut) {
        Some(plugins) => plugins.iter_mut().for_each(blank),
        None => blank(&mut rest),
    }
    rest
}

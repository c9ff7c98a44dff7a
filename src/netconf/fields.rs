//! Which field belongs into which section. One that stands in another section would be ignored without a word.

use serde_json::Value;

use super::{etcd, ipam};
use crate::cni::CniError;
use crate::cni::object::Object;
use crate::pod::IP;
use crate::range;

/// The fields beside `ipam` that are read here. Go programs, as Calico's are, read them in any case.
const OUTER: [&str; 13] = [
    "cniVersion",
    "name",
    "type",
    "ipam",
    "kubernetes",
    "nodename",
    "nodename_file",
    "nodename_file_optional",
    "hostname",
    "datastore_type",
    "calico_api_group",
    "log_level",
    "log_file_path",
];
/// The fields beside `ipam` that only Calico's plugins read.
const CALICOS: [&str; 31] = [
    "args",
    "container_settings",
    "dataplane_options",
    "endpoint_status_dir",
    "etcd_authority",
    "etcd_ca_cert_file",
    "etcd_cert_file",
    "etcd_discovery_srv",
    "etcd_endpoints",
    "etcd_key_file",
    "etcd_scheme",
    "feature_control",
    "include_default_routes",
    "ipam_lock_file",
    "log_file_max_age",
    "log_file_max_count",
    "log_file_max_size",
    "mode",
    "mtu",
    "num_queues",
    "policy",
    "policy_setup_timeout_seconds",
    "readiness_gates",
    "require_mtu_file",
    "vxlan_mac_prefix",
    "vxlan_vni",
    "windows_disable_default_deny_all_policy",
    "windows_loopback_DSR",
    "windows_pod_deletion_timestamp_timeout",
    "windows_use_single_network",
    "prevResult",
];
const KUBERNETES: [&str; 3] = ["k8s_api_root", "kubeconfig", "node_name"];
const POLICY: [&str; 6] =
    ["type", "k8s_api_root", "k8s_auth_token", "k8s_client_certificate", "k8s_client_key", "k8s_certificate_authority"];

/// The sections in which a field is looked for that stands where it is not known.
const SECTIONS: [(&str, &[&str]); 6] = [
    ("ipam.", &ipam::FIELDS),
    ("ipam.etcdConfig.", &etcd::FIELDS),
    ("ipam.takeover.", &ipam::TAKEOVER),
    ("", &OUTER),
    ("", &CALICOS),
    ("kubernetes.", &KUBERNETES),
];

/// Names that the main plugins of others give to fields of their own.
const COMMON: [&str; 6] = ["subnet", "gateway", "ranges", "routes", "dataDir", "kubeconfig"];

/// Code 7 for a field that is known, and stands where nobody reads it, or is spelt in another case.
pub(super) fn refuse_misplaced(outer: &Object<'_>, main_plugin: &str) -> Result<(), CniError> {
    outer.refuse_case(&OUTER)?;
    let theirs: &[&str] = if main_plugin == "calico" { &[] } else { &COMMON };
    check(outer, &[&OUTER, &CALICOS, theirs])?;
    if let Ok(Some(kubernetes)) = outer.object("kubernetes") {
        kubernetes.refuse_case(&KUBERNETES)?;
        check(&kubernetes, &[&KUBERNETES])?;
    }
    if let Ok(Some(policy)) = outer.object("policy") {
        check(&policy, &[&POLICY])?;
    }
    let Some(ipam) = outer.object("ipam")? else { return Ok(()) };
    if ipam.value("addresses").is_some() {
        return Err(ipam.unknown("addresses", format!("give a pod its address by the annotation {IP}")));
    }
    check(&ipam, &[&ipam::FIELDS])?;
    for (section, known) in [("etcdConfig", &etcd::FIELDS[..]), ("takeover", &ipam::TAKEOVER)] {
        if let Ok(Some(section)) = ipam.object(section) {
            check(&section, &[known])?;
        }
    }
    for (index, set) in ipam.list("ranges")?.unwrap_or_default().iter().enumerate() {
        for (nth, item) in set.as_array().into_iter().flatten().enumerate().filter(|(_, item)| item.is_object()) {
            check(&Object::new(format!("ipam.ranges[{index}][{nth}]"), item)?, &[&range::FIELDS])?;
        }
    }
    Ok(())
}

/// Judges the fields of one section, which knows the names in `known`.
fn check(section: &Object<'_>, known: &[&[&str]]) -> Result<(), CniError> {
    let unknown = section.keys().filter(|key| !known.iter().any(|known| known.contains(key)));
    for key in unknown {
        let place = SECTIONS.iter().find(|(_, fields)| fields.contains(&key));
        if let Some((place, _)) = place.filter(|_| section.value(key) != Some(&Value::Null)) {
            return Err(section.unknown(key, format!("write it as {place}{key}")));
        }
    }
    Ok(())
}

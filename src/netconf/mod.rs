//! The network configuration: all of what the main plugin passes on to its IPAM plugin on stdin, parsed once.
//!
//! Every refusal is code 7 (code 1 for the version) and names the field by its path, the value, and what would be right. Unknown fields
//! belong to the main plugin and are skipped, except those in our own sections that look like a misspelt field of ours, and known ones
//! that stand in a section where nobody reads them.

mod asked;
mod etcd;
mod fields;
mod ipam;
mod node;

use std::path::PathBuf;

use calico::ApiGroup;
use serde_json::Value;
use tracing::level_filters::LevelFilter;

use crate::cni::names::{is_cni_name, is_dns_subdomain};
use crate::cni::object::Object;
use crate::cni::{Answer, CniError, CniVersion, Verb};

pub use etcd::EtcdConfig;
pub(crate) use ipam::pool_ref;
pub use ipam::{Dialect, Ipam, PoolRef, STATE_DIR};
pub use node::NodeName;

/// A network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// `cniVersion`
    pub cni_version: CniVersion,
    /// `name` of the network, the prefix of Calico's handle ids.
    pub network: String,
    /// `type`: the main plugin, `calico`, `ptp`, ...
    pub main_plugin: String,
    /// How this node's name is found.
    pub nodename: NodeName,
    /// `ipam.kubeConfig`, else `kubernetes.kubeconfig`. Absolute.
    pub kubeconfig: Option<PathBuf>,
    /// `calico_api_group`: in which group Calico's objects are; none: as the environment or the cluster says.
    pub api_group: Option<ApiGroup>,
    /// `log_level`, `info` by default.
    pub log_level: LevelFilter,
    /// `log_file_path`; none: standard error only. Absolute.
    pub log_file_path: Option<PathBuf>,
    /// The `ipam` section.
    pub ipam: Ipam,
    /// `cni.dev/valid-attachments`: what GC must keep. None if the key is absent, which must not be read as "nothing is valid".
    pub attachments: Option<Vec<Attachment>>,
    /// `prevResult`, which CHECK compares.
    pub prev_result: Option<Answer>,
    /// The refusal of an address that is asked for in a way that is not served (`runtimeConfig.ips`, ...): ADD gives it, so
    /// that the pod does not get any address.
    pub asked: Option<CniError>,
}

/// An attachment that GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// `containerID`
    pub container_id: String,
    /// `ifname`
    pub ifname: String,
}

impl NetConf {
    /// Parses a configuration. `plugin_name` is the name this binary was called by (`kube-ipam`, `calico-ipam`): it stands in for an
    /// absent `ipam.type`. Code 1 for the version, code 7 for everything else.
    pub fn parse(conf: &Value, plugin_name: &str) -> Result<NetConf, CniError> {
        let outer = Object::new("", conf)?;
        let cni_version = CniVersion::of(conf)?;
        let network = network(&outer)?;
        let Some(main_plugin) = outer.text("type")? else {
            return Err(outer.missing("type", "give the main plugin, such as \"calico\""));
        };
        let Some(ipam) = outer.object("ipam")? else {
            return Err(outer.missing("ipam", "give the section \"ipam\" with \"type\": \"kube-ipam\""));
        };
        fields::refuse_misplaced(&outer, main_plugin)?;
        datastore(&outer)?;
        let kubernetes = outer.object("kubernetes")?;
        let outer_kubeconfig = kubernetes.map(|section| section.file("kubeconfig")).transpose()?.flatten();
        Ok(NetConf {
            cni_version,
            ipam: Ipam::parse(&ipam, &network, main_plugin, plugin_name)?,
            network,
            main_plugin: main_plugin.to_owned(),
            nodename: NodeName::parse(&outer)?,
            kubeconfig: ipam.file("kubeConfig")?.or(outer_kubeconfig),
            api_group: api_group(&outer)?,
            log_level: log_level(&outer)?,
            log_file_path: outer.file("log_file_path")?,
            attachments: attachments(&outer)?,
            prev_result: outer.value("prevResult").map(|result| Answer::parse(result, &cni_version)).transpose()?,
            asked: asked::refusal(conf),
        })
    }
}

impl NetConf {
    /// What a verb needs of a configuration, and the fault that it does without; see [`NetConf::parse_for_del`].
    pub fn parse_for(verb: Verb, conf: &Value, plugin_name: &str) -> Result<(NetConf, Option<CniError>), CniError> {
        match verb {
            Verb::Del => NetConf::parse_for_del(conf, plugin_name),
            _ => NetConf::parse(conf, plugin_name).map(|net| (net, None)),
        }
    }

    /// What DEL uses of a configuration: the names, the kubeconfig and `ipam.etcdConfig`; log and state directory
    /// if they can be read. A configuration that was broken after its pods were made would keep them for ever
    /// otherwise. Gives the fault that DEL does without, too; code 1 or 7 for what it cannot do without.
    pub fn parse_for_del(conf: &Value, plugin_name: &str) -> Result<(NetConf, Option<CniError>), CniError> {
        let fault = match NetConf::parse(conf, plugin_name) {
            Ok(net) => return Ok((net, None)),
            Err(fault) => fault,
        };
        let outer = Object::new("", conf)?;
        let network = network(&outer)?;
        let Some(ipam) = outer.object("ipam")? else { return Err(fault) };
        let kubeconfig = match ipam.file("kubeConfig")? {
            Some(file) => Some(file),
            None => outer.object("kubernetes")?.map(|section| section.file("kubeconfig")).transpose()?.flatten(),
        };
        let net = NetConf {
            cni_version: CniVersion::of(conf)?,
            ipam: Ipam::parse_for_del(&ipam, &network)?,
            network,
            main_plugin: outer.text("type").ok().flatten().unwrap_or_default().to_owned(),
            nodename: NodeName::parse(&outer).unwrap_or_else(|_| NodeName::by_file()),
            kubeconfig,
            api_group: api_group(&outer).unwrap_or_default(),
            log_level: log_level(&outer).unwrap_or(LevelFilter::INFO),
            log_file_path: outer.file("log_file_path").ok().flatten(),
            attachments: None,
            prev_result: None,
            asked: None,
        };
        Ok((net, Some(fault)))
    }
}

/// The name becomes the first part of handle ids, which are names of Kubernetes objects in lower case.
fn network(outer: &Object<'_>) -> Result<String, CniError> {
    let Some(name) = outer.text("name")? else {
        return Err(outer.missing("name", "give the network's name, such as \"k8s-pod-network\""));
    };
    if is_cni_name(name) && is_dns_subdomain(&name.to_ascii_lowercase()) {
        return Ok(name.to_owned());
    }
    let right = "letters, digits, - and . only, a letter or digit at both ends: Calico's handles are named after it";
    Err(outer.refuse("name", name, "is not the name of a network", right))
}

/// Calico takes etcd for its datastore also where `datastore_type` is not there, and etcd is named.
fn datastore(outer: &Object<'_>) -> Result<(), CniError> {
    const ONLY: &str = "Calico's objects are reached through the Kubernetes API only";
    match outer.text("datastore_type")? {
        Some("kubernetes") => Ok(()),
        Some(other) => {
            Err(outer.refuse("datastore_type", other, "is not supported", format!("write \"kubernetes\": {ONLY}")))
        }
        None => {
            let named = |key| Some((key, outer.value(key)?.as_str()?));
            let Some((key, value)) =
                ["etcd_endpoints", "etcd_authority", "etcd_discovery_srv"].into_iter().find_map(named)
            else {
                return Ok(());
            };
            let right = format!("{ONLY}: if Calico keeps them there, write \"datastore_type\": \"kubernetes\"");
            Err(outer.refuse(key, value, "makes etcd Calico's datastore, as there is no datastore_type", right))
        }
    }
}

/// Calico's words for levels, in any case, and the finer ones.
fn log_level(outer: &Object<'_>) -> Result<LevelFilter, CniError> {
    let Some(word) = outer.text("log_level")? else { return Ok(LevelFilter::INFO) };
    Ok(match word.to_ascii_lowercase().as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        "none" | "off" => LevelFilter::OFF,
        _ => {
            return Err(outer.refuse("log_level", word, "is not a level", "write debug, info, warning, error or none"));
        }
    })
}

fn attachments(outer: &Object<'_>) -> Result<Option<Vec<Attachment>>, CniError> {
    // The specification once called it cni.dev/attachments, and runtimes send both. A list that is null is a Go program's empty one.
    let Some(key) = ["cni.dev/valid-attachments", "cni.dev/attachments"].into_iter().find(|key| outer.has(key)) else {
        return Ok(None);
    };
    let read = |object: Object<'_>| {
        let text =
            |key| object.text(key)?.map(str::to_owned).ok_or_else(|| object.missing(key, "name what must be kept"));
        Ok(Attachment { container_id: text("containerID")?, ifname: text("ifname")? })
    };
    outer.objects(key)?.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

/// Read as Calico reads it: whatever is not the newer group's name means the older one.
fn api_group(outer: &Object<'_>) -> Result<Option<ApiGroup>, CniError> {
    Ok(outer.text("calico_api_group")?.filter(|text| !text.is_empty()).map(ApiGroup::named))
}

#[cfg(test)]
mod tests;

//! The network configuration: all of what the main plugin passes on to its IPAM plugin on stdin, parsed once.
//!
//! Every refusal is code 7 (code 1 for the version) and names the field by its path, the value, and what would be right. Unknown fields
//! belong to the main plugin and are skipped, except those in our own sections that look like a misspelt field of ours.

mod etcd;
mod ipam;
mod node;

use std::path::PathBuf;

use serde_json::Value;
use tracing::level_filters::LevelFilter;

use crate::cni::{Answer, CniError, CniVersion};

pub use etcd::EtcdConfig;
pub use ipam::{Dialect, Ipam, PoolRef};
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
    /// `calico_api_group`; none: find out.
    pub calico_api_group: Option<CalicoApiGroup>,
}

/// An attachment that GC must keep.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// `containerID`
    pub container_id: String,
    /// `ifname`
    pub ifname: String,
}

/// Where a cluster stores Calico's objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CalicoApiGroup {
    /// `crd.projectcalico.org/v1`
    CrdV1,
    /// `projectcalico.org/v3`
    V3,
}

impl NetConf {
    /// Parses a configuration. `plugin_name` is the name this binary was called by (`kube-ipam`, `calico-ipam`): it stands in for an
    /// absent `ipam.type`. Code 1 for the version, code 7 for everything else.
    pub fn parse(conf: &Value, plugin_name: &str) -> Result<NetConf, CniError> {
        let _ = (conf, plugin_name);
        unimplemented!()
    }
}

//! Under which name this node's blocks and allocations are recorded: Calico's rules, since felix compares it with its own.

use std::path::PathBuf;

use crate::cni::CniError;

/// The fields of the configuration that decide the node's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// `nodename`: wins.
    pub nodename: Option<String>,
    /// `nodename_file`, by default `/var/lib/calico/nodename`: next, if it is there.
    pub file: PathBuf,
    /// Whether a missing file is an error: it was named, and `nodename_file_optional` is not set.
    pub file_required: bool,
    /// `hostname`, deprecated: next.
    pub hostname: Option<String>,
}

impl NodeName {
    /// The node's name: `nodename`, else the file's content, else `hostname`, else the host's own name in lower case.
    /// `file` is the content of [`NodeName::file`], none if there is no such file. Code 7 if what is found is no node name.
    pub fn resolve(&self, file: Option<&str>, host: &str) -> Result<String, CniError> {
        let _ = (file, host);
        unimplemented!()
    }
}

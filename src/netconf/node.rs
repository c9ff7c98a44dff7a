//! Under which name this node's blocks and allocations are recorded: Calico's rules, since felix compares it with its own.

use std::path::PathBuf;

use crate::cni::CniError;
use crate::cni::names::is_dns_subdomain;
use crate::cni::object::Object;

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
    pub(super) fn parse(conf: &Object<'_>) -> Result<NodeName, CniError> {
        let named = conf.file("nodename_file")?;
        let optional = conf.flag("nodename_file_optional")?.unwrap_or(false);
        Ok(NodeName {
            nodename: conf.text("nodename")?.map(str::to_owned),
            file_required: named.is_some() && !optional,
            file: named.unwrap_or_else(|| PathBuf::from(DEFAULT_FILE)),
            hostname: conf.text("hostname")?.map(str::to_owned),
        })
    }

    /// The node's name by Calico's own file alone.
    pub(super) fn by_file() -> NodeName {
        NodeName { nodename: None, file: PathBuf::from(DEFAULT_FILE), file_required: true, hostname: None }
    }

    /// Where the name comes from, for an error.
    pub(crate) fn source(&self) -> String {
        match &self.nodename {
            Some(_) => "nodename".to_owned(),
            None => format!("nodename_file {}, hostname or the host's name", self.file.display()),
        }
    }

    /// The node's name: `nodename`, else the file's content, else `hostname`, else the host's own name in lower case.
    /// `file` is the content of [`NodeName::file`], none if there is no such file. Code 7 if what is found is no node name.
    pub fn resolve(&self, file: Option<&str>, host: &str) -> Result<String, CniError> {
        let path = self.file.display().to_string();
        let content = file.map(str::trim).filter(|content| !content.is_empty());
        if let Some(nodename) = &self.nodename {
            return checked("nodename", nodename);
        }
        if let Some(content) = content {
            return checked(&format!("nodename_file {path}"), content);
        }
        if self.file_required {
            let right = "calico-node writes it when it starts; else set nodename, or nodename_file_optional";
            return Err(CniError::field("nodename_file", &path, "is missing or empty", right));
        }
        match &self.hostname {
            Some(hostname) => checked("hostname", hostname),
            None => checked("the host's name", &host.trim().to_lowercase()),
        }
    }
}

const DEFAULT_FILE: &str = "/var/lib/calico/nodename";

fn checked(source: &str, name: &str) -> Result<String, CniError> {
    if is_dns_subdomain(name) {
        return Ok(name.to_owned());
    }
    let (wrong, right) = if name.starts_with("__") {
        ("is a placeholder that the installer has not replaced", "write the node's name")
    } else {
        ("is not a node's name", "give the name of the Node object: a DNS-1123 subdomain")
    };
    Err(CniError::field(source, name, wrong, right))
}

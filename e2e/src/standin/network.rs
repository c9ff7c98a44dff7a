//! A network configuration list, and the stdin its first plugin gets.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// A conflist. Only its first plugin is run: the chained ones (portmap, bandwidth) need a real network namespace and do not concern addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    name: String,
    version: String,
    first: Value,
}

/// Stands for the node's name in a conflist, as in Calico's template.
const NODE_NAME: &str = "__KUBERNETES_NODE_NAME__";

impl Network {
    /// From a conflist's JSON, for a node: `__KUBERNETES_NODE_NAME__` becomes its name.
    pub fn of(conflist: &Value, node: &str) -> Result<Self> {
        let text = conflist.to_string().replace(NODE_NAME, node);
        let list: Value = serde_json::from_str(&text).context("the node's name does not fit into the conflist")?;
        let string = |key: &str| list[key].as_str().map(str::to_owned);
        let first = list["plugins"].get(0).cloned().context("the conflist has no plugins")?;
        Ok(Self {
            name: string("name").context("the conflist has no name")?,
            version: string("cniVersion").unwrap_or_else(|| "0.1.0".to_owned()),
            first,
        })
    }

    /// From a file.
    pub fn read(file: &Path, node: &str) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::of(&serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?, node)
    }

    /// `type` of the first plugin.
    pub fn main_type(&self) -> &str {
        self.first["type"].as_str().unwrap_or_default()
    }

    /// `ipam.type` of the first plugin.
    pub fn ipam_type(&self) -> &str {
        self.first["ipam"]["type"].as_str().unwrap_or_default()
    }

    /// The network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the first plugin reads on stdin, with `extra` fields (as `prevResult`, `runtimeConfig`) added or replaced.
    pub fn stdin(&self, extra: &Value) -> Value {
        let mut config = self.first.clone();
        config["name"] = self.name.as_str().into();
        config["cniVersion"] = self.version.as_str().into();
        for (key, value) in extra.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_plugin_gets_name_and_version_and_what_is_added() {
        let list = json!({"name": "net", "cniVersion": "0.3.1", "plugins": [
            {"type": "calico", "nodename": "__KUBERNETES_NODE_NAME__", "ipam": {"type": "kube-ipam"}}, {"type": "portmap"}]});
        let network = Network::of(&list, "node-a").unwrap();
        assert_eq!((network.main_type(), network.ipam_type()), ("calico", "kube-ipam"));
        let expected = json!({"type": "calico", "nodename": "node-a", "ipam": {"type": "kube-ipam"}, "name": "net", "cniVersion": "0.3.1", "prevResult": {}});
        assert_eq!(network.stdin(&json!({"prevResult": {}})), expected);
    }
}

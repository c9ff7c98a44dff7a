//! Network configuration lists: building a `10-calico.conflist` from values, and finding our plugin's configuration in one.
//!
//! What [`build`] returns parses: it went through [`NetConf::parse`] before.

mod edit;

use serde_json::{Map, Value, json};

use crate::cni::{CniError, CniVersion, code};
use crate::netconf::NetConf;

pub use edit::{
    DefaultNetwork, api_group, carried_over, check_ours, default_network, ipam_section, is_calicos, is_configuration,
    is_ours, main_kubeconfig, with_api_group, with_calicos, with_ours,
};

/// What goes into a configuration list. Texts are as in the file; an empty or absent one is left out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflistArgs {
    /// `name` of the network.
    pub network: String,
    /// `cniVersion`
    pub cni_version: CniVersion,
    /// `type` of the main plugin. `calico` gets the fields it needs beside `ipam`.
    pub main_plugin: String,
    /// `nodename`, for `calico`; absent: by Calico's file.
    pub nodename: Option<String>,
    /// `mtu`; 0: the main plugin finds out.
    pub mtu: u32,
    /// `log_level`, for `calico`.
    pub log_level: String,
    /// `log_file_path`, for `calico`.
    pub log_file_path: Option<String>,
    /// `kubernetes.kubeconfig`, for `calico`.
    pub calico_kubeconfig: Option<String>,
    /// `ipam.name`: the ledger's network.
    pub ledger: Option<String>,
    /// `ipam.kubeConfig`
    pub kubeconfig: Option<String>,
    /// `ipam.etcdConfig`; absent: claims are IPClaims, on the API server.
    pub etcd: Option<EtcdArgs>,
    /// The subnets, at least one.
    pub subnets: Vec<SubnetArgs>,
    /// Destinations of `ipam.routes`.
    pub routes: Vec<String>,
    /// `ipam.resolvConf`
    pub resolv_conf: Option<String>,
    /// `ipam.waitSeconds`; absent: the default.
    pub wait_seconds: Option<u64>,
    /// Types of the plugins chained behind, with their capability: `("portmap", "portMappings")`.
    pub chained: Vec<(String, String)>,
}

/// `ipam.etcdConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdArgs {
    /// The endpoints' URLs.
    pub endpoints: Vec<String>,
    /// The client's certificate file.
    pub cert_file: Option<String>,
    /// The client's key file.
    pub key_file: Option<String>,
    /// The authority's certificate file.
    pub ca_file: Option<String>,
    /// Prefix of keys, if not the default.
    pub prefix: Option<String>,
    /// The user.
    pub username: Option<String>,
    /// The file that holds the user's password.
    pub password_file: Option<String>,
}

/// One subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetArgs {
    /// CIDR
    pub subnet: String,
    /// First address for random assignment.
    pub range_start: Option<String>,
    /// Last address for random assignment.
    pub range_end: Option<String>,
    /// The gateway.
    pub gateway: Option<String>,
}

impl Default for ConflistArgs {
    /// Calico's usual names and files; no subnet yet.
    fn default() -> ConflistArgs {
        ConflistArgs {
            network: "k8s-pod-network".to_owned(),
            cni_version: CniVersion::V0_3_1,
            main_plugin: "calico".to_owned(),
            nodename: None,
            mtu: 0,
            log_level: "info".to_owned(),
            log_file_path: Some("/var/log/calico/cni/cni.log".to_owned()),
            calico_kubeconfig: Some("/etc/cni/net.d/calico-kubeconfig".to_owned()),
            ledger: None,
            kubeconfig: None,
            etcd: None,
            subnets: Vec::new(),
            routes: vec!["0.0.0.0/0".to_owned()],
            resolv_conf: None,
            wait_seconds: None,
            chained: vec![
                ("portmap".to_owned(), "portMappings".to_owned()),
                ("bandwidth".to_owned(), "bandwidth".to_owned()),
            ],
        }
    }
}

/// Builds the list. Code 7 if what was given does not make a valid configuration.
pub fn build(args: &ConflistArgs) -> Result<Value, CniError> {
    let mut plugins = vec![main_plugin(args)];
    for (kind, capability) in &args.chained {
        let mut plugin = json!({ "type": kind, "capabilities": { capability: true } });
        if kind == "portmap" {
            plugin["snat"] = true.into();
        }
        plugins.push(plugin);
    }
    let list = json!({ "name": args.network, "cniVersion": args.cni_version.as_str(), "plugins": plugins });
    NetConf::parse(&plugin_conf(&list, "kube-ipam")?, "kube-ipam")?;
    Ok(list)
}

/// What a runtime gives on stdin to the plugin of a list whose `ipam.type` is `ipam_type`: its section, with the list's `name` and
/// `cniVersion`. A configuration that is no list is returned as it is. Code 7 if the list has no such plugin.
pub fn plugin_conf(list: &Value, ipam_type: &str) -> Result<Value, CniError> {
    let Some(plugins) = list.get("plugins") else { return Ok(list.clone()) };
    let ours = |plugin: &&Value| plugin.pointer("/ipam/type").and_then(Value::as_str) == Some(ipam_type);
    let Some(Value::Object(plugin)) = plugins.as_array().and_then(|plugins| plugins.iter().find(ours)) else {
        let wrong = format!("plugins: none has ipam.type {ipam_type:?}");
        let right = format!("set \"ipam\": {{\"type\": {ipam_type:?}, ...}} in the main plugin's section");
        return Err(CniError::new(code::INVALID_CONFIG, wrong, right));
    };
    let mut conf = plugin.clone();
    for key in ["name", "cniVersion"] {
        if let Some(value) = list.get(key) {
            conf.insert(key.to_owned(), value.clone());
        }
    }
    Ok(Value::Object(conf))
}

fn main_plugin(args: &ConflistArgs) -> Value {
    let mut plugin = Fields::default();
    plugin.set("type", Some(&args.main_plugin));
    plugin.0.insert("mtu".to_owned(), args.mtu.into());
    if args.main_plugin == "calico" {
        plugin.set("log_level", Some(&args.log_level));
        plugin.set("log_file_path", args.log_file_path.as_ref());
        plugin.set("datastore_type", Some(&"kubernetes".to_owned()));
        plugin.set("nodename", args.nodename.as_ref());
        plugin.0.insert("policy".to_owned(), json!({ "type": "k8s" }));
    }
    if let Some(kubeconfig) = args.calico_kubeconfig.as_ref().filter(|path| !path.is_empty()) {
        plugin.0.insert("kubernetes".to_owned(), json!({ "kubeconfig": kubeconfig }));
    }
    plugin.0.insert("ipam".to_owned(), ipam(args));
    Value::Object(plugin.0)
}

fn ipam(args: &ConflistArgs) -> Value {
    let mut ipam = Fields::default();
    ipam.set("type", Some(&"kube-ipam".to_owned()));
    ipam.set("name", args.ledger.as_ref());
    ipam.set("kubeConfig", args.kubeconfig.as_ref());
    ipam.set("resolvConf", args.resolv_conf.as_ref());
    match args.subnets.as_slice() {
        [only] => only.write(&mut ipam),
        subnets => {
            let (v6, v4): (Vec<_>, Vec<_>) = subnets.iter().partition(|subnet| subnet.subnet.contains(':'));
            let sets = [v4, v6].into_iter().filter(|set| !set.is_empty());
            let ranges: Vec<Value> = sets.map(|set| set.into_iter().map(SubnetArgs::to_json).collect()).collect();
            ipam.0.insert("ranges".to_owned(), ranges.into());
        }
    }
    if !args.routes.is_empty() {
        ipam.0.insert("routes".to_owned(), args.routes.iter().map(|dst| json!({ "dst": dst })).collect());
    }
    if let Some(seconds) = args.wait_seconds {
        ipam.0.insert("waitSeconds".to_owned(), seconds.into());
    }
    if let Some(etcd) = &args.etcd {
        ipam.0.insert("etcdConfig".to_owned(), etcd.to_json());
    }
    Value::Object(ipam.0)
}

impl SubnetArgs {
    fn write(&self, fields: &mut Fields) {
        fields.set("subnet", Some(&self.subnet));
        fields.set("rangeStart", self.range_start.as_ref());
        fields.set("rangeEnd", self.range_end.as_ref());
        fields.set("gateway", self.gateway.as_ref());
    }

    fn to_json(&self) -> Value {
        let mut fields = Fields::default();
        self.write(&mut fields);
        Value::Object(fields.0)
    }
}

impl EtcdArgs {
    fn to_json(&self) -> Value {
        let mut fields = Fields::default();
        fields.set("etcdURL", Some(&self.endpoints.join(",")));
        fields.set("etcdCertFile", self.cert_file.as_ref());
        fields.set("etcdKeyFile", self.key_file.as_ref());
        fields.set("etcdTrustedCAFile", self.ca_file.as_ref());
        fields.set("etcdPrefix", self.prefix.as_ref());
        fields.set("etcdUsername", self.username.as_ref());
        fields.set("etcdPasswordFile", self.password_file.as_ref());
        Value::Object(fields.0)
    }
}

/// A JSON object without empty texts.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, key: &str, value: Option<&String>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.0.insert(key.to_owned(), value.as_str().into());
        }
    }
}

#[cfg(test)]
mod tests;

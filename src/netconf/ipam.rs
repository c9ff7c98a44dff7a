//! The `ipam` section.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;

use super::EtcdConfig;
use crate::claim::{Fencing, Policy};
use crate::cni::error::shown_json;
use crate::cni::names::{is_cni_name, is_dns_subdomain};
use crate::cni::object::Object;
use crate::cni::text::{self, Wrong};
use crate::cni::{CniError, Route, code};
use crate::pod::{Families, FixedAddresses, HandoverMode};
use crate::range::{self, Family, RangeSet};

/// The `ipam` section of a network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// `ipam.name`, by default the network's name: the ledger's network.
    pub network: String,
    /// `ipam.etcdConfig`: where claims are; none: they are IPClaims, on the API server.
    pub etcd: Option<EtcdConfig>,
    /// The IPv4 subnets. None in either family: Calico's pools decide.
    pub v4: Option<RangeSet>,
    /// The IPv6 subnets.
    pub v6: Option<RangeSet>,
    /// `ipam.routes`, passed through to the answer.
    pub routes: Vec<Route>,
    /// `ipam.resolvConf`, the file the answer's `dns` is read from. Absolute.
    pub resolv_conf: Option<PathBuf>,
    /// `ipam.waitSeconds`: how long ADD waits for the holder of a fixed address to go, 20 s by default.
    pub wait: Duration,
    /// `ipam.takeover`: when a held fixed address may pass to another pod of its owner without a DEL.
    pub takeover: Policy,
    /// `ipam.handover`: what becomes of an update whose new pod needs the address of the old one.
    pub handover: HandoverMode,
    /// `ipam.fixedAddresses`: whether pods of a namespace that no annotation speaks of may ask for fixed addresses.
    pub fixed: FixedAddresses,
    /// `ipam.stateDir`: where the calls of one node leave each other notes; on tmpfs, /run/kube-ipam by default.
    pub state_dir: PathBuf,
    /// `ipam.ipv4_pools`: pools to take IPv4 addresses from; empty: any that Calico's rules allow.
    pub v4_pools: Vec<PoolRef>,
    /// `ipam.ipv6_pools`
    pub v6_pools: Vec<PoolRef>,
    /// The families of automatic addresses, at least one: those of the subnets, else by `assign_ipv4` and `assign_ipv6`.
    pub families: Families,
    /// Whose form of input and answer this is.
    pub dialect: Dialect,
}

/// Whose form of configuration and answer is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Ours.
    KubeIpam,
    /// That of `calico-ipam`: `assign_ipv4` and `assign_ipv6` count beside subnets too.
    CalicoIpam,
}

pub use calico::PoolRef;

/// Reads a pool's name or CIDR; host bits are dropped, as Calico does.
pub(crate) fn pool_ref(text: &str, family: Family) -> Result<PoolRef, Wrong> {
    if text.contains('/') {
        let cidr = text::without_host_bits(text::address_with_mask(text)?);
        if Family::of(cidr.ip()) == family {
            return Ok(PoolRef::Cidr(cidr));
        }
        let right = format!("name an {family} pool here");
        return Err(Wrong { wrong: format!("is not {family}"), right });
    }
    if is_dns_subdomain(text) && text.parse::<IpAddr>().is_err() {
        return Ok(PoolRef::Name(text.to_owned()));
    }
    let right = "give the name of an IPPool, or its CIDR".to_owned();
    Err(Wrong { wrong: "is neither a pool's name nor a CIDR".to_owned(), right })
}

/// The fields of the section.
pub(super) const FIELDS: [&str; 21] = [
    "name",
    "type",
    "kubeConfig",
    "etcdConfig",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "ranges",
    "routes",
    "resolvConf",
    "waitSeconds",
    "takeover",
    "handover",
    "fixedAddresses",
    "stateDir",
    "assign_ipv4",
    "assign_ipv6",
    "ipv4_pools",
    "ipv6_pools",
    "dataDir",
];
/// The fields of `ipam.takeover`.
pub(super) const TAKEOVER: [&str; 2] = ["proof", "graceSeconds"];
/// Where the calls of one node leave each other notes, if the configuration does not say.
pub const STATE_DIR: &str = "/run/kube-ipam";
const DEFAULT_WAIT: u64 = 20;
/// The kubelet gives a sandbox two minutes.
const LONGEST_WAIT: u64 = 100;
/// In seconds: a kubelet has stopped the containers of a deleted pod by then.
const DEFAULT_GRACE: i64 = 60;
const LONGEST_GRACE: u64 = 86_400;

impl Ipam {
    /// Reads the section of a network run by `main_plugin`.
    pub(super) fn parse(
        ipam: &Object<'_>,
        network: &str,
        main_plugin: &str,
        plugin_name: &str,
    ) -> Result<Ipam, CniError> {
        ipam.refuse_misspelt(&FIELDS)?;
        let dialect = dialect(ipam, plugin_name)?;
        let ours = dialect == Dialect::KubeIpam;
        // Only Calico's main plugin does without a gateway; the others take the first address for it, as host-local does.
        let (v4, v6) = range::parse(ipam, main_plugin != "calico" && ours)?;
        let has_subnet = v4.is_some() || v6.is_some();
        if ours && !has_subnet && ipam.value("ranges").is_some() {
            return Err(ipam.missing("subnet", "put one into ranges, or leave ranges out: then Calico's pools decide"));
        }
        if ours && !has_subnet && main_plugin != "calico" {
            let right = format!("main plugin {main_plugin} takes mask and gateway from it: give a CIDR, or ranges");
            return Err(ipam.missing("subnet", right));
        }
        let families = if ours && has_subnet {
            refuse_switches(ipam)?;
            Families { v4: v4.is_some(), v6: v6.is_some() }
        } else {
            assigned(ipam)?
        };
        Ok(Ipam {
            network: ledger_network(ipam, network)?,
            etcd: ipam.object("etcdConfig")?.map(|etcd| EtcdConfig::parse(&etcd)).transpose()?,
            v4,
            v6,
            routes: ipam.objects("routes")?.iter().map(route).collect::<Result<_, _>>()?,
            resolv_conf: ipam.file("resolvConf")?,
            wait: Duration::from_secs(seconds(ipam, "waitSeconds", DEFAULT_WAIT, LONGEST_WAIT)?),
            takeover: takeover(ipam)?,
            handover: handover(ipam)?,
            fixed: fixed_addresses(ipam)?,
            state_dir: ipam.file("stateDir")?.unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            v4_pools: pools(ipam, "ipv4_pools", Family::V4)?,
            v6_pools: pools(ipam, "ipv6_pools", Family::V6)?,
            families,
            dialect,
        })
    }

    /// What DEL uses of the section; the rest as if it were not there.
    pub(super) fn parse_for_del(ipam: &Object<'_>, network: &str) -> Result<Ipam, CniError> {
        Ok(Ipam {
            network: ledger_network(ipam, network)?,
            etcd: ipam.object("etcdConfig")?.map(|etcd| EtcdConfig::parse(&etcd)).transpose()?,
            v4: None,
            v6: None,
            routes: Vec::new(),
            resolv_conf: None,
            wait: Duration::from_secs(DEFAULT_WAIT),
            takeover: Policy { fencing: Fencing::PodDeleted, grace: SignedDuration::from_secs(DEFAULT_GRACE) },
            handover: HandoverMode::default(),
            fixed: FixedAddresses::AnyNamespace,
            state_dir: ipam.file("stateDir").ok().flatten().unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            v4_pools: Vec::new(),
            v6_pools: Vec::new(),
            families: Families { v4: false, v6: false },
            dialect: Dialect::KubeIpam,
        })
    }

    /// The subnets of a family.
    pub fn ranges(&self, family: Family) -> Option<&RangeSet> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The subnets of each family that has some.
    pub fn range_sets(&self) -> impl Iterator<Item = &RangeSet> {
        [&self.v4, &self.v6].into_iter().flatten()
    }

    /// Whether a pod of this network may ask for this address; any is permitted where the family has no subnets.
    pub fn permits_fixed(&self, address: IpAddr) -> bool {
        self.ranges(Family::of(address)).is_none_or(|ranges| ranges.permits_fixed(address).is_ok())
    }

    /// Whether a pod of this network gets an address of this family, unless its annotations say otherwise.
    pub fn assigns(&self, family: Family) -> bool {
        self.families.contains(family)
    }

    /// Whether no subnet is configured, so that Calico's pools alone say which addresses there are.
    pub fn goes_by_pools(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }
}

fn dialect(ipam: &Object<'_>, plugin_name: &str) -> Result<Dialect, CniError> {
    match ipam.text("type")?.unwrap_or(plugin_name) {
        "calico-ipam" => Ok(Dialect::CalicoIpam),
        name if name == "kube-ipam" || name == plugin_name => Ok(Dialect::KubeIpam),
        other => Err(ipam.refuse(
            "type",
            other,
            format!("is not this plugin, {plugin_name}"),
            "write \"kube-ipam\" or \"calico-ipam\"",
        )),
    }
}

/// The families by `assign_ipv4`, by default true, and `assign_ipv6`, by default false.
fn assigned(ipam: &Object<'_>) -> Result<Families, CniError> {
    let v4 = switch(ipam, "assign_ipv4")?.unwrap_or(true);
    let v6 = switch(ipam, "assign_ipv6")?.unwrap_or(false);
    if v4 || v6 {
        return Ok(Families { v4, v6 });
    }
    Err(ipam.refuse("assign_ipv4", "false", "leaves no address to assign", "set assign_ipv6 to \"true\""))
}

/// Beside subnets the switches would contradict these, or say nothing.
fn refuse_switches(ipam: &Object<'_>) -> Result<(), CniError> {
    for key in ["assign_ipv4", "assign_ipv6"] {
        if let Some(value) = switch(ipam, key)? {
            let right = "leave it out: the families follow subnet and ranges";
            let wrong = "is for type calico-ipam and for a configuration without subnets only";
            return Err(ipam.refuse(key, &value.to_string(), wrong, right));
        }
    }
    Ok(())
}

/// calico-ipam's `"true"` and `"false"`, with or without quotes.
fn switch(ipam: &Object<'_>, key: &str) -> Result<Option<bool>, CniError> {
    match ipam.value(key).and_then(Value::as_str) {
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(ipam.refuse(key, other, "is neither true nor false", "write \"true\" or \"false\"")),
        None => ipam.flag(key),
    }
}

/// The name goes into the keys of the ledger, so it may not hold a `/`.
fn ledger_network(ipam: &Object<'_>, network: &str) -> Result<String, CniError> {
    let name = ipam.text("name")?.unwrap_or(network);
    if is_cni_name(name) && name.len() <= 253 {
        return Ok(name.to_owned());
    }
    let right = "begin with a letter or digit; then letters, digits, _ . - only";
    Err(ipam.refuse("name", name, "is not the name of a network", right))
}

fn route(route: &Object<'_>) -> Result<Route, CniError> {
    let parsed = Route::parse(route)?;
    if let Some(gw) = parsed.gw.filter(|gw| gw.is_ipv4() != parsed.dst.is_ipv4()) {
        let dst = parsed.dst;
        let right = format!("give a next hop of the family of {dst}, or none");
        return Err(route.refuse("gw", &gw.to_string(), format!("is of another family than dst {dst}"), right));
    }
    let network = text::without_host_bits(parsed.dst);
    if network == parsed.dst {
        return Ok(parsed);
    }
    Err(route.refuse("dst", &parsed.dst.to_string(), "has host bits", format!("write {network}")))
}

fn fixed_addresses(ipam: &Object<'_>) -> Result<FixedAddresses, CniError> {
    match ipam.text("fixedAddresses")? {
        None | Some("anyNamespace") => Ok(FixedAddresses::AnyNamespace),
        Some("allowedNamespaces") => Ok(FixedAddresses::AllowedNamespaces),
        Some(other) => {
            let right = "write \"anyNamespace\", or \"allowedNamespaces\": then a namespace needs the annotation kube-ipam.allowed";
            Err(ipam.refuse("fixedAddresses", other, "is not a rule", right))
        }
    }
}

fn handover(ipam: &Object<'_>) -> Result<HandoverMode, CniError> {
    let Some(text) = ipam.text("handover")? else { return Ok(HandoverMode::default()) };
    HandoverMode::parse(text).ok_or_else(|| ipam.refuse("handover", text, HandoverMode::WRONG, HandoverMode::RIGHT))
}

/// `takeover`: `{"proof": "podDeleted" | "nodeFenced", "graceSeconds": 60}`.
fn takeover(ipam: &Object<'_>) -> Result<Policy, CniError> {
    let Some(takeover) = ipam.object("takeover")? else {
        return Ok(Policy { fencing: Fencing::PodDeleted, grace: SignedDuration::from_secs(DEFAULT_GRACE) });
    };
    takeover.refuse_misspelt(&TAKEOVER)?;
    let fencing = match takeover.text("proof")? {
        None | Some("podDeleted") => Fencing::PodDeleted,
        Some("nodeFenced") => Fencing::NodeFenced,
        Some(other) => {
            return Err(takeover.refuse(
                "proof",
                other,
                "is no proof kube-ipam knows",
                "write \"podDeleted\" or \"nodeFenced\"",
            ));
        }
    };
    let grace = seconds(&takeover, "graceSeconds", DEFAULT_GRACE.unsigned_abs(), LONGEST_GRACE)?;
    Ok(Policy { fencing, grace: SignedDuration::from_secs(i64::try_from(grace).unwrap_or(DEFAULT_GRACE)) })
}

/// A whole number of seconds from 0 to `most`.
fn seconds(object: &Object<'_>, key: &str, default: u64, most: u64) -> Result<u64, CniError> {
    let Some(value) = object.value(key) else { return Ok(default) };
    value.as_u64().filter(|seconds| *seconds <= most).ok_or_else(|| {
        let wrong = format!("{}: {} is not a number of seconds from 0 to {most}", object.path(key), shown_json(value));
        CniError::new(code::INVALID_CONFIG, wrong, format!("write a whole number without quotes, such as {default}"))
    })
}

fn pools(ipam: &Object<'_>, key: &str, family: Family) -> Result<Vec<PoolRef>, CniError> {
    let pool = |text| pool_ref(text, family).map_err(|error| ipam.refuse(key, text, error.wrong, error.right));
    ipam.texts(key)?.into_iter().map(pool).collect()
}

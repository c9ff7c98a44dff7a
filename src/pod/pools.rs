//! Calico's own annotations on pods and namespaces: which pools, which families.

use std::collections::BTreeMap;

use crate::cni::CniError;
use crate::cni::error::shown;
use crate::netconf::{Dialect, Ipam, PoolRef, pool_ref};
use crate::range::Family;

/// What `cni.projectcalico.org/ipv4pools`, `ipv6pools` and `ipFamilies` ask for; the pod's over the namespace's, key by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolAnnotations {
    /// `ipv4pools`; empty: not said.
    pub v4: Vec<PoolRef>,
    /// `ipv6pools`; empty: not said.
    pub v6: Vec<PoolRef>,
    /// `ipFamilies`; none: not said.
    pub families: Option<Families>,
}

/// Which families a pod wants; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// An IPv4 address
    pub v4: bool,
    /// An IPv6 address
    pub v6: bool,
}

impl Families {
    /// Whether an address of this family is asked for.
    pub fn contains(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Code 7 for a family that is asked for and that the network has no addresses of: a pod that would do with less does not ask.
    pub(crate) fn unmet(self, family: Family, ipam: &Ipam) -> CniError {
        let asked: Vec<String> =
            Family::BOTH.into_iter().filter(|f| self.contains(*f)).map(|f| format!("\"{f}\"")).collect();
        let (lacks, remedy) = if ipam.dialect == Dialect::KubeIpam && !ipam.goes_by_pools() {
            ("has no subnet of", format!("add an {family} subnet to ipam.ranges"))
        } else {
            ("does not assign", format!("set assign_{}", family.to_string().to_lowercase()))
        };
        let wrong = format!("asks for {family}, which network {} {lacks}", ipam.network);
        CniError::annotation(
            IP_FAMILIES,
            &format!("[{}]", asked.join(", ")),
            wrong,
            format!("leave {family} out, or {remedy}"),
        )
    }
}

impl PoolAnnotations {
    /// The annotation that names pools of a family.
    pub(crate) fn key(family: Family) -> &'static str {
        match family {
            Family::V4 => IPV4_POOLS,
            Family::V6 => IPV6_POOLS,
        }
    }

    /// Reads the annotations of a pod and of its namespace. Code 7 for bad JSON, a pool of the wrong family, or an unknown family.
    pub fn parse(
        pod: &BTreeMap<String, String>,
        namespace: &BTreeMap<String, String>,
    ) -> Result<PoolAnnotations, CniError> {
        let said = |key| [pod, namespace].into_iter().find_map(|on| on.get(key).filter(|value| !value.is_empty()));
        let pools = |key, family| said(key).map(|value| pools(key, value, family)).transpose();
        Ok(PoolAnnotations {
            v4: pools(IPV4_POOLS, Family::V4)?.unwrap_or_default(),
            v6: pools(IPV6_POOLS, Family::V6)?.unwrap_or_default(),
            families: said(IP_FAMILIES).map(|value| families(value)).transpose()?,
        })
    }
}

const IPV4_POOLS: &str = "cni.projectcalico.org/ipv4pools";
const IPV6_POOLS: &str = "cni.projectcalico.org/ipv6pools";
const IP_FAMILIES: &str = "cni.projectcalico.org/ipFamilies";

fn pools(key: &str, value: &str, family: Family) -> Result<Vec<PoolRef>, CniError> {
    let pool = |text: &String| {
        pool_ref(text, family).map_err(|error| {
            CniError::annotation(key, value, format!("names {}, which {}", shown(text), error.wrong), error.right)
        })
    };
    list(key, value, "[\"default-ipv4-ippool\"]")?.iter().map(pool).collect()
}

fn families(value: &str) -> Result<Families, CniError> {
    let example = "[\"IPv4\", \"IPv6\"]";
    let mut families = Families { v4: false, v6: false };
    for family in list(IP_FAMILIES, value, example)? {
        match family.as_str() {
            "IPv4" => families.v4 = true,
            "IPv6" => families.v6 = true,
            other => {
                let wrong = format!("names {}, which is no family", shown(other));
                return Err(CniError::annotation(
                    IP_FAMILIES,
                    value,
                    wrong,
                    format!("write {example}, or one of them"),
                ));
            }
        }
    }
    Ok(families)
}

/// A JSON list of at least one string.
fn list(key: &str, value: &str, example: &str) -> Result<Vec<String>, CniError> {
    match serde_json::from_str::<Vec<String>>(value) {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(CniError::annotation(key, value, "is an empty list", format!("write {example}, or leave it out"))),
        Err(_) => {
            Err(CniError::annotation(key, value, "is not a JSON list of strings", format!("write it like {example}")))
        }
    }
}

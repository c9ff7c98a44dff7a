//! Which pools a request may use.
//!
//! Pools that are named are used whatever their selectors and assignment mode say. Else every pool is used
//! whose selectors match and that is for automatic assignment. Disabled pools, pools being deleted and pools
//! for another use are never used.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use ipnetwork::IpNetwork;

use super::{AllowedUse, Family, IPPool};
use crate::net;
use crate::selector::{Selector, SelectorError};

/// A pool as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolRef {
    /// By its network.
    Cidr(IpNetwork),
    /// By the name of its object.
    Name(String),
}

impl PoolRef {
    fn is(&self, pool: &IPPool) -> bool {
        match self {
            Self::Cidr(cidr) => net::masked(cidr) == net::masked(&pool.spec.cidr),
            Self::Name(name) => pool.metadata.name.as_ref() == Some(name),
        }
    }
}

impl fmt::Display for PoolRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(cidr) => cidr.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for PoolRef {
    type Err = Infallible;

    /// A network with a prefix length is one, anything else is a name: names hold no slash.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        match text.parse() {
            Ok(cidr) if text.contains('/') => Ok(Self::Cidr(cidr)),
            _ => Ok(Self::Name(text.to_owned())),
        }
    }
}

/// A request for pools to assign from.
#[derive(Debug, Clone, Copy)]
pub struct PoolRequest<'a> {
    /// The family of the wanted address.
    pub family: Family,
    /// The pools the user named, in order of preference; empty if none.
    pub requested: &'a [PoolRef],
    /// What the address is for.
    pub use_: AllowedUse,
    /// Labels of the node.
    pub node_labels: &'a BTreeMap<String, String>,
    /// Labels of the namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Whether any address will do. If false the user named an address, and as in Calico neither the
    /// selectors nor the assignment mode are asked.
    pub automatic: bool,
}

/// Why a pool cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// `disabled: true`.
    #[error("is disabled")]
    Disabled,
    /// Its deletion has begun.
    #[error("is being deleted")]
    Deleting,
    /// Calico's controller set the condition `Allocatable` to false: the pool overlaps another, for instance.
    #[error("is marked as not allocatable in its status")]
    NotAllocatable,
    /// It is for another use.
    #[error("does not allow use {wanted}, only {allowed}")]
    Use {
        /// The use asked for.
        wanted: &'static str,
        /// The uses it allows.
        allowed: String,
    },
    /// It is for the other family.
    #[error("is not an {wanted} pool")]
    Family {
        /// The family asked for.
        wanted: Family,
    },
    /// `assignmentMode: Manual`.
    #[error("is for requests that name it only (assignmentMode Manual)")]
    Manual,
    /// Its node selector does not match.
    #[error("does not select this node (nodeSelector {selector})")]
    Node {
        /// The selector.
        selector: String,
    },
    /// Its namespace selector does not match.
    #[error("does not select this namespace (namespaceSelector {selector})")]
    Namespace {
        /// The selector.
        selector: String,
    },
}

/// A pool that was looked at and not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Name of the object.
    pub pool: String,
    /// Its network.
    pub cidr: IpNetwork,
    /// Why not.
    pub why: Unfit,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.pool, self.cidr, self.why)
    }
}

/// Why there is no pool to assign from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The user named a pool that does not exist.
    #[error("the requested IPPool ({pool}) does not exist; the pools are: {}", list(known))]
    Unknown {
        /// As the user named it.
        pool: PoolRef,
        /// The pools there are, name and network.
        known: Vec<String>,
    },
    /// The user named a pool that cannot be used.
    #[error("requested IPPool {0}")]
    Requested(Rejected),
    /// There are pools, but none that can be used.
    #[error("no {family} IPPool can be used: {}", list(rejected))]
    NoneFits {
        /// The family asked for.
        family: Family,
        /// Every pool of the family, and why not; empty if there is none.
        rejected: Vec<Rejected>,
    },
    /// A selector cannot be read. As in Calico no pool is used then: the pool might be meant.
    #[error("IPPool {pool} has a {field} that cannot be read: {selector:?}: {source}")]
    BadSelector {
        /// Name of the object.
        pool: String,
        /// `nodeSelector` or `namespaceSelector`.
        field: &'static str,
        /// The selector.
        selector: String,
        /// What is wrong with it.
        source: SelectorError,
    },
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "there is none".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// The pools the request may use: the requested ones in the order of the request, else all that fit in the
/// order of their names. Never empty.
pub fn eligible<'p>(pools: &'p [IPPool], request: &PoolRequest<'_>) -> Result<Vec<&'p IPPool>, PoolError> {
    if request.requested.is_empty() {
        return every_fitting(pools, request);
    }
    let mut chosen: Vec<&IPPool> = Vec::new();
    let mut other_use = None;
    for wanted in request.requested {
        let pool = pools.iter().find(|pool| wanted.is(pool)).ok_or_else(|| PoolError::Unknown {
            pool: wanted.clone(),
            known: pools.iter().map(|pool| format!("{} ({})", name(pool), pool.spec.cidr)).collect(),
        })?;
        match unusable(pool, request) {
            None if chosen.iter().any(|known| std::ptr::eq(*known, pool)) => {}
            None => chosen.push(pool),
            // As in Calico: among several named pools those for another use are passed over.
            Some(why @ Unfit::Use { .. }) => other_use = Some(rejected(pool, why)),
            Some(why) => return Err(PoolError::Requested(rejected(pool, why))),
        }
    }
    match other_use {
        Some(rejected) if chosen.is_empty() => Err(PoolError::Requested(rejected)),
        _ => Ok(chosen),
    }
}

fn every_fitting<'p>(pools: &'p [IPPool], request: &PoolRequest<'_>) -> Result<Vec<&'p IPPool>, PoolError> {
    let mut sorted: Vec<_> =
        pools.iter().filter(|pool| Family::of_network(&pool.spec.cidr) == request.family).collect();
    sorted.sort_by_key(|pool| pool.metadata.name.as_deref());
    let (mut chosen, mut refused) = (Vec::new(), Vec::new());
    for pool in sorted {
        let why = match unusable(pool, request) {
            None if request.automatic => unselected(pool, request)?,
            other => other,
        };
        match why {
            None => chosen.push(pool),
            Some(why) => refused.push(rejected(pool, why)),
        }
    }
    if chosen.is_empty() {
        return Err(PoolError::NoneFits { family: request.family, rejected: refused });
    }
    Ok(chosen)
}

/// What keeps a pool from being used even if it is named.
fn unusable(pool: &IPPool, request: &PoolRequest<'_>) -> Option<Unfit> {
    if Family::of_network(&pool.spec.cidr) != request.family {
        return Some(Unfit::Family { wanted: request.family });
    }
    if pool.metadata.deletion_timestamp.is_some() {
        return Some(Unfit::Deleting);
    }
    if pool.spec.disabled == Some(true) {
        return Some(Unfit::Disabled);
    }
    let conditions = pool.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    if conditions.iter().any(|condition| condition.type_ == "Allocatable" && condition.status == "False") {
        return Some(Unfit::NotAllocatable);
    }
    if !pool.spec.allows(request.use_) {
        let allowed = pool.spec.allowed_uses.as_deref().unwrap_or_default();
        let allowed = if allowed.is_empty() { "Workload, Tunnel".to_owned() } else { allowed.join(", ") };
        return Some(Unfit::Use { wanted: request.use_.as_str(), allowed });
    }
    None
}

/// What keeps a usable pool from being used unless it is named.
fn unselected(pool: &IPPool, request: &PoolRequest<'_>) -> Result<Option<Unfit>, PoolError> {
    if !pool.spec.is_automatic() {
        return Ok(Some(Unfit::Manual));
    }
    if let Some(selector) = unmatched(pool, "nodeSelector", &pool.spec.node_selector, request.node_labels)? {
        return Ok(Some(Unfit::Node { selector }));
    }
    let selector = &pool.spec.namespace_selector;
    let selector = unmatched(pool, "namespaceSelector", selector, request.namespace_labels)?;
    Ok(selector.map(|selector| Unfit::Namespace { selector }))
}

/// The selector, if it does not match.
fn unmatched(
    pool: &IPPool,
    field: &'static str,
    selector: &Option<String>,
    labels: &BTreeMap<String, String>,
) -> Result<Option<String>, PoolError> {
    let Some(text) = selector else {
        return Ok(None);
    };
    match text.parse::<Selector>() {
        Ok(selector) => Ok((!selector.matches(labels)).then(|| text.clone())),
        Err(source) => Err(PoolError::BadSelector { pool: name(pool), field, selector: text.clone(), source }),
    }
}

fn rejected(pool: &IPPool, why: Unfit) -> Rejected {
    Rejected { pool: name(pool), cidr: pool.spec.cidr, why }
}

fn name(pool: &IPPool) -> String {
    pool.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests;

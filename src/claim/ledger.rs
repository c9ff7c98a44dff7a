//! The name of a ledger: what our IPReservations say about where the claim on an address lies. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

const ETCD: &str = "etcd:";
const OBJECTS: &str = "ipclaims:";

/// Where the claims of one network lie: `etcd:<prefix>/<network>` or `ipclaims:<network>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LedgerName(String);

/// A new claim is refused, because a reservation says that the claim on its address lies in another ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "IPReservation {reservation} says that {address} is claimed in {there}, but this configuration's claims are {here}"
)]
pub struct ClaimedElsewhere {
    /// The address.
    pub address: std::net::IpAddr,
    /// The reservation that says so.
    pub reservation: String,
    /// The ledger that it names.
    pub there: LedgerName,
    /// The ledger of whoever asks.
    pub here: LedgerName,
}

// === impl LedgerName ===

impl LedgerName {
    /// The claims under `<prefix>/<network>/` in etcd.
    pub fn etcd(prefix: &str, network: &str) -> Self {
        Self(format!("{ETCD}{}/{network}", prefix.trim_end_matches('/')))
    }

    /// The IPClaims of a network.
    pub fn objects(network: &str) -> Self {
        Self(format!("{OBJECTS}{network}"))
    }

    /// The network whose claims it has; `None` for a name of a newer version.
    pub fn network(&self) -> Option<&str> {
        self.in_etcd().map(|(_, network)| network).or_else(|| self.0.strip_prefix(OBJECTS))
    }

    /// Prefix and network of claims in etcd.
    fn in_etcd(&self) -> Option<(&str, &str)> {
        self.0.strip_prefix(ETCD)?.rsplit_once('/')
    }

    /// The command that carries the claims of this ledger to `target`; `None` for a name of a newer version.
    pub fn carried_to(&self, target: &Self) -> Option<String> {
        let place = |name: &Self| match name.in_etcd() {
            Some((prefix, network)) => Some(("etcd", Some(prefix.to_owned()), network.to_owned())),
            None => name.0.strip_prefix(OBJECTS).map(|network| ("objects", None, network.to_owned())),
        };
        let ((from, prefix, network), (to, own_prefix, own_network)) = (place(self)?, place(target)?);
        let mut command = format!("kube-ipam claims move --to {to}");
        if from == to {
            command += &format!(" --from {from}");
        }
        if network != own_network {
            command += &format!(" --from-network {network}");
        }
        if let Some(prefix) = prefix.filter(|prefix| own_prefix.as_ref().is_some_and(|own| own != prefix)) {
            command += &format!(" --from-prefix {prefix}");
        }
        Some(command)
    }
}

impl fmt::Display for LedgerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.in_etcd(), self.0.strip_prefix(OBJECTS)) {
            (Some((prefix, network)), _) => write!(f, "etcd under {prefix}/{network}/"),
            (None, Some(network)) => write!(f, "IPClaims of network {network}"),
            (None, None) => f.write_str(&self.0),
        }
    }
}

// === impl ClaimedElsewhere ===

impl ClaimedElsewhere {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        let carry = self.there.carried_to(&self.here).map(|command| format!("carry the claims over by `{command}`"));
        format!(
            "Name the ledger of before in the configuration again, or {}. Nothing was changed.",
            carry.unwrap_or_else(|| "run a newer kube-ipam, which knows that ledger".to_owned())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_the_claims_are_and_how_they_are_carried() {
        let (etcd, objects) = (LedgerName::etcd("/kube-ipam/v1/", "k8s"), LedgerName::objects("k8s"));
        assert_eq!((etcd.0.as_str(), objects.0.as_str()), ("etcd:/kube-ipam/v1/k8s", "ipclaims:k8s"));
        assert_eq!(etcd.to_string(), "etcd under /kube-ipam/v1/k8s/");
        assert_eq!(objects.to_string(), "IPClaims of network k8s");
        let carried = |from: &LedgerName, to: &LedgerName| from.carried_to(to).unwrap();
        assert_eq!(carried(&etcd, &objects), "kube-ipam claims move --to objects");
        assert_eq!(carried(&objects, &etcd), "kube-ipam claims move --to etcd");
        let renamed = LedgerName::objects("pods");
        assert_eq!(carried(&objects, &renamed), "kube-ipam claims move --to objects --from objects --from-network k8s");
        let elsewhere = LedgerName::etcd("/other", "pods");
        assert_eq!(
            carried(&etcd, &elsewhere),
            "kube-ipam claims move --to etcd --from etcd --from-network k8s --from-prefix /kube-ipam/v1"
        );
        assert_eq!(LedgerName("consul:x".into()).carried_to(&etcd), None);
    }
}

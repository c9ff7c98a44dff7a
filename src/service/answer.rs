//! What the driver found, in CNI's words: results by dialect, errors with code, message and remedy.

use std::fs;

use calico::AssignError;
use ipnetwork::IpNetwork;

use crate::cni::{Answer, AnswerIp, CniError, Dns, Route, code};
use crate::driver::{Assigned, Error};
use crate::netconf::{Dialect, NetConf};
use crate::range::Family;
use crate::store::ipclaim::remedy;
use crate::store::{Failure, StoreError};

/// The result of an ADD.
pub fn ok(net: &NetConf, assigned: &[Assigned]) -> Result<Answer, CniError> {
    let mut answer = match net.ipam.dialect {
        Dialect::KubeIpam => Answer {
            ips: assigned.iter().map(|a| by_subnet(net, a)).collect::<Result<_, _>>()?,
            routes: net.ipam.routes.clone(),
            dns: dns(net),
        },
        Dialect::CalicoIpam => {
            let ips: Vec<AnswerIp> = assigned.iter().map(by_block).collect();
            let routes = ips.iter().map(|ip| Route { dst: ip.address, gw: None }).collect();
            Answer { ips, routes, dns: Dns::default() }
        }
    };
    if assigned.iter().any(|assigned| assigned.target) {
        answer.routes.clear();
    }
    Ok(answer)
}

/// With the subnet's mask and gateway, as the main plugins `ptp` and `bridge` need them.
fn by_subnet(net: &NetConf, assigned: &Assigned) -> Result<AnswerIp, CniError> {
    let family = Family::of(assigned.address);
    let subnet = net.ipam.ranges(family).and_then(|r| r.subnet_of(assigned.address));
    let prefix = assigned.netmask.or(subnet.map(|s| s.network.prefix())).unwrap_or_else(|| family.bits());
    let address = IpNetwork::new(assigned.address, prefix)
        .map_err(|e| CniError::new(code::INTERNAL, "the answer cannot be written", e.to_string()))?;
    Ok(AnswerIp { address, gateway: assigned.gateway.or(subnet.and_then(|s| s.gateway)) })
}

/// As calico-ipam answers: the block's mask for an automatic address, the address alone for an explicit one.
fn by_block(assigned: &Assigned) -> AnswerIp {
    let prefix = assigned.netmask.unwrap_or(assigned.block.prefix());
    let address = IpNetwork::new(assigned.address, prefix).unwrap_or(IpNetwork::from(assigned.address));
    AnswerIp { address, gateway: None }
}

/// The file may be missing on a node without DNS of its own; that is no reason to keep a pod from starting.
fn dns(net: &NetConf) -> Dns {
    let Some(path) = &net.ipam.resolv_conf else { return Dns::default() };
    match fs::read_to_string(path) {
        Ok(text) => Dns::from_resolv_conf(&text),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "resolvConf could not be read; the answer has no dns");
            Dns::default()
        }
    }
}

/// An error of ADD, DEL, CHECK or GC.
pub fn error(error: &Error) -> CniError {
    let (code, remedy) = match error {
        Error::Cni(cni) => return cni.clone(),
        Error::Store(store) => return of_store(store),
        Error::Impasse(impasse) => {
            (if impasse.may_pass() { code::TRY_AGAIN } else { code::ADDRESS_HELD }, impasse.remedies())
        }
        Error::NoPod { .. } | Error::OtherPod { .. } => {
            (code::TRY_AGAIN, "The pod was deleted or replaced meanwhile; the runtime will clean up.".into())
        }
        Error::OtherInterface { .. } => (code::INVALID_CONFIG, crate::driver::ONE_ATTACHMENT.into()),
        Error::NoNode(_) => (
            code::INVALID_CONFIG,
            "The node name comes from nodename, nodename_file, hostname or the host's name, in this order, and must be \
             the name of a Node object."
                .into(),
        ),
        Error::Locked => (code::TRY_AGAIN, WHILE_LOCKED.into()),
        Error::UnmetPool(_) => (
            code::NO_POOL,
            "Set CALICO_IPV4POOL_CIDR (or the IPPool's cidr) and the config's subnet to the same value.".into(),
        ),
        Error::Pool(_) => (code::NO_POOL, "Change the pool, or the annotation or config that chose it.".into()),
        Error::Apart(_) => (
            code::NO_POOL,
            "Name a pool that has addresses from rangeStart to rangeEnd of the subnet, or change these in the CNI config.".into(),
        ),
        Error::NoLedger(_) => (code::NO_LEDGER, NEEDS_LEDGER.into()),
        Error::ClaimedElsewhere(found) => (code::NO_LEDGER, found.remedy()),
        Error::Taken { .. } => (
            code::ADDRESS_HELD,
            "kube-ipam did not give it to that user by a claim. Delete the pod that uses it, or free it with \
             `kube-ipam release` once nothing uses it."
                .into(),
        ),
        Error::Assign(AssignError::Cooling { .. }) => {
            (code::TRY_AGAIN, "It is free again after ipCooldownSeconds of Calico's IPAMConfig.".into())
        }
        Error::Assign(AssignError::Deleted { .. }) => {
            (code::TRY_AGAIN, "Another writer is deleting the block; this is tried again by itself.".into())
        }
        Error::Assign(_) => (
            code::ADDRESS_HELD,
            "Run the pod on the node that owns the block, or set strictAffinity to false in Calico's IPAMConfig.".into(),
        ),
        Error::Exhausted(_) => (
            code::EXHAUSTED,
            "Delete pods, or widen rangeStart-rangeEnd in the CNI config (and the IPPool, if it is too small).".into(),
        ),
        Error::Damaged { .. } => (code::INTERNAL, "Run `kube-ipam check`: it says what contradicts what. Move the pods of that block away, then delete it, or restore it from a backup.".into()),
        Error::Superseded(_)
        | Error::Cancelled
        | Error::NotAhead(_)
        | Error::Ahead(_)
        | Error::Late(_)
        | Error::Overtaken(_) => (code::TRY_AGAIN, "Nothing was kept; this is tried again by itself.".into()),
    };
    CniError::new(code, error.to_string(), remedy)
}

fn of_store(store: &StoreError) -> CniError {
    if let (Failure::Corrupt(_), Some(claim)) = (&store.failure, store.object.strip_prefix("ipclaims ")) {
        return CniError::new(
            code::INTERNAL,
            store.to_string(),
            format!("A claim that nobody can read: {}.", remedy(claim)),
        );
    }
    let (code, remedy) = match &store.failure {
        Failure::Denied(_) => (
            code::FORBIDDEN,
            "Check the credentials in kubeConfig and etcdConfig, and that the ClusterRole of kube-ipam is bound to them. If \
             kube-ipam was taken off this cluster, give this node back to calico-ipam: run `kube-ipam uninstall` on it.",
        ),
        Failure::Unreadable(_) => (code::IO, "Make the file readable for the runtime's user, or name another."),
        Failure::Malformed(_) => (code::DECODE, "Put the right PEM file there, or name another."),
        Failure::NoKind => (code::NO_POOL, "Install Calico's CRDs first."),
        Failure::NoLedger => (code::NO_LEDGER, NEEDS_LEDGER),
        Failure::Locked => (code::TRY_AGAIN, WHILE_LOCKED),
        Failure::TooOld(_) => (
            code::INVALID_CONFIG,
            "Upgrade Calico to v3.24 or later; until then give this node back to calico-ipam: run `kube-ipam uninstall` on it.",
        ),
        Failure::Foreign(_) => (
            code::NO_LEDGER,
            "Set ipam.etcdConfig.etcdPrefix to another value than the other cluster's, on all nodes. For a cluster that was \
             built anew and is to have the claims of before, see docs/operations.md.",
        ),
        Failure::Unidentified(_) => (
            code::NO_LEDGER,
            "Fixed addresses whose claims are in etcd need the right to get namespace kube-system, as the ClusterRole of \
             kube-ipam has it.",
        ),
        Failure::Refused(_) | Failure::Corrupt(_) => (code::INTERNAL, "Run `kube-ipam check`."),
        Failure::Full(_) => {
            (code::TRY_AGAIN, "Compact and defragment etcd, or raise its quota, then `etcdctl alarm disarm`.")
        }
        Failure::Busy(_) => (code::TRY_AGAIN, "The server is overloaded; the runtime tries again by itself."),
        Failure::Conflict | Failure::Exists | Failure::Absent => {
            (code::TRY_AGAIN, "Something else writes the same object without pause; the runtime tries again by itself.")
        }
        Failure::Unknown(_) => (
            code::TRY_AGAIN,
            "The runtime tries again by itself. If it goes on: does the server run, and can this node reach it?",
        ),
    };
    CniError::new(code, store.to_string(), remedy)
}

/// What to do while nobody may write.
const WHILE_LOCKED: &str = "This is tried again by itself, and succeeds once the migration or upgrade of Calico is finished or \
                            aborted. Running pods keep their addresses.";

/// What to do where claims cannot be kept.
const NEEDS_LEDGER: &str = "Fixed addresses need a ledger of claims: apply kube-ipam's yaml/ipclaims.yaml, or name etcd by \
                            ipam.etcdConfig in the CNI config.";

/// An error of STATUS: the same facts under the code that says "not now".
pub fn unavailable(failure: &Error) -> CniError {
    let found = error(failure);
    CniError { code: code::NOT_AVAILABLE, ..found }
}

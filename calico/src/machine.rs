//! KubeVirt's virtual machines: what a machine is called in handles, and which of its pods has its address.
//!
//! A machine keeps its addresses over all its pods: they bear one handle, `<network>.vmi.<namespace>.<machine>`. During a live
//! migration two pods have them, the source as the active side and the target as the alternate one. Calico's felix exchanges
//! the sides when the machine has moved.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::names::clean_handle;

/// Key of a side's attributes: the name of the VirtualMachineInstance.
pub const VMI_NAME: &str = "vmi-name";
/// Key of a side's attributes: the UID of the VirtualMachineInstance.
pub const VMI_UID: &str = "vmi-uid";
/// Key of a side's attributes: the UID of the VirtualMachine, if the instance has one.
pub const VM_UID: &str = "vm-uid";
/// Key of a side's attributes: the UID of the migration whose target it is.
pub const MIGRATION_UID: &str = "vmim-uid";

const PREFIX: &str = "vmi.";
/// Longest handle id of a machine.
const LONGEST_HANDLE: usize = 128;

/// Which of a machine's two pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The pod that runs the machine.
    Active,
    /// The target of a live migration, or the source once the machine has moved.
    Alternate,
}

/// The attributes of a side.
pub type Party = BTreeMap<String, String>;

/// What the handles of a machine's addresses have in the place of a container id. Where the handle would be longer than 128
/// characters it is a hash.
pub fn machine_id(network: &str, namespace: &str, machine: &str) -> String {
    let id = format!("{PREFIX}{namespace}.{machine}");
    if network.len() + 1 + id.len() <= LONGEST_HANDLE {
        return id;
    }
    // A name of an object: Calico's own form of the hash is none.
    format!("{PREFIX}{}", HEXLOWER.encode(&Sha256::digest(format!("{namespace}.{machine}"))))
}

/// Whether what a handle has in the place of a container id is a machine's.
pub fn is_machine_id(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// Namespace and name of the machine; `None` if it is none, or only its hash is known.
pub fn machine_of_id(id: &str) -> Option<(&str, &str)> {
    id.strip_prefix(PREFIX)?.split_once('.').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
}

/// The part of a handle that names a machine, in whichever network; `None` for other handles.
pub fn machine_of_handle(handle: &str) -> Option<&str> {
    let handle = clean_handle(handle);
    let at = handle.find(&format!(".{PREFIX}"))?;
    handle.get(at + 1..)
}

// === impl Side ===

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Active, Self::Alternate];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_namespace_and_name() {
        let id = machine_id("k8s-pod-network", "default", "vm.1");
        assert_eq!(id, "vmi.default.vm.1");
        assert_eq!(machine_of_id(&id), Some(("default", "vm.1")));
        for network in ["k8s-pod-network", "my.net"] {
            assert_eq!(machine_of_handle(&format!("{network}.vmi.default.vm.1")), Some("vmi.default.vm.1"));
        }
        for other in ["k8s-pod-network.0a1b", "default.web", "k8s-pod-networkvmi.default.vm"] {
            assert_eq!(machine_of_handle(other), None, "{other}");
        }
        assert_eq!(machine_of_id("0a1b"), None);
        assert_eq!(machine_of_id("vmi.vmi.vm"), Some(("vmi", "vm")));
    }

    #[test]
    fn a_handle_of_more_than_128_characters_has_a_hash_that_is_a_name() {
        let name = |length: usize| machine_id("net", "ns", &"m".repeat(length));
        let longest = 128 - "net.vmi.ns.".len();
        assert_eq!(format!("net.{}", name(longest)).len(), 128);
        let hashed = name(longest + 1);
        assert!(hashed.len() < 100 && is_machine_id(&hashed), "{hashed}");
        assert_eq!(machine_of_id(&hashed), None);
        assert_ne!(hashed, name(longest + 2));
        assert!(hashed.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.'));
    }
}

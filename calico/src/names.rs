//! Object names and label values, all computed from what the object is about.
//!
//! Keeps: the same CIDR, host or handle always yields the name that Calico's own writers use, so that both
//! meet at the same object.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use ipnetwork::IpNetwork;
use sha2::{Digest as _, Sha256};
use sha3::Sha3_256;

use crate::net;

/// Annotation in which Calico's client keeps its own copy of an object's metadata, as JSON.
pub const METADATA_ANNOTATION: &str = "projectcalico.org/metadata";
/// Label of a block affinity: [`hostname_hash`] of its node.
pub const HOSTNAME_HASH_LABEL: &str = "projectcalico.org/hostname-hash";
/// Label of a block affinity: `host` or `virtual`.
pub const AFFINITY_TYPE_LABEL: &str = "projectcalico.org/affinity-type";
/// Label of a block affinity: `4` or `6`.
pub const IP_VERSION_LABEL: &str = "projectcalico.org/ip-version";

/// Names of this length and more are shortened; Kubernetes allows 253 characters.
const LONGEST_NAME: usize = 253;
/// Characters of the hash that tells shortened names apart.
const TAIL: usize = 11;

/// A network as an object name: `10.244.0.192/26` is `10-244-0-192-26`. Host bits are cleared.
pub fn cidr_name(cidr: &IpNetwork) -> String {
    net::masked(cidr).to_string().replace(['.', ':', '/'], "-")
}

/// The name of the affinity of `host` to the block `cidr`: `<host>-<cidr name>`. From 253 characters on
/// the host part is cut and a tail of the SHA-256 of both parts is added.
pub fn affinity_name(host: &str, cidr: &IpNetwork) -> String {
    let cidr = cidr_name(cidr);
    let name = format!("{host}-{cidr}");
    if name.len() < LONGEST_NAME {
        return name;
    }
    let mut cut = (LONGEST_NAME - 1).saturating_sub(cidr.len() + TAIL + 2).min(host.len());
    while !host.is_char_boundary(cut) {
        cut -= 1;
    }
    let tail = HEXLOWER.encode(&Sha256::digest(format!("{host}+{cidr}")));
    format!("{}-{cidr}-{}", &host[..cut], &tail[..TAIL])
}

/// A host name as a label value: SHA3-256 in base 32 without padding, 52 characters. Labels hold 63
/// characters at most, host names 253.
pub fn hostname_hash(host: &str) -> String {
    BASE32_NOPAD.encode(&Sha3_256::digest(host))
}

/// The object name of a handle: the handle id in lower case.
pub fn handle_name(id: &str) -> String {
    id.to_lowercase()
}

/// A handle id as it was meant: everything from a carriage return on is a remnant of an old migration
/// from host-local files, and Calico's own readers ignore it.
pub fn clean_handle(id: &str) -> &str {
    id.split('\r').next().unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_named_without_dots_colons_and_slashes() {
        assert_eq!(cidr_name(&cidr("10.244.0.192/26")), "10-244-0-192-26");
        assert_eq!(cidr_name(&cidr("fd00:10:244::/122")), "fd00-10-244---122");
        assert_eq!(cidr_name(&cidr("10.244.0.200/26")), "10-244-0-192-26");
    }

    #[test]
    fn an_affinity_name_is_cut_at_253_characters_and_not_before() {
        let block = cidr("10.244.180.192/26");
        let longest = "n".repeat(252 - "-10-244-180-192-26".len());
        assert_eq!(affinity_name(&longest, &block), format!("{longest}-10-244-180-192-26"));
        let cut = affinity_name(&format!("{longest}n"), &block);
        assert_eq!(cut.len(), 252);
        assert_ne!(cut, affinity_name(&format!("{longest}m"), &block));
    }

    #[test]
    fn a_host_name_of_several_bytes_per_character_is_cut_between_characters() {
        for extra in 0..4 {
            let host = format!("{}{}", "a".repeat(extra), "ü".repeat(200));
            assert!(affinity_name(&host, &cidr("10.0.0.0/26")).len() < 253);
        }
    }

    #[test]
    fn a_handle_object_is_named_in_lower_case() {
        assert_eq!(handle_name("k8s-pod-network.AB12"), "k8s-pod-network.ab12");
    }

    #[test]
    fn a_handle_with_a_carriage_return_means_the_part_before_it() {
        assert_eq!(clean_handle("k8s-pod-network.a1\r\neth0"), "k8s-pod-network.a1");
        assert_eq!(clean_handle("k8s-pod-network.a1"), "k8s-pod-network.a1");
    }
}

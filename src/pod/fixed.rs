//! The annotations `kube-ipam.ip`, `kube-ipam.netmask` and `kube-ipam.gateway`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::cni::CniError;
use crate::netconf::Ipam;
use crate::range::Family;

/// A pod's request for fixed addresses, checked against the network. At least one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedRequest {
    /// The IPv4 addresses asked for, one of which the pod gets. In the annotation's order, without duplicates.
    pub v4: Vec<IpAddr>,
    /// The IPv6 addresses asked for, one of which the pod gets.
    pub v6: Vec<IpAddr>,
    netmasks: Vec<(Family, u8)>,
    gateways: Vec<IpAddr>,
}

impl FixedRequest {
    /// Reads a pod's annotations. None if the pod asks for no fixed address. Code 7 naming annotation, value and what is right:
    /// whatever is malformed is refused, never read as "any address".
    pub fn parse(annotations: &BTreeMap<String, String>, ipam: &Ipam) -> Result<Option<FixedRequest>, CniError> {
        let _ = (annotations, ipam);
        unimplemented!()
    }

    /// The addresses a pod may get in a family: all, in order, or with an ordinal exactly the n-th (counted from 0). Code 7 if the list is
    /// shorter than that. Empty if none was asked for in this family.
    pub fn choices(&self, family: Family, ordinal: Option<u32>) -> Result<Vec<IpAddr>, CniError> {
        let _ = (family, ordinal);
        unimplemented!()
    }

    /// The prefix length that `kube-ipam.netmask` gives for a family. Equal to the subnet's, where the network has one.
    pub fn netmask(&self, family: Family) -> Option<u8> {
        self.netmasks.iter().find(|(of, _)| *of == family).map(|(_, length)| *length)
    }

    /// The gateway that `kube-ipam.gateway` gives for a family.
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| Family::of(*gateway) == family)
    }
}

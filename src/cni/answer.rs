//! What ADD answers, and reads again as `prevResult`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::{CniError, CniVersion, Dns};

/// The result of an IPAM plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The addresses given, at most one a family.
    pub ips: Vec<AnswerIp>,
    /// Routes for the container.
    pub routes: Vec<Route>,
    /// Settings for the container's resolver.
    pub dns: Dns,
}

/// One address given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerIp {
    /// The address (host bits kept) and its mask.
    pub address: IpNetwork,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// A route for the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination. Printed as it is: calico-ipam's answers keep host bits here.
    pub dst: IpNetwork,
    /// Next hop; none for the gateway of the address, or for a route to the link.
    pub gw: Option<IpAddr>,
}

impl Answer {
    /// The JSON of this answer. Up to 0.4.0 each address says its family in `version`, and `dns` is always there; from 1.0.0 neither.
    pub fn render(&self, version: &CniVersion) -> Value {
        let _ = version;
        unimplemented!()
    }

    /// Reads `prevResult` as written in `version`. Code 7 with the path of the field that is malformed; what main plugins add
    /// (`interfaces`, `ips[].interface`) is skipped.
    pub fn parse(json: &Value, version: &CniVersion) -> Result<Answer, CniError> {
        let _ = (json, version);
        unimplemented!()
    }
}

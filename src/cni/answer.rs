//! What ADD answers, and reads again as `prevResult`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::object::Object;
use super::{CniError, CniVersion, Dns, text};

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
        let old = *version < CniVersion::V1_0_0;
        let mut json = json!({ "cniVersion": version.as_str() });
        if !self.ips.is_empty() {
            json["ips"] = self.ips.iter().map(|ip| ip.render(old)).collect();
        }
        if !self.routes.is_empty() {
            json["routes"] = self.routes.iter().map(Route::render).collect();
        }
        if old || !self.dns.is_empty() {
            json["dns"] = json!(self.dns);
        }
        json
    }

    /// Reads `prevResult` as written in `version`. Code 7 with the path of the field that is malformed; what main plugins add
    /// (`interfaces`, `ips[].interface`) is skipped.
    pub fn parse(json: &Value, version: &CniVersion) -> Result<Answer, CniError> {
        let result = Object::new("prevResult", json)?;
        let ip = |object: Object<'_>| AnswerIp::parse(&object, *version);
        Ok(Answer {
            ips: result.objects("ips")?.into_iter().map(ip).collect::<Result<_, _>>()?,
            routes: result.objects("routes")?.iter().map(Route::parse).collect::<Result<_, _>>()?,
            dns: result.object("dns")?.map(|dns| Dns::parse(&dns)).transpose()?.unwrap_or_default(),
        })
    }
}

impl AnswerIp {
    fn render(&self, with_version: bool) -> Value {
        let mut json = json!({ "address": self.address.to_string() });
        if with_version {
            json["version"] = if self.address.is_ipv4() { "4" } else { "6" }.into();
        }
        if let Some(gateway) = self.gateway {
            json["gateway"] = gateway.to_string().into();
        }
        json
    }

    fn parse(ip: &Object<'_>, version: CniVersion) -> Result<AnswerIp, CniError> {
        let Some(text) = ip.text("address")? else {
            return Err(ip.missing("address", "give the answer of ADD as it was"));
        };
        let address = ip.read("address", text, text::address_with_mask)?;
        let family = if address.is_ipv4() { "4" } else { "6" };
        if let Some(said) = ip.text("version")?.filter(|said| version < CniVersion::V1_0_0 && *said != family) {
            return Err(ip.refuse(
                "version",
                said,
                format!("contradicts address {address}"),
                format!("write \"{family}\""),
            ));
        }
        let gateway = ip.text("gateway")?.map(|text| ip.read("gateway", text, text::address)).transpose()?;
        Ok(AnswerIp { address, gateway })
    }
}

impl Route {
    fn render(&self) -> Value {
        let mut json = json!({ "dst": self.dst.to_string() });
        if let Some(gw) = self.gw {
            json["gw"] = gw.to_string().into();
        }
        json
    }

    /// Reads `{dst, gw}`, host bits in `dst` allowed.
    pub(crate) fn parse(route: &Object<'_>) -> Result<Route, CniError> {
        let Some(text) = route.text("dst")? else {
            return Err(route.missing("dst", "give the destination, such as \"0.0.0.0/0\""));
        };
        let dst = route.read("dst", text, text::address_with_mask)?;
        let gw = route.text("gw")?.map(|text| route.read("gw", text, text::address)).transpose()?;
        Ok(Route { dst, gw })
    }
}

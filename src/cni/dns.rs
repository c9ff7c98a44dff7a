//! The resolver's settings, as CNI answers carry them.

use serde::Serialize;

use super::CniError;
use super::object::Object;

/// `dns` of an answer. Empty lists are left out of the JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Addresses of name servers, in order of preference; an IPv6 address may carry a zone (`fe80::1%eth0`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to search short names in, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options such as `ndots:5`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Reads the text of a resolv.conf by the rules of resolv.conf(5): lines that make no sense are skipped, the last `search` and the
    /// last `domain` win.
    pub fn from_resolv_conf(text: &str) -> Dns {
        let mut dns = Dns::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => dns.nameservers.extend(words.next()),
                Some("domain") => dns.domain = words.next().or(dns.domain),
                Some("search") => dns.search = words.collect(),
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }

    pub(crate) fn parse(dns: &Object<'_>) -> Result<Dns, CniError> {
        let texts = |key| dns.texts(key).map(|texts| texts.into_iter().map(str::to_owned).collect());
        Ok(Dns {
            nameservers: texts("nameservers")?,
            domain: dns.text("domain")?.map(str::to_owned),
            search: texts("search")?,
            options: texts("options")?,
        })
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

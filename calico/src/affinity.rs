//! Who owns a block: a host, or a name that is no host.

use std::fmt;
use std::str::FromStr;

/// The owner of a block as its `affinity` field has it: `host:<node>` or `virtual:<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Affinity {
    /// A node.
    Host(String),
    /// No node: Calico keeps addresses for services of type LoadBalancer as `virtual:load-balancer`.
    Virtual(String),
}

/// A text that is neither `host:<node>` nor `virtual:<name>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("affinity {text:?} is neither \"host:<node>\" nor \"virtual:<name>\"")]
pub struct AffinityError {
    /// What was to be read.
    pub text: String,
}

impl Affinity {
    /// The affinity of a node.
    pub fn host(node: impl Into<String>) -> Self {
        Self::Host(node.into())
    }

    /// `host` or `virtual`: the `type` of a `BlockAffinity`, and its label.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Host(_) => "host",
            Self::Virtual(_) => "virtual",
        }
    }

    /// The node, or the virtual name: the `node` of a `BlockAffinity`.
    pub fn name(&self) -> &str {
        match self {
            Self::Host(name) | Self::Virtual(name) => name,
        }
    }

    /// From the two fields of a `BlockAffinity`. An absent or empty type means a host: older writers left it out.
    pub fn from_parts(kind: Option<&str>, name: &str) -> Result<Self, AffinityError> {
        match kind {
            None | Some("" | "host") => Ok(Self::Host(name.to_owned())),
            Some("virtual") => Ok(Self::Virtual(name.to_owned())),
            Some(other) => Err(AffinityError { text: format!("{other}:{name}") }),
        }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind(), self.name())
    }
}

impl FromStr for Affinity {
    type Err = AffinityError;

    fn from_str(text: &str) -> Result<Self, AffinityError> {
        match text.split_once(':') {
            Some(("host", name)) => Ok(Self::Host(name.to_owned())),
            Some(("virtual", name)) => Ok(Self::Virtual(name.to_owned())),
            _ => Err(AffinityError { text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_reads_what_it_writes() {
        for text in ["host:n1", "virtual:load-balancer", "host:a:b", "host:"] {
            assert_eq!(text.parse::<Affinity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in ["", "n1", "Host:n1", "rack:7"] {
            assert!(text.parse::<Affinity>().unwrap_err().to_string().contains(&format!("{text:?}")));
        }
    }

    #[test]
    fn a_missing_type_means_a_host() {
        assert_eq!(Affinity::from_parts(None, "n1"), Ok(Affinity::host("n1")));
        assert_eq!(Affinity::from_parts(Some(""), "n1"), Ok(Affinity::host("n1")));
        assert!(Affinity::from_parts(Some("rack"), "7").is_err());
    }
}

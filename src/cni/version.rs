//! The versions of the CNI specification that are spoken, and what differs between them.

use std::fmt;

use serde_json::{Value, json};

use super::error::{shown, shown_json};
use super::{CniError, Verb, code};

/// A version of the CNI specification. Ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, the first with CHECK
    V0_4_0,
    /// 1.0.0, the first without `ips[].version`
    V1_0_0,
    /// 1.1.0, the first with STATUS and GC
    V1_1_0,
}

impl CniVersion {
    /// Every version spoken, the oldest first.
    pub const ALL: [CniVersion; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest version spoken: what an error is written in as long as the caller's version is not known.
    pub const NEWEST: CniVersion = Self::V1_1_0;

    /// The number as the specification writes it, `0.3.1`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The `cniVersion` of a network configuration. Code 1 for a version that is not spoken; a configuration that names none means 0.1.0,
    /// by the specification, and is refused for the same reason.
    pub fn of(conf: &Value) -> Result<CniVersion, CniError> {
        let refuse = |what: String| {
            let spoken: Vec<_> = Self::ALL.iter().map(|version| version.as_str()).collect();
            CniError::new(code::INCOMPATIBLE_VERSION, what, format!("set cniVersion to one of {}", spoken.join(", ")))
        };
        match conf.get("cniVersion") {
            None | Some(Value::Null) => Err(refuse("cniVersion is missing, which means 0.1.0: too old".to_owned())),
            Some(Value::String(text)) => Self::ALL
                .into_iter()
                .find(|version| version.as_str() == text)
                .ok_or_else(|| refuse(format!("cniVersion: {} is not supported", shown(text)))),
            Some(other) => Err(refuse(format!("cniVersion: {} is not a version", shown_json(other)))),
        }
    }

    /// Whether this version knows the verb: CHECK came with 0.4.0, STATUS and GC with 1.1.0. Code 1 if not.
    pub fn knows(self, verb: Verb) -> Result<(), CniError> {
        let since = match verb {
            Verb::Add | Verb::Del | Verb::Version => Self::V0_3_0,
            Verb::Check => Self::V0_4_0,
            Verb::Status | Verb::Gc => Self::V1_1_0,
        };
        if self >= since {
            return Ok(());
        }
        Err(CniError::new(
            code::INCOMPATIBLE_VERSION,
            format!("{verb} does not exist in CNI {self}"),
            format!("set cniVersion to {since} or newer"),
        ))
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The answer to VERSION: the newest version and all that are supported.
pub fn version_answer() -> Value {
    let spoken: Vec<_> = CniVersion::ALL.iter().map(|version| version.as_str()).collect();
    json!({ "cniVersion": CniVersion::NEWEST.as_str(), "supportedVersions": spoken })
}

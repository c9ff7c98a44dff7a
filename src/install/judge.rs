//! Whether a section may be put in place: judged as an ADD would judge it. Under one that Calico has no pool for no pod
//! could start, and the one before it is better.

use std::path::Path;

use calico::{ApiGroup, IPPool};
use serde_json::Value;

use super::{InstallError, read_section};
use crate::cni::{CniError, code};
use crate::driver::check_coverage;
use crate::netconf::NetConf;

/// What the cluster says of what is put in place, and the last section that was found good.
#[derive(Debug, Default)]
pub struct Judge {
    /// Calico's pools, as far as they are known.
    pub pools: Pools,
    /// The API group that the lists are to name; `None`: whatever they name.
    pub group: Option<ApiGroup>,
    good: Option<Value>,
}

/// Calico's pools.
#[derive(Debug, Default)]
pub enum Pools {
    /// Nobody can be asked: then they are no reason against a section.
    #[default]
    Unasked,
    /// They are not known yet: no other section than the last one is put in place.
    Unknown,
    /// These.
    Known(Vec<IPPool>),
}

// === impl Judge ===

impl Judge {
    /// One that has found nothing good yet.
    pub fn by(pools: Pools) -> Self {
        Self { pools, ..Self::default() }
    }

    /// The section of a file, if it is good; else why not, and the last one that was.
    pub(super) fn section(&mut self, path: &Path) -> Result<Value, (InstallError, Option<Value>)> {
        let read = read_section(path).and_then(|(section, net)| {
            if self.good.as_ref() != Some(&section) {
                self.pools.permit(&net).map_err(|error| InstallError::Invalid { path: path.to_owned(), error })?;
            }
            Ok(section)
        });
        match read {
            Ok(section) => Ok(self.good.insert(section).clone()),
            Err(error) => Err((error, self.good.clone())),
        }
    }
}

impl Pools {
    fn permit(&self, net: &NetConf) -> Result<(), CniError> {
        let refuse = |wrong: String, right: &str| {
            Err(CniError::new(code::INVALID_CONFIG, wrong, format!("{right}; until then the node keeps what it has")))
        };
        let pools = match self {
            Self::Unasked => return Ok(()),
            Self::Unknown => return refuse("Calico's IPPools are not known yet".to_owned(), "wait for the API server"),
            Self::Known(pools) => pools,
        };
        match net.ipam.range_sets().map(|ranges| check_coverage(ranges, pools)).find_map(Result::err) {
            Some(unmet) => {
                let wrong = format!("{unmet}: no pod could start");
                refuse(wrong, "make subnet and Calico's IPPool the same (kubectl get ippools)")
            }
            None => Ok(()),
        }
    }
}

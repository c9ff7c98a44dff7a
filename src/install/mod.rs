//! What kube-ipam puts on a node: its binary, its section of Calico's network configuration, and the plugin's
//! kubeconfig. Files appear by rename, so that a runtime that starts a pod meanwhile sees the old one or the new one.
//!
//! `install` and `uninstall` do it once; the agent does it whenever somebody else has written these files.

mod addon;
mod binary;
mod judge;
mod kubeconfig;
mod lists;
mod token;
mod watch;

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cni::CniError;
use crate::conflist;
use crate::netconf::NetConf;

pub use self::addon::{AddOn, PATIENCE, Verdict};
pub use self::binary::place_binary;
pub use self::judge::{Judge, Pools};
pub use self::kubeconfig::SERVICE_ACCOUNT;
pub use self::lists::restore_calico;
pub(crate) use self::lists::{InUse, api_group, configurations};
use self::token::Login;
pub use self::token::PluginToken;
pub use self::watch::Watcher;

/// Where the node's files are, and where what goes into them comes from.
#[derive(Debug, Clone)]
pub struct NodeFiles {
    /// The runtime's network configurations.
    pub cni_conf_dir: PathBuf,
    /// The file with our `ipam` section; `None`: the lists are left alone.
    pub ipam: Option<PathBuf>,
    /// The plugin's kubeconfig; `None`: somebody else writes it.
    pub kubeconfig: Option<PathBuf>,
    /// The directory with the pod's service account.
    pub service_account: PathBuf,
}

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// In a few words.
    pub what: &'static str,
}

/// Why a file was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It could not be read or written.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no JSON.
    #[error("{path}: this is no JSON: {error}", path = path.display())]
    NoJson {
        /// The file.
        path: PathBuf,
        /// Where it stops to be some.
        error: serde_json::Error,
    },
    /// What is in it, or would be, is wrong.
    #[error("{path}: {error}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: CniError,
    },
    /// The runtime does not use Calico's list.
    #[error("{path}: this file comes first, so the runtime uses it; it {why}; {remedy}", path = path.display())]
    Unused {
        /// The file that it uses.
        path: PathBuf,
        /// What that means.
        why: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A variable of the environment that a pod has is missing.
    #[error(
        "{0} is not set: a pod's service account is needed for the plugin's kubeconfig; without it, leave --kubeconfig-out out"
    )]
    NoPod(&'static str),
    /// The API server gave no token for the plugin.
    #[error("no token for the plugin: {0}")]
    NoToken(String),
}

/// What came of the node's files: each by itself, so that one that fails keeps none of the others.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Files that were changed.
    pub written: Vec<Written>,
    /// What could not be done.
    pub failed: Vec<InstallError>,
    /// Whether there is a list of Calico's at all; true if the lists are left alone.
    pub has_list: bool,
    /// Why pods get their addresses from elsewhere, whatever is in that list.
    pub unused: Option<InstallError>,
}

// === impl NodeFiles ===

impl NodeFiles {
    /// Whether what goes into the files is sound, before any of them is touched.
    ///
    /// # Errors
    /// The `ipam` section cannot be read, or is wrong.
    pub fn check(&self) -> Result<(), InstallError> {
        self.ipam.as_deref().map_or(Ok(()), |path| read_section(path).map(drop))
    }

    /// The network as it would be with the section, if that is sound.
    pub fn net(&self) -> Option<NetConf> {
        let (section, alone) = read_section(self.ipam.as_deref()?).ok()?;
        Some(lists::network_with(&self.cni_conf_dir, &section).unwrap_or(alone))
    }

    /// Makes the files what they should be. What is so already is not touched. `token` is what [`NodeFiles::token`] gave.
    /// A section that `judge` does not find good is not put in place; the last good one stays there.
    pub fn put(&self, token: Option<&PluginToken>, judge: &mut Judge) -> Outcome {
        let mut outcome = Outcome { has_list: true, ..Outcome::default() };
        // First, so that a plugin that is called by the new list finds it.
        if let Some(path) = &self.kubeconfig {
            let login = token.map_or(Login::AsItIs, PluginToken::login);
            outcome.take(
                kubeconfig::write(&self.service_account, path, login).map(|written| written.into_iter().collect()),
            );
        }
        if let Some(path) = &self.ipam {
            let section = judge.section(path).map(Some).unwrap_or_else(|(error, good)| {
                outcome.failed.push(error);
                good
            });
            if let Some(section) = section {
                let (lists, edits) = lists::put_ours(&self.cni_conf_dir, &section, judge.group);
                outcome.has_list = lists > 0;
                edits.into_iter().for_each(|edit| outcome.take(edit));
                outcome.unused = lists::unused(&self.cni_conf_dir);
            }
        }
        outcome
    }

    /// Gives the lists back to calico-ipam. The kubeconfig stays, for a runtime that still ends a pod by the plugin.
    pub fn take_away(&self) -> Outcome {
        let mut outcome = Outcome { has_list: true, ..Outcome::default() };
        restore_calico(&self.cni_conf_dir).into_iter().for_each(|edit| outcome.take(edit));
        outcome
    }

    /// The add-on with which the lists are to be given back; `None` if they are somebody else's, or this is no pod.
    pub fn add_on(&self) -> Option<AddOn> {
        self.ipam.as_ref()?;
        AddOn::of_pod(&self.service_account, self.kubeconfig.as_deref(), &self.cni_conf_dir)
    }

    /// The plugin's token, to be asked for; `None` if somebody else writes the kubeconfig.
    pub fn token(&self) -> Option<PluginToken> {
        self.kubeconfig.as_ref().map(|_| PluginToken::new(&self.service_account))
    }

    /// The directories in which a change may undo what [`NodeFiles::put`] did.
    pub fn directories(&self) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        if let Some(ipam) = &self.ipam {
            directories.extend([self.cni_conf_dir.clone()]);
            directories.extend(ipam.parent().map(Path::to_owned));
        }
        if let Some(kubeconfig) = &self.kubeconfig {
            directories.extend([self.service_account.clone()]);
            directories.extend(kubeconfig.parent().map(Path::to_owned));
        }
        directories.sort();
        directories.dedup();
        directories
    }
}

impl Outcome {
    fn take(&mut self, done: Result<Vec<Written>, InstallError>) {
        match done {
            Ok(written) => self.written.extend(written),
            Err(error) => self.failed.push(error),
        }
    }
}

/// The section that a file holds, if it is sound.
fn read_section(path: &Path) -> Result<(Value, NetConf), InstallError> {
    let section = read_json(path)?;
    let checked = conflist::check_ours(&section);
    let net = checked.map_err(|error| InstallError::Invalid { path: path.to_owned(), error })?;
    Ok((section, net))
}

fn read_json(path: &Path) -> Result<Value, InstallError> {
    let text = std::fs::read(path).map_err(|error| InstallError::Io { path: path.to_owned(), error })?;
    serde_json::from_slice(&text).map_err(|error| InstallError::NoJson { path: path.to_owned(), error })
}

/// Puts a file in its place, whole, if it is not the same already. Returns whether it was not.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    let io = |error| InstallError::Io { path: path.to_owned(), error };
    if std::fs::read(path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    let directory = path.parent().ok_or_else(|| io(io::ErrorKind::InvalidInput.into()))?;
    // A runtime reads .conf, .conflist and .json, and nothing of this name.
    let mut file = tempfile::Builder::new().prefix(".kube-ipam-").suffix(".tmp").tempfile_in(directory).map_err(io)?;
    file.write_all(content).map_err(io)?;
    file.as_file().set_permissions(Permissions::from_mode(mode)).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(true)
}

#[cfg(test)]
mod tests;

//! The plugin's executable.

use std::fs;
use std::path::Path;

use super::{InstallError, Written, replace};

/// The name that Calico's list calls it by.
const NAME: &str = "kube-ipam";

/// Copies this process' own executable into the runtime's directory of plugins.
///
/// # Errors
/// It cannot be read, or the directory cannot be written.
pub fn place_binary(directory: &Path) -> Result<Option<Written>, InstallError> {
    let own = Path::new("/proc/self/exe");
    let content = fs::read(own).map_err(|error| InstallError::Io { path: own.to_owned(), error })?;
    let path = directory.join(NAME);
    Ok(replace(&path, &content, 0o755)?.then_some(Written { path, what: "the plugin" }))
}

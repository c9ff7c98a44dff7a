//! The plugin's log: JSON lines beside Calico's CNI log, one for every answer. A log that cannot be written
//! changes no answer; its file is 0600 and never reached through a symlink.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::netconf::NetConf;

/// File name, in the directory of the main plugin's log.
const FILE: &str = "kube-ipam.log";
/// Size at which the file is set aside as `kube-ipam.log.1`, in bytes.
const ROTATE_AT: u64 = 10 << 20;

/// Starts logging as the network configuration says; nowhere if there is no file. What libraries would say
/// of their requests stays out of it: headers hold credentials.
pub(super) fn start(net: &NetConf) {
    let file = net.log_file_path.as_deref().and_then(Path::parent).and_then(open);
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Mutex::new(file)),
        // A runtime shows stderr beside a failed answer: only what explains a failure belongs there.
        None => BoxMakeWriter::new(std::io::sink),
    };
    // A line that cannot be written is lost without a word, for the same reason.
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).log_internal_errors(false);
    let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), net.log_level);
    let _ = tracing_subscriber::registry().with(layer.with_writer(writer).with_filter(ours)).try_init();
}

fn open(directory: &Path) -> Option<File> {
    let path = directory.join(FILE);
    if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() > ROTATE_AT) {
        let _ = fs::rename(&path, directory.join(format!("{FILE}.1")));
    }
    // Without O_NONBLOCK a FIFO of this name would stop us until somebody reads it.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path).ok()?;
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600)).ok()?;
    }
    Some(file)
}

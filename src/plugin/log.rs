//! The plugin's log: JSON lines beside Calico's CNI log, one for every answer. A log that cannot be written
//! changes no answer; its file is 0600 and never reached through a symlink.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::netconf::NetConf;

/// File name, in the directory of the main plugin's log.
const FILE: &str = "kube-ipam.log";
/// Size at which the file is set aside as `kube-ipam.log.1`, in bytes.
const ROTATE_AT: u64 = 10 << 20;

/// Starts logging as the network configuration says; to stderr if there is no file.
pub(super) fn start(net: &NetConf) {
    let file = net.log_file_path.as_deref().and_then(Path::parent).and_then(open);
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Mutex::new(file)),
        // A runtime shows stderr beside a failed answer: only what explains a failure belongs there.
        None => BoxMakeWriter::new(std::io::sink),
    };
    let subscriber =
        tracing_subscriber::fmt().json().flatten_event(true).with_max_level(net.log_level).with_writer(writer);
    let _ = subscriber.try_init();
}

fn open(directory: &Path) -> Option<File> {
    let path = directory.join(FILE);
    if fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() > ROTATE_AT) {
        let _ = fs::rename(&path, directory.join(format!("{FILE}.1")));
    }
    OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path).ok()
}

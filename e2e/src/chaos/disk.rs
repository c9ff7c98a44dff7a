//! A small file system of its own, so that it can be full while the machine's are not.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::real::process::succeed;

/// One that is mounted. It goes with the cluster's directory.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    directory: PathBuf,
}

/// What is written until there is no room for it, from large to small.
const PIECES: [usize; 3] = [1 << 20, 4096, 1];

// === impl Disk ===

impl Disk {
    /// Mounts it, with these options of tmpfs.
    pub(super) fn mount(directory: PathBuf, options: &str) -> Result<Disk> {
        fs::create_dir_all(&directory)?;
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", options, "kube-ipam-e2e"]).arg(&directory))?;
        Ok(Disk { directory })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves no byte of it free.
    pub(super) fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.filler())?;
        for size in PIECES {
            let piece = vec![0; size];
            while filler.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    pub(super) fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }
}

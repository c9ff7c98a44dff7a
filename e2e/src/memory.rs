//! Directories in memory.

use std::io;

use tempfile::TempDir;

/// A node's `/run` is in memory; that of a machine on which this runs may be on a disk, where it costs a fraction of a
/// millisecond to create a file.
const MEMORY: &str = "/dev/shm";

/// A directory in memory for what a node has in `/run`, removed with what this returns.
///
/// # Errors
/// It cannot be made.
pub fn directory(prefix: &str) -> io::Result<TempDir> {
    TempDir::with_prefix_in(prefix, MEMORY)
}

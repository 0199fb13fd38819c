//! Setting a data dir aside: renamed, never deleted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::disk::Disk;

/// Renames `etcd_dir` durably to `<etcd_dir>.aside-<UTC time>-<n>` and gives the new path; `None` if there is none.
pub fn set_aside(disk: &dyn Disk, etcd_dir: &Path, now: SystemTime) -> io::Result<Option<PathBuf>> {
    let _ = (disk, etcd_dir, now);
    todo!()
}

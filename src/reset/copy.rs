//! A copy of a stopped member's data dir.
//!
//! What etcd never writes again is linked: the segments of the log before the last one, and raft snapshot files. The last
//! segment is appended to in place, the backend is written in place page by page, and a received backend becomes the
//! backend by a rename: those are copied, by reference where the filesystem can. A linked file has one lock with the
//! original, so that an etcd started on the copy while one runs on the original may be refused: copy it elsewhere first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::crash_point;
use crate::disk::{Disk, at, parent_of, temporary_beside};

/// Copies the data dir at `from` to `to`, which must not exist; durable, and there only when whole. `live` says which
/// files of it etcd writes in place.
pub fn keep_copy(disk: &dyn Disk, from: &Path, to: &Path, live: &Live) -> io::Result<()> {
    let partial = temporary_beside(to);
    forget_partial(disk, to)?;
    for (n, folder) in ["member/snap", "member/wal"].into_iter().enumerate() {
        let (source, target) = (from.join(folder), partial.join(folder));
        disk.create_dir(&target)?;
        for name in names(&source)? {
            let (source, target) = (source.join(&name), target.join(&name));
            match live.way(&source) {
                Way::Leave => continue,
                Way::Link => match fs::hard_link(&source, &target) {
                    Ok(()) => continue,
                    // A filesystem without links, or another one.
                    Err(e)
                        if matches!(
                            e.kind(),
                            io::ErrorKind::Unsupported
                                | io::ErrorKind::PermissionDenied
                                | io::ErrorKind::CrossesDevices
                        ) => {}
                    Err(e) => return Err(at(&source, e)),
                },
                Way::Copy => {}
            }
            // Uses copy_file_range, which shares the blocks where the filesystem can.
            fs::copy(&source, &target).map_err(|e| at(&source, e))?;
            disk.open(&target)?.sync()?;
        }
        disk.sync_dir(&target)?;
        if n == 0 {
            crash_point!("reset-half-copied");
        }
    }
    disk.sync_dir(&partial.join("member"))?;
    disk.sync_dir(&partial)?;
    disk.rename_durable(&partial, to)
}

/// Removes what an interrupted copy to `to` left; a whole one stays.
pub fn forget_partial(disk: &dyn Disk, to: &Path) -> io::Result<()> {
    disk.forget_dir(&temporary_beside(to))
}

/// The files that etcd writes in place.
#[derive(Clone, Debug)]
pub struct Live {
    /// The last segment of the log.
    pub tail: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    Link,
    Copy,
    Leave,
}

impl Live {
    fn way(&self, file: &Path) -> Way {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let is_file = fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file());
        if !is_file || name.ends_with(".tmp") || name.starts_with("tmp") || name.starts_with("db.tmp") {
            return Way::Leave;
        }
        let sealed = (name.ends_with(".wal") && file != self.tail) || name.ends_with(".snap");
        if sealed { Way::Link } else { Way::Copy }
    }

    /// Bytes that a copy of the data dir at `from` takes at most.
    pub fn bytes(&self, from: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for folder in ["member/snap", "member/wal"] {
            for name in names(&from.join(folder))? {
                let file = from.join(folder).join(name);
                if self.way(&file) == Way::Copy {
                    bytes += fs::metadata(&file).map_err(|e| at(&file, e))?.len();
                }
            }
        }
        Ok(bytes)
    }
}

fn names(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| at(dir, e))? {
        names.push(entry.map_err(|e| at(&parent_of(dir), e))?.file_name());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_written_in_place_is_copied_and_the_rest_linked() {
        let home = tempfile::tempdir().unwrap();
        let (from, to) = (home.path().join("etcd"), home.path().join("etcd.kept"));
        let files = [
            ("member/wal/0-0.wal", true),
            ("member/wal/1-9.wal", false),
            ("member/snap/1-1.snap", true),
            ("member/snap/9.snap.db", false),
            ("member/snap/db", false),
        ];
        for (file, _) in files {
            fs::create_dir_all(from.join(file).parent().unwrap()).unwrap();
            fs::write(from.join(file), file).unwrap();
        }
        fs::write(from.join("member/wal/0.tmp"), "preallocated").unwrap();
        fs::write(from.join("member/snap/db.tmp123"), "half received").unwrap();
        let live = Live { tail: from.join("member/wal/1-9.wal") };
        assert_eq!(live.bytes(&from).unwrap(), 18 + 21 + 14);
        // What an interrupted copy left is begun anew.
        fs::create_dir_all(temporary_beside(&to).join("member/snap/db")).unwrap();
        keep_copy(&RealDisk, &from, &to, &live).unwrap();
        assert!(!temporary_beside(&to).exists());
        for (file, linked) in files {
            assert_eq!(fs::read_to_string(to.join(file)).unwrap(), file);
            let inode = |dir: &Path| fs::metadata(dir.join(file)).unwrap().ino();
            assert_eq!(inode(&from) == inode(&to), linked, "{file}");
        }
        assert!(!to.join("member/wal/0.tmp").exists() && !to.join("member/snap/db.tmp123").exists());
        assert!(keep_copy(&RealDisk, &from, &to, &live).is_err(), "a copy is never overwritten");
    }
}

//! What is written for a moment on a volume that others use: a folder with a name of its own, so that several may write at a
//! time, whose lock file whoever made it has locked (`flock`). What a killed process has left is not locked, and is removed
//! by the next.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::disk::{Disk, RealDisk, at, parent_of};

/// Where files cannot be locked: nobody has been at it for so long without writing.
const NOBODY_WRITES: Duration = Duration::from_secs(24 * 60 * 60);
/// A folder that another process takes for a killed one's, in the moment before it is locked, is made again so often.
const ATTEMPTS: u32 = 100;
/// The lock file of a folder.
const LOCK: &str = ".lock";

/// A folder for a moment. It goes with this value.
pub struct Scratch {
    dir: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes `FOLDER/PREFIX.PID-RANDOM`, when those that killed processes have left are gone.
    ///
    /// # Errors
    /// It cannot be made, as where there is no such folder.
    pub fn make(disk: &dyn Disk, folder: &Path, prefix: &str) -> io::Result<Scratch> {
        if let Err(error) = forget_left(disk, folder, prefix) {
            tracing::warn!("what a killed process has left is not removed: {error}");
        }
        // The folder itself is the user's to make.
        std::fs::read_dir(folder).map_err(|e| at(folder, e))?;
        for _ in 0..ATTEMPTS {
            let dir = folder.join(format!("{prefix}.{}-{:08x}", std::process::id(), rand::random::<u32>()));
            disk.create_dir(&dir)?;
            let lock = match disk.create(&dir.join(LOCK), 0o600).map(drop).and_then(|()| lockable(&dir.join(LOCK))) {
                // Whoever found it empty took it for a killed one's.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                lock => lock.map_err(|e| at(&dir, e))?,
            };
            if held(&lock).map_err(|e| at(&dir, e))? {
                return Ok(Scratch { dir, _lock: lock });
            }
        }
        Err(at(folder, io::Error::other("others remove each folder that is made there")))
    }

    /// A file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&RealDisk, &self.dir) {
            tracing::warn!("what was written for a moment could not be removed: {error}");
        }
    }
}

/// Removes the folders of [`Scratch::make`] that killed processes have left.
///
/// # Errors
/// One cannot be looked at or removed.
pub fn forget_left(disk: &dyn Disk, folder: &Path, prefix: &str) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| at(folder, e))?,
    };
    for entry in entries {
        let dir = entry.map_err(|e| at(folder, e))?.path();
        if !is_named(&dir, prefix) || !is_own_folder(&dir) {
            continue;
        }
        match left_behind(&dir.join(LOCK)) {
            Ok(Some(_locked)) => remove(disk, &dir)?,
            Ok(None) => {}
            // Either all but gone or all but made: in neither case there is anything in it, and this removes nothing else.
            Err(e) if e.kind() == ErrorKind::NotFound => drop(std::fs::remove_dir(&dir)),
            Err(e) if e.kind() == ErrorKind::NotADirectory => {}
            Err(e) => return Err(at(&dir, e)),
        }
    }
    Ok(())
}

/// Whether it is a folder, and of this user: others may share the folder around it, and a link may lead anywhere.
fn is_own_folder(dir: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    dir.symlink_metadata().is_ok_and(|meta| meta.is_dir() && std::os::unix::fs::MetadataExt::uid(&meta) == own)
}

/// Whether [`Scratch::make`] gives such names.
fn is_named(dir: &Path, prefix: &str) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let own = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.split_once('-'));
    own.is_some_and(|(pid, random)| {
        pid.parse::<u32>().is_ok() && random.len() == 8 && u32::from_str_radix(random, 16).is_ok()
    })
}

/// The lock file last: while there is anything else, it tells whose it is.
fn remove(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        // Another has removed it meanwhile.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|e| at(dir, e))?,
    };
    for entry in entries {
        let entry = entry.map_err(|e| at(dir, e))?;
        let path = entry.path();
        if entry.file_type().map_err(|e| at(&path, e))?.is_dir() {
            disk.forget_dir(&path)?;
        } else if entry.file_name() != LOCK {
            disk.forget_file(&path)?;
        }
    }
    disk.forget_file(&dir.join(LOCK))?;
    disk.forget_dir(dir)
}

/// So that it can be locked where that takes a file that is open for writing, as on NFS (flock(2)).
pub fn lockable(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Locks a new file; false if somebody has removed it, who found it before it was locked.
pub fn held(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    // Where files cannot be locked, nobody takes a young one for a killed process's.
    if let Err(error) = file.lock() {
        tracing::debug!("what is being written is not locked: {error}");
    }
    Ok(file.metadata()?.nlink() > 0)
}

/// What a killed process has left, open and locked where that can be done; `None`: somebody is at it, or may be.
pub fn left_behind(path: &Path) -> io::Result<Option<File>> {
    let file = lockable(path)?;
    Ok(match file.try_lock() {
        Ok(()) => Some(file),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(_)) => {
            let age = file.metadata()?.modified().ok().and_then(|at| at.elapsed().ok());
            age.is_some_and(|age| age > NOBODY_WRITES).then_some(file)
        }
    })
}

/// Where a copy of a source stands while it is read, and how much of the volume is others'.
#[derive(Clone, Debug)]
pub struct Aside {
    /// Its name; of a `shared` one, the beginning of it.
    pub path: PathBuf,
    /// Whether somebody else may make one at the same time: nobody is kept away by a lock.
    pub shared: bool,
    /// Bytes that are left free at least.
    pub spare: u64,
}

/// A place for a copy.
pub struct Place {
    /// Where it is.
    pub path: PathBuf,
    _scratch: Option<Scratch>,
}

impl Aside {
    /// The only one of its name: the volume is locked.
    pub fn alone(path: PathBuf, spare: u64) -> Aside {
        Aside { path, shared: false, spare }
    }

    /// Its place. What is put there is to be gone before this is dropped.
    ///
    /// # Errors
    /// As [`Scratch::make`].
    pub fn place(&self, disk: &dyn Disk) -> anyhow::Result<Place> {
        if !self.shared {
            return Ok(Place { path: self.path.clone(), _scratch: None });
        }
        let prefix = self.path.file_name().unwrap_or_default().to_string_lossy();
        let scratch = Scratch::make(disk, &parent_of(&self.path), &prefix);
        let scratch = scratch.with_context(|| format!("make {}.PID", self.path.display()))?;
        Ok(Place { path: scratch.path("source"), _scratch: Some(scratch) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_what_is_used_stays() {
        let home = tempfile::tempdir().unwrap();
        let make = || Scratch::make(&RealDisk, home.path(), "etcd.dry-run").unwrap();
        let used = make();
        std::fs::write(used.path("source"), "x").unwrap();
        let left = ["etcd.dry-run.1-0123abcd", "etcd.dry-run.1-0123abce"].map(|name| home.path().join(name));
        let foreign = ["etcd.dry-run.source", "etcd.dry-run.1-mine", "other.dry-run.1-0123abcd"];
        for dir in left.iter().cloned().chain(foreign.map(|name| home.path().join(name))) {
            std::fs::create_dir_all(dir.join("source/member")).unwrap();
            std::fs::write(dir.join(LOCK), "").unwrap();
        }
        // Killed before it was locked.
        std::fs::create_dir(home.path().join("etcd.dry-run.1-0123abcf")).unwrap();
        drop(make());
        assert!(left.iter().all(|dir| !dir.exists()) && used.path("source").exists());
        drop(used);
        let mut names: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let mut foreign = foreign.to_vec();
        foreign.sort_unstable();
        assert_eq!(names, foreign);
        forget_left(&RealDisk, &home.path().join("nothing"), "x").unwrap();
    }
}

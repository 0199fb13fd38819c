//! A snapshot file: a backend, and SHA-256 over it at its end.
//!
//! [`digest`](crate::snapshot::digest) has etcd's rule for it. A file without one is a backend that was copied by hand; its
//! pages and messages are checked all the same, its values cannot be.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::BackendStore;
use super::error::{BackendError, named};
use crate::disk::at;
use crate::migrate::source::SideCheck;
use crate::snapshot::digest::{CHECKSUM, SnapshotDigest, UNIT};

/// What protects the content.
#[derive(Clone, Debug)]
pub enum Checksum {
    /// A data dir, which has none.
    None,
    /// A file that has none, and should.
    Missing,
    /// SHA-256 at the end of this file.
    AtEnd(PathBuf),
}

/// Opens the snapshot at `path`. Its checksum is compared beside the reading ([`ChecksumCheck`]).
pub fn open(path: &Path) -> Result<BackendStore, BackendError> {
    let meta = std::fs::metadata(path).map_err(named(path))?;
    if !meta.is_file() {
        return Err(BackendError::NotAFile);
    }
    let folder = |path: &Path, name: &str| path.file_name().is_some_and(|found| found == name);
    let (snap, member) = (path.parent(), path.parent().and_then(Path::parent));
    if folder(path, "db")
        && snap.is_some_and(|snap| folder(snap, "snap"))
        && member.is_some_and(|member| folder(member, "member") && member.join("wal").is_dir())
    {
        return Err(BackendError::BackendOfDatadir);
    }
    let checksum = match meta.len() % UNIT {
        0 => Checksum::Missing,
        rest if rest == CHECKSUM as u64 => Checksum::AtEnd(path.to_owned()),
        _ => return Err(BackendError::CutShort),
    };
    let store = BackendStore::read(path, path, vec![path.to_owned()])?;
    Ok(BackendStore { checksum, ..store })
}

/// Compares the checksum, on a thread of its own.
pub struct ChecksumCheck {
    file: File,
    path: PathBuf,
    cancelled: Arc<AtomicBool>,
}

impl ChecksumCheck {
    /// A check of the file at `path`.
    pub fn new(path: &Path) -> Result<Self, BackendError> {
        let file = File::open(path).map_err(named(path))?;
        Ok(ChecksumCheck { file, path: path.to_owned(), cancelled: Arc::default() })
    }

    fn check(mut self) -> Result<(), BackendError> {
        let io = |e| BackendError::Io(at(&self.path, e));
        let (mut digest, mut buffer) = (SnapshotDigest::default(), vec![0; 1 << 18]);
        while !self.cancelled.load(Ordering::Relaxed) {
            match self.file.read(&mut buffer).map_err(io)? {
                0 => return digest.finish().map(drop).map_err(|_| BackendError::Checksum),
                count => digest.update(buffer.get(..count).unwrap_or_default()),
            }
        }
        Ok(())
    }
}

impl SideCheck for ChecksumCheck {
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let cancelled = self.cancelled.clone();
        Box::new(move || cancelled.store(true, Ordering::Relaxed))
    }

    fn run(self: Box<Self>) -> anyhow::Result<()> {
        Ok(self.check()?)
    }
}

//! A snapshot file: a backend, and SHA-256 over it at its end.
//!
//! [`digest`](crate::snapshot::digest) has etcd's rule for it. A file without one is a backend that was copied by hand, and taken
//! only where that is asked for; its pages and messages are checked all the same, its values cannot be.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::BackendStore;
use super::error::{BackendError, named};
use crate::disk::at;
use crate::migrate::source::SideCheck;
use crate::snapshot::digest::{CHECKSUM, SnapshotDigest, UNIT};

/// What protects the content.
pub enum Checksum {
    /// A data dir, which has none.
    None,
    /// A file that has none, and should.
    Missing,
    /// SHA-256 at its end, which is being compared, or was.
    AtEnd(Option<ChecksumCheck>),
}

/// Opens the snapshot at `path`. Its checksum is compared meanwhile, and while it is read ([`ChecksumCheck`]); a file that
/// has none is refused, unless that is skipped.
pub fn open(path: &Path, skip_hash_check: bool) -> Result<BackendStore, BackendError> {
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
        rest if rest == CHECKSUM as u64 => Checksum::AtEnd(Some(ChecksumCheck::begin(path)?)),
        _ => return Err(BackendError::CutShort),
    };
    let store = BackendStore::read(path, path, vec![path.to_owned()])?;
    // Last: of what is no snapshot at all that is no remedy.
    if matches!(checksum, Checksum::Missing) && !skip_hash_check {
        return Err(BackendError::NoChecksum);
    }
    Ok(BackendStore { checksum, ..store })
}

/// Compares the checksum, on a thread of its own: from the opening on, as the search for the live keys leaves a processor
/// idle and the copying does not. Ends early when it is dropped.
pub struct ChecksumCheck {
    thread: JoinHandle<Result<(), BackendError>>,
    cancelled: Cancelled,
}

/// Set when it is dropped.
#[derive(Default)]
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ChecksumCheck {
    /// Begins to check the file at `path`.
    pub fn begin(path: &Path) -> Result<Self, BackendError> {
        let file = File::open(path).map_err(named(path))?;
        let cancelled = Cancelled::default();
        let (path, told) = (path.to_owned(), cancelled.0.clone());
        let thread = std::thread::Builder::new().name("checksum".to_owned());
        let thread = thread.spawn(move || compare(file, &path, &told)).map_err(BackendError::Io)?;
        Ok(ChecksumCheck { thread, cancelled })
    }
}

/// Whether the checksum is right; nothing if it is told to end.
fn compare(mut file: File, path: &Path, cancelled: &AtomicBool) -> Result<(), BackendError> {
    let io = |e| BackendError::Io(at(path, e));
    let (mut digest, mut buffer) = (SnapshotDigest::default(), vec![0; 1 << 18]);
    while !cancelled.load(Ordering::Relaxed) {
        match file.read(&mut buffer).map_err(io)? {
            0 => return digest.finish().map(drop).map_err(|_| BackendError::Checksum),
            count => digest.update(buffer.get(..count).unwrap_or_default()),
        }
    }
    Ok(())
}

impl SideCheck for ChecksumCheck {
    fn canceller(&self) -> Box<dyn Fn() + Send + Sync> {
        let cancelled = self.cancelled.0.clone();
        Box::new(move || cancelled.store(true, Ordering::Relaxed))
    }

    fn run(self: Box<Self>) -> anyhow::Result<()> {
        let ChecksumCheck { thread, cancelled: _until_then } = *self;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

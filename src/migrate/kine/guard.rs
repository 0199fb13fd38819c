//! Nobody else uses the store while we read it.
//!
//! An idle kine holds no lock that a transaction would meet: `BEGIN EXCLUSIVE` succeeds beside it. What it does hold
//! are SQLite's own locks on the files, for as long as it has them open: a read lock on the shared range of `state.db`
//! and one on the WAL-index's "dead man's switch" (`os_unix.c`, `UNIX_SHM_DMS`). We take write locks on both ranges, as
//! open-file-description locks: those conflict with everybody else's, and survive SQLite closing its own descriptor of
//! the same file in this process. Whoever opens the store meanwhile is told that it is busy.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::SourceError;
use super::files::StoreFiles;
use crate::disk::at;

/// SQLite's lock bytes in the database file: pending, reserved, and 510 shared ones (`os.h`, `PENDING_BYTE`).
const DATABASE_RANGE: (i64, i64) = (0x4000_0000, 512);
/// SQLite's lock bytes in the `-shm` file: eight locks and the dead man's switch (`wal.c`, `os_unix.c`).
const INDEX_RANGE: (i64, i64) = (120, 9);
/// At most so many processes and descriptors are looked at.
const MAX_PROCESSES: usize = 100_000;
const MAX_DESCRIPTORS: usize = 100_000;

/// The store's locks, held until dropped.
#[derive(Debug)]
pub struct StoreLock {
    _files: Vec<File>,
    /// Whether the lock keeps writers out; on a medium that cannot be written there are none.
    pub exclusive: bool,
}

/// Takes the store's locks, waiting up to `wait` for a present holder to go.
pub fn acquire(files: &StoreFiles, wait: Duration) -> Result<StoreLock, SourceError> {
    let deadline = Instant::now() + wait;
    loop {
        match try_acquire(files) {
            Err(SourceError::Held { .. }) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
}

fn try_acquire(files: &StoreFiles) -> Result<StoreLock, SourceError> {
    let (database, exclusive) = open_to_lock(&files.db)?;
    lock(&database, DATABASE_RANGE, exclusive)?;
    let mut held = vec![database];
    match open_to_lock(&files.shm) {
        Ok((index, writable)) => {
            lock(&index, INDEX_RANGE, writable)?;
            held.push(index);
        }
        Err(SourceError::Absent) => {}
        Err(e) => return Err(e),
    }
    // A program that has the file open but has not read it yet holds no lock.
    if let Some(holder) = writer_of(&held) {
        return Err(SourceError::Held { holder });
    }
    Ok(StoreLock { _files: held, exclusive })
}

/// Opens a file to lock it: for writing, or for reading where nobody can write.
fn open_to_lock(path: &Path) -> Result<(File, bool), SourceError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(e) if matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            Ok((File::open(path).map_err(|e| at(path, e))?, false))
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(SourceError::Absent)
        }
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => Err(SourceError::NotAFile),
        Err(e) => Err(at(path, e).into()),
    }
}

fn flock(range: (i64, i64), exclusive: bool) -> libc::flock {
    // SAFETY: flock is a plain C structure of integers, for which all zeroes is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = range;
    lock
}

fn lock(file: &File, range: (i64, i64), exclusive: bool) -> Result<(), SourceError> {
    if let Some(holder) = holder_of(file, range)? {
        return Err(SourceError::Held { holder });
    }
    let wanted = flock(range, exclusive);
    // SAFETY: the descriptor is open and the pointer is to a flock that outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const wanted) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            let holder = holder_of(file, range)?.unwrap_or_else(|| "another process".to_owned());
            Err(SourceError::Held { holder })
        }
        _ => Err(SourceError::Lock(error)),
    }
}

/// Who holds a lock in this range, if anybody.
fn holder_of(file: &File, range: (i64, i64)) -> Result<Option<String>, SourceError> {
    let mut found = flock(range, true);
    // SAFETY: the descriptor is open and the pointer is to a flock that outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut found) } != 0 {
        return Err(SourceError::Lock(io::Error::last_os_error()));
    }
    if i32::from(found.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(match found.l_pid {
        // An open-file-description lock, which has no process: only we take such ones.
        -1 => "another syncer".to_owned(),
        // Not visible from here.
        0 => "a process outside of this container".to_owned(),
        pid => name_process(pid),
    }))
}

/// `process 12 (kine)`.
fn name_process(pid: i32) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

/// A process other than this one that has one of `files` open for writing, as far as `/proc` lets us look.
fn writer_of(files: &[File]) -> Option<String> {
    let wanted: Vec<(u64, u64)> = files.iter().filter_map(|f| f.metadata().ok()).map(|m| (m.dev(), m.ino())).collect();
    let own = std::process::id().to_string();
    for process in fs::read_dir("/proc").ok()?.flatten().take(MAX_PROCESSES) {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit()) && *n != own) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten().take(MAX_DESCRIPTORS) {
            let is_ours = fs::metadata(descriptor.path()).is_ok_and(|m| wanted.contains(&(m.dev(), m.ino())));
            if is_ours && opened_for_writing(&process.path().join("fdinfo").join(descriptor.file_name())) {
                return Some(name_process(pid.parse().ok()?));
            }
        }
    }
    None
}

fn opened_for_writing(fdinfo: &Path) -> bool {
    let Ok(text) = fs::read_to_string(fdinfo) else { return false };
    let flags = text.lines().find_map(|l| l.strip_prefix("flags:")).map(str::trim);
    flags.and_then(|f| i32::from_str_radix(f, 8).ok()).is_some_and(|f| f & libc::O_ACCMODE != libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// For what must succeed: a child that another test has just forked has our files open until it is another program.
    const SOON: Duration = Duration::from_secs(10);

    fn store(dir: &Path) -> StoreFiles {
        let db = dir.join("state.db");
        let connection = rusqlite::Connection::open(&db).unwrap();
        connection.execute_batch("pragma journal_mode=wal; create table t(x)").unwrap();
        StoreFiles::of(&db)
    }

    #[test]
    fn an_unused_store_is_locked_once_and_again_after_release() {
        let dir = tempfile::tempdir().unwrap();
        let files = store(dir.path());
        let lock = acquire(&files, SOON).unwrap();
        assert!(lock.exclusive);
        let error = acquire(&files, Duration::ZERO).unwrap_err();
        assert_eq!(error.to_string(), "it is in use by another syncer");
        drop(lock);
        acquire(&files, SOON).unwrap();
    }

    #[test]
    fn whoever_opens_a_locked_store_is_told_that_it_is_busy() {
        let dir = tempfile::tempdir().unwrap();
        let files = store(dir.path());
        let _lock = acquire(&files, SOON).unwrap();
        let connection = rusqlite::Connection::open(&files.db).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        let error = connection.query_row("select count(*) from t", [], |_| Ok(())).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ffi::ErrorCode::DatabaseBusy));
    }

    #[test]
    fn a_process_that_only_has_the_file_open_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = store(dir.path());
        let open = OpenOptions::new().write(true).open(&files.db).unwrap();
        let mut sleeper = Command::new("sleep").arg("60").stdout(Stdio::from(open)).spawn().unwrap();
        let error = acquire(&files, Duration::ZERO).unwrap_err();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(error.to_string(), format!("it is in use by process {} (sleep)", sleeper.id()));
        acquire(&files, SOON).unwrap();
    }

    #[test]
    fn a_reader_without_locks_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let files = store(dir.path());
        let open = File::open(&files.db).unwrap();
        let mut sleeper = Command::new("sleep").arg("60").stdin(Stdio::from(open)).spawn().unwrap();
        let taken = acquire(&files, SOON);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        taken.unwrap();
    }

    #[test]
    fn what_is_not_there_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let missing = StoreFiles::of(&dir.path().join("state.db"));
        assert!(matches!(acquire(&missing, Duration::ZERO), Err(SourceError::Absent)));
        assert!(matches!(acquire(&StoreFiles::of(dir.path()), Duration::ZERO), Err(SourceError::NotAFile)));
    }
}

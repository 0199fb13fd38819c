//! One syncer and one etcd on a data dir.
//!
//! An exclusive `flock` on `<dir>/.syncer.lock`. The etcd child inherits the open file, so that an etcd that outlives
//! a killed syncer keeps the lock until it too is gone. The file itself stays on a pod's volume; whoever locks one makes
//! sure that it is the one that bears the name. Nothing ever unlocks: the lock goes when the last process that has the
//! file open ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use thiserror::Error;

/// The lock file's name.
pub const LOCK_FILE: &str = ".syncer.lock";
/// How often a held lock is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// The lock, held until dropped and until every child that inherited it has ended.
#[derive(Debug)]
pub struct DatadirLock {
    file: File,
}

/// Why the lock was not taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{} is held by {}", path.display(), holder.as_deref().unwrap_or("a process that cannot be seen from here"))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holders as `pid 12 (etcd)`, if they could be found out.
        holder: Option<String>,
    },
    /// The file could not be opened or locked.
    #[error("lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DatadirLock {
    /// Takes the lock in `dir` (which must exist, and holds `etcd/`), blocking up to `wait` for the present holder to go.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<Self, LockError> {
        DatadirLock::acquire_file(&dir.join(LOCK_FILE), wait)
    }

    /// The same of another lock file.
    pub fn acquire_file(path: &Path, wait: Duration) -> Result<Self, LockError> {
        let (lock, _) = DatadirLock::acquire_or_make(path, wait)?;
        // From here on it stays.
        lock.file.set_len(0).map_err(|source| LockError::Io { path: path.to_owned(), source })?;
        Ok(lock)
    }

    /// And whether its file was not there before.
    fn acquire_or_make(path: &Path, wait: Duration) -> Result<(Self, bool), LockError> {
        let path = path.to_owned();
        let io = |source| LockError::Io { path: path.clone(), source };
        let (mut file, mut made) = open_or_make(&path).map_err(io)?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) if is_at(&file, &path).map_err(io)? => return Ok((DatadirLock { file }, made)),
                // Who had it has removed it: somebody else may have made and locked another of this name.
                Ok(()) => (file, made) = open_or_make(&path).map_err(io)?,
                Err(TryLockError::Error(source)) => return Err(io(source)),
                Err(TryLockError::WouldBlock) if begun.elapsed() >= wait => {
                    return Err(LockError::Held { holder: holders(&file), path });
                }
                Err(TryLockError::WouldBlock) => sleep(RETRY),
            }
        }
    }

    /// Lets the child that `command` spawns, and no other, inherit the lock.
    pub fn inherit_into(&self, command: &mut Command) -> io::Result<()> {
        // The command keeps a descriptor of its own, so that the closure can never act on one that was closed and
        // given to something else.
        let file = self.file.try_clone()?;
        // SAFETY: fcntl is async-signal-safe, and the closure neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                if libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) == -1 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Ok(())
    }
}

/// What is in a lock file that goes with its lock.
const PASSING: &[u8] = b"passing";

/// A lock that is held while something is made: a lock file that was not there before is removed with it, or by the next such
/// lock if its holder was killed.
#[derive(Debug)]
pub struct PassingLock {
    lock: Arc<DatadirLock>,
    made: Option<PathBuf>,
}

impl PassingLock {
    /// Takes the lock at `path`, blocking up to `wait` for the present holder to go.
    pub fn acquire(path: &Path, wait: Duration) -> Result<Self, LockError> {
        let (lock, made) = DatadirLock::acquire_or_make(path, wait)?;
        let io = |source| LockError::Io { path: path.to_owned(), source };
        if made {
            lock.file.write_all_at(PASSING, 0).map_err(io)?;
        }
        let mut content = [0; PASSING.len()];
        let passes = match lock.file.read_exact_at(&mut content, 0) {
            Ok(()) => content == PASSING,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(io(e)),
        };
        Ok(PassingLock { lock: Arc::new(lock), made: passes.then(|| path.to_owned()) })
    }

    /// The lock, for those that inherit it.
    pub fn shared(&self) -> Arc<DatadirLock> {
        Arc::clone(&self.lock)
    }
}

impl Drop for PassingLock {
    fn drop(&mut self) {
        // What is left is locked by nobody, and taken by the next.
        let _ = self.made.as_ref().map(std::fs::remove_file);
    }
}

/// Opens a lock file, and says whether it was made for that.
fn open_or_make(path: &Path) -> io::Result<(File, bool)> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    };
    loop {
        match open(options().create_new(true), path) {
            Ok(file) => return Ok((file, true)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        match open(&mut options(), path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return Ok((opened?, false)),
        }
    }
}

/// Whether this open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Opens a lock file; what is none is not waited for, as an opened pipe would be.
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    match options.custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(none()),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Err(none()),
        Err(e) => Err(e),
    }
}

/// Whether a syncer or an etcd that one has left behind holds the lock of the volume at `data_dir`. It is shared for a
/// moment, without making the file: whoever wants it tries for longer than that.
pub fn in_use(data_dir: &Path) -> Result<bool, LockError> {
    let path = data_dir.join(LOCK_FILE);
    let io = |source| LockError::Io { path: path.clone(), source };
    let file = match open(OpenOptions::new().read(true), &path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(false),
        Err(e) => return Err(io(e)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(e)) => Err(io(e)),
    }
}

/// The processes that hold a lock on `file`: those with it open whose `fdinfo` shows the lock. A process that waits for
/// the lock has the file open too, but shows none. `/proc/locks` would name who took it, who may be long dead.
fn holders(file: &File) -> Option<String> {
    let wanted = file.metadata().map(|meta| (meta.dev(), meta.ino())).ok()?;
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(descriptors) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            let is_it = std::fs::metadata(descriptor.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == wanted);
            let info = process.path().join("fdinfo").join(descriptor.file_name());
            is_it && std::fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("pid {pid} ({})", name.trim()));
        }
    }
    if found.is_empty() { None } else { Some(found.join(" and ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    const SOON: Duration = Duration::from_secs(10);

    fn sleeper() -> Command {
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    #[test]
    fn only_one_holds_it_and_the_error_names_who() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DatadirLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let error = DatadirLock::acquire(dir.path(), Duration::from_millis(120)).unwrap_err();
        let LockError::Held { holder, path } = &error else { panic!("{error}") };
        assert_eq!(path, &dir.path().join(LOCK_FILE));
        assert!(holder.as_ref().unwrap().contains(&format!("pid {} ", std::process::id())), "{error}");
        drop(lock);
        DatadirLock::acquire(dir.path(), SOON).unwrap();
    }

    #[test]
    fn a_pipe_in_its_place_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join(LOCK_FILE), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let not_a_file = |error: LockError| matches!(error, LockError::Io { source, .. } if source.kind() == io::ErrorKind::InvalidInput);
        assert!(not_a_file(DatadirLock::acquire(dir.path(), Duration::ZERO).unwrap_err()));
        assert!(not_a_file(in_use(dir.path()).unwrap_err()));
    }

    #[test]
    fn a_child_that_inherited_it_keeps_it_and_another_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DatadirLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let mut heir = sleeper();
        lock.inherit_into(&mut heir).unwrap();
        let mut heir_child = heir.spawn().unwrap();
        let mut other_child = sleeper().spawn().unwrap();
        drop(heir);
        drop(lock);

        let error = DatadirLock::acquire(dir.path(), Duration::ZERO).unwrap_err();
        let named = format!("pid {} (sleep)", heir_child.id());
        assert!(error.to_string().ends_with(&format!("is held by {named}")), "{error}, not only {named}");
        heir_child.kill().unwrap();
        heir_child.wait().unwrap();
        let taken = DatadirLock::acquire(dir.path(), SOON);
        other_child.kill().unwrap();
        other_child.wait().unwrap();
        taken.unwrap();
    }

    #[test]
    fn it_waits_for_a_holder_that_goes() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DatadirLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let path = dir.path().to_owned();
        let waiter = std::thread::spawn(move || DatadirLock::acquire(&path, SOON).map(drop));
        drop(lock);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_passing_lock_excludes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let busy = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let lock = PassingLock::acquire(&path, SOON).unwrap();
                        assert!(!busy.swap(true, std::sync::atomic::Ordering::SeqCst));
                        assert!(busy.swap(false, std::sync::atomic::Ordering::SeqCst));
                        drop(lock);
                    }
                });
            }
        });
        assert!(!path.exists());
        // What a killed one has left goes with the next; what a pod has locked stays.
        std::fs::write(&path, PASSING).unwrap();
        drop(PassingLock::acquire(&path, SOON).unwrap());
        assert!(!path.exists());
        drop(DatadirLock::acquire_file(&path, SOON).unwrap());
        drop(PassingLock::acquire(&path, SOON).unwrap());
        assert!(path.exists());
        std::fs::write(&path, PASSING).unwrap();
        drop(DatadirLock::acquire_file(&path, SOON).unwrap());
        drop(PassingLock::acquire(&path, SOON).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert!(matches!(PassingLock::acquire(&dir.path().join("link"), SOON), Err(LockError::Io { .. })));
        let held = PassingLock::acquire(&path, SOON).unwrap();
        assert!(matches!(PassingLock::acquire(&path, Duration::ZERO), Err(LockError::Held { .. })));
        drop(held);
    }

    #[test]
    fn a_missing_directory_is_an_error_of_its_own() {
        let error = DatadirLock::acquire(Path::new("/nonexistent-dir"), SOON).unwrap_err();
        assert!(matches!(error, LockError::Io { .. }), "{error}");
    }

    #[test]
    fn a_lock_that_is_held_is_seen_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!in_use(dir.path()).unwrap());
        assert!(!in_use(&dir.path().join("none")).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let held = DatadirLock::acquire(dir.path(), SOON).unwrap();
        assert!(in_use(dir.path()).unwrap());
        drop(held);
    }
}

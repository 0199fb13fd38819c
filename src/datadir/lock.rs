//! One syncer and one etcd on a data dir.
//!
//! An exclusive `flock` on `<data dir>/.syncer.lock`. The etcd child inherits the descriptor, so that an etcd that
//! outlives a killed syncer keeps the lock until it too is gone.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use thiserror::Error;

/// The lock, held until dropped and until every child that inherited it has ended.
#[derive(Debug)]
pub struct DatadirLock {
    file: std::fs::File,
}

/// Why the lock was not taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error("{} is held by {}", path.display(), holder.as_deref().unwrap_or("another process"))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// The holder as `pid 12 (etcd)`, if it could be found out.
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
    /// Takes the lock in `dir` (the directory that holds `etcd/`), waiting up to `wait` for the present holder to go.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<Self, LockError> {
        let _ = (dir, wait);
        todo!()
    }

    /// Lets the child of `command`, and no other, inherit the lock.
    pub fn inherit_into(&self, command: &mut Command) {
        let _ = (&self.file, command);
        todo!()
    }
}

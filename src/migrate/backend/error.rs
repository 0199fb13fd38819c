//! Why etcd's store is not read, each with its remedy.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::datadir::bolt::BoltError;
use crate::datadir::{LockError, TailError};
use crate::disk::at;
use crate::exit::{Exit, refuse};
use crate::ids::{MemberId, Revision};

/// Why a data dir or a snapshot cannot be read, or must not be. The path is added by [`BackendError::refusal`].
#[derive(Debug, Error)]
pub enum BackendError {
    /// Nothing is there.
    #[error("there is nothing of this name")]
    Absent,
    /// A directory where a file belongs, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// A directory without a data dir.
    #[error("it holds no data dir of etcd: no member/wal")]
    NoDatadir,
    /// etcd would not start from it.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// The backend of a data dir, named as if it were a snapshot.
    #[error("it is the backend of a data dir, and what its log has beyond that would be left out")]
    BackendOfDatadir,
    /// A data dir that an etcd or a syncer uses.
    #[error("an etcd has it open")]
    Held,
    /// A data dir whose syncer runs.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The file's end is missing.
    #[error("it ends in the middle of a page: it was not copied to its end")]
    CutShort,
    /// A snapshot that ends with its last page.
    #[error("it has no checksum at its end, or was cut off, so that damage would not be seen")]
    NoChecksum,
    /// The checksum at the end does not fit.
    #[error("its content does not fit the checksum at its end")]
    Checksum,
    /// No bucket `key`.
    #[error("it has no bucket of keys, so etcd did not write it")]
    NotEtcd,
    /// A damaged page.
    #[error("it is damaged")]
    Bolt(#[from] BoltError),
    /// A key of bucket `key` that is no revision.
    #[error("it is damaged: a revision cannot be read")]
    BadRevision,
    /// A revision that etcd cannot have written.
    #[error("it is damaged: revision {revision}/{sub} {reason}")]
    BadRow {
        /// The transaction's revision.
        revision: Revision,
        /// The place within it.
        sub: i64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A lease that etcd cannot have written.
    #[error("it is damaged: a lease cannot be read")]
    BadLease,
    /// More than 2^32 revisions.
    #[error("it has more than 4294967295 revisions")]
    TooManyRows,
    /// More names of one hash than fit into memory.
    #[error("it has too many keys")]
    TooManyNames,
    /// Keys changed between two walks.
    #[error("it changed while it was read")]
    Changed,
    /// Others vote too.
    #[error("its cluster has {members} members, and the others may have acknowledged writes that it lacks")]
    NotAlone {
        /// How many voters and learners.
        members: usize,
    },
    /// It is not the voter whose log counts.
    #[error("its member {0} does not vote, so others have acknowledged writes that it may lack")]
    NotAVoter(MemberId),
    /// The end of its log tells nothing.
    #[error("the end of its log cannot be read: {0}")]
    Tail(String),
    /// It was written by a newer etcd than the one that is to replay its log.
    #[error("{0}")]
    Newer(String),
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<TailError> for BackendError {
    fn from(error: TailError) -> Self {
        match error {
            TailError::Io(error) => BackendError::Io(error),
            other => BackendError::Tail(format!("{:#}", anyhow::Error::from(other))),
        }
    }
}

impl BackendError {
    fn exit(&self) -> Exit {
        match self {
            BackendError::Held | BackendError::Locked(LockError::Held { .. }) => Exit::RefusedLocked,
            _ => Exit::RefusedSource,
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            BackendError::Absent | BackendError::NotAFile => "check the path",
            BackendError::NoDatadir => "give the path of the directory that has member/ in it",
            BackendError::BackendOfDatadir => {
                "a data dir is read with its log by `syncer migrate --from datadir:PATH`, PATH being the folder that has member/ \
                 in it; a snapshot is a file of its own, as `syncer snapshot save` writes it"
            }
            BackendError::Held | BackendError::Locked(_) => "stop that etcd and its syncer, then try again",
            BackendError::CutShort | BackendError::Checksum => "copy or take the snapshot again",
            BackendError::NoChecksum => {
                "use a file that `etcdctl snapshot save` or `syncer snapshot save` wrote; to take it as it is, add \
                 --skip-hash-check"
            }
            BackendError::NotEtcd => "give a file that `etcdctl snapshot save` or `syncer snapshot save` wrote",
            BackendError::NotAlone { .. } => {
                "scale to one replica and stop that, or read the running cluster (etcd:URL); if the others are lost for \
                 good, `syncer recover` makes it the only member"
            }
            BackendError::NotAVoter(_) => {
                "read the running cluster (etcd:URL), or a voter that was the only one; if the others are lost for good, \
                 `syncer recover` says how to go on with this one"
            }
            BackendError::Newer(_) => "give an etcd of that version with --etcd",
            BackendError::Changed => "stop whatever writes to it, then try again",
            BackendError::TooManyRows => "start etcd on it and compact it, then try again",
            BackendError::TooManyNames => "see the cause",
            BackendError::Io(_) => "see the cause",
            _ => "take it from another member or from a snapshot",
        }
    }

    /// The error that ends the command: it names the path, what is wrong and the remedy.
    pub fn refusal(self, path: &Path) -> anyhow::Error {
        match self {
            BackendError::Io(e) if e.kind() != io::ErrorKind::PermissionDenied => {
                anyhow::Error::from(e).context(format!("read {}", path.display()))
            }
            BackendError::Bolt(BoltError::Io(e)) => {
                anyhow::Error::from(at(path, e)).context(format!("read {}", path.display()))
            }
            other => {
                let cause = std::error::Error::source(&other).map(|cause| format!(": {cause}")).unwrap_or_default();
                refuse(other.exit(), format!("{} is not read: {other}{cause}", path.display()), other.remedy())
            }
        }
    }
}

/// Names the store in an error of the pipeline: a [`BackendError`] becomes a refusal, anything else stays what it is.
pub fn name_backend(error: anyhow::Error, path: &Path) -> anyhow::Error {
    match error.downcast::<BackendError>() {
        Ok(found) => found.refusal(path),
        Err(other) => other,
    }
}

/// The path of a file, where an error does not name it.
pub(super) fn named(path: &Path) -> impl FnOnce(io::Error) -> BackendError {
    let path: PathBuf = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => BackendError::Absent,
        _ => BackendError::Io(at(&path, error)),
    }
}

//! Why a SQLite store is not imported, each with its remedy.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::wal::BrokenWal;
use crate::exit::{Exit, exit_of, refuse};

/// Why a store cannot be read, or must not be. The path of `state.db` is added by [`SourceError::refusal`].
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is no such file.
    #[error("there is no such file")]
    Absent,
    /// A directory, a symbolic link, a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// A directory, a link, a pipe in the place of the `-wal`, `-shm` or `-journal`.
    #[error("{} is not a regular file", .0.display())]
    CompanionNotAFile(PathBuf),
    /// Zero bytes.
    #[error("the file is empty")]
    Empty,
    /// The header is not SQLite's.
    #[error("it is not a SQLite database, or it is encrypted")]
    NotSqlite,
    /// `PRAGMA encoding` is UTF-16; kine's is UTF-8.
    #[error("its text encoding is not UTF-8, so kine did not write it")]
    NotUtf8Database,
    /// No table `kine`.
    #[error("it has no table kine")]
    NotKine,
    /// k3s before kine (2019): a table `key_value`.
    #[error("it was written before kine existed (it has a table key_value and no rows of kine)")]
    PreKine,
    /// A column is missing.
    #[error("its table kine has no column {0}")]
    MissingColumn(&'static str),
    /// `kine` is a view, or `id` is not the row's number.
    #[error("its table kine is not laid out as kine lays it out: {0}")]
    ForeignLayout(String),
    /// Not one row, though kine writes `compact_rev_key` when it first starts.
    #[error(
        "its table kine has no row, not even kine's own compact_rev_key: its -wal file is missing, or it was never used"
    )]
    NoRows,
    /// A `-wal` lies beside the name by which a database was opened, and this one has several.
    #[error("it has {links} other names (hard links), and a -wal file may lie beside one of them")]
    OtherNames {
        /// How many beside this one.
        links: u64,
    },
    /// The `-shm` tells of frames, but the `-wal` is not there.
    #[error("{} is missing: {frames} pages of it were not yet in the database", wal.display())]
    WalMissing {
        /// The file that should be there.
        wal: PathBuf,
        /// Frames that the `-shm` tells of.
        frames: u64,
    },
    /// The `-shm` tells of more frames than the `-wal` has.
    #[error("{} ends too early: the -shm file beside it tells of {frames} more pages", wal.display())]
    WalShort {
        /// The file that is too short.
        wal: PathBuf,
        /// Frames that the `-shm` tells of and that are not there.
        frames: u64,
    },
    /// The store had given out more revisions than the `-wal` knows of.
    #[error("{} is not its own: without it the last row is {database}, with it {with_wal}", wal.display())]
    ForeignWal {
        /// The file.
        wal: PathBuf,
        /// The last number that the database alone has given to a row.
        database: i64,
        /// The same as seen through the `-wal`.
        with_wal: i64,
    },
    /// The `-wal` is not whole.
    #[error("{} is damaged or belongs to another database: {broken}", wal.display())]
    BrokenWal {
        /// The file.
        wal: PathBuf,
        /// How.
        broken: BrokenWal,
    },
    /// A transaction was interrupted and must be rolled back first.
    #[error("{} holds an interrupted transaction", journal.display())]
    HotJournal {
        /// The rollback journal.
        journal: PathBuf,
    },
    /// Somebody has it open.
    #[error("it is in use by {holder}")]
    Held {
        /// Who, as `process 12 (kine)`.
        holder: String,
    },
    /// Its lock cannot be taken.
    #[error("it cannot be locked")]
    Lock(#[source] io::Error),
    /// `quick_check`, or a comparison of ours, found damage.
    #[error("it is damaged: {0}")]
    Corrupt(String),
    /// A row that kine cannot have written and etcd cannot hold.
    #[error("row {id} {reason}")]
    BadRow {
        /// The row.
        id: i64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two live rows, stored with names of different types, mean the same key.
    #[error("rows are stored under two types of name that mean the same key {key}")]
    TwoNamesEqual {
        /// The key, made printable.
        key: String,
    },
    /// SQLite failed otherwise.
    #[error("SQLite")]
    Sqlite(#[source] rusqlite::Error),
    /// A file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<rusqlite::Error> for SourceError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ffi::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt) => SourceError::Corrupt(error.to_string()),
            Some(ErrorCode::NotADatabase) => SourceError::NotSqlite,
            Some(ErrorCode::TooBig) => SourceError::Corrupt("a value is larger than anything kine accepts".to_owned()),
            // SQLITE_IOERR_SHORT_READ: no disk's fault, the file is not as long as it says.
            Some(_)
                if error.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ) =>
            {
                SourceError::Corrupt("the file is cut short".to_owned())
            }
            None if matches!(
                error,
                rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
            ) =>
            {
                SourceError::Corrupt(error.to_string())
            }
            _ => SourceError::Sqlite(error),
        }
    }
}

impl SourceError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            SourceError::Absent => "check the path",
            SourceError::NotAFile => "give the path of the file itself",
            SourceError::Empty | SourceError::NotSqlite | SourceError::NotKine => {
                "give the path of the state.db that kine or k3s wrote, or restore it from a backup"
            }
            SourceError::NotUtf8Database | SourceError::MissingColumn(_) | SourceError::ForeignLayout(_) => {
                "start the virtual cluster once on SQLite (embedded etcd off), so that kine completes it"
            }
            SourceError::PreKine => "start the virtual cluster once on SQLite (embedded etcd off): kine converts it",
            SourceError::CompanionNotAFile(_) => {
                "move it away, and put the file that belongs to the store in its place"
            }
            SourceError::NoRows => {
                "put the -wal file that belongs to it beside it, under the same base name; if it was never used, move it away"
            }
            SourceError::OtherNames { .. } => {
                "find them with `find DIR -samefile state.db`, put the -wal of the one that was in use beside it, or \
                 delete the other names if none has one"
            }
            SourceError::WalMissing { .. } | SourceError::WalShort { .. } => {
                "put the whole -wal file that belongs to it beside it, under the same base name; if that is lost for \
                 good, move the -shm file away to go on without those pages"
            }
            SourceError::ForeignWal { .. } => {
                "put the -wal file that belongs to it beside it; if it has none, as after restoring a backup, move the \
                 -wal and -shm files away"
            }
            SourceError::BrokenWal { .. } => {
                "put the -wal file that belongs to it back; if none is left, `sqlite3 state.db 'pragma \
                 wal_checkpoint(truncate)'` drops the unreadable part for good"
            }
            SourceError::HotJournal { .. } => {
                "let SQLite roll it back: `sqlite3 state.db 'select count(*) from kine'`, then try again"
            }
            SourceError::Held { .. } => "stop that program, then try again",
            SourceError::Lock(_) => "put it on a volume with working file locks, writable to this user",
            SourceError::Corrupt(_) => {
                "restore it from a backup; `sqlite3 FILE .dump` shows what can still be read of it"
            }
            SourceError::BadRow { .. } => {
                "look at the row with sqlite3: correct it, or delete it if its object is not wanted"
            }
            SourceError::TwoNamesEqual { .. } => "look at the rows with sqlite3 and delete the one that is not wanted",
            SourceError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "let the user that syncer runs as read and write it and its folder"
            }
            SourceError::Sqlite(_) | SourceError::Io(_) => "see the cause",
        }
    }

    /// The error that ends the command: it names the file, what is wrong and the remedy.
    pub fn refusal(self, db: &std::path::Path) -> anyhow::Error {
        match self {
            // A fault of the environment, not of the store.
            SourceError::Io(e) if e.kind() != io::ErrorKind::PermissionDenied => {
                anyhow::Error::from(e).context(format!("read {}", db.display()))
            }
            SourceError::Sqlite(e) => anyhow::Error::from(e).context(format!("read {}", db.display())),
            SourceError::Lock(ref cause) => {
                let what = format!("{} is not imported: {self}: {cause}", db.display());
                refuse(Exit::RefusedSource, what, self.remedy())
            }
            other => refuse(Exit::RefusedSource, format!("{} is not imported: {other}", db.display()), other.remedy()),
        }
    }
}

/// Names the store in an error of the pipeline: a [`SourceError`] becomes a refusal, anything else stays what it is.
pub fn name_source(error: anyhow::Error, db: &std::path::Path) -> anyhow::Error {
    if exit_of(&error) != Exit::Fault {
        return error;
    }
    match error.downcast::<SourceError>() {
        Ok(source) => source.refusal(db),
        Err(other) => other,
    }
}

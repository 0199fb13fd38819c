//! Which store is read, and how it is opened.

mod bucket;
mod datadir;
mod etcd;
mod snapshot;
mod sqlite;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::backend::name_backend;
use super::journal::{Journal, SourceFile};
use super::progress::Meter;
use super::source::{FileState, Source};
use crate::datadir::DatadirLock;
use crate::disk::Disk;
use crate::etcd::tls_flags::TlsFlags;
use crate::scratch::Aside;

/// How long another process may take to let go of a store: an API server that is just being killed.
pub const WAIT_FOR_HOLDER: Duration = Duration::from_secs(2);

/// A kind of store, and where one of it is. A new kind is one file: it implements this, what it opens is a [`Source`], and it has
/// its line in [`KINDS`] if `syncer migrate` is to take it.
pub trait Store: Debug + Send + Sync {
    /// Where it is; the URL of a running etcd.
    fn path(&self) -> &Path;
    /// Opens it, so that nobody else writes to it meanwhile.
    fn open(&self, with: &Opening<'_>) -> anyhow::Result<Box<dyn Source>>;
    /// Whether it still is what the journal of an attempt says that was read.
    fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool>;
    /// Names it in an error of the pipeline, with what to do about it.
    fn name_in(&self, error: anyhow::Error) -> anyhow::Error {
        name_backend(error, self.path())
    }
    /// Whether a pod that moves it renames it, which is the commit; it stays as it is otherwise.
    fn is_renamed(&self) -> bool {
        false
    }
}

/// What a store may need to be opened.
#[derive(Clone, Copy)]
pub struct Opening<'a> {
    /// The disk.
    pub disk: &'a dyn Disk,
    /// The etcd program, which replays the log of a data dir that needs it.
    pub etcd: &'a Path,
    /// Where a copy may stand: of such a data dir, of a running etcd's snapshot, of one in a bucket. It is removed when the
    /// source is dropped.
    pub copy: &'a Aside,
    /// The lock of the directory that holds the data dir, if the caller has it.
    pub lock: Option<&'a Arc<DatadirLock>>,
    /// What is told meanwhile of how far a copy is.
    pub meter: &'a Meter,
}

/// How a source is read, besides where it is: what only some kinds know.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct SourceFlags {
    /// Take a snapshot file without a checksum at its end, such as a copy of etcd's own member/snap/db: damage within values
    /// is not noticed then.
    #[arg(long)]
    pub skip_hash_check: bool,
    /// The certificates of a running etcd.
    #[command(flatten)]
    pub tls: TlsFlags,
}

/// A kind as it is written in `KIND:PLACE`.
#[derive(Debug)]
pub struct Kind {
    /// The word before the colon.
    pub name: &'static str,
    /// What stands behind it, in capitals.
    pub place: &'static str,
    /// What that is, for the command's help.
    pub help: &'static str,
    /// The store at a place, which is not looked at yet.
    pub at: fn(place: &str, flags: &SourceFlags) -> anyhow::Result<Origin>,
}

/// What `syncer migrate` reads.
pub const KINDS: [&Kind; 4] = [&sqlite::KIND, &datadir::KIND, &snapshot::KIND, &etcd::KIND];

/// A store that can be read.
#[derive(Clone, Debug)]
pub struct Origin(Arc<dyn Store>);

impl Origin {
    /// This one.
    pub fn of(store: impl Store + 'static) -> Origin {
        Origin(Arc::new(store))
    }

    /// As [`Store::path`].
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// As [`Store::open`].
    pub fn open(&self, with: &Opening<'_>) -> anyhow::Result<Box<dyn Source>> {
        self.0.open(with)
    }

    /// As [`Store::is_as_noted`].
    pub fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        self.0.is_as_noted(journal)
    }

    /// As [`Store::name_in`].
    pub fn name_in(&self, error: anyhow::Error) -> anyhow::Error {
        self.0.name_in(error)
    }

    /// As [`Store::is_renamed`].
    pub fn is_renamed(&self) -> bool {
        self.0.is_renamed()
    }
}

/// Whether the file is as the journal of an attempt says.
fn is_as_noted(file: &Path, journal: &Journal) -> std::io::Result<bool> {
    let SourceFile { bytes, modified, inode, .. } = journal.source;
    Ok(FileState::of(file)? == FileState { bytes, modified, inode })
}

/// The path from the root: the journal compares paths. A trailing slash would make a name beside it one inside it.
pub(super) fn absolute(path: &str) -> anyhow::Result<PathBuf> {
    let whole = std::path::absolute(path)?;
    let text = whole.as_os_str().to_string_lossy();
    Ok(if text.len() > 1 && text.ends_with('/') { whole.components().collect() } else { whole })
}

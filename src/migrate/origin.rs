//! Which store is read, and how it is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::backend::datadir::{self, Replay};
use super::backend::{name_backend, snapshot};
use super::fenced::Fenced;
use super::journal::{Journal, SourceFile};
use super::kine::{KineStore, StoreFiles, name_source};
use super::remote::{self, Alarms};
use super::source::{FileState, Source};
use crate::datadir::DatadirLock;
use crate::datadir::writer::backend_of;
use crate::disk::Disk;
use crate::etcd::client::EtcdEndpoint;
use crate::scratch::Aside;
use crate::snapshot::fetched::InBucket;

/// How long another process may take to let go of a store: an API server that is just being killed.
pub const WAIT_FOR_HOLDER: Duration = Duration::from_secs(2);

/// A store on a disk. A new kind is a line here and a file that implements [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A `state.db` of kine's.
    Sqlite(PathBuf),
    /// The data dir of a stopped etcd.
    Datadir(PathBuf),
    /// A file with etcd's backend.
    Snapshot(PathBuf),
    /// A snapshot in a bucket, `s3://BUCKET/PREFIX/NAME`.
    Bucket(PathBuf),
    /// A running etcd.
    Etcd(EtcdEndpoint),
    /// A running etcd with our fence around it.
    Fenced(Fenced),
}

impl Origin {
    /// Where it is; the URL of a running etcd.
    pub fn path(&self) -> &Path {
        match self {
            Origin::Etcd(etcd) => Path::new(&etcd.url),
            Origin::Fenced(fenced) => Path::new(&fenced.given().url),
            Origin::Sqlite(path) | Origin::Datadir(path) | Origin::Snapshot(path) | Origin::Bucket(path) => path,
        }
    }

    /// Opens it, so that nobody else writes to it meanwhile. A data dir whose log must be replayed is copied to `copy`,
    /// and `etcd` replays it there; a running etcd's snapshot goes there too, and one from a bucket. It is removed when the source is dropped. `lock` is that of the directory that
    /// holds the data dir, if the caller has it.
    pub fn open(
        &self,
        disk: &dyn Disk,
        etcd: &Path,
        copy: &Aside,
        lock: Option<&Arc<DatadirLock>>,
    ) -> anyhow::Result<Box<dyn Source>> {
        Ok(match self {
            Origin::Sqlite(path) => Box::new(KineStore::open(path, WAIT_FOR_HOLDER)?),
            Origin::Datadir(path) => {
                let replay = Replay { etcd: etcd.to_owned(), copy: copy.clone(), lock: lock.cloned() };
                Box::new(datadir::open(disk, path, &replay)?)
            }
            Origin::Snapshot(path) => Box::new(snapshot::open(path)?),
            Origin::Bucket(place) => Box::new(remote::fetched(disk, place, copy)?),
            Origin::Etcd(etcd) => Box::new(remote::open(disk, etcd, copy, Alarms::None, None)?),
            Origin::Fenced(fenced) => Box::new(fenced.open(disk, copy)?),
        })
    }

    /// Whether it still is what the journal of an attempt says that was read.
    pub fn is_as_noted(&self, journal: &Journal) -> anyhow::Result<bool> {
        let (file, beside) = match self {
            Origin::Etcd(etcd) => return Ok(remote::revision(etcd)? == journal.source_revision),
            Origin::Fenced(fenced) => return Ok(remote::revision(fenced.given())? == journal.source_revision),
            // One that was put there since is another, though it may have the same name and length.
            Origin::Bucket(place) => {
                let begun = i64::try_from(journal.started)?;
                let same = |(bytes, put): (u64, OffsetDateTime)| {
                    bytes == journal.source.bytes && put.unix_timestamp() <= begun
                };
                return Ok(InBucket::named(place)?.look()?.is_some_and(same));
            }
            // Whoever writes to its log writes to its backend, a moment later or when it is started again.
            Origin::Datadir(dir) => (backend_of(dir), None),
            Origin::Snapshot(path) => (path.clone(), None),
            Origin::Sqlite(path) => (path.clone(), Some(StoreFiles::of(path).wal)),
        };
        let SourceFile { bytes, modified, inode, .. } = journal.source;
        let same = FileState::of(&file)? == FileState { bytes, modified, inode };
        Ok(same && beside.map_or(Ok(true), |beside| FileState::of(&beside).map(|now| now == journal.beside))?)
    }

    /// Names the store in an error of the pipeline, with what to do about it.
    pub fn name_in(&self, error: anyhow::Error) -> anyhow::Error {
        match self {
            Origin::Sqlite(path) => name_source(error, path),
            Origin::Datadir(_) | Origin::Snapshot(_) | Origin::Bucket(_) | Origin::Etcd(_) | Origin::Fenced(_) => {
                name_backend(error, self.path())
            }
        }
    }
}

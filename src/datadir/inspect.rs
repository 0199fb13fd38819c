//! What stands where etcd's data dir belongs: nothing, a data dir that etcd goes on from, or something it must not touch.
//!
//! The WAL is read whole, as etcd does at every start (its size is bounded by etcd: five segments of 64 MB). Of the
//! backend only the meta pages and a path to a few keys are read, whatever its size: that it was cut short or replaced
//! is noticed, a flipped bit in some value is not.
//!
//! Where etcd would start from a data dir that lost something, this refuses:
//! * a backend without its WAL: etcd would form a cluster around it, whose later members come up empty;
//! * a WAL without its backend, or with one that is older than the raft snapshot that the log begins with;
//! * a log whose raft snapshot file is lost: etcd would replay it from index 1, and later members would come up empty;
//! * a backend that is ahead of its WAL: etcd gives the lost entries' indexes to new ones and skips those as already
//!   applied; it answers nobody until it is past them (tried), and members that have the lost entries diverge.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::bolt::{BoltError, BoltReader, Bucket};
use super::schema;
use super::snapshot;
use super::wal::{WalError, WalSummary, owner as wal_owner, read_wal};
use crate::boot::DataDirFact;
use crate::disk::at;
use crate::ids::{ClusterId, MemberId, RaftIndex, Term};

/// A raft snapshot file is a few KiB: the list of members. Larger ones are not read.
const MAX_SNAP_FILE: u64 = 64 << 20;

/// An etcd schema version (`3.6`), as in the backend's `storageVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SchemaVersion {
    /// Major.
    pub major: u64,
    /// Minor.
    pub minor: u64,
}

impl SchemaVersion {
    /// From 3.7 on etcd starts from the WAL's own snapshot records and no longer reads raft snapshot files.
    pub const WITHOUT_SNAP_FILES: SchemaVersion = SchemaVersion { major: 3, minor: 7 };
    /// From 3.6 on etcd believes the backend's list of the members, not the v2 store's.
    pub const STORES_MEMBERS: SchemaVersion = SchemaVersion { major: 3, minor: 6 };
}

impl std::fmt::Display for SchemaVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What an inspection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InspectedDatadir {
    /// Nothing, or the leftovers of a first start that was killed before it stored anything, neither a vote nor an
    /// entry. Some of these leftovers etcd could not start from: whoever forms or joins here first calls
    /// [`super::quarantine::clear`].
    Empty,
    /// A data dir that etcd goes on from.
    Usable(UsableDatadir),
    /// Something that etcd could not or must not start from, with the reason.
    Damaged(String),
    /// Written by a newer etcd than the one at hand, with both versions.
    Newer(String),
}

/// A data dir that passed inspection; only [`inspect`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableDatadir {
    path: PathBuf,
    wal: Box<WalSummary>,
    start: (Term, RaftIndex),
    backend: PathBuf,
    consistent_index: RaftIndex,
    cluster_version: Option<SchemaVersion>,
}

impl UsableDatadir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose data dir it is, from the WAL's metadata record.
    pub fn member(&self) -> MemberId {
        self.wal.metadata.member
    }

    /// Which cluster it belongs to, from the WAL's metadata record.
    pub fn cluster(&self) -> ClusterId {
        self.wal.metadata.cluster
    }

    /// Term and index of the last entry, or of the raft snapshot that no entry follows.
    pub fn last(&self) -> (Term, RaftIndex) {
        match self.wal.entries {
            Some(run) if run.last > self.start.1 => (run.term, run.last),
            _ => self.start,
        }
    }

    /// The term: the greater of the HardState's and the last entry's.
    pub fn term(&self) -> Term {
        Term(self.wal.hard_state.unwrap_or_default().term).max(self.last().0)
    }

    /// The index of the last entry.
    pub fn last_index(&self) -> RaftIndex {
        self.last().1
    }

    /// The HardState's commit index, which may lag behind what was applied.
    pub fn commit(&self) -> RaftIndex {
        RaftIndex(self.wal.hard_state.unwrap_or_default().commit)
    }

    /// The index up to which the backend holds everything.
    pub fn consistent_index(&self) -> RaftIndex {
        self.consistent_index
    }

    /// The last entry that etcd would replay and that is a request of its first API, which etcd 3.7 cannot read.
    pub fn v2_request(&self) -> Option<RaftIndex> {
        self.wal.last_v2.filter(|index| *index > self.start.1)
    }

    /// The lowest version among the members when it was last looked at; `None` before a first look.
    pub fn cluster_version(&self) -> Option<SchemaVersion> {
        self.cluster_version
    }

    /// The raft snapshot that etcd goes on from, or index 0 for the log's beginning.
    pub fn start(&self) -> (Term, RaftIndex) {
        self.start
    }

    /// The backend's file: `member/snap/db`, or a received one that etcd puts in its place at its next start.
    pub fn backend(&self) -> &Path {
        &self.backend
    }

    /// All that the WAL says.
    pub fn wal(&self) -> &WalSummary {
        &self.wal
    }
}

impl InspectedDatadir {
    /// What the boot decision looks at.
    pub fn fact(&self) -> DataDirFact {
        match self {
            InspectedDatadir::Empty => DataDirFact::Empty,
            InspectedDatadir::Usable(u) => DataDirFact::Valid { member: u.member(), cluster: u.cluster() },
            InspectedDatadir::Damaged(reason) => DataDirFact::Damaged(reason.clone()),
            InspectedDatadir::Newer(versions) => DataDirFact::Newer(versions.clone()),
        }
    }
}

/// The disk could not be read, so nothing is known.
#[derive(Debug, Error)]
#[error("inspect the data dir")]
pub struct InspectError(#[source] pub io::Error);

/// Whose a damaged data dir is, as far as its WAL still tells.
pub fn owner(etcd_dir: &Path) -> Option<(MemberId, ClusterId)> {
    let metadata = wal_owner(&etcd_dir.join("member").join("wal"))?;
    Some((metadata.member, metadata.cluster))
}

/// Inspects the data dir at `etcd_dir`. `newest` is the schema version of the etcd that will run: an older one refuses
/// a newer backend.
pub fn inspect(etcd_dir: &Path, newest: SchemaVersion) -> Result<InspectedDatadir, InspectError> {
    let raw = match RawDatadir::open(etcd_dir) {
        Ok(Some(raw)) => raw,
        Ok(None) => return Ok(InspectedDatadir::Empty),
        Err(found) => return found.outcome(),
    };
    match raw.check(newest) {
        Ok(Some(usable)) => Ok(InspectedDatadir::Usable(usable)),
        Ok(None) => Ok(InspectedDatadir::Empty),
        Err(found) => found.outcome(),
    }
}

/// Why a check ended early.
enum Found {
    Damage(String),
    Newer(String),
    Unreadable(io::Error),
}

impl Found {
    fn outcome(self) -> Result<InspectedDatadir, InspectError> {
        match self {
            Found::Damage(reason) => Ok(InspectedDatadir::Damaged(reason)),
            Found::Newer(versions) => Ok(InspectedDatadir::Newer(versions)),
            Found::Unreadable(error) => Err(InspectError(error)),
        }
    }
}

impl From<io::Error> for Found {
    fn from(error: io::Error) -> Found {
        Found::Unreadable(error)
    }
}

impl From<WalError> for Found {
    fn from(error: WalError) -> Found {
        if let WalError::Io(error) = error { Found::Unreadable(error) } else { Found::Damage(error.to_string()) }
    }
}

fn damage<T>(reason: impl Into<String>) -> Result<T, Found> {
    Err(Found::Damage(reason.into()))
}

/// A directory of which only the names of its files are known.
struct RawDatadir {
    path: PathBuf,
    /// Names of what is not etcd's.
    foreign: Vec<String>,
    /// There is at least one `*.wal`, which is what makes etcd restart rather than form or join.
    has_wal: bool,
    /// Names in `member/snap`.
    snap: Vec<String>,
}

impl RawDatadir {
    /// `None` if there is nothing at all.
    fn open(path: &Path) -> Result<Option<RawDatadir>, Found> {
        let Some(top) = names(path)? else { return Ok(None) };
        let foreign = |name: &&String| !matches!(name.as_str(), "member" | "lost+found");
        let mut foreign: Vec<String> = top.iter().filter(foreign).cloned().collect();
        let member = path.join("member");
        let inside = names(&member)?.unwrap_or_default();
        // `wal.tmp` is a WAL that was never finished, `wal.broken...` one that etcd gave up on while creating it.
        let known =
            |name: &String| matches!(name.as_str(), "snap" | "wal" | "wal.tmp") || name.starts_with("wal.broken.");
        foreign.extend(inside.iter().filter(|name| !known(name)).map(|name| format!("member/{name}")));
        let wal = names(&member.join("wal"))?.unwrap_or_default();
        let snap = names(&member.join("snap"))?.unwrap_or_default();
        let has_wal = wal.iter().any(|name| name.ends_with(".wal"));
        Ok(Some(RawDatadir { path: path.to_owned(), foreign, has_wal, snap }))
    }

    fn check(self, newest: SchemaVersion) -> Result<Option<UsableDatadir>, Found> {
        if !self.has_wal {
            return self.check_without_wal().map(|()| None);
        }
        let wal = read_wal(&self.path.join("member").join("wal"))?;
        let start = self.starting_point(&wal, newest)?;
        check_entries(&wal, start)?;
        if !self.snap.iter().any(|name| name == "db") {
            return damage("the backend (member/snap/db) is missing while its WAL is there");
        }
        let mut backend_path = self.db("db");
        let mut backend = Backend::open(&backend_path)?;
        if wal.hard_state.is_none() && backend.is_new {
            // Killed after it created its WAL and before the first entry. etcd finds the WAL at its next start, expects
            // a raft configuration in it, has none, and waits for a leader for ever (tried on 3.5, 3.6 and 3.7).
            return Ok(None);
        }
        if start.1 > backend.consistent_index {
            // etcd stopped after it received a snapshot and before it put it in place: it does so at its next start.
            let received = format!("{:016x}.snap.db", start.1.0);
            if !self.snap.contains(&received) {
                let has = backend.consistent_index.0;
                return damage(format!("the backend ends at index {has}, but its WAL begins at {}", start.1.0));
            }
            backend_path = self.db(&received);
            backend = Backend::open(&backend_path)?;
        }
        backend.check_version(newest)?;
        let (consistent_index, cluster_version) = (backend.consistent_index, backend.cluster_version);
        let wal = Box::new(wal);
        let usable =
            UsableDatadir { path: self.path, wal, start, backend: backend_path, consistent_index, cluster_version };
        if consistent_index > usable.last_index() {
            let (has, ends) = (consistent_index.0, usable.last_index().0);
            return damage(format!("the backend is at index {has}, but its WAL ends at {ends}: entries are lost"));
        }
        if usable.commit() > usable.last_index() {
            let (says, ends) = (usable.commit().0, usable.last_index().0);
            return damage(format!(
                "the WAL says that index {says} is committed, and ends at {ends}: entries are lost"
            ));
        }
        Ok(Some(usable))
    }

    /// Without a WAL, etcd forms or joins. It may, if it never got further than creating its files.
    fn check_without_wal(&self) -> Result<(), Found> {
        if let Some(name) = self.foreign.first() {
            return damage(format!("there is no WAL, but something that is not etcd's: {name}"));
        }
        let has_db = self.snap.iter().any(|name| name == "db");
        if has_db && fs::metadata(self.db("db"))?.len() > 0 && !Backend::open(&self.db("db"))?.is_new {
            return damage("the WAL (member/wal) is missing while its backend (member/snap/db) is there");
        }
        if let Some(name) = self.snap.iter().find(|name| name.ends_with(".snap") || name.ends_with(".snap.db")) {
            return damage(format!("the WAL (member/wal) is missing while a snapshot is there: {name}"));
        }
        Ok(())
    }

    /// The raft snapshot that etcd goes on from, or index 0 for the log's beginning.
    fn starting_point(&self, wal: &WalSummary, newest: SchemaVersion) -> Result<(Term, RaftIndex), Found> {
        let known: Vec<_> = wal.committed_snapshots().map(|s| (Term(s.term), RaftIndex(s.index))).collect();
        let newest_known = known.last().copied().unwrap_or_default();
        let start = if newest >= SchemaVersion::WITHOUT_SNAP_FILES {
            newest_known
        } else {
            let mut files: Vec<_> =
                self.snap.iter().filter_map(|name| Some((snapshot::parse_file_name(name)?, name))).collect();
            files.sort();
            // The newest by name; what counts is the content.
            let read = files.iter().rev().filter_map(|(_, name)| self.read_snap(name).ok());
            read.into_iter().find(|place| known.contains(place)).unwrap_or_default()
        };
        let first = wal.segments.first().map_or(RaftIndex(0), |segment| segment.index);
        if first > start.1 || !known.contains(&start) {
            let first = first.0;
            return damage(format!("the WAL begins at index {first}, and no raft snapshot reaches up to there"));
        }
        // etcd would replay the log from its first entry and take it for the whole history. After a restore it is not,
        // and a member that joins would be sent those few entries and nothing else.
        if start.1.0 == 0 && newest_known.1.0 > 0 {
            let name = snapshot::file_name(newest_known.0, newest_known.1);
            return damage(format!("the raft snapshot file member/snap/{name} is missing or damaged"));
        }
        Ok(start)
    }

    fn read_snap(&self, name: &str) -> Result<(Term, RaftIndex), Found> {
        let path = self.db(name);
        if fs::metadata(&path)?.len() > MAX_SNAP_FILE {
            return damage(format!("{name} is too large"));
        }
        let read = snapshot::decode(&fs::read(&path)?).map_err(|e| Found::Damage(e.to_string()))?;
        Ok((read.term, read.index))
    }

    fn db(&self, name: &str) -> PathBuf {
        self.path.join("member").join("snap").join(name)
    }
}

/// The names in a directory; `None` if it is missing.
fn names(dir: &Path) -> Result<Option<Vec<String>>, Found> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return damage(format!("{} is not a directory", dir.display()));
        }
        Err(e) => return Err(at(dir, e).into()),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(|e| at(dir, e))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(Some(names))
}

/// The entries after the starting point must follow it without a gap.
fn check_entries(wal: &WalSummary, start: (Term, RaftIndex)) -> Result<(), Found> {
    match wal.entries {
        Some(run) if run.last > start.1 && run.first.0 > start.1.0.saturating_add(1) => {
            damage(format!("the WAL has no entries between index {} and {}", start.1.0, run.first.0))
        }
        _ => Ok(()),
    }
}

/// What is read of a backend.
struct Backend {
    consistent_index: RaftIndex,
    storage_version: Option<SchemaVersion>,
    cluster_version: Option<SchemaVersion>,
    /// It holds no revision and no member: etcd created it and never got to use it.
    is_new: bool,
}

impl Backend {
    fn open(path: &Path) -> Result<Backend, Found> {
        let file = File::open(path).map_err(|e| at(path, e))?;
        Backend::read(file).map_err(|error| match error {
            BoltError::Io(error) => Found::Unreadable(at(path, error)),
            other => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Found::Damage(format!("the backend (member/snap/{name}) is damaged: {other}"))
            }
        })
    }

    fn read(file: File) -> Result<Backend, BoltError> {
        let reader = BoltReader::open(file)?;
        let get = |bucket: &str, key: &[u8]| match reader.bucket(bucket)? {
            Some(bucket) => reader.get(&bucket, key),
            None => Ok(None),
        };
        let version = |text: Option<Vec<u8>>| {
            let (major, minor) = schema::decode_version(&text?)?;
            Some(SchemaVersion { major, minor })
        };
        let is_empty = |bucket: Option<Bucket>| match bucket {
            Some(bucket) => Ok::<_, BoltError>(reader.last(&bucket)?.is_none()),
            None => Ok(true),
        };
        let index = get(schema::BUCKET_META, schema::META_CONSISTENT_INDEX)?;
        let index = index.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
        Ok(Backend {
            consistent_index: RaftIndex(index.unwrap_or(0)),
            storage_version: version(get(schema::BUCKET_META, schema::META_STORAGE_VERSION)?),
            cluster_version: version(get(schema::BUCKET_CLUSTER, schema::CLUSTER_VERSION)?),
            is_new: index.is_none()
                && is_empty(reader.bucket(schema::BUCKET_KEY)?)?
                && is_empty(reader.bucket(schema::BUCKET_MEMBERS)?)?,
        })
    }

    fn check_version(&self, newest: SchemaVersion) -> Result<(), Found> {
        for version in [self.storage_version, self.cluster_version].into_iter().flatten() {
            if version > newest {
                return Err(Found::Newer(format!("it was written by etcd {version}, and the etcd here is {newest}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

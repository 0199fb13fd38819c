//! The record, beside the target, of a migration that was begun: what lets a boot tell a data dir of an uncommitted
//! import, which is rebuilt, from any other, which is never touched; and the same of a `state.db`.
//!
//! Its form is that of [`crate::record_file`], with the magic `SYNCMIG1` and at most 64 KiB of payload.
//!
//! It is replaced as a whole, by a durable rename. Legal transitions: none -> importing -> importing (begun anew, or
//! what was written is now known) -> done. Nothing leaves done.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::source::FileState;
use crate::boot::JournalFact;
use crate::disk::{Disk, parent_of};
use crate::ids::{ClusterId, Revision};
use crate::record_file::{self, RecordError};

/// Its name in the directory that also holds `etcd/`.
pub const FILE_NAME: &str = "migration.journal";
/// That of `syncer migrate` into that directory's `etcd/`.
pub const BY_HAND: &str = "etcd.migration.journal";
/// That of the way back, beside it.
pub const BACK_FILE_NAME: &str = "migration-back.journal";

const MAGIC: &[u8; 8] = b"SYNCMIG1";
const MAX_PAYLOAD: usize = 64 << 10;

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Begun. The source is the truth as long as it bears its name.
    Importing,
    /// Committed and cleaned up after.
    Done,
}

/// The journal's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Journal {
    /// Where the migration stands.
    pub phase: Phase,
    /// What is moved.
    pub source: SourceFile,
    /// The source's revision; 0 where it was not noted.
    #[serde(default = "not_noted")]
    pub source_revision: Revision,
    /// The second of the files that it was read from, as it was: the `-wal` of a `state.db`.
    #[serde(default)]
    pub beside: FileState,
    /// Whether the source is renamed in the end, which is the commit then.
    #[serde(default)]
    pub renames: bool,
    /// When it was begun, in seconds since 1970.
    pub started: u64,
    /// When it was done.
    pub finished: Option<u64>,
    /// The data dir that was written; known once the staging directory is durable, and always before the flip.
    pub written: Option<Written>,
    /// Or the `state.db`, where that is what is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<WrittenFile>,
}

/// What is moved: the source's own file, or a running etcd, of which only the URL says anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceFile {
    /// Its path; relative to the journal's directory if it is below that, so that a volume may be mounted elsewhere.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its modification time, in nanoseconds since 1970.
    pub modified: i128,
    /// Its inode.
    pub inode: u64,
}

/// What stands in the data dir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Written {
    /// The data dir's cluster, which tells it from any other.
    pub cluster: ClusterId,
    /// The store's revision.
    pub revision: Revision,
    /// Live keys.
    pub keys: u64,
    /// `HashKV` at that revision.
    pub hash: u32,
    /// The largest request that the values need, in bytes: etcd's limit must not be below it, at this start or any later.
    pub max_request_bytes: u64,
}

/// A `state.db` that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WrittenFile {
    /// Its inode, which a rename keeps.
    pub inode: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was last changed, in nanoseconds since 1970: nobody has used it since.
    pub modified: i128,
    /// The store's revision.
    pub revision: Revision,
    /// Live keys.
    pub keys: u64,
}

impl WrittenFile {
    /// Whether what stands at `path` is this file, as it was written.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let found = FileState::of(path)?;
        Ok((found.inode, found.bytes, found.modified) == (self.inode, self.bytes, self.modified))
    }
}

const fn not_noted() -> Revision {
    Revision(0)
}

impl SourceFile {
    /// Whether it is a running etcd or a snapshot in a bucket, named by its URL.
    pub fn is_remote(&self) -> bool {
        is_url(&self.path)
    }
}

/// Whether a source is named by a URL, of whatever scheme, rather than a path: that is absolute, or has single slashes.
fn is_url(source: &Path) -> bool {
    let scheme = source.to_str().and_then(|text| text.split_once("://")).map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

impl Journal {
    /// Whether `next` may replace `self`: the same source, and nothing after the end.
    pub fn may_become(&self, next: &Journal) -> bool {
        self.phase == Phase::Importing && self.source.path == next.source.path
    }
}

/// Reads the journal at `path`, if there is one.
pub fn load(path: &Path) -> Result<Option<Journal>, RecordError> {
    record_file::load(MAGIC, MAX_PAYLOAD, path)
}

/// Replaces the journal at `path`, durably. A transition that is not legal is an error.
pub fn store(disk: &dyn Disk, path: &Path, journal: &Journal) -> anyhow::Result<()> {
    if let Some(present) = load(path).context("read the journal that is to be replaced")? {
        anyhow::ensure!(
            present.may_become(journal),
            "{} says {:?} of {}, which cannot become {:?} of {}",
            path.display(),
            present.phase,
            present.source.path.display(),
            journal.phase,
            journal.source.path.display()
        );
    }
    disk.write_durable(path, &record_file::encode(MAGIC, MAX_PAYLOAD, journal)?, 0o600).context("write the journal")
}

/// What the boot decision looks at: the journal in `data_dir`.
pub fn fact(data_dir: &Path) -> io::Result<JournalFact> {
    let path = data_dir.join(FILE_NAME);
    Ok(match load(&path) {
        Ok(None) => JournalFact::Absent,
        Ok(Some(journal)) => {
            let source = absolute(&path, &journal.source.path);
            match journal.phase {
                // Its commit is that the data dir is in place; whether it was begun, the fence tells.
                Phase::Importing if journal.source.is_remote() => JournalFact::Absent,
                Phase::Importing => JournalFact::Importing { source },
                Phase::Done => JournalFact::Done { source },
            }
        }
        Err(e @ RecordError::Damaged { .. }) => JournalFact::Damaged(e.to_string()),
        Err(RecordError::Io(e)) => return Err(e),
    })
}

/// Whether the store in `data_dir` was written back into a `state.db`. A journal of that which cannot be read may say so.
pub fn written_back(data_dir: &Path) -> io::Result<bool> {
    match load(&data_dir.join(BACK_FILE_NAME)) {
        Ok(journal) => Ok(journal.is_some_and(|journal| journal.file.is_some())),
        Err(RecordError::Damaged { .. }) => Ok(true),
        Err(RecordError::Io(e)) => Err(e),
    }
}

/// The largest request that the values imported into `data_dir` need, in bytes, at boot or by `syncer migrate`; `None` if
/// nothing was imported.
pub fn max_request_bytes(data_dir: &Path) -> Result<Option<u64>, RecordError> {
    let needed = |journal: Option<Journal>| Some(journal?.written?.max_request_bytes);
    // No boot depends on it otherwise.
    let by_hand = load(&data_dir.join(BY_HAND)).ok().flatten();
    Ok(needed(load(&data_dir.join(FILE_NAME))?).max(needed(by_hand)))
}

/// A source's path as the journal at `journal` keeps it.
pub fn relative(journal: &Path, source: &Path) -> PathBuf {
    source.strip_prefix(parent_of(journal)).unwrap_or(source).to_owned()
}

/// The path that [`relative`] was made from.
pub fn absolute(journal: &Path, source: &Path) -> PathBuf {
    if is_url(source) { source.to_owned() } else { parent_of(journal).join(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn journal(phase: Phase, path: &str) -> Journal {
        Journal {
            phase,
            source: SourceFile { path: path.into(), bytes: 7, modified: 1_700_000_000_000_000_001, inode: 3 },
            source_revision: Revision(6),
            beside: FileState { bytes: 7, modified: 1_700_000_000_000_000_001, inode: 3 },
            renames: true,
            started: 1,
            finished: (phase == Phase::Done).then_some(2),
            written: Some(Written {
                cluster: ClusterId(5),
                revision: Revision(6),
                keys: 7,
                hash: 8,
                max_request_bytes: 9,
            }),
            file: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_maps_to_a_fact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(load(&path).unwrap(), None);
        assert_eq!(fact(dir.path()).unwrap(), JournalFact::Absent);
        let db = dir.path().join("server/db/state.db");
        let name = relative(&path, &db);
        assert_eq!(name, Path::new("server/db/state.db"));
        for (phase, want) in [
            (Phase::Importing, JournalFact::Importing { source: db.clone() }),
            (Phase::Done, JournalFact::Done { source: db.clone() }),
        ] {
            let journal = journal(phase, name.to_str().unwrap());
            store(&RealDisk, &path, &journal).unwrap();
            assert_eq!(load(&path).unwrap(), Some(journal));
            assert_eq!(fact(dir.path()).unwrap(), want);
        }
        for url in ["https://vc-etcd:2379", "s3://backups/vc/a.db", "gs://backups/vc/a.db"].map(Path::new) {
            assert_eq!((relative(&path, url).as_path(), absolute(&path, url).as_path()), (url, url));
        }
        for place in ["state.db", "server/db/state.db", "/data/a://b", "://b", "a b://c"] {
            let file = SourceFile { path: place.into(), bytes: 0, modified: 0, inode: 0 };
            assert!(!file.is_remote(), "{place} is a path");
        }
        assert_eq!(relative(&path, Path::new("/elsewhere/state.db")), Path::new("/elsewhere/state.db"));
        assert_eq!(absolute(&path, Path::new("/elsewhere/state.db")), Path::new("/elsewhere/state.db"));
    }

    #[test]
    fn only_legal_transitions_are_written() {
        use Phase::{Done, Importing};
        for (from, to, legal) in [
            ((Importing, "a"), (Importing, "a"), true),
            ((Importing, "a"), (Done, "a"), true),
            ((Importing, "a"), (Importing, "b"), false),
            ((Importing, "a"), (Done, "b"), false),
            ((Done, "a"), (Done, "a"), false),
            ((Done, "a"), (Importing, "a"), false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE_NAME);
            store(&RealDisk, &path, &journal(from.0, from.1)).unwrap();
            assert_eq!(store(&RealDisk, &path, &journal(to.0, to.1)).is_ok(), legal, "{from:?} {to:?}");
        }
    }

    #[test]
    fn every_single_damaged_byte_is_seen() {
        let bytes = record_file::encode(MAGIC, MAX_PAYLOAD, &journal(Phase::Importing, "state.db")).unwrap();
        assert!(record_file::decode::<Journal>(MAGIC, &bytes).is_ok());
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x20;
            assert!(record_file::decode::<Journal>(MAGIC, &damaged).is_err(), "byte {i}");
            assert!(record_file::decode::<Journal>(MAGIC, &bytes[..i]).is_err(), "cut at {i}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), &bytes[..20]).unwrap();
        assert!(matches!(fact(dir.path()).unwrap(), JournalFact::Damaged(_)));
        std::fs::write(dir.path().join(FILE_NAME), vec![b'x'; 1 << 20]).unwrap();
        assert!(matches!(fact(dir.path()).unwrap(), JournalFact::Damaged(_)));
    }
}
